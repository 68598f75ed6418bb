"""What machines tell each other of their packs: few requests for the one that comes new, however
many sessions have stored something."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from fault_proxy import FaultProxy
from gc_stores import World, collect, noise
from proxy import Connection, Exchange
from servers import Server
from threads import in_threads

from castore.format.pack import PackEntry
from castore.format.s3_told import encode_hints
from castore.s3 import hints, rebuild, store, untold
from castore.s3.cache.folder import cache_folder
from castore.s3.cache.store import StoreCache
from castore.s3.client.bucket import Bucket
from castore.s3.hints import Hints, Pack
from castore.system.workers import Workers

STORE = bytes(range(16))
pytestmark = pytest.mark.usefixtures("aws_environment", "quick")


@pytest.fixture
def bucket(moto_server: Server, proxy: FaultProxy) -> Iterator[Bucket]:
    with Bucket(moto_server.settings(endpoint_url=proxy.url)) as bucket:
        yield bucket


@contextmanager
def session(bucket: Bucket, cache: StoreCache) -> Iterator[Hints]:
    """What a Store keeps of hints, from its opening to its closing."""
    requests, closing = Workers(16), Workers(16)
    one = Hints(bucket, STORE, cache, requests)
    one.read()
    yield one
    requests.close()
    one.close(closing)
    closing.close()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[StoreCache]]:
    """Two caches: of a machine that has been there all the time, and of one that comes new."""
    found = []
    for name in ("old", "new"):
        monkeypatch.setenv("CASTORE_CACHE_DIR", str(tmp_path / name))
        found.append(StoreCache(cache_folder(STORE, "a place"), frames_bytes_max=0))
    yield found
    for one in found:
        one.close()


def packs(seed: str, count: int, frames: int) -> list[Pack]:
    source = random.Random(seed)
    return [
        (
            source.randbytes(16),
            [PackEntry(source.randbytes(16), 64 + 50 * i, 50, 90) for i in range(frames)],
        )
        for _ in range(count)
    ]


def stage(bucket: Bucket, cache: StoreCache, sessions: int, count: int, frames: int) -> list[Pack]:
    """So many sessions that store `count` packs each; all of the packs."""
    told = []
    for i in range(sessions):
        with session(bucket, cache) as one:
            new = packs(f"{sessions} {i}", count, frames)
            for pack in new:
                one.tell([pack])
            told += new
    return told


def learn(bucket: Bucket, cache: StoreCache, proxy: FaultProxy, told: list[Pack]) -> int:
    """The requests that a new machine makes to know of all the packs."""
    proxy.clear()
    with session(bucket, cache):
        pass
    for at in range(0, len(told), 500):
        ids = [entry.chunk_id for _, entries in told[at : at + 500] for entry in entries]
        assert len(cache.known(ids)) == len(ids)
    return proxy.count()


@pytest.mark.long
def test_ten_thousand_packs_take_a_few_dozen_requests(
    bucket: Bucket, machine: list[StoreCache], proxy: FaultProxy
) -> None:
    """Of 100 sessions; those that found many objects have merged them."""
    old, new = machine
    told = stage(bucket, old, sessions=100, count=100, frames=2)
    assert learn(bucket, new, proxy, told) <= 72
    # Nor does each session write all of it anew.
    assert proxy.count("PUT") == 0


@pytest.mark.long
def test_ten_thousand_full_packs(
    bucket: Bucket, machine: list[StoreCache], proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """160 GB of them, in chunks of 64 KiB: the objects are as large as they come."""
    monkeypatch.setattr(hints, "READ_BYTES_MAX", 1 << 40)
    old, new = machine
    told = stage(bucket, old, sessions=100, count=100, frames=250)
    assert learn(bucket, new, proxy, told) <= 100


def test_what_is_merged_at_once_is_bounded(
    bucket: Bucket,
    machine: list[StoreCache],
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The smallest first; and what has grown is left alone."""
    monkeypatch.setattr(hints, "MERGERS", 1000)
    monkeypatch.setattr(hints, "SMALL_MAX", 8)
    monkeypatch.setattr(hints, "SMALL_BYTES", 4000)
    monkeypatch.setattr(hints, "MERGED_BYTES_MAX", 8000)
    old, new = machine
    told = stage(bucket, old, sessions=8, count=1, frames=70)  # 2 kB each
    proxy.clear()
    told += stage(bucket, old, sessions=1, count=1, frames=1)
    assert proxy.count("GET", "/hints/") == 1 + 3  # LIST is none; the small one, and three others
    sizes = sorted(entry.size for entry in bucket.list("hints/"))
    assert len(sizes) == 6
    assert sizes[-1] > 4000
    assert learn(bucket, new, proxy, told) == 1 + 6


def test_of_many_who_end_at_once_a_few_merge(
    bucket: Bucket, machine: list[StoreCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them see the same small objects, and each its own."""
    monkeypatch.setattr(hints, "SMALL_MAX", 8)
    merges = []
    monkeypatch.setattr(Hints, "_merge", lambda one, requests: merges.append(one))
    old, _ = machine
    stage(bucket, old, sessions=40, count=1, frames=2)
    # The nth is among the first four of n with a chance of 4 in n: 6.2 of them, on average.
    assert len(merges) < 20


def test_what_a_later_castore_tells_is_not_merged_away(
    bucket: Bucket, machine: list[StoreCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints, "SMALL_MAX", 2)
    monkeypatch.setattr(hints, "MERGERS", 9)
    raw = bytearray(encode_hints(STORE, packs("later", 1, 1)))
    raw[4] = 9  # its version
    later = [hints.new_hints_key() for _ in range(4)]
    for key in later:
        bucket.put(key, bytes(raw), idempotent=True)
    old, _ = machine
    stage(bucket, old, sessions=2, count=1, frames=2)
    there = hints.listed_hints(bucket).keys()
    assert there >= {*later}
    assert len(there) < len(later) + 2


def test_a_session_of_many_packs_tells_of_them_on_the_way(
    bucket: Bucket, machine: list[StoreCache], proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints, "FRAMES_MAX", 100)
    old, new = machine
    with session(bucket, old) as one:
        told = packs("", 25, 10)
        for pack in told:
            one.tell([pack])
        assert proxy.count("PUT", "/hints/") == 2
    assert proxy.count("PUT", "/hints/") == 3
    assert learn(bucket, new, proxy, told) == 1 + 3


def test_who_looks_few_chunks_up_reads_few_objects(
    bucket: Bucket, machine: list[StoreCache], proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what a thousand machines that come together read does not grow with their square."""
    monkeypatch.setattr(hints, "READ_LEAST", 3)
    old, new = machine
    told = stage(bucket, old, sessions=12, count=1, frames=2)
    large = packs("large", 1, 300)
    with session(bucket, old) as one:
        one.tell(large)
    with closing(Workers(16)) as requests:
        few = Hints(bucket, STORE, new, requests)
        proxy.clear()
        few.known([bytes(16)])
        assert (proxy.count("LIST"), proxy.count("GET")) == (1, 3)
        assert len(new.known([entry.chunk_id for entry in large[0][1]])) == 300  # the largest first
        few.known([bytes([i]) * 16 for i in range(6)])
        assert (proxy.count("LIST"), proxy.count("GET")) == (1, 7)
        ids = [entry.chunk_id for _, entries in told for entry in entries]
        assert len(few.known(ids)) == len(ids)
        assert (proxy.count("LIST"), proxy.count("GET")) == (1, 13)
        few.known(ids * 9)
        assert (proxy.count("LIST"), proxy.count("GET")) == (1, 13)


def test_what_there_is_can_be_listed_ahead(
    bucket: Bucket, machine: list[StoreCache], proxy: FaultProxy
) -> None:
    """While a file is cut: once, and what is looked up then does not list it again."""
    old, new = machine
    [(_, entries)] = stage(bucket, old, sessions=1, count=1, frames=300)
    ids = [entry.chunk_id for entry in entries]
    with closing(Workers(16)) as requests:
        one = Hints(bucket, STORE, new, requests)
        proxy.clear()
        one.prefetch()
        one.prefetch()
    assert (proxy.count("LIST"), proxy.count("GET")) == (1, 0)
    with closing(Workers(16)) as one._requests:
        assert len(one.known(ids)) == len(ids)
        one.prefetch()
    assert (proxy.count("LIST"), proxy.count("GET")) == (1, 1)


def test_what_is_uploaded_while_others_are_read_is_told_of(
    bucket: Bucket, machine: list[StoreCache], proxy: FaultProxy
) -> None:
    """By the same threads that read: none of them is to wait for who waits for it."""
    old, new = machine
    [(_, entries)] = stage(bucket, old, sessions=1, count=1, frames=300)
    uploaded = packs("uploaded", 1, 300)
    with closing(Workers(1)) as requests, closing(Workers(1)) as ending:
        one = Hints(bucket, STORE, new, requests)

        def upload(exchange: Exchange, connection: Connection) -> None:
            requests.submit(one.tell, uploaded)
            connection.relay(exchange)

        proxy.inject("LIST", "", upload)
        in_threads(lambda: one.known([entry.chunk_id for entry in entries]))
        requests.close()
        one.close(ending)
    assert learn(bucket, old, proxy, uploaded) == 2


def test_a_forked_child_does_not_wait_for_what_its_parent_lists(
    bucket: Bucket, machine: list[StoreCache]
) -> None:
    old, new = machine
    [(_, entries)] = stage(bucket, old, sessions=1, count=1, frames=300)
    let_go = threading.Event()
    with closing(Workers(1)) as requests:
        one = Hints(bucket, STORE, new, requests)
        requests.submit(let_go.wait)
        one.prefetch()  # does not begin before the fork
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            try:
                assert len(one.known([entry.chunk_id for entry in entries])) == len(entries)
            except BaseException:
                os._exit(1)
            os._exit(0)
        let_go.set()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_what_is_uploaded_as_a_collection_ends_is_told_of(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packs are listed, to forget those that are gone; this one came after."""
    monkeypatch.setattr(untold, "UNTOLD_FRAMES_MAX", 0)
    one = world.open("one")
    one.puts("doomed", noise(200_000, 1))
    one.delete("doomed")
    listed = store.listed_packs

    def meanwhile(bucket: Bucket) -> dict[bytes, int]:
        found = listed(bucket)
        one.puts("kept", noise(200_000, 2))
        return found

    monkeypatch.setattr(store, "listed_packs", meanwhile)
    assert collect(one).packs_removed == 1
    one.close()
    is_known(world, noise(200_000, 2))


def test_what_is_told_during_a_rebuild_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another machine, and by another thread, once the packs were listed."""
    monkeypatch.setattr(untold, "UNTOLD_FRAMES_MAX", 0)
    one, marked = world.open("one"), rebuild.damaged_packs
    one.puts("before", noise(200_000, 1))

    def meanwhile(bucket: Bucket) -> set[bytes]:
        with world.open("two") as two:
            two.puts("meanwhile", noise(200_000, 2))
        one.puts("here", noise(200_000, 3))
        return marked(bucket)

    monkeypatch.setattr(rebuild, "damaged_packs", meanwhile)
    report = one.rebuild_index()
    assert (report.packs, report.lost) == (1, [])
    one.close()
    for seed in (1, 2, 3):
        is_known(world, noise(200_000, seed))


def is_known(world: World, data: bytes) -> None:
    """To a machine that is new."""
    before = world.server.keys("store/packs/")
    world.open("new").puts("once more", data)
    assert world.server.keys("store/packs/") == before
