"""What a record of the journal says of a call: its hold and its charge, enough to settle it after a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeAlias
from uuid import UUID

import msgspec
import structlog

from billing.hot.entries import decode_charge, decode_checkpoint, encode_charge, encode_request
from billing.hot.store import HotStore
from billing.journal.frames import Record
from models.call import Charge, Checkpoint, Hold, HoldRequest

SETTLE: Final = 1
"""The kind of these records."""

_CHUNK: Final = 500
"""Calls asked for, and settled, at a time."""

_settles: Final = msgspec.json.Decoder(tuple[HoldRequest, Charge])
_requests: Final = msgspec.json.Decoder(HoldRequest)
_log = structlog.get_logger("tollgate.journal")


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of the calls of a replay.

    `settled` are those the hot store took now; `booked` were in Postgres already. `superseded` had ended before in the
    hot store and are not booked yet: mostly by this very charge, but it may have been a sweeper's, made from an older
    checkpoint. They stay unconfirmed until they are booked; a replay after that has those which a sweeper had ended
    among `recovered`: they are booked, but not by the charge here, so compare the two and write a correction
    (`Charge.corrects`) before they are confirmed. `unreadable` are intact records that say nothing we understand;
    they are never confirmed, so their segment stays.
    """

    settled: tuple[UUID, ...]
    superseded: tuple[Charge, ...]
    booked: frozenset[UUID]
    unreadable: tuple[UUID, ...]
    recovered: tuple[Charge, ...] = ()


CallsAmong: TypeAlias = Callable[[Collection[UUID]], Awaitable[frozenset[UUID]]]
"""Gives those of some calls of which something is so."""


async def _none_of(_calls: Collection[UUID]) -> frozenset[UUID]:
    return frozenset()


def settle_record(hold: Hold, charge: Charge, encoded: bytes = b"") -> Record:
    """The record to have on disk before the last byte of the call leaves; `encoded` is the charge, where it is at hand.

    It is the hold as it was asked for and the charge, a JSON array of two.
    """
    asked = hold.encoded or encode_request(hold.request)
    return Record(SETTLE, charge.call_id, b"[%b,%b]" % (asked, encoded or encode_charge(charge)))


def read_settle(record: Record) -> tuple[Hold, Charge]:
    """The hold and the charge of a record; raises `ValueError` with the reason where it is not such a record."""
    if record.kind != SETTLE:
        raise ValueError(f"a record of the unknown kind {record.kind}")
    try:
        request, charge = _settles.decode(record.payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"not a settle: {error}") from error
    # One that Postgres could not take is refused here, with the reason, as it would be on the stream.
    decode_charge(encode_charge(charge))
    if not charge.call_id == request.origin.call_id == record.call_id:
        raise ValueError("hold, charge and record are not of one call")
    if not 0 <= charge.amount <= request.amount:
        raise ValueError("a charge outside its hold")
    return Hold(request), charge


def read_open(hold: bytes, point: bytes) -> tuple[Hold, Checkpoint]:
    """What was noted of a call at a backend; raises `ValueError` with the reason where it is not that."""
    try:
        request = _requests.decode(hold)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"not a hold: {error}") from error
    return Hold(request), decode_checkpoint(request.origin, point)


async def replay_into(
    hot: HotStore, records: Iterable[Record], is_booked: CallsAmong, is_recovered: CallsAmong = _none_of
) -> Replayed:
    """Settle what was journaled and is not booked; `is_booked` gives those of some calls that Postgres has, and
    `is_recovered` those of these that it has from a sweeper.

    Postgres is asked first, because the hot store remembers ended calls for an hour only. A charge that is on the
    stream for longer than that, while no worker books, is put there twice; the worker leaves the second out and gives
    the money back. Raises `Unavailable` where Redis cannot answer: do it all again then, nothing is settled twice.
    """
    settled: list[UUID] = []
    superseded: list[Charge] = []
    unreadable: list[UUID] = []
    recovered: list[Charge] = []
    booked: set[UUID] = set()
    remaining = _once(records)
    while chunk := {record.call_id: record for record in islice(remaining, _CHUNK)}:
        there = await is_booked(chunk.keys())
        swept = await is_recovered(there) if there else there
        booked |= there - swept
        recovered += [charge for _, charge in _read_all([chunk[call_id] for call_id in swept], unreadable)]
        settles = _read_all([record for call_id, record in chunk.items() if call_id not in there], unreadable)
        answers = await asyncio.gather(*(hot.settle(hold, charge) for hold, charge in settles), return_exceptions=True)
        for (_, charge), answer in zip(settles, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            if answer:
                settled.append(charge.call_id)
            else:
                superseded.append(charge)
    return Replayed(tuple(settled), tuple(superseded), frozenset(booked), tuple(unreadable), tuple(recovered))


def _once(records: Iterable[Record]) -> Iterator[Record]:
    """The first record of each call: after a failed write the same record is in two segments."""
    seen: set[UUID] = set()
    for record in records:
        if record.call_id not in seen:
            seen.add(record.call_id)
            yield record


def _read_all(records: Sequence[Record], unreadable: list[UUID]) -> list[tuple[Hold, Charge]]:
    """The settles in `records`; what is none is reported and noted, and never stops the others."""
    settles = []
    for record in records:
        try:
            settles.append(read_settle(record))
        except ValueError as error:
            _log.error("journal_record_unreadable", call_id=record.call_id, reason=str(error))
            unreadable.append(record.call_id)
    return settles
