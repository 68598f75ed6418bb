"""A store with `collision_guard="sha256"` keeps both of two chunks that have one id.

xxh3-128 has no known collisions that could be used here, so they are made: `codec._digest`, the one
place where ids come from, is replaced by one that gives every chunk the same id. What it is given
for a disambiguated id, a SHA-256, it hashes as ever.
"""

from __future__ import annotations

import io
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import castore
from castore import codec
from castore.errors import ChunkCorrupt, FormatError
from castore.format import FLAG_DISAMBIGUATED, FLAG_SHA256, decode_frame_header

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
    flags = [flags for flags, _ in frames_of(guarded)]
    ordinary = flags.count(FLAG_SHA256)
    assert 1 <= ordinary <= (1 if digest is one_id else 8)
    assert flags.count(FLAG_SHA256 | FLAG_DISAMBIGUATED) == len(flags) - ordinary > 50
    ids = [chunk_id for _, chunk_id in frames_of(guarded)]
    assert len(set(ids)) == len(ids)


def test_disambiguated_chunks_are_stored_once(
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
    assert {flags for flags, _ in frames_of(guarded)} == {FLAG_SHA256}
    assert guarded.stats().stored_bytes >= 100_000 + info.chunks * 64


def test_the_guard_is_the_stores_and_kept(guarded: castore.Store, tmp_path: Path) -> None:
    guarded.close()
    with castore.open(guarded.path, collision_guard=None) as again:
        again.puts("a", noise(10_000, 1))
        assert {flags for flags, _ in frames_of(again)} == {FLAG_SHA256}
    for wrong in ("md5", "SHA256", True, b"sha256"):
        with pytest.raises(ValueError, match="collision_guard is None or 'sha256'"):
            castore.open(tmp_path / "other", collision_guard=wrong)  # type: ignore[arg-type]
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("where", ["sha256", "payload", "header"])
def test_damage_to_a_frame_does_not_stop_a_put_of_the_same_bytes(
    guarded: castore.Store, where: str
) -> None:
    """Whatever a stored frame says, the bytes being put are readable afterwards."""
    data = noise(1000, 1) * 5
    info = guarded.puts("a", data)
    guarded.close()
    (pack,) = Path(guarded.path).glob("packs/*/*.pack")
    at = 64 + {"sha256": 40, "payload": 70, "header": 5}[where]
    fd = os.open(pack, os.O_RDWR)
    os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 0xFF]), at)
    os.close(fd)
    with castore.open(guarded.path) as again:
        assert again.puts("b", data).size == info.size
        if where == "sha256":
            assert again.gets("a") == data, "the chunk itself is whole"
        try:
            assert again.gets("b") == data
        except (ChunkCorrupt, FormatError):
            assert where == "payload", "only frames that are read whole show this"
