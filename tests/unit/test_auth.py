"""Authentication: the parser of credentials, and the key ring's promises under a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing.store.keys import KnownKey
from gateway import auth, key_cache, key_uses
from gateway.auth import KeyRing, credential
from gateway.clock import Clock
from gateway.key_cache import BATCH_LIMIT, STALE_SECONDS, UNKNOWN_SECONDS, WAITING_LIMIT, KeyCache
from gateway.keys import KeyKind, MintedKey, mint
from models.account import OperatorPrincipal, Principal
from models.errors import InvalidRequest, NotAuthenticated, NotPermitted, Unavailable
from models.ids import uuid7

pytestmark = pytest.mark.anyio

PEPPER = b"p" * 32
NOW = datetime(2026, 11, 23, tzinfo=UTC)
CACHE_SECONDS = 3.0


# The parser ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([(b"authorization", b"Bearer k")], id="bearer"),
        pytest.param([(b"Authorization", b"bearer   k ")], id="in any case, with blanks"),
        pytest.param([(b"x-api-key", b"k")], id="x-api-key"),
        pytest.param([(b"X-Api-Key", b"k"), (b"authorization", b"Bearer k")], id="the same key in both"),
        pytest.param([(b"authorization", b"Bearer "), (b"x-api-key", b"k")], id="an empty one does not count"),
        pytest.param([(b"cookie", b"k=other"), (b"x-api-key", b"k")], id="other headers are not looked at"),
    ],
)
def test_a_credential_is_found(headers: list[tuple[bytes, bytes]]) -> None:
    assert credential(headers) == "k"


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([], id="A01 no key"),
        pytest.param([(b"authorization", b"Bearer ")], id="A02 empty bearer"),
        pytest.param([(b"authorization", b"")], id="empty header"),
        pytest.param([(b"x-api-key", b"  ")], id="blank x-api-key"),
        pytest.param([(b"cookie", b"session=1")], id="A13 a cookie is no credential"),
    ],
)
def test_no_credential(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(NotAuthenticated):
        credential(headers)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([(b"authorization", b"Bearer k"), (b"Authorization", b"Bearer k")], id="A08 two headers"),
        pytest.param([(b"authorization", b"Bearer k"), (b"x-api-key", b"other")], id="A08 two keys"),
        pytest.param([(b"x-api-key", b"k"), (b"x-api-key", b"k")], id="x-api-key twice"),
        pytest.param([(b"authorization", b"Basic dTpw"), (b"x-api-key", b"k")], id="another scheme and a key"),
    ],
)
def test_two_credentials(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        credential(headers)
    assert refused.value.status == 400


# The ring ------------------------------------------------------------------------------------------------------------


class Store:
    """Stands for Postgres: counts the queries, can be away, and can be made to wait."""

    def __init__(self) -> None:
        self.keys: dict[bytes, KnownKey[Any]] = {}
        self.queries: list[int] = []
        self.batches: list[frozenset[bytes]] = []
        self.noted: list[dict[tuple[str, bytes], datetime]] = []
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[AsyncConnection]:
        if self.away:
            raise ConnectionRefusedError
        yield cast(AsyncConnection, None)

    begin = connect

    async def note(self, connection: AsyncConnection, keys: Table, uses: Mapping[bytes, datetime]) -> None:
        self.noted.append({(keys.name, digest): moment for digest, moment in uses.items()})

    async def find(
        self, connection: AsyncConnection, digests: Collection[bytes], now: datetime
    ) -> dict[bytes, KnownKey[Any]]:
        self.queries.append(len(digests))
        self.batches.append(frozenset(digests))
        found = {digest: self.keys[digest] for digest in digests if digest in self.keys}
        await self.gate.wait()
        return found

    async def asked(self, queries: int) -> None:
        """Return when so many queries have begun."""
        while len(self.queries) < queries:  # noqa: ASYNC110  # one turn of the loop each, no waiting
            await asyncio.sleep(0)

    def add(self, kind: KeyKind = KeyKind.API, expires_at: datetime | None = None) -> MintedKey:
        minted, some_id = mint(kind, PEPPER), uuid7(NOW)
        principal: object = (
            Principal(some_id, some_id, some_id, 0, "USD", "default")
            if kind is KeyKind.API
            else OperatorPrincipal(some_id, "op")
        )
        self.keys[minted.digest] = KnownKey(minted.digest, principal, expires_at)
        return minted


class Times(Clock):
    """A billing clock and a monotonic clock that move when told."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 1_000.0

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def times() -> Times:
    return Times()


@pytest.fixture
def ring(store: Store, times: Times, monkeypatch: pytest.MonkeyPatch) -> KeyRing:
    for find in ("find_api_keys", "find_admin_keys", "find_operator_keys"):
        monkeypatch.setattr(auth, find, store.find)
    monkeypatch.setattr(key_uses, "note_uses", store.note)
    return KeyRing(cast(AsyncEngine, store), PEPPER, times, CACHE_SECONDS, monotonic=times.monotonic)


async def test_a_known_key_is_looked_up_once_within_the_cache_time(ring: KeyRing, store: Store, times: Times) -> None:
    key = store.add()
    assert ring.cached(key.value) is None
    principal = await ring.principal(key.value)
    times.seconds += CACHE_SECONDS - 0.1
    assert ring.cached(key.value) is principal
    assert await ring.principal(key.value) is principal
    assert store.queries == [1]
    times.seconds += 0.1
    assert ring.cached(key.value) is None


async def test_a_ring_warms_up_and_lets_nobody_in_by_it(ring: KeyRing, store: Store, times: Times) -> None:
    await ring.warm_up()
    assert store.queries == [1]
    store.away = True
    times.seconds += 60
    # A gateway starts all the same.
    await ring.warm_up()
    store.away = False
    times.seconds += 60
    await ring.principal(store.add().value)


async def test_garbage_touches_no_store(ring: KeyRing, store: Store) -> None:
    for value in ("' OR 1=1--", "\0", "é", "%" * 5_000, mint(KeyKind.API, PEPPER).value[:-1] + "?"):
        assert ring.cached(value) is None
        with pytest.raises(NotAuthenticated):
            await ring.principal(value)
    assert store.queries == []


async def test_a_revoked_key_stops_within_five_seconds(ring: KeyRing, store: Store, times: Times) -> None:
    key = store.add()
    await ring.principal(key.value)
    del store.keys[key.digest]
    times.seconds += 5
    assert ring.cached(key.value) is None
    with pytest.raises(NotAuthenticated):
        await ring.principal(key.value)


async def test_the_cache_time_runs_from_the_question_not_from_the_answer(
    ring: KeyRing, store: Store, times: Times
) -> None:
    key = store.add()
    store.gate.clear()
    asked = asyncio.create_task(ring.principal(key.value))
    await store.asked(1)
    del store.keys[key.digest]
    times.seconds += CACHE_SECONDS
    store.gate.set()
    await asked
    assert ring.cached(key.value) is None


async def test_a_forgotten_key_stops_at_once(ring: KeyRing, store: Store) -> None:
    key = store.add()
    await ring.principal(key.value)
    del store.keys[key.digest]
    ring.forget(key.digest)
    assert ring.cached(key.value) is None
    with pytest.raises(NotAuthenticated):
        await ring.principal(key.value)


async def test_a_key_expires_inside_the_cache_time(ring: KeyRing, store: Store, times: Times) -> None:
    key = store.add(expires_at=times.now() + timedelta(seconds=1))
    await ring.principal(key.value)
    times.seconds += 1
    assert ring.cached(key.value) is None
    with pytest.raises(NotAuthenticated):
        await ring.principal(key.value)


async def test_all_refusals_say_the_same(ring: KeyRing, store: Store, times: Times) -> None:
    expired = store.add(expires_at=times.now())
    messages = set()
    for value in ("garbage", mint(KeyKind.API, PEPPER).value, mint(KeyKind.OPERATOR, PEPPER).value, expired.value):
        with pytest.raises(NotAuthenticated) as refused:
            await ring.principal(value)
        messages.add(refused.value.message)
    with pytest.raises(NotAuthenticated) as refused:
        credential([])
    assert messages == {refused.value.message}


async def test_a_known_key_of_another_kind_is_not_permitted(ring: KeyRing, store: Store) -> None:
    developer, operator = store.add(), store.add(KeyKind.OPERATOR)
    for ask in (ring.admin, ring.operator):
        with pytest.raises(NotPermitted):
            await ask(developer.value)
    for demand in (ring.principal, ring.admin, ring.reader):
        with pytest.raises(NotPermitted):
            await demand(operator.value)
    assert isinstance(await ring.reader(developer.value), Principal)


async def test_asking_at_the_same_time_is_one_query(ring: KeyRing, store: Store) -> None:
    key = store.add()
    found = await asyncio.gather(*(ring.principal(key.value) for _ in range(200)))
    assert len(set(map(id, found))) == 1
    assert store.queries == [1]


async def test_one_who_leaves_does_not_take_the_answer_from_the_others(ring: KeyRing, store: Store) -> None:
    key = store.add()
    store.gate.clear()
    leaves, stays = asyncio.create_task(ring.principal(key.value)), asyncio.create_task(ring.principal(key.value))
    await store.asked(1)
    leaves.cancel()
    store.gate.set()
    assert isinstance(await stays, Principal)


async def test_who_asks_just_as_a_look_up_ends_is_answered(store: Store, times: Times) -> None:
    first, second = store.add(), store.add()
    engine = cast(AsyncEngine, store)
    cache = KeyCache(store.find, engine, times, times.monotonic, cache_seconds=CACHE_SECONDS, lookups=1)

    async def follow() -> Any:
        while cache.fresh(first.digest) is None:  # noqa: ASYNC110  # one turn of the loop each, no waiting
            await asyncio.sleep(0)
        return await cache.find(second.digest)

    async with asyncio.timeout(10):
        found = await asyncio.gather(cache.find(first.digest), follow())
    assert found == [store.keys[key.digest].principal for key in (first, second)]


async def test_an_unknown_key_is_remembered_for_a_while(ring: KeyRing, store: Store, times: Times) -> None:
    unknown = mint(KeyKind.API, PEPPER).value
    for _ in range(100):
        with pytest.raises(NotAuthenticated):
            await ring.principal(unknown)
    assert store.queries == [1]
    times.seconds += UNKNOWN_SECONDS
    with pytest.raises(NotAuthenticated):
        await ring.principal(unknown)
    assert store.queries == [1, 1]


async def test_a_flood_of_unknown_keys_is_a_few_queries(ring: KeyRing, store: Store) -> None:
    tenant = store.add()
    flood = [mint(KeyKind.API, PEPPER).value for _ in range(2_000)]
    outcomes = await asyncio.gather(
        *(ring.principal(value) for value in flood), ring.principal(tenant.value), return_exceptions=True
    )
    assert isinstance(outcomes.pop(), Principal)
    assert {type(outcome) for outcome in outcomes} == {NotAuthenticated}
    assert len(store.queries) <= 2 + len(flood) // BATCH_LIMIT + 1


async def test_a_tenant_passes_a_flood_and_too_much_of_it_is_shed(ring: KeyRing, store: Store, times: Times) -> None:
    tenant = store.add()
    await ring.principal(tenant.value)
    times.seconds += CACHE_SECONDS
    store.gate.clear()
    flood = [asyncio.create_task(ring.principal(mint(KeyKind.API, PEPPER).value)) for _ in range(WAITING_LIMIT + 100)]
    await store.asked(3)
    waiting = asyncio.create_task(ring.principal(tenant.value))
    await asyncio.sleep(0)
    begun = len(store.batches)
    store.gate.set()
    assert isinstance(await waiting, Principal)
    assert tenant.digest in store.batches[begun], "known keys go with the next query"
    outcomes = [type(outcome) for outcome in await asyncio.gather(*flood, return_exceptions=True)]
    assert outcomes.count(Unavailable) > 0
    assert outcomes.count(NotAuthenticated) + outcomes.count(Unavailable) == len(flood)


async def test_known_keys_go_on_while_postgres_is_away(ring: KeyRing, store: Store, times: Times) -> None:
    known, unknown = store.add(), store.add()
    await ring.principal(known.value)
    store.away = True
    times.seconds += CACHE_SECONDS
    assert isinstance(await ring.principal(known.value), Principal)
    assert isinstance(ring.cached(known.value), Principal), "not asked again at each call"
    with pytest.raises(Unavailable):
        await ring.principal(unknown.value)
    store.away = False
    times.seconds += CACHE_SECONDS
    assert isinstance(await ring.principal(unknown.value), Principal)


async def test_nothing_is_believed_longer_than_ten_minutes(ring: KeyRing, store: Store, times: Times) -> None:
    key = store.add()
    await ring.principal(key.value)
    store.away = True
    times.seconds += STALE_SECONDS
    with pytest.raises(Unavailable):
        await ring.principal(key.value)
    assert ring.cached(key.value) is None


# When keys were last used --------------------------------------------------------------------------------------------


async def test_the_last_use_of_each_key_is_written_once(ring: KeyRing, store: Store, times: Times) -> None:
    key, operator, unused = store.add(), store.add(KeyKind.OPERATOR), store.add()
    await ring.principal(key.value)
    times.seconds += 2
    assert ring.cached(key.value)
    used_at = times.now()
    await ring.operator(operator.value)
    times.seconds += 40
    assert await ring.uses.write()
    assert store.noted == [{("api_key", key.digest): used_at}, {("operator_key", operator.digest): used_at}]
    assert await ring.uses.write()
    assert len(store.noted) == 2, "nothing new"
    assert all(unused.digest != digest for noted in store.noted for _, digest in noted)


async def test_who_is_not_let_in_has_not_used_a_key(ring: KeyRing, store: Store, times: Times) -> None:
    expiring, revoked = store.add(expires_at=times.now() + timedelta(seconds=1)), store.add()
    await ring.principal(expiring.value)
    await ring.principal(revoked.value)
    last = times.now()
    del store.keys[revoked.digest]
    times.seconds += CACHE_SECONDS
    for value in (expiring.value, revoked.value, mint(KeyKind.API, PEPPER).value):
        with pytest.raises(NotAuthenticated):
            await ring.principal(value)
    await ring.uses.write()
    assert store.noted == [{("api_key", expiring.digest): last, ("api_key", revoked.digest): last}]


async def test_uses_are_kept_while_postgres_is_away(ring: KeyRing, store: Store, times: Times) -> None:
    early, late = store.add(), store.add()
    for key in (early, late):
        await ring.principal(key.value)
    first = times.now()
    store.away = True
    assert not await ring.uses.write()
    times.seconds += 1
    assert ring.cached(late.value)
    second = times.now()
    assert not await ring.uses.write()
    store.away = False
    assert await ring.uses.write()
    assert store.noted == [{("api_key", early.digest): first, ("api_key", late.digest): second}]


async def test_no_more_uses_are_kept_than_keys(
    ring: KeyRing, store: Store, times: Times, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_cache, "KNOWN_LIMIT", 3)
    keys = [store.add() for _ in range(10)]
    for key in keys:
        await ring.principal(key.value)
        store.away = True
        assert not await ring.uses.write()
        store.away = False
        times.seconds += 1
    assert await ring.uses.write()
    assert {digest for _, digest in store.noted[0]} == {key.digest for key in keys[-3:]}


async def test_many_uses_are_written_in_parts(ring: KeyRing, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_uses, "BATCH_LIMIT", 4)
    for key in [store.add() for _ in range(10)]:
        await ring.principal(key.value)
    assert await ring.uses.write()
    assert [len(noted) for noted in store.noted] == [4, 4, 2]


async def test_uses_are_written_again_and_again(ring: KeyRing, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_uses, "INTERVAL_SECONDS", 0.001)
    key, stop = store.add(), asyncio.Event()
    writing = asyncio.create_task(ring.uses.run(stop))
    for count in (1, 2, 3):
        await ring.principal(key.value)
        async with asyncio.timeout(5):
            while len(store.noted) < count:  # noqa: ASYNC110  # the fake tells nobody
                await asyncio.sleep(0.001)
        assert store.noted[-1].keys() == {("api_key", key.digest)}
    stop.set()
    async with asyncio.timeout(5):
        await writing
