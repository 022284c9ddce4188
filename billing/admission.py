"""Admission: the most a call can cost, and the limits it must pass. Pure arithmetic; the hot store decides."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from billing.months import month_of
from billing.pricing import ceiling
from billing.schemes import AUDIO_METERS, IMAGE_METERS
from models.account import NO_LIMITS, Principal
from models.call import CallOrigin, CallRequest, HoldRequest, InFlightLimit, MonthlyLimit, RateBucket
from models.catalog import Model, Rates
from models.errors import InvalidRequest, NotPermitted

TEMPLATE_ALLOWANCE_TOKENS = 512
"""What a chat template may add to the text of a request (system preamble, tool instructions). Measured: 12 text tokens
became 21, one small tool raised a prompt from 21 to 195; the bytes of the JSON around the text cover the rest."""

MINUTES_OF_A_DAY = 1_440
AUDIO_INPUT_TOKENS_PER_SECOND = 64
AUDIO_OUTPUT_TOKENS_PER_SECOND = 32
"""Engines encode a second of sound as at most 50 tokens (Whisper: 1,500 positions for 30 s) and write at most 448 for
30 s of it. A long sound is cut into windows, so the model's context bounds neither."""
IMAGE_TOKENS = 8_192
"""Where an image is told in tokens: 6,208 for the largest of the OpenAI API."""


def permit(principal: Principal, model: str) -> None:
    """Raise `NotPermitted` unless the key may call this model."""
    if not principal.may_call(model):
        raise NotPermitted(f"This key may not call the model {model!r}. Ask the owner of the organization.")


def permit_endpoint(request: CallRequest, rates: Rates) -> None:
    """Raise `InvalidRequest` where the model is sold by the image or the second, and the call would have none of these.

    Such a model has no price for tokens: a chat with it would cost nothing, which nobody has decided.
    """
    if rates.input or rates.output:
        return
    if not is_sold_for(rates, images=bool(request.images_bound), sounds=bool(request.audio_seconds_bound)):
        raise InvalidRequest(
            "This model is not sold for this endpoint. GET /v1/models lists what is sold to you.",
            param="model",
            code="unsupported_endpoint",
        )


def is_sold_for(rates: Rates, *, images: bool, sounds: bool) -> bool:
    """Whether a call is priced at these rates, which makes images, or hears sounds, or neither.

    Where nothing at all has a price, the model is given away, and is for everything.
    """
    stepped = {meter for tariff in rates.steps.tariffs for meter in tariff.meters} if rates.steps else set()
    if rates.input or rates.output or rates.request or stepped - IMAGE_METERS - AUDIO_METERS:
        return True
    if rates.steps and rates.steps.minimum:
        return True
    sells_images = bool(rates.image or stepped & IMAGE_METERS)
    sells_sounds = bool(rates.audio_second or stepped & AUDIO_METERS)
    return (images and sells_images) or (sounds and sells_sounds) or not (sells_images or sells_sounds)


def bounds(request: CallRequest, model: Model) -> tuple[int, int]:
    """Most input and output tokens of a call, in all its prompts and choices.

    No prompt and no answer is longer than the model's context; text is never more tokens than UTF-8 bytes.
    """
    text = request.input_bound
    if request.audio_seconds_bound and request.endpoint.hears:
        seconds = request.audio_seconds_bound
        heard = seconds * AUDIO_INPUT_TOKENS_PER_SECOND + (text or 0) + TEMPLATE_ALLOWANCE_TOKENS
        return heard, seconds * AUDIO_OUTPUT_TOKENS_PER_SECOND + TEMPLATE_ALLOWANCE_TOKENS
    context = model.context_length * request.prompts
    input_bound = context if text is None else min(context, text + TEMPLATE_ALLOWANCE_TOKENS * request.prompts)
    if not request.endpoint.generates:
        return input_bound, request.images_bound * IMAGE_TOKENS
    per_choice = min(request.max_output_tokens or model.context_length, model.context_length)
    return input_bound, per_choice * request.choices


def hold_request(
    request: CallRequest, origin: CallOrigin, principal: Principal, model: Model, rates: Rates
) -> HoldRequest:
    """The hold that covers the highest possible price of a call, with the limits of key, project, organization."""
    permit_endpoint(request, rates)
    input_bound, output_bound = bounds(request, model)
    buckets, in_flight = _limits(principal, origin.model, input_bound + output_bound)
    images, audio_seconds = request.images_bound, request.audio_seconds_bound
    amount = ceiling(input_bound, output_bound, rates, images, audio_seconds)
    spend = _spend(principal, origin) if principal.spend_limits else ()
    return HoldRequest(
        origin, amount, rates, input_bound, output_bound, buckets, in_flight, spend, images, audio_seconds
    )


def _limits(principal: Principal, model: str, tokens: int) -> tuple[tuple[RateBucket, ...], tuple[InFlightLimit, ...]]:
    buckets, in_flight = [], []
    of_model = principal.model_limits.get(model)
    if of_model is not None:
        scope = f"project:{principal.project_id}:{model}"
        if of_model.requests_per_minute is not None:
            buckets.append(RateBucket(f"{scope}:requests", of_model.requests_per_minute, 1))
        if of_model.tokens_per_minute is not None:
            buckets.append(RateBucket(f"{scope}:tokens", of_model.tokens_per_minute, tokens))
        if of_model.requests_per_day is not None:
            buckets.append(RateBucket(f"{scope}:requests_a_day", of_model.requests_per_day, 1, MINUTES_OF_A_DAY))
    for kind, owner, limits in (
        ("key", principal.counted_as or principal.api_key_id, principal.key_limits),
        ("project", principal.project_id, principal.project_limits),
        ("organization", None, principal.organization_limits),
    ):
        if limits is NO_LIMITS:
            continue
        scope = kind if owner is None else f"{kind}:{owner}"
        if limits.requests_per_minute is not None:
            buckets.append(RateBucket(f"{scope}:requests", limits.requests_per_minute, 1))
        if limits.tokens_per_minute is not None:
            buckets.append(RateBucket(f"{scope}:tokens", limits.tokens_per_minute, tokens))
        if limits.max_in_flight is not None:
            in_flight.append(InFlightLimit(scope, limits.max_in_flight))
    return tuple(buckets), tuple(in_flight)


def _spend(principal: Principal, origin: CallOrigin) -> tuple[MonthlyLimit, ...]:
    month = spend_month(origin.created_at, principal.timezone)
    return tuple(MonthlyLimit(f"{limit.scope}:{month}", limit.amount) for limit in principal.spend_limits)


def spend_month(moment: datetime, timezone: str) -> str:
    """The month in whose spending a call counts, as YYYY-MM: the one in which it is admitted."""
    return month_of(moment, timezone).strftime("%Y-%m")


def tightened(hold: HoldRequest, prompt_tokens: int, prompts: int) -> HoldRequest | None:
    """The hold with the prompt counted instead of bounded by its bytes, or None where that is no less.

    For when money is short: a byte is at most a token, but a token is four bytes of English.
    """
    input_bound = prompt_tokens + TEMPLATE_ALLOWANCE_TOKENS * prompts
    if input_bound >= hold.input_bound:
        return None
    saved = hold.input_bound - input_bound
    return replace(
        hold,
        input_bound=input_bound,
        amount=ceiling(input_bound, hold.output_bound, hold.rates, hold.images_bound, hold.audio_seconds_bound),
        buckets=tuple(
            replace(bucket, cost=bucket.cost - saved) if bucket.scope.endswith(":tokens") else bucket
            for bucket in hold.buckets
        ),
    )
