"""asyncpg against psycopg 3 on what the book does most: batches of 500 charge-like rows, and the look-up of one row.

    python -m benchmarks.drivers postgresql://user@/database?host=/folder

Both drivers work in alternating slots on the same temporary table shape, so that a busy machine slows both alike. Wall
time and the client's own CPU time are told as ratios, psycopg over asyncpg: above 1, asyncpg is better. psycopg is no
dependency of Tollgate: `pip install 'psycopg[binary]'` beside it to run this.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final
from uuid import UUID

import asyncpg

from models.ids import uuid7

_ROWS: Final = 500
_SLOTS: Final = 15
_SELECTS: Final = 300
_COLUMNS: Final = (
    *("call_id uuid primary key", "organization_id uuid", "project_id uuid", "api_key_id uuid", "currency text"),
    *("endpoint text", "model text", "deployment text", "streamed boolean", "ending text", "usage_source text"),
    *("input_tokens int", "cached_tokens int", "output_tokens int", "reasoning_tokens int", "amount bigint"),
    *("hold bigint", "price_version_ids uuid[]", "created_at timestamptz", "ended_at timestamptz", "funding jsonb"),
    *("end_user text", "reported jsonb", "flags text[]"),
)
_OIDS: Final = {"int": "int4", "bigint": "int8", "boolean": "bool"}
_NAMES: Final = tuple(column.split()[0] for column in _COLUMNS)
_CREATE: Final = f"create temp table bench ({', '.join(_COLUMNS)})"
_SELECT: Final = "select * from bench where call_id = "


def rows(count: int) -> list[tuple[Any, ...]]:
    """Rows as a batch of charges has them."""
    moment = datetime.now(UTC)
    owner, versions = uuid7(moment), [uuid7(moment), uuid7(moment)]
    fixed = ("USD", "/v1/chat/completions", "tiny", "local", True, "finished", "backend", 812, 256, 133, 0, 150_000)
    funding, reported = (
        json.dumps([[str(owner), 150_000]]),
        json.dumps({"prompt_tokens": 812}),
    )
    rest = (900_000, versions, moment, moment, funding, None, reported, ["late"])
    return [(uuid7(moment), owner, owner, owner, *fixed, *rest) for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Contender:
    """A driver's way to do each task; all work on the rows or the id they are given."""

    name: str
    values: Callable[[list[tuple[Any, ...]]], Awaitable[object]]
    copy: Callable[[list[tuple[Any, ...]]], Awaitable[object]]
    select: Callable[[UUID], Awaitable[object]]
    clear: Callable[[], Awaitable[object]]


async def of_asyncpg(url: str) -> Contender:
    """asyncpg: multi-row VALUES, binary COPY, a prepared select."""
    connection = await asyncpg.connect(url)
    await connection.execute(_CREATE)
    places = ", ".join(
        f"({', '.join(f'${row * len(_NAMES) + column + 1}' for column in range(len(_NAMES)))})" for row in range(_ROWS)
    )
    insert = f"insert into bench values {places}"  # noqa: S608 - placeholders only

    async def values(batch: list[tuple[Any, ...]]) -> None:
        async with connection.transaction():
            await connection.execute(insert, *(value for row in batch for value in row))

    async def copy(batch: list[tuple[Any, ...]]) -> None:
        async with connection.transaction():
            await connection.copy_records_to_table("bench", columns=_NAMES, records=batch)

    async def select(name: UUID) -> object:
        return await connection.fetchrow(f"{_SELECT}$1", name)

    return Contender("asyncpg", values, copy, select, lambda: connection.execute("truncate bench"))


async def of_psycopg(url: str) -> Contender:
    """psycopg 3 with its C extension: the same, as its manual advises; COPY in binary with the types set."""
    psycopg = importlib.import_module("psycopg")
    connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
    await connection.execute(_CREATE)
    row = f"({', '.join(['%s'] * len(_NAMES))})"
    insert = f"insert into bench values {', '.join([row] * _ROWS)}"  # noqa: S608 - placeholders only
    types = [_OIDS.get(column.split()[1], column.split()[1]) for column in _COLUMNS]
    as_json = importlib.import_module("psycopg.types.json").Jsonb
    json_columns = {number for number, column in enumerate(_COLUMNS) if column.endswith("jsonb")}

    def adapted(batch: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        return [
            tuple(
                as_json(value, dumps=str) if number in json_columns and value is not None else value
                for number, value in enumerate(entry)
            )
            for entry in batch
        ]

    async def values(batch: list[tuple[Any, ...]]) -> None:
        async with connection.transaction():
            await connection.execute(insert, [value for entry in batch for value in entry])

    async def copy(batch: list[tuple[Any, ...]]) -> None:
        statement = f"copy bench ({', '.join(_NAMES)}) from stdin (format binary)"
        async with connection.transaction(), connection.cursor() as cursor, cursor.copy(statement) as writer:
            writer.set_types(types)
            for entry in adapted(batch):
                await writer.write_row(entry)

    async def select(name: UUID) -> object:
        cursor = await connection.execute(f"{_SELECT}%s", (name,), prepare=True)
        return await cursor.fetchone()

    return Contender("psycopg", values, copy, select, lambda: connection.execute("truncate bench"))


async def measured(work: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Wall and CPU seconds of the client for `work`."""
    wall, processor = time.perf_counter(), time.process_time()
    await work()
    return time.perf_counter() - wall, time.process_time() - processor


async def compare(url: str) -> dict[str, tuple[float, float, float, float]]:
    """By task: median ratios of wall and CPU time (psycopg over asyncpg), and asyncpg's own milliseconds of each."""
    contenders = [await of_asyncpg(url), await of_psycopg(url)]
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for slot in range(_SLOTS):
        # The order changes with every slot, so that neither always meets the other's dirty buffers.
        for contender in contenders if slot % 2 else reversed(contenders):
            batch, another = rows(_ROWS), rows(_ROWS)
            await contender.clear()
            timed = {
                "500 rows, VALUES": await measured(partial(contender.values, batch)),
                "500 rows, COPY": await measured(partial(contender.copy, another)),
                "select one row": await measured(partial(_selects, contender, batch[7][0])),
            }
            for task, seconds in timed.items():
                times.setdefault((task, contender.name), []).append(seconds)
    tasks = dict.fromkeys(task for task, _ in times)
    return {task: _ratios(times[task, "asyncpg"], times[task, "psycopg"]) for task in tasks}


async def _selects(contender: Contender, name: UUID) -> None:
    for _ in range(_SELECTS):
        await contender.select(name)


def _ratios(ours: list[tuple[float, float]], theirs: list[tuple[float, float]]) -> tuple[float, float, float, float]:
    # The first slots warm caches and prepare statements.
    pairs = list(zip(ours, theirs, strict=True))[3:]
    return (
        statistics.median(their[0] / our[0] for our, their in pairs),
        statistics.median(their[1] / our[1] for our, their in pairs),
        statistics.median(our[0] for our, _ in pairs) * 1_000,
        statistics.median(our[1] for our, _ in pairs) * 1_000,
    )


def main() -> int:
    """Print a row for each task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="an empty database that may be written to")
    found = asyncio.run(compare(parser.parse_args().url))
    sys.stdout.write("task                wall ratio  CPU ratio  asyncpg wall ms  asyncpg CPU ms\n")
    for task, (wall, processor, wall_ms, processor_ms) in found.items():
        sys.stdout.write(f"{task:<18}{wall:>12.2f}{processor:>11.2f}{wall_ms:>17.2f}{processor_ms:>16.2f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
