"""Opening and closing local stores, and forks."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from stores import locked, packs_of

import castore
from castore import errors
from castore.errors import (
    NameNotFound,
)
from castore.local import packs as local_packs
from castore.testing.contents import (
    fork_is_fine,
    forked,
    mixed,
    noise,
)


def test_opening_in_every_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with castore.open("folder/store") as store:
        assert store.path == str(tmp_path / "folder" / "store")
        assert not store.read_only
        store.puts("name", b"x")
        (tmp_path / "link").symlink_to(tmp_path / "folder")
        for path in (
            tmp_path / "folder" / "store",
            "link/store",
            f"file://{store.path}",
            "folder/../folder/store/",
        ):
            with castore.open(path, create=False) as again:
                assert again.gets("name") == b"x"
                assert again.path == store.path


def open_descriptors() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
    return found


def test_nothing_of_a_closed_store_stays_open(tmp_path: Path) -> None:
    def mapped() -> list[str]:
        with open("/proc/self/maps") as file:
            return [line for line in file if str(tmp_path) in line]

    data = mixed(5_000_000)
    threads = threading.active_count()
    for i in range(3):
        with castore.open(tmp_path / "store", threads=3) as store:
            store.puts(f"{i}", data)
            assert store.gets("0") == data
            with store.open("0") as file:
                assert file.read() == data
            store.get("0", tmp_path / "target")
            with pytest.raises(KeyError), store.open("new", "wb") as failing:  # noqa: PT012
                failing.write(data[::-1])
                raise KeyError
    assert not [path for path in open_descriptors() if str(tmp_path) in path]
    del store, file, failing
    assert not mapped()
    assert threading.active_count() == threads


def test_reading_keeps_no_descriptors_of_packs(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_packs, "PACK_BYTES_MAX", 100_000)
    store.puts("name", noise(5_000_000))
    with store.open("name") as file:
        file.read()
        store.gets("name")
        held = [p for p in open_descriptors() if p.endswith(".pack") and store.path in p]
        assert len(held) <= 1, "the one that is open for writing"
        assert len(packs_of(store)) > 4


def test_threads_open_and_close_at_once(tmp_path: Path) -> None:
    castore.open(tmp_path / "store").close()
    raised: list[BaseException] = []

    def work(i: int) -> None:
        try:
            for j in range(150):
                with castore.open(tmp_path / "store") as store:
                    store.puts(f"{i}", f"{i} {j}".encode())
                    assert store.gets(f"{i}") == f"{i} {j}".encode()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not raised


def test_two_processes_make_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower one opens what the faster one made, also when that is in use already."""
    from castore.local import store as local

    path = tmp_path / "store"
    program = "import castore, sys; castore.open(sys.argv[1]).puts('name', bytes(50000))"
    original = local._create

    def outrun(*arguments: Any) -> None:
        subprocess.run([sys.executable, "-c", program, str(path)], check=True)
        original(*arguments)

    monkeypatch.setattr(local, "_create", outrun)
    with castore.open(path) as store:
        assert list(store.names()) == ["name"]


def test_unpickling_does_not_make_stores(tmp_path: Path) -> None:
    with castore.open(tmp_path / "store") as store:
        pickled = pickle.dumps(store)
    os.rename(tmp_path / "store", tmp_path / "moved")
    with pytest.raises(errors.StoreNotFound):
        pickle.loads(pickled)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "error",
    [
        errors.NameNotFound("a"),
        errors.NameExists("a"),
        errors.InvalidName("a"),
        errors.InvalidRange("a"),
        errors.StoreNotFound(errno.ENOENT, "a"),
        errors.NotAStore("a"),
        errors.UnsupportedFormat("a"),
        errors.ReadOnlyStore(errno.EACCES, "a"),
        errors.StoreClosed("a"),
        errors.StoreLocked(errno.EAGAIN, "a"),
        errors.StoreFull("a"),
        errors.StoreIOError("a", errno.EMFILE),
        errors.PackPoisoned("a"),
        errors.CommitUnknown("a"),
        errors.SourceChanged("a"),
        errors.FormatError("a"),
        errors.ChunkCorrupt(b"\1" * 16, b"\2" * 16, 77, "because"),
        errors.PackMissing(b"\1" * 16),
        errors.IndexCorrupt("a"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_cross_processes(error: errors.CastoreError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
    assert getattr(copy, "errno", None) == getattr(error, "errno", None)


@fork_is_fine
def test_a_forked_child_reads_and_writes(store: castore.Store) -> None:
    data = mixed(5_000_000)
    store.puts("parent", data)

    def child() -> bytes:
        store.puts("child", noise(100_000))
        return store.gets("parent")

    assert forked(child) == data
    assert store.gets("child") == noise(100_000)
    store.puts("parent", noise(100_000, 5))
    assert store.gets("parent") == noise(100_000, 5)
    assert len(packs_of(store)) == 2, "the child wrote a pack of its own"
    assert isinstance(forked(lambda: store.gets("missing")), NameNotFound)


@fork_is_fine
def test_a_child_that_ends_does_not_unlock_its_parents_pack(store: castore.Store) -> None:
    with store.transaction() as transaction:
        transaction.puts("name", noise(100_000))
        (pack,) = packs_of(store)

        def child() -> None:
            store.puts("child", noise(100_000, 2))
            store.close()

        assert forked(child) is None
        assert locked(pack)
        with pytest.raises(errors.StoreIOError, match="before a fork"):
            raise forked(lambda: transaction.__exit__(None, None, None))
        assert locked(pack)
        transaction.puts("more", noise(100_000, 3))
    assert store.gets("name") == noise(100_000)
    assert store.gets("more") == noise(100_000, 3)
    assert store.gets("child") == noise(100_000, 2)


def test_a_store_that_nobody_closes_is_held_to_the_end_and_nothing_is_said(tmp_path: Path) -> None:
    program = """
import atexit, sys, castore
from castore.local.folder import alone
def is_held():  # runs last, as it was registered first
    try:
        alone(sys.argv[1]).close()
    except castore.errors.StoreLocked:
        print("held")
atexit.register(is_held)
import castore.local.store
atexit.unregister(castore.local.store._at_exit)
atexit.register(castore.local.store._at_exit)
castore.open(sys.argv[1]).puts("a", b"1")
"""
    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "dev",
            "-W",
            "error::ResourceWarning",
            "-c",
            program,
            tmp_path / "s",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("held\n", "")
    with castore.open(tmp_path / "s") as store:
        assert store.gets("a") == b"1"
