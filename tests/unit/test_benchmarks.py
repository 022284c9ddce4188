"""The benchmark's arithmetic, its backend's answers, and what makes a run fail."""

from __future__ import annotations

import json
import os
import statistics
import time
from dataclasses import replace

import pytest

from benchmarks.__main__ import running_backend
from benchmarks.backend import ANSWER, BURST, STREAMED, WHOLE, answer_events, answer_json, stream_events
from benchmarks.cpu import cpu_ns, tree
from benchmarks.measure import SCENARIOS, Bench, Cost, Latency, Pace, Slot, Target, order_for
from benchmarks.report import NGINX, TOLLGATE, Report


def cost(scenario: int, tollgate_us: list[int], nginx_us: list[int]) -> Cost:
    """A scenario's slots of one request each."""
    slots = {
        name: [Slot(1, microseconds * 1_000, {"redis": 7_000}, 0) for microseconds in numbers]
        for name, numbers in ((TOLLGATE, tollgate_us), (NGINX, nginx_us))
    }
    return Cost(SCENARIOS[scenario], slots)


def report(*costs: Cost, served: int = 3, booked: int = 3, verification: str = "") -> Report:
    """A report of these costs."""
    return Report(3, 1.0, "1.22.1", list(costs), served=served, booked=booked, verification=verification)


def test_the_ratio_is_taken_within_each_repetition() -> None:
    measured = cost(0, [100, 400, 900], [10, 20, 30])
    assert measured.ratios(TOLLGATE, NGINX) == [10, 20, 30]
    assert statistics.median(measured.ratios(TOLLGATE, NGINX)) == 20
    assert measured.beside_microseconds(TOLLGATE) == {"redis": 7}


@pytest.mark.parametrize(
    ("run", "faults"),
    [
        pytest.param(report(cost(0, [150], [10])), [], id="at the limit"),
        pytest.param(report(cost(0, [151], [10])), ["15.10 × nginx"], id="above the limit"),
        pytest.param(report(cost(2, [70], [10])), ["7.00 × nginx"], id="a stream above its limit"),
        pytest.param(report(cost(0, [9_999], [])), [], id="no nginx, no ratio"),
        pytest.param(report(served=3, booked=2), ["3 calls were served and 2 charges are booked"], id="a lost charge"),
        pytest.param(report(verification="P5"), ["`tollgate verify` finds: P5"], id="books that do not tie"),
    ],
)
def test_what_makes_a_run_fail(run: Report, faults: list[str]) -> None:
    assert len(run.faults()) == len(faults)
    assert all(part in fault for part, fault in zip(faults, run.faults(), strict=True))
    assert json.loads(json.dumps(run.as_json()))["passed"] is (not faults)


def test_added_latency_is_the_median_of_the_distances_to_direct() -> None:
    samples = {"tollgate": [[3_000, 5_000], [9_000, 9_000]], "direct": [[1_000, 1_000], [2_000, 2_000]]}
    latency = Latency(Pace("x", ANSWER, streamed=False, rate_per_second=1), samples, samples)
    assert latency.added_us(samples, "tollgate", "direct", 0.0) == 4.5


def test_answers_have_the_sizes_that_the_page_states() -> None:
    assert 900 <= len(answer_json(ANSWER)) <= 1_100
    events = list(stream_events(BURST))
    assert len(events) + 1 == 66
    assert all(200 <= len(event) <= 220 for event in events[:-1])
    assert len(STREAMED[ANSWER]) == 1, "one write"
    assert len(STREAMED[BURST]) == 66, "a write an event"
    assert len(WHOLE[ANSWER]) == 1


def test_both_forms_of_the_answer_say_the_same() -> None:
    whole = json.loads(answer_json(ANSWER))
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in answer_events(ANSWER)]
    text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"] == whole["usage"]


def test_cpu_time_is_counted_for_a_process_and_its_children() -> None:
    pids = tree(os.getpid())
    assert pids[0] == os.getpid()
    before, own = cpu_ns(pids), time.process_time_ns()
    while time.process_time_ns() - own < 5_000_000:
        pass
    assert cpu_ns(pids) - before >= 5_000_000


@pytest.mark.parametrize("model", [ANSWER, BURST])
def test_the_load_counts_what_the_backend_answers(model: str) -> None:
    scenario = next(one for one in SCENARIOS if one.model == model)
    with running_backend() as port:
        bench = Bench()
        try:
            measured = bench.cost(scenario, [Target("direct", port, "sk-any")], 1, 0.1, lambda: None)
            refused = Target("refused", port, "sk-any")
            with pytest.raises(RuntimeError, match=r"refused failed \d+ requests, first: 404"):
                bench.send(refused, replace(order_for(refused, model, False, 0.05), path="/v1/nothing"))
        finally:
            bench.close()
    assert bench.served["direct"] > measured.slots["direct"][0].requests > 0
