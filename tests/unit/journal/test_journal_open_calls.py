"""Notes of open calls: what was noted last is read back, whatever a dying process was copying."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.journal.open_calls import (
    NOWHERE,
    POINT_BYTES,
    SLOT_BYTES,
    OpenCalls,
    open_call_paths,
    read_open_calls,
)


def left(home: Path) -> list[tuple[bytes, bytes]]:
    """What one finds who comes after a kill: the file as it is now."""
    [path] = open_call_paths(home)
    return sorted(read_open_calls(path))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["enter", "note", "leave"]), st.binary(max_size=90))))
def test_the_last_note_of_each_open_call_is_found(tmp_path: Path, events: list[tuple[int, str, bytes]]) -> None:
    calls = OpenCalls.create(tmp_path, 4)
    slots: dict[int, int] = {}
    expected: dict[int, tuple[bytes, bytes]] = {}
    for number, event, payload in events:
        if event == "enter" and number not in slots:
            slot = calls.enter(b"hold %d" % number, payload)
            assert (slot == NOWHERE) == (len(slots) == 4)
            if slot != NOWHERE:
                slots[number], expected[number] = slot, (b"hold %d" % number, payload)
        elif event == "note" and number in slots:
            calls.note(slots[number], payload)
            expected[number] = (b"hold %d" % number, payload)
        elif event == "leave" and number in slots:
            calls.leave(slots.pop(number))
            del expected[number]
    assert left(tmp_path) == sorted(expected.values())
    for slot in slots.values():
        calls.leave(slot)
    calls.close()
    assert open_call_paths(tmp_path) == []


def test_a_copy_that_was_cut_off_leaves_the_note_before(tmp_path: Path) -> None:
    calls = OpenCalls.create(tmp_path, 1)
    slot = calls.enter(b"hold", b"first")
    calls.note(slot, b"second")
    calls.note(slot, b"third")
    [path] = open_call_paths(tmp_path)
    content = path.read_bytes()
    assert left(tmp_path) == [(b"hold", b"third")]
    # All but the byte that switches, as a kill in the middle of `note` leaves it.
    path.write_bytes(bytes([2 if content[0] == 1 else 1]) + content[1:])
    assert left(tmp_path) == [(b"hold", b"second")]


def test_what_does_not_fit_is_not_noted(tmp_path: Path) -> None:
    calls = OpenCalls.create(tmp_path, 1)
    assert calls.enter(bytes(SLOT_BYTES), b"") == NOWHERE
    assert calls.enter(b"hold", bytes(POINT_BYTES)) == NOWHERE
    slot = calls.enter(b"hold", b"first")
    calls.note(slot, bytes(POINT_BYTES))
    assert left(tmp_path) == [(b"hold", b"first")]
    calls.close()
    # Its call has not ended: whoever comes next shall find it, also where it ends while all is being closed.
    calls.note(slot, b"second")
    calls.leave(slot)
    assert calls.enter(b"hold", b"first") == NOWHERE
    assert left(tmp_path) == [(b"hold", b"first")]
