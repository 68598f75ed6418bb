"""A store as a tree of files and folders, without a kernel."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import pytest

import castore
from castore.mount import draft, pages
from castore.mount.callers import Caller
from castore.mount.errnos import errno_of
from castore.mount.handles import Handle
from castore.mount.pages import Pages
from castore.mount.tree import RENAME_NOREPLACE, Tree
from castore.mount.view import Entry
from castore.system.clock import boot_clock
from castore.testing.contents import noise

ONE, OTHER = Caller(1, False), Caller(2, False)
NEW = os.O_WRONLY | os.O_CREAT
DATA = noise(40_000)


@pytest.fixture
def tree(store: castore.Store) -> Iterator[Tree]:
    tree = Tree(store, writable=True)
    yield tree
    tree.close(publish=False)


def fails(number: int, ask: Callable[[], object]) -> None:
    with pytest.raises(Exception) as caught:  # which number is what is asked here
        ask()
    assert errno.errorcode[errno_of(caught.value)] == errno.errorcode[number], caught.value


def read(handle: Handle, offset: int = 0, size: int = 1 << 20) -> bytes:
    target = bytearray(size)
    return bytes(target[: handle.read_into(offset, memoryview(target))])


def contents(tree: Tree, path: str, caller: Caller = OTHER) -> bytes:
    handle = tree.open(path, os.O_RDONLY, caller)
    try:
        return read(handle)
    finally:
        tree.release(handle)


def close(tree: Tree, handle: Handle, caller: Caller = ONE) -> None:
    tree.flush(handle, caller)
    tree.release(handle)


def write(tree: Tree, path: str, data: bytes, caller: Caller = ONE) -> None:
    handle = tree.create(path, 0o644, NEW, caller)
    handle.write(0, data)
    close(tree, handle, caller)


# ---------------------------------------------------------------- what is there


def test_files_and_folders(store: castore.Store, tree: Tree) -> None:
    store.puts("a/b/c", DATA, mode=0o640)
    store.puts("d", b"1")
    assert set(tree.readdir("/")) == {Entry("a", True), Entry("d", False)}
    assert tree.readdir("/a") == [Entry("b", True)]
    found = tree.getattr("/a/b/c")
    info = store.info("a/b/c")
    assert found == (False, 0o640, len(DATA), info.mtime_ns)
    assert tree.getattr("/a").is_folder
    assert contents(tree, "/a/b/c") == DATA
    fails(errno.ENOENT, lambda: tree.getattr("/e"))
    fails(errno.ENOENT, lambda: tree.readdir("/e"))
    fails(errno.ENOTDIR, lambda: tree.readdir("/d"))
    fails(errno.ENAMETOOLONG, lambda: tree.getattr("/" + "x" * 481))
    fails(errno.EILSEQ, lambda: tree.getattr("/\udcff"))
    assert tree.statfs()["f_namemax"] == 480


def test_names_that_no_path_leads_to(store: castore.Store, tree: Tree) -> None:
    for name in ("a", "a/b", "c//d", "e/"):
        store.puts(name, name.encode())
    assert {entry.name for entry in tree.readdir("/")} == {"a", "c", "e"}
    assert tree.getattr("/a").is_folder  # so that what is below it can be reached
    assert tree.readdir("/c") == tree.readdir("/e") == []
    tree.unlink("/a/b")
    tree.rmdir("/a")
    assert contents(tree, "/a") == b"a"
    fails(errno.ENOTEMPTY, lambda: tree.rmdir("/c"))
    tree.rmdir("/e")
    assert list(store.names()) == ["a", "c//d"]


def test_below_prefixes(store: castore.Store) -> None:
    store.puts("data/x", b"user's")
    store.puts("pipelines/7/data/x", b"pipeline's")
    tree = Tree(store, {"pipeline": "pipelines/7/data/", "user": "data/"}, writable=True)
    assert {entry.name for entry in tree.readdir("/")} == {"pipeline", "user"}
    assert tree.getattr("/").is_folder
    assert tree.getattr("/user").is_folder
    assert contents(tree, "/pipeline/x") == b"pipeline's"
    write(tree, "/user/y", b"1")
    tree.rename("/user/y", "/pipeline/y")
    assert store.exists("pipelines/7/data/y")
    fails(errno.EACCES, lambda: tree.create("/z", 0o644, NEW))
    fails(errno.EACCES, lambda: tree.mkdir("/z", 0o755))
    fails(errno.ENOENT, lambda: tree.getattr("/z"))
    fails(errno.EBUSY, lambda: tree.rmdir("/user"))
    fails(errno.EBUSY, lambda: tree.rename("/user", "/pipeline/u"))
    fails(errno.EISDIR, lambda: tree.unlink("/user"))
    fails(errno.EEXIST, lambda: tree.mkdir("/user", 0o755))
    assert tree.readdir("/user") == [Entry("x", False)]
    for wrong in ({"": "", "a": ""}, {"a/b": ""}, {"": "data"}):
        with pytest.raises(ValueError):
            Tree(store, wrong, writable=False)


def test_read_only(store: castore.Store) -> None:
    store.puts("a", b"1")
    tree = Tree(store, writable=False)
    assert contents(tree, "/a") == b"1"
    for change in (
        lambda: tree.open("/a", os.O_WRONLY),
        lambda: tree.open("/a", os.O_RDONLY | os.O_TRUNC),
        lambda: tree.create("/b", 0o644, NEW),
        lambda: tree.truncate("/a", 0),
        lambda: tree.unlink("/a"),
        lambda: tree.mkdir("/b", 0o755),
        lambda: tree.rmdir("/b"),
        lambda: tree.rename("/a", "/b"),
        lambda: tree.chmod("/a", 0o600),
        lambda: tree.utimens("/a", 0),
    ):
        fails(errno.EROFS, change)
    assert store.gets("a") == b"1"


# ---------------------------------------------------------------- files that are written


def test_what_is_written_is_published_when_it_is_closed(store: castore.Store, tree: Tree) -> None:
    store.puts("a", b"old")
    handle = tree.open("/a", os.O_WRONLY | os.O_TRUNC, ONE)
    assert handle.write(0, DATA) == len(DATA)
    assert tree.getattr("/a", caller=ONE).size == len(DATA)
    assert tree.getattr("/a", caller=OTHER).size == 3
    assert contents(tree, "/a", ONE) == DATA
    assert contents(tree, "/a", OTHER) == store.gets("a") == b"old"
    tree.flush(handle, OTHER)  # of a child, that has it open, too
    assert store.gets("a") == b"old"
    tree.flush(handle, ONE)
    assert store.gets("a") == contents(tree, "/a") == DATA
    tree.release(handle)


def test_a_new_file_is_there_before_it_is_published(store: castore.Store, tree: Tree) -> None:
    handle = tree.create("/d/a", 0o600, NEW, ONE)
    handle.write(0, b"part")
    assert tree.readdir("/d") == [Entry("a", False)]
    assert tree.getattr("/d/a", caller=OTHER)[:3] == (False, 0o600, 4)
    assert contents(tree, "/d/a", OTHER) == b"part"
    assert not store.exists("d/a")
    tree.release(handle)  # its child had it open longer
    assert (store.gets("d/a"), store.info("d/a").mode) == (b"part", 0o600)


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_WRONLY | os.O_APPEND])
@pytest.mark.parametrize("who", [ONE, OTHER])
@pytest.mark.parametrize("first", [False, True])
def test_mode_bits_given_while_a_file_is_open(
    store: castore.Store, tree: Tree, flags: int, who: Caller, first: bool
) -> None:
    store.puts("a", b"old")
    handle = tree.open("/a", flags, ONE)
    if first:
        tree.chmod("/a", 0o600, who)
    handle.write(3, b" and new")
    if not first:
        tree.chmod("/a", 0o600, who)
    close(tree, handle)
    assert (store.gets("a"), store.info("a").mode) == (b"old and new", 0o600)


def test_an_append_keeps_the_mode_bits_that_others_gave(store: castore.Store, tree: Tree) -> None:
    store.puts("a", b"old")
    handle = tree.open("/a", os.O_WRONLY | os.O_APPEND, ONE)
    handle.write(0, b" and new")
    store.set_attributes("a", mode=0o600)  # not through the mount
    close(tree, handle)
    assert (store.gets("a"), store.info("a").mode) == (b"old and new", 0o600)


def test_a_time_that_no_record_can_hold_is_refused_at_once(
    store: castore.Store, tree: Tree
) -> None:
    store.puts("there", b"1")
    handle = tree.create("/a", 0o644, NEW, ONE)
    handle.write(0, b"part")
    for path in ("/a", "/there", "/"):
        for time_ns in (-(1 << 63) - 1, 1 << 63):
            fails(errno.EOVERFLOW, lambda path=path, at=time_ns: tree.utimens(path, at, ONE))
    tree.utimens("/a", -(1 << 63), ONE)
    close(tree, handle)
    assert (store.gets("a"), store.info("a").mtime) == (b"part", -(1 << 63) / 1e9)


def test_an_empty_file(store: castore.Store, tree: Tree) -> None:
    store.puts("b", b"1")
    close(tree, tree.create("/a", 0o644, NEW, ONE))
    close(tree, tree.open("/b", os.O_WRONLY | os.O_TRUNC, ONE))
    assert store.gets("a") == store.gets("b") == b""


@pytest.mark.parametrize("by", [ONE, OTHER])
@pytest.mark.parametrize("flags", [NEW | os.O_TRUNC, NEW | os.O_APPEND])
@pytest.mark.parametrize("publish", [Tree.fsync, Tree.flush])
def test_an_empty_file_is_never_published_over_what_was_written_later(
    store: castore.Store, tree: Tree, by: Caller, flags: int, publish: Callable[..., None]
) -> None:
    """As in `: > a; echo new > a`: the kernel does not wait for the end of the first one."""
    store.puts("a", b"old")
    empty = tree.open("/a", NEW | os.O_TRUNC, ONE)
    tree.flush(empty, ONE)
    handle = tree.open("/a", flags, by)
    handle.write(0, b"new")
    publish(tree, handle, *([by] if publish is Tree.flush else []))
    tree.release(empty)
    close(tree, handle, by)
    assert store.gets("a") == b"new"


def test_an_empty_file_is_never_published_over_what_others_had_open(
    store: castore.Store, tree: Tree
) -> None:
    handle, empty = tree.create("/a", 0o644, NEW, OTHER), tree.create("/a", 0o644, NEW, ONE)
    handle.write(0, b"new")
    tree.flush(empty, ONE)
    tree.flush(handle, OTHER)
    tree.release(empty)
    tree.release(handle)
    assert store.gets("a") == b"new"


@pytest.mark.parametrize("was_there", [False, True])
@pytest.mark.parametrize("by_mount", [False, True])
def test_who_writes_nothing_to_a_file_replaces_nothing_that_others_wrote(
    store: castore.Store, tree: Tree, was_there: bool, by_mount: bool
) -> None:
    """As who makes a temporary file, has a program write to its name, and then closes it."""
    if was_there:
        store.puts("a", b"old")
        handle = tree.open("/a", NEW | os.O_TRUNC, ONE)
    else:
        handle = tree.create("/a", 0o600, NEW | os.O_EXCL, ONE)
    if by_mount:
        writing = tree.open("/a", os.O_WRONLY | os.O_TRUNC, OTHER)
        writing.write(0, b"new")
        close(tree, writing, OTHER)
        assert contents(tree, "/a", ONE) == b"new"
        assert tree.getattr("/a", None, ONE).size == 3
    else:
        store.puts("a", b"new")
    close(tree, handle, ONE)
    assert store.gets("a") == b"new"


@pytest.mark.parametrize("ends", [True, False])
def test_who_looks_at_a_file_that_was_emptied_finds_it_empty(
    store: castore.Store, tree: Tree, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """As in `: > a; cat a`. Where a child has it open still, nobody waits long for that."""
    monkeypatch.setattr(draft, "ENDS_S", 60 if ends else 0.01)
    store.puts("a", b"old")
    empty = tree.open("/a", NEW | os.O_TRUNC, ONE)
    assert contents(tree, "/a", OTHER) == b"old"
    tree.flush(empty, ONE)
    with ThreadPoolExecutor() as threads:
        found = threads.submit(contents, tree, "/a", OTHER)
        told = threads.submit(tree.getattr, "/a", None, OTHER)
        if ends:
            wait([found, told], 0.2)
            tree.release(empty)
        assert (found.result(), told.result().size) == ((b"", 0) if ends else (b"old", 3))
    if not ends:
        tree.release(empty)
    assert store.gets("a") == b""


def test_an_empty_file_replaces_what_others_only_looked_at(
    store: castore.Store, tree: Tree
) -> None:
    store.puts("a", b"old")
    empty = tree.open("/a", NEW | os.O_TRUNC, ONE)
    close(tree, tree.open("/a", os.O_RDWR, OTHER), OTHER)
    store.set_attributes("a", mode=0o600)
    close(tree, empty)
    assert store.gets("a") == b""


def test_bits_and_times_given_while_an_empty_file_is_published_stay(
    store: castore.Store, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `touch a; chmod +x a`: the kernel does not wait for the end of the first one."""
    handle = tree.create("/a", 0o644, NEW, ONE)
    tree.flush(handle, ONE)
    put = castore.Transaction.put
    changers = [
        threading.Thread(target=tree.chmod, args=("/a", 0o755, ONE)),
        threading.Thread(target=tree.utimens, args=("/a", 5, OTHER)),
    ]

    def then_changed(self: castore.Transaction, *args: Any, **options: Any) -> object:
        info = put(self, *args, **options)
        for changer in changers:
            changer.start()
            changer.join(0.2)
        return info

    with monkeypatch.context() as patched:
        patched.setattr(castore.Transaction, "put", then_changed)
        tree.release(handle)
    for changer in changers:
        changer.join(60)
    assert (store.info("a").mode, store.info("a").mtime_ns) == (0o755, 5)


def test_a_writer_that_is_killed_publishes_nothing(store: castore.Store, tree: Tree) -> None:
    store.puts("a", b"old")
    for path in ("/a", "/b"):
        handle = tree.create(path, 0o644, NEW | os.O_TRUNC, ONE)
        handle.write(0, b"half")
        close(tree, handle, Caller(1, is_killed=True))
    assert store.gets("a") == contents(tree, "/a") == b"old"
    assert list(store.names()) == ["a"]
    assert tree.readdir("/") == [Entry("a", False)]


def test_what_it_had_closed_before_stays(store: castore.Store, tree: Tree) -> None:
    handle = tree.create("/a", 0o644, NEW, ONE)
    handle.write(0, b"closed")
    tree.flush(handle, ONE)
    handle.write(6, b", and more")
    close(tree, handle, Caller(1, is_killed=True))
    assert store.gets("a") == b"closed"


def test_of_two_writers_the_last_to_close_wins(store: castore.Store, tree: Tree) -> None:
    one = tree.create("/a", 0o644, NEW | os.O_TRUNC, ONE)
    other = tree.create("/a", 0o644, NEW | os.O_TRUNC, OTHER)
    one.write(0, b"longer")
    other.write(0, b"short")
    close(tree, other, OTHER)
    close(tree, one, ONE)
    assert store.gets("a") == b"longer"
    one = tree.open("/a", os.O_WRONLY | os.O_TRUNC, ONE)
    again = tree.open("/a", os.O_WRONLY | os.O_TRUNC, ONE)
    one.write(0, b"first")
    again.write(0, b"2")
    close(tree, one)
    close(tree, again)
    assert store.gets("a") == b"2"


def test_those_who_append_keep_what_others_appended(store: castore.Store, tree: Tree) -> None:
    store.puts("log", DATA)
    packed = store.stats().stored_bytes
    one = tree.open("/log", os.O_WRONLY | os.O_APPEND, ONE)
    other = tree.open("/log", os.O_WRONLY | os.O_APPEND, OTHER)
    one.write(0, b"one\n")  # wherever the kernel believes the end to be
    other.write(0, b"other\n")
    tree.fsync(one)
    one.write(0, b"more\n")
    close(tree, one)
    close(tree, other, OTHER)
    assert store.gets("log") == DATA + b"one\nmore\nother\n"
    assert store.stats().stored_bytes - packed < len(DATA)


@pytest.mark.parametrize("was_there", [False, True])
def test_who_appends_and_who_does_not_share_a_file_of_one_process(
    store: castore.Store, tree: Tree, was_there: bool
) -> None:
    if was_there:
        store.puts("a", b"old")
    appending = (
        tree.open("/a", os.O_WRONLY | os.O_APPEND, ONE)
        if was_there
        else tree.create("/a", 0o644, NEW | os.O_APPEND, ONE)
    )
    appending.write(0, b"12345")
    other = tree.open("/a", os.O_RDWR, ONE)
    other.write(1, b"X")
    again = tree.open("/a", os.O_WRONLY | os.O_APPEND, ONE)
    again.write(0, b"6")
    whole = b"oXd123456" if was_there else b"1X3456"
    assert contents(tree, "/a", ONE) == whole
    for handle in (appending, other, again):
        close(tree, handle)
    assert store.gets("a") == whole


@pytest.mark.parametrize("is_new", [False, True])
def test_who_is_faster_to_append_is_kept_too(
    store: castore.Store, tree: Tree, monkeypatch: pytest.MonkeyPatch, is_new: bool
) -> None:
    """Others append between any two of the steps in which this one does."""
    before = b"" if is_new else DATA
    if not is_new:
        store.puts("log", DATA)
    others = []

    def meanwhile(self: castore.Store, *args: Any, _asked: Callable[..., Any]) -> Any:
        try:
            return _asked(self, *args)
        finally:
            if threading.current_thread() is threading.main_thread() and len(others) < 6:
                others.append(b"other %d\n" % len(others))
                with castore.open(store.path) as other, other.open("log", "ab") as file:
                    file.write(others[-1])

    handle = tree.create("/log", 0o600, NEW | os.O_APPEND, ONE)
    handle.write(0, b"one\n")
    for verb in ("info", "transaction"):
        asked = getattr(castore.Store, verb)
        monkeypatch.setattr(castore.Store, verb, partialmethod(meanwhile, _asked=asked))
    tree.flush(handle, ONE)
    monkeypatch.undo()
    tree.release(handle)
    assert store.gets("log") == before + b"".join(others) + b"one\n"
    assert len(others) == 6


def test_what_goes_on_being_written_is_never_what_others_wrote(
    store: castore.Store, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others replace the object right after this one was published, as an append to it."""
    store.puts("a", b"1234")
    handle = tree.open("/a", os.O_RDWR, ONE)
    handle.write(4, b"56")
    commit = castore.Transaction.commit

    def then_others(self: castore.Transaction) -> None:
        commit(self)
        monkeypatch.undo()
        store.puts("a", b"theirs, which is longer")

    monkeypatch.setattr(castore.Transaction, "commit", then_others)
    tree.fsync(handle)
    assert store.gets("a") == b"theirs, which is longer"
    assert read(handle) == b"123456"
    handle.write(6, b"7")
    close(tree, handle)
    assert store.gets("a") == b"1234567"


def test_writes_in_the_middle(store: castore.Store, tree: Tree) -> None:
    store.puts("a", DATA, mode=0o640)
    expected = bytearray(DATA)
    handle = tree.open("/a", os.O_RDWR, ONE)
    handle.write(len(DATA) + 10, b"behind a gap")
    expected += bytes(10) + b"behind a gap"
    assert read(handle) == expected
    handle.write(100, b"in the middle")
    expected[100:113] = b"in the middle"
    assert read(handle) == expected
    assert read(handle, 95, 30) == expected[95:125]
    handle.truncate(20_000)
    handle.truncate(20_010)
    expected[20_000:] = bytes(10)
    assert read(handle) == expected
    close(tree, handle)
    assert store.gets("a") == expected
    assert store.info("a").mode == 0o640


def test_what_is_written_behind_the_end_of_what_was_replaced(
    store: castore.Store, tree: Tree
) -> None:
    store.puts("a", b"old")
    handle = tree.open("/a", os.O_RDWR, ONE)
    handle.write(3, b" and new")
    store.puts("a", b"another")
    close(tree, handle)
    assert store.gets("a") == b"old and new"


def test_truncate(store: castore.Store, tree: Tree) -> None:
    store.puts("a", DATA)
    tree.truncate("/a", 10)
    assert store.gets("a") == DATA[:10]
    tree.truncate("/a", 12)
    assert store.gets("a") == DATA[:10] + bytes(2)
    fails(errno.ENOENT, lambda: tree.truncate("/b", 0))
    fails(errno.EBADF, lambda: tree.open("/a", os.O_RDONLY).write(0, b"1"))


def test_a_disk_that_is_full_is_told_at_the_close(
    store: castore.Store,
    tree: Tree,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise castore.errors.StoreFull("the disk is full")

    handle = tree.create("/a", 0o644, NEW, ONE)
    handle.write(0, b"1")
    empty = tree.create("/b", 0o644, NEW, ONE)
    with monkeypatch.context() as patch:
        patch.setattr(castore.Store, "transaction", full)
        fails(errno.ENOSPC, lambda: tree.flush(handle, ONE))
        tree.release(handle)  # what was told is not tried again
        assert not caplog.records
        tree.release(empty)
    assert [record.getMessage() for record in caplog.records] == [
        "'b' is not published: the disk is full"
    ]
    assert list(store.names()) == []


def test_the_end_of_the_mount(store: castore.Store) -> None:
    for publish in (True, False):
        tree = Tree(store, writable=True)
        tree.create(f"/{publish}", 0o644, NEW, ONE).write(0, b"1")
        tree.close(publish=publish)
    assert list(store.names()) == ["True"]


# ---------------------------------------------------------------- versions and pages


def test_a_file_is_one_version_to_its_end(store: castore.Store, tree: Tree) -> None:
    store.puts("a", DATA)
    old = tree.open("/a", os.O_RDONLY)
    assert (old.past_pages, old.keeps_pages) == (False, False)
    assert read(old, 0, 1) == DATA[:1]  # so what the kernel had before is gone
    again = tree.open("/a", os.O_RDONLY)
    assert (again.past_pages, again.keeps_pages) == (False, True)
    tree.release(again)
    store.puts("a", b"new")
    new = tree.open("/a", os.O_RDONLY)
    assert new.past_pages  # the pages are the old one's as long as it is open
    assert (read(old), read(new)) == (DATA, b"new")
    assert tree.getattr("/a", old).size == tree.getattr("/a").size == len(DATA)
    assert tree.getattr("/a", new).size == 3
    tree.release(old)
    tree.release(new)
    newer = tree.open("/a", os.O_RDONLY)
    assert (newer.past_pages, newer.keeps_pages) == (False, False)
    tree.release(newer)


def test_the_kernel_is_had_to_move_what_is_in_the_way(store: castore.Store, tree: Tree) -> None:
    store.puts("a", DATA)
    moves: list[tuple[str, str, Callable[[], None]]] = []
    tree.pages.set_aside = lambda *move: moves.append(move)
    old = tree.open("/a", os.O_RDONLY)
    store.puts("a", b"new")
    asks = Caller(1, False, thread=11)
    fails(errno.ESTALE, lambda: tree.open("/a", os.O_RDONLY, asks))
    fails(errno.ESTALE, lambda: tree.open("/a", os.O_WRONLY, Caller(2, False, thread=12)))
    [(path, aside, done)] = moves
    assert path == "/a"
    assert tree.getattr("/a", caller=Caller(os.getpid(), False, thread=13)).size == len(DATA)
    fails(errno.ENOENT, lambda: tree.getattr(aside, caller=Caller(os.getpid(), False)))
    tree.rename("/a", aside)
    done()
    assert tree.getattr("/a", caller=asks).size == 3
    assert tree.getattr(aside).size == len(DATA)
    fails(errno.ESTALE, lambda: tree.open(aside, os.O_RDONLY))
    late = tree.open(aside, os.O_RDONLY)  # told once, and there is no third time
    assert late.past_pages
    tree.release(late)
    writing = tree.open("/a", os.O_WRONLY, Caller(2, False, thread=12))
    writing.write(0, b"N")
    new = tree.open("/a", os.O_RDONLY, asks)
    assert new.past_pages  # it is being written
    assert (read(old), read(new)) == (DATA, b"new")
    close(tree, writing, Caller(2, False))
    for handle in (old, new):
        tree.release(handle)
    assert store.gets("a") == b"New"
    assert tree.readdir("/") == [Entry("a", False)]


def test_who_is_told_to_look_again_is_told_once(
    store: castore.Store, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "READ_S", 0.05)
    store.puts("a", DATA)
    tree.pages.set_aside = lambda path, aside, done: None  # a kernel that does not get to it
    old = tree.open("/a", os.O_RDONLY)
    store.puts("a", b"new")
    asks = Caller(1, False, thread=11)
    fails(errno.ESTALE, lambda: tree.open("/a", os.O_RDONLY, asks))
    new = tree.open("/a", os.O_RDONLY, asks)
    assert new.past_pages
    assert (read(old), read(new)) == (DATA, b"new")
    for handle in (old, new):
        tree.release(handle)
    new = tree.open("/a", os.O_RDONLY, asks)
    assert not new.past_pages
    store.puts("a", DATA)  # it is told anew
    fails(errno.ESTALE, lambda: tree.open("/a", os.O_RDONLY, asks))
    tree.release(new)


def test_a_path_has_pages_of_what_is_open_there_alone(store: castore.Store, tree: Tree) -> None:
    """To be told the size of another version would change the one that the kernel reads up to."""
    store.puts("a", DATA)
    through = tree.open("/a", os.O_RDONLY)
    store.puts("a", b"new")
    past = tree.open("/a", os.O_RDONLY)
    tree.release(through)
    same = tree.open("/a", os.O_RDONLY)
    assert not same.past_pages
    tree.release(same)
    store.puts("a", b"newer")
    other = tree.open("/a", os.O_RDONLY)
    assert other.past_pages
    tree.rename("/a", "/b")
    moved = tree.open("/b", os.O_RDONLY)
    assert moved.past_pages
    for handle in (past, other, moved):
        tree.release(handle)
    through = tree.open("/b", os.O_RDONLY)
    assert not through.past_pages
    tree.release(through)


def test_an_empty_file_has_no_pages_that_may_be_taken_for_zeros(
    store: castore.Store, tree: Tree
) -> None:
    tree.pages.set_aside = lambda path, aside, done: None
    store.puts("a", b"")
    empty = tree.open("/a", os.O_RDONLY, ONE)
    assert (empty.past_pages, empty.keeps_pages) == (True, False)
    store.puts("a", b"new")
    full = tree.open("/a", os.O_RDONLY, OTHER)  # nothing is in its way
    assert not full.past_pages
    assert (read(empty), read(full)) == (b"", b"new")
    tree.release(empty)
    tree.release(full)


def test_a_file_that_goes_on_being_written_has_no_pages(store: castore.Store, tree: Tree) -> None:
    writing = tree.create("/a", 0o644, NEW, ONE)
    writing.write(0, b"a line\n")
    tree.fsync(writing)
    reading = tree.open("/a", os.O_RDONLY, OTHER)
    assert reading.past_pages
    writing.write(7, b"another\n")
    tree.flush(writing, ONE)  # closed; its release comes later
    newer = tree.open("/a", os.O_RDONLY, OTHER)
    assert newer.past_pages  # the one before is still open
    tree.release(reading)
    tree.release(newer)
    newer = tree.open("/a", os.O_RDONLY, OTHER)
    assert not newer.past_pages
    assert read(newer) == b"a line\nanother\n"
    tree.release(newer)
    tree.release(writing)


def test_who_would_cut_what_others_read_is_told_that_it_is_busy(
    store: castore.Store, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MOVE_S", 0.2)
    store.puts("a", DATA)
    tree.pages.set_aside = lambda path, aside, done: None  # a kernel that does not get to it
    old = tree.open("/a", os.O_RDONLY)
    writes = Caller(1, False, thread=11)
    fails(errno.ESTALE, lambda: tree.open("/a", os.O_WRONLY | os.O_TRUNC, writes))
    fails(errno.EBUSY, lambda: tree.open("/a", os.O_WRONLY | os.O_TRUNC, writes))
    assert contents(tree, "/a") == read(old) == DATA
    tree.release(old)
    close(tree, tree.open("/a", os.O_WRONLY | os.O_TRUNC, writes))
    assert store.gets("a") == b""


def test_nobody_cuts_what_was_moved_aside(
    store: castore.Store, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was told to look again may have found it where it was, just before it was moved."""
    monkeypatch.setattr(pages, "MOVE_S", 0.2)
    store.puts("a", DATA)
    moves: list[tuple[str, str, Callable[[], None]]] = []
    tree.pages.set_aside = lambda *move: moves.append(move)
    old = tree.open("/a", os.O_RDONLY)
    writes = Caller(1, False, thread=11)
    fails(errno.ESTALE, lambda: tree.open("/a", os.O_WRONLY | os.O_TRUNC, writes))
    [(_, aside, done)] = moves
    tree.rename("/a", aside)
    done()
    fails(errno.EBUSY, lambda: tree.open(aside, os.O_WRONLY | os.O_TRUNC, writes))
    assert store.gets("a") == read(old) == DATA
    tree.release(old)


def test_what_was_made_meanwhile_is_opened_as_what_is_there(
    store: castore.Store, tree: Tree
) -> None:
    store.puts("a", DATA)
    tree.pages.set_aside = lambda path, aside, done: None
    reading = tree.open("/a", os.O_RDONLY)
    fails(errno.ESTALE, lambda: tree.create("/a", 0o644, NEW | os.O_TRUNC, ONE))
    assert read(reading) == DATA
    tree.release(reading)


def test_nobody_gets_pages_of_what_is_about_to_be_cut(
    store: castore.Store, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever between the steps of who opens it to read the writer comes."""
    store.puts("a", DATA)
    real = Pages.open
    for comes_first in (True, False):
        writers: list[Handle] = []

        def write_begins(writers: list[Handle] = writers) -> None:
            monkeypatch.setattr(Pages, "open", real)
            writers.append(tree.open("/a", os.O_WRONLY | os.O_TRUNC))

        def opened(*arguments: Any, comes_first: bool = comes_first, **options: Any) -> Any:
            if comes_first:
                write_begins()
                return real(*arguments, **options)
            opened = real(*arguments, **options)
            assert opened.held is not None
            opened.held.count -= 1  # else the writer waits for it
            write_begins()
            opened.held.count += 1
            return opened

        monkeypatch.setattr(Pages, "open", opened)
        reading = tree.open("/a", os.O_RDONLY)
        assert reading.past_pages
        assert read(reading) == DATA
        tree.release(reading)
        assert tree.pages.in_use("a") is None
        writers[0].write(0, DATA)
        close(tree, writers[0])


def test_what_was_not_moved_in_the_end_is_moved_another_time(
    store: castore.Store, tree: Tree
) -> None:
    store.puts("a", DATA)
    moves: list[tuple[str, str, Callable[[], None]]] = []
    tree.pages.set_aside = lambda *move: moves.append(move)
    for number in range(2):
        old = tree.open("/a", os.O_RDONLY)
        store.puts("a", b"%d" % number)
        asks = Caller(1, False, thread=number)
        fails(errno.ESTALE, partial(tree.open, "/a", os.O_RDONLY, asks))
        tree.release(old)
        assert len(moves) == number + 1
        _, aside, done = moves[number]
        fails(errno.ESTALE, partial(tree.rename, "/a", aside))  # nobody has it open any more
        done()


def test_pages_go_with_a_rename(store: castore.Store, tree: Tree) -> None:
    store.puts("d/a", b"a")
    store.puts("d/b", b"bb")
    for path in ("/d/a", "/d/b"):
        contents(tree, path)
    tree.rename("/d/a", "/d/b")
    tree.rename("/d", "/e")
    handle = tree.open("/e/b", os.O_RDONLY)
    assert handle.keeps_pages
    assert read(handle) == b"a"
    tree.release(handle)


# ---------------------------------------------------------------- names


def test_folders_may_be_empty_as_long_as_the_mount(store: castore.Store, tree: Tree) -> None:
    tree.mkdir("/a", 0o700)
    tree.mkdir("/a/b", 0o755)
    assert tree.getattr("/a")[:2] == (True, 0o700)
    assert tree.readdir("/a") == [Entry("b", True)]
    fails(errno.EEXIST, lambda: tree.mkdir("/a", 0o755))
    fails(errno.ENOTEMPTY, lambda: tree.rmdir("/a"))
    write(tree, "/a/b/c", b"1")
    fails(errno.ENOTEMPTY, lambda: tree.rmdir("/a/b"))
    fails(errno.EISDIR, lambda: tree.unlink("/a/b"))
    tree.unlink("/a/b/c")
    assert tree.readdir("/a/b") == []
    tree.rmdir("/a/b")
    fails(errno.ENOENT, lambda: tree.getattr("/a/b"))
    before = tree.getattr("/a").mtime_ns
    tree.rename("/a", "/x")
    assert tree.getattr("/x") == (True, 0o700, 0, before)
    tree.rmdir("/x")
    assert tree.readdir("/") == list(store.names()) == []


def test_rename(store: castore.Store, tree: Tree) -> None:
    store.puts("a", b"a", mode=0o600)
    store.puts("b", b"b")
    store.puts("d/x", b"x")
    before = store.info("a")
    fails(errno.EEXIST, lambda: tree.rename("/a", "/b", RENAME_NOREPLACE))
    fails(errno.EINVAL, lambda: tree.rename("/a", "/b", 2))
    fails(errno.EISDIR, lambda: tree.rename("/a", "/d"))
    fails(errno.ENOTDIR, lambda: tree.rename("/d", "/a"))
    fails(errno.ENOENT, lambda: tree.rename("/z", "/a"))
    tree.rename("/a", "/b")
    assert store.info("b") == before._replace(name="b")
    tree.mkdir("/e", 0o755)
    tree.rename("/d", "/e")
    assert list(store.names()) == ["b", "e/x"]
    tree.mkdir("/d", 0o755)
    fails(errno.ENOTEMPTY, lambda: tree.rename("/d", "/e"))
    tree.rename("/e", "/f", RENAME_NOREPLACE)
    assert tree.readdir("/f") == [Entry("x", False)]


@pytest.mark.parametrize("change", ["put", "delete", "both"])
def test_a_folder_that_others_change_while_it_is_renamed(
    store: castore.Store, tree: Tree, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Between the listing and the commit."""
    for name in ("d/a", "d/b", "d/c/d"):
        store.puts(name, name.encode())
    names, done = castore.Store.names, []

    def then_changed(self: castore.Store, prefix: str = "") -> Iterator[str]:
        listed = list(names(self, prefix))
        if prefix == "d/" and not done:
            done.append(change)
            if change != "delete":
                store.puts("d/c/new", b"new")
            if change != "put":
                store.delete("d/b")
        return iter(listed)

    with monkeypatch.context() as patched:
        patched.setattr(castore.Store, "names", then_changed)
        tree.rename("/d", "/e")
    assert done
    left = {"e/a": b"d/a", "e/b": b"d/b", "e/c/d": b"d/c/d", "e/c/new": b"new"}
    if change != "put":
        del left["e/b"]
    if change == "delete":
        del left["e/c/new"]
    assert {name: store.gets(name) for name in store.names()} == left
    fails(errno.ENOENT, lambda: tree.getattr("/d"))


def test_a_folder_that_others_never_leave_alone_is_renamed_all_the_same(
    store: castore.Store, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they put at last stays behind."""
    store.puts("d/0", b"0")
    names, puts = castore.Store.names, [0]

    def then_put(self: castore.Store, prefix: str = "") -> Iterator[str]:
        listed = list(names(self, prefix))
        if prefix == "d/":
            puts[0] += 1
            store.puts(f"d/{puts[0]}", b"1")
        return iter(listed)

    with monkeypatch.context() as patched:
        patched.setattr(castore.Store, "names", then_put)
        tree.rename("/d", "/e")
    assert len(list(store.names("e/"))) == puts[0] < 10
    assert list(store.names("d/")) == [f"d/{puts[0]}"]


def test_files_that_are_open_go_with_a_rename(store: castore.Store, tree: Tree) -> None:
    store.puts("b", b"old")
    handle = tree.create("/a", 0o644, NEW, ONE)
    handle.write(0, b"new")
    replaced = tree.open("/b", os.O_RDWR, OTHER)
    replaced.write(0, b"never seen")
    tree.rename("/a", "/b")
    assert store.gets("b") == b"new"  # it had to be there to replace what was
    handle.write(3, b"er")
    close(tree, replaced, OTHER)
    close(tree, handle)
    assert (store.gets("b"), store.exists("a")) == (b"newer", False)
    handle = tree.create("/d/a", 0o644, NEW, ONE)
    tree.rename("/d", "/e")
    close(tree, handle)
    assert list(store.names()) == ["b", "e/a"]


@pytest.mark.parametrize(("source", "target"), [("/a", "/b"), ("/d", "/e")])
def test_files_that_are_open_are_known_by_the_name_they_were_given(
    store: castore.Store, tree: Tree, source: str, target: str
) -> None:
    """Once more renamed they go there, too; and what is deleted then does not come back."""
    inside = "/x" if source == "/d" else ""
    handle = tree.create(source + inside, 0o644, NEW, ONE)
    handle.write(0, b"new")
    tree.rename(source, target)
    tree.rename(target, "/again")
    handle.write(3, b"er")
    tree.unlink("/again" + inside)
    close(tree, handle)
    assert list(store.names()) == []


@pytest.mark.parametrize("change", ["rename", "rename the folder", "unlink"])
def test_what_is_being_published_goes_with_a_name_that_changes(
    store: castore.Store, tree: Tree, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    store.puts("d/a", b"old")
    handle = tree.open("/d/a", os.O_WRONLY | os.O_TRUNC, ONE)
    handle.write(0, b"new")
    is_publishing, goes_on = threading.Event(), threading.Event()
    begin = castore.Store.transaction

    def slow(self: castore.Store) -> castore.Transaction:
        if threading.current_thread() is publisher:
            is_publishing.set()
            assert goes_on.wait(60)
        return begin(self)

    def change_name() -> None:
        if change == "unlink":
            tree.unlink("/d/a")
        elif change == "rename":
            tree.rename("/d/a", "/d/b")
        else:
            tree.rename("/d", "/e")

    monkeypatch.setattr(castore.Store, "transaction", slow)
    publisher = threading.Thread(target=tree.flush, args=(handle, ONE))
    changer = threading.Thread(target=change_name)
    publisher.start()
    assert is_publishing.wait(60)
    changer.start()
    changer.join(0.2)
    goes_on.set()
    for thread in (publisher, changer):
        thread.join(60)
    tree.release(handle)
    left = {"rename": ["d/b"], "rename the folder": ["e/a"], "unlink": []}[change]
    assert list(store.names()) == left
    assert all(store.gets(name) == b"new" for name in left)


def test_what_was_replaced_is_not_published_over_what_replaced_it(
    store: castore.Store, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process closes it while it is replaced."""
    store.puts("a", b"new")
    store.puts("b", b"old")
    handle = tree.open("/b", os.O_RDWR, OTHER)
    handle.write(0, b"OLD")
    closer = threading.Thread(target=tree.flush, args=(handle, OTHER))
    rename = castore.Store.rename

    def then_closed(self: castore.Store, *args: Any, **options: Any) -> None:
        rename(self, *args, **options)
        closer.start()
        closer.join(0.3)

    monkeypatch.setattr(castore.Store, "rename", then_closed)
    tree.rename("/a", "/b")
    closer.join(60)
    tree.release(handle)
    assert {name: store.gets(name) for name in store.names()} == {"b": b"new"}


def test_a_file_that_is_deleted_while_it_is_open(store: castore.Store, tree: Tree) -> None:
    store.puts("a", DATA)
    reading, writing = tree.open("/a", os.O_RDONLY), tree.open("/a", os.O_RDWR, ONE)
    tree.unlink("/a")
    writing.write(0, b"1")
    assert read(reading) == DATA
    assert read(writing) == b"1" + DATA[1:]
    tree.fsync(writing)
    close(tree, writing)
    tree.release(reading)
    assert list(store.names()) == []
    handle = tree.create("/b", 0o644, NEW, ONE)
    tree.unlink("/b")
    close(tree, handle)
    fails(errno.ENOENT, lambda: tree.unlink("/b"))
    assert list(store.names()) == []


def test_modes_and_times(store: castore.Store, tree: Tree) -> None:
    store.puts("a", DATA)
    tree.chmod("/a", 0o100755)
    tree.utimens("/a", 1_000_000_007)
    assert tree.getattr("/a") == (False, 0o755, len(DATA), 1_000_000_007)
    handle = tree.create("/b", 0o644, NEW, ONE)
    handle.write(0, b"1")
    tree.chmod("/b", 0o600, ONE)
    tree.utimens("/b", 5, ONE)
    close(tree, handle)
    assert store.info("b")[1:4] == (1, 5, 0o600)
    handle = tree.open("/a", os.O_WRONLY | os.O_APPEND, ONE)
    handle.write(0, b"1")
    tree.utimens("/a", 6, ONE)
    tree.chmod("/a", 0o700, ONE)
    close(tree, handle)
    assert store.info("a")[1:4] == (len(DATA) + 1, 6, 0o700)
    tree.chmod("/", 0o700)
    tree.utimens("/", 7)
    assert tree.getattr("/") == (True, 0o700, 0, 7)
    fails(errno.ENOENT, lambda: tree.chmod("/c", 0o600))
    fails(errno.EOVERFLOW, lambda: tree.utimens("/a", 1 << 63))


def test_modes_and_times_that_a_file_gets_while_it_is_read_are_told(
    store: castore.Store, tree: Tree
) -> None:
    asides: list[str] = []
    tree.pages.set_aside = lambda path, aside, done: asides.append(path)
    store.puts("a", DATA)
    handle = tree.open("/a", os.O_RDONLY, ONE)
    assert read(handle) == DATA
    tree.chmod("/a", 0o755, ONE)
    assert tree.getattr("/a", None, ONE).mode == 0o755
    tree.utimens("/a", 5, OTHER)
    assert tree.getattr("/a", None, ONE).mtime_ns == 5
    again = tree.open("/a", os.O_RDONLY, OTHER)
    assert again.keeps_pages  # as the bytes are the same
    tree.release(again)
    tree.release(handle)
    assert asides == []


def test_answers_that_are_remembered(store: castore.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on S3, where each is a request."""
    store.puts("d/a", b"1")
    tree = Tree(store, writable=True, fresh_s=60)
    asked = []
    kind = store.kind
    store.kind = lambda name: (asked.append(name), kind(name))[1]  # type: ignore[assignment, method-assign, func-returns-value]
    tree.readdir("/d")
    for _ in range(3):
        assert tree.getattr("/d/a").size == 1
    assert asked == ["d"]  # what is in it, its list told
    store.puts("d/a", b"22")
    assert tree.getattr("/d/a").size == 1
    write(tree, "/d/b", b"1")  # what is changed here is seen here
    assert tree.getattr("/d/a").size == 2
    assert {entry.name for entry in tree.readdir("/d")} == {"a", "b"}
    store.puts("d/a", b"333")
    now = boot_clock() + 60  # the machine has slept
    monkeypatch.setattr("castore.mount.names.boot_clock", lambda: now)
    assert tree.getattr("/d/a").size == 3


def test_a_store_on_s3(any_store: castore.Store, tmp_path: Path) -> None:
    tree = Tree(any_store, writable=True)
    write(tree, "/d/a", DATA)
    tree.chmod("/d/a", 0o600)
    tree.rename("/d", "/e")
    assert (contents(tree, "/e/a"), tree.getattr("/e/a").mode) == (DATA, 0o600)
    handle = tree.open("/e/a", os.O_WRONLY | os.O_APPEND, ONE)
    handle.write(0, b"more")
    close(tree, handle)
    assert any_store.gets("e/a") == DATA + b"more"
    assert tree.statfs()["f_bavail"] > 0
    tree.unlink("/e/a")
    assert list(any_store.names()) == tree.readdir("/e") == []
