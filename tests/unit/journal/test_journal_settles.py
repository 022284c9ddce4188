"""The record of a settle: hold and charge come back, and what is none is refused with its reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from billing.journal.frames import Record
from billing.journal.settles import SETTLE, read_settle, settle_record
from models.call import Hold, InFlightLimit, RateBucket
from tests.integration.hot.nouns import Tenant, charge

TENANT = Tenant()
HOLD = Hold(
    TENANT.request(100, buckets=(RateBucket("a:tokens", 10, 5),), in_flight=(InFlightLimit("a", 3),), end_user="zoë")
)
CHARGE = charge(HOLD)
RECORD = settle_record(HOLD, CHARGE)


def test_hold_and_charge_come_back() -> None:
    assert RECORD.kind == SETTLE
    assert RECORD.call_id == CHARGE.call_id
    assert read_settle(RECORD) == (HOLD, CHARGE)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"kind": 9}, "unknown kind 9", id="a record of something else"),
        pytest.param({"payload": b""}, "not a settle", id="nothing"),
        pytest.param({"payload": b'["\xff"]'}, "not a settle", id="no text"),
        pytest.param({"payload": RECORD.payload[:-1]}, "not a settle", id="half a charge"),
        pytest.param(
            {"payload": settle_record(HOLD, replace(CHARGE, cached_tokens=61)).payload},
            "more cached than input tokens",
            id="a charge that Postgres would not take",
        ),
        pytest.param({"call_id": UUID(int=1)}, "not of one call", id="the record of another call"),
        pytest.param(
            {"payload": settle_record(HOLD, replace(CHARGE, amount=101, hold=101)).payload},
            "outside its hold",
            id="more than was held",
        ),
    ],
)
def test_what_is_no_settle_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_settle(Record(**{**RECORD._asdict(), **changes}))
