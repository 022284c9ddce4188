"""The commands of operators, which speak to a running gateway: who buys, what is sold, and what is billed and paid."""

from __future__ import annotations

import typer

from gateway.cli import documents, invoices, payments, prices, routes, sales, taxes, tenants

invoices.invoice.command("pdf")(documents.write_pdf)
tenants.org.command("route")(routes.route_organization)
prices.price.command("markup")(routes.publish_markup)


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.add_typer(tenants.org, name="org")
    app.add_typer(tenants.project, name="project")
    app.add_typer(tenants.key, name="key")
    app.add_typer(sales.model, name="model")
    app.add_typer(sales.backend, name="backend")
    app.add_typer(routes.alias, name="alias")
    app.add_typer(routes.maintenance, name="maintenance")
    app.add_typer(prices.price, name="price")
    app.add_typer(invoices.invoice, name="invoice")
    app.add_typer(payments.payment, name="payment")
    app.add_typer(taxes.seller, name="seller")
    app.add_typer(taxes.tax, name="tax")
