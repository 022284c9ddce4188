"""Batches in Postgres: their lines, which gateways claim for a while, and the attempts whose answers were lost.

What a gateway claims is told apart by the id of the call that it makes: who has lost a line to another gateway finds
another call id in it, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate
from typing import Any, Final
from uuid import UUID

from sqlalchemy import bindparam, delete, exists, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, Page, fetch_one, fetch_optional, fetch_page
from models.ids import uuid7
from models.tables import batch, batch_line, lost_attempt

OPEN: Final = ("validating", "in_progress", "finalizing", "cancelling")
LOOK_FOR: Final = timedelta(days=8)
"""How long the book is asked for the charge of a lost attempt: a gateway's disk may come back days later."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of an input file that can be run."""

    line: int
    custom_id: str
    model: str | None
    body: bytes


@dataclass(frozen=True, slots=True)
class Claimed:
    """A line that this gateway runs, under the call id that is stored with it."""

    batch_id: UUID
    line: int
    call_id: UUID
    body: bytes
    delays: int
    failures: int
    model: str | None
    was_lost: bool = False
    """Whether it was taken from a gateway that has not ended it, whose attempt is noted as lost now."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a line's answer says in tokens."""

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """How all batches stand together: open ones by status, lines by state, and the oldest batch of which some wait.

    Lines of a gateway that has not been heard of in its time wait: others may take them.
    """

    batches: dict[str, int]
    waiting: int
    running: int
    oldest: datetime | None


# Batches -------------------------------------------------------------------------------------------------------------


async def create_batch(connection: AsyncConnection, now: datetime, values: dict[str, Any]) -> AnyRow:
    """Store a batch that waits for its validation; `values` are columns."""
    statement = insert(batch).values(id=uuid7(now), created_at=now, status="validating", **values).returning(batch)
    return await fetch_one(connection, statement)


async def count_open(connection: AsyncConnection, organization_id: UUID) -> int:
    """Batches of an organization that have not ended."""
    statement = select(func.count()).where(batch.c.organization_id == organization_id, batch.c.status.in_(OPEN))
    return int((await connection.execute(statement)).scalar_one())


async def find_batch(connection: AsyncConnection, project_id: UUID, batch_id: UUID) -> AnyRow | None:
    """A batch of a project."""
    statement = select(batch).where(batch.c.id == batch_id, batch.c.project_id == project_id)
    return await fetch_optional(connection, statement)


async def list_batches(connection: AsyncConnection, project_id: UUID, page: Page) -> tuple[list[AnyRow], bool]:
    """A page of a project's batches, and whether more follow."""
    return await fetch_page(connection, select(batch).where(batch.c.project_id == project_id), batch.c.id, page)


async def open_batches(connection: AsyncConnection) -> list[AnyRow]:
    """All batches that have not ended, oldest first."""
    return list((await connection.execute(select(batch).where(batch.c.status.in_(OPEN)).order_by(batch.c.id))).all())


_STANDING: Final = text(
    """
    select batch.status, count(*) as batches, sum(own.running) as running,
        coalesce(sum(own.rest - own.running) filter (where batch.status = 'in_progress'), 0) as waiting,
        min(batch.created_at) filter (
          where batch.status = 'validating' or batch.status = 'in_progress' and own.rest > own.running
        ) as oldest
      from batch
      cross join lateral (
        select count(*) as running, batch.total - batch.completed - batch.failed as rest from batch_line
          where batch_id = batch.id and state = 'running' and due_at > now()
      ) own
      where batch.status in ('validating', 'in_progress', 'finalizing', 'cancelling')
      group by batch.status
    """
)
"""What waits is what a batch has left, and its counts tell that: of the lines only those are read, by their index, that
run or were put off. With 20 batches of 20,000 lines it takes 2 ms."""


async def standing(connection: AsyncConnection) -> Standing:
    """How all batches stand, for metrics."""
    rows = (await connection.execute(_STANDING)).all()
    return Standing(
        dict.fromkeys(OPEN, 0) | {row.status: row.batches for row in rows},
        waiting=sum(int(row.waiting) for row in rows),
        running=sum(int(row.running) for row in rows),
        oldest=min((row.oldest for row in rows if row.oldest is not None), default=None),
    )


async def move_batch(
    connection: AsyncConnection, batch_id: UUID, come_from: Collection[str], values: dict[str, Any]
) -> AnyRow | None:
    """Change a batch if its status is one of `come_from`; None where it is another by now."""
    statement = update(batch).where(batch.c.id == batch_id, batch.c.status.in_(come_from)).values(values)
    return await fetch_optional(connection, statement.returning(batch))


async def take_batch(connection: AsyncConnection, batch_id: UUID) -> bool:
    """Have a batch to oneself until the end of the transaction, for work on all of it; False where another has it."""
    # The low bits of a UUIDv7 are random. Not the row's lock: a cancellation must not wait for this.
    number = batch_id.int & (1 << 63) - 1
    return bool((await connection.execute(select(func.pg_try_advisory_xact_lock(number)))).scalar_one())


# Lines ---------------------------------------------------------------------------------------------------------------


async def add_lines(connection: AsyncConnection, batch_id: UUID, lines: Iterable[Line]) -> None:
    """Store lines of a batch, to be run."""
    values = [
        {"batch_id": batch_id, "line": one.line, "custom_id": one.custom_id, "model": one.model, "body": one.body}
        for one in lines
    ]
    if values:
        await connection.execute(insert(batch_line), values)


_OF_A_CLAIM: Final = (
    *(batch_line.c.line, batch_line.c.state, batch_line.c.call_id, batch_line.c.model),
    *(batch_line.c.delays, batch_line.c.failures),
)


async def _bodies(connection: AsyncConnection, batch_id: UUID, lines: Sequence[int]) -> dict[int, bytes]:
    statement = select(batch_line.c.line, batch_line.c.body).where(
        batch_line.c.batch_id == batch_id, batch_line.c.line.in_(lines)
    )
    return {row.line: row.body for row in await connection.execute(statement)}


async def claim_lines(
    connection: AsyncConnection,
    batch_id: UUID,
    choose: Callable[[Sequence[str | None]], Sequence[bool]],
    *,
    look_at: int,
    organization_id: UUID,
    lease_seconds: int,
    now: datetime,
) -> list[Claimed]:
    """Take lines that are due, each with the id of the call it will be; none where the batch is not in progress.

    `choose` says of the models of the first `look_at` such lines which there is room for. A line that another gateway
    took and has not ended in its time is taken from it: what that call is charged, if anything, is given back.
    """
    # Shared, so that who ends the batch waits for this claim, and then sees what runs.
    status = select(batch.c.status).where(batch.c.id == batch_id).with_for_update(read=True)
    if (await connection.execute(status)).scalar_one_or_none() != "in_progress":
        return []
    # Without the bodies: of most of these rows they are not needed, and each may be of megabytes.
    due = select(*_OF_A_CLAIM).where(
        batch_line.c.batch_id == batch_id, batch_line.c.state != "done", batch_line.c.due_at <= func.now()
    )
    ordered = due.order_by(batch_line.c.due_at, batch_line.c.line).limit(look_at).with_for_update(skip_locked=True)
    found = (await connection.execute(ordered)).all()
    rows = [row for row, is_chosen in zip(found, choose([row.model for row in found]), strict=True) if is_chosen]
    if not rows:
        return []
    taken = [row for row in rows if row.state == "running"]
    lost = await add_lost(connection, organization_id, [(row.call_id, batch_id, row.line) for row in taken])
    bodies = await _bodies(connection, batch_id, [row.line for row in rows])
    claimed = [
        Claimed(
            batch_id,
            row.line,
            uuid7(now),
            bodies[row.line],
            row.delays,
            row.failures + (row.state == "running"),
            row.model,
            row.call_id in lost,
        )
        for row in rows
    ]
    await connection.execute(
        update(batch_line)
        .where(batch_line.c.batch_id == batch_id, batch_line.c.line == bindparam("of_line"))
        .values(
            state="running",
            call_id=bindparam("new_call"),
            failures=bindparam("so_often"),
            due_at=func.now() + timedelta(seconds=lease_seconds),
        ),
        [{"of_line": one.line, "new_call": one.call_id, "so_often": one.failures} for one in claimed],
    )
    return claimed


_KEEP: Final = text(
    """
    update batch_line set due_at = now() + make_interval(secs => :seconds)
      from unnest(cast(:batches as uuid[]), cast(:lines as integer[]), cast(:calls as uuid[]))
        as held (batch_id, line, call_id)
      where batch_line.batch_id = held.batch_id and batch_line.line = held.line
        and batch_line.call_id = held.call_id and batch_line.state = 'running'
    """
)


async def keep_lines(connection: AsyncConnection, held: Collection[Claimed], lease_seconds: int) -> None:
    """Say that these lines are still at work."""
    await connection.execute(
        _KEEP,
        {
            "seconds": lease_seconds,
            "batches": [one.batch_id for one in held],
            "lines": [one.line for one in held],
            "calls": [one.call_id for one in held],
        },
    )


def is_good(status: int | None) -> bool:
    """Whether an answer with this status completes its line; without one it is our own error."""
    return status is not None and 200 <= status < 300


async def end_line(
    connection: AsyncConnection, claimed: Claimed, status: int | None, answer: bytes, tokens: Tokens
) -> bool:
    """Store what came of a line; False where it is another's by now. Without a status the answer is our own error."""
    ended = await _change_line(connection, claimed, {"state": "done", "status": status, "answer": answer})
    if ended:
        counts = {
            "completed": batch.c.completed + int(is_good(status)),
            "failed": batch.c.failed + int(not is_good(status)),
            "input_tokens": batch.c.input_tokens + tokens.input,
            "cached_tokens": batch.c.cached_tokens + tokens.cached,
            "output_tokens": batch.c.output_tokens + tokens.output,
            "reasoning_tokens": batch.c.reasoning_tokens + tokens.reasoning,
        }
        await connection.execute(update(batch).where(batch.c.id == claimed.batch_id).values(counts))
    return ended


async def put_off(connection: AsyncConnection, claimed: Claimed, seconds: int, *, has_failed: bool) -> bool:
    """Have a line tried again, by anybody, after some time; False where it is another's by now."""
    values = {
        "state": "waiting",
        "due_at": func.now() + timedelta(seconds=seconds),
        "delays": claimed.delays + 1,
        "failures": claimed.failures + int(has_failed),
    }
    return await _change_line(connection, claimed, values)


async def _change_line(connection: AsyncConnection, claimed: Claimed, values: dict[str, Any]) -> bool:
    result = await connection.execute(
        update(batch_line)
        .where(
            batch_line.c.batch_id == claimed.batch_id,
            batch_line.c.line == claimed.line,
            batch_line.c.call_id == claimed.call_id,
            batch_line.c.state == "running",
        )
        .values(values)
    )
    return bool(result.rowcount)


async def has_lines_left(connection: AsyncConnection, batch_id: UUID) -> bool:
    """Whether a line has no answer yet."""
    return await _has_lines(connection, batch_id, batch_line.c.state != "done")


async def has_lines_running(connection: AsyncConnection, batch_id: UUID) -> bool:
    """Whether a gateway is at work on a line, or was when it died a moment ago."""
    return await _has_lines(connection, batch_id, batch_line.c.state == "running", batch_line.c.due_at > func.now())


async def _has_lines(connection: AsyncConnection, batch_id: UUID, *conditions: Any) -> bool:
    statement = select(exists().where(batch_line.c.batch_id == batch_id, *conditions))
    return bool((await connection.execute(statement)).scalar_one())


async def lose_lines(connection: AsyncConnection, batch_id: UUID, organization_id: UUID) -> int:
    """Note the calls of lines that run nowhere any more, of a batch that ends without them; how many there are."""
    rows = await connection.execute(
        select(batch_line.c.call_id, batch_line.c.line).where(
            batch_line.c.batch_id == batch_id, batch_line.c.state == "running"
        )
    )
    return len(await add_lost(connection, organization_id, [(row.call_id, batch_id, row.line) for row in rows]))


async def ended_lines(
    connection: AsyncConnection, batch_id: UUID, after: int, limit: int, most_bytes: int
) -> list[AnyRow]:
    """What came of lines, in the order of the input; `is_done` is false where nothing did.

    At most `limit`, and so many that their answers are `most_bytes` together, but at least one where one is left.
    """
    size = func.coalesce(func.octet_length(batch_line.c.answer), 0).label("size")
    some = select(batch_line.c.line, size).where(batch_line.c.batch_id == batch_id, batch_line.c.line > after)
    rows = (await connection.execute(some.order_by(batch_line.c.line).limit(limit))).all()
    if not rows:
        return []
    sizes = list(accumulate(row.size for row in rows))
    last = max(
        (row.line for row, so_far in zip(rows, sizes, strict=True) if so_far <= most_bytes), default=rows[0].line
    )
    columns = (
        *(batch_line.c.line, batch_line.c.custom_id, batch_line.c.call_id, batch_line.c.status, batch_line.c.answer),
        (batch_line.c.state == "done").label("is_done"),
    )
    statement = select(*columns).where(batch_line.c.batch_id == batch_id, batch_line.c.line.between(after + 1, last))
    return list((await connection.execute(statement.order_by(batch_line.c.line))).all())


async def drop_lines(connection: AsyncConnection, batch_id: UUID) -> None:
    """Delete the lines of a batch, whose answers are in its files."""
    await connection.execute(delete(batch_line).where(batch_line.c.batch_id == batch_id))


# Lost attempts -------------------------------------------------------------------------------------------------------


async def add_lost(
    connection: AsyncConnection, organization_id: UUID, attempts: Sequence[tuple[UUID, UUID, int]]
) -> set[UUID]:
    """Note attempts, each by call, batch and line, whose answers nobody will get; the calls that were not noted yet."""
    if not attempts:
        return set()
    values = [
        {"call_id": call_id, "batch_id": batch_id, "line": line, "organization_id": organization_id}
        for call_id, batch_id, line in attempts
    ]
    statement = upsert(lost_attempt).values(values).on_conflict_do_nothing().returning(lost_attempt.c.call_id)
    return set((await connection.execute(statement)).scalars())


async def take_lost(connection: AsyncConnection) -> AnyRow | None:
    """A lost attempt that is to be looked at now, locked, with its `age`; None where there is none."""
    statement = select(lost_attempt, (func.now() - lost_attempt.c.seen_at).label("age"))
    statement = statement.where(lost_attempt.c.look_at <= func.now()).order_by(lost_attempt.c.look_at).limit(1)
    return await fetch_optional(connection, statement.with_for_update(skip_locked=True))


async def look_again(connection: AsyncConnection, call_id: UUID, seconds: int | None, returned: int) -> None:
    """Say when to look at a lost attempt next, None for never, and what was given back for it in all."""
    look_at = None if seconds is None else func.now() + timedelta(seconds=seconds)
    await connection.execute(
        update(lost_attempt).where(lost_attempt.c.call_id == call_id).values(look_at=look_at, returned=returned)
    )
