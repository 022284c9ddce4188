"""Every setting of Tollgate: one frozen class, read once from the environment. No secret has a default."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from billing.providers import PROVIDERS
from models.errors import InvalidAmount
from models.money import parse_amount

SHORTEST_WEBHOOK_SECRET = 16
"""A secret that can be guessed is as good as none: whoever has it makes money."""

Seconds = Annotated[float, Field(gt=0, le=86_400)]


def _totals(value: dict[str, str]) -> dict[str, str]:
    for code, amount in value.items():
        try:
            parse_amount(amount, code)
        except InvalidAmount as error:
            raise ValueError(error.message) from None
    return value


Totals = Annotated[dict[str, str], AfterValidator(_totals)]


class Settings(BaseSettings):
    """Settings of the gateway, the worker and the command line. Each field is `TOLLGATE_` and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix="TOLLGATE_", frozen=True, extra="ignore")

    database_url: SecretStr = Field(description="Postgres of the program's own, non-superuser role")
    redis_url: SecretStr = Field(description="Redis or Valkey 6.2 or later; redis:// or unix://")
    key_pepper: SecretStr = Field(min_length=32, description="Secret under which API keys are hashed")
    owner_database_url: SecretStr | None = Field(None, description="Postgres of the tables' owner; for `migrate`")

    host: str = Field("127.0.0.1", description="Address of the public port")
    port: int = Field(8080, ge=0, le=65_535, description="Public port")
    internal_host: str = Field("127.0.0.1", description="Address of the internal port")
    internal_port: int = Field(9090, ge=0, le=65_535, description="Port of /metrics and the probes")
    worker_internal_port: int = Field(9091, ge=0, le=65_535, description="Port of a worker's /metrics")
    cors_origins: tuple[str, ...] = Field(
        (), description='Web pages that may call, as JSON: ["https://app.example"]; empty: none'
    )
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        (), description="Networks of proxies whose X-Forwarded-For is believed, separated by commas"
    )
    docs_enabled: bool = Field(False, description="Serve /docs and /openapi.json on the public port")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="debug, info, warning or error")
    clock: datetime | None = Field(None, description="Start of the billing clock, for rehearsing months under `up`")

    payment_webhook_secrets: Annotated[dict[str, SecretStr], NoDecode] = Field(
        default_factory=dict, description='Secret of each payment provider, as JSON: {"stripe": "whsec_..."}'
    )
    payment_webhook_tolerance_seconds: int = Field(
        300, ge=1, le=3_600, description="How far the time of a payment webhook may be from now"
    )

    media_hosts: frozenset[str] = Field(
        frozenset(),
        description='Hosts from which backends may fetch pictures of a conversation by https, as JSON: ["img.example"];'
        " empty: only data: URLs are taken",
    )
    max_body_bytes: int = Field(20 * 1024 * 1024, gt=0, description="Largest request body")
    max_connections: int = Field(4_096, gt=0, description="Open client connections per process")
    max_running_calls: int = Field(1_024, gt=0, description="Calls that a process runs at backends at a time")
    max_waiting_calls: int = Field(1_024, ge=0, description="Calls that wait for a backend, per process")
    max_waiting_per_backend: int | None = Field(
        None, ge=0, description="Calls that wait for one backend; none: as many as its max_in_flight"
    )
    wait_seconds: Seconds = Field(2, description="Longest wait for a backend before a call is refused")
    turn_tokens: int = Field(
        8_192, gt=0, description="Tokens that an organization is served before it is the next one's turn"
    )
    retry_share: float = Field(
        0.1, ge=0, le=1, description="Retries per call within ten seconds; three are always allowed"
    )
    body_timeout_seconds: Seconds = Field(30, description="Time in which a request body must arrive")
    hold_timeout_seconds: Seconds = Field(1.5, description="Time in which Redis must take a hold")
    connect_timeout_seconds: Seconds = Field(2, description="Time to connect to a backend")
    first_byte_timeout_seconds: Seconds = Field(60, description="Time to a backend's first byte")
    keep_alive_seconds: Seconds = Field(
        15, description="Silence of a backend after which a stream gets a comment, so that nobody between cuts it"
    )
    idle_timeout_seconds: Seconds = Field(30, description="Longest silence inside a backend's stream")
    total_timeout_seconds: Seconds = Field(1_800, description="Longest call")
    write_timeout_seconds: Seconds = Field(30, description="Longest time a client may stop reading its stream")
    drain_seconds: Seconds = Field(300, description="Time that open streams have to end after SIGTERM")
    key_cache_seconds: Seconds = Field(3, le=5, description="Time for which a key is not looked up again")
    catalog_refresh_seconds: Seconds = Field(1, description="Time between looks for a changed catalog")
    health_check_seconds: float = Field(
        5, ge=0, le=3_600, description="Time between two health checks of each backend; 0: no checks"
    )
    audit_share: float = Field(0.01, ge=0, le=1, description="Share of calls whose output we count ourselves, too")
    journal_dir: Path | None = Field(
        None,
        description="Directory of the journal, on a disk that lasts; without one give Redis `appendfsync always`",
    )
    max_file_bytes: int = Field(100 * 1024 * 1024, gt=0, description="Largest file that is uploaded")
    max_organization_file_bytes: int = Field(
        10 * 1024 * 1024 * 1024, gt=0, description="What the files of one organization may be together"
    )
    upload_timeout_seconds: Seconds = Field(600, description="Time in which an uploaded file must arrive")
    batch_calls: int = Field(16, ge=0, description="Lines of batches that a process runs at a time; 0: none")
    batch_share: float = Field(0.5, gt=0, le=1, description="Share of a backend's max_in_flight that batches may take")
    batch_lease_seconds: int = Field(
        60, ge=1, le=3_600, description="Silence of a gateway after which another runs its lines of batches"
    )
    invoice_grace_hours: int = Field(
        24, ge=0, le=744, description="How long after a month's end its late calls are waited for"
    )
    invoice_safety_total: Totals = Field(
        {}, description="Total by currency, as JSON, above which a person must look before an invoice is issued"
    )

    @property
    def invoice_grace(self) -> timedelta:
        """How long after a month's end its late calls are waited for."""
        return timedelta(hours=self.invoice_grace_hours)

    @property
    def invoice_safety_units(self) -> dict[str, int]:
        """The totals above which a person must look, in ledger units by currency."""
        return {code: parse_amount(amount, code) for code, amount in self.invoice_safety_total.items()}

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _read_networks(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return tuple(ip_network(text.strip()) for text in value.split(",") if text.strip())
        except ValueError as error:
            raise ValueError(f"it is not a list of networks such as 10.0.0.0/8,192.168.1.7: {error}") from None

    @field_validator("media_hosts")
    @classmethod
    def _refuse_unusable_hosts(cls, hosts: frozenset[str]) -> frozenset[str]:
        for host in hosts:
            if not re.fullmatch(r"(?=.*[a-z])[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", host) or "." not in host:
                raise ValueError(
                    f"{host!r} is not a host name such as img.example, in small letters and without a port"
                )
        return hosts

    @field_validator("payment_webhook_secrets", mode="before")
    @classmethod
    def _read_secrets(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("it is not a JSON object") from None

    @field_validator("payment_webhook_secrets")
    @classmethod
    def _refuse_guessable(cls, secrets: dict[str, SecretStr]) -> dict[str, SecretStr]:
        stripped = {provider: secret.get_secret_value().strip() for provider, secret in secrets.items()}
        for provider, secret in stripped.items():
            if provider not in PROVIDERS:
                raise ValueError(f"a provider is one of {', '.join(PROVIDERS)}")
            if len(secret) < SHORTEST_WEBHOOK_SECRET:
                raise ValueError(
                    f"the secret of {provider} is empty or shorter than {SHORTEST_WEBHOOK_SECRET} characters; take it"
                    " from the provider, or leave the provider out"
                )
        return {provider: SecretStr(secret) for provider, secret in stripped.items()}
