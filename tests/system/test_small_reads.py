"""Small objects are read and exported many at a time, and what is not like most one by one."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from stores import fill, flip, packs, small
from trees import tree

import castore
from castore.store import Store
from castore.stream import reader, sourcefile
from castore.stream.small import SMALL_BYTES_MAX
from castore.stream.smallreads import read_small
from castore.system.outfolder import OutFolder
from castore.transfer.compare import Comparison
from castore.transfer.outcomes import TransferReport

SIZES = (0, 1, 300, 4097, 16_384, 40_000, SMALL_BYTES_MAX)
Export = Callable[[castore.Store], TransferReport]


def contents() -> dict[str, bytes]:
    """Of each size: bytes that no other has, and text."""
    choose = random.Random(5)
    made = {f"p/{folder}/raw {size}": choose.randbytes(size) for folder in "ab" for size in SIZES}
    made |= {f"p/c/text {size}": (b"%d " % size * size)[:size] for size in SIZES}
    return made


@pytest.fixture
def export(tmp_path: Path) -> Export:
    return lambda store: store.export_folder("p", tmp_path / "out")


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were read by themselves."""
    read: list[str] = []
    whole = Store.get_into

    def get_into(self: Store, name: str, *arguments: Any, **options: Any) -> Any:
        read.append(name)
        return whole(self, name, *arguments, **options)

    monkeypatch.setattr(Store, "get_into", get_into)
    return read


@pytest.fixture
def before_reading(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """What is done, once, after the first look-up and before what it found is read."""
    steps: list[Callable[[], object]] = []

    def read(*arguments: Any) -> Any:
        while steps:
            steps.pop()()
        return read_small(*arguments)

    monkeypatch.setattr(reader, "read_small", read)
    return steps


def exported(tmp_path: Path) -> dict[str, bytes]:
    return {f"p/{name}": raw for name, (raw, *_) in tree(tmp_path / "out").items()}


@pytest.mark.parametrize("guard", [None, "sha256"])
def test_small_objects_are_read_together(
    tmp_path: Path, export: Export, one_by_one: list[str], guard: str | None
) -> None:
    made = contents() | {"p/c/large": os.urandom(SMALL_BYTES_MAX + 1)}
    with castore.open(tmp_path / "store", collision_guard=guard) as store:
        fill(store, made)
        report = export(store)
        assert (report.files, report.left_out) == (len(made), [])
        infos = {info.name: info for info in store.list()}
    assert exported(tmp_path) == made
    assert one_by_one == ["p/c/large"]
    for name, info in infos.items():
        status = (tmp_path / "out" / name[2:]).stat()
        assert (status.st_mtime_ns, status.st_mode & 0o777) == (info.mtime_ns, info.mode)


def test_deltas_are_read_together(tmp_path: Path, export: Export, one_by_one: list[str]) -> None:
    choose = random.Random(6)
    older = {f"o/{i}": choose.randbytes(30_000) for i in range(8)}
    newer = {f"p/{i}": raw[:9000] + b"changed" + raw[9000:] for i, raw in enumerate(older.values())}
    with castore.open(tmp_path / "store") as store:
        fill(store, older)
        for name, raw in newer.items():
            store.puts(name, raw, like=f"o/{name[2:]}")
        assert store.info("p/3").deltas
        export(store)
    assert exported(tmp_path) == newer
    assert one_by_one == []


@pytest.mark.damages_store("a frame is damaged")
def test_one_that_is_damaged_is_left_out(
    tmp_path: Path, export: Export, one_by_one: list[str]
) -> None:
    made = contents()
    with small(tmp_path / "store") as store:
        fill(store, made)
    [pack] = packs(tmp_path / "store")
    flip(pack, 8 * (pack.stat().st_size // 2))
    with small(tmp_path / "store") as store:
        report = export(store)
    [(name, why)] = report.left_out
    assert "damaged" in why
    assert one_by_one == [name]
    assert exported(tmp_path) == {each: raw for each, raw in made.items() if each != name}


def test_what_is_there_is_compared_and_the_rest_is_written(
    store: castore.Store, tmp_path: Path, export: Export
) -> None:
    made = contents()
    fill(store, made)
    export(store)
    inside = [tmp_path / "out" / "b" / f"raw {size}" for size in SIZES]
    inside[1].unlink()
    inside[2].write_bytes(b"another")
    inside[3].unlink()
    inside[3].symlink_to(tmp_path / "elsewhere")
    report = export(store)
    assert (report.files, report.same_files, report.left_out) == (3, len(made) - 3, [])
    assert exported(tmp_path) == made
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("guard", [None, "sha256"])
@pytest.mark.parametrize("extension", [True, False])
def test_what_is_the_same_is_told_together(
    tmp_path: Path,
    export: Export,
    one_by_one: list[str],
    monkeypatch: pytest.MonkeyPatch,
    guard: str | None,
    extension: bool,
) -> None:
    """What differs in its bytes, or its mode, or its time alone is written anew."""
    if not extension:
        monkeypatch.setattr(sourcefile, "_native", None)
    elif sourcefile._native is None:
        pytest.skip("the C extension isn't built")
    alone: list[str] = []
    is_same = Comparison.is_same

    def by_itself(comparison: Comparison, info: castore.ObjectInfo, *others: Any) -> bool:
        alone.append(info.name)
        return is_same(comparison, info, *others)

    monkeypatch.setattr(Comparison, "is_same", by_itself)
    made = contents()
    with castore.open(tmp_path / "store", collision_guard=guard) as store:
        fill(store, made)
        export(store)
        time.sleep(0.05)  # until none is young
        alone.clear()
        assert export(store).same_files == len(made)
        assert sorted(alone) == ([] if extension else sorted(made))
        before = {name: (tmp_path / "out" / name[2:]).stat() for name in made}
        changed = {f"p/b/raw {size}" for size in (1, 16_384, 40_000)} | {"p/a/raw 300"}
        for name in changed:
            path, raw = tmp_path / "out" / name[2:], bytearray(made[name])
            raw[-1] ^= 1
            path.write_bytes(raw)
            os.utime(path, ns=(before[name].st_mtime_ns,) * 2)
        (tmp_path / "out/a/raw 4097").chmod(0o604)
        os.utime(tmp_path / "out/c/text 300", ns=(10**18, 10**18))
        changed |= {"p/a/raw 4097", "p/c/text 300"}
        time.sleep(0.05)
        assert one_by_one == []
        report = export(store)
        assert sorted(one_by_one) == ([] if extension else sorted(changed))
    assert (report.files, report.same_files) == (len(changed), len(made) - len(changed))
    assert exported(tmp_path) == made
    for name, status in before.items():
        now = (tmp_path / "out" / name[2:]).stat()
        assert (now.st_mode, now.st_mtime_ns) == (status.st_mode, status.st_mtime_ns)
        assert (now.st_ino != status.st_ino) == (name in changed)


def test_a_file_comes_before_what_has_it_for_a_folder(
    store: castore.Store, tmp_path: Path, export: Export
) -> None:
    """That others are compared, below, makes no folders."""
    inside = {f"p/x/{name}": b"has no place" for name in "ab"}
    fill(store, {"p/x": b"first", "p/y/z": b"another"} | inside)
    report = export(store)
    assert report.left_out == [(name, f"{tmp_path}/out/x is a file") for name in inside]
    assert exported(tmp_path) == {"p/x": b"first", "p/y/z": b"another"}


def test_no_interrupt_strikes_where_files_are_compared_or_written(
    any_store: castore.Store, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would leave descriptors open, and drafts and probes in the folder."""
    fill(any_store, {"p/a": b"1", "p/b": b"2", "p/c/d": b"3"})
    opened = OutFolder.opened
    threads: list[threading.Thread] = []

    def told(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread())
        return opened(*arguments, **options)

    monkeypatch.setattr(OutFolder, "opened", told)
    export(any_store)
    assert export(any_store).same_files == 3
    assert threads
    assert threading.main_thread() not in threads


def test_one_that_is_put_anew_larger_is_read_as_it_is_by_then(
    store: castore.Store, tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = contents()
    fill(store, made)
    whole = store.small_many
    large = os.urandom(SMALL_BYTES_MAX * 3)

    def many(names: Sequence[str]) -> Any:
        store.puts("p/a/raw 300", large)
        if "p/b/raw 300" in names:
            store.delete("p/b/raw 300")
        return whole(names)

    monkeypatch.setattr(store, "small_many", many)
    report = export(store)
    assert report.left_out == [("p/b/raw 300", "it was deleted meanwhile")]
    del made["p/b/raw 300"]
    assert exported(tmp_path) == made | {"p/a/raw 300": large}


def test_what_a_collection_moves_meanwhile_is_read_where_it_is(
    store: castore.Store,
    tmp_path: Path,
    export: Export,
    before_reading: list[Callable[[], object]],
) -> None:
    made = contents()
    fill(store, made)
    fill(store, {"garbage": os.urandom(3_000_000)})
    store.close()
    again = castore.open(store.path)
    again.delete("garbage")
    [old] = packs(Path(store.path))
    before_reading.append(lambda: again.gc(repack_below=1.0))
    assert export(again).left_out == []
    assert not before_reading
    assert not old.exists()
    assert exported(tmp_path) == made
    again.close()


def test_many_are_read_one_by_one_where_each_waits_for_a_server(
    any_store: castore.Store, tmp_path: Path, export: Export
) -> None:
    made = contents()
    fill(any_store, made)
    local = not any_store.path.startswith("s3:")
    assert (any_store.small_together > 1) == local
    found = list(any_store.small_many([*made, "none"]))
    assert found[-1] is None
    assert all((each is not None and each[1] == made[each[0].name]) == local for each in found[:-1])
    assert export(any_store).left_out == []
    assert exported(tmp_path) == made
