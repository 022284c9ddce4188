"""The decorator of the nouns that every call makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def value(cls: type[T]) -> type[T]:
    """A frozen dataclass with slots, held frozen by the type checker instead of at run time.

    A frozen dataclass sets each field by a call of its own, which makes a `Charge` three times as dear to make; a call
    makes a dozen values with ninety fields in all.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)
