"""What dead processes left: taken over once, kept until it is booked, read around every damage."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from billing.journal.batches import JournalUnavailable
from billing.journal.frames import HEADER_BYTES, Record
from billing.journal.journal import open_journal
from models.ids import uuid7
from tests.integration.hot.nouns import NOW
from tests.integration.journal.conftest import SMALL_BYTES, Opening, left_in, payload_of, record, segments

pytestmark = pytest.mark.anyio

KILLS = 5
_WRITER = """
import asyncio, os, sys
from pathlib import Path
from uuid import UUID
from billing.journal.journal import open_journal
from tests.integration.journal.conftest import record

async def main():
    journal = open_journal(Path(sys.argv[1]), UUID(sys.argv[2]), segment_bytes=int(sys.argv[3]))
    async def one():
        while True:
            entry = record()
            await journal.append(entry)
            os.write(1, entry.call_id.hex.encode() + b"\\n")
    await asyncio.gather(*(one() for _ in range(32)))

asyncio.run(main())
"""


def start_writer(directory: Path, instance_id: UUID) -> subprocess.Popen[bytes]:
    """A process that appends as fast as it can and says which calls were acknowledged."""
    program = [sys.executable, "-c", _WRITER, str(directory), str(instance_id), str(SMALL_BYTES)]
    return subprocess.Popen(program, stdout=subprocess.PIPE)


def acknowledged(process: subprocess.Popen[bytes], count: int) -> set[UUID]:
    """The calls that a writer was told are safe: it is killed after `count` of them, in the middle of the next."""
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(count)]
    os.kill(process.pid, signal.SIGKILL)
    lines += process.stdout.readlines()
    process.stdout.close()
    process.wait()
    return {UUID(line.decode().strip()) for line in lines if line.endswith(b"\n") and len(line) == 33}


async def test_killed_under_load_every_acknowledged_record_is_found(opened: Opening, tmp_path: Path) -> None:
    safe: set[UUID] = set()
    for kill in range(KILLS):
        safe |= acknowledged(start_writer(tmp_path, uuid7(NOW)), 150 + 97 * kill)
        journal = opened()
        found = list(journal.replay())
        assert safe <= {one.call_id for one in found}
        assert all(one.payload == payload_of(one.call_id) for one in found)
        await journal.close()
    journal = opened()
    assert len(list(journal.replay())) >= len(safe)
    journal.forget(journal.unconfirmed())
    assert len(segments(tmp_path)) == 1, "this journal's own spare"
    await journal.close()
    assert left_in(tmp_path) == []


async def test_two_processes_cannot_own_one_journal(opened: Opening, tmp_path: Path) -> None:
    instance = uuid7(NOW)
    process = start_writer(tmp_path, instance)
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(JournalUnavailable, match="belongs to a process that is running"):
        open_journal(tmp_path, instance)
    journal = opened()
    assert list(journal.replay()) == [], "what a living process writes is its own"
    safe = acknowledged(process, 1)
    assert safe <= {one.call_id for one in journal.replay()}, "a replay later takes what died since"


async def test_two_survivors_do_not_take_the_same(opened: Opening) -> None:
    dead = opened()
    await dead.append(record())
    await dead.close()
    first, second = opened(), opened()
    assert len(list(first.replay())) == 1
    assert list(second.replay()) == []
    await first.close()
    assert len(list(second.replay())) == 1


async def test_a_dead_instance_is_known_until_it_is_buried(opened: Opening, tmp_path: Path) -> None:
    process = start_writer(tmp_path, uuid7(NOW))
    acknowledged(process, 1)
    heir = opened()
    records = list(heir.replay())
    [dead] = heir.dead
    heir.forget([one.call_id for one in records])
    assert str(dead) in left_in(tmp_path), "whoever comes next must know of it, should the heir die now"
    heir.buried(dead)
    assert str(dead) not in left_in(tmp_path)
    assert heir.dead == set()


async def test_the_same_instance_again_goes_on_after_its_old_segments(tmp_path: Path) -> None:
    instance = uuid7(NOW)
    written: list[Record] = []
    for _ in range(3):
        journal = open_journal(tmp_path, instance, segment_bytes=SMALL_BYTES)
        assert list(journal.replay()) == written
        written.append(record())
        await journal.append(written[-1])
        await journal.close()


async def test_a_segment_goes_when_all_its_calls_are_booked(opened: Opening, tmp_path: Path) -> None:
    journal = opened()
    records = [record(5_000) for _ in range(7)]
    await asyncio.gather(*(journal.append(one) for one in records))
    calls = [one.call_id for one in records]
    # Three to a segment, and the last is still being written.
    assert journal.unconfirmed() == set(calls[:6])
    assert journal.forget(calls[:2]) == 0
    assert journal.forget([*calls[2:5], uuid7(NOW)]) == 1
    assert journal.unconfirmed() == {calls[5]}
    await journal.close()
    after = opened()
    assert [one.call_id for one in after.replay()] == calls[3:], "by the segment, not by the call"
    assert after.forget(calls[3:6]) == 1
    assert [one.call_id for one in after.replay()] == calls[6:], "again: what is not confirmed"
    assert after.forget(calls) == 1
    assert list(after.replay()) == []
    await after.close()
    assert left_in(tmp_path) == []


async def three_records(opened: Opening, tmp_path: Path) -> tuple[list[Record], Path]:
    """A journal of a dead process with one segment."""
    journal = opened()
    records = [record() for _ in range(3)]
    await asyncio.gather(*(journal.append(one) for one in records))
    await journal.close()
    [path] = segments(tmp_path)
    return records, path


def flip(path: Path, position: int) -> None:
    segment = bytearray(path.read_bytes())
    segment[position] ^= 0xFF
    path.write_bytes(segment)


async def test_damage_inside_is_loud_and_the_file_is_kept(opened: Opening, tmp_path: Path) -> None:
    records, path = await three_records(opened, tmp_path)
    size = (len(path.read_bytes().rstrip(b"\0")) - HEADER_BYTES) // 3
    flip(path, HEADER_BYTES + size + 50)
    journal = opened()
    with capture_logs() as lines:
        assert list(journal.replay()) == [records[0], records[2]]
    name = f"{path.parent.name}/{path.name}"
    assert {"event": "journal_damaged", "log_level": "error", "name": name} | {
        "position": HEADER_BYTES + size,
        "count": size,
    } in lines
    assert journal.forget(journal.unconfirmed()) == 1
    assert path.with_suffix(".damaged").exists()
    assert not path.exists()
    assert list(opened().replay()) == []


async def test_a_damaged_header_costs_no_record(opened: Opening, tmp_path: Path) -> None:
    records, path = await three_records(opened, tmp_path)
    for position in (0, 9, 20, 30, 41):
        flip(path, position)
        journal = opened()
        with capture_logs() as lines:
            assert list(journal.replay()) == records
        assert [line["position"] for line in lines if line["event"] == "journal_damaged"] == [0]
        await journal.close()
        flip(path, position)


async def test_a_tail_cut_off_is_reported_and_left_out(opened: Opening, tmp_path: Path) -> None:
    records, path = await three_records(opened, tmp_path)
    end = len(path.read_bytes().rstrip(b"\0"))
    with path.open("r+b") as segment:
        segment.truncate(end - 1)
    journal = opened()
    with capture_logs() as lines:
        assert list(journal.replay()) == records[:2]
    assert [line["event"] for line in lines] == ["journal_tail_cut_off"]
    assert journal.forget(journal.unconfirmed()) == 1
    assert not segments(tmp_path, ".damaged")


async def test_a_segment_of_another_version_is_left_alone(opened: Opening, tmp_path: Path) -> None:
    _, path = await three_records(opened, tmp_path)
    other = path.with_name("000000000099.segment")
    header = bytearray(path.read_bytes())
    header[8] = 2
    header[40:44] = zlib.crc32(bytes(header[:40])).to_bytes(4, "little")
    other.write_bytes(header)
    journal = opened()
    with capture_logs() as lines:
        assert len(list(journal.replay())) == 3
    assert any("another version" in line.get("reason", "") for line in lines)
    journal.forget(journal.unconfirmed())
    assert other.exists()


async def test_a_half_made_segment_is_cleared_away(opened: Opening, tmp_path: Path) -> None:
    home = tmp_path / str(uuid7(NOW))
    home.mkdir()
    (home / "000000000001.segment").touch()
    (home / "000000000002.segment").write_bytes(bytes(500))
    journal = opened()
    with capture_logs() as lines:
        assert list(journal.replay()) == []
    assert not lines
    assert list(home.iterdir()) == []
    journal.buried(UUID(home.name))
    assert not home.exists()
