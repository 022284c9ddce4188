"""Usage: sums of charges, kept by the booking that adds them, and what the backends' own counters say to them."""

from __future__ import annotations

from sqlalchemy import ARRAY, BigInteger, Boolean, Column, Date, Identity, Index, Integer, Table, Text, Uuid

from models.tables.columns import AMOUNT, MOMENT, metadata, one_of


def _sums() -> list[Column[object]]:
    """Of the charges of a row's group. `calls` leaves corrections out; `unbilled` is the part no grant paid."""
    return [
        Column("calls", BigInteger, nullable=False, server_default="0"),
        Column("input_tokens", BigInteger, nullable=False, server_default="0"),
        Column("cached_tokens", BigInteger, nullable=False, server_default="0"),
        Column("cache_write_tokens", BigInteger, nullable=False, server_default="0"),
        Column("output_tokens", BigInteger, nullable=False, server_default="0"),
        Column("reasoning_tokens", BigInteger, nullable=False, server_default="0"),
        Column("amount", AMOUNT, nullable=False, server_default="0"),
        Column("unbilled", AMOUNT, nullable=False, server_default="0"),
        Column("images", BigInteger, nullable=False, server_default="0"),
        Column("audio_seconds", BigInteger, nullable=False, server_default="0"),
    ]


usage_hour = Table(
    "usage_hour",
    metadata,
    # By the hour, in UTC, in which calls ended.
    Column("organization_id", Uuid, primary_key=True),
    Column("hour", MOMENT, primary_key=True),
    Column("project_id", Uuid, primary_key=True),
    Column("api_key_id", Uuid, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("endpoint", Text, primary_key=True),
    Column("batch", Boolean, primary_key=True),
    Column("price_version_ids", ARRAY(Uuid), primary_key=True),
    *_sums(),
    postgresql_with={"fillfactor": "80"},
)

usage_day = Table(
    "usage_day",
    metadata,
    # By the day, in the organization's time zone, in which calls ended, and the month that they are billed in.
    Column("organization_id", Uuid, primary_key=True),
    Column("billing_month", Date, primary_key=True),
    Column("day", Date, primary_key=True),
    Column("project_id", Uuid, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("price_version_ids", ARRAY(Uuid), primary_key=True),
    *_sums(),
    postgresql_with={"fillfactor": "80"},
)

reconciliation = Table(
    "reconciliation",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    # By name, as charges name it: what was found outlives the backend.
    Column("backend", Text, nullable=False),
    Column("at", MOMENT, nullable=False),
    Column("since", MOMENT),
    Column("verdict", Text, nullable=False),
    Column("reason", Text),
    Column("calls_in_flight", Integer),
    # Where the next one starts: the backend's counters, and the ledger's sums of calls begun at `counted_from` or
    # later.
    Column("counter_input", BigInteger),
    Column("counter_output", BigInteger),
    Column("input_rounding", BigInteger),
    Column("output_rounding", BigInteger),
    Column("counted_from", MOMENT, nullable=False),
    Column("ledger_input", BigInteger),
    Column("ledger_output", BigInteger),
    Column("ledger_estimated_calls", BigInteger),
    # Tokens from `since` to `at`: by the backend's count, and by the ledger's.
    Column("metered_input", BigInteger),
    Column("metered_output", BigInteger),
    Column("charged_input", BigInteger),
    Column("charged_output", BigInteger),
    Column("estimated_calls", BigInteger),
    one_of("verdict", "baseline", "equal", "differs", "restarted", "unreachable"),
    Index("reconciliation_backend_id_idx", "backend", "id"),
)
