"""What each operation costs, in requests, counted by a proxy."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest
from asked import requests
from fault_proxy import FaultProxy
from gc_stores import edited
from proxy import Connection, Exchange
from s3_stores import Open

import castore
from castore.errors import NameNotFound, StoreIOError
from castore.format.segment import decode_segment
from castore.s3 import hints, uploads
from castore.s3 import versions as versions_s3
from castore.s3.client.bucket import Bucket
from castore.s3.client.settings import parse_settings
from castore.s3.session import S3Session
from castore.stream import writer
from castore.stream.operations import Publish

pytestmark = pytest.mark.usefixtures("aws_environment")

SMALL, LARGE = 1000, 600_000  # inline, and not


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def warmed(store: castore.Store, proxy: FaultProxy) -> castore.Store:
    """With its session begun."""
    store.puts("warm", noise(LARGE, 99))
    proxy.clear()
    return store


# ---------------------------------------------------------------- writing


def test_opening_is_one_request(open_proxied: Open, proxy: FaultProxy) -> None:
    open_proxied()
    assert requests(proxy) == ["GET castore.json"]


def test_a_file_that_was_just_written_is_read_twice_and_uploaded_once(
    open_proxied: Open, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = warmed(open_proxied(), proxy)
    asked = []
    for young in (False, True):
        monkeypatch.setattr("castore.stream.sourcefile.is_young", lambda _, young=young: young)
        path = tmp_path / f"{young}"
        path.write_bytes(noise(LARGE, 5 + young))
        store.put(f"{young}", path)
        asked.append(requests(proxy))
    assert asked[0] == asked[1]
    assert store.gets("True") == noise(LARGE, 6)


@pytest.mark.inline_alone
def test_an_inline_put_is_one_put(open_proxied: Open, proxy: FaultProxy, tmp_path: Path) -> None:
    store = open_proxied()
    proxy.clear()
    store.puts("a", noise(SMALL))
    assert requests(proxy) == ["PUT names"]
    store.puts("a", noise(128 << 10))  # the largest
    assert requests(proxy) == ["PUT names"]
    (tmp_path / "file").write_bytes(noise(128 << 10))
    store.put("a", tmp_path / "file")
    with store.open("a", "wb") as file:
        file.write(noise(128 << 10))
    assert requests(proxy) == ["PUT names x2"]
    store.close()
    assert requests(proxy) == []  # nothing was pinned


@pytest.mark.inline_alone
@pytest.mark.plain("what is relied on as a base takes a HEAD")
def test_of_many_objects_smaller_ones_are_inline(open_proxied: Open, proxy: FaultProxy) -> None:
    """They share a pack, and what is known of them is not stored again."""
    store = warmed(open_proxied(), proxy)
    with store.transaction() as transaction:
        infos = [transaction.puts(f"{i}", noise((64 << 10) + i, 7)) for i in range(2)]
    assert [info.chunks == 0 for info in infos] == [True, False]
    assert requests(proxy) == ["PUT names x2", "PUT packs"]


@pytest.mark.inline_alone
def test_a_put_of_100_kb_by_a_process_of_its_own_costs_little_more_than_a_put(
    open_proxied: Open, proxy: FaultProxy
) -> None:
    open_proxied().close()  # the store is there
    proxy.clear()
    with open_proxied() as store:
        store.puts("a", noise(100_000))
    assert requests(proxy) == ["GET castore.json", "PUT names"]
    prices = castore.Prices()
    assert prices.requests(puts=1, gets=1) <= 1.1 * prices.requests(puts=1, gets=0)


@pytest.mark.inline_alone
def test_a_list_does_not_ask_for_the_bytes_of_inline_objects(
    open_proxied: Open, proxy: FaultProxy
) -> None:
    data = [noise(100_000, seed) for seed in range(5)]
    with open_proxied(1) as other:
        for i, each in enumerate(data):
            other.puts(f"a/{i}", each)
    store = open_proxied(2)
    proxy.clear()
    assert [info.size for info in store.list()] == [100_000] * 5
    received = sum(exchange.received_bytes for exchange in proxy.matching("GET", "/names/"))
    assert requests(proxy) == ["GET names x5", "LIST names"]
    assert received < 5 * (17 << 10)
    # That is remembered, and is enough for a list, but not for who reads the bytes.
    for again in (store, open_proxied(2)):
        proxy.clear()
        assert [info.size for info in again.list()] == [100_000] * 5
        assert requests(proxy) == ["LIST names"]
    assert store.gets("a/3", (90_000, 90_010)) == data[3][90_000:90_010]
    store.copy("a/4", "copy")
    assert store.gets("copy") == data[4]
    assert requests(proxy) == ["GET names x3", "PUT names"]


def test_the_first_put_of_chunks_begins_a_session(open_proxied: Open, proxy: FaultProxy) -> None:
    store = open_proxied()
    proxy.clear()
    store.puts("a", noise(LARGE))
    assert requests(proxy) == ["LIST hints", "PUT names", "PUT packs", "PUT pins"]
    store.close()
    assert requests(proxy) == ["POST delete", "PUT hints"]


@pytest.mark.plain("what is relied on as a base takes a HEAD")
def test_a_fresh_put_within_a_session_is_two_puts(open_proxied: Open, proxy: FaultProxy) -> None:
    store = warmed(open_proxied(), proxy)
    store.puts("a", noise(LARGE))
    order = [exchange.key.split("/")[3] for exchange in proxy.exchanges]
    assert order == ["packs", "names"]
    assert requests(proxy) == ["PUT names", "PUT packs"]


def test_bytes_that_this_session_stored_are_one_put(open_proxied: Open, proxy: FaultProxy) -> None:
    store = warmed(open_proxied(), proxy)
    store.puts("again", noise(LARGE, 99))
    assert requests(proxy) == ["HEAD damaged", "PUT names"]  # a repair elsewhere is heard of


def test_reuse_of_a_foreign_pack_costs_once_per_pack_and_session(
    open_proxied: Open, proxy: FaultProxy
) -> None:
    first = open_proxied(1)
    first.puts("a", noise(LARGE, 1))
    first.puts("b", noise(LARGE, 2))
    first.close()
    second = open_proxied(2)
    proxy.clear()
    second.puts("a again", noise(LARGE, 1))
    kinds = [exchange.key.split("/")[3] for exchange in proxy.exchanges if exchange.kind != "LIST"]
    order = [kind for kind in kinds if kind != "damaged"]  # beside them
    assert order == ["hints", "pins", "gc", "packs", "names"]  # the pin, the state, the HEAD
    assert kinds.index("damaged") < kinds.index("names")
    assert requests(proxy) == [
        "GET gc",
        "GET hints",
        "HEAD damaged",
        "HEAD packs",
        "LIST hints",
        "PUT names",
        "PUT pins",
    ]
    second.puts("a once more", noise(LARGE, 1))
    assert requests(proxy) == ["HEAD damaged", "PUT names"]
    second.puts("b again", noise(LARGE, 2))
    assert requests(proxy) == ["GET gc", "HEAD damaged", "HEAD packs", "PUT names", "PUT pins"]
    second.copy("a", "copied")
    assert requests(proxy) == ["GET names", "HEAD damaged", "PUT names"]


def test_many_foreign_packs_are_relied_on_at_once(
    open_proxied: Open, proxy: FaultProxy, tmp_path: Path
) -> None:
    """One pin and one look at the collector's plans for all that a file reuses."""
    first = open_proxied(1)
    parts = [noise(5_000_000, seed) for seed in range(4)]
    for i, part in enumerate(parts):
        first.puts(f"part {i}", part)
    first.close()
    (tmp_path / "file").write_bytes(b"".join(parts))
    second = open_proxied(2)
    proxy.clear()
    second.put("all", tmp_path / "file")
    packs = proxy.count("HEAD", "/packs/")
    assert packs >= 4
    assert requests(proxy) == [
        "GET gc",
        "GET hints",
        "HEAD damaged",
        f"HEAD packs x{packs}",
        "LIST hints",
        "PUT names",
        "PUT packs",  # the seams
        "PUT pins",
    ]


@pytest.mark.plain("it counts on which chunks are deltas")
def test_a_next_version_relies_on_its_bases_once(open_proxied: Open, proxy: FaultProxy) -> None:
    """One more look at what is marked as damaged than a put of all of it takes, and a pin, the
    collector's plans and a HEAD, as for chunks that are reused."""
    versions = [edited(noise(LARGE), i, every=500) for i in range(4)]
    open_proxied(1).puts("version 0", versions[0])
    store = warmed(open_proxied(1), proxy)
    store.puts("version 1", versions[1])
    once = ["GET gc", "HEAD damaged", "HEAD packs", "PUT names", "PUT packs", "PUT pins"]
    assert requests(proxy) == once
    store.puts("version 2", versions[2])
    assert requests(proxy) == ["HEAD damaged", "PUT names", "PUT packs"]
    sent = LARGE / 8
    assert store.info("version 2").stored_bytes < sent
    proxy.clear()
    store.puts("version 3", versions[3], like="version 1")  # is looked up, as any name
    assert requests(proxy) == ["GET names", "HEAD damaged", "PUT names", "PUT packs"]
    assert store.info("version 3").stored_bytes < sent


def test_closing_tells_and_unpins_at_once(open_proxied: Open, proxy: FaultProxy) -> None:
    store = warmed(open_proxied(), proxy)
    meeting = Meeting()
    proxy.inject("PUT", "/hints/", meeting)
    proxy.inject("POST", "", meeting)
    store.close()
    assert requests(proxy) == ["POST delete", "PUT hints"]


def test_the_first_pack_of_a_put_is_on_its_way_early(
    open_proxied: Open, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the stream is read, and those that follow are larger."""
    monkeypatch.setattr(uploads, "PACK_BYTES_FIRST", 100_000)
    monkeypatch.setattr(uploads, "PACK_BYTES_MAX", 400_000)
    store = open_proxied()
    proxy.clear()
    store.puts("a", noise(1_500_000))
    sizes = sorted(exchange.sent_bytes for exchange in proxy.matching("PUT", "/packs/"))
    assert sum(sizes) > 1_500_000
    # A few chunks are left at the end.
    assert [round(size / 100_000) for size in sizes] == [0, 1, 2, 4, 4, 4]


def test_no_chunk_is_uploaded_twice_by_one_put(
    open_proxied: Open,
    proxy: FaultProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also one whose packs are many, and whose chunks are too many to be kept in memory."""
    monkeypatch.setattr(uploads, "PACK_BYTES_MAX", 200_000)
    parts = [noise(300_000, seed) for seed in range(4)]
    (tmp_path / "file").write_bytes(b"".join(parts * 3))
    store = open_proxied()
    proxy.clear()
    store.put("a", tmp_path / "file")
    sent = sum(exchange.sent_bytes for exchange in proxy.matching("PUT", "/packs/"))
    assert 1_200_000 < sent < 1_200_000 * 1.15  # the seams of the parts differ
    assert proxy.count("PUT", "/packs/") > 5
    assert store.gets("a") == b"".join(parts * 3)
    monkeypatch.setattr(writer, "BATCH_BYTES", 32 << 10)
    monkeypatch.setattr(writer, "CUT_BYTES", 32 << 10)
    monkeypatch.setattr(uploads, "PACK_BYTES_MAX", 50_000)
    monkeypatch.setattr(uploads, "PLACED_MAX", 200)  # of 430; more than are on their way
    proxy.clear()
    parts = [noise(300_000, seed) for seed in range(10, 14)]
    store.puts("b", b"".join(parts * 3))
    sent = sum(exchange.sent_bytes for exchange in proxy.matching("PUT", "/packs/"))
    assert 1_200_000 < sent < 1_200_000 * 1.15


def test_a_place_that_is_not_remembered_is_looked_up(
    open_proxied: Open, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "PACK_BYTES_FIRST", 100_000)
    monkeypatch.setattr(uploads, "PACK_BYTES_MAX", 100_000)
    monkeypatch.setattr(uploads, "PLACED_MAX", 5)
    transaction = open_proxied().transaction()
    transaction.puts("a", noise(1_000_000))
    session = transaction._session
    assert isinstance(session, S3Session)
    session._uploads.finish()
    [first, *_] = transaction._operations
    assert isinstance(first, Publish)
    assert first.draft is not None
    extents = [each for _, raw in first.draft.segments for each in decode_segment(raw)]
    assert len(session._uploads.placed) == 5 < len(extents)
    places = [session.location(extent.chunk_id) for extent in extents]
    assert places == [extent.location for extent in extents]
    with pytest.raises(StoreIOError, match="repeat the put"):
        session.location(bytes(16))
    transaction.commit()


def small_and_many_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "PACK_BYTES_FIRST", 100_000)
    monkeypatch.setattr(uploads, "PACK_BYTES_MAX", 100_000)
    monkeypatch.setattr(writer, "BATCH_BYTES", 50_000)
    monkeypatch.setattr(writer, "CUT_BYTES", 50_000)
    monkeypatch.setattr("castore.s3.session.LOOKAHEAD_BYTES", 100_000)
    monkeypatch.setattr(hints, "LARGE_FRAMES", 1)


@pytest.mark.plain("bases are found as the stream goes on")
def test_packs_that_follow_are_relied_on_with_those_that_are_known(
    open_proxied: Open, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known stream waits a few times, and not once for each pack; one that has nothing to do with
    what follows asks for at most twice as many."""
    small_and_many_packs(monkeypatch)
    whole = noise(3_000_000)
    with open_proxied(0, chunk_bytes_avg=2816) as first:
        first.puts("whole", whole)
    proxy.clear()
    with open_proxied(1, threads=1) as second:
        second.puts("again", whole)
    packs = proxy.count("HEAD", "/packs/")
    assert packs >= 28
    assert proxy.count("PUT", "/packs/") == 0
    assert proxy.count("PUT", "/pins/") <= 8
    proxy.clear()
    with open_proxied(2, threads=1) as third:
        parts = [whole[at : at + 90_000] for at in range(0, len(whole), 600_000)]
        third.puts("parts", b"".join(noise(200_000, 10 + i) + part for i, part in enumerate(parts)))
        assert third.gets("parts", (200_000, 290_000)) == parts[0]
    assert proxy.count("HEAD", "/packs/") <= 25


@pytest.mark.plain("bases are found as the stream goes on")
def test_packs_that_follow_and_are_gone_are_not_relied_on(
    open_proxied: Open, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were looked for before the stream came to them."""
    small_and_many_packs(monkeypatch)
    whole = noise(1_500_000)
    with open_proxied(0, chunk_bytes_avg=2816) as first:
        first.puts("whole", whole)
        first.puts("whole", b"")  # so that no name misses them
        with Bucket(parse_settings(f"{first.path}?endpoint_url={proxy.url}")) as bucket:
            keys = sorted(entry.key for entry in bucket.list("packs/"))
            bucket.delete_many(keys[1::2])
    proxy.clear()
    with open_proxied(1, threads=1) as second:
        second.puts("again", whole)
        asked = [exchange.key for exchange in proxy.matching("HEAD", "/packs/")]
        assert len(asked) == len(set(asked))  # each once
        assert len(asked) >= len(keys) - 1
        assert second.gets("again") == whole
    assert 0 < proxy.count("PUT", "/packs/") < len(keys)
    with open_proxied(3) as third:
        assert third.gets("again") == whole
        assert third.check(read_data=True).exit_code == 0


def test_if_absent_and_delete_and_rename(open_proxied: Open, proxy: FaultProxy) -> None:
    store = warmed(open_proxied(), proxy)
    store.puts("a", noise(SMALL), if_absent=True)
    # The first look spares a large upload, the second is for servers without preconditions.
    assert requests(proxy) == ["GET names", "HEAD names", "PUT names"]
    store.rename("a", "b")
    assert requests(proxy) == ["DELETE names", "GET names", "PUT names"]
    store.delete("b")
    assert requests(proxy) == ["DELETE names", "HEAD names"]
    with pytest.raises(NameNotFound):
        store.delete("b")
    assert requests(proxy) == ["HEAD names"]


@pytest.mark.plain("what is relied on as a base takes a HEAD")
def test_a_transaction_is_one_put_for_each_name(open_proxied: Open, proxy: FaultProxy) -> None:
    store = warmed(open_proxied(), proxy)
    with store.transaction() as transaction:
        for i in range(5):
            transaction.puts(f"a/{i}", noise(100_000, i))
        transaction.puts("a/_SUCCESS", b"")
    assert proxy.matching("PUT", "/names/")[-1].key.endswith("/_SUCCESS")
    marker = proxy.matching("PUT", "/_SUCCESS")[0]
    assert all(0 < other.answered < marker.began for other in proxy.matching("PUT", "/a/[0-9]"))
    assert requests(proxy) == ["PUT names x6", "PUT packs"]


# ---------------------------------------------------------------- reading


def test_a_cold_range_is_the_manifest_then_the_frames(
    open_proxied: Open, proxy: FaultProxy
) -> None:
    data = noise(LARGE)
    open_proxied(1).puts("a", data)
    store = open_proxied(2)
    proxy.clear()
    assert store.gets("a", (1000, 50_000)) == data[1000:50_000]
    assert requests(proxy) == ["GET names", "GET packs"]


class Meeting:
    """Holds requests back until so many are there: what does not overlap fails."""

    def __init__(self, parties: int = 2) -> None:
        self.barrier = threading.Barrier(parties)

    def __call__(self, exchange: Exchange, connection: Connection) -> None:
        self.barrier.wait(10)
        connection.relay(exchange)


def test_a_warm_range_is_two_requests_at_once(open_proxied: Open, proxy: FaultProxy) -> None:
    """One conditional GET and one ranged GET, in flight together, also where only the index is
    warm, and where a process begins with it."""
    data = noise(LARGE)
    open_proxied(1).puts("a", data)
    store = open_proxied(2, disk_cache_bytes=0)
    assert store.info("a").size == LARGE
    for warm in (store, open_proxied(2, disk_cache_bytes=0)):
        for begin in (0, 300_000):
            proxy.clear()
            proxy.rules.clear()
            proxy.inject("GET", "", Meeting(), times=2)
            assert warm.gets("a", (begin, begin + 20_000)) == data[begin : begin + 20_000]
            asked = {exchange.key.split("/")[3]: exchange for exchange in proxy.exchanges}
            assert requests(proxy) == ["GET names", "GET packs"]
            assert asked["names"].status == 304
            assert "if-none-match" in asked["names"].headers
            assert asked["packs"].status == 206
            assert asked["packs"].received_bytes < 20_000 + 2 * 11_264 + 1000


@pytest.mark.plain("it counts on which chunks are deltas")
def test_a_range_of_deltas_is_one_round_trip(open_proxied: Open, proxy: FaultProxy) -> None:
    """The frames, those that they decode with in another pack, and whether it still is the version:
    all in flight together."""
    versions = [edited(noise(LARGE), i, every=500) for i in range(2)]
    for i, version in enumerate(versions):
        with open_proxied(1) as writer:
            writer.puts(f"version {i}", version)
    store = open_proxied(2, disk_cache_bytes=0)
    assert store.info("version 1").stored_bytes < LARGE / 8
    proxy.clear()
    proxy.inject("GET", "", Meeting(3), times=3)
    assert store.gets("version 1", (200_000, 220_000)) == versions[1][200_000:220_000]
    assert requests(proxy) == ["GET names", "GET packs x2"]


def test_a_warm_inline_object_is_one_conditional_get(open_proxied: Open, proxy: FaultProxy) -> None:
    store = open_proxied()
    store.puts("a", noise(SMALL))
    for _ in range(2):
        proxy.clear()
        assert store.gets("a") == noise(SMALL)
        assert [exchange.status for exchange in proxy.exchanges] == [304]


def test_what_is_known_is_not_believed(open_proxied: Open, proxy: FaultProxy) -> None:
    """Another machine overwrites, then deletes, what this one knows."""
    here, there = open_proxied(1), open_proxied(2)
    here.puts("a", noise(LARGE, 1))
    assert here.gets("a", (5, 900)) == noise(LARGE, 1)[5:900]
    there.puts("a", noise(LARGE, 2))
    proxy.clear()
    assert here.gets("a", (5, 900)) == noise(LARGE, 2)[5:900]
    assert requests(proxy) == ["GET names", "GET packs"]  # the frames of version 1 are cached
    there.delete("a")
    with pytest.raises(NameNotFound):
        here.gets("a", (5, 900))


def test_a_cached_open_file_asks_nothing(open_proxied: Open, proxy: FaultProxy) -> None:
    data = noise(LARGE)
    open_proxied(1).puts("a", data)
    store = open_proxied(2)
    with store.open("a") as file:
        assert file.read() == data
        proxy.clear()
        for _ in range(5):
            file.seek(random.randrange(LARGE))
            at = file.tell()
            assert file.read(5000) == data[at : at + 5000]
        assert requests(proxy) == []
    # Nor does another process but for the version.
    with open_proxied(2).open("a") as file:
        proxy.clear()
        assert file.read() == data
        assert requests(proxy) == []


def test_opening_an_object_asks_for_its_version_once(open_proxied: Open, proxy: FaultProxy) -> None:
    store = open_proxied()
    store.puts("a", noise(LARGE))
    proxy.clear()
    with store.open("a"):
        assert [exchange.status for exchange in proxy.exchanges] == [304]


def test_facts_are_one_request(open_proxied: Open, proxy: FaultProxy) -> None:
    store = open_proxied(1)
    store.puts("a", noise(LARGE))
    store.puts("small", noise(SMALL))
    for machine in (1, 2):
        store = open_proxied(machine)
        proxy.clear()
        assert store.exists("a")
        assert store.size("small") == SMALL
        assert not store.exists("absent")
        assert requests(proxy) == ["GET names x3"]
        assert store.exists("a")
        assert requests(proxy) == ["GET names"]


def test_a_listing_asks_for_what_is_new_to_it(open_proxied: Open, proxy: FaultProxy) -> None:
    other = open_proxied(1)
    for i in range(5):
        other.puts(f"a/{i}", noise(SMALL, i))
    store = open_proxied(2)
    proxy.clear()
    assert [info.size for info in store.list()] == [SMALL] * 5
    assert requests(proxy) == ["GET names x5", "LIST names"]
    assert [info.size for info in store.list()] == [SMALL] * 5
    assert requests(proxy) == ["LIST names"]
    other.puts("a/3", noise(SMALL + 1))
    proxy.clear()
    assert [info.size for info in store.list()] == [SMALL] * 3 + [SMALL + 1, SMALL]
    assert requests(proxy) == ["GET names", "LIST names"]
    assert list(store.names()) == [f"a/{i}" for i in range(5)]
    assert requests(proxy) == ["LIST names"]


def test_a_listing_of_several_pages(
    open_proxied: Open, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where pages end changes nothing; nothing is asked again at their end."""
    monkeypatch.setattr("castore.s3.catalog.PAGE_NAMES", 2)
    store = open_proxied()
    names = [f"a/{i}" for i in range(5)]
    for name in names:
        store.puts(name, noise(SMALL))
    for last in ("a/4", "a/3"):
        proxy.clear()
        assert list(store.names("a/")) == names
        assert [info.name for info in store.list("a/")] == names
        assert requests(proxy) == ["LIST names x2"]
        store.delete(last)
        names.remove(last)
    proxy.clear()
    assert store.delete_prefix("a/") == 3
    assert requests(proxy)[-1] == "LIST names"


def test_a_listing_asks_for_many_at_once(open_proxied: Open, proxy: FaultProxy) -> None:
    """So that thousands of names, new to this machine, take a sixteenth of that many round
    trips."""
    other = open_proxied(1)
    with other.transaction() as transaction:
        for i in range(32):
            transaction.puts(f"a/{i:02}", noise(SMALL, i))
    store = open_proxied(2)
    proxy.clear()
    proxy.inject("GET", "/names/", Meeting(16), times=32)
    assert [info.size for info in store.list()] == [SMALL] * 32
    assert requests(proxy) == ["GET names x32", "LIST listings", "LIST names"]
    proxy.rules.clear()
    proxy.inject("GET", "/names/", Meeting(16), times=32)
    assert open_proxied(3).stats().objects == 32


def test_gets_many_is_one_plan(open_proxied: Open, proxy: FaultProxy) -> None:
    """Ranges that are near each other share a request, in whatever order they are asked for."""
    data = noise(4_000_000)
    open_proxied(1).puts("a", data)
    store = open_proxied(2, disk_cache_bytes=0)
    store.info("a")
    proxy.clear()
    near = [(100_000 + i * 30_000, 100_000 + i * 30_000 + 10) for i in range(20)]
    far = [(3_000_000, 3_000_100)]
    asked = near[::-1] + far + [near[3], (0, 0)]
    assert store.gets_many("a", asked) == [data[begin:end] for begin, end in asked]
    assert requests(proxy) == ["GET names", "GET packs x2"]


def test_a_full_get_fetches_each_byte_once(
    open_proxied: Open, proxy: FaultProxy, tmp_path: Path
) -> None:
    data = noise(9_000_000)
    open_proxied(1).puts("a", data)
    store = open_proxied(2)
    proxy.clear()
    store.get("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == data
    fetched = sum(exchange.received_bytes for exchange in proxy.matching("GET", "/packs/"))
    assert len(data) < fetched < len(data) * 1.02
    assert proxy.count("GET", "/packs/") <= 3
    proxy.clear()
    assert store.gets("a") == data
    assert requests(proxy) == ["GET names"]


def test_threads_that_want_the_same_share_one_request(
    open_proxied: Open, proxy: FaultProxy
) -> None:
    data = noise(LARGE)
    open_proxied(1).puts("a", data)
    store = open_proxied(2, disk_cache_bytes=0)
    store.info("a")
    proxy.clear()

    def slow(exchange: Exchange, connection: Connection) -> None:
        time.sleep(0.5)
        connection.relay(exchange)

    proxy.inject("GET", "/packs/", slow)
    threads = [threading.Thread(target=store.gets, args=("a", (0, 3000))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert proxy.count("GET", "/packs/") == 1


def test_a_manifest_too_large_for_one_request(
    open_proxied: Open, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its head in one or two, of its segments only those that cover the range; then none."""
    data = noise(8_000_000)
    open_proxied(1).puts("a", data)
    for first_bytes in (100, 300, 5000):
        monkeypatch.setattr(versions_s3, "FIRST_BYTES", first_bytes)
        monkeypatch.setattr(versions_s3, "GAP_BYTES", 0)
        monkeypatch.setattr(versions_s3, "SEGMENTS_MAX", 2)
        store = open_proxied(first_bytes)
        proxy.clear()
        assert store.gets("a", (7_000_000, 7_000_010)) == data[7_000_000:7_000_010]
        heads = 1 + (first_bytes < 200)
        assert requests(proxy) == [f"GET names x{heads + 1}", "GET packs"]
        assert store.gets("a", (7_000_000, 7_000_010)) == data[7_000_000:7_000_010]
        assert requests(proxy) == ["GET names"]
        assert store.gets("a") == data
        assert open_proxied(first_bytes).gets("a") == data
        with store.open("a") as file:
            assert file.read() == data


def test_hints_of_many_sessions_are_merged(
    open_proxied: Open, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints, "SMALL_MAX", 4)
    monkeypatch.setattr(hints, "MERGERS", 1000)
    for i in range(6):
        store = open_proxied(i)
        store.puts(f"a/{i}", noise(LARGE, i))
        store.close()
    merged = proxy.count("PUT", "/hints/") - 6
    assert merged == 1
    store = open_proxied(10)
    proxy.clear()
    for i in range(6):
        store.puts(f"again/{i}", noise(LARGE, i))
        assert store.gets(f"again/{i}") == noise(LARGE, i)
    assert proxy.count("GET", "/hints/") <= 2
    assert proxy.count("PUT", "/packs/") == 0


def test_a_folder_is_one_request(open_proxied: Open, proxy: FaultProxy) -> None:
    store = open_proxied()
    for name in ["a/b", "a/c/d", "a/c/e", "x", "x-y"]:
        store.puts(name, b"1")
    proxy.clear()
    reader = open_proxied(2)
    requests(proxy)
    assert [entry.name for entry in reader.scandir("a", details=False)] == ["a/b", "a/c"]
    assert requests(proxy) == ["LIST names"]
    for name in ["a", "x", "a/b", "nothing"]:
        reader.kind(name)
        assert requests(proxy) == ["LIST names"], name
    assert [entry.info and entry.info.size for entry in reader.scandir("a")] == [1, None]
    assert requests(proxy) == ["GET names", "LIST names"], "the list, and the one object's record"
