"""All kinds of export, by the names that the command line and the API have for them."""

from __future__ import annotations

from typing import Final

from billing.exports.charges import CHARGES
from billing.exports.frame import Kind

KINDS: Final[dict[str, Kind]] = {kind.name: kind for kind in (CHARGES,)}
