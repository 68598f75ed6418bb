"""Pack files: append, sync, seal, rotate, and whose they are."""

from __future__ import annotations

import fcntl
import os
import random
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import oracle
import pytest
from frames import encode_frame
from threads import in_threads

import castore
from castore.errors import FormatError, PackMissing, PackPoisoned, StoreClosed
from castore.format.frame import decode_frame_header
from castore.format.pack import (
    PACK_HEADER_BYTES,
    PackEntry,
    decode_footer,
    decode_pack_header,
    decode_trailer,
)
from castore.local import packs as local_packs
from castore.local.pack import Placement
from castore.local.packs import LocalPacks
from castore.model import Location
from castore.stream.codec import chunk_id_of
from castore.system.lockfile import LockFile

STORE_ID = b"the store's id.."


@pytest.fixture
def packs(tmp_path: Path) -> Iterator[LocalPacks]:
    packs = LocalPacks(str(tmp_path / "packs"), STORE_ID)
    yield packs
    packs.close()


def frames(count: int, *, seed: int = 0, size: int = 5000) -> list:  # type: ignore[type-arg]
    source = random.Random(f"packs {seed}")
    raws = [source.randbytes(size + i) for i in range(count)]
    return [encode_frame(raw, chunk_id_of(raw, 7), level=1) for raw in raws]


def files(packs: LocalPacks) -> list[Path]:
    return sorted(Path(packs.root).glob("*/*.pack"))


def lock_is_free(path: Path) -> bool:
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def commit(packs: LocalPacks, placement: Placement) -> None:
    """As a session ends a put."""
    placement.sync()
    for pack in placement.upto:
        pack.named = True
    packs.release(placement)


def test_frames_are_where_append_says(packs: LocalPacks) -> None:
    placement = Placement()
    some = frames(20)
    locations = packs.append(some[:7], placement) + packs.append(some[7:], placement)
    assert len({location.pack_id for location in locations}) == 1
    at = PACK_HEADER_BYTES
    for frame, (pack_id, offset, stored_bytes, _) in zip(some, locations, strict=True):
        assert offset == at
        assert stored_bytes == frame.stored_bytes
        at += stored_bytes
        whole = memoryview(packs.mapping(pack_id, offset + stored_bytes))
        assert whole[offset : offset + stored_bytes] == frame.head + frame.payload
    (path,) = files(packs)
    assert path.stem == locations[0].pack_id.hex()
    assert path.parent.name == path.stem[:2]
    raw = path.read_bytes()
    assert decode_pack_header(raw[:PACK_HEADER_BYTES]) == (STORE_ID, locations[0].pack_id)
    assert len(raw) == at
    commit(packs, placement)


def scanned(raw: bytes) -> Iterator[PackEntry]:
    """What a recovery finds in a pack without its footer."""
    at = PACK_HEADER_BYTES
    while raw[at : at + 4] == b"CFRM":
        header = decode_frame_header(raw[at:])
        stored = header.header_bytes + header.payload_bytes
        if at + stored > len(raw):
            return
        yield PackEntry(header.chunk_id, at, stored, header.raw_bytes)
        at += stored


def test_a_sealed_pack_ends_with_its_footer(packs: LocalPacks) -> None:
    placement = Placement()
    some = frames(300, size=900)
    locations = packs.append(some, placement)
    commit(packs, placement)
    (path,) = files(packs)
    with pytest.raises(FormatError):
        decode_trailer(path.read_bytes()[-40:], path.stat().st_size)
    unsealed = list(scanned(path.read_bytes()))
    packs.close()
    raw = path.read_bytes()
    offset, count = decode_trailer(raw[-40:], len(raw))
    entries = decode_footer(raw[offset:], len(raw))
    assert count == len(entries) == 300
    assert entries == unsealed == list(scanned(raw))
    assert [(entry.offset, entry.stored_bytes) for entry in entries] == [
        (location.offset, location.stored_bytes) for location in locations
    ]
    assert [entry.chunk_id for entry in entries] == [frame.chunk_id for frame in some]


def test_a_pack_whose_writer_was_killed_can_be_scanned(tmp_path: Path) -> None:
    program = """
import os, random, sys
import castore
store = castore.open(sys.argv[1], chunk_bytes_avg=2816, threads=1)
store.puts('a', random.Random(1).randbytes(400_000))
os.kill(os.getpid(), 9)
"""
    with pytest.raises(AssertionError, match="-9"):
        oracle.run_program(program, tmp_path / "store")
    (path,) = (tmp_path / "store").glob("packs/*/*.pack")
    raw = path.read_bytes()
    with pytest.raises(FormatError):
        decode_trailer(raw[-40:], len(raw))
    found = {entry.chunk_id: entry for entry in scanned(raw)}
    assert sum(entry.raw_bytes for entry in found.values()) == 400_000
    with castore.open(tmp_path / "store", create=False) as store:
        _, known = store._catalog.known(list(found))  # type: ignore[union-attr]
        assert {chunk_id: (entry.offset, entry.stored_bytes) for chunk_id, entry in found.items()
                } == {chunk_id: location[1:3] for chunk_id, location in known.items()}  # fmt: skip


def test_packs_are_sealed_and_replaced_when_they_are_full(
    packs: LocalPacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("castore.local.packs.PACK_BYTES_MAX", 60_000)
    placements = []
    for turn in range(8):
        placement = Placement()
        packs.append(frames(5, seed=turn), placement)
        placements.append(placement)
    assert len(files(packs)) == 3
    assert not any(lock_is_free(path) for path in files(packs)), "none is committed"
    for path in files(packs)[:]:
        assert path.stat().st_size < 60_000 + 30_000
    for placement in placements:
        commit(packs, placement)
    free = [path for path in files(packs) if lock_is_free(path)]
    assert len(free) == 2, "those that are full"
    for path in free:
        raw = path.read_bytes()
        offset, count = decode_trailer(raw[-40:], len(raw))
        assert len(decode_footer(raw[offset:], len(raw))) == count == 15
    packs.close()
    assert all(lock_is_free(path) for path in files(packs))


def test_a_put_over_many_packs(packs: LocalPacks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("castore.local.packs.PACK_BYTES_MAX", 20_000)
    placement = Placement()
    some = frames(40)
    locations = [location for frame in some for location in packs.append([frame], placement)]
    assert len(placement.upto) == len(files(packs)) == 10
    assert len({location.pack_id for location in locations}) == 10
    for frame, location in zip(some, locations, strict=True):
        whole = memoryview(packs.mapping(location.pack_id, location.offset + location.stored_bytes))
        assert whole[location.offset :][: location.stored_bytes] == frame.head + frame.payload
    commit(packs, placement)
    assert placement.upto == {}


def test_descriptors_are_bounded_in_a_large_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full packs are let go of as their rows are staged, however many there are."""
    monkeypatch.setattr("castore.local.packs.PACK_BYTES_MAX", 30_000)
    monkeypatch.setattr("castore.local.session.ROWS_MAX", 32)
    monkeypatch.setattr("castore.format.segment.SEGMENT_EXTENTS_MAX", 8)
    monkeypatch.setattr("castore.stream.writer.BATCH_BYTES", 50_000)
    monkeypatch.setattr("castore.stream.writer.BATCHES_MAX", 0)
    before = len(os.listdir("/proc/self/fd"))
    most = [0]
    data = random.Random(1).randbytes(4_500_000)
    with castore.open(tmp_path / "store", chunk_bytes_avg=2816, threads=1) as store:
        with store.open("large", "wb") as file:
            for at in range(0, len(data), 100_000):
                file.write(data[at : at + 100_000])
                most[0] = max(most[0], len(os.listdir("/proc/self/fd")))
        assert store.gets("large") == data
    assert len(list((tmp_path / "store").glob("packs/*/*.pack"))) > 60
    assert most[0] - before < 30


def test_sync_is_asked_for_only_once(packs: LocalPacks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts that wait for the same pack share its fsync."""
    placements = [Placement() for _ in range(4)]
    for turn, placement in enumerate(placements):
        packs.append(frames(3, seed=turn), placement)
    calls = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(fd), real(fd))[1])
    for placement in placements:
        placement.sync()
    assert len(calls) == 1
    packs.append(frames(1, seed=9), placements[0])
    placements[1].sync()
    assert len(calls) == 1
    placements[0].sync()
    assert len(calls) == 2
    for placement in placements:
        packs.release(placement)


def test_a_sync_covers_what_was_written_when_it_began(
    packs: LocalPacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what another put appends while it runs."""
    first, second = Placement(), Placement()
    packs.append(frames(2, seed=1), first)
    calls: list[int] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        real(fd)
        calls.append(fd)
        if len(calls) == 1:
            packs.append(frames(2, seed=2), second)

    monkeypatch.setattr(os, "fsync", fsync)
    first.sync()
    second.sync()
    assert len(calls) == 2
    packs.release(first)
    packs.release(second)


def test_packs_that_nobody_named_are_removed(packs: LocalPacks) -> None:
    placement = Placement()
    packs.append(frames(3), placement)
    assert len(files(packs)) == 1
    packs.release(placement)  # the put failed
    kept = Placement()
    packs.append(frames(3, seed=1), kept)
    assert len(files(packs)) == 1, "the next put goes on in it"
    packs.release(kept)
    packs.close()
    assert files(packs) == []


def test_packs_that_a_commit_may_have_named_are_kept(packs: LocalPacks) -> None:
    placement = Placement()
    packs.append(frames(3), placement)
    commit(packs, placement)
    failed = Placement()
    packs.append(frames(3, seed=1), failed)
    packs.release(failed)
    packs.close()
    (path,) = files(packs)
    raw = path.read_bytes()
    offset, _ = decode_trailer(raw[-40:], len(raw))
    assert len(decode_footer(raw[offset:], len(raw))) == 6


def test_closing_with_a_put_in_progress(packs: LocalPacks) -> None:
    """Its pack stays locked until the put is over, and takes nothing more."""
    placement = Placement()
    packs.append(frames(3), placement)
    packs.close()
    (path,) = files(packs)
    assert not lock_is_free(path)
    with pytest.raises(StoreClosed):
        packs.append(frames(3), placement)
    packs.release(placement)
    assert files(packs) == []


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    for mask in (0, 0o027, 0o077):
        (tmp_path / f"{mask}").mkdir(0o700)
        packs = LocalPacks(str(tmp_path / f"{mask}/packs"), STORE_ID)
        before = os.umask(mask)
        try:
            placement = Placement()
            packs.append(frames(1), placement)
            commit(packs, placement)
        finally:
            os.umask(before)
        packs.close()
        (path,) = files(packs)
        assert path.stat().st_mode & 0o7777 == 0o600
        for folder in (path.parent, path.parent.parent):
            assert folder.stat().st_mode & 0o7777 == 0o700


def test_ids_are_random_and_never_those_of_a_file_that_is_there(
    packs: LocalPacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = b"t" * 16
    path = Path(packs.path(taken))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"somebody else's")
    ids = iter([taken, b"u" * 16])
    monkeypatch.setattr("castore.local.packs.os.urandom", lambda size: next(ids))
    placement = Placement()
    (location,) = packs.append(frames(1), placement)
    assert location.pack_id == b"u" * 16
    assert path.read_bytes() == b"somebody else's"
    packs.release(placement)


@pytest.mark.parametrize("when", ["locked", "removed"])
def test_a_collector_that_is_faster_than_our_lock(
    packs: LocalPacks, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """It may find the file before it is locked: then that one is its, and we make another."""
    real = LockFile.take
    met: list[str] = []

    def take(file: LockFile) -> bool:
        if not met:
            met.append(os.fsdecode(file.name))
            if when == "locked":
                return False
            os.unlink(met[0])
        return real(file)

    monkeypatch.setattr(LockFile, "take", take)
    before = len(os.listdir("/proc/self/fd"))
    placement = Placement()
    (location,) = packs.append(frames(1), placement)
    assert packs.path(location.pack_id) != met[0]
    assert len(os.listdir("/proc/self/fd")) == before + 1
    commit(packs, placement)
    assert files(packs) == [Path(packs.path(location.pack_id))], "the other is left to nobody"


def test_a_pack_made_for_one_outlives_the_commits_of_others(packs: LocalPacks) -> None:
    """As a collector writes one while the same process puts."""
    placement, other = Placement(), Placement()
    pack = packs.create(placement)
    pack.append(frames(1))
    path = Path(packs.path(pack.pack_id))
    packs.append(frames(1, seed=1), other)
    commit(packs, other)
    assert path.exists()
    assert not lock_is_free(path)
    pack.append(frames(1, seed=2))
    packs.release(placement)  # nobody has named it
    assert not path.exists()
    packs.close()
    with pytest.raises(StoreClosed):
        packs.create(placement)
    assert len(files(packs)) == 1


def test_a_process_that_ends_does_not_wait_for_an_append(packs: LocalPacks) -> None:
    placement = Placement()
    packs.append(frames(1), placement)
    commit(packs, placement)
    amid, ended = threading.Event(), threading.Event()

    def append() -> None:
        with packs._lock:
            amid.set()
            assert ended.wait(60)

    def end() -> None:
        assert amid.wait(60)
        packs.retire_at_exit()
        ended.set()

    in_threads(append, end)
    [path] = files(packs)
    size = path.stat().st_size
    packs.retire_at_exit()
    assert path.stat().st_size > size, "now it has a footer"
    assert lock_is_free(path)


def test_threads_append_to_one_pack(packs: LocalPacks) -> None:
    """Each finds its own frames where it was told."""
    wrong: list[Location] = []

    def run(seed: int) -> None:
        for turn in range(20):
            placement = Placement()
            some = frames(3, seed=seed * 100 + turn)
            for frame, location in zip(some, packs.append(some, placement), strict=True):
                end = location.offset + location.stored_bytes
                whole = memoryview(packs.mapping(location.pack_id, end))
                if whole[location.offset : end] != frame.head + frame.payload:
                    wrong.append(location)
            commit(packs, placement)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    (path,) = files(packs)
    assert len(list(scanned(path.read_bytes()))) == 4 * 20 * 3


def test_threads_that_map_more_packs_than_are_kept(
    packs: LocalPacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bytes] = []
    for seed in range(12):
        placement = Placement()
        made += {at.pack_id for at in packs.append(frames(1, seed=seed), placement)}
        commit(packs, placement)
        packs.retire()
    monkeypatch.setattr(local_packs, "MAPPINGS_MAX", 4)

    def run(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(4000):
            packs.mapping(draw.choice(made), 64)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        in_threads(*(partial(run, seed) for seed in range(8)))
    finally:
        sys.setswitchinterval(interval)


def test_mappings_grow_with_the_pack_and_outlive_it(packs: LocalPacks) -> None:
    placement = Placement()
    some = frames(2)
    (first,) = packs.append(some[:1], placement)
    mapping = packs.mapping(first.pack_id, first.offset + first.stored_bytes)
    assert packs.mapping(first.pack_id, 64) is mapping
    (second,) = packs.append(some[1:], placement)
    larger = packs.mapping(second.pack_id, second.offset + second.stored_bytes)
    assert len(larger) > len(mapping)
    commit(packs, placement)
    held = packs.hold([first.pack_id])
    packs.close()
    Path(packs.path(first.pack_id)).unlink()
    whole = memoryview(held[first.pack_id])
    assert whole[second.offset :][: second.stored_bytes] == some[1].head + some[1].payload
    with pytest.raises(PackMissing):
        packs.hold([first.pack_id])


def test_what_is_no_pack_of_ours(packs: LocalPacks, tmp_path: Path) -> None:
    other = LocalPacks(str(tmp_path / "other"), b"another store...")
    placement = Placement()
    (location,) = other.append(frames(1), placement)
    commit(other, placement)
    other.close()
    end = location.offset + location.stored_bytes
    with pytest.raises(PackMissing):
        packs.mapping(location.pack_id, end)
    target = Path(packs.path(location.pack_id))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(Path(other.path(location.pack_id)).read_bytes())
    with pytest.raises(FormatError, match="another"):
        packs.mapping(location.pack_id, end)
    renamed = Path(packs.path(b"r" * 16))
    renamed.parent.mkdir(parents=True, exist_ok=True)
    target.rename(renamed)
    with pytest.raises(FormatError, match="another"):
        packs.mapping(b"r" * 16, end)
    for size in (0, 10, 63):
        renamed.write_bytes(bytes(size))
        with pytest.raises(FormatError):
            packs.mapping(b"r" * 16, end)


def test_strangers_in_the_folder_are_no_packs(packs: LocalPacks) -> None:
    placement = Placement()
    (location,) = packs.append(frames(1), placement)
    commit(packs, placement)
    root = Path(packs.root)
    (root / "note.txt").write_text("hello")
    (root / "zz").mkdir()
    (root / "zz/tmp.pack").write_bytes(b"x")
    (root / "zz/.nfs0001").write_bytes(b"x")
    assert [pack_id for pack_id, _ in packs.list()] == [location.pack_id]


def test_a_poisoned_pack_takes_no_more_frames(
    packs: LocalPacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(fd: int) -> None:
        raise OSError(5, "injected")

    placement, other = Placement(), Placement()
    packs.append(frames(1), placement)
    packs.append(frames(1, seed=1), other)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(PackPoisoned):
            placement.sync()
    for again in (placement, other):
        with pytest.raises(PackPoisoned):
            again.sync()
    (location,) = packs.append(frames(1, seed=2), other)
    assert location.pack_id not in {pack.pack_id for pack in placement.upto}
    packs.release(placement)
    packs.release(other)
    packs.close()
    assert files(packs) == []


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="needs Linux's /proc")
def test_what_deltas_are_made_of_does_not_stay_mapped(
    packs: LocalPacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("castore.local.packs.AT_HAND_BYTES_MAX", 1 << 20)
    placement = Placement()
    locations = packs.append(frames(64, size=200_000), placement)
    commit(packs, placement)
    [file] = files(packs)
    largest = 0
    for location in locations:
        sum(packs.at_hand(location)[::1000])
        largest = max(largest, resident_bytes(file))
    assert 1 << 20 <= largest < 3 << 20
    assert os.path.getsize(file) > 12 << 20


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="needs Linux's /proc")
@pytest.mark.parametrize("how", ["file", "ranges"])
def test_what_is_read_bit_by_bit_does_not_stay_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    data = os.urandom(16 << 20)
    with castore.open(tmp_path / "store", threads=2) as store:
        store.puts("name", data)
    monkeypatch.setattr("castore.local.packs.READ_BYTES_MAX", 2 << 20)
    largest = 0
    with castore.open(tmp_path / "store", threads=2) as store, store.open("name") as file:
        [pack] = (tmp_path / "store" / "packs").rglob("*.pack")
        for at in range(0, len(data), 1 << 19):
            end = at + (1 << 19)
            read = file.read(end - at) if how == "file" else store.gets("name", (at, end))
            assert read == data[at:end]
            largest = max(largest, resident_bytes(pack))
    assert 1 << 20 <= largest < 5 << 20


def resident_bytes(file: Path) -> int:
    """What is mapped of the file, and in memory."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    total = 0
    for line in lines:
        if line.endswith(str(file)):
            rss = next(each for each in lines if each.startswith("Rss:"))
            total += int(rss.split()[1]) << 10
    return total
