"""A repair never makes it worse: what could be read before can be read after, byte for byte."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracle
import pytest
import xxhash
from places import SUPPORT
from stores import change_rows, contents, descriptors_to_spare, fill, flip, packs, read, rows, small

import castore
from castore.check.plan import plan
from castore.cli import main
from castore.errors import CastoreError, FormatError, IndexCorrupt, RepairRefused
from castore.format.index import (
    Record,
    decode_chunk_row,
    decode_record,
    encode_record,
    manifest_of,
    segment_key,
)
from castore.format.segment import SegmentBuilder, decode_segment
from castore.local.check import repair_objects, segments
from castore.model import Extent, Location
from castore.stream.reports import CheckReport, Problem

VALUES = contents()
EXPECTED = {**VALUES, "copy": VALUES["n/03"]}


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in two packs, that is never changed, but copied."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    items = list(VALUES.items())
    for part in (items[:7], items[7:]):
        with small(folder) as store:
            fill(store, dict(part))
    with small(folder) as store:
        store.copy("n/03", "copy")
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "store"))


def repair(folder: Path) -> castore.stream.reports.CheckReport:
    """By itself; and the command, which says first what it would do, would have done it, too."""
    steps = plan(castore.check_store(folder, read_data=True))
    report = castore.check_store(folder, repair=True, packs_are_lost=True)
    assert bool(steps) == bool(report.repaired), report.repaired
    return report


def ranges(store: castore.Store, step: int = 500) -> dict[tuple[str, int], bytes]:
    """Every piece of every object that can be read."""
    found = {}
    for name in store.names():
        with contextlib.suppress(CastoreError):
            size = store.size(name)
            for begin in range(0, size, step):
                with contextlib.suppress(CastoreError):
                    found[name, begin] = store.gets(name, (begin, begin + step))
    return found


def damage_then_repair(folder: Path, damage: Callable[[Path], None]) -> list[str]:
    """Nothing that was readable is lost, whole or in part; the repair is clean and idempotent."""
    damage(folder)
    with castore.open(folder) as store:
        before, pieces = read(store), ranges(store)
    assert {name: EXPECTED[name] for name in before} == before
    report = repair(folder)
    assert still_wrong(report) == [], report.problems
    with castore.open(folder) as store:
        after = read(store)
        # What is lost is said, and is no success.
        gone = sorted(EXPECTED.keys() - after.keys())
        assert [name for name in report.damaged_names if name in EXPECTED] == gone
        assert report.exit_code == (14 if report.damaged_names else 0)
        assert {name: after[name] for name in before} == before
        assert {name: EXPECTED[name] for name in after} == after
        told = quarantined(store)
        for name in EXPECTED.keys() - after.keys():
            kept, lost = told[name]
            assert len(kept) == len(EXPECTED[name])
            for (other, begin), piece in pieces.items():
                if other == name:
                    assert kept[begin : begin + 500] == piece, (name, begin)
            at = 0
            for begin, end in [*lost, (len(kept), len(kept))]:
                assert kept[at:begin] == EXPECTED[name][at:begin]
                assert kept[begin:end] == bytes(end - begin)
                at = end
    index = rows(folder)
    again = repair(folder)
    assert again.problems == []
    assert without_counter(rows(folder)) == without_counter(index)
    with castore.open(folder) as store:
        fill(store, VALUES)  # and what was lost is stored anew
        assert {name: store.gets(name) for name in VALUES} == VALUES
        assert store.check(True).exit_code <= 1
    return report.repaired


def test_what_was_saved_once_is_not_replaced_by_what_is_left_another_time(tmp_path: Path) -> None:
    data = random.Random(5).randbytes(60_000)
    folder = tmp_path / "store"
    kept: list[set[str]] = []
    for lost in (1, 4):
        with small(folder) as store:
            store.puts("again", data)  # the same version: what is gone of it is stored anew
            where = [extent.location for extent in extents_of(store, "again")][lost]
        [pack] = (path for path in packs(folder) if path.stem == where.pack_id.hex())
        flip(pack, 8 * (where.offset + where.stored_bytes // 2))
        assert repair(folder).exit_code == 14
        with small(folder) as store:
            kept.append({n for n in store.names("quarantine/") if n.endswith("/again")})
            assert all(store.gets(name)[-1000:] == data[-1000:] for name in kept[-1])
    assert len(kept[0]) == 1
    assert len(kept[1]) == 2  # the first has lost a chunk as well, and is named after that, too


def test_an_object_whose_name_leaves_no_room_is_kept_under_another(tmp_path: Path) -> None:
    """Each under one of its own, also where both have the same bytes."""
    data = random.Random(5).randbytes(60_000)
    names = {letter * 480 for letter in "ab"}
    with small(tmp_path / "store") as store:
        for name in names:
            store.puts(name, data)
        where = extents_of(store, min(names))[1].location
    [pack] = packs(tmp_path / "store")
    flip(pack, 8 * (where.offset + where.stored_bytes // 2))
    assert repair(tmp_path / "store").exit_code == 14
    with small(tmp_path / "store") as store:
        found = quarantined(store)
        assert found.keys() == names
        for kept, [[begin, end]] in found.values():
            assert kept == data[:begin] + bytes(end - begin) + data[end:]
        assert names.isdisjoint(store.names())
        assert store.check(True).exit_code == 0


def extents_of(store: castore.Store, name: str) -> list[Extent]:
    [(_, _, extents)] = store._check_open().catalog.cover(name.encode(), [None]).parts
    return extents


def still_wrong(report: CheckReport) -> list[Problem]:
    """What is still wrong with the store, but for objects that are lost."""
    return [problem for problem in report.problems if problem.kind != "object"]


def without_counter(index: dict[bytes, dict[bytes, bytes]]) -> dict[bytes, dict[bytes, bytes]]:
    return {**index, b"meta": {k: v for k, v in index[b"meta"].items() if k != b"gc_seq"}}


def quarantined(store: castore.Store) -> dict[str, tuple[bytes, list[list[int]]]]:
    """By their old names: the bytes that are left, and the ranges that are not."""
    found = {}
    for name in store.names("quarantine/"):
        if name.endswith(".json"):
            told = json.loads(store.gets(name))
            if "lost_ranges" in told:
                kept = store.gets(name.removesuffix(".json"))
                found[told["name"]] = kept, told["lost_ranges"]
    return found


def frames(folder: Path) -> list[tuple[Path, int, int]]:
    """(pack, offset, stored bytes) of every chunk's frame, in order."""
    found = []
    for row in rows(folder)[b"chunks"].values():
        pack_id, offset, stored, _ = decode_chunk_row(row).location
        name = pack_id.hex()
        found.append((folder / "packs" / name[:2] / f"{name}.pack", offset, stored))
    return sorted(found)


# ---- kinds of damage ----------------------------------------------------------------------------


def flip_payload(folder: Path) -> None:
    path, offset, stored = frames(folder)[4]
    flip(path, 8 * (offset + stored - 3))


def flip_many(folder: Path) -> None:
    for path, offset, stored in frames(folder)[2::9]:
        flip(path, 8 * (offset + stored - 3))


def flip_header(folder: Path) -> None:
    path, offset, _ = frames(folder)[6]
    flip(path, 8 * (offset + 9))


def flip_pack_header(folder: Path) -> None:
    flip(packs(folder)[0], 8 * 30)


def flip_footer(folder: Path) -> None:
    path = packs(folder)[1]
    flip(path, 8 * (path.stat().st_size - 100))


def flip_footer_and_frame(folder: Path) -> None:
    flip_header(folder)
    for path in packs(folder):
        flip(path, 8 * (path.stat().st_size - 10))


def cut_pack(folder: Path) -> None:
    path = packs(folder)[0]
    os.truncate(path, path.stat().st_size // 2)


def zero_a_page(folder: Path) -> None:
    path = packs(folder)[0]
    raw = bytearray(path.read_bytes())
    raw[8192:12288] = bytes(4096)
    path.write_bytes(raw)


def remove_pack(folder: Path) -> None:
    packs(folder)[0].unlink()


def remove_all_packs(folder: Path) -> None:
    for path in packs(folder):
        path.unlink()


def flip_record(folder: Path) -> None:
    raw = rows(folder)[b"names"][b"n/01"]
    change_rows(folder, b"names", {b"n/01": raw[:9] + bytes([raw[9] ^ 4]) + raw[10:]})


def flip_inline_record(folder: Path) -> None:
    raw = rows(folder)[b"names"][b"inline"]
    change_rows(folder, b"names", {b"inline": raw[:-1] + bytes([raw[-1] ^ 1])})


def flip_segment(folder: Path) -> None:
    key, raw = next(iter(rows(folder)[b"segments"].items()))
    change_rows(folder, b"segments", {key: raw[:60] + bytes([raw[60] ^ 4]) + raw[61:]})


def garble_segment(folder: Path) -> None:
    key, raw = next(iter(rows(folder)[b"segments"].items()))
    change_rows(folder, b"segments", {key: raw[:40] + b"garbled!" + raw[48:]})


def drop_segment(folder: Path) -> None:
    change_rows(folder, b"segments", {next(iter(rows(folder)[b"segments"])): None})


def garble_chunk_rows(folder: Path) -> None:
    chunks = rows(folder)[b"chunks"]
    first, second, third, *_ = chunks
    wrong = {first: chunks[second], second: chunks[second][:20] + bytes(16), third: b"short"}
    change_rows(folder, b"chunks", dict(wrong))


def drop_pack_rows(folder: Path) -> None:
    change_rows(folder, b"packs", dict.fromkeys(rows(folder)[b"packs"]))


def garble_totals(folder: Path) -> None:
    change_rows(folder, b"meta", {b"totals": bytes(range(48))})


def garble_pending(folder: Path) -> None:
    """Of unfinished puts, and of a collection that was cut off: of each length, with each end."""
    owner = bytes(range(16))
    damaged = {b"\0" * 3: owner, segment_key(7, 5): owner, b"x" * 30: owner}
    change_rows(folder, b"pending", {**damaged, segment_key(9, 0): owner[:-1]})
    change_rows(folder, b"changes", {b"x" * 20: b"n/01"})
    change_rows(folder, b"meta", {b"marking": b"\1"})


def garble_segment_keys(folder: Path) -> None:
    """What an object's segment needs of its key, it says itself; others are nobody's."""
    (key, raw), *_, (last, last_raw) = rows(folder)[b"segments"].items()
    change_rows(folder, b"segments", {key: None, key[:9]: raw, last: None, last + b"x": last_raw})
    change_rows(folder, b"segments", {b"\xff" * 20: raw, b"a": b"garbled"})


DAMAGES = [
    flip_payload,
    flip_many,
    flip_header,
    flip_pack_header,
    flip_footer,
    flip_footer_and_frame,
    cut_pack,
    zero_a_page,
    remove_pack,
    remove_all_packs,
    flip_record,
    flip_inline_record,
    flip_segment,
    garble_segment,
    drop_segment,
    garble_chunk_rows,
    drop_pack_rows,
    garble_totals,
    garble_pending,
    garble_segment_keys,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_repair(folder: Path, damage: Callable[[Path], None]) -> None:
    assert damage_then_repair(folder, damage)


@pytest.mark.parametrize(
    "damage", [flip_footer, flip_pack_header, flip_record, flip_inline_record, flip_segment]
)
def test_damage_that_costs_nothing(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    repair(folder)
    with castore.open(folder) as store:
        assert read(store) == EXPECTED
        assert list(store.names("quarantine/")) == []


@pytest.mark.parametrize("damage", [garble_pending, garble_segment_keys])
def test_damaged_keys_are_findings(folder: Path, damage: Callable[[Path], None]) -> None:
    """Each of them, and other damage beside them; and what a collector says tells of the repair."""
    damage(folder)
    with castore.open(folder) as store:
        found = store.check(True)
        assert found.exit_code == 13
        kinds = {problem.kind for problem in found.problems}
        if damage is garble_pending:
            assert kinds == {"pending row", "change row"}
            assert any("4 damaged rows" in problem.what for problem in found.problems)
            with pytest.raises(IndexCorrupt, match="--repair"):
                store.puts("during", b"1")
        else:
            assert "segment" in kinds
        with pytest.raises((FormatError, IndexCorrupt), match="--repair"):
            store.gc()
    assert repair(folder).exit_code == 0
    with castore.open(folder) as store:
        assert read(store) == EXPECTED
        store.puts("after", VALUES["n/01"])
        store.gc()
        assert store.check(True).clean


@pytest.mark.parametrize("whose", ["ours", "another's of the group"])
def test_a_damaged_pack_is_moved_and_not_removed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    path, *_ = frames(folder)[4]
    flip_payload(folder)
    raw = path.read_bytes()
    folder.chmod(0o770)

    def link(source: str, target: str) -> None:
        """Linux (fs.protected_hardlinks) lets only who may write to a file link it."""
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), source, None, target)

    kept = folder / "quarantine" / path.name
    synced: set[str] = set()
    fsync, unlink = os.fsync, os.unlink

    def noted(fd: int) -> None:
        fsync(fd)
        synced.add(os.readlink(f"/proc/self/fd/{fd}"))

    def removed(file: str, **options: int) -> None:
        if file == str(path):
            assert str(kept.parent) in synced
            assert whose == "ours" or any(each.startswith(f"{kept.parent}/.") for each in synced)
        unlink(file, **options)

    if whose != "ours":
        monkeypatch.setattr(os, "link", link)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", noted)
        patched.setattr(os, "unlink", removed)
        repair(folder)
    assert not path.exists()
    assert kept.read_bytes() == raw
    assert list(kept.parent.iterdir()) == [kept]
    assert kept.parent.stat().st_mode & 0o777 == 0o770, "others of the group may repair, too"
    assert len(packs(folder)) == 2


def test_more_packs_are_damaged_than_there_are_descriptors(tmp_path: Path) -> None:
    """Those that are to be replaced are locked until the end."""
    folder = tmp_path / "store"
    for i in range(48):
        with small(folder) as store:
            store.puts(f"n{i}", random.Random(i).randbytes(10_000))
    for path in packs(folder):
        flip(path, 8 * path.stat().st_size // 2)
    with descriptors_to_spare(32):
        report = castore.check_store(folder, repair=True)
    assert len(list((folder / "quarantine").iterdir())) == 48
    assert len(report.damaged_names) == 48
    assert castore.check_store(folder, read_data=True).clean


def test_a_store_that_is_whole_is_left_alone(folder: Path) -> None:
    index, names = rows(folder), [path.name for path in packs(folder)]
    assert repair(folder).repaired == []
    assert without_counter(rows(folder)) == without_counter(index)
    assert [path.name for path in packs(folder)] == names


def test_a_chunk_that_is_stored_twice_is_read_from_the_other_pack(folder: Path) -> None:
    """As after a writer could not know of the other's chunk: its row was not there."""
    chunks = rows(folder)[b"chunks"]
    change_rows(folder, b"chunks", dict.fromkeys(chunks))
    with small(folder) as store:
        store.puts("second", VALUES["n/03"])
    change_rows(folder, b"chunks", dict(chunks))
    repair(folder)  # of the totals, which these rows are not in
    segment = rows(folder)[b"segments"]
    manifest = next(
        raw for raw in segment.values() if decode_segment(raw).end == len(VALUES["n/03"])
    )
    _, _, chunk_id, (pack_id, offset, stored, _) = next(iter(decode_segment(manifest)))
    name = pack_id.hex()
    flip(folder / "packs" / name[:2] / f"{name}.pack", 8 * (offset + stored - 2))
    assert castore.check_store(folder, read_data=True).damaged_names
    report = repair(folder)
    assert still_wrong(report) == []
    with castore.open(folder) as store:
        assert read(store) == {**EXPECTED, "second": VALUES["n/03"]}
    assert chunk_id in rows(folder)[b"chunks"]


def test_a_record_that_can_not_be_mended(folder: Path) -> None:
    """Nobody knows which manifest was its: the one that has no name is kept."""
    change_rows(folder, b"names", {b"n/01": b"garbled" * 11})
    report = repair(folder)
    assert (report.exit_code, report.damaged_names) == (14, ["n/01"])
    assert still_wrong(report) == []
    with castore.open(folder) as store:
        assert read(store) == {name: v for name, v in EXPECTED.items() if name != "n/01"}
        kept = [store.gets(name) for name in store.names("quarantine/")]
    assert VALUES["n/01"] in kept
    assert any(b'"n/01"' in raw for raw in kept)


def test_an_object_with_the_etag_of_earlier_versions_is_put_together(folder: Path) -> None:
    """It has all its chunks, though the same bytes have another etag now."""
    before = decode_record(rows(folder)[b"names"][b"n/03"])
    with castore.open(folder) as store:
        ids = b"".join(extent.chunk_id for extent in extents_of(store, "n/03"))
        seed = store._check_open().config.seed
    former = before._replace(etag=xxhash.xxh3_128_digest(ids, seed))
    assert former.etag != before.etag
    segments = rows(folder)[b"segments"]
    torn = {
        key: raw[:24] + bytes(8) + raw[32:]  # its checksum
        for key, raw in segments.items()
        if manifest_of(key) == before.manifest
    }
    change_rows(folder, b"names", dict.fromkeys((b"n/03", b"copy"), encode_record(former)))
    assert castore.check_store(folder, read_data=True).problems == []
    change_rows(folder, b"segments", torn)
    report = repair(folder)
    assert report.problems == []
    with castore.open(folder) as store:
        assert read(store) == EXPECTED


@pytest.mark.damages_store("a record is of a later version")
def test_a_record_of_a_later_castore_is_not_repaired(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip_payload(folder)  # there is something to do
    raw = rows(folder)[b"names"][b"n/01"]
    head = b"\x63" + raw[1:64]
    checksum = xxhash.xxh3_64_intdigest(raw[72:], xxhash.xxh3_64_intdigest(head))
    change_rows(folder, b"names", {b"n/01": head + checksum.to_bytes(8, "little") + raw[72:]})
    before = rows(folder)
    assert main(["-r", str(folder), "check", "--repair", "--yes"]) == 1
    err = capsys.readouterr().err
    assert "record has format version 99: upgrade castore" in err
    assert "to do: " not in err
    with pytest.raises(castore.errors.UnsupportedFormat, match="n/01"):
        castore.check_store(folder, repair=True)
    assert rows(folder) == before
    assert not (folder / "quarantine").exists()


def test_what_no_name_leads_to_is_no_news(folder: Path) -> None:
    """A manifest without a name, whose pack went: garbage to a check, and to a repair."""
    before = rows(folder)[b"segments"]
    with castore.open(folder) as store:
        store.puts("deleted", VALUES["n/03"])
        store.delete("deleted")
    garbage = rows(folder)[b"segments"].keys() - before.keys()
    assert len(garbage) == 1
    (key,) = garbage
    segment = decode_segment(rows(folder)[b"segments"][key])
    builder = SegmentBuilder(segment.begin)
    for extent in segment:
        _, offset, stored, _ = extent.location
        builder.append(extent.end, extent.chunk_id, Location(bytes(16), offset, stored))
    change_rows(folder, b"segments", {key: builder.encode(segment.owner)})
    assert castore.check_store(folder, read_data=True).problems == []
    report = repair(folder)
    assert (report.problems, report.repaired) == ([], [])
    with castore.open(folder) as store:
        assert store.gc().manifests_removed == 1
        assert store.check(True).clean


def test_an_object_that_is_put_meanwhile_stays(folder: Path) -> None:
    """Writers go on while it is repaired, and find their objects afterwards."""
    flip_many(folder)
    stop, put = threading.Event(), {}

    def keep_putting() -> None:
        with small(folder) as store:
            turn = 0
            while not stop.is_set():
                turn += 1
                name, value = f"n/{turn % 12:02}", random.Random(turn).randbytes(9_000)
                store.puts(name, value)
                put[name] = value

    thread = threading.Thread(target=keep_putting)
    thread.start()
    try:
        with castore.open(folder) as store:
            store.check(repair=True)
    finally:
        stop.set()
        thread.join()
    with castore.open(folder) as store:
        assert {name: store.gets(name) for name in put} == put
        after = store.check(True)
    assert [p for p in after.problems if p.severity != "warning"] == []


# ---- interrupted --------------------------------------------------------------------------------

PROGRAM = """
import os, signal, sys, fcntl, lmdb, castore
sys.path.insert(0, {tests!r})
import oracle
if {die_at}:
    oracle.Steps({die_at}).install()
count = oracle.Steps(0)
if not {die_at}:
    count.install()
castore.check_store(sys.argv[1], repair=True, packs_are_lost=True)
print(count.count)
"""


def run_repair(folder: Path, die_at: int) -> subprocess.CompletedProcess[bytes]:
    program = PROGRAM.format(tests=str(SUPPORT), die_at=die_at)
    return subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        env=oracle.environment(),
        capture_output=True,
        check=False,
    )


def kill_at_steps(whole: Path, tmp_path: Path, stride: int, damage: Callable[[Path], None]) -> int:
    """Die at the steps of a repair, and repair again: nothing is lost by it."""
    damaged = Path(shutil.copytree(whole, tmp_path / "damaged"))
    damage(damaged)
    with castore.open(damaged) as store:
        readable = read(store)
    once = Path(shutil.copytree(damaged, tmp_path / "once"))
    done = run_repair(once, 0)
    assert done.returncode == 0, done.stderr
    steps = int(done.stdout)
    assert steps > 10
    for at in range(1, steps + 1, stride):
        folder = Path(shutil.copytree(damaged, tmp_path / f"at{at}"))
        assert run_repair(folder, at).returncode == -9, at
        with castore.open(folder) as store:
            after = read(store)
        assert {name: after[name] for name in readable} == readable, at
        report = repair(folder)
        assert still_wrong(report) == [], (at, report.problems)
        with castore.open(folder) as store:
            after = read(store)
            assert {name: after[name] for name in readable} == readable, at
            assert {name: EXPECTED[name] for name in after} == after, at
            kept = quarantined(store)
        assert EXPECTED.keys() - after.keys() <= kept.keys(), at
        shutil.rmtree(folder)
    return steps


@pytest.mark.damages_store("its repairs are killed, and looked at one by one")
def test_killed_at_some_steps(whole: Path, tmp_path: Path) -> None:
    kill_at_steps(whole, tmp_path, 43, flip_many)


@pytest.mark.damages_store("its repairs are killed, and looked at one by one")
@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_killed_at_every_step(whole: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    kill_at_steps(whole, tmp_path, 1, damage)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EMFILE])
@pytest.mark.parametrize(("call", "nth"), [("pwritev", 1), ("fsync", 1), ("link", 1), ("fsync", 2)])
def test_a_repair_that_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str, nth: int, code: int
) -> None:
    """A typed error, or it is done; what could be read still can, and the next one finishes."""
    flip_many(folder)
    with castore.open(folder) as store:
        before = read(store)
    left = [nth]
    whole_call = getattr(os, call)

    def fails(*args: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(code, os.strerror(code))
        return whole_call(*args, **options)

    with castore.open(folder) as store, monkeypatch.context() as patched:
        patched.setattr(os, call, fails)
        with pytest.raises(castore.CastoreError):
            store.check(repair=True)
        assert left[0] <= 0
        patched.undo()
        after = read(store)
        assert {name: after[name] for name in before} == before
    report = repair(folder)
    assert still_wrong(report) == []
    with castore.open(folder) as store:
        after = read(store)
    assert {name: after[name] for name in before} == before


# ---- the command --------------------------------------------------------------------------------


def test_the_command_asks_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip_many(folder)
    before = {path: path.read_bytes() for path in packs(folder)}
    index = rows(folder)
    assert main(["-r", str(folder), "check", "--repair"]) == 13
    err = capsys.readouterr().err
    assert "to do: copy the intact frames of pack" in err
    assert "nothing was done" in err
    assert {path: path.read_bytes() for path in packs(folder)} == before
    assert rows(folder) == index
    assert main(["-r", str(folder), "check", "--repair", "--yes"]) == 14
    captured = capsys.readouterr()
    assert "done: " in captured.err
    assert captured.out.splitlines()[-1].startswith("mended, but for what is lost: ")
    assert main(["-r", str(folder), "check", "--repair", "--yes"]) == 0


def test_the_command_does_nothing_while_most_packs_are_missing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with castore.open(folder) as store:
        expected = {name: store.gets(name) for name in store.names()}
    (folder / "packs").rename(tmp_path / "not mounted")
    index = rows(folder)
    assert main(["-r", str(folder), "check", "--repair", "--yes"]) == 14
    assert "bring packs/ back first" in capsys.readouterr().err
    assert rows(folder) == index
    (tmp_path / "not mounted").rename(folder / "packs")
    with castore.open(folder) as store:
        assert {name: store.gets(name) for name in store.names()} == expected
    (folder / "packs").rename(tmp_path / "not mounted")
    assert main(["-r", str(folder), "check", "--repair", "--yes", "--packs-are-lost"]) == 14


def test_no_verb_does_anything_while_most_packs_are_missing(folder: Path, tmp_path: Path) -> None:
    (folder / "packs").rename(tmp_path / "not mounted")
    index = rows(folder)
    with pytest.raises(RepairRefused, match="lacks 2 packs, and has 0"):
        castore.check_store(folder, repair=True)
    with castore.open(folder) as store, pytest.raises(RepairRefused):
        store.check(repair=store.check(read_data=True))
    assert rows(folder) == index
    (tmp_path / "not mounted").rename(folder / "packs")
    with castore.open(folder) as store:
        assert read(store) == EXPECTED


def test_a_damaged_frame_that_only_a_row_leads_to(folder: Path) -> None:
    """Of a put that failed, and an index that was made anew since: a later put would rely on it."""
    value = random.Random(77).randbytes(60_000)
    with small(folder) as store:
        store.puts("kept", value[::-1])  # in the same pack
        with contextlib.suppress(ZeroDivisionError), store.transaction() as transaction:
            transaction.puts("failed", value)
            raise ZeroDivisionError
    before = rows(folder)[b"chunks"]
    castore.rebuild_index(folder)
    row = max((rows(folder)[b"chunks"].items() - before.items()), key=lambda each: each[1])[1]
    pack_id, offset, stored, _ = decode_chunk_row(row).location
    name = pack_id.hex()
    flip(folder / "packs" / name[:2] / f"{name}.pack", 8 * (offset + stored // 2))
    [problem] = castore.check_store(folder, read_data=True).problems
    assert (problem.kind, problem.pack, problem.offset) == ("frame", name, offset)
    assert problem.names == ()
    assert repair(folder).problems == []
    with small(folder) as store:
        store.puts("again", value)
        assert store.gets("again") == value
        assert read(store).items() >= {**VALUES, "kept": value[::-1]}.items()


def test_names_are_not_all_read_for_each_batch_of_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a pack of many small objects, of which one is damaged."""
    values = {f"n/{i:02}": random.Random(i).randbytes(5000) for i in range(40)}
    with small(tmp_path / "store") as store:
        store.puts_many(values)
    [pack] = packs(tmp_path / "store")
    with pack.open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 1]))
    decoded = 0

    def counted(raw: bytes) -> Record:
        nonlocal decoded
        decoded += 1
        return decode_record(raw)

    monkeypatch.setattr(repair_objects, "SEGMENTS_MAX", 2)
    for module in (repair_objects, segments):
        monkeypatch.setattr(module, "decode_record", counted)
    report = repair(tmp_path / "store")
    assert "40 segments led to other copies of chunks" in report.repaired
    assert decoded < 8 * len(values)
    with castore.open(tmp_path / "store") as store:
        left = {name: store.gets(name) for name in store.names("n/")}
    assert len(left) == 39
    assert left.items() < values.items()


def test_a_repair_by_the_report_of_a_check_that_read_nothing_reads_all_itself(
    folder: Path,
) -> None:
    row = next(iter(rows(folder)[b"chunks"].values()))
    location = decode_chunk_row(row).location
    [pack] = [path for path in packs(folder) if path.stem == location.pack_id.hex()]
    flip(pack, 8 * (location.offset + location.stored_bytes - 1))
    with castore.open(folder) as store:
        assert store.check(True).exit_code == 13
        assert store.check(repair=store.check()).repaired
        assert store.check(True).clean
