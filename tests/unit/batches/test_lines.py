"""Lines of input and output files, however they are cut."""

from __future__ import annotations

import itertools
import json
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.store.batches import Line
from gateway.batches.lines import MOST_FAULTS, MOST_LINES, InputFile, own_error, result_line

URL = "/v1/embeddings"
BATCH, CALL = UUID(int=1), UUID(int=2)


def line(number: int, **more: object) -> bytes:
    body = {"model": "m", "input": f"text {number}"}
    return json.dumps({"custom_id": f"c{number}", "method": "POST", "url": URL, "body": body, **more}).encode()


def read(pieces: list[bytes], longest: int = 10_000) -> tuple[list[Line], InputFile]:
    source = InputFile(URL, longest)
    found: list[Line] = []
    for piece in pieces:
        found += source.lines(piece)
    return [*found, *source.last_lines()], source


@given(st.lists(st.integers(0, 400), max_size=8), st.booleans(), st.booleans())
def test_a_file_reads_the_same_however_it_is_cut(cuts: list[int], has_end: bool, has_blanks: bool) -> None:
    content = b"\n".join([line(1), b"", line(2), b"  ", line(3)] if has_blanks else [line(1), line(2), line(3)])
    content += b"\n" * has_end
    edges = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    found, source = read([content[low:high] for low, high in itertools.pairwise(edges)])
    assert [one.custom_id for one in found] == ["c1", "c2", "c3"]
    assert [one.line for one in found] == ([1, 3, 5] if has_blanks else [1, 2, 3])
    assert [json.loads(one.body)["input"] for one in found] == ["text 1", "text 2", "text 3"]
    assert {one.model for one in found} == {"m"}
    assert (source.total, source.faults) == (3, [])


def test_wrong_lines_are_told_up_to_a_bound() -> None:
    found, source = read([b"x\n" * 1_000 + line(1)])
    assert not found
    assert source.is_hopeless
    assert [fault.line for fault in source.faults] == list(range(1, MOST_FAULTS + 1))


def test_a_mark_of_the_byte_order_is_no_part_of_the_first_line() -> None:
    found, source = read([b"\xef", b"\xbb\xbf" + line(1) + b"\r\n", line(2)])
    assert ([one.custom_id for one in found], source.faults) == (["c1", "c2"], [])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(line(1).decode().encode("utf-16"), "Save the file as UTF-8.", id="another encoding"),
        pytest.param(b'{\n"custom_id": "a"\n}', "Write one on each line, without line breaks", id="pretty JSON"),
        pytest.param(b"a,b", "not a whole JSON object (invalid character (byte 0))", id="a table"),
        pytest.param(b"[" + line(1) + b"]", "Expected `object`, got `array`", id="an array"),
    ],
)
def test_what_is_told_of_another_kind_of_file(content: bytes, says: str) -> None:
    _, source = read([content])
    assert says in source.faults[0].message


def test_a_line_without_end_is_not_kept() -> None:
    found, source = read([line(1) + b"\n" + b"x" * 600, b"x" * 600, b"x" * 600], longest=1_000)
    assert [one.line for one in found] == [1]
    assert [(fault.code, fault.line) for fault in source.faults] == [("line_too_long", 2)]
    assert source.is_hopeless


def test_a_file_has_a_bounded_number_of_lines() -> None:
    _, source = read([b"\n".join(line(number) for number in range(MOST_LINES + 5))])
    assert [(fault.code, fault.line) for fault in source.faults] == [("too_many_tasks", MOST_LINES + 1)]


def test_a_model_that_is_no_name_is_refused_when_the_line_is_run() -> None:
    found, source = read(
        [line(1, body={"model": 5}) + b"\n" + line(2, body={}) + b"\n" + line(3, body={"model": "\0"})]
    )
    assert [one.model for one in found] == [None, None, None]
    assert not source.faults


def test_results_are_one_line_each() -> None:
    good = result_line("c", 3, BATCH, CALL, 200, b'{\n "a": [1.0, 1e5]\n}\n')
    assert good.count(b"\n") == 1
    assert b"[1.0,1e5]" in good
    told = json.loads(good)
    assert told["id"] == f"batch_req_{BATCH.hex}_3"
    assert told["response"] == {"status_code": 200, "request_id": str(CALL), "body": {"a": [1.0, 1e5]}}
    assert told["error"] is None
    told = json.loads(result_line("c", 3, BATCH, None, None, own_error("batch_expired", "Too late.")))
    assert (told["response"], told["error"]) == (None, {"code": "batch_expired", "message": "Too late."})
