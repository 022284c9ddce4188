"""Which models an organization may buy: known, and priced in its book and currency."""

from __future__ import annotations

from collections.abc import Collection

from billing.store.pages import AnyRow
from gateway.parts import Parts
from models.errors import InvalidRequest


def sold_models(parts: Parts, organization: AnyRow) -> list[str]:
    """The models that are sold to an organization, in the order of their ids."""
    catalog, now = parts.catalog.current, parts.clock.now()
    return sorted(
        model
        for model in catalog.models
        if catalog.rates(organization.price_book, organization.currency, model, now) is not None
    )


async def check_sold(parts: Parts, organization: AnyRow, models: Collection[str], param: str) -> None:
    """Raise `InvalidRequest` for a model that is not sold to the organization."""
    if not models:
        return
    if missing := set(models) - set(sold_models(parts, organization)):
        # Another process may have just added it.
        await parts.catalog.refresh()
        missing -= set(sold_models(parts, organization))
        if missing:
            raise InvalidRequest(f"The model '{min(missing)}' does not exist, or is not sold to you.", param=param)
