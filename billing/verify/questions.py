"""What a question to the book is: a claim, and a query that says of every row whether it is wrong."""

from __future__ import annotations

from dataclasses import dataclass

from billing.verify.report import Claim


@dataclass(frozen=True, slots=True)
class Question:
    """A claim with its query. A sliced one is asked of postings from :low to :high, slice by slice."""

    claim: Claim
    query: str
    sliced: bool


def whole(name: str, promise: str, sentence: str, unit: str, query: str) -> Question:
    """A question that is asked once, of the whole book."""
    return Question(Claim(name, promise, sentence, unit), query, sliced=False)


def sliced(name: str, promise: str, sentence: str, unit: str, query: str) -> Question:
    """A question that is asked of one slice of the book after the other."""
    return Question(Claim(name, promise, sentence, unit), query, sliced=True)
