"""The sweeper: ends the calls of gateways that died, at the last checkpoint of each, from what is in Redis alone.

A gateway shows a sign of life and keeps a checkpoint of every open call once a second. When it has been silent for
long enough, each of its holds is either settled, as `recovered`, at the tokens of its checkpoint, or voided where no
backend had accepted the call. So every call is charged what it delivered but for its last second.

Both ends go through the scripts that end any call, by its id, so any number of sweepers may look at once. Where the
gateway has shown a sign of life since, they end nothing. One that is alive and silent all the same settles late: where
the call was voided here, its charge counts; where it was recovered, `HotStore.settle` answers False, and the charge in
its journal is the only one that knows the rest.
A replay compares it with the booked one (`ending` is `recovered`) and writes a charge that `corrects` that; never an
update.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, cast

from billing.charges import Measured, charge
from billing.hot.store import Abandoned, HotStore
from models.call import Charge, Checkpoint, Hold, Void
from models.usage import Ending, UsageSource

GRACE_SECONDS: Final = 30
"""Silence after which a gateway is suspected to be dead."""

CONFIRM_SECONDS: Final = 5
"""Time for which it is suspected before it is: enough to reconnect and show a sign of life after Redis was away."""

_AT_ONCE: Final = 200


@dataclass(frozen=True, slots=True)
class Swept:
    """What one look at a shard ended: charges of calls that were recovered, voids of those that cost nothing.

    `unreadable` says, a sentence each, which holds of the shard cannot be read; they stay, for a person to look at.
    """

    shard: int
    recovered: tuple[Charge, ...] = ()
    voided: tuple[Void, ...] = ()
    unreadable: tuple[str, ...] = ()


async def sweep_shard(
    hot: HotStore,
    shard: int,
    now: datetime,
    grace_seconds: int = GRACE_SECONDS,
    confirm_seconds: int = CONFIRM_SECONDS,
) -> Swept:
    """End the calls of the shard whose gateway has been silent; one cheap command where none has.

    Silence is measured by the clock of Redis: for `grace_seconds`, and for another `confirm_seconds` after a sweeper
    has noticed it, so two looks are needed at least. `now` is when the charges say that their calls ended. Raises
    `Unavailable` where Redis cannot answer; the next look goes on.
    """
    silence = await hot.silence(shard, suspect_ms=grace_seconds * 1_000, dead_ms=confirm_seconds * 1_000)
    if silence is None:
        return Swept(shard)
    recovered: list[Charge] = []
    voided: list[Void] = []
    unreadable: list[str] = []
    for organization_id in silence.organization_ids:
        found, errors = await hot.abandoned(shard, organization_id, silence.instances.keys())
        unreadable += map(str, errors)
        for at in range(0, len(found), _AT_ONCE):
            some = found[at : at + _AT_ONCE]
            signs = [silence.instances[one.instance] for one in some]
            for end in await _all([_sweep(hot, one, sign, now) for one, sign in zip(some, signs, strict=True)]):
                if isinstance(end, Charge):
                    recovered.append(end)
                elif isinstance(end, Void):
                    voided.append(end)
    if not unreadable:
        for instance, last_sign in silence.instances.items():
            await hot.forget(shard, instance, last_sign)
    return Swept(shard, tuple(recovered), tuple(voided), tuple(unreadable))


def end_of(hold: Hold, checkpoint: Checkpoint | None, now: datetime) -> Charge | Void:
    """How the call of an abandoned hold ends.

    A hold without a checkpoint was younger than one second when its gateway died, so at most that second's tokens were
    delivered: it is void. So is one whose backend had not accepted the call. Any other is charged its checkpoint.
    """
    if checkpoint is None:
        return Void(hold, "its gateway died within a second of the hold")
    if not checkpoint.accepted:
        return Void(hold, "its gateway died before a backend had accepted the call")
    return charge(
        hold,
        _measured(checkpoint),
        ending=Ending.RECOVERED,
        deployment=checkpoint.deployment,
        ended_at=max(now, hold.request.origin.created_at),
    )


def _measured(checkpoint: Checkpoint) -> Measured:
    """The checkpoint's tokens, beside whose count they were."""
    usage, source = checkpoint.usage, checkpoint.source
    so_far: dict[str, Any] = {"input": usage.input, "output": usage.output}
    if source in (UsageSource.BACKEND, UsageSource.BACKEND_PARTIAL):
        return Measured(usage, UsageSource.CHECKPOINT, reported={"checkpoint": {**so_far, "cached": usage.cached}})
    return Measured(usage, UsageSource.CHECKPOINT, counted={**so_far, "exact": source is UsageSource.TIKTOKEN})


async def end_all(hot: HotStore, found: Sequence[tuple[Hold, Checkpoint | None]], now: datetime) -> list[Charge | Void]:
    """End these calls of gateways that are known to be dead; those that another had ended meanwhile are left out."""
    ends = await _all([_end(hot, hold, checkpoint, now) for hold, checkpoint in found])
    return [end for end in ends if end is not None]


async def _all(ends: Iterable[Awaitable[Charge | Void | None]]) -> list[Charge | Void | None]:
    results = await asyncio.gather(*ends, return_exceptions=True)
    for result in results:
        # All have been tried; the next look finds what is left.
        if isinstance(result, BaseException):
            raise result
    return cast("list[Charge | Void | None]", results)


async def _end(hot: HotStore, hold: Hold, checkpoint: Checkpoint | None, now: datetime) -> Charge | Void | None:
    end = end_of(hold, checkpoint, now)
    is_ended = await (hot.settle(hold, end) if isinstance(end, Charge) else hot.void(hold, abandoned=True))
    return end if is_ended else None


async def _sweep(hot: HotStore, left: Abandoned, last_sign: str, now: datetime) -> Charge | Void | None:
    end = end_of(left.hold, left.checkpoint, now)
    if isinstance(end, Charge):
        is_ended = await hot.recover(left.hold, end, left.instance, last_sign)
    else:
        is_ended = await hot.abandon(left.hold, left.instance, last_sign)
    return end if is_ended else None
