"""Connections to simulated model servers: the real pool and the real parser of HTTP, over sockets that are made up."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

from gateway.calls.machine import Phase
from gateway.calls.upstream import Address, Connection, Pool, Upstreams
from models.catalog import BackendKind, Deployment
from models.errors import BackendFailed
from tests.simulation.backends import Step, Vice, What, answer

if TYPE_CHECKING:
    from tests.simulation.calls import SimulatedCall
    from tests.simulation.gateway import Gateway

_HEAD: Final = b"HTTP/1.1 %d X\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n"
_ANSWERS: Final = tuple(vice for vice in Vice if vice not in (Vice.REFUSES, Vice.STALE))


class SimulatedUpstreams(Upstreams):
    """The pools of a simulated gateway."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__(connect_timeout_seconds=2)
        self._gateway = gateway
        self._by_backend: dict[UUID, SimulatedPool] = {}

    def pool(self, deployment: Deployment) -> Pool:
        """The pool of a deployment's backend."""
        backend = deployment.backend
        known = self._by_backend.get(backend.id)
        if known is None:
            known = self._by_backend[backend.id] = SimulatedPool(self._gateway, Address.of(backend), backend.kind)
        return known


class SimulatedPool(Pool):
    """Opens connections to a server that may refuse them."""

    def __init__(self, gateway: Gateway, address: Address, kind: BackendKind) -> None:
        super().__init__(address)
        self._gateway = gateway
        self._kind = kind

    async def connect(self, timeout_seconds: float) -> Connection:
        """A new connection; raises `BackendFailed`."""
        gateway = self._gateway
        random = gateway.world.random
        await asyncio.sleep(random.random() * 0.05)
        await gateway.go_on()
        if random.random() < gateway.world.weather.backends_bad / len(Vice):
            gateway.world.saw_backend_misbehave(Vice.REFUSES)
            raise BackendFailed("The model's backend cannot be reached.")
        connection = Connection(self)
        connection.connection_made(cast("Any", Socket(gateway, connection, self._kind)))
        return connection


class Socket:
    """A connection in the place of asyncio's transport: behind it is the server, with its vices."""

    def __init__(self, gateway: Gateway, connection: Connection, kind: BackendKind) -> None:
        self._gateway = gateway
        self._connection = connection
        self._kind = kind
        self._steps: deque[Step] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._is_closing = False
        self._is_paused = False
        self._call: SimulatedCall

    # What the program does -------------------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._is_closing

    def abort(self) -> None:
        """Break it off; the program hears of it in another turn."""
        if not self._is_closing:
            self._is_closing = True
            self._stop()
            asyncio.get_running_loop().call_soon(self._lost)

    def close(self) -> None:
        """The same: nothing waits to be sent."""
        self.abort()

    def pause_reading(self) -> None:
        """What comes waits."""
        self._is_paused = True
        self._stop()

    def resume_reading(self) -> None:
        """Read on."""
        self._is_paused = False
        self._go_on()

    def write(self, _request: bytes) -> None:
        """A request: the server answers it."""
        gateway = self._gateway
        world, random = gateway.world, gateway.world.random
        self._call = cast("SimulatedCall", self._connection._sink)
        call, vice = self._call, None
        call.story.is_sent = True
        if random.random() < world.weather.backends_bad:
            is_stale = self._connection.is_reused and random.random() < 0.1
            vice = Vice.STALE if is_stale else random.choice(_ANSWERS)
            world.saw_backend_misbehave(vice)
            world.auditor.note(call.story, "backend is bad", vice.value)
        hold = call.call.hold_request
        self._steps = deque(answer(random, self._kind, call.call.request, vice, hold.output_bound))
        self._go_on()

    # What the server does --------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _go_on(self) -> None:
        if self._steps and self._timer is None and not self._is_paused and not self._is_closing:
            self._timer = asyncio.get_running_loop().call_later(self._steps[0].seconds, self._take_step)

    def _take_step(self) -> None:
        gateway, self._timer = self._gateway, None
        if gateway.is_dead or self._is_closing:
            return
        if gateway.is_frozen:
            # What comes waits in the sockets.
            self._timer = asyncio.get_running_loop().call_later(gateway.frozen_seconds, self._take_step)
            return
        self._feed(self._steps.popleft())
        self._go_on()

    def _feed(self, step: Step) -> None:
        connection, call = self._connection, self._call
        is_read = connection._sink is call
        match step.what:
            case What.HEAD:
                if is_read:
                    call.story.status = step.status
                connection.data_received(_HEAD % (step.status, step.data))
            case What.BYTES:
                self._see(step, is_read)
                if step.data:
                    connection.data_received(b"%x\r\n%b\r\n" % (len(step.data), step.data))
            case What.END:
                self._see(step, is_read)
                connection.data_received(b"0\r\n\r\n")
            case What.BREAK:
                # No gateway can tell one that broke before its head from one that had been given up.
                if step.is_unsent or (is_read and connection.is_reused and call.story.status == 0):
                    call.story.is_sent = False
                self._is_closing = True
                self._lost()
            case What.SILENCE:
                return

    def _see(self, step: Step, is_read: bool) -> None:
        if is_read and self._call.call.phase is Phase.ANSWERING:
            self._gateway.world.auditor.sees(self._call.story, step.facts)

    def _lost(self) -> None:
        if not self._gateway.is_dead:
            self._connection.connection_lost(None)
