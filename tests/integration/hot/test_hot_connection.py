"""The connection in bad times: a server that dies, hangs, refuses, forgets scripts, or talks nonsense."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from billing.hot.connection import HotConnection, Script
from billing.hot.store import HotBalance, make_hot_store
from gateway.embedded.redis import Redis
from models.errors import Unavailable
from tests.conftest import RedisProcess
from tests.integration.hot.nouns import EPOCH, Tenant, charge, open_shard, placed

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

ECHO = Script("return {KEYS[1], ARGV[1]}", "0" * 40)
"""A script whose SHA-1 Redis never knows."""


async def until_connected(connection: HotConnection, seconds: int = 10) -> None:
    """Wait until the connection is back; a PING that is answered proves it."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                await connection.execute("PING")
            except Unavailable:
                await asyncio.sleep(0.005)
            else:
                return


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[HotConnection]:
    connection = await HotConnection.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def false_redis(*answers: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that reads, and answers the first read with the first answer and so on; gives its URL and the reads."""
    reads: list[bytes] = []
    remaining = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while received := await reader.read(1 << 20):
            reads.append(received)
            writer.write(remaining.pop(0) if remaining else b"")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", reads
    finally:
        server.close()
        await server.wait_closed()


async def test_replies_of_every_type(redis: Redis) -> None:
    async with connected(redis.url) as connection:
        assert await connection.execute("SET", "text", "naïve") == b"OK"
        assert await connection.execute("GET", b"text") == "naïve".encode()
        assert await connection.execute("GET", "nothing") is None
        assert await connection.execute("INCRBY", "number", 2**62) == 2**62
        assert await connection.execute("MGET", "text", "nothing") == ["naïve".encode(), None]
        assert await connection.execute("SET", "bytes", bytes(range(256))) == b"OK"
        assert await connection.execute("GET", "bytes") == bytes(range(256))


async def test_many_callers_get_their_own_replies(redis: Redis) -> None:
    async with connected(redis.url) as connection:

        async def one(number: int) -> bool:
            await connection.execute("SET", f"k{number}", number)
            return bool(await connection.execute("GET", f"k{number}") == str(number).encode())

        assert all(await asyncio.gather(*(one(number) for number in range(1_000))))


async def test_a_unix_socket_and_another_database(redis: Redis) -> None:
    url = f"unix://:{redis.password}@{redis.socket_path}?db=3"
    async with connected(url) as there, connected(redis.url) as here:
        await there.execute("SET", "only", "there")
        assert await here.execute("GET", "only") is None
        await here.execute("SELECT", 3)
        assert await here.execute("GET", "only") == b"there"


async def test_a_wrong_password_is_told_and_tried_again(redis: Redis) -> None:
    async with connected(f"redis://:wrong@127.0.0.1:{redis.port}") as connection:
        assert not connection.connected
        with pytest.raises(Unavailable, match="WRONGPASS"):
            connection.execute("PING")


async def test_a_named_user(redis: Redis) -> None:
    async with connected(redis.url) as connection:
        await connection.execute("ACL", "SETUSER", "gate", "on", ">p/w", "~*", "+@all")
    async with connected(f"redis://gate:p%2Fw@127.0.0.1:{redis.port}/0") as connection:
        assert await connection.execute("ACL", "WHOAMI") == b"gate"


async def test_commands_of_one_turn_of_the_loop_leave_in_one_write() -> None:
    async with false_redis(b"+PONG\r\n", b"+1\r\n" * 50) as (url, reads), connected(url) as connection:
        futures = [connection.execute("GET", number) for number in range(50)]
        await asyncio.gather(*futures)
        assert len(reads) == 2
        assert reads[1].count(b"GET") == 50


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(b"-OOM command not allowed\r\n", "OOM", id="memory is full"),
        pytest.param(b"-MISCONF Errors writing to the AOF file\r\n", "MISCONF", id="the disk is full"),
        pytest.param(b"-READONLY You can't write against a read only replica.\r\n", "READONLY", id="a replica"),
        pytest.param(b"-LOADING Redis is loading the dataset\r\n", "LOADING", id="it starts"),
        pytest.param(b"-BUSY Redis is busy running a script\r\n", "BUSY", id="a script runs for ever"),
        pytest.param(b"-MOVED 1 127.0.0.1:1\r\n", "MOVED", id="another node's slot"),
        pytest.param(b"nonsense\r\n", "protocol", id="not the protocol of Redis"),
    ],
)
async def test_what_redis_refuses_is_unavailable(answer: bytes, reason: str) -> None:
    async with false_redis(b"+PONG\r\n", answer) as (url, _), connected(url) as connection:
        with pytest.raises(Unavailable, match=reason):
            await connection.execute("GET", 1)


async def test_an_answer_to_nothing_costs_the_connection() -> None:
    async with false_redis(b"+PONG\r\n", b"+1\r\n+surplus\r\n") as (url, _), connected(url) as connection:
        assert await connection.execute("GET", 1) == b"1"
        with pytest.raises(Unavailable, match="answer to nothing"):
            connection.execute("GET", 2)


async def test_a_redis_that_is_loading_is_not_connected_yet() -> None:
    answers = (b"-LOADING Redis is loading the dataset\r\n", b"+PONG\r\n", b"+PONG\r\n", b"+1\r\n")
    async with false_redis(*answers) as (url, _), connected(url) as connection:
        with pytest.raises(Unavailable, match="LOADING"):
            connection.execute("GET", 1)
        await until_connected(connection)
        assert await connection.execute("GET", 1) == b"1"


async def test_a_cancelled_caller_leaves_the_others_in_step(redis: Redis) -> None:
    async with connected(redis.url) as connection:
        await connection.execute("SET", "a", "1")
        await connection.execute("SET", "b", "2")
        first, second = connection.execute("GET", "a"), connection.execute("GET", "b")
        first.cancel()
        assert await second == b"2"


async def test_a_script_is_loaded_when_redis_does_not_know_it(redis: Redis) -> None:
    async with connected(redis.url) as connection:
        assert await connection.run(ECHO, 1, "key", "value") == [b"key", b"value"]


async def test_calls_go_on_after_scripts_were_flushed(redis: Redis) -> None:
    store, tenant = await make_hot_store(redis.url), Tenant()
    try:
        await open_shard(store, tenant)
        async with connected(redis.url) as raw:
            holds = await asyncio.gather(*(placed(store, tenant.request(1)) for _ in range(20)))
            await raw.execute("SCRIPT", "FLUSH")
            assert all(await asyncio.gather(*(store.settle(hold, charge(hold, 1)) for hold in holds)))
        assert await store.balance(tenant.shard, tenant.organization_id) == HotBalance(980, 0, 0, 20, 1)
    finally:
        await store.close()


async def test_a_closed_connection_says_so(redis: Redis) -> None:
    connection = await HotConnection.connect(redis.url)
    waiting = connection.execute("XREAD", "BLOCK", 60_000, "STREAMS", "s", "0-0", timeout_ms=60_000)
    await asyncio.sleep(0)
    await connection.close()
    with pytest.raises(Unavailable, match="closed by its owner"):
        await waiting
    with pytest.raises(Unavailable):
        connection.execute("PING")
    await connection.close()


async def test_a_store_starts_before_its_redis(redis_process: RedisProcess) -> None:
    redis_process.kill()
    store = await make_hot_store(redis_process.url)
    try:
        with pytest.raises(Unavailable):
            await store.ping()
        redis_process.restart()
        await until_connected(store._connection)
    finally:
        await store.close()


async def test_a_killed_redis_fails_at_once_and_comes_back_with_all_it_acknowledged(
    redis_process: RedisProcess,
) -> None:
    store, tenant = await make_hot_store(redis_process.url), Tenant()
    loop = asyncio.get_running_loop()
    try:
        await open_shard(store, tenant)
        hold = await placed(store, tenant.request())
        redis_process.kill()
        started = loop.time()
        for _ in range(2):
            with pytest.raises(Unavailable):
                await store.settle(hold, charge(hold))
        assert loop.time() - started < 0.5
        redis_process.restart()
        await until_connected(store._connection)
        assert await store.settle(hold, charge(hold))
        assert await store.balance(tenant.shard, tenant.organization_id) == HotBalance(940, 0, 0, 60, 1)
        redis_process.kill()
        redis_process.restart(blank=True)
        await until_connected(store._connection)
        assert await store.epoch(tenant.shard) is None
    finally:
        await store.close()


async def test_a_hung_redis_costs_the_timeout_and_no_more(redis_process: RedisProcess) -> None:
    store, tenant = await make_hot_store(redis_process.url, timeout_ms=200), Tenant()
    loop = asyncio.get_running_loop()
    try:
        await open_shard(store, tenant)
        redis_process.pause()
        request = tenant.request()
        started = loop.time()
        answers = await asyncio.gather(*(store.hold(request, EPOCH) for _ in range(10)), return_exceptions=True)
        assert all(isinstance(answer, Unavailable) for answer in answers)
        assert 0.15 < loop.time() - started < 1.5
        started = loop.time()
        with pytest.raises(Unavailable):
            await store.hold(request, EPOCH)
        assert loop.time() - started < 0.1
        redis_process.resume()
        await until_connected(store._connection)
        # The hung server may have run the holds when it woke up; the same call holds once.
        await placed(store, request)
        balance = await store.balance(tenant.shard, tenant.organization_id)
        assert balance is not None
        assert balance.held == 100
    finally:
        await store.close()


async def test_a_redis_that_became_a_replica_refuses_calls(redis_process: RedisProcess) -> None:
    store, tenant = await make_hot_store(redis_process.url), Tenant()
    try:
        await open_shard(store, tenant)
        async with connected(redis_process.url) as raw:
            await raw.execute("REPLICAOF", "127.0.0.1", 1)
            with pytest.raises(Unavailable, match=r"Redis: READONLY"):
                await store.hold(tenant.request(), EPOCH)
            await raw.execute("REPLICAOF", "NO", "ONE")
        await until_connected(store._connection)
        await placed(store, tenant.request())
    finally:
        await store.close()
