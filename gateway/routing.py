"""Routing: in which order the deployments of a model are tried, and which target of an alias serves a caller. Pure."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from uuid import UUID

from models.catalog import Deployment, Target

if TYPE_CHECKING:
    from gateway.breaker import Breakers
    from gateway.waiting import WaitingRoom

MUCH_MORE: Final = 3
"""How many times the work of the least loaded deployment the one that has a conversation in its cache may have."""

PREFIX_CHARACTERS: Final = 512
"""What is looked at of each text at the beginning of a conversation."""

_FIRST_MESSAGES: Final = 4
_FIRST_TOKENS: Final = 128
_DEEPEST: Final = 3
_MASK: Final = 2**64 - 1

_Ranked: TypeAlias = tuple[bool, int, bool, float, UUID, Deployment]
"""Is full, priority, is due for no probe, work, id, and the deployment itself: in the order of their weight."""


def route(
    deployments: Sequence[Deployment],
    tokens: int,
    room: WaitingRoom,
    breakers: Breakers,
    now: float,
    prefix: int | None = None,
) -> tuple[Deployment, ...]:
    """Deployments that a call which reserves `tokens` may try, best first; none if the breakers of all are open.

    Those with a free slot come first, and of them those of the lowest priority: a lower class is used only where no
    higher one is able. Among equals comes first the one whose breaker wants a probe: put behind the others it would
    never be tried again. The rest follow by outstanding work in reserved tokens, this call's included, per weight; but
    the favourite of the call's `prefix` goes before them while it is not much more loaded. The full ones are last, but
    they are there: the call may wait for any of them.
    """
    if len(deployments) == 1:
        return tuple(deployments) if breakers.of(deployments[0].id).admits(now) else ()
    ranked: list[_Ranked] = []
    for each in deployments:
        breaker, backend = breakers.of(each.id), each.backend.id
        if breaker.admits(now):
            work = (room.tokens(backend) + tokens) / (each.weight * breaker.share(now))
            is_full, is_settled = not room.has_room(backend), not breaker.is_probing(now)
            ranked.append((is_full, each.priority, is_settled, work, each.id, each))
    # Ids differ, so deployments themselves are never compared.
    ranked.sort()
    if prefix is not None and len(ranked) > 1:
        _put_favourite_first(ranked, prefix)
    return tuple(each for *_, each in ranked)


def _put_favourite_first(ranked: list[_Ranked], prefix: int) -> None:
    is_full, priority, is_settled, least, *_ = ranked[0]
    if is_full or not is_settled:
        return
    soonest, favourite = math.inf, 0
    for place, (full, rank, settled, _, id, each) in enumerate(ranked):
        if full or rank != priority or not settled:
            break
        arrival = _race(prefix, id.int, each.weight)
        if arrival < soonest:
            soonest, favourite = arrival, place
    if favourite and ranked[favourite][3] <= MUCH_MORE * least:
        ranked.insert(0, ranked.pop(favourite))


def pause_seconds(deployments: Sequence[Deployment], breakers: Breakers, now: float) -> float:
    """Time until the soonest of the deployments may be tried again: for `Retry-After` where `route` finds none."""
    return min((breakers.of(each.id).pause_seconds(now) for each in deployments), default=0.0)


# Conversations -------------------------------------------------------------------------------------------------------


def prefix_of(body: Mapping[str, Any]) -> int | None:
    """A hash of how a conversation begins, the same for each of its calls; None where the request has no text.

    What is in front is all that counts for a prefix cache: system prompt and first words of the user, or the prompt.
    Later messages are not looked at, or the next call of the conversation would go elsewhere.
    """
    pieces: list[str] = []
    for name in ("instructions", "system", "messages", "input", "prompt"):
        if (value := body.get(name)) is not None:
            _begin(value, pieces)
    text = "\0".join(pieces)
    return zlib.crc32(text.encode("utf-8", "surrogatepass")) if text else None


def _begin(value: Any, pieces: list[str], depth: int = 0) -> None:
    if isinstance(value, str):
        pieces.append(value[:PREFIX_CHARACTERS])
    elif isinstance(value, list) and value and depth < _DEEPEST:
        if isinstance(value[0], int):
            pieces.append(str(value[:_FIRST_TOKENS]))
            return
        for each in value[:_FIRST_MESSAGES]:
            if not isinstance(each, dict):
                _begin(each, pieces, depth + 1)
                return
            _begin(each.get("content", each.get("text")), pieces, depth + 1)
            if each.get("role") == "user":
                return


# Aliases -------------------------------------------------------------------------------------------------------------


def caller_key(organization: UUID, api_key: UUID, end_user: str | None) -> int:
    """What a caller of an alias is known by: the end user where the call names one, else its key."""
    if end_user is None:
        return zlib.crc32(api_key.bytes)
    return zlib.crc32(organization.bytes + end_user.encode("utf-8", "surrogatepass"))


def targets_for(targets: Sequence[Target], caller: int) -> tuple[str, ...]:
    """The models that an alias has for a caller, best first; one without weight is none of them.

    Each caller comes to a target with the probability of its weight, and again and again to the same. More weight for
    one target moves callers to it from the others, and nobody between the others.
    """
    if len(targets) == 1:
        return (targets[0].model,)
    weighed = [each for each in targets if each.weight]
    weighed.sort(key=lambda each: _race(caller, zlib.crc32(each.model.encode()), each.weight))
    return tuple(each.model for each in weighed)


def _race(key: int, salt: int, weight: int) -> float:
    """When a runner arrives who is drawn by key and salt: the one of greater weight is the sooner there.

    Weighted rendezvous hashing: the first of several arrives with the probability of its share of the weights, and
    whether another runs or not changes nothing for the rest. The mixing is that of SplitMix64.
    """
    mixed = (key * 0x9E3779B97F4A7C15 ^ (salt & _MASK) * 0xD1B54A32D192ED03) & _MASK
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _MASK
    mixed ^= mixed >> 31
    # Between 0 and 1, without both.
    return -math.log((mixed >> 11 | 1) / 2**53) / weight
