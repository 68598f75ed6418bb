"""A store with `collision_guard="sha256"` keeps both of two chunks that have one id.

xxh3-128 has no known collisions that could be used here, so they are made: `codec._digest`, the one
place where ids come from, is replaced by one that gives every chunk the same id. What it is given
for the id of a guarded store, a SHA-256, it hashes as ever.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from gc_stores import World, collect

import castore
from castore.errors import ChunkCorrupt
from castore.format.config import encode_config
from castore.format.frame import FLAG_ID_OF_SHA256, FLAG_SHA256, decode_frame_header
from castore.stream import codec

FLAGS = FLAG_SHA256 | FLAG_ID_OF_SHA256

real_digest = codec._digest


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def one_id(raw: bytes | memoryview, seed: int = 0) -> bytes:
    return real_digest(raw, seed) if len(raw) == 32 else b"\x11" * 16


def one_of_eight_ids(raw: bytes | memoryview, seed: int = 0) -> bytes:
    return real_digest(raw, seed) if len(raw) == 32 else bytes([bytes(raw[:1])[0] % 8]) * 16


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[castore.Store]:
    with castore.open(
        tmp_path / "store", chunk_bytes_avg=2816, collision_guard="sha256", threads=2
    ) as store:
        yield store


def frames_of(store: castore.Store) -> list[tuple[int, bytes]]:
    """(flags, id) of every frame."""
    found = []
    for pack in Path(store.path).glob("packs/*/*.pack"):
        raw, at = pack.read_bytes(), 64
        while raw[at : at + 4] == b"CFRM":
            header = decode_frame_header(raw[at:])
            found.append((header.flags, header.chunk_id))
            at += header.header_bytes + header.payload_bytes
    return found


@pytest.mark.parametrize("digest", [one_id, one_of_eight_ids])
def test_colliding_chunks_are_all_kept(
    guarded: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digest: object
) -> None:
    monkeypatch.setattr(codec, "_digest", digest)
    contents = {f"{i}": noise(60_000, i) for i in range(4)}
    contents["text"] = b"".join(b"%d bottles of beer\n" % i for i in range(9000))
    contents["changed"] = contents["0"][:30_000] + b"!" + contents["0"][30_001:]
    contents["same length"] = bytes(30_000)
    contents["constant"] = b"\x08" * 30_000
    for i, (name, data) in enumerate(contents.items()):
        if i % 3 == 0:
            guarded.puts(name, data)
        elif i % 3 == 1:
            guarded.put(name, io.BytesIO(data))
        else:
            (tmp_path / "source").write_bytes(data)
            guarded.put(name, tmp_path / "source")
    for name, data in contents.items():
        assert guarded.gets(name) == data
        assert guarded.gets(name, (20_000, 20_100)) == data[20_000:20_100]
        with guarded.open(name) as file:
            assert file.read() == data
    guarded.close()
    with castore.open(guarded.path, cache_bytes=0) as again:
        for name, data in contents.items():
            assert again.gets(name) == data
    assert {flags for flags, _ in frames_of(guarded)} == {FLAGS}
    ids = [chunk_id for _, chunk_id in frames_of(guarded)]
    assert len(set(ids)) == len(ids) > 50


def test_colliding_chunks_are_stored_once(
    guarded: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec, "_digest", one_id)
    data = noise(100_000, 1)
    first = guarded.puts("a", data + data)
    stats = guarded.stats()
    assert guarded.puts("b", data + data).etag == first.etag
    with guarded.transaction() as transaction:
        transaction.puts("c", data)
        transaction.puts("d", data)
    guarded.close()
    with castore.open(guarded.path) as again:
        again.puts("e", data + data)
        after = again.stats()
        # Where the second half starts, and where `c` ends, a chunk differs.
        assert after.chunks <= stats.chunks + 2
        assert again.gets("e") == again.gets("a") == data + data
        assert again.gets("c") == again.gets("d") == data


@pytest.mark.damages_store("its hashes collide")
def test_without_the_guard_such_a_collision_would_not_be_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the replaced hash does what the other tests rely on."""
    monkeypatch.setattr(codec, "_digest", one_id)
    with castore.open(tmp_path / "store", chunk_bytes_avg=2816) as store:
        store.puts("a", bytes(11264))
        store.puts("b", b"\1" * 11264)
        assert store.gets("a") == bytes(11264)
        assert store.gets("b") == bytes(11264), "wrong bytes"
        store.puts("c", b"\1" * 10_000)
        with pytest.raises(ChunkCorrupt):
            store.gets("c")


def test_a_guarded_store_without_collisions(guarded: castore.Store) -> None:
    data = noise(100_000, 1)
    info = guarded.puts("a", data)
    assert guarded.puts("b", data).etag == info.etag
    assert guarded.gets("b") == data
    assert guarded.stats().chunks == info.chunks
    assert {flags for flags, _ in frames_of(guarded)} == {FLAGS}
    assert guarded.stats().stored_bytes >= 100_000 + info.chunks * 64


def test_the_guard_is_the_stores_and_kept(guarded: castore.Store, tmp_path: Path) -> None:
    guarded.close()
    with castore.open(guarded.path, collision_guard=None) as again:
        again.puts("a", noise(10_000, 1))
        assert {flags for flags, _ in frames_of(again)} == {FLAGS}
    for wrong in ("md5", "SHA256", True, b"sha256"):
        with pytest.raises(ValueError, match="collision_guard is None or 'sha256'"):
            castore.open(tmp_path / "other", collision_guard=wrong)  # type: ignore[arg-type]
        assert not (tmp_path / "other").exists()


# ------------------------------------------------------------ one frame in the place of another

SIZE = 11264  # of every chunk of these
FIRST, SECOND = b"\1" * 8 * SIZE, b"\2" * 8 * SIZE


def put_unseen(one: castore.Store, other: castore.Store) -> None:
    """Two puts at once, neither of which sees what the other stores; then what makes packs worth
    rewriting."""
    with one.transaction() as first, other.transaction() as second:
        first.puts("first", FIRST)
        first.puts("waste 1", noise(70_000, 3))
        second.puts("second", SECOND)
        second.puts("waste 2", noise(70_000, 4))
    one.delete_prefix("waste", unbounded=True)


def assert_whole(store: castore.Store) -> None:
    for _ in range(2):  # the second time from the cache of decoded chunks
        assert store.gets("first") == FIRST
        assert store.gets("second") == SECOND
    problems = store.check(read_data=True).problems
    assert all(problem.severity == "warning" for problem in problems), problems  # garbage


def test_puts_that_do_not_see_each_other(
    guarded: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec, "_digest", one_id)
    put_unseen(guarded, guarded)
    guarded.copy("first", "copy")
    for _ in range(2):
        assert guarded.gets("first") == guarded.gets("copy") == FIRST
        assert guarded.gets("second") == SECOND
    assert guarded.gc(repack_below=1).packs_rewritten
    assert_whole(guarded)
    guarded.close()
    castore.rebuild_index(guarded.path)
    with castore.open(guarded.path) as again:
        again.puts("second again", SECOND)
        again.puts("first again", FIRST)
        assert_whole(again)
        assert again.gets("first again") == FIRST
        assert again.gets("second again") == SECOND


@pytest.mark.damages_store("its hashes collide")
def test_a_repair_takes_no_other_chunk_for_a_lost_one(
    guarded: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec, "_digest", one_id)
    put_unseen(guarded, guarded)
    guarded.close()
    [pack] = Path(guarded.path).glob("packs/*/*.pack")
    raw = bytearray(pack.read_bytes())
    raw[64 + 70] ^= 1  # of the first frame
    pack.write_bytes(raw)
    values = {"first": FIRST, "second": SECOND}
    with castore.open(guarded.path) as again:
        again.check(repair=True)
        [name] = [name for name in again.names() if name in values]
        assert again.gets(name) == values[name], "the other's bytes"
        for lost in values.keys() - {name}:
            again.puts(lost, values[lost])
        assert_whole(again)


def test_machines_that_do_not_see_each_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_digest", one_id)
    config = encode_config(world.config._replace(collision_guard="sha256"))
    world.bucket().put("castore.json", config, idempotent=True)
    one, other = world.open("one"), world.open("other")
    put_unseen(one, other)
    assert_whole(one)
    other.close()  # and lets its packs go
    report = collect(one, repack_below=1)
    assert report.packs_rewritten == report.packs_removed == 2
    for machine in ("one", "other", "a new one"):
        other = world.open(machine)
        assert_whole(other)
    before = one.stats().stored_bytes
    one.puts("second again", SECOND)
    assert other.gets("second again") == SECOND
    assert one.stats().stored_bytes == before, "it is stored already"
