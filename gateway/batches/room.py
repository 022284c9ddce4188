"""How many lines of batches may begin now: what interactive calls leave of the backends, and never all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from uuid import UUID

from gateway.waiting import WaitingRoom
from models.catalog import Backend, Catalog, Model


class Room:
    """What lines may take of the backends of a process, of which lines that are at work have a part.

    Lines never wait for a slot: one that would have to is not begun. They take at most a `share` of a backend's slots,
    and always may take one, or a backend with a single slot would never serve a batch.
    """

    def __init__(
        self, catalog: Catalog, waiting: WaitingRoom, running: Iterable[str | None], share: float, organization: UUID
    ) -> None:
        """`running` are the models of lines at work, of all organizations; room is asked for lines of one."""
        self._catalog = catalog
        self._organization = organization
        self._waiting = waiting
        self._share = share
        self._taken: Counter[UUID] = Counter()
        self._new: Counter[UUID] = Counter()
        for model in running:
            for served in self._serving(model):
                for each in served.deployments:
                    # One line is at one of them only; to count it at each errs towards interactive calls.
                    self._taken[each.backend.id] += 1

    def take(self, models: Sequence[str | None], limit: int) -> list[bool]:
        """For each line, by its model, whether it may begin; at most `limit` of them."""
        chosen = []
        for model in models:
            is_chosen = limit > 0 and self._take(model)
            limit -= is_chosen
            chosen.append(is_chosen)
        return chosen

    def _take(self, model: str | None) -> bool:
        # Of an alias any target may be the line's: each must have room. Where there is none at all, the line will be
        # refused at once, and needs no room for that.
        places = [self._open_to(served) for served in self._serving(model)]
        if not all(any(map(self._has_room, backends)) for backends in places if backends):
            return False
        for backend in {each.id for backends in places for each in backends}:
            self._taken[backend] += 1
            self._new[backend] += 1
        return True

    def _has_room(self, backend: Backend) -> bool:
        if self._waiting.waiting(backend.id):
            return False
        limit, taken = backend.max_in_flight, self._taken[backend.id]
        if limit is None:
            return True
        in_flight = self._waiting.in_flight(backend.id) + self._new[backend.id]
        return taken < max(1, int(limit * self._share)) and in_flight < limit

    def _serving(self, model: str | None) -> list[Model]:
        """The models that a line of this one may be served by: itself, or the targets of an alias."""
        known = None if model is None else self._catalog.models.get(model)
        if known is None or not known.targets:
            return [] if known is None else [known]
        return [self._catalog.models[target.model] for target in known.targets if target.weight]

    def _open_to(self, model: Model) -> list[Backend]:
        return [each.backend for each in self._catalog.deployments(model, self._organization)]
