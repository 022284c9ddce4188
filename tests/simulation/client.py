"""The client of a simulated call, in the place of the gateway's `Exchange`: it reads slowly at times, and may leave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from gateway.exchange import Client, Header

if TYPE_CHECKING:
    from tests.simulation.gateway import Gateway

_LONGEST_PAUSE_SECONDS = 45.0
"""Longer than the gateway has patience for."""


class SimulatedClient:
    """Takes what it is sent; `disconnected` once it has left."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._watched_by: Client | None = None
        self._is_over = False
        self.has_written = False
        self.is_slow = False
        self.disconnected = False
        self.response_started = False

    @property
    def response_complete(self) -> bool:
        """Whether it has its answer, or has left."""
        return self._is_over

    def watch(self, client: Client | None) -> None:
        """Who is told what the client does."""
        self._watched_by = client

    def open(self, _status: int, _lines: bytes, _length: int | None) -> None:
        """The head of an answer."""
        assert not self.response_started, "an answer begins once"
        self.response_started = self.has_written = True

    def write(self, _piece: bytes) -> None:
        """A piece of the answer."""
        assert self.response_started, "a body comes after its head"
        assert not self._is_over, "nothing comes after the last byte"
        self.has_written = True

    def end(self, piece: bytes) -> None:
        """The last piece."""
        self.write(piece)
        self._is_over = True

    def answer(self, status: int, _headers: Iterable[Header], body: bytes) -> None:
        """A whole answer."""
        self.open(status, b"", len(body))
        self.end(body)

    def flush(self) -> None:
        """What was written is sent; the client may be too slow for it."""
        self.has_written = False
        world = self._gateway.world
        if self.is_slow or self._is_over or world.random.random() >= world.weather.clients_slow:
            return
        world.saw_slow_client()
        self.is_slow = True
        self._later(world.random.random() ** 3 * _LONGEST_PAUSE_SECONDS, self._ready)

    def abort(self) -> None:
        """The gateway breaks the connection; it hears of it in another turn."""
        asyncio.get_running_loop().call_soon(self._lost)

    def leave(self, seconds: float) -> None:
        """Close the connection after a while."""
        self._later(seconds, self._lost)

    def _later(self, seconds: float, do: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(seconds, self._when_it_runs, do)

    def _when_it_runs(self, do: Callable[[], None]) -> None:
        gateway = self._gateway
        if gateway.is_frozen and not gateway.is_dead:
            self._later(gateway.frozen_seconds, do)
        else:
            do()

    def _ready(self) -> None:
        self.is_slow = False
        if self._watched_by is not None and not self.disconnected and not self._gateway.is_dead:
            self._watched_by.client_ready()

    def _lost(self) -> None:
        if self.disconnected or self._gateway.is_dead:
            return
        self.disconnected = True
        if self._watched_by is not None and not self._is_over:
            self._watched_by.client_gone()
