"""The commands of operators, which speak to a running gateway: `org project key model backend price invoice`."""

from __future__ import annotations

import typer

from gateway.cli import documents, sales, tenants


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.add_typer(tenants.org, name="org")
    app.add_typer(tenants.project, name="project")
    app.add_typer(tenants.key, name="key")
    app.add_typer(sales.model, name="model")
    app.add_typer(sales.backend, name="backend")
    app.add_typer(sales.price, name="price")
    app.add_typer(documents.invoice, name="invoice")
