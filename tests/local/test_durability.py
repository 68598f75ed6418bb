"""What is synced when, and disks that fail."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from stores import packs_of

import castore
from castore.errors import (
    PackMissing,
    PackPoisoned,
    StoreFull,
)
from castore.local.session import LocalSession
from castore.testing.contents import (
    mixed,
    noise,
)


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """For each write transaction that begins, the packs that were written to, and the folders that
    something was made in, that are not synced yet."""
    from castore.system import lmdb_env as index

    dirty: set[str] = set()
    commits: list[set[str]] = []
    real = {name: getattr(os, name) for name in ("pwritev", "fsync", "mkdir", "open")}

    def path_of(fd: int) -> str:
        return os.readlink(f"/proc/self/fd/{fd}")

    def pwritev(fd: int, *rest: Any) -> int:
        dirty.add(path_of(fd))
        return int(real["pwritev"](fd, *rest))

    def fsync(fd: int) -> None:
        real["fsync"](fd)
        dirty.discard(path_of(fd))

    def mkdir(path: str, *rest: Any) -> None:
        real["mkdir"](path, *rest)
        dirty.add(os.path.dirname(path))

    def opened(path: str, flags: int, *rest: Any, **more: Any) -> int:
        fd = int(real["open"](path, flags, *rest, **more))
        if flags & os.O_CREAT and str(path).endswith(".pack"):
            dirty.add(os.path.dirname(path))
        return fd

    begin = index.Index.begin

    def watched(self: index.Index) -> Any:
        commits.append(set(dirty))
        return begin(self)

    for name, replacement in {
        "pwritev": pwritev,
        "fsync": fsync,
        "mkdir": mkdir,
        "open": opened,
    }.items():
        monkeypatch.setattr(os, name, replacement)
    monkeypatch.setattr(index.Index, "begin", watched)
    return commits


def test_a_pack_is_durable_before_the_index_names_it(
    store: castore.Store, unsynced: list[set[str]]
) -> None:
    """Every write to a pack and every folder made is synced before the commit that follows."""
    for i in range(4):
        store.puts(f"{i}", noise(100_000, i))
    assert len(unsynced) >= 4
    assert not any(unsynced), unsynced


def test_what_a_repair_copies_is_durable_before_the_index_names_it(
    store: castore.Store, unsynced: list[set[str]]
) -> None:
    """It takes the place of frames whose pack is then removed."""
    whole = noise(200_000, 1)
    store.puts_many({"lost": noise(200_000, 2), "whole": whole})
    (pack,) = packs_of(store)
    content = bytearray(pack.read_bytes())
    content[5000] ^= 1
    pack.write_bytes(content)
    unsynced.clear()
    report = store.check(repair=True)
    assert any("copied what is intact" in done for done in report.repaired), report.repaired
    assert unsynced
    # The damaged one may lack its footer: nothing leads there any more.
    assert not any(paths - {str(pack)} for paths in unsynced), unsynced
    assert pack not in packs_of(store)
    assert store.gets("whole") == whole
    assert store.check(read_data=True).problems == []


def test_what_a_collection_copies_is_durable_before_the_index_names_it(
    store: castore.Store, unsynced: list[set[str]]
) -> None:
    """It takes the place of frames whose pack is then removed."""
    whole = noise(200_000, 1)
    store.puts_many({"dead": noise(900_000, 2), "whole": whole})
    (pack,) = packs_of(store)
    store.delete("dead")
    unsynced.clear()
    assert store.gc(repack_below=0.9).packs_rewritten == 1
    assert unsynced
    # The old one may lack its footer: nothing leads there any more.
    assert not any(paths - {str(pack)} for paths in unsynced), unsynced
    assert pack not in packs_of(store)
    assert store.gets("whole") == whole
    assert store.check(read_data=True).problems == []


def synced_folders(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    synced: set[str] = set()
    real = os.fsync

    def fsync(fd: int) -> None:
        real(fd)
        synced.add(os.readlink(f"/proc/self/fd/{fd}"))

    monkeypatch.setattr(os, "fsync", fsync)
    return synced


def test_a_new_store_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = synced_folders(monkeypatch)
    root = tmp_path / "a" / "b" / "store"
    with castore.open(root) as store:
        store.puts("name", b"inline")
        assert {str(path) for path in (tmp_path, root.parent.parent, root.parent)} <= synced
        assert {str(root), str(root / "index")} <= synced


def test_folders_that_others_made_are_synced_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever made them may not have come to it yet."""
    with castore.open(tmp_path / "store") as store:
        for i in range(256):
            os.makedirs(f"{store.path}/packs/{i:02x}", mode=0o700)
        synced = synced_folders(monkeypatch)
        store.puts("name", noise(10_000))
        (pack,) = packs_of(store)
        assert {str(pack), str(pack.parent), str(pack.parent.parent)} <= synced


def test_a_failed_fsync_poisons_the_pack(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.puts("before", noise(50_000, 1))
    (poisoned,) = packs_of(store)
    calls: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        calls.append(path)
        if failing and path.endswith(".pack"):
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    failing = True
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(PackPoisoned), store.transaction() as other:  # noqa: PT012
        other.puts("in the same pack", noise(50_000, 3))
        with pytest.raises(PackPoisoned, match="nothing was published"):
            store.puts("lost", noise(50_000, 2))
        failing = False
    assert calls.count(str(poisoned)) == 1, "a failed fsync is not repeated: it would succeed"
    assert list(store.names()) == ["before"]
    store.puts("after", noise(50_000, 2))
    assert calls.count(str(poisoned)) == 1
    assert len(packs_of(store)) == 2, "a new pack"
    assert store.gets("before") == noise(50_000, 1)
    assert store.gets("after") == noise(50_000, 2)


def test_a_pack_is_not_durable_where_its_fsync_was_interrupted(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler's error, as of a limit of time, ends the put; nothing was said of the disk, and who
    shares the pack asks it again."""
    calls: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        if path.endswith(".pack"):
            calls.append(path)
            if len(calls) == 1:
                raise TimeoutError("time is up")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with store.transaction() as other:
        other.puts("in the same pack", noise(50_000, 3))
        with pytest.raises(TimeoutError, match="time is up"):
            store.puts("interrupted", noise(50_000, 2))
        assert list(store.names()) == []
    (pack,) = packs_of(store)
    assert calls == [str(pack)] * 2
    assert store.gets("in the same pack") == noise(50_000, 3)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_footer_that_finds_no_room_loses_nothing(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    store.puts("name", noise(50_000, 1))
    real = os.pwritev

    def pwritev(fd: int, parts: Any, offset: int) -> int:
        real(fd, [bytes(part)[:9] for part in parts][:1], offset)
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", pwritev)
        store.close()
    with castore.open(store.path, create=False) as again:
        assert again.gets("name") == noise(50_000, 1)
        assert again.gc().packs_sealed == 1
        assert again.gets("name") == noise(50_000, 1)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_while_a_pack_is_written(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    store.puts("before", noise(50_000, 1))
    real = os.pwritev

    def pwritev(fd: int, parts: Any, offset: int) -> int:
        if offset > 100_000:
            raise OSError(code, os.strerror(code))
        return real(fd, [bytes(part)[:999] for part in parts][:1], offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    with pytest.raises(StoreFull, match=r"no space left.*nothing was published") as caught:
        store.puts("lost", noise(200_000, 2))
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert list(store.names()) == ["before"]
    assert store.gets("before") == noise(50_000, 1)
    store.puts("lost", noise(200_000, 2))
    assert store.gets("lost") == noise(200_000, 2)


def test_short_writes_are_continued(store: castore.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev

    def pwritev(fd: int, parts: Any, offset: int) -> int:
        return real(fd, [memoryview(part)[:777] for part in parts][:1], offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    data = mixed(300_000)
    store.puts("name", data)
    monkeypatch.undo()
    with castore.open(store.path, cache_bytes=0) as fresh:
        assert fresh.gets("name") == data


def test_a_put_goes_on_though_somebody_keeps_its_frames(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the traceback of a request that was tried again does: its slices of the buffer live."""
    kept, look_up = [], LocalSession.look_up

    def keeping(self: LocalSession, ids: list[bytes]) -> object:
        kept.append(sys._getframe())
        return look_up(self, ids)

    monkeypatch.setattr(LocalSession, "look_up", keeping)
    data = mixed(9_000_000)
    store.put("name", io.BytesIO(data))
    assert store.gets("name") == data
    assert len(kept) > 1


@pytest.mark.damages_store("packs are removed")
def test_chunks_of_a_lost_pack_are_stored_again(store: castore.Store) -> None:
    data = mixed(200_000)
    store.puts("name", data)
    store.close()
    for pack in packs_of(store):
        pack.unlink()
    with castore.open(store.path) as again:
        for read in (again.gets, lambda name: again.open(name).read()):
            with pytest.raises(PackMissing, match="is missing from the store: restore it"):
                read("name")
        again.puts("name", data)
        assert again.gets("name") == data
        unique = again.stats().unique_bytes
        again.puts("twice", data)
        assert again.stats().unique_bytes == unique
