"""The lock file: everything that is asked for, with hashes, from nowhere in particular."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PINS = re.findall(
    r"^([a-z0-9._-]+)(?:\[[a-z,]+\])?==[^\n]*\\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", LOCK, re.M
)


def test_every_requirement_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(one for group in project["optional-dependencies"].values() for one in group)]
    names = {re.split(r"[\[<>=!~ ]", one)[0].lower().replace("_", "-") for one in asked}
    assert names <= {name for name, _ in PINS}


def test_every_line_is_a_pin_with_hashes() -> None:
    assert LOCK.count("==") >= len(PINS)
    assert len(PINS) == len(re.findall(r"^[a-z]", LOCK, re.M))


def test_lock_names_no_index_and_no_path() -> None:
    assert not re.search(r"https?:|file:|^-|@ |/", LOCK, re.M)
