"""Several machines make one store at once: they end up with the same one, and nothing that was
acknowledged is lost, also where the server ignores preconditions."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from fault_proxy import Connection, Exchange, FaultProxy
from servers import Server

import castore
from castore.format.config import StoreConfig, encode_config
from castore.s3 import creation
from castore.s3.client.bucket import Bucket
from castore.s3.keys import BATCHES_ROOT_KEY, CONFIG_KEY, PROPOSALS

pytestmark = pytest.mark.usefixtures("aws_environment", "quick", "cache_dir")


def keys(server: Server) -> list[str]:
    with Bucket(server.settings()) as bucket:
        return [entry.key for entry in bucket.list() if not entry.key.startswith("names/")]


def test_many_that_make_it_at_once_have_one_store(s3_server: Server) -> None:
    together = threading.Barrier(4)

    def create(i: int) -> bytes:
        together.wait(10)
        with castore.open(s3_server.url(), chunk_bytes_avg=(8192, 65536)[i % 2]) as store:
            store.puts(f"name {i}", bytes([i]))
            return store._backend.config.store_id  # type: ignore[union-attr]

    with ThreadPoolExecutor(4) as threads:
        found = set(threads.map(create, range(4)))
    with castore.open(s3_server.url(), create=False) as store:
        assert found == {store._backend.config.store_id}  # type: ignore[union-attr]
        assert [store.gets(f"name {i}") for i in range(4)] == [bytes([i]) for i in range(4)]
    made = [BATCHES_ROOT_KEY, CONFIG_KEY] if s3_server.preconditions else [CONFIG_KEY]
    assert keys(s3_server) == made


@pytest.fixture
def slow_link(rclone_server: Server) -> Iterator[FaultProxy]:
    with FaultProxy(rclone_server.endpoint_url) as link:
        yield link


class Hold:
    """Keeps a request back until it is let go."""

    def __init__(self) -> None:
        self.came, self.goes = threading.Event(), threading.Event()

    def __call__(self, exchange: Exchange, connection: Connection) -> None:
        self.came.set()
        assert self.goes.wait(20)
        connection.relay(exchange)


@pytest.mark.preconditions_ignored
@pytest.mark.parametrize(
    "held",
    [
        pytest.param(f"/{CONFIG_KEY}$", id="config"),
        pytest.param(f"/{PROPOSALS}", id="proposal"),
    ],
)
def test_one_that_is_held_up_takes_nothing_back(
    held: str, rclone_server: Server, slow_link: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its request lands when another has long made the store, and put to it."""
    monkeypatch.setattr(creation, "PROPOSAL_S", 1.1)
    hold = Hold()
    slow_link.inject("PUT", held, hold)
    with ThreadPoolExecutor(1) as thread:
        opening: Future[castore.Store] = thread.submit(
            castore.open, rclone_server.url(), endpoint_url=slow_link.url
        )
        assert hold.came.wait(20)
        with castore.open(rclone_server.url()) as fast:
            fast.puts("inline", b"acknowledged")
            fast.puts("large", bytes(100_000))
            hold.goes.set()
            with opening.result(20) as slow:
                slow.puts("slow", b"acknowledged, too")
                assert slow.gets("inline") == b"acknowledged"
            assert fast.gets("slow") == b"acknowledged, too"
    with castore.open(rclone_server.url(), create=False) as store:
        assert store.gets("inline") == b"acknowledged"
        assert store.gets("large") == bytes(100_000)
        assert store.gets("slow") == b"acknowledged, too"


@pytest.mark.preconditions_ignored
def test_what_one_that_died_proposed_is_taken_up(
    rclone_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(creation, "PROPOSAL_S", 1.1)
    config = StoreConfig(secrets.token_bytes(16), 1, 704, 2816, 11_264, None)
    with Bucket(rclone_server.settings()) as bucket:
        bucket.put(f"{PROPOSALS}dead", encode_config(config))
    with castore.open(rclone_server.url()) as store:
        assert store._backend.config == config  # type: ignore[union-attr]
    assert keys(rclone_server) == [CONFIG_KEY]
