"""The commands' side of the operator's API: requests that end in an answer or a sentence, and how answers are shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeAlias
from uuid import uuid4

import httpx
import typer
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table

from gateway.cli.addresses import DATA_DIRECTORY, FAILED, STRANGE_KEY, USAGE, end, find_operated

Url: TypeAlias = Annotated[str | None, typer.Option(help="Address of the gateway; else TOLLGATE_URL.")]
Key: TypeAlias = Annotated[str | None, typer.Option("--operator-key", help="Better in TOLLGATE_OPERATOR_KEY.")]
DataDirectory: TypeAlias = Annotated[Path, typer.Option(help="Data directory of `tollgate up`.")]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]

Answer: TypeAlias = dict[str, Any]

_TIMEOUT: Final = httpx.Timeout(30)
_PAGE: Final = 100
_ENDLESS: Final = 10_000
_USAGE_STATUSES: Final = frozenset({400, 404, 422})


@dataclass(frozen=True, slots=True)
class OperatorClient:
    """A connection to one gateway with an operator key. Whatever fails ends the program with a sentence."""

    http: httpx.Client
    as_json: bool

    def get(self, path: str, **query: str | None) -> Answer:
        """The answer of a GET below /operator/v1."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._answered("GET", path, params=given)

    def post(self, path: str, body: Mapping[str, Any] | None = None, *, nulls: bool = False) -> Answer:
        """The answer of a POST; fields that are None are left out, but with `nulls`.

        It carries an Idempotency-Key, so that it can be sent again when the answer was lost on its way.
        """
        # A body without a field is still one: only a route that takes none gets none.
        given = None if body is None else {name: value for name, value in body.items() if nulls or value is not None}
        return self._answered("POST", path, json=given, headers={"idempotency-key": str(uuid4())})

    def file(self, path: str, **query: str | None) -> httpx.Response:
        """The answer of a GET below /operator/v1 that is a file, with its headers."""
        given = {name: value for name, value in query.items() if value is not None}
        response = self._sent("GET", path, params=given)
        if not response.is_success:
            self._refused(response)
        return response

    def send(self, path: str, content: bytes, media_type: str, **query: str | None) -> Answer:
        """The answer of a POST of a file; it carries an Idempotency-Key, as `post` does."""
        given = {name: value for name, value in query.items() if value is not None}
        headers = {"content-type": media_type, "idempotency-key": str(uuid4())}
        return self._answered("POST", path, params=given, content=content, headers=headers)

    def all_of(self, path: str, **query: str | None) -> list[Answer]:
        """Every object of a list, page by page."""
        objects: list[Answer] = []
        after: str | None = None
        while True:
            page = self.get(path, limit=str(_PAGE), after=after, **query)
            objects += page["data"]
            if not page["has_more"]:
                return objects
            after = page["last_id"]

    def show(self, answer: Answer | list[Answer], columns: Sequence[str]) -> None:
        """Print objects: as JSON for programs, else the named columns as a table; a single one line by line."""
        if self.as_json:
            typer.echo(json.dumps(answer, indent=2))
        elif isinstance(answer, list):
            _print_table([[_text(each, column) for column in columns] for each in answer], columns)
        else:
            _print_table([[column, _text(answer, column)] for column in columns], None)

    def _answered(self, method: str, path: str, **request: Any) -> Answer:
        response = self._sent(method, path, **request)
        return self._parsed(response) if response.is_success else self._refused(response)

    def _parsed(self, response: httpx.Response) -> Answer:
        try:
            answer: Answer = response.json()
        except ValueError:
            end(f"What answers at {self.http.base_url} is no Tollgate. Check --url.", FAILED)
        return answer

    def _refused(self, response: httpx.Response) -> NoReturn:
        answer = self._parsed(response)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            end(f"The gateway at {self._address()} {STRANGE_KEY}", FAILED)
        try:
            message, param = answer["error"]["message"], answer["error"]["param"]
        except (KeyError, TypeError):
            message, param = "it gave no reason", None
        about = f" ({param})" if param else ""
        # What the gateway says of a field begins with its name.
        end(
            f"Refused{about}: {message.removeprefix(f'{param}: ')}",
            USAGE if response.status_code in _USAGE_STATUSES else FAILED,
        )

    def _sent(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            try:
                return self.http.request(method, path, **request)
            except httpx.ReadError:
                # A connection that broke midway: repeating is safe, see `post`.
                return self.http.request(method, path, **request)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            end(f"The gateway at {self._address()} does not answer ({type(error).__name__}). Is it running?", FAILED)

    def _address(self) -> str:
        return str(self.http.base_url).removesuffix("/operator/v1/")


@contextmanager
def operator_client(
    data_dir: Path = DATA_DIRECTORY, url: str | None = None, operator_key: str | None = None, as_json: bool = False
) -> Iterator[OperatorClient]:
    """A client of the gateway that the options, the environment or `up.json` name."""
    operated = find_operated(data_dir, url, operator_key)
    headers = {"authorization": f"Bearer {operated.operator_key}"}
    try:
        http = httpx.Client(base_url=f"{operated.url}/operator/v1", headers=headers, timeout=_TIMEOUT)
    except (httpx.InvalidURL, ValueError):
        end("The address or the operator key is not valid: check --url and TOLLGATE_OPERATOR_KEY.", USAGE)
    with http:
        yield OperatorClient(http, as_json)


def _text(answer: Answer, column: str) -> str:
    value = answer.get(column)
    match value:
        case None:
            return ""
        case {"amount": amount, "currency": currency}:
            return f"{amount} {currency}"
        case {"healthy": healthy, "reason": reason}:
            return "healthy" if healthy else f"failing: {reason}"
        case dict():
            return ", ".join(f"{name} {each}" for name, each in value.items() if each is not None)
        case list():
            return ", ".join(_entry(each) for each in value)
        case _:
            return str(value)


def _entry(value: Any) -> str:
    match value:
        case {"backend": backend, "backend_model": name, "weight": weight, **more}:
            return " ".join(
                (
                    f"{backend}={name}",
                    *((f"×{weight}",) if weight != 1 else ()),
                    *(f"{key} {told}" for key, told in more.items() if told),
                )
            )
        case {"model": name, "weight": weight}:
            return f"{name} ×{weight}"
        case {"up_to": end, "price_per_million": per_million, "price_each": each}:
            return f"{'more' if end is None else end}={per_million or each}"
        case _:
            return str(value)


def _print_table(rows: Sequence[Sequence[str]], columns: Sequence[str] | None) -> None:
    # Written into a file or a pipe nothing is cut: ids are there to be copied.
    console = Console(width=None if sys.stdout.isatty() else 400, highlight=False)
    if not rows:
        console.print("Nothing there yet.")
    elif columns is None:
        console.print(_table(rows))
    else:
        console.print(_fitted(rows, [column.replace("_", " ") for column in columns], console))


def _fitted(rows: Sequence[Sequence[str]], heads: Sequence[str], console: Console) -> RenderableType:
    """A table that leaves ids and moments whole: without its empty columns if need be, else each object by itself."""
    whole = _table(rows, heads)
    if console.measure(whole, options=console.options.update_width(_ENDLESS)).maximum <= console.width:
        return whole
    told = [at for at, _ in enumerate(heads) if any(row[at] for row in rows)]
    narrow = _table([[row[at] for at in told] for row in rows], [heads[at].replace(" ", "\n") for at in told])
    if console.measure(narrow, options=console.options.update_width(_ENDLESS)).minimum <= console.width:
        return narrow
    return Group(*(Padding(_table([[heads[at], row[at]] for at in told if row[at]]), (0, 0, 1, 0)) for row in rows))


def _table(rows: Sequence[Sequence[str]], heads: Sequence[str] | None = None) -> Table:
    table = Table(box=None, show_header=heads is not None, pad_edge=False, header_style="bold")
    for at, head in enumerate(heads or ("", "")):
        is_whole = heads is not None and not any(" " in row[at] for row in rows)
        table.add_column(head, overflow="fold", no_wrap=is_whole)
    for row in rows:
        table.add_row(*(each.replace("[", "\\[") for each in row))
    return table
