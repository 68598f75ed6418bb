"""A store is read by who may not write it: another user, a read-only mount, an image. Not a byte
of it is touched, and what is read is a state that it had, whoever writes meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from stores import rows

import castore
from castore.errors import IndexChanged, PermissionDenied, ReadOnlyStore
from castore.local.catalog import LocalCatalog
from castore.local.meta import CONFIG, STORE_ID
from castore.system.lmdb_env import Index
from castore.system.lmdb_unlocked import UnlockedEnvironment

NOBODY = 65534
DATA = {f"n/{i}": bytes([i]) * 300 + os.urandom(9000) for i in range(5)} | {"small": b"x"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    with castore.open(path) as store:
        for name, data in DATA.items():
            store.puts(name, data)
    return path


@pytest.fixture
def as_reader(folder: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs a command of Python's as somebody who may read the store, and not write it."""
    before: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may write everything, and there is no setpriv")
        # Somebody else's store, for a root that has to ask.
        before = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"]
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, NOBODY, NOBODY)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*before, sys.executable, *command], capture_output=True, text=True, check=False
        )

    yield run
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def state(folder: Path) -> dict[str, Any]:
    """Every byte and every time."""
    return {
        str(path): (
            path.stat().st_mtime_ns,
            b"" if path.is_dir() else hashlib.sha256(path.read_bytes()).digest(),
        )
        for path in [folder, *sorted(folder.rglob("*"))]
    }


READS = """
import sys, castore
from castore.errors import ReadOnlyStore
with castore.open(sys.argv[1], create=False, read_only=sys.argv[2] == "True") as store:
    data = {name: store.gets(name) for name in store.names()}
    assert len(data) == 6 and data["small"] == b"x"
    with store.open("n/1") as file:
        assert file.read() == data["n/1"] == store.gets("n/1", (0, 9300))
    assert store.stats().objects == len(list(store.list())) == 6
    assert store.info("n/2").size == 9300
    store.get("n/3", sys.argv[3] + "/got")
    store.export_folder("n", sys.argv[3] + "/exported")
    store.backup(sys.argv[3] + "/backup")
    report = store.check(read_data=True)
    assert report.clean and report.read_frames, report
    assert store.gc(dry_run=True).objects == 6
    for write in (lambda: store.puts("x", b"1"), lambda: store.delete("small"), store.gc):
        try:
            write()
        except ReadOnlyStore:
            continue
        raise SystemExit("it was written to")
print("done")
"""


VERBS = """
import contextlib, io, json, sys
from castore.cli import main
for command in json.loads(sys.argv[2]):
    out, said = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        code = main(["-r", sys.argv[1], *command.split()])
    print(json.dumps([code, said.getvalue()]))
"""


def verbs(run: Any, folder: Path, commands: Sequence[str]) -> dict[str, tuple[int, str]]:
    """The exit code of each command and what it says on stderr; one process runs all."""
    done = run("-c", VERBS, str(folder), json.dumps([*commands]))
    assert (done.returncode, done.stderr) == (0, ""), done
    ended = [json.loads(line) for line in done.stdout.splitlines()]
    return dict(zip(commands, ended, strict=True))


@pytest.mark.parametrize("read_only", [True, False])
def test_another_user(folder: Path, tmp_path: Path, as_reader: Any, read_only: bool) -> None:
    before = state(folder)
    done = as_reader("-c", READS, str(folder), str(read_only), str(tmp_path))
    assert (done.stdout, done.stderr) == ("done\n", ""), done
    assert state(folder) == before


def test_the_command_of_another_user(folder: Path, tmp_path: Path, as_reader: Any) -> None:
    before = state(folder)
    codes = {
        "ls -l": 0,
        "cat small": 0,
        "stats": 0,
        "check --read-data": 0,
        f"get -R n {tmp_path}/there": 0,
        f"backup {tmp_path}/names": 0,
        "gc --dry-run": 0,
        "gc": 12,
        "rm small": 12,
        f"put {__file__} x": 12,
    }
    for command, (code, said) in verbs(as_reader, folder, [*codes]).items():
        assert code == codes[command], (command, said)
        assert not code or said.count("\n") == 1, said
    assert state(folder) == before


FSSPEC = """
import sys, fsspec
fs = fsspec.filesystem("castore", store=sys.argv[1], read_only=True)
assert sorted(fs.find("")) == sorted([*(f"n/{i}" for i in range(5)), "small"])
assert [entry["name"] for entry in fs.ls("n")] == [f"n/{i}" for i in range(5)]
assert fs.cat_file("small") == b"x" and fs.info("n/2")["size"] == 9300
with fs.open("n/1") as file:
    assert file.read(300) == bytes([1]) * 300
fs.get("n/", sys.argv[2] + "/", recursive=True)
for write in (
    lambda: fs.pipe_file("x", b"1"),
    lambda: fs.rm("small"),
    lambda: fs.cp_file("small", "copy"),
    lambda: fs.mv("small", "moved"),
    lambda: fs.open("x", "wb").close(),
):
    try:
        write()
    except PermissionError:
        continue
    raise SystemExit("it was written to")
assert not fs.exists("x") and fs.exists("small")
print("done")
"""


def test_fsspec_of_another_user(folder: Path, tmp_path: Path, as_reader: Any) -> None:
    before = state(folder)
    done = as_reader("-c", FSSPEC, str(folder), str(tmp_path / "out"))
    assert (done.stdout, done.stderr) == ("done\n", ""), done
    assert (tmp_path / "out/4").read_bytes() == DATA["n/4"]
    assert state(folder) == before


@pytest.fixture
def on_read_only_mount(folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command of Python's where the store is below a mount that nobody writes to."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root on Linux, to mount")
    mount = f"mount --bind '{folder}' '{folder}' && mount -o remount,ro,bind '{folder}'"
    if subprocess.run(["unshare", "--mount", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("may not mount here")

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        script = ["sh", "-c", mount + ' && exec "$@"', "sh", sys.executable, *command]
        return subprocess.run(
            ["unshare", "--mount", *script], capture_output=True, text=True, check=False
        )

    return run


@pytest.mark.parametrize("read_only", [True, False])
def test_a_read_only_mount(
    folder: Path, tmp_path: Path, on_read_only_mount: Any, read_only: bool
) -> None:
    before = state(folder)
    done = on_read_only_mount("-c", READS, str(folder), str(read_only), str(tmp_path))
    assert (done.stdout, done.stderr) == ("done\n", ""), done
    done = on_read_only_mount("-c", FSSPEC, str(folder), str(tmp_path / "out"))
    assert (done.stdout, done.stderr) == ("done\n", ""), done
    assert state(folder) == before


def test_the_command_on_a_read_only_mount(
    folder: Path, tmp_path: Path, on_read_only_mount: Any
) -> None:
    before = state(folder)
    codes = {
        "ls -l": 0,
        "stats": 0,
        "check --read-data": 0,
        f"get n/1 {tmp_path}/got": 0,
        f"export n {tmp_path}/exported": 0,
        f"backup {tmp_path}/names": 0,
        "gc --dry-run": 0,
        "gc": 12,
        "rm small": 12,
        f"put {__file__} x": 12,
    }
    for command, (code, said) in verbs(on_read_only_mount, folder, [*codes]).items():
        assert code == codes[command], (command, said)
        assert not code or said.count("\n") == 1, said
    assert (tmp_path / "exported/3").read_bytes() == DATA["n/3"]
    assert state(folder) == before


def test_read_only_touches_nothing_of_ones_own_store(folder: Path, tmp_path: Path) -> None:
    before = state(folder)
    with castore.open(folder, read_only=True) as store:
        assert {name: store.gets(name) for name in store.names()} == DATA
        assert store.stats().objects == len(DATA)
        store.export_folder("n", tmp_path / "out")
        assert store.check(read_data=True).clean
        store.backup(tmp_path / "backup")
        with pytest.raises(ReadOnlyStore):
            store.check(repair=True)
    assert state(folder) == before


def test_both_kinds_in_one_process(folder: Path) -> None:
    """LMDB opens an index once in a process: who reads without a lock gets one with who writes."""
    with castore.open(folder, read_only=True) as reads:
        reads.gets("small")
        with castore.open(folder) as writes:
            for i in range(20):
                writes.puts("turns", b"%d" % i)
                assert reads.gets("turns") == b"%d" % i
            writes.gc(repack_below=1)
        assert {name: reads.gets(name) for name in DATA} == DATA
        assert reads.check(read_data=True).clean
        with pytest.raises(ReadOnlyStore):
            reads.puts("x", b"1")


def test_a_store_whose_creation_was_cut_off_is_read_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right before its index said whose it is: who writes then has it say so."""
    folder = tmp_path / "store"

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(LocalCatalog, "__init__", killed)
        with pytest.raises(KeyboardInterrupt):
            castore.open(folder)
    with castore.open(folder, read_only=True) as reads:
        assert list(reads.names()) == []
        with castore.open(folder) as writes:
            writes.puts("name", b"1")
        assert reads.gets("name") == b"1"
    assert {STORE_ID, CONFIG} <= rows(folder)[b"meta"].keys()
    with castore.open(folder) as store:
        store.gc()
    shutil.rmtree(folder / "index")
    report = castore.rebuild_index(folder)
    assert (report.names, report.lost_names) == (1, [])


REPLACES = """
import sys, castore
folder, backup, how = sys.argv[1:]
if how == "compacted":
    castore.compact_index(folder)
elif how == "rebuilt":
    castore.rebuild_index(folder)
else:
    castore.restore(backup, folder, force=True)
print("done", flush=True)
sys.stdin.readline()
with castore.open(folder) as store:
    store.puts("small", b"over")
    store.puts("new", b"1")
print("done", flush=True)
"""


@pytest.mark.parametrize("how", ["compacted", "rebuilt", "restored"])
def test_an_index_that_takes_the_place_of_the_one_that_is_read(
    folder: Path, tmp_path: Path, how: str
) -> None:
    """Whoever makes it has the store alone, but for who reads without a lock: that one learns what
    is put from then on, and does not go on with the old file for good."""
    with castore.open(folder, read_only=True) as store:
        store.backup(tmp_path / "backup")
        with Writer(REPLACES, folder, str(tmp_path / "backup"), how) as writer:
            writer.wait()
            assert {name: store.gets(name) for name in store.names()} == DATA
            writer.commit(1)
        assert (store.gets("small"), store.exists("new")) == (b"over", True)
        (folder / "index").rename(folder / "away")  # as between the two renames
        assert store.gets("new") == b"1"
        (folder / "away").rename(folder / "index")


# ---------------------------------------------------------------- while others write

COMMITS = """
import sys, castore
store = castore.open(sys.argv[1])
for line in sys.stdin:
    for i in range(int(line)):
        with store.transaction() as transaction:
            for k in range(500):
                transaction.puts(f"many/{k:04}", b"%d" % (i % 7) * 8)
    print("done", flush=True)
"""
WITHOUT_END = """
import itertools, os, sys, castore
store = castore.open(sys.argv[1])
print("begun", flush=True)
for number in itertools.count():
    with store.transaction() as transaction:
        for name in ("one", "two"):
            transaction.puts(name, b"%d" % number * 100)
        transaction.puts(f"filler/{number % 100}", os.urandom(3000))
"""


class Writer:
    """Another process, that commits as often as it is told to."""

    def __init__(self, program: str, folder: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, str(folder), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def commit(self, times: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{times}\n")
        self.process.stdin.flush()
        self.wait()

    def wait(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def index_of(store: castore.Store) -> Index:
    index: Index = store._catalog._index  # type: ignore[attr-defined]
    assert index.lock_free
    return index


def snapshot_over(index: Index, writer: Writer, commits: int) -> None:
    with index.gate, index.snapshot() as txn:
        assert txn.get(b"small", db=index.names) is not None
        writer.commit(commits)


def test_a_snapshot_is_good_until_its_pages_may_be_written_over(folder: Path) -> None:
    with castore.open(folder, read_only=True) as store, Writer(COMMITS, folder) as writer:
        writer.commit(1)
        snapshot_over(index_of(store), writer, 1)
        with pytest.raises(IndexChanged, match="index was changed while it was read"):
            snapshot_over(index_of(store), writer, 2)


def test_so_is_a_copy(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a backup: it is of one moment, or there is none."""
    copy = UnlockedEnvironment.copy
    with castore.open(folder, read_only=True) as store, Writer(COMMITS, folder) as writer:
        writer.commit(1)
        for commits in (1, 2):

            def beside(*arguments: Any, commits: int = commits) -> None:
                copy(*arguments)
                writer.commit(commits)

            monkeypatch.setattr(UnlockedEnvironment, "copy", beside)
            changed = pytest.raises(IndexChanged) if commits > 1 else contextlib.nullcontext()
            with open(tmp_path / "copy", "wb") as file, changed:
                index_of(store).copy_to(file.fileno())


def test_pages_are_written_over_then(folder: Path) -> None:
    """By the third commit after a snapshot that nobody knows of, and not before."""
    changed = []
    for commits in (2, 8):
        with castore.open(folder, read_only=True) as store, Writer(COMMITS, folder) as writer:
            writer.commit(3)
            index = index_of(store)
            with pytest.raises(IndexChanged), index.gate, index.snapshot() as txn:  # noqa: PT012
                before = {i: txn.get(b"many/%04d" % i, db=index.names) for i in range(500)}
                writer.commit(commits)
                after = {i: txn.get(b"many/%04d" % i, db=index.names) for i in range(500)}
            changed.append(before != after)
    assert changed == [False, True]


def test_reading_while_others_write(folder: Path) -> None:
    """What is read is of one moment, though nothing keeps the writer from going on."""
    with Writer(WITHOUT_END, folder) as writer:
        writer.wait()
        with castore.open(folder, read_only=True) as store:
            index, changed = index_of(store), 0
            for _ in range(300):
                try:
                    with index.gate, index.snapshot() as txn:
                        one, two = (txn.get(name, db=index.names) for name in (b"one", b"two"))
                        assert (one is None) == (two is None)
                except IndexChanged:
                    changed += 1
                assert {name: store.gets(name) for name in DATA} == DATA
                assert {*DATA} <= {*store.names()}
                store.stats()
        assert changed < 300
    with castore.open(folder, read_only=True) as store:
        assert store.check(read_data=True).exit_code in (0, 1)


# ---------------------------------------------------------------- what may not even be read


def test_unreadable_is_not_absent(folder: Path, as_reader: Any) -> None:
    [pack] = folder.glob("packs/*/*.pack")
    for closed in (pack, pack.parent, folder / "packs", folder / "index" / "data.mdb", folder):
        mode = closed.stat().st_mode
        closed.chmod(0)
        commands = ("check", "cat n/1", "check --read-data")
        for verb, (code, said) in verbs(as_reader, folder, commands).items():
            assert code == 12, (closed, verb, said)
            assert "ermission" in said
            assert said.count("\n") == 1, said
        closed.chmod(mode)


@pytest.mark.parametrize("in_place", [True, False])
def test_packs_that_are_listed_and_may_not_be_looked_at_are_not_absent(
    folder: Path, as_reader: Any, in_place: bool
) -> None:
    """As in a folder that `chmod -R 644` has passed over: it has its names, and no x."""
    [pack] = folder.glob("packs/*/*.pack")
    home = pack.parent
    closed = home if in_place else home.rename(home.with_name("elsewhere"))
    closed.chmod(0o444)
    try:
        for verb, (code, said) in verbs(as_reader, folder, ("check", "check --read-data")).items():
            assert code == 12, (verb, said)
            assert f"{closed.name}/{pack.name}" in said
    finally:
        closed.chmod(0o755)
        closed.rename(home)


def test_the_error_is_typed(folder: Path) -> None:
    error = PermissionDenied("/store/packs")
    assert isinstance(error, PermissionError)
    assert isinstance(error, castore.CastoreError)
    assert error.filename == "/store/packs"
    assert "chmod -R g+rX" in str(error)


# ---------------------------------------------------------------- who a store is shared with


def modes(folder: Path) -> set[tuple[bool, int]]:
    return {(path.is_dir(), path.stat().st_mode & 0o777) for path in folder.glob("packs/**/*")}


def test_new_packs_are_for_those_who_may_read_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with castore.open(folder) as store:
        store.puts("a", os.urandom(9000))
    assert modes(folder) == {(True, 0o700), (False, 0o600)}
    folder = tmp_path / "shared"
    castore.open(folder).close()
    folder.chmod(0o750)
    before = os.umask(0o077)
    try:
        with castore.open(folder) as store:
            store.puts("b", os.urandom(9000))
    finally:
        os.umask(before)
    assert modes(folder) == {(True, 0o750), (False, 0o640)}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root writes into the stores of others")
def test_what_root_puts_into_a_store_is_its_owners(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)
    (folder / "castore.lock").unlink()
    with castore.open(folder) as store:
        store.puts("by root", os.urandom(9000))
        store.gc()
    assert {path.stat().st_uid for path in [folder, *folder.rglob("*")]} == {NOBODY}


# ---------------------------------------------------------------- links


@pytest.mark.parametrize("name", ["castore.lock", "castore.gc", "index/lock.mdb"])
def test_links_are_not_followed(folder: Path, tmp_path: Path, name: str) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"precious")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(other)
    with pytest.raises(OSError, match=r"symbolic link"), castore.open(folder) as store:
        store.gc()
    assert other.read_bytes() == b"precious"
    (folder / name).unlink()
