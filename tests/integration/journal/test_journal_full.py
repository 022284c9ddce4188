"""A full disk: new calls are warned, running ones find the reserve, and all is well when space returns."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from billing.journal.batches import JournalUnavailable
from billing.journal.journal import Journal
from tests.integration.journal.conftest import SMALL_BYTES, Opening, record, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tollgate-test", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Use up all the space there is, with a file whose removal gives it back."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4_096))
        except OSError:
            return filler


async def appended(journal: Journal, *, while_healthy: bool) -> int:
    """Append until the journal is not healthy any more, or (not `while_healthy`) fails; how many were safe."""
    count = 0
    while journal.is_healthy or not while_healthy:
        [outcome] = await asyncio.gather(journal.append(record()), return_exceptions=True)
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, JournalUnavailable)
            assert "No space left" in outcome.message
            assert not while_healthy
            return count
        count += 1
    return count


async def test_running_calls_find_the_reserve_and_space_is_noticed(opened: Opening, small_disk: Path) -> None:
    journal = opened(small_disk)
    await journal.append(record())
    await until(lambda: journal.is_healthy)
    filler = fill(small_disk)
    safe = 1 + await appended(journal, while_healthy=True)
    assert "No space left" in str(journal.trouble)
    with pytest.raises(JournalUnavailable, match="No space left"):
        await journal.append(record(SMALL_BYTES - 200))
    reserve = await appended(journal, while_healthy=False)
    assert reserve * 129 > SMALL_BYTES - 500, "a whole segment was there for those that ran"
    filler.unlink()
    await until(lambda: journal.is_healthy)
    await journal.append(record())
    await journal.close()
    assert len(list(opened(small_disk).replay())) == safe + reserve + 1


async def test_a_journal_opens_on_a_full_disk_and_recovers(opened: Opening, small_disk: Path) -> None:
    filler = fill(small_disk)
    with filler.open("r+b") as file:
        # Room for names, but for no segment.
        file.truncate(filler.stat().st_size - 4_096)
    journal = opened(small_disk)
    assert not journal.is_healthy
    with pytest.raises(JournalUnavailable, match="No space left"):
        await journal.append(record())
    filler.unlink()
    await until(lambda: journal.is_healthy)
    await journal.append(record())
