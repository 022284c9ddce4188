"""Routes of price books, which inherit prices, and of the free allowances they give each month."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.responses import Response

from billing.store import allowances, price_books
from billing.store.catalog import missing_models
from billing.store.pages import AnyRow, Page
from gateway.api.operator.requests import Change, Operator
from gateway.api.operator.shapes import Asked, AskedById, Body, ListOf, ModelId, Money, Slug, list_of
from models.errors import InvalidRequest, NotFound

router = APIRouter()


class NewPriceBook(Body):
    """A price book. A meter that it does not price has the price of its parent; the parent never changes."""

    id: Slug
    parent: Slug | None = None
    batch_book: Slug | None = None


class BookChanges(Body):
    """What of a price book can change: the book that calls of a batch are priced by; null is none."""

    batch_book: Slug | None


class PriceBook(BaseModel):
    """A price book, the one that it inherits from, and the one that calls of a batch are priced by, where it prices
    their model."""

    id: str
    object: Literal["price_book"] = "price_book"
    parent: str | None
    batch_book: str | None
    created_at: datetime

    @classmethod
    def of(cls, row: AnyRow) -> PriceBook:
        """The answer for a row."""
        return cls(id=row.id, parent=row.parent, batch_book=row.batch_book, created_at=row.created_at)


class AskedBooks(Asked):
    """Which books to list, by name."""

    after: Slug | None = None


class NewAllowance(Body):
    """Money that each organization of a price book is given each calendar month, for some models or for all."""

    book: Slug
    amount: Money
    models: Annotated[list[ModelId], Field(min_length=1, max_length=1_000)] | None = None


class Allowance(BaseModel):
    """A monthly allowance, granted to organizations of its book and currency until it is ended."""

    id: UUID
    object: Literal["allowance"] = "allowance"
    book: str
    amount: Money
    models: list[str] | None
    created_at: datetime
    ended_at: datetime | None

    @classmethod
    def of(cls, row: AnyRow) -> Allowance:
        """The answer for a row."""
        plain = {name: getattr(row, name) for name in ("id", "book", "models", "created_at", "ended_at")}
        return cls(**plain, amount=Money.of(row.amount, row.currency))


class AskedAllowances(AskedById):
    """Which allowances to list."""

    book: Slug | None = None


@router.post("/price_books", response_model=PriceBook)
async def create_price_book(body: NewPriceBook, request: Operator) -> Response:
    """Make a price book; one without a parent is also made by the first price that is published in it."""

    async def effect(change: Change) -> PriceBook:
        if body.parent == body.id:
            raise InvalidRequest("A price book cannot inherit from itself. Name another parent, or none.", "parent")
        row = await price_books.create_book(
            change.connection, body.id, body.parent, change.actor, change.now, body.batch_book
        )
        change.catalog_changed = True
        asked = body.model_dump(mode="json", exclude={"id"}, exclude_defaults=True)
        await change.audit("price_book.created", f"price_book:{body.id}", **{"parent": None, **asked})
        return PriceBook.of(row)

    return await request.change(effect)


@router.patch("/price_books/{book}", response_model=PriceBook, include_in_schema=False)
@router.post("/price_books/{book}", response_model=PriceBook)
async def update_price_book(book: Slug, body: BookChanges, request: Operator) -> Response:
    """Name the book that calls of a batch are priced by from now on, or none; all else of a book stays as it is."""

    async def effect(change: Change) -> PriceBook:
        row = await price_books.set_batch_book(change.connection, book, body.batch_book)
        if row is None:
            raise NotFound("There is no such price book. List them to find its name.")
        change.catalog_changed = True
        await change.audit("price_book.updated", f"price_book:{book}", batch_book=body.batch_book)
        return PriceBook.of(row)

    return await request.change(effect)


@router.get("/price_books")
async def list_price_books(asked: Annotated[AskedBooks, Query()], request: Operator) -> ListOf[PriceBook]:
    """All price books, by name."""
    async with request.reading() as connection:
        rows, more = await price_books.list_books(connection, Page(asked.after, asked.limit))
    return list_of([PriceBook.of(row) for row in rows], more)


@router.post("/allowances", response_model=Allowance)
async def create_allowance(body: NewAllowance, request: Operator) -> Response:
    """Give the organizations of a price book an allowance from this month on; a worker grants it within a minute."""

    async def effect(change: Change) -> Allowance:
        units = body.amount.units(body.amount.currency, "amount")
        if units == 0:
            raise InvalidRequest("An allowance is above zero. To give none, end the one there is.", param="amount")
        if missing := await missing_models(change.connection, body.models or []):
            raise InvalidRequest(f"There is no model {missing[0]!r}. Create it, or leave it out.", param="models")
        row = await allowances.create_allowance(
            change.connection,
            book=body.book,
            currency=body.amount.currency,
            amount=units,
            models=body.models,
            created_by=change.actor,
            now=change.now,
        )
        asked = body.model_dump(mode="json", exclude_unset=True)
        await change.audit("allowance.created", f"allowance:{row.id}", **asked)
        return Allowance.of(row)

    return await request.change(effect)


@router.get("/allowances")
async def list_allowances(asked: Annotated[AskedAllowances, Query()], request: Operator) -> ListOf[Allowance]:
    """Monthly allowances, oldest first, with those that were ended."""
    async with request.reading() as connection:
        rows, more = await allowances.list_allowances(connection, asked.book, asked.page())
    return list_of([Allowance.of(row) for row in rows], more)


@router.post("/allowances/{allowance_id}/end", response_model=Allowance)
async def end_allowance(allowance_id: UUID, request: Operator) -> Response:
    """Grant an allowance no more; what was granted for this month stays."""

    async def effect(change: Change) -> Allowance:
        row = await allowances.end_allowance(change.connection, allowance_id, change.now)
        if row is None:
            raise NotFound("There is no such allowance. List them to find its id.")
        await change.audit("allowance.ended", f"allowance:{allowance_id}")
        return Allowance.of(row)

    return await request.change(effect)
