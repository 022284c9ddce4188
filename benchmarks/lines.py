"""Lines from the parent: how the programs of the benchmark hear what to do, and that they are done."""

from __future__ import annotations

import asyncio
import sys


async def input_lines() -> asyncio.StreamReader:
    """Standard input as a stream of lines."""
    reader = asyncio.StreamReader(limit=2**20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def end_of_input() -> None:
    """Return when the parent closes our standard input, or ends."""
    await (await input_lines()).read()
