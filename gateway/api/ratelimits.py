"""The headers that tell a client its rate limits: `x-ratelimit-*` as OpenAI has them, and `anthropic-ratelimit-*`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from models.call import BucketState


def rate_limit_headers(buckets: tuple[BucketState, ...], since: datetime | None = None) -> list[tuple[bytes, bytes]]:
    """What is left, each from the tightest bucket; resets as Go durations.

    With `since`, the moment of the answer, in Anthropic's names too; there resets are moments.
    """
    headers: list[tuple[bytes, bytes]] = []
    for name, bucket in _tightest(buckets):
        limit, remaining = b"%d" % bucket.limit, b"%d" % max(0, bucket.remaining)
        headers += [
            (b"x-ratelimit-limit-" + name, limit),
            (b"x-ratelimit-remaining-" + name, remaining),
            (b"x-ratelimit-reset-" + name, _go_duration(bucket.reset_ms)),
        ]
        if since is not None:
            prefix = b"anthropic-ratelimit-" + name
            # Cut to seconds when it is written: never too early.
            full = since + timedelta(milliseconds=bucket.reset_ms, microseconds=999_999)
            headers += [
                (prefix + b"-limit", limit),
                (prefix + b"-remaining", remaining),
                (prefix + b"-reset", f"{full:%Y-%m-%dT%H:%M:%SZ}".encode()),
            ]
    return headers


def _tightest(buckets: tuple[BucketState, ...]) -> Iterator[tuple[bytes, BucketState]]:
    if not buckets:
        return
    for kind in ("requests", "tokens"):
        of_kind = [bucket for bucket in buckets if bucket.scope.endswith(kind)]
        if of_kind:
            yield kind.encode(), min(of_kind, key=lambda bucket: bucket.remaining)


def _go_duration(milliseconds: int) -> bytes:
    if milliseconds < 1_000:
        return b"%dms" % milliseconds
    minutes, rest = divmod(milliseconds, 60_000)
    seconds = b"%d.%03ds" % divmod(rest, 1_000) if rest % 1_000 else b"%ds" % (rest // 1_000)
    return b"%dm%b" % (minutes, seconds) if minutes else seconds
