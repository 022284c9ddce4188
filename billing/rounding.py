"""Integer division with a stated rounding: the only roundings money ever meets."""

from __future__ import annotations


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
