"""Integer division with a stated rounding: the only roundings money ever meets."""

from __future__ import annotations

from collections.abc import Sequence


def divide_half_even(numerator: int, denominator: int) -> int:
    """`numerator / denominator` rounded to the nearest integer, ties to the even one; exact for any size."""
    quotient, remainder = divmod(numerator, denominator)
    twice = 2 * remainder
    if twice > denominator or (twice == denominator and quotient % 2):
        return quotient + 1
    return quotient


def divide_up(numerator: int, denominator: int) -> int:
    """`numerator / denominator` rounded towards plus infinity: the rounding of holds."""
    return -(-numerator // denominator)


def round_to_sum(numerators: Sequence[int], denominator: int, total: int) -> list[int]:
    """Integers close to each `numerator / denominator` that add up to `total`, by largest remainder.

    What is zero stays zero where anything is not. Raises `ValueError` where there is nothing to share the total among.
    """
    floors = [numerator // denominator for numerator in numerators]
    sharing = [place for place, numerator in enumerate(numerators) if numerator] or list(range(len(numerators)))
    missing = total - sum(floors)
    if not sharing:
        if missing:
            raise ValueError(f"{total} cannot be shared among nothing")
        return floors
    each, more = divmod(missing, len(sharing))
    # Sorting is stable, so that among equals the first gets it: the same invoice however often it is made.
    by_remainder = sorted(sharing, key=lambda place: -(numerators[place] % denominator))
    for rank, place in enumerate(by_remainder):
        floors[place] += each + (rank < more)
    return floors
