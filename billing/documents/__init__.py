"""Documents that customers get: invoices, credit notes and statements as PDF and as HTML. Values in, bytes out."""

from __future__ import annotations

from billing.documents.document import Account, Ageing, Document, Kind, Korea, Line, Mark, Movement, Party, Tax, Totals
from billing.documents.invoices import Stated, invoice_document, statement_document
from billing.documents.page import CONTENT_SECURITY_POLICY, html
from billing.documents.paper import pdf

__all__ = [
    "CONTENT_SECURITY_POLICY",
    "Account",
    "Ageing",
    "Document",
    "Kind",
    "Korea",
    "Line",
    "Mark",
    "Movement",
    "Party",
    "Stated",
    "Tax",
    "Totals",
    "html",
    "invoice_document",
    "pdf",
    "statement_document",
]
