"""Folders in and out, entry by entry: a bad one is left out and named, and nothing else suffers."""

from __future__ import annotations

import errno
import io
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import oracle
import pytest
from stores import change_rows, rows, small
from trees import make_tree, tree

import castore
from castore.cli import main
from castore.errors import (
    ClockOutOfRange,
    FormatError,
    InvalidName,
    NameExists,
    SourceChanged,
    TimeOutOfRange,
)
from castore.stream import fileputs, sourcefile
from castore.stream.fileputs import FileOptions
from castore.system import outfolder, statuses
from castore.transfer import compare, imports, outcomes

LATIN = os.fsdecode(b"latin\xe9")


def check(store: castore.Store) -> None:
    assert store.check(True).exit_code in (0, 1)


def reasons(report: outcomes.TransferReport, top: Path | str = "") -> dict[str, str]:
    return {os.path.relpath(what, top) if top else what: why for what, why in report.left_out}


# ---------------------------------------------------------------- in


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux' file systems")
def test_an_import_leaves_out_what_it_cannot_put(any_store: castore.Store, tmp_path: Path) -> None:
    top = tmp_path / "in"
    made = make_tree(top)
    (top / LATIN).write_bytes(b"1")
    (top / "secret").symlink_to("/proc/self/mem")  # opened, and then not read
    (top / "nothing").symlink_to("none")
    os.mkfifo(top / "b" / "pipe")
    (top / "future").write_bytes(b"1")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(top / "socket"))
    bad = {LATIN, "secret", "nothing", "b/pipe", "socket"}
    os.utime(top / "future", ns=(10**20, 10**20))  # each file system has its own last year
    if (top / "future").stat().st_mtime_ns >= 1 << 63:
        bad.add("future")
    report = any_store.import_folder(top, "p")
    assert reasons(report, top).keys() == bad
    assert (report.failures, report.refused) == (len(bad), 1)
    assert {name[2:]: any_store.gets(name) for name in any_store.names("p/")} == {
        **{name: raw for name, (raw, *_) in made.items()},
        **({} if "future" in bad else {"future": b"1"}),
    }
    check(any_store)


@pytest.mark.parametrize("time_ns", [-(10**18), 1, -(1 << 63), (1 << 63) - 1])
def test_times_of_any_year_that_fits(store: castore.Store, tmp_path: Path, time_ns: int) -> None:
    path = tmp_path / "in" / "file"
    path.parent.mkdir()
    path.write_bytes(b"old")
    os.utime(path, ns=(time_ns, time_ns))
    found = path.stat().st_mtime_ns  # not each file system has each
    assert store.import_folder(path.parent).left_out == []
    assert store.info("file").mtime_ns == found
    store.export_folder("", tmp_path / "out")
    assert (tmp_path / "out" / "file").stat().st_mtime_ns == found
    for code in (main(["-r", store.path, "ls", "-l"]), main(["-r", store.path, "stat", "file"])):
        assert code == 0
    with store.transaction() as transaction, pytest.raises(TimeOutOfRange):
        transaction.put("late", path, mtime_ns=1 << 63)


def test_a_file_that_cannot_be_mapped_is_read(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    raw = os.urandom(3_000_000)
    path.write_bytes(raw)

    class Refused:
        guarded = True

        def __init__(self, *_: object, **__: object) -> None:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr("castore.stream.writer.Mapping", Refused)
    monkeypatch.setattr("castore.stream.sourcefile.Mapping", Refused)
    store.put("x", path)
    monkeypatch.undo()
    assert store.gets("x") == raw
    assert store.put("y", path).etag == store.info("x").etag
    check(store)


@pytest.mark.skipif(not os.path.exists("/sys/kernel/btf/vmlinux"), reason="not here")
def test_a_file_of_sys_is_put(store: castore.Store) -> None:
    raw = Path("/sys/kernel/btf/vmlinux").read_bytes()
    assert store.put("vmlinux", "/sys/kernel/btf/vmlinux").size == len(raw)
    assert store.gets("vmlinux") == raw


def test_a_file_without_an_end_does_not_end_an_import(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As /proc/kmsg: a regular file that gives what there is, and then says to come later."""
    made = make_tree(tmp_path / "in")
    (tmp_path / "in" / "endless").write_bytes(b"")
    endless, fdopen = os.stat(tmp_path / "in" / "endless"), os.fdopen

    def opened(fd: int, *arguments: Any, **options: Any) -> Any:
        file = fdopen(fd, *arguments, **options)
        if os.path.samestat(os.fstat(fd), endless):
            file = io.BufferedReader(file)
            blocks = iter([b"1", None])
            monkeypatch.setattr(file, "read", lambda _: next(blocks))
        return file

    monkeypatch.setattr(os, "fdopen", opened)
    monkeypatch.setattr(fileputs, "read_together", lambda paths, _: [None] * len(paths))
    monkeypatch.setattr(fileputs, "read_at_once", lambda _: None)
    report = store.import_folder(tmp_path / "in", "p")
    assert reasons(report, tmp_path / "in") == {"endless": os.strerror(errno.EAGAIN)}
    assert report.files == len(made)
    check(store)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, None])
def test_what_no_file_is_to_blame_for_ends_an_import(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None
) -> None:
    """It would leave out one file after the other, and seem to be of each."""
    top = tmp_path / "in"
    make_tree(top)

    def fails(path: str, **_: Any) -> Any:
        raise ClockOutOfRange(-1) if code is None else OSError(code, os.strerror(code), path)

    monkeypatch.setattr(fileputs, "read_together", lambda paths, _: [None] * len(paths))
    monkeypatch.setattr(fileputs, "opened", fails)
    with pytest.raises(ClockOutOfRange if code is None else OSError):
        store.import_folder(top)
    assert list(store.names()) == []


def test_a_file_that_got_a_time_no_record_holds_while_it_was_read(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = tmp_path / "in"
    top.mkdir()
    for name in "ab":
        (top / name).write_bytes(name.encode() * 400_000)

    def touched(session: Any, source: Any, *others: Any) -> Any:
        stored = sourcefile.store_file(session, source, *others)
        if not source.path.endswith("a"):
            return stored
        facts = [getattr(stored.status, fact) for fact in statuses.FileStatus._fields]
        status = statuses.FileStatus(*facts)._replace(st_mtime_ns=1 << 63)
        return stored._replace(status=status)

    monkeypatch.setattr(fileputs, "store_file", touched)
    report = store.import_folder(top)
    assert [what for what, _ in report.left_out] == [str(top / "a")]
    assert store.gets("b") == b"b" * 400_000
    check(store)


def test_a_file_that_became_a_pipe_is_not_waited_for(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = tmp_path / "in"
    make_tree(top)
    whole = imports.batches

    def batches(sources: Any) -> Any:
        for batch in whole(sources):
            (top / "a").unlink()
            os.mkfifo(top / "a")
            yield batch

    monkeypatch.setattr(imports, "batches", batches)
    report = store.import_folder(top)
    what = f"{top / 'a'} is no regular file: nothing of it was published"
    assert reasons(report, top) == {"a": what}
    with pytest.raises(SourceChanged), sourcefile.opened(str(top / "a"), regular=True):
        pass


def test_other_bytes_of_the_same_size_and_time_are_seen(
    any_store: castore.Store, tmp_path: Path
) -> None:
    top = tmp_path / "in"
    top.mkdir()
    files = {name: top / name for name in ("inplace", "replaced", "kept")}
    for path in files.values():
        path.write_bytes(b"one" * 3000)
        os.utime(path, ns=(10**18, 10**18))
    assert any_store.import_folder(top).files == 3
    files["inplace"].write_bytes(b"two" * 3000)
    (tmp_path / "new").write_bytes(b"two" * 3000)
    (tmp_path / "new").rename(files["replaced"])
    for path in files.values():
        os.utime(path, ns=(10**18, 10**18))
    report = any_store.import_folder(top)
    assert (report.files, report.same_files) == (2, 1)
    assert {name: any_store.gets(name)[:3] for name in files} == {
        **{"inplace": b"two", "replaced": b"two", "kept": b"one"},
    }
    check(any_store)


@pytest.mark.parametrize("extension", [True, False])
def test_unchanged_files_are_not_read_again(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extension: bool
) -> None:
    if not extension:
        monkeypatch.setattr(sourcefile, "_native", None)
        monkeypatch.setattr(statuses, "_native", None)
    top = tmp_path / "in"
    made = make_tree(top)
    time.sleep(0.05)  # else they are too young for their times to tell
    store.import_folder(top)
    reads: list[str] = []
    whole = sourcefile._feed

    def feed(writer: Any, source: sourcefile.SourceFile, *rest: Any) -> None:
        reads.append(os.path.relpath(source.path, top))
        whole(writer, source, *rest)

    at_once = sourcefile.read_at_once

    def read_at_once(source: sourcefile.SourceFile) -> bytes | None:
        raw = at_once(source)
        if raw is not None:
            reads.append(os.path.relpath(source.path, top))
        return raw

    together = sourcefile.read_together

    def read_together(paths: Sequence[str], bytes_max: int) -> Any:
        found = together(paths, bytes_max)
        told = [path for path, each in zip(paths, found, strict=True) if each is not None]
        reads.extend(os.path.relpath(path, top) for path in told)
        return found

    monkeypatch.setattr("castore.stream.sourcefile._feed", feed)
    monkeypatch.setattr("castore.stream.fileputs.read_at_once", read_at_once)
    monkeypatch.setattr("castore.stream.fileputs.read_together", read_together)
    assert store.import_folder(top).same_files == len(made)
    assert reads == []
    (top / "a").chmod(0o604)
    (top / "a").chmod(made["a"][1])  # of the same size, mode and time: only the ctime tells
    time.sleep(0.05)
    report = store.import_folder(top)
    assert (report.same_files, set(reads)) == (len(made), {"a"})
    reads.clear()
    assert store.import_folder(top, checksum=True).same_files == len(made)
    assert set(reads) == made.keys()
    reads.clear()
    assert main(["-r", store.path, "import", "--checksum", str(top), "/"]) == 0
    assert set(reads) == made.keys()


# ---------------------------------------------------------------- out


def test_a_name_that_is_too_long_for_a_file(any_store: castore.Store, tmp_path: Path) -> None:
    for name in ("p/a", "p/" + "x" * 300, "p/" + "y" * 300 + "/b", "p/z"):
        any_store.puts(name, name.encode())
    report = any_store.export_folder("p", tmp_path / "out")
    assert {why.rsplit(": ")[-1] for _, why in report.left_out} == {os.strerror(errno.ENAMETOOLONG)}
    assert (len(report.left_out), report.failures) == (2, 2)
    assert {name: raw for name, (raw, *_) in tree(tmp_path / "out").items()} == {
        "a": b"p/a",
        "z": b"p/z",
    }


@pytest.mark.damages_store("rows of its index are changed")
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each locale has all names of files")
def test_a_name_that_the_locale_does_not_have(store: castore.Store, tmp_path: Path) -> None:
    """It alone is left out."""
    store.puts_many({"p/a": b"1", "p/n\xe4me": b"2", "p/\xf6/b": b"3", "p/z": b"4"})
    store.close()
    out = tmp_path / "out"
    for verb in (["export"], ["get", "-R"]):
        command = [sys.executable, "-m", "castore", "-r", str(store.path), *verb, "p", str(out)]
        done = subprocess.run(
            command,
            env=oracle.environment() | {"LC_ALL": "C", "PYTHONUTF8": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        assert done.stderr.count("the locale has no such name") == 2, done.stderr
        [made] = [path for path in (out, out / "p") if (path / "a").exists()]
        assert tree(made).keys() == {"a", "z"}
        shutil.rmtree(out)


@pytest.mark.parametrize("page_names", [2, 1000])
def test_names_of_a_damaged_index_do_not_end_a_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page_names: int
) -> None:
    """Not UTF-8, or leading elsewhere: no put makes them, but an index may be another's work."""
    folder = tmp_path / "store"
    with small(folder) as store:
        for name in ("p/a", "p/m", "p/z"):
            store.puts(name, name.encode())
    record = rows(folder)[b"names"][b"p/a"]
    bad = (b"p/../../x", b"p/..", b"p/b\xff", b"p/./c", b"p//d")
    change_rows(folder, b"names", {**dict.fromkeys(bad, record), b"p/n": b"torn"})
    with castore.open(folder) as store:
        assert "p/b\udcff" in store.names("p/")
        with pytest.raises(InvalidName):
            store.gets("p/b\udcff")
        with pytest.raises(FormatError):
            list(store.list("p/"))
        out = tmp_path / "deep" / "out"
        monkeypatch.setattr("castore.local.lookup.PAGE_NAMES", page_names)
        report = store.export_folder("p", out)
        assert set(tree(out)) == {"a", "m", "z"}
        assert (report.failures, report.damaged) == (6, 1)
        assert (report.files, report.same_files) == (3, 0)  # each once
        assert sorted(os.listdir(tmp_path)) == ["deep", "store"]
        assert os.listdir(tmp_path / "deep") == ["out"]
    assert main(["-r", str(folder), "export", "p", str(out)]) == 13
    assert main(["-r", str(folder), "get", "-R", "p", str(out)]) == 13
    assert main(["-r", str(folder), "ls", "p/"]) == 0


@pytest.mark.damages_store("rows of its index are changed")
def test_a_damaged_object_is_imported_anew(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    made = make_tree(tmp_path / "in")
    with small(folder) as store:
        store.import_folder(tmp_path / "in", "p")
    change_rows(folder, b"names", {b"p/b/c": b"torn"})
    with castore.open(folder) as store:
        report = store.import_folder(tmp_path / "in", "p")
        assert (report.files, report.same_files, report.left_out) == (1, len(made) - 1, [])
        assert store.gets("p/b/c") == made["b/c"][0]


class Told:
    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.steps: list[int] = []
        self.threads = threading.Lock()

    def set_size(self, size: int) -> None:
        self.sizes.append(size)

    def relative_update(self, inc: int = 1) -> None:
        assert self.threads.acquire(blocking=False), "by one thread at a time"
        self.steps.append(inc)
        self.threads.release()


@pytest.mark.parametrize("published", [False, True])  # as some may be on S3
def test_names_that_are_taken_while_a_folder_is_put_are_left_out_alone(
    any_store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: bool
) -> None:
    made = make_tree(tmp_path / "in")
    taken = ["p/b/c", "p/e/f/g"]
    again = iter(taken)
    put_files, commit = castore.Transaction.put_files, castore.Transaction.commit

    def put_late(transaction: castore.Transaction, *arguments: Any) -> Any:
        put = put_files(transaction, *arguments)
        if not published and (name := next(again, None)):
            any_store.puts(name, b"another's")
        return put

    def commit_some(transaction: castore.Transaction) -> None:
        monkeypatch.setattr(castore.Transaction, "commit", commit)
        commit(transaction)
        any_store.puts_many(dict.fromkeys(taken, b"another's"))
        raise NameExists(taken[0])

    monkeypatch.setattr(castore.Transaction, "put_files", put_late)
    if published:
        monkeypatch.setattr(castore.Transaction, "commit", commit_some)
    options = FileOptions(keep_time=False, skip_same=False, if_absent=True)
    told = Told()
    outcomes = list(
        imports.import_folder(
            any_store, str(tmp_path / "in"), "p", options, threads=1, progress=told
        )
    )
    left_out = {each.what: each.reason for each in outcomes if each.info is None}
    assert left_out == {str(tmp_path / "in" / name[2:]): str(NameExists(name)) for name in taken}
    for inner, (raw, *_) in made.items():
        assert any_store.gets(f"p/{inner}") == (b"another's" if f"p/{inner}" in taken else raw)
    assert told.sizes == [sum(told.steps)] == [sum(len(raw) for raw, *_ in made.values())]
    check(any_store)


def test_files_get_no_setuid_setgid_or_sticky_bit(store: castore.Store, tmp_path: Path) -> None:
    store.puts("p/x", b"1", mode=0o7755)
    assert store.info("p/x").mode == 0o7755
    store.export_folder("p", tmp_path / "out")
    assert store.export_folder("p", tmp_path / "out").same_files == 1
    assert main(["-r", store.path, "get", "-R", "p", str(tmp_path / "got")]) == 0
    store.get("p/x", tmp_path / "one")
    for path in (tmp_path / "out" / "x", tmp_path / "got" / "x", tmp_path / "one"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_a_file_system_without_permission_bits(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.puts("p/x", b"1" * 9000)

    def refused(*_: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchmod", refused)
    assert store.export_folder("p", tmp_path / "out").left_out == []
    store.get("p/x", tmp_path / "one")
    for path in (tmp_path / "out" / "x", tmp_path / "one"):
        assert path.read_bytes() == b"1" * 9000


def test_what_a_file_system_rounded_is_the_same(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One without permission bits, and with times of two seconds, as FAT's."""
    real_utime = os.utime

    def refused(*_: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def rounded(file: Any, ns: tuple[int, int], **options: Any) -> None:
        real_utime(file, ns=(ns[0], ns[1] - ns[1] % (2 * 10**9)), **options)

    monkeypatch.setattr(os, "fchmod", refused)
    monkeypatch.setattr(os, "utime", rounded)
    out = tmp_path / "out" / "x"
    source = tmp_path / "in" / "x"
    source.parent.mkdir()
    for raw in (b"1" * 9000, b"2" * 9000):  # the second has the size and the time of the first
        source.write_bytes(raw)
        source.chmod(0o644)
        real_utime(source, ns=(1_700_000_001_999_999_999,) * 2)
        store.import_folder(source.parent, "p")
        assert store.export_folder("p", out.parent).files == 1
        written = out.stat()
        assert (written.st_mtime_ns, stat.S_IMODE(written.st_mode)) == (17 * 10**17, 0o600)
        again = store.export_folder("p", out.parent)
        assert (again.files, again.same_files) == (0, 1)
        assert (out.read_bytes(), out.stat().st_ino) == (raw, written.st_ino)
        assert list(out.parent.iterdir()) == [out]
    out.chmod(0o640)
    assert store.export_folder("p", out.parent).files == 1


def test_where_nothing_can_be_tried_what_is_not_quite_the_same_is_written(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a new file would show here is not known then."""
    time_ns = store.puts("p/x", b"1").mtime_ns
    store.export_folder("p", tmp_path / "out")
    os.utime(tmp_path / "out" / "x", ns=(time_ns - 10**9,) * 2)
    monkeypatch.setattr(compare, "status_if_new", lambda *_: None)
    assert store.export_folder("p", tmp_path / "out").files == 1
    assert (tmp_path / "out" / "x").stat().st_mtime_ns == time_ns


def test_a_file_that_cannot_be_read_is_replaced(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.puts("p/x", b"1")
    store.export_folder("p", tmp_path / "out")
    before = (tmp_path / "out" / "x").stat()
    whole = os.open

    def refused(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if path == "x" and not flags & os.O_DIRECTORY:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return whole(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", refused)
    report = store.export_folder("p", tmp_path / "out")
    assert (report.files, report.left_out) == (1, [])
    assert (tmp_path / "out" / "x").stat().st_ino != before.st_ino


def test_a_pipe_that_looks_like_the_file_is_replaced_and_not_read(
    store: castore.Store, tmp_path: Path
) -> None:
    time_ns = store.puts("p/x", b"", mode=0o644).mtime_ns
    path = tmp_path / "out" / "x"
    path.parent.mkdir()
    os.mkfifo(path)
    path.chmod(0o644)
    os.utime(path, ns=(time_ns, time_ns))
    writer = os.open(path, os.O_RDWR)  # who opens it to read waits for one
    assert store.export_folder("p", tmp_path / "out").files == 1
    os.close(writer)
    assert path.is_file()


def test_times_are_kept_to_the_nanosecond(any_store: castore.Store, tmp_path: Path) -> None:
    path = tmp_path / "in" / "file"
    path.parent.mkdir()
    path.write_bytes(b"1")
    for time_ns in (1_699_999_999_999_999_999, 1_234_567_890_123_456_789):
        os.utime(path, ns=(time_ns, time_ns))
        any_store.import_folder(path.parent)
        any_store.export_folder("", tmp_path / "out")
        assert (tmp_path / "out" / "file").stat().st_mtime_ns == path.stat().st_mtime_ns == time_ns


def test_another_version_of_the_same_size_and_time_is_exported(
    store: castore.Store, tmp_path: Path
) -> None:
    path = tmp_path / "in" / "lib.so"
    path.parent.mkdir()
    for raw in (b"one" * 9000, b"two" * 9000, b"a", b"b"):
        path.write_bytes(raw)
        os.utime(path, ns=(10**9, 10**9))
        store.import_folder(path.parent)
        assert store.export_folder("", tmp_path / "out").files == 1
        assert (tmp_path / "out" / "lib.so").read_bytes() == raw
        assert store.export_folder("", tmp_path / "out").same_files == 1


def test_a_folder_that_is_swapped_for_a_link_lets_nothing_out(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder on the way is opened; what its name leads to from then on is of no matter."""
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    store.puts("p/sub/x", b"1")
    whole = castore.Store.get_into

    def swap(self: castore.Store, name: str, fd: int, **options: Any) -> Any:
        (out / "sub").rename(out / "moved")
        (out / "sub").symlink_to(outside)
        return whole(self, name, fd, **options)

    monkeypatch.setattr(castore.Store, "get_into", swap)
    store.export_folder("p", out)
    assert os.listdir(outside) == []
    assert (out / "moved" / "x").read_bytes() == b"1"


@pytest.mark.parametrize("verb", ["export", "get"])
def test_two_names_that_are_one_file(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """As on a folder that ignores case: the first stays, the others are named."""
    for name in ("p/README", "p/readme", "p/Readme/x", "p/e\u0301", "p/\u00e9", "p/other"):
        store.puts(name, name.encode())
    out = tmp_path / "out"
    assert outfolder.ignores_case(os.open(tmp_path, os.O_RDONLY)) is (sys.platform == "darwin")
    monkeypatch.setattr(outfolder, "ignores_case", lambda _: True)
    arguments = ["export", "p", str(out)] if verb == "export" else ["get", "-R", "p", str(out)]
    assert main(["-r", store.path, *arguments]) == 1
    report = store.export_folder("p", tmp_path / "again")
    assert report.files == 4  # Readme/x is no file of the same path
    assert reasons(report) == {
        "p/readme": "it would be one file with 'README': the folder ignores case",
        "p/\u00e9": "it would be one file with 'e\u0301': the folder ignores case",
    }
    assert (out / "README").read_bytes() == b"p/README"


def test_the_probe_for_case_sees_a_folder_that_ignores_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.stat

    def lowered(path: Any, **options: Any) -> os.stat_result:
        return whole(path.lower() if isinstance(path, str) else path, **options)

    folder = os.open(tmp_path, os.O_RDONLY)
    monkeypatch.setattr(os, "stat", lowered)
    assert outfolder.ignores_case(folder)
    assert os.listdir(tmp_path) == []
    os.close(folder)


def test_an_interrupt_right_behind_the_probe_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)

    def struck(call: Callable[..., object], *arguments: Any, **options: Any) -> None:
        call(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "open", partial(struck, os.open))
    monkeypatch.setattr(os, "mkdir", partial(struck, os.mkdir))
    with pytest.raises(KeyboardInterrupt):
        outfolder.ignores_case(folder)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []
    os.close(folder)


def test_an_export_that_is_interrupted_leaves_no_drafts(
    store: castore.Store, tmp_path: Path
) -> None:
    for i in range(4):
        store.puts(f"p/{i}", os.urandom(1000) * 8000)
    program = """
import os, signal, sys, threading, castore
class Stop:
    def set_size(self, size): pass
    def relative_update(self, inc):
        if not hasattr(self, "sent"):
            self.sent = True
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.05)
signal.signal(signal.SIGINT, signal.default_int_handler)
castore.open(sys.argv[1]).export_folder("p", sys.argv[2], progress=Stop())
"""
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", program, store.path, str(out)],
        env=oracle.environment(),
        capture_output=True,
        check=False,
    )
    assert b"KeyboardInterrupt" in done.stderr
    assert not [name for name in os.listdir(out) if name.startswith(".castore-")]


def test_an_interrupt_as_soon_as_a_draft_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.open

    def interrupted(*arguments: Any, **options: Any) -> int:
        os.close(whole(*arguments, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "open", interrupted)
    with pytest.raises(KeyboardInterrupt), outfolder.replacing(str(tmp_path / "x")):
        pass
    assert os.listdir(tmp_path) == []


def get_over(store: castore.Store, path: Path) -> None:
    store.get("p/x", str(path))


def export_over(store: castore.Store, path: Path) -> None:
    store.export_folder("p", str(path.parent))


@pytest.mark.parametrize("at", [0, 1])  # a thread's duplicate of the descriptor, and itself
@pytest.mark.parametrize("write", [get_over, export_over])
def test_what_closing_a_file_shows_to_be_cut_short_replaces_nothing(
    store: castore.Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[castore.Store, Path], None],
    at: int,
) -> None:
    """A network's file system may say only then, and only once, that there is no room, or that its
    quota is used up: nobody heard it, or the file had taken the older one's place by then."""
    store.puts("p/x", os.urandom(200_000))
    path = tmp_path / "out" / "x"
    path.parent.mkdir()
    path.write_bytes(b"older")
    close, sizes = os.close, []

    def fails(fd: int) -> None:
        sizes.append(os.fstat(fd).st_size)
        close(fd)
        if sizes[-1] == 200_000 and sizes.count(200_000) == at + 1:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patched:
        patched.setattr(os, "close", fails)
        with pytest.raises(OSError, match=str(path)) as caught:
            write(store, path)
    assert caught.value.errno == errno.EDQUOT
    assert [found.read_bytes() for found in path.parent.iterdir()] == [b"older"]
    write(store, path)
    assert path.read_bytes() == store.gets("p/x")


@pytest.mark.parametrize("way", ["in", "out"])
def test_progress_comes_to_the_end_and_not_before(
    store: castore.Store, tmp_path: Path, way: str
) -> None:
    make_tree(tmp_path / "in")
    (tmp_path / "in" / "zlarge").write_bytes(os.urandom(5_000_000))
    (tmp_path / "in" / "zz").symlink_to("/proc/self/mem")
    total = sum(path.stat().st_size for path in (tmp_path / "in").rglob("*") if path.is_file())

    if way == "out":
        store.import_folder(tmp_path / "in", "p")
    for _ in range(2):  # the second time all of it is the same
        told = Told()
        if way == "in":
            store.import_folder(tmp_path / "in", "p", progress=told)
        else:
            store.export_folder("p", tmp_path / "out", progress=told)
        assert told.sizes == [total]
        assert sum(told.steps) == total
        assert max(told.steps) <= 5_000_000


def test_an_export_writes_nothing_into_an_open_store(tmp_path: Path) -> None:
    """As over its index: what a folder around it was imported from may have had a store there."""
    with castore.open(tmp_path / "out" / "store") as store:
        names = ["plain", "store/castore.json", "store/index/data.mdb", "store/new/a"]
        for name in names:
            store.puts(name, b"x")
        report = store.export_folder("", tmp_path / "out")
        assert (report.files, report.failures) == (1, 3)
        assert [name for name, _ in report.left_out] == names[1:]
        assert all("lies inside the open store" in why for _, why in report.left_out)
        store.puts("after", b"1")
        assert list(store.names()) == ["after", *names]
    assert not (tmp_path / "out" / "store" / "new").exists()


def test_an_import_reads_nothing_of_an_open_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To close a file of LMDB's drops the locks that this process has on it."""
    monkeypatch.setattr("castore.stream.sourcefile.YOUNG_NS", 0)  # small ones are read together
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "fine").write_bytes(b"1")
    with (
        castore.open(tmp_path / "store") as store,
        castore.open(folder / "other") as other,
    ):
        other.puts("name", b"x")
        inside = [path.relative_to(folder) for path in (folder / "other").rglob("*.*")]
        inside = sorted(path for path in inside if (folder / path).is_file())
        assert len(inside) > 3
        for number, path in enumerate(inside):
            (folder / f"link{number}").symlink_to(path)
        report = store.import_folder(folder)
        assert list(store.names()) == ["fine"]
        assert {path for path, _ in report.left_out} == {
            *(str(folder / path) for path in inside),
            *(str(folder / f"link{number}") for number in range(len(inside))),
        }
        assert all("lies inside the open store" in why for _, why in report.left_out)
    with castore.open(tmp_path / "store") as store:
        assert not store.import_folder(folder).left_out, "closed: files like any"
