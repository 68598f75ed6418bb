"""Damaged packs: an object reads right, or not at all. Never wrong bytes."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from places import SUPPORT
from read_ways import CONTENTS, noise, packs_of, read_everything, text, ways_to_read

import castore
from castore.errors import ChunkCorrupt, FormatError, PackMissing, StoreIOError
from castore.stream import chunkreader, decoding
from castore.stream.decoding import DecodedChunks
from castore.system.mapping import Mapping


@pytest.fixture(params=[None, "sha256"], ids=["plain", "guarded"])
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A store in two sealed packs."""
    root = tmp_path / "store"
    options = {"chunk_bytes_avg": 2816, "collision_guard": request.param}
    for names in (["noise", "text", "inline"], ["both", "again", "empty"]):
        with castore.open(root, **options) as store:
            for name in names:
                store.puts(name, CONTENTS[name])
    return root


class Flip:
    """One byte of a pack, changed within the block."""

    def __init__(self, rng: random.Random, packs: list[Path]) -> None:
        self.pack = rng.choices(packs, [pack.stat().st_size for pack in packs])[0]
        self.at = rng.randrange(self.pack.stat().st_size)
        self.bits = rng.choice([1 << rng.randrange(8), rng.randrange(1, 256)])

    def __enter__(self) -> None:
        self._turn()

    def __exit__(self, *_: object) -> None:
        self._turn()

    def _turn(self) -> None:
        with open(self.pack, "r+b", buffering=0) as file:
            was = os.pread(file.fileno(), 1, self.at)[0]
            os.pwrite(file.fileno(), bytes([was ^ self.bits]), self.at)


# ---------------------------------------------------------------- flips


def flip_and_read_afresh(path: Path, folder: Path, count: int) -> Counter[str]:
    """A Store that was not open before the damage: nothing is mapped or cached."""
    rng = random.Random("flips")
    outcomes: Counter[str] = Counter()
    packs = packs_of(path)
    for _ in range(count):
        with Flip(rng, packs), castore.open(path, threads=1) as store:
            seen = read_everything(store, folder)
            outcomes["noticed" if set(seen) != {"right"} else "harmless"] += 1
            assert seen["right"] >= 6 * 2, "inline objects are in no pack"
    with castore.open(path) as store:
        assert set(read_everything(store, folder)) == {"right"}
    return outcomes


def flip_under_a_live_store(path: Path, folder: Path, count: int) -> Counter[str]:
    """A Store whose mappings are there, with and without a cache of decoded chunks."""
    rng = random.Random("live flips")
    outcomes: Counter[str] = Counter()
    packs = packs_of(path)
    with castore.open(path, cache_bytes=0, threads=1) as store, castore.open(path) as caching:
        for opened in (store, caching):
            assert set(read_everything(opened, folder)) == {"right"}
        for _ in range(count):
            with Flip(rng, packs):
                seen = read_everything(store, folder)
                outcomes["noticed" if set(seen) != {"right"} else "harmless"] += 1
                read_everything(caching, folder)
            assert set(read_everything(store, folder)) == {"right"}, "mended, and read again"
    return outcomes


def check_outcomes(outcomes: Counter[str]) -> None:
    """Nearly all of a pack matters; what does not is its footer."""
    assert outcomes["noticed"] > 10 * outcomes["harmless"] / 4


def test_flipped_bytes_read_afresh(path: Path, tmp_path: Path) -> None:
    check_outcomes(flip_and_read_afresh(path, tmp_path, 60))


def test_flipped_bytes_under_a_live_store(path: Path, tmp_path: Path) -> None:
    check_outcomes(flip_under_a_live_store(path, tmp_path, 25))


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_2_000_flipped_bytes_read_afresh(path: Path, tmp_path: Path) -> None:
    check_outcomes(flip_and_read_afresh(path, tmp_path, 2000))


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_2_000_flipped_bytes_under_a_live_store(path: Path, tmp_path: Path) -> None:
    check_outcomes(flip_under_a_live_store(path, tmp_path, 2000))


def test_every_byte_of_a_pack_header_and_a_frame(path: Path, tmp_path: Path) -> None:
    """The structured parts, one byte after the other."""
    pack = packs_of(path)[0]
    original = pack.read_bytes()
    for at in range(0, 64 + 32 + 32 + 16, 2):
        damaged = bytearray(original)
        damaged[at] ^= 0xFF
        pack.write_bytes(damaged)
        with castore.open(path, threads=1) as store:
            read_everything(store, tmp_path)
    pack.write_bytes(original)


@pytest.mark.damages_store("a pack is damaged")
def test_one_damaged_chunk_costs_one_chunk(path: Path, tmp_path: Path) -> None:
    """What does not touch it can be read, and the error says where it is."""
    with castore.open(path, cache_bytes=0) as store:
        plan = store.explain_range("noise", (30_000, 30_001))
        assert plan.chunks == 1
        needle = CONTENTS["noise"][30_000:30_020]
        (pack,) = [pack for pack in packs_of(path) if needle in pack.read_bytes()]
        at = pack.read_bytes().index(needle)
        with open(pack, "r+b") as file:
            file.seek(at)
            file.write(b"damage")
        with pytest.raises(ChunkCorrupt, match="is corrupt at byte") as caught:
            store.gets("noise", (30_000, 30_001))
        error = caught.value
        assert error.pack_id.hex() == pack.stem
        assert error.offset <= at < error.offset + plan.frame_bytes
        assert len(error.chunk_id) == 16
        assert error.chunk_id.hex() in str(error)
        assert store.gets("noise", (0, 15_000)) == CONTENTS["noise"][:15_000]
        assert store.gets("noise", (45_000, 60_000)) == CONTENTS["noise"][45_000:]
        assert store.gets("text") == CONTENTS["text"]
        with store.open("noise") as reading:
            assert reading.read(15_000) == CONTENTS["noise"][:15_000], (
                "good bytes are not held back"
            )
            with pytest.raises(ChunkCorrupt):
                reading.read()
            reading.seek(50_000)
            assert reading.read() == CONTENTS["noise"][50_000:]


@pytest.mark.damages_store("a pack is damaged")
def test_damage_in_large_reads_of_several_threads(tmp_path: Path) -> None:
    data = noise(20 << 20, 9)
    with castore.open(tmp_path / "store", threads=4) as store:
        store.puts("name", data)
        (pack,) = packs_of(store.path)
        fd = os.open(pack, os.O_RDWR)
        os.pwrite(fd, b"damage", 15 << 20)
        os.close(fd)
        for read in (
            lambda: store.gets("name"),
            lambda: store.get("name", tmp_path / "target"),
            lambda: store.get("name", io.BytesIO()),
            lambda: store.open("name").read(),
        ):
            with pytest.raises(ChunkCorrupt):
                read()
        assert store.gets("name", (0, 5 << 20)) == data[: 5 << 20]
        assert os.listdir(tmp_path) == ["store"]


# ---------------------------------------------------------------- truncations

# In a process of its own: a fault that nobody catches would take all tests with it.
TRUNCATIONS = """
import json, os, random, sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import castore
from castore.errors import PackMissing, StoreIOError
from read_ways import packs_of, read_everything

path, folder, count, live = Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
rng = random.Random("truncations")
outcomes = Counter()
packs = {pack: pack.read_bytes() for pack in packs_of(path)}
for i in range(count):
    pack, whole = rng.choice(list(packs.items()))
    size = rng.choice([0, 1, 63, 64, 4096, 8192, len(whole) - 1, *[rng.randrange(len(whole))] * 8])
    if live == "live":
        with castore.open(path, cache_bytes=0, threads=1) as store:
            with store.open("noise") as one, store.open("text") as two, store.open("both") as three:
                assert set(read_everything(store, folder)) == {"right"}
                os.truncate(pack, size)
                for file in (one, two, three):
                    try:
                        assert file.read() == store_contents[file.info.name]
                    except NameError:
                        raise
                    except OSError:
                        pass
                seen = read_everything(store, folder, (StoreIOError,))
    else:
        os.truncate(pack, size)
        with castore.open(path, threads=1) as store:
            seen = read_everything(store, folder)
    assert seen["right"] >= 6 * 2
    outcomes["noticed" if set(seen) != {"right"} else "harmless"] += 1
    pack.write_bytes(whole)
    if live == "live":
        with castore.open(path, threads=1) as store:
            assert set(read_everything(store, folder)) == {"right"}
print(json.dumps(outcomes))
""".replace("store_contents", "__import__('read_ways').CONTENTS")


def truncate(path: Path, folder: Path, count: int, how: str) -> None:
    if how == "live" and not Mapping.guarded:
        pytest.skip("only the extension's mapping survives it")
    arguments = [str(SUPPORT), str(path), str(folder), str(count), how]
    done = subprocess.run(
        [sys.executable, "-c", TRUNCATIONS, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, f"status {done.returncode}\n{done.stderr}"
    outcomes = json.loads(done.stdout)
    assert sum(outcomes.values()) == count
    assert outcomes["noticed"] >= count / 2, "what only reaches the footer is harmless"


@pytest.mark.parametrize("how", ["afresh", "live"])
def test_truncated_packs(path: Path, tmp_path: Path, how: str) -> None:
    truncate(path, tmp_path, 10, how)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("how", ["afresh", "live"])
def test_500_truncated_packs(path: Path, tmp_path: Path, how: str) -> None:
    truncate(path, tmp_path, 500, how)


def test_damage_read_by_new_processes(path: Path, tmp_path: Path) -> None:
    """The same from the outside, with nothing shared but the disk."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import castore; from pathlib import Path; from read_ways import read_everything\n"
        "with castore.open(sys.argv[2]) as store:\n"
        "    print(*read_everything(store, Path(sys.argv[3])))"
    )
    rng = random.Random("processes")
    command = [sys.executable, "-c", program, str(SUPPORT), str(path), str(tmp_path)]
    for _ in range(4):
        with Flip(rng, packs_of(path)):
            done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "right" in done.stdout


def test_lost_packs_are_said_to_be_missing(path: Path, tmp_path: Path) -> None:
    for pack in packs_of(path):
        pack.rename(tmp_path / pack.name)
    with castore.open(path) as store:
        assert store.gets("inline") == CONTENTS["inline"]
        for name in ("noise", "text", "both", "again"):
            for read in ways_to_read(store, name, tmp_path):
                with pytest.raises(PackMissing, match="restore it from a backup") as caught:
                    read()
                assert (tmp_path / f"{caught.value.pack_id.hex()}.pack").exists()
        for pack in tmp_path.glob("*.pack"):
            pack.rename(path / "packs" / pack.name[:2] / pack.name)
        assert set(read_everything(store, tmp_path)) == {"right"}, "back, and read again"


def test_packs_of_another_store_and_swapped_packs_are_refused(path: Path, tmp_path: Path) -> None:
    with castore.open(tmp_path / "other", chunk_bytes_avg=2816) as other:
        other.puts("noise", CONTENTS["noise"])
    (foreign,) = packs_of(tmp_path / "other")
    one, two = packs_of(path)
    contents = {one: one.read_bytes(), two: two.read_bytes()}
    for replacement in (foreign.read_bytes(), contents[two], bytes(len(contents[one]))):
        one.write_bytes(replacement)
        with castore.open(path) as store:
            seen = read_everything(store, tmp_path)
            assert seen["right"] < 6 * 6
            with pytest.raises((FormatError, ChunkCorrupt)):
                store.gets("noise" if "noise" in damaged_names(store) else "both")
        one.write_bytes(contents[one])


def damaged_names(store: castore.Store) -> set[str]:
    damaged = set()
    for name in CONTENTS:
        try:
            store.gets(name)
        except (ChunkCorrupt, FormatError):
            damaged.add(name)
    return damaged


@pytest.mark.parametrize("seen", ["", "seen"])
def test_a_pack_that_is_being_truncated_while_it_is_read(tmp_path: Path, seen: str) -> None:
    """Bytes are checked where they are mapped and copied afterwards: what is cut off between the
    two must not come out as zeros, also where another thread has seen to it that it is zeros."""
    if not Mapping.guarded:
        pytest.skip("only the extension's mapping survives it")
    program = """
import os, sys, threading, random
import castore
from castore.stream import chunkreader, codec, decoding
from castore.errors import ChunkCorrupt, FormatError, StoreIOError

data = random.Random(1).randbytes(16000)
long = random.Random(2).randbytes(1_000_000)
store = castore.open(sys.argv[1], cache_bytes=0, threads=1)
assert store.puts("name", data).chunks == 1
assert store.puts("long", long).chunks > 4
store.copy("name", "same")
pack = [f"{a}/{n}" for a, _, names in os.walk(sys.argv[1]) for n in names if n.endswith(".pack")][0]
whole = open(pack, "rb").read()
first, second, third, *_ = [e for s in store._catalog.manifest(b"long")[1] for e in s]
decode = chunkreader.decode_frame
until_cut = 0  # how many chunks are decoded before, and that one

def checked_and_then_cut(*arguments):
    global until_cut
    raw = decode(*arguments)
    until_cut -= 1
    if until_cut == 0:
        os.truncate(pack, 4096)
        if sys.argv[3]:
            bytes(raw)
    return raw

def read_on():
    # From the end of a chunk on: nothing of what was read before is left.
    global until_cut
    file = store.open("long")
    until_cut = 0
    file.raw.readinto(bytearray(second.end))
    until_cut = 1
    into = bytearray(third.end - second.end)
    return bytes(into[: file.raw.readinto(into)])

def small_together():
    for found in store.gets_ranges([("name", None), ("same", None)]):
        if isinstance(found, Exception):
            raise found
        assert found == data, "wrong bytes"

def append():
    with store.open("name", "ab") as file:
        file.write(b"more")
    return store.gets("name")

chunkreader.decode_frame = decoding.decode_frame = codec.decode_frame = checked_and_then_cut
parts = [(at, at + 1) for at in range(100)] + [(second.end - 1, second.end)]
for chunks, right, read in (
    (1, data, lambda: store.gets("name")),
    (1, data, lambda: store.open("name").read()),
    (1, data, lambda: store.open("name").read(8000)),
    (1, data, lambda: store.get("name", sys.argv[2])),
    (1, data, lambda: store.get("name", open(sys.argv[2], "wb", buffering=0))),
    (2, long, lambda: store.gets("long", (0, second.end))),
    (2, long[:100] + long[second.end - 1:], lambda: b"".join(store.gets_many("long", parts))),
    (2, data, small_together),
    (1, long[second.end:], read_on),
    (1, data, append),
):
    until_cut = chunks
    try:
        got = read()
        assert not isinstance(got, bytes) or got == right[: len(got)], "wrong bytes"
        print("right")
    except (ChunkCorrupt, FormatError, StoreIOError) as error:
        print(type(error).__name__)
    open(pack, "r+b").write(whole)
"""
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-c", program),
            *(tmp_path / "store", tmp_path / "target", seen),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}{done.stderr}"
    assert len(done.stdout.split()) == 10
    assert "right" not in done.stdout, "the truncation came too late to matter"


def test_what_is_left_of_a_pack_that_was_cut_short_is_read_and_what_was_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the store that has seen it be cut short, and has it mapped."""
    if not Mapping.guarded:
        pytest.skip("only the extension's mapping survives it")
    with castore.open(tmp_path / "store", cache_bytes=0, threads=1) as store:
        values = {"first": noise(12_000, 1), "second": noise(30_000, 2)}
        store.puts_many(values)
        [pack] = packs_of(tmp_path / "store")
        whole = pack.read_bytes()
        decode = chunkreader.decode_frame

        def checked_and_then_cut(*arguments: Any) -> Any:
            raw = decode(*arguments)
            os.truncate(pack, 16384)
            return raw

        with store.open("first") as opened:
            with monkeypatch.context() as patched:
                patched.setattr(chunkreader, "decode_frame", checked_and_then_cut)
                with pytest.raises(StoreIOError, match="restore it from a backup"):
                    store.gets("second")
            assert opened.read() == store.gets("first") == values["first"]
        pack.write_bytes(whole)
        assert {name: store.gets(name) for name in values} == values
        assert store.check(read_data=True).problems == []


# ---------------------------------------------------------------- the cache of decoded chunks


def test_decoded_chunks_are_bounded_and_the_oldest_go_first() -> None:
    cache = DecodedChunks(100)

    def has(first: int, raw_bytes: int) -> bool:
        return cache.get([(bytes([first]) * 16, raw_bytes)]) != [None]

    for i in range(10):
        cache.put(bytes([i]) * 16, bytes(30))
    kept = [i for i in range(10) if has(i, 30)]
    assert kept == [7, 8, 9]
    assert has(0x07, 30)
    cache.put(b"\x20" * 16, bytes(40))
    assert has(0x07, 30), "used last, kept longest"
    assert not has(0x08, 30)
    cache.put(b"\x30" * 16, bytes(101))
    assert not has(0x30, 101), "larger than the cache"
    cache.put(b"\x07" * 16, bytes(30))
    assert not has(0x07, 29), "not what is asked for"


def test_reading_nearby_decodes_once(store: castore.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from castore.stream import chunkreader, decoding

    data = text(200_000, 1)
    store.puts("name", data)
    decoded: list[bytes] = []
    real = decoding.decode_frame

    def counted(frame: object, chunk_id: bytes, *rest: object) -> object:
        decoded.append(chunk_id)
        return real(frame, chunk_id, *rest)  # type: ignore[arg-type]

    for module in (decoding, chunkreader):
        monkeypatch.setattr(module, "decode_frame", counted)
    for _ in range(5):
        assert store.gets("name", (100_000, 100_010)) == data[100_000:100_010]
    assert len(decoded) == 1
    plan = store.explain_range("name", (50_000, 60_000))
    decoded.clear()
    assert store.gets("name", (50_000, 60_000)) == data[50_000:60_000]
    assert len(decoded) == plan.chunks, "only the chunks that cover the range"


def test_many_small_ranges_take_each_chunk_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever order, and as much memory as few chunks, not as all that they lie in."""
    raw = text(12 << 20, 1)
    rng = random.Random(1)
    begins = rng.choices(range(len(raw)), k=3000)
    ranges = [(at, at + (i % 12 if i % 100 else 300_000)) for i, at in enumerate(begins)]
    decoded: Counter[bytes] = Counter()
    decode_frame = decoding.decode_frame

    def counted(frame: Any, chunk_id: bytes, *rest: Any) -> Any:
        decoded[chunk_id] += 1
        return decode_frame(frame, chunk_id, *rest)

    with castore.open(tmp_path / "store", delta=False, cache_bytes=1 << 20) as store:
        store.put("text", io.BytesIO(raw))
        store.gets("text", (0, 10))
        monkeypatch.setattr(decoding, "decode_frame", counted)
        tracemalloc.start()
        try:
            found = store.gets_many("text", ranges)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert found == [raw[begin:end] for begin, end in ranges]
    assert max(decoded.values()) == 1
    assert peak < 60 << 20  # and not 3,000 chunks


def test_without_a_cache(tmp_path: Path) -> None:
    with castore.open(tmp_path / "store", cache_bytes=0) as store:
        store.puts("name", text(200_000, 1))
        for _ in range(2):
            assert store.gets("name", (5, 10)) == text(200_000, 1)[5:10]


@pytest.mark.parametrize("missing", ["StoreIOError", "PackMissing"])
def test_errors_of_reading_are_errors_of_the_system_too(missing: str) -> None:
    kinds = {"StoreIOError": StoreIOError, "PackMissing": PackMissing}
    assert issubclass(kinds[missing], OSError)
    assert issubclass(ChunkCorrupt, OSError)
    assert issubclass(FormatError, ValueError)


def test_a_get_without_a_descriptor_left_says_that_and_nothing_else(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.puts("name", os.urandom(300_000))

    def none_left(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "dup", none_left)
    with pytest.raises(OSError, match="Too many open files"):
        store.get("name", tmp_path / "out")
    assert os.listdir(tmp_path) == ["store"]
