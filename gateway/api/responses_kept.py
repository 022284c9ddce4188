"""Responses that were asked to be kept (`store: true`): read again, forgotten, and what went into them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from billing.store import responses as stored
from billing.store.pages import AnyRow
from gateway.auth import require_api_key
from gateway.memory import NO_RESPONSE, response_uuid
from gateway.parts import Parts, parts_of
from gateway.peers import check_kept
from models.account import Principal
from models.call import Endpoint
from models.errors import InvalidRequest, NotFound

router = APIRouter(prefix="/v1/responses", tags=["Responses"])

Caller = Annotated[Principal, Depends(require_api_key)]
TheParts = Annotated[Parts, Depends(parts_of)]


class DeletedResponse(BaseModel):
    """What is left of a response."""

    id: str
    object: Literal["response.deleted"] = "response.deleted"
    deleted: Literal[True] = True


class AskedItems(BaseModel):
    """A page of items, newest first unless asked otherwise."""

    after: Annotated[str, Field(max_length=128)] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    include: Annotated[list[str], Field(max_length=10)] = Field(default_factory=list, alias="include[]")


@router.get("/{response_id}", summary="Read a stored response")
async def get_response(response_id: str, caller: Caller, parts: TheParts, stream: bool = False) -> dict[str, Any]:
    """A response that was made with `store: true` by a key of this project within the last thirty days."""
    if stream:
        raise InvalidRequest("A stored response is not streamed again. Leave stream out.", param="stream")
    row = await _found(response_id, caller, parts)
    response: dict[str, Any] = row.response
    return response


@router.delete("/{response_id}", summary="Forget a stored response")
async def delete_response(response_id: str, caller: Caller, parts: TheParts) -> DeletedResponse:
    """It cannot be read or gone on from any more; its receipt stays."""
    row = await _found(response_id, caller, parts)
    async with parts.engine.begin() as connection:
        await stored.delete_response(connection, caller.project_id, row.id)
    return DeletedResponse(id=response_id)


@router.post("/{response_id}/cancel", summary="Cancel a response that runs in the background")
async def cancel_response(response_id: str, caller: Caller, parts: TheParts) -> dict[str, Any]:
    """Refused: no response runs in the background. To stop one, close its connection."""
    await _found(response_id, caller, parts)
    raise InvalidRequest("Only a response that runs in the background can be cancelled, and this one has ended.")


@router.get("/{response_id}/input_items", summary="List what a stored response answers")
async def list_input_items(
    response_id: str, caller: Caller, parts: TheParts, asked: Annotated[AskedItems, Query()]
) -> dict[str, Any]:
    """The items of the conversation before the response's own output."""
    row = await _found(response_id, caller, parts)
    items = [_item(item, f"in_{row.id.hex}_{place}") for place, item in enumerate(row.input)]
    if asked.order == "desc":
        items.reverse()
    if asked.after is not None:
        places = [place for place, item in enumerate(items) if item["id"] == asked.after]
        if not places:
            raise InvalidRequest("There is no item of this id. Pass the last_id of a page.", param="after")
        items = items[places[0] + 1 :]
    page = items[: asked.limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(items) > len(page),
    }


async def _found(response_id: str, caller: Principal, parts: Parts) -> AnyRow:
    if caller.scope is not None:
        check_kept(caller.scope, Endpoint.RESPONSES)
    known = response_uuid(response_id)
    row = None
    if known is not None:
        async with parts.engine.connect() as connection:
            row = await stored.find_response(connection, caller.project_id, known, parts.clock.now())
    if row is None:
        raise NotFound(NO_RESPONSE)
    return row


def _item(item: dict[str, Any], item_id: str) -> dict[str, Any]:
    """An item as the API lists it: with its type, its content in parts, and an id of ours.

    A client's own may be there twice, and then no page would come after it.
    """
    shown = {"type": "message", **item, "id": item_id}
    if shown["type"] == "message":
        kind = "output_text" if shown.get("role") == "assistant" else "input_text"
        content = shown.get("content")
        if isinstance(content, str):
            shown["content"] = [{"type": kind, "text": content}]
        shown.setdefault("status", "completed")
    return shown
