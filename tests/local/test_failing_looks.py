"""Each call by which an operation of a local store looks at a file or folder, removes or renames it
fails, one after the other: the error is castore's and names what failed, and the store goes on."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import castore
from castore.errors import CastoreError

CALLS = ("stat", "lstat", "listdir", "scandir", "unlink", "rename", "mkdir", "fstat")
CODES = (errno.EIO, errno.EACCES, errno.EMFILE)
POINTS_MAX = 200


def content(of: int) -> bytes:
    return random.Random(of).randbytes(150_000)


def made(root: Path) -> None:
    """A store that has something for each step of a collection."""
    with castore.open(root, threads=1) as store:
        for i in range(4):
            store.puts(f"n{i}", content(i))
    with castore.open(root, threads=1) as store:
        store.puts("alone", content(9))
        store.delete("n0")
        store.delete("n1")
        store.delete("alone")
    (root / "index.new-0").mkdir()
    (root / "index.new-0" / "data.mdb").write_bytes(bytes(10))


class Failing:
    """The calls on what is below `root`, the n-th of which fails once."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root = str(root)
        self._left = 0
        self._code = 0
        for name in CALLS:
            monkeypatch.setattr(os, name, self._failing(getattr(os, name)))

    def fail(self, n: int, code: int) -> None:
        """0 for none."""
        self._left, self._code = n, code

    @property
    def is_due(self) -> bool:
        return self._left > 0

    def _failing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def failing(path: Any = ".", *arguments: Any, **options: Any) -> Any:
            if self._left and self._is_ours(path):
                self._left -= 1
                if not self._left:
                    what = (self._code, os.strerror(self._code))
                    raise OSError(*what) if isinstance(path, int) else OSError(*what, path)
            return call(path, *arguments, **options)

        return failing

    def _is_ours(self, path: Any) -> bool:
        if isinstance(path, int):
            path = place_of(path)
        return os.fsdecode(path).startswith(self._root)


def place_of(fd: int) -> str:
    """ "" where the system does not tell."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def put(store: castore.Store) -> None:
    store.puts("new", content(7))
    store.puts("again", content(2))


def commit(store: castore.Store) -> None:
    with store.transaction() as t:
        t.puts("new", b"small")
        t.delete("n2")


def back_up(store: castore.Store) -> None:
    store.backup(Path(store.path).parent / "backup")


OPENED: dict[str, Callable[[castore.Store], object]] = {
    "put": put,
    "commit": commit,
    "stats": lambda store: store.stats(),
    "gc": lambda store: store.gc(repack_below=0.95),
    "dry run": lambda store: store.gc(dry_run=True),
    "backup": back_up,
}


def compact(root: Path) -> None:
    castore.compact_index(root)


def reopen(root: Path) -> None:
    castore.open(root, threads=1).close()


def use(root: Path) -> None:
    with castore.open(root, threads=1) as store:
        put(store)


CLOSED: dict[str, Callable[[Path], object]] = {
    "compact": compact,
    "open": reopen,
    "use": use,
    "rebuild": castore.rebuild_index,
}


@pytest.mark.parametrize("what", [*OPENED, *CLOSED])
def test_a_call_that_fails_is_told_of_with_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    template, root = tmp_path / "template", tmp_path / "store"
    made(template)
    failing = Failing(root, monkeypatch)
    for point in range(1, POINTS_MAX):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(template, root)
        if not fails(failing, root, what, point):
            break
        assert left_open(root) == []
        with castore.open(root, threads=1) as store:
            store.puts("goes on", b"")
            assert store.gets("n3") == content(3)
            assert not store.exists("n2") or store.gets("n2") == content(2)
            store.gc()
    else:
        pytest.fail(f"{what} makes more calls than were tried")
    assert point > 1


def left_open(root: Path) -> list[str]:
    """The files of the store that this process has open, locks among them."""
    places = [place_of(int(fd)) for fd in os.listdir("/dev/fd")]
    return [place for place in places if place.startswith(str(root))]


def fails(failing: Failing, root: Path, what: str, point: int) -> bool:
    """Whether there was a call to fail at that point."""
    code = CODES[point % len(CODES)]
    store = castore.open(root, threads=1) if what in OPENED else None
    said = ""
    try:
        failing.fail(point, code)
        if store is None:
            CLOSED[what](root)
        else:
            OPENED[what](store)
    except CastoreError as error:
        said = str(error)
        error.__traceback__ = None  # which keeps what was open
    finally:
        is_due = failing.is_due
        failing.fail(0, 0)
        if store is not None:
            store.close()
    assert not said or str(root) in said
    return not is_due
