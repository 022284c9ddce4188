"""The text of the code: every file says what it is for, and no money is ever a float."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("models", "billing", "gateway", "migrations", "tests", "benchmarks")
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
MONEY = [path for room in ("models", "billing") for path in sorted((ROOT / room).rglob("*.py"))]
ARITHMETIC = (
    *("models/money.py", "billing/pricing.py", "billing/schemes.py", "billing/rounding.py", "billing/booking.py"),
    *("billing/invoicing.py", "billing/tax.py"),
)
SECONDS = ("_seconds", "timeout", "seconds")
"""Endings of names that measure time, which may be a float: time is not money."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_file_opens_with_one_sentence(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring, "say in one sentence what this file is for"
    sentence = docstring.split("\n\n")[0]
    assert sentence.rstrip().endswith((".", ":", "?")), f"not a sentence: {sentence!r}"


@pytest.mark.parametrize("path", MONEY, ids=name_of)
def test_no_float_where_money_is(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    timed = {id(inner) for node in timings(tree) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in timed:
            continue
        is_type = isinstance(node, ast.Name) and node.id == "float"
        assert not is_type, f"{name_of(path)}:{getattr(node, 'lineno', 0)} uses float"


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_never_divides_into_a_float(name: str) -> None:
    for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
        where = f"{name}:{getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.Div), f"{name} divides with /; use // or divide_half_even"
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), f"{where} is a float"


def timings(tree: ast.AST) -> Iterator[ast.AST]:
    """Annotations and values of names that say they are seconds."""
    for node in ast.walk(tree):
        match node:
            case ast.arg(arg=name, annotation=annotation) if annotation and name.lower().endswith(SECONDS):
                yield annotation
            case ast.AnnAssign(target=ast.Name(id=name) | ast.Attribute(attr=name)) if name.lower().endswith(SECONDS):
                yield node
            case ast.FunctionDef(name=name, returns=returns) if returns and name.endswith(SECONDS):
                yield returns
