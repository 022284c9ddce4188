"""Columns of the FOCUS data sets, with their types, what they may hold, and whether they may be empty.

Sources: FOCUS 1.2 (2025-05-29) and 1.4 (2026-06-04), https://focus.finops.org. Conditional columns are there where
their condition holds for a gateway that sells tokens; columns of our own begin with `x_`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Form(StrEnum):
    """How a cell is written."""

    TEXT = "text"
    DECIMAL = "decimal"
    TIME = "time"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class FocusColumn:
    """One column; `allowed` are all values it may have, None where any is right."""

    name: str
    form: Form = Form.TEXT
    nullable: bool = False
    allowed: frozenset[str] | None = None


def _text(name: str, *allowed: str, nullable: bool = False) -> FocusColumn:
    return FocusColumn(name, Form.TEXT, nullable, frozenset(allowed) or None)


def _decimal(name: str, nullable: bool = False) -> FocusColumn:
    return FocusColumn(name, Form.DECIMAL, nullable)


def _time(name: str, nullable: bool = False) -> FocusColumn:
    return FocusColumn(name, Form.TIME, nullable)


CATEGORIES: Final = ("Usage", "Purchase", "Tax", "Credit", "Adjustment")

_BEFORE_PROVIDERS: Final = (
    _decimal("BilledCost"),
    _text("BillingAccountId"),
    _text("BillingAccountName", nullable=True),
    _text("BillingCurrency", "USD", "EUR", "KRW", "JPY"),
    _time("BillingPeriodEnd"),
    _time("BillingPeriodStart"),
    _text("ChargeCategory", *CATEGORIES),
    _text("ChargeClass", "Correction", nullable=True),
    _text("ChargeDescription", nullable=True),
    _text("ChargeFrequency", "One-Time", "Recurring", "Usage-Based"),
    _time("ChargePeriodEnd"),
    _time("ChargePeriodStart"),
    _decimal("ConsumedQuantity", nullable=True),
    _text("ConsumedUnit", "Tokens", "Requests", "Images", "Seconds", nullable=True),
    _decimal("ContractedCost"),
    _decimal("ContractedUnitPrice", nullable=True),
    _decimal("EffectiveCost"),
)
_AFTER_PROVIDERS: Final = (
    _text("InvoiceId", nullable=True),
    _text("InvoiceIssuerName"),
    _decimal("ListCost"),
    _decimal("ListUnitPrice", nullable=True),
    _text("PricingCategory", "Standard", "Dynamic", "Committed", "Other", nullable=True),
    _decimal("PricingQuantity", nullable=True),
    _text("PricingUnit", "1000000 Tokens", "Requests", "Images", "Seconds", "Credits", nullable=True),
    _text("ServiceCategory", "AI and Machine Learning"),
    _text("ServiceName"),
    _text("ServiceSubcategory", "Generative AI"),
    _text("SkuId", nullable=True),
    _text("SkuMeter", nullable=True),
    FocusColumn("SkuPriceDetails", Form.JSON, True),
    _text("SkuPriceId", nullable=True),
    _text("SubAccountId", nullable=True),
    _text("SubAccountName", nullable=True),
    _text("x_RowId"),
)

COST_AND_USAGE_1_2: Final = (
    *_BEFORE_PROVIDERS,
    _text("ProviderName"),
    _text("PublisherName"),
    *_AFTER_PROVIDERS,
)
COST_AND_USAGE_1_4: Final = (
    *_BEFORE_PROVIDERS,
    _text("HostProviderName"),
    _text("ServiceProviderName"),
    _text("InvoiceDetailId", nullable=True),
    *_AFTER_PROVIDERS,
)
INVOICE_DETAIL_1_4: Final = (
    _decimal("BilledCost"),
    _text("BillingAccountId"),
    _text("BillingCurrency", "USD", "EUR", "KRW", "JPY"),
    _time("BillingPeriodEnd"),
    _time("BillingPeriodStart"),
    _text("ChargeCategory", *CATEGORIES),
    _time("InvoiceDetailCreated"),
    _text("InvoiceDetailDescription", nullable=True),
    FocusColumn("InvoiceDetailGrain", Form.JSON, True),
    _text("InvoiceDetailId"),
    _time("InvoiceDetailLastUpdated"),
    _text("InvoiceId"),
    _time("InvoiceIssueDate", nullable=True),
    _text("InvoiceIssueStatus", "Open", "Issued", "Voided"),
    _text("InvoiceIssuerName"),
    _time("PaymentDueDate", nullable=True),
    _text("PaymentTerms"),
    _text("PurchaseOrderNumber", nullable=True),
    _text("ReferenceInvoiceId"),
)
BILLING_PERIOD_1_4: Final = (
    _time("BillingPeriodCreated"),
    _time("BillingPeriodEnd"),
    _time("BillingPeriodLastUpdated"),
    _time("BillingPeriodStart"),
    _text("BillingPeriodStatus", "Open", "Closed"),
    _text("InvoiceIssuerName"),
)
