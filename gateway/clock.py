"""The billing clock: the time that charges, prices and periods see. It runs at the speed of time, from any start."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class Clock:
    """Wall time, or time that started at `start` when the clock was made. Durations are never measured with it."""

    def __init__(self, start: datetime | None = None) -> None:
        self._offset = timedelta(0) if start is None else start.astimezone(UTC) - datetime.now(UTC)

    def now(self) -> datetime:
        """The present moment, in UTC."""
        now = datetime.now(UTC)
        return now + self._offset if self._offset else now
