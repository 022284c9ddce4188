"""The `x-ratelimit-*` headers of the OpenAI API."""

from __future__ import annotations

from models.call import BucketState


def rate_limit_headers(buckets: tuple[BucketState, ...]) -> list[tuple[bytes, bytes]]:
    """The `x-ratelimit-*` headers of the OpenAI API, each from the tightest bucket; resets as Go durations."""
    headers: list[tuple[bytes, bytes]] = []
    if not buckets:
        return headers
    for kind in ("requests", "tokens"):
        of_kind = [bucket for bucket in buckets if bucket.scope.endswith(kind)]
        if not of_kind:
            continue
        tightest = min(of_kind, key=lambda bucket: bucket.remaining)
        name = kind.encode()
        headers += [
            (b"x-ratelimit-limit-" + name, b"%d" % tightest.limit),
            (b"x-ratelimit-remaining-" + name, b"%d" % max(0, tightest.remaining)),
            (b"x-ratelimit-reset-" + name, _go_duration(tightest.reset_ms)),
        ]
    return headers


def _go_duration(milliseconds: int) -> bytes:
    if milliseconds < 1_000:
        return b"%dms" % milliseconds
    minutes, rest = divmod(milliseconds, 60_000)
    seconds = b"%d.%03ds" % divmod(rest, 1_000) if rest % 1_000 else b"%ds" % (rest // 1_000)
    return b"%dm%b" % (minutes, seconds) if minutes else seconds
