"""The driver of a call, with everything around it played: whatever calls back late, twice or not as it should, the call
ends, its slot is given back, its hold ends once, and its client is told once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast
from uuid import UUID

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from billing.tokens import Tokenizers
from gateway import telemetry
from gateway.calls.capacity import Capacity, Place
from gateway.calls.choice import Choice
from gateway.calls.driver import Driver
from gateway.calls.metering import Meter
from gateway.calls.running import Running
from gateway.calls.upstream import Upstreams
from gateway.settings import Settings
from models.call import Charge, Hold, HoldRefusal, HoldRequest, RefusedHold
from models.catalog import Backend, BackendKind, Catalog, Deployment, Model
from models.errors import BackendFailed, Unavailable
from models.usage import Ending
from tests.unit.samples import NOW, chat_request, make_call
from tests.unit.test_machine import DONE, SSE, delta, event, usage

pytestmark = pytest.mark.anyio

AWAY = Unavailable("away")
LAST = (delta("x", finish="stop"), event(choices=[], usage=usage(9, 2)), DONE)


class FakeHot:
    """The hot store: answers when the test says so, or at once with `hold`, `settled` and `voided`."""

    def __init__(self) -> None:
        self.held: Counter[UUID] = Counter()
        self.charges: list[Charge] = []
        self.voided: list[UUID] = []
        self.waiting: list[Callable[[Any], None]] = []
        self.answers_at_once = True
        self.fault: Exception | None = None

    def start_hold(self, request: HoldRequest, epoch: int, then: Callable[[Any], None]) -> None:
        if self.answers_at_once:
            then(self.hold(request))
        else:
            self.waiting.append(lambda answer: then(answer or self.hold(request)))

    def hold(self, request: HoldRequest) -> Hold:
        self.held[request.origin.call_id] = 1
        return Hold(request)

    def start_settle(self, hold: Hold, charge: Charge, then: Callable[[Any], None], encoded: bytes) -> None:
        def answer(said: Any) -> None:
            if not isinstance(said, Unavailable):
                self._end(hold)
                self.charges.append(charge)
            then(said)

        if self.answers_at_once:
            answer(1)
        else:
            self.waiting.append(answer)

    async def settle(self, hold: Hold, charge: Charge) -> bool:
        self._end(hold)
        self.charges.append(charge)
        return True

    async def void(self, hold: Hold) -> bool:
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        self.voided.append(hold.request.origin.call_id)
        self._end(hold)
        return True

    def _end(self, hold: Hold) -> None:
        self.held.pop(hold.request.origin.call_id, None)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of a call is written: they would end up between the dots."""
    monkeypatch.setattr(telemetry, "_call_lines", False)


class FakeJournal:
    def __init__(self) -> None:
        self.waiting: list[Callable[[Unavailable | None], None]] = []
        self.open_calls: FakeNotes | None = None

    def start(self, record: Any, then: Callable[[Unavailable | None], None], *, in_flight: int = 0) -> None:
        self.waiting.append(then)


class FakeConnection:
    def __init__(self, backend: FakeBackend) -> None:
        self.backend = backend
        self.sink: Any = None
        self.is_closed = False
        self.has_left = False
        self.is_paused = False

    def send(self, request: bytes, sink: Any) -> None:
        if self.backend.is_lost_at_once:
            raise BackendFailed("lost")
        self.backend.asked.append(request)
        self.sink = sink

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False

    def leave(self) -> None:
        self.has_left, self.sink = True, None

    def close(self) -> None:
        self.is_closed, self.sink = True, None


class FakeBackend:
    """A backend and the pool of its connections."""

    def __init__(self) -> None:
        self.address = self
        self.asked: list[bytes] = []
        self.idle_connections: list[FakeConnection] = []
        self.connections: list[FakeConnection] = []
        self.connecting: asyncio.Future[None] | None = None
        self.fault: Exception | None = None
        self.is_lost_at_once = False

    def request(self, endpoint: str, body: bytes) -> bytes:
        return body

    def idle(self) -> FakeConnection | None:
        if not self.idle_connections:
            return None
        self.connections.append(self.idle_connections.pop())
        return self.connections[-1]

    async def connect(self, timeout_seconds: float) -> FakeConnection:
        if self.connecting is not None:
            await self.connecting
        if self.fault is not None:
            raise self.fault
        self.connections.append(FakeConnection(self))
        return self.connections[-1]

    @property
    def sink(self) -> Any:
        """Who listens, if anybody does."""
        return self.connections[-1].sink if self.connections else None

    def say(self, *pieces: bytes, status: int = 200) -> None:
        """Answer, for as long as somebody listens."""
        if self.sink is not None:
            self.sink.upstream_head(status, SSE if status == 200 else b"application/json")
        self.go_on(*pieces)

    def go_on(self, *pieces: bytes) -> None:
        for piece in pieces:
            if self.sink is not None:
                self.sink.upstream_bytes(piece)

    def end(self) -> None:
        if self.sink is not None:
            self.sink.upstream_end()

    def lose(self, *, is_stale: bool = False) -> None:
        """The connection breaks."""
        connection = self.connections[-1]
        sink = connection.sink
        connection.close()
        sink.upstream_lost(BackendFailed("lost"), is_stale)


@dataclass(slots=True)
class FakeUpstreams:
    backends: dict[UUID, FakeBackend] = field(default_factory=dict)

    def pool(self, deployment: Deployment) -> FakeBackend:
        return self.backends[deployment.backend.id]


class FakeExchange:
    """The client: keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.response_complete = False
        self.disconnected = False
        self.is_slow = False
        self.has_written = False
        self.was_aborted = False
        self.client: Any = None

    def watch(self, client: Any) -> None:
        self.client = client

    def open(self, status: int, lines: bytes, length: int | None) -> None:
        self._tell(status)

    def write(self, data: bytes) -> None:
        self._tell(data)

    def end(self, data: bytes) -> None:
        self._tell(data)
        self.response_complete = True

    def answer(self, status: int, headers: Any, body: bytes) -> None:
        self._tell(status)
        self.end(body)

    def flush(self) -> None:
        self.has_written = False

    def abort(self) -> None:
        self.was_aborted = self.disconnected = True

    def leave(self) -> None:
        """The client closes its connection."""
        self.disconnected = True
        if self.client is not None and not self.response_complete:
            self.client.client_gone()

    def _tell(self, what: Any) -> None:
        assert not self.response_complete, "an answer ends once"
        self.told.append(what)
        self.has_written = True


class Scene:
    """A process with two backends, and as many calls as a test wants."""

    def __init__(self, *, max_in_flight: int | None = None, has_journal: bool = False, **changes: Any) -> None:
        chosen = Settings(
            database_url=SecretStr("x"), redis_url=SecretStr("x"), key_pepper=SecretStr("x" * 32), **changes
        )
        self.deployments = tuple(
            Deployment(
                UUID(int=20 + number),
                "m",
                Backend(UUID(int=10 + number), f"b{number}", BackendKind.VLLM, "http://b", max_in_flight=max_in_flight),
                "m",
            )
            for number in (1, 2)
        )
        self.model = Model("m", 4_096, NOW, deployments=self.deployments)
        self.hot = FakeHot()
        self.journal = FakeJournal() if has_journal else None
        self.one, self.two = FakeBackend(), FakeBackend()
        upstreams = FakeUpstreams({UUID(int=11): self.one, UUID(int=12): self.two})
        self.running = Running(
            chosen,
            cast("Any", self.hot),
            cast("Upstreams", upstreams),
            Capacity(chosen),
            Tokenizers(),
            cast("Any", self.journal),
        )
        self.running.capacity.know(Catalog({"m": self.model}))
        self.clients: list[FakeExchange] = []

    def limit(self, max_in_flight: int) -> None:
        """The operator changes how much each backend takes."""
        self.deployments = tuple(
            replace(each, backend=replace(each.backend, max_in_flight=max_in_flight)) for each in self.deployments
        )
        self.model = replace(self.model, deployments=self.deployments)
        self.running.capacity.know(Catalog({"m": self.model}))

    def call(self, *, one_backend: bool = False, begin: bool = True, number: int = 0, **request: Any) -> Driver:
        wanted = chat_request(**{"stream": True, **request})
        deployments = self.deployments[:1] if one_backend else self.deployments
        hold = make_call(wanted).hold_request
        hold = replace(hold, origin=replace(hold.origin, call_id=UUID(int=1_000 + number)))
        place = Place(
            self.running.capacity, Choice(self.model, deployments), hold.origin.organization_id, 160, jitter=0.0
        )
        self.clients.append(FakeExchange())
        driver = Driver(
            self.running,
            wanted,
            hold,
            self.model,
            place,
            cast("Any", self.clients[-1]),
            epoch=1,
            now=lambda: NOW,
            is_audited=False,
        )
        if begin:
            driver.begin()
        return driver

    @property
    def client(self) -> FakeExchange:
        return self.clients[-1]

    @property
    def text(self) -> bytes:
        return b"".join(each for each in self.client.told if isinstance(each, bytes))

    async def turn(self) -> None:
        """Let everything happen that can."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def over(self) -> None:
        """Nothing is left of the calls."""
        await self.turn()
        capacity = self.running.capacity
        assert not self.running.drivers
        assert not self.running.unsettled
        assert capacity.room.running_calls == 0
        assert capacity.room.waiting_calls == 0
        assert not self.hot.held
        for client in self.clients:
            assert client.response_complete or client.disconnected, "each client is told, or gone"
        for backend in (self.one, self.two):
            assert all(each.is_closed or each.has_left for each in backend.connections)


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    """Faults are logged, as they should be, and here they are many."""
    with structlog.testing.capture_logs():
        yield


# The plain life ------------------------------------------------------------------------------------------------------


async def test_a_call_from_its_beginning_to_its_end() -> None:
    scene = Scene()
    scene.call()
    await scene.turn()
    assert scene.running.capacity.room.running_calls == 1
    scene.one.say(*LAST)
    await scene.over()
    [charge] = scene.hot.charges
    assert charge.ending is Ending.FINISHED
    assert scene.text.endswith(DONE)


# The hot store and the journal ---------------------------------------------------------------------------------------


async def test_a_hold_that_is_answered_when_the_client_has_left() -> None:
    scene = Scene()
    scene.hot.answers_at_once = False
    scene.call()
    scene.client.leave()
    assert scene.running.capacity.room.running_calls == 1, "its answer is still to come"
    scene.hot.waiting[0](None)
    await scene.over()
    assert scene.hot.voided
    assert not scene.one.asked


async def test_a_hold_that_is_not_answered_when_the_client_has_left() -> None:
    scene = Scene()
    scene.hot.answers_at_once = False
    scene.call()
    scene.client.leave()
    scene.hot.waiting[0](AWAY)
    await scene.over()
    assert scene.hot.voided, "it may have been placed"


async def test_a_hold_that_is_answered_when_the_process_stops() -> None:
    scene = Scene()
    scene.hot.answers_at_once = False
    call = scene.call()
    call.drain()
    scene.hot.waiting[0](None)
    await scene.over()
    assert not scene.one.asked
    assert scene.client.told[0] == 503


@pytest.mark.parametrize("answers", [[None, None], [AWAY, None], [None, AWAY], [AWAY, AWAY]])
async def test_a_hold_that_is_answered_twice(answers: list[Any]) -> None:
    scene = Scene()
    scene.hot.answers_at_once = False
    scene.call()
    [answer] = scene.hot.waiting
    answer(answers[0])
    await scene.turn()
    scene.hot.held.clear()
    scene.hot.answers_at_once = True
    if answers[1] is not None:
        answer(answers[1])
    await scene.turn()
    if scene.one.asked:
        scene.one.say(*LAST)
    await scene.over()
    assert len(scene.hot.charges) + len(scene.hot.voided) == 1


async def test_a_refused_hold_gives_its_slot_back() -> None:
    scene = Scene(max_in_flight=1)
    scene.hot.answers_at_once = False
    scene.call()
    scene.hot.waiting[0](RefusedHold(HoldRefusal.RATE, "key:x:requests", 10))
    await scene.over()
    assert scene.client.told[0] == 429


@pytest.mark.parametrize("journal", [None, AWAY], ids=["written", "failed"])
@pytest.mark.parametrize("is_journal_first", [False, True])
@pytest.mark.parametrize("hot", [1, AWAY], ids=["taken", "away"])
async def test_a_charge_waits_for_the_journal_and_the_hot_store(
    journal: Unavailable | None, is_journal_first: bool, hot: Any
) -> None:
    scene = Scene(has_journal=True)
    assert scene.journal is not None
    scene.call()
    await scene.turn()
    scene.hot.answers_at_once = False
    scene.one.say(*LAST)
    answers: list[Callable[[], None]] = [
        lambda: scene.hot.waiting[-1](hot),
        lambda: scene.journal.waiting[-1](journal),  # type: ignore[union-attr]
    ]
    if is_journal_first:
        answers.reverse()
    answers[0]()
    await scene.turn()
    assert not scene.text.endswith(DONE)
    answers[1]()
    await scene.over()
    assert scene.text.endswith(DONE)
    # Both again: a settle's timeout and its late answer, a disk that comes back.
    for answer in answers:
        answer()
    await scene.over()


async def test_a_journal_that_does_not_answer() -> None:
    scene = Scene(has_journal=True)
    assert scene.journal is not None
    call = scene.call()
    await scene.turn()
    scene.one.say(*LAST)
    await scene.turn()
    assert not scene.text.endswith(DONE)
    call.check_time(asyncio.get_running_loop().time() + 2)
    await scene.over()
    assert scene.text.endswith(DONE)
    scene.journal.waiting[0](None)
    await scene.over()


async def test_what_the_client_is_about_to_get_goes_before_the_disk_is_woken() -> None:
    scene = Scene(has_journal=True)
    assert scene.journal is not None
    scene.call()
    await scene.turn()
    scene.one.say(b"".join(LAST))
    assert b'"x"' in scene.text
    assert not scene.journal.waiting, "in this turn the token is sent"
    await asyncio.sleep(0)
    assert len(scene.journal.waiting) == 1, "in the next one the charge is on its way"
    assert not scene.text.endswith(DONE)
    scene.journal.waiting[0](None)
    await scene.over()
    assert scene.text.endswith(DONE)


class FakeNotes:
    """Slots of calls at a backend."""

    def __init__(self) -> None:
        self.noted: dict[int, bytes] = {}

    def enter(self, hold: bytes, point: bytes) -> int:
        slot = len(self.noted)
        self.noted[slot] = point
        return slot

    def note(self, slot: int, point: bytes) -> None:
        self.noted[slot] = point

    def leave(self, slot: int) -> None:
        del self.noted[slot]


async def test_a_call_stays_noted_until_its_charge_outlives_the_process() -> None:
    scene = Scene(has_journal=True)
    assert scene.journal is not None
    notes = scene.journal.open_calls = FakeNotes()
    taken = asyncio.Event()

    async def settle(hold: Hold, charge: Charge) -> bool:
        await taken.wait()
        scene.hot._end(hold)
        return True

    scene.hot.settle = settle  # type: ignore[method-assign]
    call = scene.call()
    await scene.turn()
    assert len(notes.noted) == 1, "from when a backend is sent it"
    scene.hot.answers_at_once = False
    scene.one.say(*LAST)
    await scene.turn()
    # Neither has it: the disk does not write, Redis is away.
    scene.journal.waiting[0](AWAY)
    scene.hot.waiting[-1](AWAY)
    call.check_time(asyncio.get_running_loop().time() + 10)
    for _ in range(30):
        await asyncio.sleep(0.1)
        if scene.client.response_complete:
            break
    assert scene.text.endswith(DONE), "the client does not wait for ever"
    assert len(notes.noted) == 1, "whoever finds this process dead must find the call"
    taken.set()
    await scene.over()
    assert not notes.noted


async def test_a_call_is_its_process_s_own_until_the_hot_store_has_its_charge() -> None:
    """Or the recovery would give its hold back first, and its money could be spent twice meanwhile."""
    scene = Scene(has_journal=True)
    assert scene.journal is not None
    taken = asyncio.Event()

    async def settle(hold: Hold, charge: Charge) -> bool:
        await taken.wait()
        scene.hot._end(hold)
        return True

    scene.hot.settle = settle  # type: ignore[method-assign]
    call_id = scene.call().call.hold_request.origin.call_id
    await scene.turn()
    scene.hot.answers_at_once = False
    scene.one.say(*LAST)
    await scene.turn()
    scene.journal.waiting[0](None)
    scene.hot.waiting[-1](AWAY)
    assert not scene.running.drivers, "its client is served"
    assert scene.running.call_ids() == {call_id}
    taken.set()
    await scene.over()
    assert not scene.running.call_ids()


async def test_the_client_leaves_while_its_charge_is_settled() -> None:
    scene = Scene(has_journal=True)
    assert scene.journal is not None
    scene.call()
    await scene.turn()
    scene.one.say(*LAST)
    assert scene.running.capacity.room.running_calls == 0, "the backend is done with it"
    scene.client.leave()
    scene.journal.waiting[0](None)
    await scene.over()
    assert [charge.ending for charge in scene.hot.charges] == [Ending.FINISHED]


# The backend ---------------------------------------------------------------------------------------------------------


async def test_a_stale_connection_is_replaced_and_the_next_loss_is_a_failure() -> None:
    scene = Scene()
    scene.one.idle_connections.append(FakeConnection(scene.one))
    scene.call(one_backend=True)
    scene.one.lose(is_stale=True)
    await scene.turn()
    assert len(scene.one.asked) == 2
    scene.one.lose()
    await scene.over()
    assert scene.client.told[0] == 502
    assert not scene.hot.charges


async def test_a_connection_that_is_lost_twice() -> None:
    scene = Scene()
    scene.one.idle_connections.append(FakeConnection(scene.one))
    scene.call()
    sink = scene.one.sink
    scene.one.connections[-1].close()
    for is_stale in (True, True, False):
        sink.upstream_lost(BackendFailed("lost"), is_stale)
    await scene.turn()
    for backend in (scene.one, scene.two):
        backend.say(*LAST)
    await scene.over()
    assert len(scene.hot.charges) + len(scene.hot.voided) == 1


async def test_the_client_leaves_while_a_stale_connection_is_replaced() -> None:
    scene = Scene()
    scene.one.idle_connections.append(FakeConnection(scene.one))
    scene.one.connecting = asyncio.get_running_loop().create_future()
    scene.call()
    scene.one.lose(is_stale=True)
    await scene.turn()
    scene.client.leave()
    scene.one.connecting.set_result(None)
    await scene.over()
    assert not scene.hot.charges, "no backend has seen it"


@pytest.mark.parametrize("how", ["client", "drain", "time"])
@pytest.mark.parametrize("is_connected", [False, True])
async def test_a_call_ends_while_it_connects(how: str, is_connected: bool) -> None:
    scene = Scene(total_timeout_seconds=1)
    scene.one.connecting = asyncio.get_running_loop().create_future()
    call = scene.call()
    await scene.turn()
    match how:
        case "client":
            scene.client.leave()
        case "drain":
            call.drain()
        case _:
            call.check_time(asyncio.get_running_loop().time() + 2)
    await scene.turn()
    if is_connected:
        scene.one.connecting.set_result(None)
    else:
        scene.one.connecting.set_exception(BackendFailed("refused"))
    await scene.over()
    assert not scene.one.asked
    assert not scene.two.asked
    assert not scene.hot.charges


async def test_a_connection_that_is_lost_as_soon_as_it_is_made() -> None:
    scene = Scene()
    scene.one.is_lost_at_once = True
    scene.call()
    await scene.turn()
    assert len(scene.two.asked) == 1
    scene.two.say(*LAST)
    await scene.over()
    assert len(scene.hot.charges) == 1


async def test_a_call_past_its_time_is_not_tried_again() -> None:
    scene = Scene(total_timeout_seconds=1)
    call = scene.call()
    await scene.turn()
    call.check_time(asyncio.get_running_loop().time() + 2)
    await scene.over()
    assert not scene.two.asked
    assert scene.client.told[0] == 504


async def test_the_last_second_is_that_of_all_attempts() -> None:
    scene = Scene(first_byte_timeout_seconds=1, total_timeout_seconds=10)
    call = scene.call()
    await scene.turn()
    now = asyncio.get_running_loop().time()
    call.check_time(now + 2)
    await scene.turn()
    assert len(scene.two.asked) == 1
    scene.two.sink.upstream_head(200, SSE)
    scene.two.sink.upstream_bytes(delta("x"))
    call.check_time(now + 11)
    await scene.over()
    assert [charge.ending for charge in scene.hot.charges] == [Ending.BACKEND_FAILED]


@pytest.mark.parametrize("ending", ["client", "drain", "refusal", "refusal in a stream", "failure", "success", "spent"])
async def test_a_probe_always_gets_its_verdict(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.breaker.FIRST_PAUSE_SECONDS", 0.0)
    scene = Scene()
    breaker = scene.running.capacity.breakers.of(scene.deployments[0].id)
    now = asyncio.get_running_loop().time()
    for _ in range(5):
        passage = breaker.admit(now)
        assert passage is not None
        passage.failed(now)
    assert breaker.is_probing(asyncio.get_running_loop().time())
    call = scene.call(one_backend=True)
    await scene.turn()
    assert not breaker.admits(asyncio.get_running_loop().time()), "one probe at a time"
    match ending:
        case "client":
            scene.client.leave()
        case "drain":
            call.drain()
        case "refusal":
            scene.one.say(b"{}", status=400)
            scene.one.end()
        case "refusal in a stream":
            scene.one.say(event(error={"message": "no", "code": 400}))
        case "failure":
            scene.one.say(b"{}", status=500)
            scene.one.end()
        case "spent":
            scene.one.say(delta("x", usage=usage(9, 500)))
        case _:
            scene.one.say(*LAST)
    await scene.over()
    assert breaker._probe is None
    is_closed = ending in ("refusal", "refusal in a stream", "success", "spent")
    assert (breaker._until is None) is is_closed


async def test_refusals_in_a_stream_never_open_the_breaker() -> None:
    scene = Scene()
    for _ in range(12):
        scene.call(one_backend=True)
        await scene.turn()
        scene.one.say(event(object="error", message="the prompt is too long", code=400))
        await scene.over()
        assert scene.client.told[0] == 400
    assert scene.running.capacity.breakers.of(scene.deployments[0].id)._until is None


# The client ----------------------------------------------------------------------------------------------------------


class Clock:
    """The loop's time, for one driver."""

    def __init__(self) -> None:
        self.now = 100.0

    def time(self) -> float:
        return self.now


async def test_a_slow_client_keeps_the_order_and_the_backend_waits() -> None:
    scene, clock = Scene(idle_timeout_seconds=1), Clock()
    call = scene.call(begin=False)
    call._loop = cast("Any", clock)
    call.begin()
    await scene.turn()
    scene.client.is_slow = True
    scene.one.say(delta("a"), *[delta("b" * 100_000)] * 10)
    assert scene.one.connections[0].is_paused
    assert b"b" not in scene.text
    clock.now += 20
    call.check_time(clock.now)
    scene.client.is_slow = False
    call.client_ready()
    assert not scene.one.connections[0].is_paused
    # It was not heard for longer than it may be silent, but that was our doing.
    clock.now += 0.5
    call.check_time(clock.now)
    scene.one.go_on(*LAST)
    await scene.over()
    assert scene.text.count(b"b" * 100_000) == 10
    assert scene.text.endswith(DONE)
    assert [charge.ending for charge in scene.hot.charges] == [Ending.FINISHED]


@pytest.mark.parametrize("is_finished", [False, True])
async def test_a_client_that_does_not_read_is_cut_off(is_finished: bool) -> None:
    scene = Scene(write_timeout_seconds=5)
    call = scene.call()
    await scene.turn()
    scene.client.is_slow = True
    scene.one.say(delta("a"), delta("b"))
    if is_finished:
        scene.one.go_on(*LAST)
    now = asyncio.get_running_loop().time()
    call.check_time(now + 4)
    assert not scene.client.was_aborted
    call.check_time(now + 6)
    await scene.over()
    assert scene.client.was_aborted
    assert len(scene.hot.charges) == 1


def answer_all(waiting: list[Callable[[Any], None]], answer: Any) -> None:
    while waiting:
        waiting.pop()(answer)


@pytest.mark.parametrize("moment", range(6))
async def test_the_client_leaves_twice_at_each_moment(moment: int) -> None:
    scene = Scene(has_journal=True)
    assert scene.journal is not None
    scene.hot.answers_at_once = False
    scene.one.connecting = connecting = asyncio.get_running_loop().create_future()
    call = scene.call()
    hot, journal = scene.hot.waiting, scene.journal.waiting
    steps: list[Callable[[], None]] = [
        lambda: hot.pop()(None),
        lambda: connecting.set_result(None),
        lambda: scene.one.say(delta("x")),
        lambda: scene.one.go_on(*LAST),
        lambda: answer_all(hot, 1),
        lambda: answer_all(journal, None),
    ]
    for number, step in enumerate(steps):
        if number == moment:
            scene.client.leave()
            call.client_gone()
        step()
        await scene.turn()
    for step in steps[4:]:
        step()
    await scene.over()
    assert len(scene.hot.charges) + len(scene.hot.voided) == 1


# Places --------------------------------------------------------------------------------------------------------------


async def test_a_client_that_leaves_while_it_waits_leaves_its_place() -> None:
    scene = Scene(max_in_flight=1)
    scene.call()
    scene.call()
    await scene.turn()
    scene.call()
    waiting = scene.client
    scene.call()
    assert scene.running.capacity.room.waiting_calls == 2
    waiting.leave()
    assert scene.running.capacity.room.waiting_calls == 1
    for backend in (scene.one, scene.two):
        backend.say(*LAST)
    await scene.turn()
    assert len(scene.one.asked) + len(scene.two.asked) == 3
    for backend in (scene.one, scene.two):
        backend.say(*LAST)
    await scene.over()
    assert waiting.told == []
    assert len(scene.hot.charges) == 3


async def test_a_client_that_leaves_when_its_slot_is_on_its_way() -> None:
    scene = Scene(max_in_flight=1)
    scene.call(one_backend=True)
    await scene.turn()
    scene.call(one_backend=True)
    waiting = scene.client
    # The end of the first gives its slot to the second, whose client leaves before it hears of it.
    scene.one.say(*LAST)
    waiting.leave()
    await scene.over()
    assert len(scene.one.asked) == 1


async def test_a_call_that_waits_is_drained_at_once() -> None:
    scene = Scene(max_in_flight=1)
    scene.call(one_backend=True)
    await scene.turn()
    call = scene.call(one_backend=True)
    call.drain()
    assert scene.client.told[0] == 503
    assert scene.running.capacity.room.waiting_calls == 0
    scene.one.say(*LAST)
    await scene.over()


async def test_a_call_that_is_drained_when_its_slot_is_on_its_way() -> None:
    scene = Scene(max_in_flight=1)
    scene.call(one_backend=True)
    await scene.turn()
    call = scene.call(one_backend=True)
    scene.one.say(*LAST)
    call.drain()
    await scene.over()
    assert scene.client.told[0] == 503


# Every order ---------------------------------------------------------------------------------------------------------

MOVES = (
    *("call", "hot", "connect", "say", "finish", "journal") * 2,
    *("end", "break", "stale", "fail to connect", "refuse", "leave", "slow", "ready", "late", "much later", "drain"),
    *("hot away", "journal away", "spend", "error event", "raise the limit"),
)


class Simulation:
    """Several calls, whose surroundings do one thing after another."""

    def __init__(self, max_in_flight: int) -> None:
        self.scene = Scene(
            max_in_flight=max_in_flight, has_journal=True, wait_seconds=30, first_byte_timeout_seconds=10
        )
        self.scene.hot.answers_at_once = False
        self.calls: list[Driver] = []
        self.now = asyncio.get_running_loop().time()

    @property
    def listening(self) -> list[FakeConnection]:
        return [each for backend in (self.scene.one, self.scene.two) for each in backend.connections if each.sink]

    async def move(self, name: str, which: int) -> None:
        scene, hot, journal = self.scene, self.scene.hot.waiting, self.scene.journal
        assert journal is not None
        sinks = [each.sink for each in self.listening]
        sink = sinks[which % len(sinks)] if sinks else None
        call = self.calls[which % len(self.calls)] if self.calls else None
        client = scene.clients[which % len(scene.clients)] if scene.clients else None
        match name:
            case "call":
                self.calls.append(scene.call(stream=which % 2 == 0, number=len(self.calls)))
            case "hot" if hot:
                hot.pop(which % len(hot))(None)
            case "hot away" if hot:
                hot.pop(which % len(hot))(AWAY)
            case "journal" if journal.waiting:
                journal.waiting.pop(which % len(journal.waiting))(None)
            case "journal away" if journal.waiting:
                journal.waiting.pop(which % len(journal.waiting))(AWAY)
            case "connect":
                scene.one.fault = scene.two.fault = None
            case "fail to connect":
                scene.one.fault = BackendFailed("refused")
            case "say" if sink:
                sink.upstream_head(200, SSE)
                sink.upstream_bytes(delta("x"))
            case "spend" if sink:
                sink.upstream_head(200, SSE)
                sink.upstream_bytes(delta("x", usage=usage(9, 500)))
            case "error event" if sink:
                sink.upstream_head(200, SSE)
                sink.upstream_bytes(event(error={"message": "no"}))
            case "finish" if sink:
                sink.upstream_head(200, SSE)
                sink.upstream_bytes(b"".join(LAST))
            case "refuse" if sink:
                sink.upstream_head((400, 500, 503)[which % 3], b"application/json")
                sink.upstream_end()
            case "end" if sink:
                sink.upstream_end()
            case "break" | "stale" if sink:
                connection = next(each for each in self.listening if each.sink is sink)
                connection.close()
                sink.upstream_lost(BackendFailed("lost"), name == "stale")
            case "leave" if client:
                client.leave()
            case "slow" if client:
                client.is_slow = True
            case "ready" if client and client.client:
                client.is_slow = False
                client.client.client_ready()
            case "late" | "much later":
                self.now += 11 if name == "late" else 2_000
                for each in tuple(scene.running.drivers):
                    each.check_time(self.now)
            case "drain" if call in scene.running.drivers:
                assert call is not None
                call.drain()
            case "raise the limit":
                scene.limit(which + 1)
        if which % 2:
            await scene.turn()

    async def end(self) -> None:
        """Let all that was asked be answered, and stop the process."""
        scene, journal = self.scene, self.scene.journal
        assert journal is not None
        for _ in range(8):
            await scene.turn()
            for driver in tuple(scene.running.drivers):
                driver.drain()
            answer_all(scene.hot.waiting, None)
            answer_all(journal.waiting, None)
            await self.move("much later", 1)
        await scene.over()
        asked_for = {call.request_id for call in self.calls if call.call.hold is not None}
        ended = [str(charge.call_id) for charge in scene.hot.charges] + [str(each) for each in scene.hot.voided]
        assert Counter(ended) == Counter(asked_for), "each hold ends once"


@settings(max_examples=300, deadline=None)
@given(
    max_in_flight=st.integers(1, 3),
    moves=st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 5)), min_size=5, max_size=40),
)
def test_nothing_is_left_in_whatever_order_things_happen(max_in_flight: int, moves: list[tuple[str, int]]) -> None:
    async def play() -> None:
        simulation = Simulation(max_in_flight)
        for name, which in (("call", 0), *moves):
            await simulation.move(name, which)
        await simulation.end()

    asyncio.run(play())


# Faults of ours ------------------------------------------------------------------------------------------------------


def raising(*_: object, **__: object) -> Any:
    raise RuntimeError("a bug")


@pytest.mark.parametrize(
    "where",
    [
        pytest.param("gateway.calls.capacity.route", id="routing"),
        pytest.param("gateway.waiting.WaitingRoom.ask", id="the waiting room"),
        pytest.param("gateway.retries.RetryBudget.called", id="a slot"),
        pytest.param("gateway.backends.dialect.Dialect.body", id="the body"),
        pytest.param("tests.unit.test_driver.FakeHot.start_hold", id="the hold"),
        pytest.param("tests.unit.test_driver.FakeBackend.idle", id="the pool"),
        pytest.param("tests.unit.test_driver.FakeBackend.connect", id="a connection"),
        pytest.param("gateway.calls.machine.read", id="reading"),
        pytest.param("gateway.calls.machine.Meter.see", id="metering"),
        pytest.param("gateway.calls.driver.rate_limit_headers", id="the head"),
        pytest.param("gateway.calls.driver.own_count", id="counting"),
        pytest.param("gateway.calls.answers.aggregate.Aggregate.add", id="putting together"),
        pytest.param("gateway.calls.answers.aggregate.Aggregate.answer", id="the answer"),
        pytest.param("gateway.calls.settling.encode_charge", id="the record"),
        pytest.param("tests.unit.test_driver.FakeJournal.start", id="the journal"),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_fault_anywhere_leaves_nothing(where: str, is_stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(has_journal=True)
    assert scene.journal is not None
    monkeypatch.setattr(where, raising)
    # Without usage our own count is asked for.
    last = (delta("x", finish="stop"), DONE) if where.endswith("own_count") else LAST
    scene.call(stream=is_stream)
    await scene.turn()
    for backend in (scene.one, scene.two):
        backend.say(*last)
        await scene.turn()
    for then in scene.journal.waiting:
        then(None)
    await scene.over()


async def test_a_fault_while_a_hold_is_released_does_not_keep_the_client_waiting() -> None:
    scene = Scene()
    scene.hot.fault = RuntimeError("a bug")
    scene.one.fault = scene.two.fault = BackendFailed("refused")
    scene.call()
    await scene.over()
    assert scene.client.told[0] == 502


async def test_two_faults_in_a_row_end_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Meter, "measure", raising)
    scene = Scene()
    scene.call()
    await scene.turn()
    scene.one.say(*LAST)
    await scene.turn()
    assert not scene.running.drivers
    assert scene.running.capacity.room.running_calls == 0
    assert scene.client.was_aborted
