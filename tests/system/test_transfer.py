"""Objects to plain files and back."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import oracle
import pytest
from s3_stores import Open
from stores import contents, failures, fill, flip, packs, small
from trees import make_tree, tree

import castore
import castore.fs
from castore.cli import main
from castore.errors import (
    ChunkCorrupt,
    FormatError,
    NameNotFound,
    NotAStore,
    PackMissing,
    ReadOnlyStore,
)
from castore.model import ObjectInfo
from castore.stream import sourcefile
from castore.stream.small import SMALL_BYTES_MAX
from castore.system import outfolder
from castore.transfer import export, imports
from castore.transfer.compare import Entry

VALUES = contents()


def test_there_and_back(any_store: castore.Store, tmp_path: Path) -> None:
    made = make_tree(tmp_path / "in")
    report = any_store.import_folder(tmp_path / "in", "p/q")
    assert (report.files, report.left_out) == (len(made), [])
    assert report.bytes == sum(len(raw) for raw, *_ in made.values())
    assert list(any_store.names()) == sorted((f"p/q/{name}" for name in made), key=str.encode)
    report = any_store.export_folder("p/q", tmp_path / "out")
    assert (report.files, report.left_out) == (len(made), [])
    assert tree(tmp_path / "out") == made
    # Again: all of it is the same, both ways.
    for again in (
        any_store.export_folder("p/q", tmp_path / "out"),
        any_store.import_folder(tmp_path / "in", "p/q"),
        any_store.import_folder(tmp_path / "out", "p/q/"),
    ):
        assert (again.files, again.same_files) == (0, len(made))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="asks /proc what is open")
def test_no_descriptor_stays_open(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top, out, file = tmp_path / "in", tmp_path / "out", tmp_path / "file"
    make_tree(top)
    file.write_bytes(b"1")

    def still_open() -> list[str]:
        """What is open of these."""
        fds = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        paths = [os.readlink(fd) for fd in fds if os.path.lexists(fd)]
        return [path for path in paths if path.startswith((str(top), str(out), str(file)))]

    for native in (outfolder._native, None):
        for module in (outfolder, sourcefile):
            monkeypatch.setattr(module, "_native", native)
        for _ in range(2):
            store.import_folder(top, checksum=True)
            store.export_folder("", out)
            file_ns = (out / "a").stat().st_mtime_ns + 10**6  # rounded, as it seems
            os.utime(out / "a", ns=(file_ns, file_ns))
            with pytest.raises(NotADirectoryError, match="file"):
                store.export_folder("", file)
        assert still_open() == []
        shutil.rmtree(out)


@pytest.mark.parametrize("change", ["bytes", "size", "mode", "time", "gone"])
def test_what_differs_is_written_again(store: castore.Store, tmp_path: Path, change: str) -> None:
    made = make_tree(tmp_path / "in")
    store.import_folder(tmp_path / "in")
    store.export_folder("", tmp_path / "out")
    path = tmp_path / "out" / "b" / "c"
    status = path.stat()
    if change == "gone":
        path.unlink()
    elif change == "mode":
        path.chmod(0o777)
    elif change == "time":
        os.utime(path, ns=(1, 1))
    else:
        path.write_bytes(b"x" * (status.st_size + (change == "size")))
    report = store.export_folder("/", tmp_path / "out")
    assert (report.files, report.same_files) == (1, len(made) - 1)
    assert tree(tmp_path / "out") == made


def test_a_changed_file_is_put_again(store: castore.Store, tmp_path: Path) -> None:
    make_tree(tmp_path / "in")
    store.import_folder(tmp_path / "in", "p")
    (tmp_path / "in" / "a").write_bytes(b"new")
    (tmp_path / "in" / "new").write_bytes(b"newer")
    report = store.import_folder(tmp_path / "in", "p")
    assert report.files == 2
    assert store.gets("p/a") == b"new"
    assert store.gets("p/new") == b"newer"


def test_a_report_shows_what_it_says(store: castore.Store, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"data")
    (tmp_path / "folder" / "link").symlink_to("nothing")
    shown = repr(store.import_folder(tmp_path / "folder"))
    assert shown.startswith("TransferReport(files=1, bytes=4, same_files=0, ")
    assert "link" in shown


def test_prefixes_end_at_a_slash(store: castore.Store, tmp_path: Path) -> None:
    for name in ("a/x", "ab/x", "a"):
        store.puts(name, name.encode())
    store.export_folder("a", tmp_path / "out")
    assert {name: raw for name, (raw, *_) in tree(tmp_path / "out").items()} == {"x": b"a/x"}
    with pytest.raises(NameNotFound):
        store.export_folder("none", tmp_path / "out")
    assert store.export_folder("", tmp_path / "all").files == 2  # 'a' and 'a/x' can't both be
    assert store.gets("a") == b"a"


def test_an_empty_store_is_an_empty_folder(store: castore.Store, tmp_path: Path) -> None:
    report = store.export_folder("", tmp_path / "out")
    assert (report.files, report.left_out, os.listdir(tmp_path / "out")) == (0, [], [])
    with pytest.raises(NameNotFound):
        store.export_folder("p", tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("sizes", "lengths"),
    [
        ([], []),
        ([0] * 4001, [2000, 2000, 1]),
        ([imports.BATCH_BYTES_MAX + 1] * 2, [1, 1]),
        ([imports.BATCH_BYTES_MAX // 4] * 5, [4, 1]),
        # What is small is in memory until its commit.
        ([SMALL_BYTES_MAX] * 1025, [imports.BATCH_SMALL_BYTES_MAX // SMALL_BYTES_MAX] * 2 + [1]),
        ([SMALL_BYTES_MAX + 1] * 1025, [1025]),
    ],
)
def test_what_is_put_together_is_bounded(sizes: list[int], lengths: list[int]) -> None:
    sources = [imports.Source(f"{i}", f"{i}", size) for i, size in enumerate(sizes)]
    found = list(imports.batches(sources))
    assert [source for batch in found for source in batch] == sources
    assert [len(batch) for batch in found] == lengths


@pytest.mark.parametrize(
    ("sizes", "lengths"),
    [
        ([], []),
        ([1] * 10, [4, 4, 2]),
        ([1, SMALL_BYTES_MAX + 1, 1, 1], [1, 1, 2]),
        ([1, None, None, 1], [1, 1, 1, 1]),  # of which nothing can be read, but the name
        ([SMALL_BYTES_MAX] * 5, [4, 1]),
    ],
)
def test_what_is_written_together_is_bounded(
    sizes: list[int | None], lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in memory at once."""
    entries = [
        Entry(
            str(i), None if size is None else ObjectInfo(str(i), size, 0.0, 0o644, "", 1, 1), None
        )
        for i, size in enumerate(sizes)
    ]
    groups = list(export._groups(entries, 4))
    assert [entry for group in groups for entry in group] == entries
    assert [len(group) for group in groups] == lengths
    monkeypatch.setattr(export, "GROUP_BYTES_MAX", 2 * SMALL_BYTES_MAX)
    large = [entry for entry in entries if entry.info and entry.info.size == SMALL_BYTES_MAX]
    assert [len(group) for group in export._groups(large, 4)] == ([2, 2, 1] if large else [])


def test_names_behind_a_record_that_is_damaged_are_exported_one_by_one(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once, and again over what is there: of them nothing is known to compare with."""
    names = ["p/a", "p/b", "p/c", "p/d"]
    fill(store, {name: name.encode() for name in names})
    whole = store.list

    def cut_short(prefix: str) -> Iterator[castore.ObjectInfo]:
        yield from itertools.islice(whole(prefix), 2)
        raise FormatError("a record is damaged")

    monkeypatch.setattr(store, "list", cut_short)
    monkeypatch.setattr(sourcefile, "YOUNG_NS", 0)  # so that small ones are read together
    for same in (0, 2):
        report = store.export_folder("p", tmp_path / "out")
        assert (report.files, report.same_files, report.left_out) == (4 - same, same, [])
        assert {f"p/{name}": raw for name, (raw, *_) in tree(tmp_path / "out").items()} == {
            name: name.encode() for name in names
        }


@pytest.mark.parametrize(
    ("error", "count"),
    [
        (PackMissing(b"p"), "missing"),
        (ChunkCorrupt(b"c", b"p", 0, "another hash"), "damaged"),
        (FormatError("it is damaged"), "damaged"),
        (NameNotFound("p/y"), "failures"),
    ],
)
def test_what_can_be_read_no_more_is_left_out_alone(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any, count: str
) -> None:
    fill(store, {"p/x": b"1", "p/y": os.urandom(SMALL_BYTES_MAX * 2), "p/z": b"2"})

    whole = store.get_into

    def fails(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "p/y":
            raise error
        return whole(name, *arguments, **options)

    monkeypatch.setattr(store, "get_into", fails)
    report = store.export_folder("p", tmp_path / "out")
    assert [name for name, _ in report.left_out] == ["p/y"]
    assert getattr(report, count) == 1
    assert sorted(os.listdir(tmp_path / "out")) == ["x", "z"]


NO_MORE = ["EMFILE", "ENFILE", "ENOMEM", "ENOSPC", "EDQUOT", "EIO", "EROFS"]


@pytest.mark.parametrize("code", [*NO_MORE, "EACCES"])
def test_what_no_file_can_be_written_for_ends_an_export(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """Anything else leaves out one."""
    fill(store, {"p/x": b"1", "p/y": os.urandom(SMALL_BYTES_MAX * 2)})
    whole = export.replacing

    def fails(leaf: str, **options: Any) -> Any:
        if leaf == "y":
            number = getattr(errno, code)
            raise OSError(number, os.strerror(number), ".castore-draft")
        return whole(leaf, **options)

    monkeypatch.setattr(export, "replacing", fails)
    if code in NO_MORE:
        with pytest.raises(OSError) as caught:
            store.export_folder("p", tmp_path / "out")
        assert caught.value.filename == str(tmp_path / "out" / "y")
    else:
        report = store.export_folder("p", tmp_path / "out")
        assert report.left_out == [("p/y", f"{tmp_path / 'out' / 'y'}: Permission denied")]
        assert (tmp_path / "out" / "x").read_bytes() == b"1"


def test_nothing_is_written_outside_the_folder(store: castore.Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"mine")
    out = tmp_path / "out"
    out.mkdir()
    (out / "link").symlink_to(outside)
    (out / "file").symlink_to(outside / "file")
    (out / "folder").mkdir()
    (out / "plain").write_bytes(b"")
    for name in ("link/x", "link/file", "file", "folder", "plain/x", "a//b", "c/", "fine"):
        store.puts(name, b"theirs" + name.encode())
    report = store.export_folder("", out)
    assert {name: raw for name, (raw, *_) in tree(outside).items()} == {"file": b"mine"}
    left_out = dict(report.left_out)
    assert left_out.keys() == {"link/x", "link/file", "folder", "plain/x", "a//b", "c/"}
    assert "symlink" in left_out["link/x"]
    assert "empty part" in left_out["c/"]
    # A link in a file's place is replaced, and what it led to is not touched.
    assert not (out / "file").is_symlink()
    assert (out / "file").read_bytes() == b"theirsfile"
    assert (out / "fine").exists()
    assert not [name for name in tree(out) if name.startswith(".castore-")]


def test_what_only_marks_a_folder_is_the_folder(store: castore.Store, tmp_path: Path) -> None:
    for name, content in (("a/", b""), ("a/x", b"1"), ("b/", b""), ("c/d/", b""), ("e/", b"2")):
        store.puts(name, content)
    report = store.export_folder("", tmp_path / "out")
    assert sorted(tree(tmp_path / "out")) == ["a/x"]
    assert all((tmp_path / "out" / name).is_dir() for name in ("a", "b", "c/d"))
    assert not (tmp_path / "out/e").exists()
    assert (report.files, report.failures, len(report.left_out)) == (1, 1, 4)  # 'e/' is no file
    fs = castore.fs.CastoreFileSystem(store.path)
    for name in ("a/", "b/", "c/"):  # as fsspec gets them
        fs.get(name, f"{tmp_path}/got/{name}", recursive=True)
    assert sorted(tree(tmp_path / "got")) == ["a/x"]
    assert all((tmp_path / "got" / name).is_dir() for name in ("a", "b", "c/d"))
    with pytest.raises(IsADirectoryError, match="no file can have this name: 'e/'"):
        fs.get("", f"{tmp_path}/all/", recursive=True)
    with pytest.raises(IsADirectoryError, match="no file can have this name: 'e/'"):
        fs.get("e/", f"{tmp_path}/all/", recursive=True)
    assert store.check(read_data=True).problems == []


def test_what_is_no_file_is_left_out(store: castore.Store, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "file").write_bytes(b"1")
    (folder / "link").symlink_to("file")
    (folder / "nowhere").symlink_to("none")
    (folder / "loop").symlink_to(".")
    (folder / ".castore-0123456789abcdef").write_bytes(b"torn")
    os.mkfifo(folder / "pipe")
    report = store.import_folder(folder)
    assert list(store.names()) == ["file", "link"]
    assert len(report.left_out) == 4
    with pytest.raises(FileNotFoundError):
        store.import_folder(tmp_path / "none")
    with pytest.raises(NotADirectoryError):
        store.import_folder(folder / "file")
    with pytest.raises(NotAStore):
        store.export_folder("", Path(store.path) / "packs")
    with castore.open(store.path, read_only=True) as closed, pytest.raises(ReadOnlyStore):
        closed.import_folder(folder, "other")


@pytest.mark.damages_store("a frame is damaged")
def test_a_damaged_object_does_not_take_the_others_away(tmp_path: Path) -> None:
    with small(tmp_path / "store") as store:
        fill(store, VALUES)
    [pack] = packs(tmp_path / "store")
    flip(pack, 8 * (pack.stat().st_size // 2))
    code = main(["-r", str(tmp_path / "store"), "export", "/", str(tmp_path / "out")])
    assert code == 13
    found = {name: raw for name, (raw, *_) in tree(tmp_path / "out").items()}
    assert 0 < len(found) < len(VALUES)
    assert found == {name: VALUES[name] for name in found}


@pytest.mark.parametrize(
    ("call", "code"),
    failures(["open", "pwritev", "rename", "utime"], [errno.ENOSPC, errno.EIO, errno.EMFILE]),
)
def test_an_export_that_fails(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    fill(store, VALUES)
    whole = getattr(os, call)
    left = [6]

    def fails(*args: Any, **options: Any) -> Any:
        if call == "open" and not args[1] & os.O_CREAT:
            return whole(*args, **options)
        left[0] -= 1
        if left[0] <= 0:
            raise OSError(code, os.strerror(code))
        return whole(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(outfolder, "_native", None)  # whose calls can't be made to fail like this
        patched.setattr(os, call, fails)
        with pytest.raises(OSError):
            store.export_folder("", tmp_path / "out")
    found = {name: raw for name, (raw, *_) in tree(tmp_path / "out").items()}
    assert found == {name: VALUES[name] for name in found}  # whole files, and no drafts
    store.export_folder("", tmp_path / "out")
    assert {name: raw for name, (raw, *_) in tree(tmp_path / "out").items()} == VALUES


@pytest.mark.parametrize(
    ("call", "code"),
    failures(["open", "pwritev", "fsync"], [errno.ENOSPC, errno.EIO, errno.EMFILE]),
)
def test_an_import_that_fails(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    monkeypatch.setattr(imports, "BATCH_FILES_MAX", 2)
    made = make_tree(tmp_path / "in")
    whole = getattr(os, call)
    left = [3]

    def fails(*args: Any, **options: Any) -> Any:
        if call != "open" or str(args[0]).startswith(str(tmp_path / "in")):
            left[0] -= 1
            if left[0] == 0:
                raise OSError(code, os.strerror(code))
        return whole(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(sourcefile, "_native", None)  # whose calls can't be made to fail like this
        patched.setattr(os, call, fails)
        if call == "open" and code != errno.EMFILE:  # of one file alone
            assert store.import_folder(tmp_path / "in").failures == 1
        else:
            with pytest.raises(OSError):
                store.import_folder(tmp_path / "in")
    for name in store.names():
        assert store.gets(name) == made[name][0]
    store.import_folder(tmp_path / "in")
    assert {name: store.gets(name) for name in store.names()} == {
        name: raw for name, (raw, *_) in made.items()
    }
    assert store.check(True).exit_code <= 1


def test_killed_on_the_way(store: castore.Store, tmp_path: Path) -> None:
    fill(store, VALUES)
    dying = """
import os, signal, sys, castore
from castore.stream import sourcefile
from castore.stream.small import SMALL_BYTES_MAX
from castore.system import outfolder
outfolder._native = None  # whose calls are not Python's
done = []  # several threads do it
whole = os.rename
def dies(*args, **options):
    if len(done) >= 4:
        os.kill(os.getpid(), signal.SIGKILL)
    whole(*args, **options)
    done.append(args)
os.rename = dies
castore.open(sys.argv[1]).export_folder('', sys.argv[2])
"""
    done = subprocess.run(
        [sys.executable, "-c", dying, store.path, str(tmp_path / "out")],
        env=oracle.environment(),
        check=False,
    )
    assert done.returncode == -9
    report = store.export_folder("", tmp_path / "out")
    assert report.same_files >= 4
    found = {name: raw for name, (raw, *_) in tree(tmp_path / "out").items()}
    drafts = {name for name in found if ".castore-" in name}
    assert {name: raw for name, raw in found.items() if name not in drafts} == VALUES
    assert not [n for n, _ in store.import_folder(tmp_path / "out", "b").left_out if n in VALUES]
    assert len(list(store.names("b/"))) == len(VALUES)


@pytest.mark.parametrize("kills", [3, pytest.param(60, marks=pytest.mark.long)])
@pytest.mark.parametrize("verb", ["export", "import"])
def test_killed_at_any_moment(store: castore.Store, tmp_path: Path, verb: str, kills: int) -> None:
    """Also within C, which writes or reads many small files by one call."""
    chance = random.Random(kills)
    values = {f"{i % 5}/{i:03}": chance.randbytes(60_000 - i) for i in range(200)}
    for name, raw in values.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    store.import_folder(tmp_path / "in", "all")

    def run(number: int) -> subprocess.Popen[bytes]:
        rest = ["all", str(tmp_path / f"out{number}")]
        if verb == "import":
            rest = [str(tmp_path / "in"), f"again{number}"]
        argv = [sys.executable, "-m", "castore", "-r", store.path, verb, *rest]
        return subprocess.Popen(argv, env=oracle.environment(), stdout=subprocess.DEVNULL)

    def found(number: int) -> dict[str, bytes]:
        if verb == "import":
            names = store.names(f"again{number}/")
            return {name.partition("/")[2]: store.gets(name) for name in names}
        out = tmp_path / f"out{number}"
        files = tree(out) if out.exists() else {}
        return {name: raw for name, (raw, *_) in files.items() if ".castore-" not in name}

    began = time.monotonic()
    assert run(0).wait() == 0
    takes = time.monotonic() - began
    assert found(0) == values
    for number in range(1, kills + 1):
        process = run(number)
        time.sleep(chance.uniform(0.2, 1) * takes)
        process.kill()
        process.wait()
        there = found(number)
        assert there.items() <= values.items()
    assert run(kills).wait() == 0  # it goes on
    assert found(kills) == values


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_tree(tmp_path / "in")

    def run(*arguments: object) -> tuple[int, str]:
        code = main(["-r", str(tmp_path / "store"), *map(str, arguments)])
        return code, capsys.readouterr().out

    assert run("import", tmp_path / "in", "p")[0] == 0
    code, out = run("import", tmp_path / "in", "p")
    assert code == 0
    assert out.startswith(f"0 files put (0 B), {len(made)} the same already (")
    code, out = run("export", "--json", "p", tmp_path / "out")
    assert (code, json.loads(out)["files"]) == (0, len(made))
    assert tree(tmp_path / "out") == made
    assert run("export", "none", tmp_path / "out")[0] == 14
    (tmp_path / "out" / "a").unlink()
    (tmp_path / "out" / "a").mkdir()
    assert run("export", "p", tmp_path / "out")[0] == 1


def test_many_names_at_once(open_moto: Open, tmp_path: Path) -> None:
    """Across pages of names, on S3 too."""
    store = open_moto()
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(60):
        (folder / f"{i:02}").write_bytes(b"%d" % i)
    assert store.import_folder(folder, "many").files == 60
    assert store.export_folder("many", tmp_path / "out").files == 60
    assert tree(tmp_path / "out").keys() == tree(folder).keys()
