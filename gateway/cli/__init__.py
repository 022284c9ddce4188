"""The command line `tollgate`: one file per group of commands, assembled here."""

from __future__ import annotations

import importlib

import typer

ROOMS = ("run", "operate", "finance", "alerts", "report", "audit", "reconcile")
"""Modules of this package with a `register(app)`, in the order in which `--help` lists their commands."""


def make_app() -> typer.Typer:
    """The whole command line. Exit codes: 0, 1 (a check failed), 2 (wrong usage)."""
    app = typer.Typer(
        name="tollgate",
        help="The metering gateway in front of open-source language models.",
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
    )
    for room in ROOMS:
        importlib.import_module(f"gateway.cli.{room}").register(app)
    return app


def main() -> None:
    """Entry point of the `tollgate` script."""
    make_app()()
