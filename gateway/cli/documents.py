"""The command `invoice pdf`: a document as a file, checked on arrival."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from gateway.cli.addresses import DATA_DIRECTORY, FAILED, end
from gateway.cli.operator_client import AsJson, DataDirectory, Key, Url, operator_client


def write_pdf(
    invoice_id: Annotated[UUID, typer.Argument(metavar="ID", help="Id of the invoice or credit note.")],
    output: Annotated[Path, typer.Option(help="File to write.")],
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Write an invoice or a credit note as PDF.

    Example: `tollgate invoice pdf 019e2f0a-7c31-7a52-9d6b-0f2f4c1b8e11 --output INV-000042.pdf`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        file = client.file(f"/invoices/{invoice_id}.pdf")
        sha256 = hashlib.sha256(file.content).hexdigest()
        if file.headers.get("etag") != f'"{sha256}"':
            end("What arrived is not what was sent; nothing was written. Try again.", FAILED)
        try:
            output.write_bytes(file.content)
        except OSError as error:
            end(f"{output} cannot be written: {error.strerror}.", FAILED)
        first = file.headers.get("x-tollgate-first-sha256")
        client.show(
            {"file": str(output), "bytes": len(file.content), "sha256": sha256, "first_sha256": first or sha256},
            ("file", "bytes", "sha256"),
        )
    if first:
        typer.echo(
            f"These are not the bytes that were first made of it (SHA-256 {first}). Either a newer release sets it"
            " otherwise, or what it says was changed in the database: compare the text with the first file, and run"
            " `tollgate verify`.",
            err=True,
        )
