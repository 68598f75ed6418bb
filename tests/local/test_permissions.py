"""Folders without permission, and file systems that are full, read-only, or know no permissions."""

from __future__ import annotations

import codecs
import errno
import fcntl
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from stores import flip, packs
from ways_to_open import WAYS_TO_OPEN, noise

import castore
from castore.errors import (
    CastoreError,
    ReadOnlyStore,
)
from castore.format.config import encode_config
from castore.stream.config import new_config
from castore.system.fileio import (
    adopt,
    adopt_folder,
    descriptor,
    follow,
    make_durable_folder,
    put_in_place,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks


NOBODY = 65534


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Of nobody, where nobody can come to it."""
    folder = Path(tempfile.mkdtemp(prefix="castore-"))
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(folder)


def unprivileged(work: Callable[[], Any]) -> Any:
    """What `work` returns in a child without root's powers, or the error that it raises there."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    codecs.lookup("ascii")  # it may not be able to read Python's own modules
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            answer = work()
        except BaseException as error:
            answer = error
        sender.send(answer)
        os._exit(0)
    sender.close()
    try:
        return receiver.recv()
    finally:
        os.waitpid(pid, 0)


def raises_there(work: Callable[[], Any], error: type[Exception], message: str) -> None:
    answer = unprivileged(work)
    assert isinstance(answer, error)
    assert re.search(message, str(answer))


def make_store(path: Path) -> None:
    with castore.open(path, chunk_bytes_avg=2816) as store:
        store.puts("inline", b"inline")
        store.puts("packed", noise(50_000))


def test_sources_that_may_not_be_read(open_folder: Path) -> None:
    def work() -> None:
        (open_folder / "file").write_bytes(b"secret")
        (open_folder / "file").chmod(0)
        (open_folder / "folder").mkdir(mode=0)
        with castore.open(open_folder / "store") as store:
            for path in (open_folder / "file", open_folder / "folder" / "file"):
                with pytest.raises(PermissionError, match=re.escape(str(path))) as caught:
                    store.put("name", path)
                assert not isinstance(caught.value, CastoreError)
            assert list(store.names()) == []
            store.puts("name", noise(10_000))
            with pytest.raises(PermissionError, match=re.escape(str(open_folder / "folder"))):
                store.get("name", open_folder / "folder" / "target")

    assert unprivileged(work) is None


def test_stores_where_none_can_be_made(open_folder: Path) -> None:
    def work() -> None:
        for mode in (0o000, 0o500):
            folder = open_folder / f"{mode:o}"
            folder.mkdir(mode=mode)
            with pytest.raises(PermissionError, match=re.escape(str(folder))):
                castore.open(folder / "store")
        (open_folder / "0").chmod(0o700)
        assert os.listdir(open_folder / "0") == []

    assert unprivileged(work) is None


def test_a_store_that_is_somebody_elses(tmp_path: Path, open_folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to make somebody else's store")
    make_store(open_folder / "store")
    for options in WAYS_TO_OPEN:
        raises_there(
            partial(castore.open, open_folder / "store", **options),
            PermissionError,
            re.escape(str(open_folder / "store")),
        )
    (open_folder / "store").chmod(0o755)
    raises_there(
        lambda: castore.open(open_folder / "store"), PermissionError, re.escape(str(open_folder))
    )


def test_a_store_that_may_only_be_read(open_folder: Path) -> None:
    """Its folders are not writable: every read works, every write says why not."""

    def work() -> None:
        path = open_folder / "store"
        make_store(path)
        for folder in [path, *path.rglob("*")]:
            if folder.is_dir():
                folder.chmod(0o500)
        for read_only in (False, True):
            with castore.open(path, read_only=read_only) as store:
                assert store.gets("inline") == b"inline"
                assert store.gets("packed") == noise(50_000)
                assert list(store.names()) == ["inline", "packed"]
                assert store.stats().objects == 2
                for write in (
                    lambda: store.puts("new", b""),
                    lambda: store.puts("new", noise(10_000)),
                    lambda: store.delete("inline"),
                    lambda: store.open("new", "wb"),
                ):
                    with pytest.raises(
                        ReadOnlyStore, match=r"for reading only|no permission to write"
                    ):
                        write()

    assert unprivileged(work) is None


def test_a_store_whose_files_may_only_be_read(open_folder: Path) -> None:
    """As in a snapshot. LMDB can't mark its readers then: so it is refused, or it is read."""

    def work() -> None:
        path = open_folder / "store"
        make_store(path)
        for part in [path, *path.rglob("*")]:
            part.chmod(0o500 if part.is_dir() else 0o400)
        with castore.open(path, read_only=True) as store:
            assert store.gets("packed") == noise(50_000)

    answer = unprivileged(work)
    if answer is not None:
        assert isinstance(answer, PermissionError)
        assert str(open_folder) in str(answer)


def test_packs_that_may_not_be_written_or_read(open_folder: Path) -> None:
    def work() -> None:
        path = open_folder / "store"
        make_store(path)
        (pack,) = path.glob("packs/*/*.pack")
        with castore.open(path, delta=False) as store:  # a pack that a put read would stay mapped
            (path / "packs").chmod(0o500)
            with pytest.raises(PermissionError, match=re.escape(str(path / "packs"))):
                store.puts("new", noise(50_000, 2))
            store.puts("small", b"inline ones need no pack")
            (path / "packs").chmod(0o700)
            pack.chmod(0)
            for read in (lambda: store.gets("packed"), lambda: store.open("packed")):
                with pytest.raises(PermissionError, match=re.escape(str(pack))):
                    read()
            pack.chmod(0o600)
            assert store.gets("packed") == noise(50_000)
            assert list(store.names()) == ["inline", "packed", "small"]

    assert unprivileged(work) is None


def test_a_pack_that_another_of_the_group_left_without_a_footer(open_folder: Path) -> None:
    """It may be read and removed, but not be written to; it is whole without."""

    def work() -> None:
        path = open_folder / "store"
        if not os.fork():
            store = castore.open(path)
            store.puts("packed", noise(50_000))
            os._exit(0)  # as one that is killed
        assert os.wait()[1] == 0
        (pack,) = path.glob("packs/*/*.pack")
        pack.chmod(0o440)
        with castore.open(path) as store:
            (path / "index.new-0").mkdir()
            assert store.gc(dry_run=True).packs_sealed == 0
            report = store.gc()
            assert (report.packs_sealed, report.leftovers_removed) == (0, 1)
            assert store.gets("packed") == noise(50_000)
            pack.chmod(0o640)
            assert store.gc(dry_run=True).packs_sealed == 1
            assert store.gc().packs_sealed == 1
            assert store.gc().found_nothing


def test_a_collection_writes_to_no_pack_that_has_its_footer(open_folder: Path) -> None:
    """As one of several users who share a store, each of whom may read the others' packs."""

    def work() -> None:
        path = open_folder / "store"
        make_store(path)
        (kept,) = path.glob("packs/*/*.pack")
        with castore.open(path, delta=False) as store:
            store.puts("other", noise(50_000, 2))
        for pack in path.glob("packs/*/*.pack"):
            pack.chmod(0o400)
        with castore.open(path) as store:
            store.delete("other")
            assert store.gc().packs_removed == 1
        kept.chmod(0o600)
        unsealed = kept.read_bytes() + b"torn"
        kept.write_bytes(unsealed)
        kept.chmod(0o400)
        with castore.open(path) as store:
            assert store.gc().packs_sealed == 0
            assert kept.read_bytes() == unsealed
            kept.chmod(0o600)
            assert store.gc().packs_sealed == 1
            assert store.check(read_data=True).clean

    assert unprivileged(work) is None


def in_own_mounts(program: str, *arguments: str) -> str:
    """The output of a program that may mount what it likes."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root on Linux, to mount")
    probe = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /mnt"]
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("may not mount here")
    command = ["unshare", "--mount", sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


FULL_DISK = """
import os, random, subprocess, sys
import castore
from castore.errors import StoreFull

folder, size = sys.argv[1], sys.argv[2]
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
store = castore.open(folder + "/store", chunk_bytes_avg=2816)
kept, full = {}, 0
for i in range(400):
    data = random.Random(i).randbytes(random.Random(i).choice([300, 3000, 30_000, 300_000]))
    try:
        store.puts(f"{i:03}", data)
    except StoreFull as error:
        assert "no space left" in str(error) and isinstance(error, OSError), error
        full += 1
    else:
        kept[f"{i:03}"] = data
assert full > 10 and len(kept) > 10, (full, len(kept))
if not random.Random(size).randrange(2):
    store.close()
    store = castore.open(folder + "/store")
assert list(store.names()) == sorted(kept)
for name, data in kept.items():
    assert store.gets(name) == data
subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
store.puts("at last", bytes(1000) + random.Random(1).randbytes(500_000))
assert store.size("at last") == 501_000
store.close()
with castore.open(folder + "/store") as store:
    assert list(store.names()) == [*sorted(kept), "at last"]
    assert store.gets("at last")[1000:] == random.Random(1).randbytes(500_000)
print("ok")
"""


@pytest.mark.parametrize("size", ["1m", "1500k", "3m"])
def test_a_full_disk(tmp_path: Path, size: str) -> None:
    """Nothing half-visible, what was acknowledged stays, and it goes on once there is room."""
    assert in_own_mounts(FULL_DISK, str(tmp_path), size) == "ok\n"


NO_ROOM = """
import subprocess, sys
import castore
from castore.errors import StoreFull

folder = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", folder], check=True)
open(folder + "/filler", "wb").write(bytes(12288))
try:
    castore.open(folder + "/store").puts("name", bytes(100))
except StoreFull as error:
    print(error)
"""


def test_no_room_to_make_a_store(tmp_path: Path) -> None:
    assert "no space left" in in_own_mounts(NO_ROOM, str(tmp_path))


READ_ONLY_MOUNT = """
import random, subprocess, sys
import castore
from castore.errors import ReadOnlyStore

folder = sys.argv[1]
data = random.Random(1).randbytes(50_000)
subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
with castore.open(folder + "/store") as store:
    store.puts("packed", data)
    store.puts("inline", b"inline")
subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
for read_only in (False, True):
    with castore.open(folder + "/store", read_only=read_only) as store:
        assert store.gets("packed") == data and store.gets("inline") == b"inline"
        assert store.stats().objects == 2
        try:
            store.puts("new", b"")
        except ReadOnlyStore as error:
            print(error)
try:
    castore.open(folder + "/other")
except OSError as error:
    print(error)
"""


def test_a_file_system_that_is_mounted_read_only(tmp_path: Path) -> None:
    lines = in_own_mounts(READ_ONLY_MOUNT, str(tmp_path)).splitlines()
    assert len(lines) == 3
    assert all(re.search("for reading only|no permission to write", line) for line in lines[:2])
    assert "Read-only file system" in lines[2]
    assert str(tmp_path) in lines[2]


@pytest.fixture
def usb_stick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that all may write to, of a file system that has no hard links and no permission
    bits, as FAT and exFAT."""

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    for call in ("link", "chmod", "fchmod"):
        monkeypatch.setattr(os, call, refused)
    root = tmp_path / "store"
    before = os.umask(0)
    root.mkdir(0o777)
    os.umask(before)
    return root


def test_a_store_on_a_usb_stick(usb_stick: Path) -> None:
    lost, kept = (random.Random(i).randbytes(50_000) for i in range(2))
    with castore.open(usb_stick) as store:
        store.puts("lost", lost)
        store.puts("kept", kept)
        store.gc()
    assert (usb_stick / "castore.json").exists()
    assert not list(usb_stick.glob("castore.json.*"))
    castore.compact_index(usb_stick)
    castore.rebuild_index(usb_stick)
    (pack,) = packs(usb_stick)
    flip(pack, 8 * 20_000)
    damaged = pack.read_bytes()
    report = castore.check_store(usb_stick, repair=True)
    assert report.damaged_names == ["lost"]
    assert (usb_stick / "quarantine" / pack.name).read_bytes() == damaged
    with castore.open(usb_stick) as store:
        assert store.gets("kept") == kept
        assert store.check(read_data=True).clean


def test_of_two_who_make_a_store_on_a_usb_stick_one_is_faster(
    usb_stick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = encode_config(new_config(65536, None))

    def other_is_faster(*_: Any) -> None:
        (usb_stick / "castore.json").write_bytes(config)
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", other_is_faster)
    with castore.open(usb_stick) as store:
        store.puts("a", b"1")
    assert (usb_stick / "castore.json").read_bytes() == config
    assert not list(usb_stick.glob("castore.json.*"))


def test_what_comes_to_a_place_first_stays_there_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two who come at once one has the lock; and a link that leads nowhere is something."""
    flock = fcntl.flock

    def refused(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def other_had_the_lock(fd: int, how: int) -> None:
        (tmp_path / "raced").write_bytes(b"first")
        flock(fd, how)

    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr(fcntl, "flock", other_had_the_lock)
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "draft").write_bytes(b"late")
    for name in ("raced", "link"):
        with pytest.raises(FileExistsError, match=f"{name}'"):
            put_in_place(str(tmp_path / "draft"), str(tmp_path / name))
    assert (tmp_path / "raced").read_bytes() == b"first"
    assert os.readlink(tmp_path / "link") == "nowhere"
    put_in_place(str(tmp_path / "draft"), str(tmp_path / "new"))
    assert (tmp_path / "new").read_bytes() == b"late"


def test_a_disk_that_fails_is_not_one_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", fails)
    (tmp_path / "draft").write_bytes(b"1")
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        put_in_place(str(tmp_path / "draft"), str(tmp_path / "new"))
    assert os.listdir(tmp_path) == ["draft"]


def test_a_folder_that_another_makes_at_the_same_time_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = os.mkdir

    def other_is_faster(path: str, mode: int) -> None:
        for _ in range(2):
            mkdir(path, mode)

    monkeypatch.setattr(os, "mkdir", other_is_faster)
    make_durable_folder(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("store", "file", "lock", "folder"),
    [
        (0o700, 0o600, 0o600, 0o2700),
        (0o750, 0o640, 0o640, 0o2750),
        (0o770, 0o640, 0o660, 0o2770),
        (0o775, 0o644, 0o664, 0o2775),
    ],
)
def test_who_may_write_to_a_store_writes_to_folders_and_locks_and_to_no_other_file(
    tmp_path: Path, store: int, file: int, lock: int, folder: int
) -> None:
    tmp_path.chmod(store)
    for name, as_lock, mode in (("file", False, file), ("lock", True, lock)):
        (tmp_path / name).touch(0o600)
        with descriptor(str(tmp_path / name)) as fd:
            adopt(fd, str(tmp_path), as_lock=as_lock)
        assert (tmp_path / name).stat().st_mode & 0o7777 == mode
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder").chmod(0o2700)  # what is made in it is of its group
    adopt_folder(str(tmp_path / "folder"), str(tmp_path))
    assert (tmp_path / "folder").stat().st_mode & 0o7777 == folder


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes what is another's")
def test_what_root_makes_in_a_store_is_its_owners_and_groups(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY, NOBODY - 1)
    (tmp_path / "file").touch(0o600)
    with descriptor(str(tmp_path / "file")) as fd:
        adopt(fd, str(tmp_path))
    status = (tmp_path / "file").stat()
    assert (status.st_uid, status.st_gid) == (NOBODY, NOBODY - 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes what is another's")
def test_what_takes_the_place_of_another_file_has_its_group_where_that_may_be_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    like, made, others = (tmp_path / name for name in ("like", "made", "others"))
    for path in (like, made, others):
        path.touch()
        path.chmod(0o600)
    like.chmod(0o660)
    os.chown(like, NOBODY, NOBODY - 1)
    os.chown(others, NOBODY - 2, 0)
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)

    def facts(path: Path) -> tuple[int, int, int]:
        status = path.stat()
        return status.st_uid, status.st_gid, status.st_mode & 0o7777

    follow(str(others), like.stat())
    assert facts(others) == (NOBODY - 2, 0, 0o600), "it is neither ours nor new"
    follow(str(made), like.stat())
    assert facts(made) == (0, NOBODY - 1, 0o660)

    def refused(*_: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    os.chown(like, NOBODY, NOBODY - 3)
    monkeypatch.setattr(os, "chown", refused)
    follow(str(made), like.stat())
    assert facts(made) == (0, NOBODY - 1, 0o660)
    monkeypatch.undo()
    follow(str(made), like.stat())
    assert facts(made) == (NOBODY, NOBODY - 3, 0o660)


def test_a_store_in_use_in_another_pid_namespace(root: Path) -> None:
    """LMDB could not tell its live readers from dead ones."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root on Linux")
    program = (
        "import castore, sys\n"
        "try: castore.open(sys.argv[1])\n"
        "except castore.errors.StoreLocked as error: print(error)\n"
        "else: print('opened')"
    )
    command = ["unshare", "--pid", "--fork", sys.executable, "-c", program, str(root)]
    with castore.open(root):
        done = subprocess.run(command, capture_output=True, text=True)
        if "unshare" in done.stderr:
            pytest.skip(done.stderr)
        assert "is open in another pid namespace" in done.stdout, done.stderr
    assert subprocess.run(command, capture_output=True, text=True).stdout == "opened\n"


def test_errors_have_a_number_where_the_system_has_one(store: castore.Store) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        store.gets("missing")
    assert caught.value.errno == errno.ENOENT


ANEW = [
    "compact",
    "rebuild",
    "rebuild of one that is gone",
    "restore",
    "config",
    "rotation",
    "journal",
]


def _made_anew(path: Path, backup: Path, how: str) -> None:
    if how == "compact":
        castore.compact_index(path)
    elif how == "rebuild":
        castore.rebuild_index(path)
    elif how == "rebuild of one that is gone":
        shutil.rmtree(path / "index")
        castore.rebuild_index(path)
    elif how == "restore":
        castore.restore(backup, path, force=True)
    elif how == "config":
        (path / "castore.json").unlink()
        castore.check_store(path, repair=True)
    else:
        if how == "journal":
            shutil.rmtree(path / "journal")
        with castore.open(path) as store:
            catalog: Any = store._catalog
            catalog.journal.rotate(catalog.index)


@pytest.mark.parametrize("how", ANEW)
@pytest.mark.parametrize("bits", [0, 0o050, 0o070, 0o055])
def test_what_is_made_anew_is_for_those_who_shared_the_store(
    tmp_path: Path, how: str, bits: int
) -> None:
    """As `chmod -R g+rX`, or `g+rwX`, has let them."""
    path = tmp_path / "store"
    with castore.open(path) as store:
        store.puts("name", bytes(100_000))
        store.backup(tmp_path / "backup")
    for each in [path, *path.rglob("*")]:
        each.chmod(0o700 | bits if each.is_dir() else 0o600 | bits & 0o066)
    _made_anew(path, tmp_path / "backup", how)
    made = [path / name for name in ("index", "journal", "castore.json")]
    for each in [*made, *(path / "index").iterdir(), *(path / "journal").iterdir()]:
        mode = each.stat().st_mode & 0o077
        assert mode == (bits if each.is_dir() else bits & 0o066), each


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes what is another's")
@pytest.mark.parametrize("how", ANEW)
def test_what_root_makes_anew_is_the_owners(open_folder: Path, tmp_path: Path, how: str) -> None:
    path = open_folder / "store"

    def make() -> None:
        with castore.open(path) as store:
            store.puts("name", bytes(100_000))

    unprivileged(make)
    with castore.open(path) as store:
        store.backup(tmp_path / "backup")
    _made_anew(path, tmp_path / "backup", how)

    def use() -> int:
        with castore.open(path) as store:
            store.puts("after", b"1")
        return castore.check_store(path, read_data=True).exit_code

    assert unprivileged(use) == 0
