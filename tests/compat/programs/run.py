"""Does one case after another of a client's program: a line of JSON says which, a line of JSON says what it told."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import io
import json
import os
import sys
import traceback
from types import ModuleType
from typing import Any

from tests.compat.programs.at import At

TOLD_CHARACTERS = 1_500
"""The end of a traceback: frameworks have deep ones."""


def main(name: str) -> None:
    """Serve `tests.compat.programs.<name>` until the input ends. The answers' pipe is ours alone: libraries print."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        program = importlib.import_module(f"tests.compat.programs.{name}")
        for line in sys.stdin:
            answers.write(json.dumps(_answer(program, json.loads(line))) + "\n")
            answers.flush()


def _answer(program: ModuleType, asked: dict[str, Any]) -> dict[str, Any]:
    try:
        if "code" in asked:
            return {"told": _printed(asked["code"])}
        told = getattr(program, asked.pop("case"))(At(**asked))
        return {"told": asyncio.run(told) if inspect.iscoroutine(told) else told}
    except Exception:
        return {"failed": traceback.format_exc()[-TOLD_CHARACTERS:]}


def _printed(code: str) -> str:
    """What an example of a guide prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "<guide>", "exec"), {"__name__": "__main__"})  # noqa: S102 - a page of our own
    return printed.getvalue()


if __name__ == "__main__":
    main(sys.argv[1])
