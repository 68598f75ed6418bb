"""What leads from chunks to the hints that tell of them, where nobody reads all hints."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_proxy import FaultProxy
from servers import Server

import castore
from castore.errors import FormatError, UnsupportedFormat
from castore.format import s3_samples
from castore.format.pack import PackEntry
from castore.format.s3_samples import decode_bucket, decode_samples, is_sampled
from castore.s3 import hints as hints_module
from castore.s3 import untold
from castore.s3.cache.folder import cache_folder
from castore.s3.cache.store import StoreCache
from castore.s3.client.bucket import Bucket
from castore.s3.hints import Hints, Pack, listed_hints, rewrite_hints
from castore.s3.keys import is_samples_head
from castore.s3.samples import Sampled, damaged_samples, tidy_samples, write_samples
from castore.s3.store import S3Store
from castore.system.workers import Workers
from castore.testing.contents import noise

STORE = bytes(range(16))
FRAMES = 100  # in each object of hints
pytestmark = pytest.mark.usefixtures("aws_environment", "quick")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred frames are many."""
    monkeypatch.setattr(hints_module, "FRAMES_MAX", FRAMES)
    monkeypatch.setattr(hints_module, "SMALL_BYTES", 100)
    monkeypatch.setattr(hints_module, "READ_BYTES_MAX", 10_000)
    monkeypatch.setattr(hints_module, "SAMPLE_BYTES", 3_000)


@pytest.fixture
def bucket(moto_server: Server, proxy: FaultProxy) -> Iterator[Bucket]:
    with Bucket(moto_server.settings(endpoint_url=proxy.url)) as bucket:
        yield bucket


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers(16)
    yield workers
    workers.close()


Machines = Callable[[str], Hints]


@pytest.fixture
def machine(
    bucket: Bucket, workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Machines]:
    """The hints of a Store on a machine of that name."""
    caches: dict[str, StoreCache] = {}

    def new(name: str) -> Hints:
        if name not in caches:
            monkeypatch.setenv("CASTORE_CACHE_DIR", str(tmp_path / name))
            caches[name] = StoreCache(cache_folder(STORE, "a place"), frames_bytes_max=0)
        return Hints(bucket, STORE, caches[name], workers)

    yield new
    for cache in caches.values():
        cache.close()


def stored(bucket: Bucket, count: int) -> list[list[Pack]]:
    """So many streams, each of a pack that an object of hints tells of."""
    source = random.Random(count)
    streams = []
    for _ in range(count):
        entries = [PackEntry(source.randbytes(16), 64 + 50 * i, 50, 90) for i in range(FRAMES)]
        streams.append([(source.randbytes(16), entries)])
        with_hints = Hints(bucket, STORE, StoreCache(None, frames_bytes_max=0), Workers(1))
        with_hints.tell(streams[-1])
    return streams


def ids(stream: list[Pack]) -> list[bytes]:
    return [entry.chunk_id for _, entries in stream for entry in entries]


def share_known(machine: Hints, streams: list[list[Pack]]) -> float:
    known = [len(machine.known(ids(stream))) for stream in streams]
    return sum(known) / (FRAMES * len(streams))


@pytest.mark.usefixtures("few")
def test_what_a_new_machine_reads_is_bounded(
    bucket: Bucket, machine: Machines, proxy: FaultProxy
) -> None:
    streams = stored(bucket, 20)  # of 2.8 kB of hints each
    proxy.clear()
    first = machine("first")
    first.read()
    assert proxy.count("GET", "/hints/") == 3  # what fits into 10 kB
    assert proxy.count("PUT", "/samples/") == 2  # a shard, and the head
    assert share_known(first, streams) == 3 / 20
    for number in range(6):  # each reads others, and leaves samples of them
        machine(f"{number}").read()
    proxy.clear()
    last = machine("last")
    assert len(last.known(ids(streams[7]))) == FRAMES
    assert proxy.count("GET", "/hints/") <= 1 + 3
    assert proxy.count("PUT") == 0
    assert share_known(last, streams) == 1
    # What it was led to, it remembers.
    proxy.clear()
    assert share_known(machine("last"), streams) == 1
    assert proxy.count("GET", "/hints/") == 0


@pytest.mark.usefixtures("few")
def test_what_is_new_costs_few_requests(
    bucket: Bucket, machine: Machines, proxy: FaultProxy
) -> None:
    stored(bucket, 20)
    for number in range(7):
        machine(f"{number}").read()
    last = machine("last")
    last.read()
    new = [random.Random(i).randbytes(16) for i in range(2000)]
    proxy.clear()
    assert last.known(new) == {}
    generations = len([e for e in bucket.list("samples/") if is_samples_head(e.key)])
    assert 0 < proxy.count("GET", "/samples/") <= hints_module.ASKED_MAX * generations
    proxy.clear()
    sampled = [i for i in new if is_sampled(i)][: hints_module.ASKED_FIRST]
    assert last.known(sampled) == {}
    assert proxy.count() == 0  # they were asked for before


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("shard_bytes", [100, 1 << 20])
def test_a_collection_puts_samples_together(
    bucket: Bucket,
    machine: Machines,
    workers: Workers,
    monkeypatch: pytest.MonkeyPatch,
    shard_bytes: int,
) -> None:
    """And leaves out what is gone; all is found as before, over whatever number of shards."""
    monkeypatch.setattr(s3_samples, "SHARD_BYTES", shard_bytes)
    monkeypatch.setattr(s3_samples, "BUCKET_BYTES", 60)
    streams = stored(bucket, 20)
    for number in range(7):
        machine(f"{number}").read()
    told = listed_hints(bucket)
    gone = streams[5][0][0]
    covered = tidy_samples(bucket, STORE, told.keys(), now=time.time())
    assert covered == told.keys()
    rewrite_hints(bucket, STORE, told, lambda pack_id: pack_id == gone, covered=covered)
    told = listed_hints(bucket)
    assert len(told) == 19
    sampled = Sampled(bucket, STORE, workers)
    assert sampled.read() >= told.keys()
    assert len(sampled._generations) == 1
    assert list(damaged_samples(bucket, STORE)) == []
    last = machine("last")
    assert share_known(last, streams[:5] + streams[6:]) == 1
    assert last.known(ids(streams[5])) == {}


@pytest.mark.usefixtures("few")
def test_samples_of_nothing_go(bucket: Bucket, machine: Machines) -> None:
    stored(bucket, 20)
    machine("first").read()
    bucket.put("samples/" + "0" * 32 + "/0", b"a shard whose head never came")
    bucket.put("samples/" + "1" * 32 + "/0", b"another")
    assert tidy_samples(bucket, STORE, (), now=time.time()) == set()
    assert len(list(bucket.list("samples/"))) == 2  # somebody may be at it
    tidy_samples(bucket, STORE, (), now=time.time() + 2 * 86_400)
    assert list(bucket.list("samples/")) == []


@pytest.mark.usefixtures("few")
def test_a_collection_writes_samples_of_what_none_cover(bucket: Bucket, workers: Workers) -> None:
    stored(bucket, 20)
    told = listed_hints(bucket)
    rewrite_hints(bucket, STORE, told, lambda pack_id: False, covered=())
    assert Sampled(bucket, STORE, workers).read() == told.keys()
    before = list(bucket.list("samples/"))
    rewrite_hints(bucket, STORE, told, lambda pack_id: False, covered=told.keys())
    assert list(bucket.list("samples/")) == before


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("part", ["head", "shard"])
def test_damage_costs_deduplication_and_nothing_else(
    bucket: Bucket, machine: Machines, part: str
) -> None:
    streams = stored(bucket, 4)
    told = {key: [stream[0]] for key, stream in zip(listed_hints(bucket), streams, strict=True)}
    write_samples(bucket, STORE, told)
    [damaged] = [
        e.key for e in bucket.list("samples/") if is_samples_head(e.key) == (part == "head")
    ]
    raw = bytearray(bucket.get(damaged).body)
    raw[len(raw) // 2] ^= 1
    bucket.put(damaged, bytes(raw), idempotent=True)
    [(key, error)] = damaged_samples(bucket, STORE)
    assert key == damaged
    assert isinstance(error, FormatError)
    # Of what no samples cover three objects fit.
    assert share_known(machine("new"), streams) == (3 / 4 if part == "head" else 0)
    # Few are left, so it is written anew: what a damaged shard covered is covered no more.
    covered = tidy_samples(bucket, STORE, [*told][:1], now=time.time())
    assert covered == set() or part == "head"
    assert damaged not in [entry.key for entry in bucket.list("samples/")]
    assert list(damaged_samples(bucket, STORE)) == []
    assert share_known(machine("newer"), streams) >= 3 / 4


@pytest.mark.usefixtures("few")
def test_samples_of_a_later_castore_are_passed_by_and_kept(
    bucket: Bucket, machine: Machines
) -> None:
    """They are of use to whoever can read them."""
    streams = stored(bucket, 20)
    machine("first").read()
    for key in [entry.key for entry in bucket.list("samples/") if is_samples_head(entry.key)]:
        raw = bytearray(bucket.get(key).body)
        raw[4] += 1
        bucket.put(key, bytes(raw), idempotent=True)
    before = {entry.key: entry.etag for entry in bucket.list("samples/")}
    assert share_known(machine("another"), streams) == 3 / 20
    tidy_samples(bucket, STORE, listed_hints(bucket), now=time.time() + 2 * 86_400)
    after = {entry.key: entry.etag for entry in bucket.list("samples/")}
    assert before.items() < after.items()  # the other machine has left some of its own


def test_malformed_bytes(bucket: Bucket) -> None:
    write_samples(bucket, STORE, {"hints/00/" + "0" * 32: stored(bucket, 3)[0]})
    [head] = [entry.key for entry in bucket.list("samples/") if is_samples_head(entry.key)]
    raw = bucket.get(head).body
    store_id, samples = decode_samples(raw)
    assert store_id == STORE
    assert samples.hints == [bytes(16)]
    for end in range(len(raw)):
        with pytest.raises(FormatError):
            decode_samples(raw[:end])
    for at in range(len(raw)):
        flipped = bytearray(raw)
        flipped[at] ^= 0x10
        with pytest.raises(UnsupportedFormat if at == 4 else FormatError):
            decode_samples(bytes(flipped))
    with pytest.raises(FormatError):
        decode_bucket(b"x", samples.buckets[0])


@pytest.mark.plain("a delta is known with its bases alone, of which hints tell that are not read")
def test_a_store_that_is_put_to_from_a_new_machine(
    moto_server: Server,
    proxy: FaultProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What others have stored is not uploaded again, by whatever name."""
    monkeypatch.setattr(hints_module, "READ_BYTES_MAX", 3_000)
    monkeypatch.setattr(hints_module, "SAMPLE_BYTES", 1)
    monkeypatch.setattr(hints_module, "SMALL_BYTES", 100)
    monkeypatch.setattr(untold, "UNTOLD_FRAMES_MAX", 0)  # each machine tells at once
    url = moto_server.settings().url
    options = {"endpoint_url": proxy.url}

    def put(machine: str, name: str, data: bytes) -> int:
        monkeypatch.setenv("CASTORE_CACHE_DIR", str(tmp_path / machine))
        proxy.clear()
        with castore.open(url, **options) as store:
            store.puts(name, data)
            assert isinstance(store._backend, S3Store)
        return proxy.count("PUT", "/packs/")

    data = [noise(5_000_000, seed=i) for i in range(6)]
    for number, each in enumerate(data):
        assert put("one", f"{number}", each)
    for number in range(5):
        put(f"{number}", f"by {number}", noise(100_000, seed=10 + number))
    monkeypatch.setenv("CASTORE_CACHE_DIR", str(tmp_path / "collector"))
    with castore.open(url, **options) as store:
        store.gc(grace_s=0)
        store.gc(grace_s=0)
    for number, each in enumerate(data):
        assert not put("last", f"again {number}", each)
    with castore.open(url, **options) as store:
        report = store.check()
        assert report.problems == []
        assert store.gets("again 3") == data[3]
