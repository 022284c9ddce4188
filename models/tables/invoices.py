"""Invoices and payments: amounts on them are whole minor units, in ledger units."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TSTZRANGE, ExcludeConstraint

from models.tables.columns import AMOUNT, MOMENT, created_at, metadata, one_of

seller = Table(
    "seller",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("legal_name", Text, nullable=False),
    Column("country", Text, nullable=False),
    Column("tax_id", Text),
    Column("address", Text),
    Column("email", Text),
    Column("phone", Text),
    # Lines below the total: where to pay.
    Column("payment_details", Text),
    Column("invoice_series", Text, nullable=False, server_default="INV"),
    Column("credit_note_series", Text, nullable=False, server_default="CN"),
    CheckConstraint("id = 1", name="id"),
)

tax_rule = Table(
    "tax_rule",
    metadata,
    Column("id", Uuid, primary_key=True),
    # Of the buyer; null is every country without a rule of its own.
    Column("country", Text),
    Column("treatment", Text, nullable=False),
    # Parts per million: 100000 is 10 %.
    Column("rate_ppm", Integer, nullable=False),
    # Whether prices contain the tax.
    Column("is_inclusive", Boolean, nullable=False, server_default=text("false")),
    Column("name", Text, nullable=False),
    Column("effective", TSTZRANGE, nullable=False),
    Column("created_by", Text, nullable=False),
    created_at(),
    one_of("treatment", "standard", "exempt", "reverse_charge", "zero_rated"),
    CheckConstraint("rate_ppm between 0 and 1000000", name="rate"),
    CheckConstraint("treatment = 'standard' or rate_ppm = 0", name="untaxed"),
    ExcludeConstraint(
        (text("text_range(coalesce(country, ''), coalesce(country, ''), '[]')"), "="),
        ("effective", "&&"),
        using="gist",
        name="tax_rule_no_overlap",
    ),
)

billing_month = Table(
    "billing_month",
    metadata,
    # Bounds of an organization's month in its time zone, computed once.
    Column("organization_id", Uuid, ForeignKey("organization.id"), primary_key=True),
    Column("month", Date, primary_key=True),
    Column("timezone", Text, nullable=False),
    Column("starts_at", MOMENT, nullable=False),
    Column("ends_at", MOMENT, nullable=False),
    # Charges that were booked before are in the month; what comes later is in the next.
    Column("cut_off_at", MOMENT, nullable=False),
    CheckConstraint("starts_at < ends_at and ends_at <= cut_off_at", name="bounds"),
)

invoice_series = Table(
    "invoice_series",
    metadata,
    # The lock under which numbers are given, so that none is missing.
    Column("id", Text, primary_key=True),
    Column("last_number", BigInteger, nullable=False, server_default="0"),
)

invoice = Table(
    "invoice",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("organization_id", Uuid, ForeignKey("organization.id"), nullable=False),
    # `invoice`, or `credit_note` of the invoice that `corrects` names; the amounts of both are positive.
    Column("kind", Text, nullable=False),
    Column("corrects", Uuid, ForeignKey("invoice.id")),
    Column("state", Text, nullable=False),
    Column("series", Text, nullable=False),
    Column("number", BigInteger),
    Column("currency", Text, nullable=False),
    # Of an invoice for usage: the organization's month, and its bounds.
    Column("month", Date),
    Column("starts_at", MOMENT),
    Column("ends_at", MOMENT),
    Column("issued_on", Date),
    Column("due_on", Date),
    Column("subtotal", AMOUNT, nullable=False, server_default="0"),
    Column("tax", AMOUNT, nullable=False, server_default="0"),
    Column("total", AMOUNT, nullable=False, server_default="0"),
    # What the sum of the charges was rounded by: subtotal (without tax) less that sum.
    Column("rounding", AMOUNT, nullable=False, server_default="0"),
    # Payments and credit notes that were set against it.
    Column("settled", AMOUNT, nullable=False, server_default="0"),
    Column("buyer", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("seller", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    # Treatment, rate, name and base of the tax.
    Column("tax_detail", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    # What a Korean tax invoice has besides (facts: billing, section 7).
    Column("korea", JSONB),
    Column("language", Text, nullable=False, server_default="en"),
    Column("purchase_order", Text),
    Column("reason", Text),
    Column("pdf_sha256", LargeBinary),
    Column("posting_id", BigInteger, ForeignKey("posting.id")),
    created_at(),
    Column("finalized_at", MOMENT),
    Column("closed_at", MOMENT),
    one_of("kind", "invoice", "credit_note"),
    one_of("state", "draft", "open", "paid", "void", "uncollectible"),
    one_of("language", "en", "ko"),
    CheckConstraint("(state = 'draft') = (number is null)", name="number"),
    CheckConstraint("(kind = 'credit_note') = (corrects is not null)", name="corrects"),
    CheckConstraint("total = subtotal + tax and tax >= 0", name="total"),
    CheckConstraint("settled >= 0 and settled <= greatest(total, 0)", name="settled"),
    UniqueConstraint("series", "number"),
    Index(
        "invoice_one_a_month_key",
        "organization_id",
        "month",
        unique=True,
        postgresql_where=text("kind = 'invoice' and month is not null and state <> 'void'"),
    ),
    Index("invoice_organization_id_idx", "organization_id", "id"),
    Index("invoice_corrects_idx", "corrects", postgresql_where=text("corrects is not null")),
)

invoice_line = Table(
    "invoice_line",
    metadata,
    Column("invoice_id", Uuid, ForeignKey("invoice.id"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    # `usage`, `credit` (paid by grants; negative), `rebate`, `adjustment` or `item`.
    Column("kind", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("project_id", Uuid),
    Column("project_name", Text),
    Column("model", Text),
    Column("meter", Text),
    Column("price_version_id", Uuid),
    Column("quantity", AMOUNT, nullable=False, server_default="0"),
    # Milli-units per unit of the meter.
    Column("unit_price", BigInteger),
    # Exact, in ledger units; the lines add up to the charges.
    Column("amount", AMOUNT, nullable=False),
    # Whole minor units, in ledger units; the lines add up to the subtotal.
    Column("rounded", AMOUNT, nullable=False),
    one_of("kind", "usage", "credit", "rebate", "adjustment", "item"),
)

payment = Table(
    "payment",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("organization_id", Uuid, ForeignKey("organization.id"), nullable=False, index=True),
    # `manual`, or who collected it; a reference is taken once.
    Column("provider", Text, nullable=False),
    Column("reference", Text, nullable=False),
    Column("amount", AMOUNT, nullable=False),
    Column("currency", Text, nullable=False),
    Column("received_at", MOMENT, nullable=False),
    # What is not set against invoices is the customer's credit: a grant.
    Column("grant_id", Uuid, ForeignKey("credit_grant.id")),
    Column("refunded", AMOUNT, nullable=False, server_default="0"),
    Column("posting_id", BigInteger, ForeignKey("posting.id"), nullable=False),
    created_at(),
    CheckConstraint("amount > 0", name="amount"),
    CheckConstraint("refunded between 0 and amount", name="refunded"),
    UniqueConstraint("provider", "reference"),
)

allocation = Table(
    "allocation",
    metadata,
    # What was set against an invoice: by a payment or by a credit note.
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("invoice_id", Uuid, ForeignKey("invoice.id"), nullable=False, index=True),
    Column("payment_id", Uuid, ForeignKey("payment.id"), index=True),
    Column("credit_note_id", Uuid, ForeignKey("invoice.id")),
    Column("amount", AMOUNT, nullable=False),
    Column("posting_id", BigInteger, ForeignKey("posting.id")),
    created_at(),
    CheckConstraint("amount <> 0", name="amount"),
    CheckConstraint("(payment_id is null) <> (credit_note_id is null)", name="source"),
)
