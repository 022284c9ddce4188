"""Payment providers, a file each: what they tell, put into the form that is the same for all. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from billing.providers.stripe import read_stripe
from models.payment import PaymentEvent

PROVIDERS: Final[Mapping[str, Callable[[bytes], PaymentEvent | None]]] = {"stripe": read_stripe}
"""By the name in a webhook's path: reads the body of one event, None where it tells of nothing that is booked.

It raises `InvalidRequest` for a body that is no event of the provider.
"""
