"""Folders kept in the cache and put back: what comes back, what is refused, what it costs."""

from __future__ import annotations

import errno
import gzip
import io
import itertools
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from oracle import in_child

import conducto as co
from castore import errors
from conducto import cache, context, staging
from conducto.errors import CacheNotFound, CacheRefused, NotCacheable
from conducto.merge import IMPLIED_FOLDER_MODE, Merge
from conducto.staging import STAGING_PREFIX
from conducto.stored_gzip import StoredGzip
from conducto.tar import Limits

pytest_plugins = ["modes"]
pytestmark = pytest.mark.usefixtures("mode")

local_only = pytest.mark.parametrize("mode", ["local"], indirect=True)

user = co.data.user
PATH = "conducto-cache/deps/v1.tar.gz"
# The files as they were packed; Python has filters since 3.11.4, and asks for one since 3.12.
AS_IT_IS: dict[str, Any] = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "deps"
    for name, content in {
        "readme.txt": b"hello\n" * 3,
        "empty": b"",
        "bin/tool": b"#!/bin/sh\n",
        "lib/deep/er/x.bin": random.Random(1).randbytes(200_000),
        "lib/ünïcode ☃\n.txt": b"snow",
        f"long/{'d' * 120}/{'f' * 200}": b"long",
        "block": b"b" * 512,
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "nothing" / "inside").mkdir(parents=True)
    (root / "bin/tool").chmod(0o750)
    (root / "nothing").chmod(0o700)
    os.utime(root / "readme.txt", ns=(1, 1_600_000_000_123_456_789))
    os.utime(root / "lib/deep", ns=(1, 1_500_000_000_000_000_000))
    with open(os.fsencode(root) + b"/not-utf8-\xff", "wb") as file:
        file.write(b"odd")
    return root


def contents(root: Path) -> dict[bytes, tuple[bytes | None, int, int]]:
    """Everything below, with modes and times."""
    found: dict[bytes, tuple[bytes | None, int, int]] = {}
    top = os.fsencode(root)
    for path, folders, files in os.walk(top):
        for name in folders + files:
            whole = os.path.join(path, name)
            info = os.lstat(whole)
            content = Path(os.fsdecode(whole)).read_bytes() if name in files else None
            found[os.path.relpath(whole, top)] = (content, info.st_mode, info.st_mtime_ns)
    return found


def archive_of(*members: tuple[str, bytes | None], **attributes: object) -> bytes:
    """A .tar.gz of files, and of folders where the content is None."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            info.mode = 0o755 if content is None else 0o644
            info.size = len(content or b"")
            for key, value in attributes.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content or b""))
    return out.getvalue()


def while_it_is_read(
    monkeypatch: pytest.MonkeyPatch, path: Path, change: Callable[[], None], times: int
) -> None:
    """Calls `change` after the first piece that `save` reads of the file, so many times in all."""
    pieces, left = cache._pieces, times

    def changing(file: io.FileIO, size: int, read: str) -> Iterator[bytes]:
        nonlocal left
        reading = pieces(file, size, read)
        if read == os.path.realpath(path) and left and not file.tell():
            left -= 1
            yield next(reading)
            change()
        yield from reading

    monkeypatch.setattr(cache, "_pieces", changing)


class TestRoundTrip:
    def test_everything_comes_back(self, folder: Path, tmp_path: Path) -> None:
        assert user.save_cache("deps", "v1", folder) is None
        assert user.restore_cache("deps", "v1", tmp_path / "out") is None
        assert os.listdir(tmp_path / "out") == ["deps"]
        assert contents(tmp_path / "out" / "deps") == contents(folder)
        assert (tmp_path / "out/deps").stat().st_mode == folder.stat().st_mode

    def test_where_it_is_listed(self, folder: Path) -> None:
        user.save_cache("/deps", "v1", str(folder) + "/")
        assert user.list("") == [PATH]
        assert user.cache_exists("deps", "v1") is True
        assert user.cache_exists("deps", "v2") is False
        assert user.cache_exists("dep", "v1") is False
        assert not co.data.pipeline.cache_exists("deps", "v1")

    def test_the_current_folder_has_no_name(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(folder)
        user.save_cache("deps", "v1", ".")
        user.restore_cache("deps", "v1", tmp_path / "out")
        assert contents(tmp_path / "out") == contents(folder)
        monkeypatch.chdir(folder / "bin")
        user.save_cache("deps", "v2", "..")
        user.restore_cache("deps", "v2", tmp_path / "out2")
        assert contents(tmp_path / "out2" / "deps") == contents(folder)
        (folder / "bin" / "in").mkdir()
        monkeypatch.chdir(folder / "bin" / "in")
        user.save_cache("deps", "v3", "../..")
        user.restore_cache("deps", "v3", tmp_path / "out3")
        assert contents(tmp_path / "out3" / "deps") == contents(folder)

    def test_one_file(self, folder: Path, tmp_path: Path) -> None:
        user.save_cache("deps", "v1", folder / "bin/tool")
        user.restore_cache("deps", "v1", tmp_path / "out")
        assert (tmp_path / "out/tool").stat().st_mode & 0o777 == 0o750

    def test_a_linked_folder_is_the_folder(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "alias").symlink_to(folder)
        user.save_cache("deps", "v1", tmp_path / "alias")
        user.restore_cache("deps", "v1", tmp_path / "out")
        assert contents(tmp_path / "out/alias") == contents(folder)

    def test_what_stays_as_it_is_is_read_once(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read, pieces = [], cache._pieces

        def counted(file: io.FileIO, size: int, path: str) -> Iterator[bytes]:
            read.append(path)
            return pieces(file, size, path)

        monkeypatch.setattr(cache, "_pieces", counted)
        monkeypatch.setattr(cache, "_is_young", lambda info: False)
        user.save_cache("deps", "v1", folder)
        assert os.path.realpath(folder / "readme.txt") in read
        assert len(read) == len(set(read))

    def test_the_same_folder_gives_the_same_bytes(self, folder: Path, tmp_path: Path) -> None:
        user.save_cache("deps", "v1", folder)
        shutil.copytree(folder, tmp_path / "copy" / "deps")
        user.save_cache("deps", "v2", tmp_path / "copy" / "deps")
        assert user.gets(PATH) == user.gets("conducto-cache/deps/v2.tar.gz")

    def test_other_programs_can_read_it(self, folder: Path, tmp_path: Path) -> None:
        user.save_cache("deps", "v1", folder)
        with tarfile.open(fileobj=io.BytesIO(user.gets(PATH)), mode="r:gz") as tar:
            names = tar.getnames()
            tar.extractall(tmp_path / "out", **AS_IT_IS)
        assert names[0] == "deps"
        assert names == sorted(names, key=lambda name: os.fsencode(name).split(b"/"))
        assert {key: value[0] for key, value in contents(tmp_path / "out/deps").items()} == {
            key: value[0] for key, value in contents(folder).items()
        }
        if shutil.which("gzip"):
            user.get(PATH, tmp_path / "x.tar.gz")
            subprocess.run(["gzip", "-t", tmp_path / "x.tar.gz"], check=True)

    @pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    @pytest.mark.parametrize("zipped", [True, False])
    def test_archives_of_other_programs(
        self, folder: Path, tmp_path: Path, format: int, zipped: bool
    ) -> None:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=format) as tar:
            tar.add(folder, "./deps")
        user.puts(PATH, gzip.compress(out.getvalue()) if zipped else out.getvalue())
        user.restore_cache("deps", "v1", tmp_path / "out")
        restored, expected = contents(tmp_path / "out/deps"), contents(folder)
        assert {name: value[:2] for name, value in restored.items()} == {
            name: value[:2] for name, value in expected.items()
        }

    def test_ustar_prefixes_and_version_7(self, tmp_path: Path) -> None:
        long = f"{'d' * 80}/{'e' * 60}/file"
        info = tarfile.TarInfo(long)
        info.size = 1
        ustar = info.tobuf(tarfile.USTAR_FORMAT) + b"x" + bytes(511) + bytes(1024)
        old = bytearray(512)
        old[: len(b"old/dir/")] = b"old/dir/"
        old[100:107], old[124:135], old[136:147] = b"0000755", b"0" * 11, b"0" * 11
        old[148:156] = b"        "
        old[148:155] = b"%06o\0" % sum(old)
        user.puts(PATH, gzip.compress(bytes(old) + ustar))
        user.restore_cache("deps", "v1", tmp_path / "out")
        assert (tmp_path / "out" / long).read_bytes() == b"x"
        assert (tmp_path / "out/old/dir").is_dir()

    def test_setuid_is_not_restored(self, tmp_path: Path) -> None:
        user.puts(PATH, archive_of(("tool", b"x"), mode=0o6755))
        user.restore_cache("deps", "v1", tmp_path / "out")
        assert (tmp_path / "out/tool").stat().st_mode & 0o7777 == 0o755

    def test_folders_that_only_follow_from_names(self, tmp_path: Path) -> None:
        user.puts(PATH, archive_of(("a/b/file", b"x")))
        user.restore_cache("deps", "v1", tmp_path / "out")
        assert (tmp_path / "out/a/b").stat().st_mode & 0o777 == IMPLIED_FOLDER_MODE

    def test_folders_that_can_not_be_written_to(self, tmp_path: Path) -> None:
        closed = tmp_path / "closed"
        (closed / "inner").mkdir(parents=True)
        (closed / "inner/x").write_bytes(b"x")
        (closed / "inner").chmod(0o555)
        closed.chmod(0o555)
        user.save_cache("deps", "v1", closed)
        user.restore_cache("deps", "v1", tmp_path / "out")
        assert contents(tmp_path / "out/closed") == contents(closed)

    def test_it_is_restored_over_folders_that_are_not_to_be_written_to(
        self, folder: Path, tmp_path: Path
    ) -> None:
        """Also by those without the privilege to do so anyway."""
        for name, mode in (("lib/deep/er", 0o555), ("lib/deep", 0o500), ("bin", 0o577)):
            (folder / name).chmod(mode)
        user.save_cache("deps", "v1", folder)
        archive, out = user.gets(PATH), tmp_path / "out"
        out.mkdir()

        def restored(_: int) -> None:
            os.chdir(out)
            if os.geteuid() == 0:
                os.chown(".", 65534, -1)
                os.setuid(65534)
            for _ in range(2):
                cache.restore(io.BytesIO(archive), len(archive), ".")

        assert in_child(restored) == (b"", 0)
        got, wanted = contents(out / "deps"), contents(folder)
        assert {name: each[:2] for name, each in got.items()} == {
            name: each[:2] for name, each in wanted.items()
        }

    @pytest.mark.parametrize("mtime_ns", [-1, -(10**9), -1_600_000_000_250_000_000, 0, 1])
    def test_times_before_1970_come_back(self, folder: Path, tmp_path: Path, mtime_ns: int) -> None:
        for name in ("readme.txt", "lib/deep"):
            os.utime(folder / name, ns=(1, mtime_ns))
            assert (folder / name).stat().st_mtime_ns == mtime_ns
        user.save_cache("deps", "v1", folder)
        user.restore_cache("deps", "v1", tmp_path / "out")
        assert contents(tmp_path / "out/deps") == contents(folder)

    @pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    @pytest.mark.parametrize("mtime", [-1, -1_000_000_000])
    def test_times_before_1970_of_other_programs(
        self, tmp_path: Path, format: int, mtime: int
    ) -> None:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz", format=format) as tar:
            info = tarfile.TarInfo("old")
            info.mtime = mtime
            tar.addfile(info)
        user.puts(PATH, out.getvalue())
        user.restore_cache("deps", "v1", tmp_path / "out")
        assert (tmp_path / "out/old").stat().st_mtime == mtime


class TestLinks:
    LINKS = {  # noqa: RUF012
        "here": "readme.txt",
        "folder": "lib/deep",
        "lib/up": "../bin/tool",
        "lib/deep/er/root": "../../..",
        "nowhere": "lib/none",
        "itself": "itself",
        "spelled": ".//lib/./deep/",
        "bin/" + "n" * 90: "../long/" + "d" * 120,
    }

    @pytest.fixture
    def linked(self, folder: Path) -> Path:
        for name, target in self.LINKS.items():
            (folder / name).symlink_to(target)
        os.utime(folder / "here", ns=(1, 1_600_000_000_123_456_789), follow_symlinks=False)
        return folder

    def test_they_come_back(self, linked: Path, tmp_path: Path) -> None:
        for version in ("first", "over what is there"):
            user.save_cache("deps", version, linked)
            user.restore_cache("deps", version, tmp_path / "out")
            out = tmp_path / "out/deps"
            assert {name: os.readlink(out / name) for name in self.LINKS} == self.LINKS
            assert (out / "here").lstat().st_mtime_ns == 1_600_000_000_123_456_789
            assert (out / "lib/up").read_bytes() == b"#!/bin/sh\n"

    @pytest.mark.parametrize("refusal", [errno.EPERM, errno.EOPNOTSUPP])
    def test_a_file_system_that_has_none(
        self, linked: Path, tmp_path: Path, refusal: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As FAT and exFAT: it is said which, and nothing is restored."""

        def symlink(*args: Any, **options: Any) -> None:
            raise OSError(refusal, os.strerror(refusal))

        (linked / "a first file").write_bytes(b"1")
        user.save_cache("deps", "v1", linked)
        monkeypatch.setattr(os, "symlink", symlink)
        (tmp_path / "out").mkdir()
        with pytest.raises(
            CacheRefused, match=r"'deps/.*' is a symbolic link.*file system"
        ) as said:
            user.restore_cache("deps", "v1", tmp_path / "out")
        assert any(f"'deps/{name}'" in str(said.value) for name in self.LINKS)
        assert os.listdir(tmp_path / "out") == []

    def test_a_link_that_can_not_be_made_for_another_reason(
        self, linked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def symlink(*args: Any, **options: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        user.save_cache("deps", "v1", linked)
        monkeypatch.setattr(os, "symlink", symlink)
        with pytest.raises(OSError, match="No space left"):
            user.restore_cache("deps", "v1", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_other_programs_can_read_them(self, linked: Path, tmp_path: Path) -> None:
        user.save_cache("deps", "v1", linked)
        with tarfile.open(fileobj=io.BytesIO(user.gets(PATH)), mode="r:gz") as tar:
            tar.extractall(tmp_path / "out", **AS_IT_IS)
        assert {n: os.readlink(tmp_path / "out/deps" / n) for n in self.LINKS} == self.LINKS

    @pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_those_of_other_programs(self, linked: Path, tmp_path: Path, format: int) -> None:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz", format=format) as tar:
            tar.add(linked, "deps")
        user.puts(PATH, out.getvalue())
        user.restore_cache("deps", "v1", tmp_path / "out")
        assert {n: os.readlink(tmp_path / "out/deps" / n) for n in self.LINKS} == self.LINKS

    def test_an_absolute_one_leads_to_where_it_is_restored(
        self, folder: Path, tmp_path: Path
    ) -> None:
        (folder / "bin/absolute").symlink_to(folder / "lib/deep")
        (folder / "bin/up and down").symlink_to("../lib/../readme.txt")
        user.save_cache("deps", "v1", folder)
        user.restore_cache("deps", "v1", tmp_path / "out")
        assert os.readlink(tmp_path / "out/deps/bin/absolute") == "../lib/deep"
        assert os.readlink(tmp_path / "out/deps/bin/up and down") == "../readme.txt"

    def test_one_to_a_file_outside_is_that_file(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "python").write_bytes(b"an interpreter")
        (tmp_path / "python").chmod(0o755)
        (folder / "bin/python3").symlink_to(tmp_path / "python")
        (folder / "bin/python").symlink_to("python3")
        user.save_cache("deps", "v1", folder)
        user.restore_cache("deps", "v1", tmp_path / "out")
        copy = tmp_path / "out/deps/bin/python3"
        assert (copy.is_symlink(), copy.read_bytes()) == (False, b"an interpreter")
        assert copy.stat().st_mode & 0o777 == 0o755
        assert os.readlink(tmp_path / "out/deps/bin/python") == "python3"

    @local_only
    def test_a_virtual_environment_works_where_it_is_restored(
        self, mode: str, tmp_path: Path
    ) -> None:
        made = tmp_path / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", made], check=True)
        user.save_cache("deps", "v1", made)
        shutil.rmtree(made)
        user.restore_cache("deps", "v1", tmp_path)
        program = "import sys; print(sys.prefix)"
        done = subprocess.run(
            [made / "bin/python", "-c", program], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == str(made)

    @local_only
    def test_a_file_of_an_open_store_is_not_taken(self, mode: str, folder: Path) -> None:
        user.puts("x", b"")
        (folder / "link").symlink_to(Path(context.store_url()) / "castore.json")
        with pytest.raises(errors.NotAStore):
            user.save_cache("deps", "v1", folder)


class TestSaveRefuses:
    def kept(self) -> list[str]:
        return user.list("")

    def test_a_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no-such-folder"):
            user.save_cache("deps", "v1", tmp_path / "no-such-folder")
        assert self.kept() == []

    def test_links_that_lead_outside_to_no_file(self, folder: Path, tmp_path: Path) -> None:
        for target, why in [(tmp_path, "outside and no file"), ("/no/such", "which is not there")]:
            (folder / "lib/link").symlink_to(target)
            with pytest.raises(NotCacheable, match=f"lib/link' can't be cached: .*{why}"):
                user.save_cache("deps", "v1", folder)
            (folder / "lib/link").unlink()
        assert self.kept() == []

    def test_devices(self, folder: Path) -> None:
        os.mkfifo(folder / "fifo")
        with pytest.raises(ValueError, match="fifo' can't be cached: it is neither a file nor"):
            user.save_cache("deps", "v1", folder)
        assert self.kept() == []

    def test_a_file_that_becomes_a_pipe(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is not waited for, nor kept as an empty file."""
        save_file = cache._save_file

        def swapped(out: StoredGzip, name: str, path: str) -> None:
            os.unlink(path)
            os.mkfifo(path)
            save_file(out, name, path)

        monkeypatch.setattr(cache, "_save_file", swapped)
        with pytest.raises(NotCacheable, match="it is neither a file nor a folder"):
            user.save_cache("deps", "v1", folder)
        assert self.kept() == []

    @local_only
    def test_an_open_store(self, mode: str, folder: Path, tmp_path: Path) -> None:
        user.puts("x", b"")
        for path in (tmp_path, tmp_path / "base", Path(context.store_url()) / "castore.json"):
            with pytest.raises(errors.NotAStore):
                user.save_cache("deps", "v1", path)
        assert self.kept() == ["x"]

    def test_what_restore_would_not_take(self, folder: Path) -> None:
        sink = io.BytesIO()
        with pytest.raises(NotCacheable, match="more than 2 files and folders"):
            cache.save(folder, sink, Limits(members_max=2))
        with pytest.raises(NotCacheable, match="more than 3 folders"):
            cache.save(folder, sink, Limits(folders_max=3))
        with pytest.raises(NotCacheable, match="2 folders deep"):
            cache.save(folder, sink, Limits(depth_max=2))
        with pytest.raises(NotCacheable, match="longer than 200 bytes"):
            cache.save(folder, sink, Limits(name_bytes_max=200))

    @pytest.mark.parametrize("times", [1, 9])
    def test_a_file_that_shrinks(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
    ) -> None:
        """Once, and all is saved anew; each time, and nothing is."""
        path, left = folder / "lib/deep/er/x.bin", 150_000
        monkeypatch.setattr(cache, "PIECE_BYTES", 64 << 10)

        def shrink() -> None:
            nonlocal left
            left -= 10_000
            os.truncate(path, left)

        while_it_is_read(monkeypatch, path, shrink, times)
        if times == 1:
            user.save_cache("deps", "v1", folder)
            user.restore_cache("deps", "v1", tmp_path / "out")
            assert contents(tmp_path / "out/deps") == contents(folder)
            return
        with pytest.raises(errors.SourceChanged, match=r"x\.bin' got shorter"):
            user.save_cache("deps", "v1", folder)
        assert self.kept() == []

    @pytest.mark.parametrize("young", [True, False])
    @pytest.mark.parametrize("times", [1, 9])
    def test_a_file_that_is_rewritten_in_place(
        self,
        folder: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        times: int,
        young: bool,
    ) -> None:
        """Its size and time stay. What is kept is what is there: never a mix, nor what was there
        before."""
        path = folder / "lib/deep/er/x.bin"
        was, stays = path.stat(), itertools.count()
        monkeypatch.setattr(cache, "PIECE_BYTES", 64 << 10)
        if young:  # a change within a tick of the clock: only the bytes tell
            monkeypatch.setattr(cache, "YOUNG_NS", 1 << 62)
            monkeypatch.setattr(cache, "_state", lambda _: None)
        else:
            monkeypatch.setattr(cache, "YOUNG_NS", 0)

        def rewrite() -> None:
            with open(path, "r+b") as file:
                file.write(b"%d" % (next(stays) % 10) * was.st_size)
            os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))

        while_it_is_read(monkeypatch, path, rewrite, times)
        if times == 1:
            user.save_cache("deps", "v1", folder)
            user.restore_cache("deps", "v1", tmp_path / "out")
            assert contents(tmp_path / "out/deps") == contents(folder)
            assert path.read_bytes() == b"0" * was.st_size
            return
        with pytest.raises(errors.SourceChanged, match=r"x\.bin' was changed"):
            user.save_cache("deps", "v1", folder)
        assert self.kept() == []

    def test_times_of_whole_seconds_have_longer_ticks(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As those of FAT: a change within two seconds may not show."""
        now_ns = 1_700_000_002_019_999_999
        for ctime_ns, young in (
            (1_700_000_000_000_000_000, True),
            (1_699_999_999_000_000_000, False),
            (1_700_000_002_000_000_001, True),
            (1_700_000_001_000_000_001, False),
        ):
            info = os.stat_result(os.stat(folder), {"st_ctime_ns": ctime_ns})
            with monkeypatch.context() as patched:
                patched.setattr(time, "time_ns", lambda: now_ns)
                assert cache._is_young(info) is young

    @pytest.mark.parametrize("what", ["long", "bin/tool", "bin/link"])
    @pytest.mark.parametrize("times", [1, 9])
    def test_what_is_renamed_meanwhile(
        self,
        folder: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        times: int,
        what: str,
    ) -> None:
        """As who writes a file does, under a name for the time being: all is there, once."""
        (folder / "bin/link").symlink_to("../readme.txt")
        sort, left, path = sorted, times, folder / what

        def renamed(entries: Any, **options: Any) -> Any:
            nonlocal left, path
            found = sort(entries, **options)
            real = path.parent.resolve() / path.name
            if left and str(real) in [entry.path for entry in found]:
                left -= 1
                path = path.rename(path.with_name(f"{'b' if left % 2 else 'a'}{path.name[:9]}"))
            return found

        monkeypatch.setattr(cache, "sorted", renamed, raising=False)
        if times == 1:
            user.save_cache("deps", "v1", folder)
            user.restore_cache("deps", "v1", tmp_path / "out")
            assert contents(tmp_path / "out/deps") == contents(folder)
            return
        with pytest.raises(errors.SourceChanged, match="vanished while its folder was read"):
            user.save_cache("deps", "v1", folder)
        assert self.kept() == []

    def test_a_log_that_grows(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is kept as long as it was."""
        path = folder / "lib/deep/er/x.bin"
        whole = path.read_bytes()

        def grow() -> None:
            with open(path, "ab") as file:
                file.write(b"one more line\n")

        while_it_is_read(monkeypatch, path, grow, 1)
        user.save_cache("deps", "v1", folder)
        user.restore_cache("deps", "v1", tmp_path / "out")
        assert (tmp_path / "out/deps/lib/deep/er/x.bin").read_bytes() == whole

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_an_unreadable_folder(self, folder: Path) -> None:
        (folder / "lib").chmod(0)
        with pytest.raises(PermissionError, match="lib"):
            user.save_cache("deps", "v1", folder)
        (folder / "lib").chmod(0o700)
        assert self.kept() == []

    @pytest.mark.parametrize(("name", "checksum"), [("", "1"), ("/", "1"), ("x", "")])
    def test_empty_names(self, folder: Path, name: str, checksum: str) -> None:
        with pytest.raises(ValueError, match="empty"):
            user.save_cache(name, checksum, folder)


class TestClear:
    @pytest.fixture(autouse=True)
    def caches(self, mode: str, tmp_path: Path) -> None:
        (tmp_path / "d").mkdir()
        for name, checksum in [("a", "1"), ("a", "2"), ("a2", "1"), ("a/b", "1"), ("b", "1")]:
            user.save_cache(name, checksum, tmp_path / "d")

    def left(self) -> list[str]:
        return [name.removeprefix("conducto-cache/") for name in user.list("conducto-cache")]

    def test_one(self) -> None:
        user.clear_cache("a", "1")
        assert self.left() == ["a/2.tar.gz", "a/b/1.tar.gz", "a2/1.tar.gz", "b/1.tar.gz"]

    def test_all_of_a_name(self) -> None:
        user.clear_cache("a")
        assert self.left() == ["a2/1.tar.gz", "b/1.tar.gz"]
        user.clear_cache("a")
        user.clear_cache("/b/")
        assert self.left() == ["a2/1.tar.gz"]

    def test_a_slash_behind_a_name_is_no_part_of_it(self, tmp_path: Path) -> None:
        assert user.cache_exists("a/", "1")
        user.save_cache("a/", "3", tmp_path / "d")
        user.clear_cache("/a//", "1")
        assert self.left()[:2] == ["a/2.tar.gz", "a/3.tar.gz"]

    def test_missing(self) -> None:
        with pytest.raises(
            FileNotFoundError, match=r"Cache not found: 'conducto-cache/a/3\.tar\.gz'"
        ):
            user.clear_cache("a", "3")

    def test_an_empty_checksum_is_not_all(self) -> None:
        with pytest.raises(ValueError, match="checksum"):
            user.clear_cache("a", "")
        assert len(self.left()) == 5

    def test_a_checksum_that_is_no_text_is_refused_by_all(self, tmp_path: Path) -> None:
        """Else 1 and "1" would be the same cache, and b"1" another."""
        for checksum in (1, b"1", False):
            for call in (
                lambda checksum: user.save_cache("a", checksum, tmp_path / "d"),
                lambda checksum: user.restore_cache("a", checksum, tmp_path / "out"),
                lambda checksum: user.cache_exists("a", checksum),
                lambda checksum: user.clear_cache("a", checksum),
            ):
                with pytest.raises(ValueError, match=f"must be text .* not {checksum!r}"):
                    call(checksum)
        assert len(self.left()) == 5
        assert not (tmp_path / "out").exists()


class TestRestore:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="Cache not found") as caught:
            user.restore_cache("deps", "v1", tmp_path / "out")
        assert isinstance(caught.value, CacheNotFound)
        assert caught.value.name == PATH
        assert not (tmp_path / "out").exists()

    def test_over_what_is_there(self, folder: Path, tmp_path: Path) -> None:
        user.save_cache("deps", "v1", folder)
        out = tmp_path / "out"
        (out / "deps/bin").mkdir(parents=True)
        (out / "deps/bin/tool").write_bytes(b"old")
        (out / "deps/bin/other").write_bytes(b"mine")
        (out / "keep").write_bytes(b"mine")
        (out / "deps/bin").chmod(0o701)
        with (out / "deps/bin/tool").open("rb") as open_before:
            user.restore_cache("deps", "v1", out)
            assert open_before.read() == b"old"
        assert (out / "deps/bin/tool").read_bytes() == b"#!/bin/sh\n"
        assert (out / "deps/bin/other").read_bytes() == b"mine"
        assert (out / "deps/bin").stat().st_mode & 0o777 == 0o701
        assert sorted(os.listdir(out)) == ["deps", "keep"]
        user.restore_cache("deps", "v1", out)
        assert (out / "deps/readme.txt").read_bytes() == b"hello\n" * 3

    def test_a_link_in_the_place_of_a_file_is_replaced(self, tmp_path: Path) -> None:
        user.puts(PATH, archive_of(("d/file", b"new")))
        (tmp_path / "outside").write_bytes(b"precious")
        (tmp_path / "out/d").mkdir(parents=True)
        (tmp_path / "out/d/file").symlink_to(tmp_path / "outside")
        user.restore_cache("deps", "v1", tmp_path / "out")
        assert (tmp_path / "outside").read_bytes() == b"precious"
        assert not (tmp_path / "out/d/file").is_symlink()
        assert (tmp_path / "out/d/file").read_bytes() == b"new"

    @pytest.mark.parametrize("member", ["d/file", "d"])
    def test_a_link_in_the_place_of_a_folder_is_refused(self, tmp_path: Path, member: str) -> None:
        content = b"new" if member == "d/file" else None
        user.puts(PATH, archive_of(("first", b"1"), (member, content)))
        (tmp_path / "outside").mkdir()
        (tmp_path / "out").mkdir()
        (tmp_path / "out/d").symlink_to(tmp_path / "outside")
        with pytest.raises(CacheRefused, match="'d' can't be restored: a symbolic link"):
            user.restore_cache("deps", "v1", tmp_path / "out")
        assert os.listdir(tmp_path / "outside") == []
        assert os.listdir(tmp_path / "out") == ["d"]

    def test_files_and_folders_in_each_others_place(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        (out / "a").mkdir(parents=True)
        (out / "b").write_bytes(b"")
        user.puts(PATH, archive_of(("0", b"1"), ("a", b"1")))
        with pytest.raises(CacheRefused, match="'a' can't be restored: a folder is in the place"):
            user.restore_cache("deps", "v1", out)
        user.puts(PATH, archive_of(("0", b"1"), ("b/c", b"1")))
        with pytest.raises(CacheRefused, match="'b' can't be restored: a file is in the place"):
            user.restore_cache("deps", "v1", out)
        assert sorted(os.listdir(out)) == ["a", "b"]

    def test_a_file_system_that_is_mounted_in_a_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing can be renamed into it; but what is in it may be there beside the archive's."""
        mounted = tmp_path / "out" / "d" / "mounted"
        mounted.mkdir(parents=True)
        fstat = os.fstat

        def other_device(fd: int) -> os.stat_result:
            status = fstat(fd)
            if os.path.samestat(status, mounted.stat()):
                status = os.stat_result([*status[:2], status.st_dev + 1, *status[3:]])
            return status

        monkeypatch.setattr(os, "fstat", other_device)
        user.puts(PATH, archive_of(("0", b"1"), ("d/mounted/x/file", b"1")))
        with pytest.raises(CacheRefused, match="'d/mounted' can't be restored: another file sys"):
            user.restore_cache("deps", "v1", tmp_path / "out")
        assert os.listdir(tmp_path / "out") == ["d"]
        user.puts(PATH, archive_of(("0", b"1"), ("d/mounted", None)))
        user.restore_cache("deps", "v1", tmp_path / "out")
        assert (tmp_path / "out" / "0").read_bytes() == b"1"

    def test_a_folder_that_can_not_be_moved_to_its_place(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Why, is what the system said of it, and not that it is not there."""

        def fails(*_: object, **__: object) -> None:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

        user.puts(PATH, archive_of(("d/file", b"1")))
        monkeypatch.setattr(os, "rename", fails)
        with pytest.raises(OSError, match="'d'") as caught:
            user.restore_cache("deps", "v1", tmp_path / "out")
        assert caught.value.errno == errno.EDQUOT

    def test_a_link_swapped_in_after_the_look(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        user.puts(PATH, archive_of(("d/file", b"new")))
        out, outside = tmp_path / "out", tmp_path / "outside"
        (out / "d").mkdir(parents=True)
        outside.mkdir()
        scan = Merge.scan

        def scan_then_swap(merge: Merge) -> None:
            scan(merge)
            (out / "d").rmdir()
            (out / "d").symlink_to(outside)

        monkeypatch.setattr(Merge, "scan", scan_then_swap)
        with pytest.raises(OSError, match="d"):
            user.restore_cache("deps", "v1", out)
        assert os.listdir(outside) == []

    @pytest.mark.parametrize("when", ["mkdir", "open"])
    def test_a_link_swapped_in_for_the_private_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
    ) -> None:
        """Where others can write, they can put what they like in the place of what is made."""
        user.puts(PATH, archive_of(("file", b"new"), ("d/file", b"new")))
        out, outside = tmp_path / "out", tmp_path / "outside"
        out.mkdir()
        outside.mkdir()
        call = getattr(os, when)

        def then_swap(name: str, *args: int, **options: int) -> int | None:
            made: int | None = call(name, *args, **options)
            if str(name).startswith(STAGING_PREFIX) and not (tmp_path / "aside").exists():
                (out / name).rename(tmp_path / "aside")
                (out / name).symlink_to(outside)
            return made

        monkeypatch.setattr(os, when, then_swap)
        if when == "mkdir":
            with pytest.raises(OSError):
                user.restore_cache("deps", "v1", out)
        else:
            user.restore_cache("deps", "v1", out)
            assert (out / "d/file").read_bytes() == b"new"
            assert os.listdir(tmp_path / "aside") == []
        assert os.listdir(outside) == []

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
    def test_a_private_folder_that_is_somebody_elses(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where others can write it is one that they put there. (Elsewhere, a file system that
        gives all files to one user.)"""
        user.puts(PATH, archive_of(("file", b"new")))
        (tmp_path / "out").mkdir()
        made_own = staging._made_own

        def given_away(target_fd: int) -> tuple[str, int]:
            name, fd = made_own(target_fd)
            os.fchown(fd, 12345, -1)
            return name, fd

        monkeypatch.setattr(staging, "_made_own", given_away)
        (tmp_path / "out").chmod(0o777)
        with pytest.raises(CacheRefused, match="somebody put another folder in the place"):
            user.restore_cache("deps", "v1", tmp_path / "out")
        assert not (tmp_path / "out" / "file").exists()
        (tmp_path / "out").chmod(0o755)
        user.restore_cache("deps", "v1", tmp_path / "out")
        assert (tmp_path / "out" / "file").read_bytes() == b"new"

    def test_a_new_folder_stays_where_somebody_put_something_in_it(self, tmp_path: Path) -> None:
        out = tmp_path / "new/out"

        class Archive(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                if out.exists():
                    (out / "theirs").write_bytes(b"theirs")
                return super().read(size)

        with pytest.raises(CacheRefused, match="cut short"):
            cache.restore(Archive(b"damaged"), 7, out)
        assert {path.name for path in out.iterdir()} == {"theirs"}

    def test_no_descriptor_is_left_for_the_private_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        user.puts(PATH, archive_of(("file", b"new")))
        (tmp_path / "there").mkdir()
        open_ = os.open

        def refuse(name: str, *args: int, **options: int) -> int:
            if str(name).startswith(STAGING_PREFIX):
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), name)
            return open_(name, *args, **options)

        monkeypatch.setattr(os, "open", refuse)
        for out in ("there", "new/out"):
            with pytest.raises(OSError, match="Too many open files"):
                user.restore_cache("deps", "v1", tmp_path / out)
        assert os.listdir(tmp_path / "there") == []
        assert not (tmp_path / "new").exists()

    def test_a_link_swapped_in_for_a_folder_that_is_made(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        user.puts(PATH, archive_of(("file", b"new")))
        (tmp_path / "outside").mkdir()
        mkdir = os.mkdir

        def then_swap(name: str, *args: int, **options: int) -> None:
            mkdir(name, *args, **options)
            if name == "new":
                (tmp_path / "new").rmdir()
                (tmp_path / "new").symlink_to(tmp_path / "outside")

        monkeypatch.setattr(os, "mkdir", then_swap)
        with pytest.raises(OSError):
            user.restore_cache("deps", "v1", tmp_path / "new" / "out")
        assert os.listdir(tmp_path / "outside") == []

    def test_two_at_once(self, folder: Path, tmp_path: Path) -> None:
        user.save_cache("deps", "v1", folder)
        with ThreadPoolExecutor(4) as pool:
            restores = [
                pool.submit(user.restore_cache, "deps", "v1", tmp_path / "out") for _ in range(8)
            ]
            for restore in restores:
                restore.result()
        assert os.listdir(tmp_path / "out") == ["deps"]
        assert contents(tmp_path / "out/deps").keys() == contents(folder).keys()

    @local_only
    def test_into_a_store(self, mode: str, folder: Path) -> None:
        user.save_cache("deps", "v1", folder)
        with pytest.raises(errors.NotAStore):
            user.restore_cache("deps", "v1", Path(context.store_url()) / "packs")

    def test_into_a_file(self, folder: Path, tmp_path: Path) -> None:
        user.save_cache("deps", "v1", folder)
        with pytest.raises(NotADirectoryError):
            user.restore_cache("deps", "v1", folder / "readme.txt")

    def test_a_full_disk_leaves_nothing(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        user.save_cache("deps", "v1", folder)

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(cache, "_unpack_file", fail)
        with pytest.raises(OSError, match="No space left"):
            user.restore_cache("deps", "v1", tmp_path / "new" / "out")
        assert not (tmp_path / "new").exists()


class TestCost:
    def test_the_next_version_costs_what_changed(self, tmp_path: Path) -> None:
        rnd = random.Random(3)
        table = [b"%d,%d,%s\n" % (n, rnd.randrange(10**9), b"x" * (n % 37)) for n in range(150_000)]
        root = tmp_path / "deps"
        root.mkdir()
        binary = rnd.randbytes(2 << 20)
        (root / "same.bin").write_bytes(rnd.randbytes(2 << 20))
        stored = []
        for version in ("v1", "v2"):
            (root / "table.csv").write_bytes(b"".join(table))
            (root / "lib.so").write_bytes(binary)
            user.save_cache("deps", version, root)
            stored.append(context.open_store().stats().unique_bytes)
            table[5000:5000] = [b"inserted,%d\n" % n for n in range(100)]
            binary = binary[:1000] + b"inserted" + binary[1000:]
            (root / "a").write_bytes(b"a file before all others")
        assert stored[0] > 8 << 20
        assert stored[1] - stored[0] < 1 << 20

    @pytest.mark.parametrize(
        "mode", ["local", pytest.param("cloud", marks=pytest.mark.long)], indirect=True
    )
    def test_memory_does_not_grow_with_the_folder(self, mode: str, tmp_path: Path) -> None:
        program = """
import os, resource, sys
import conducto as co
root = sys.argv[1]
os.mkdir(root)
with open(root + "/big", "wb") as file:
    for n in range(192):
        file.write(os.urandom(1 << 20))
small = root + "/warm"
os.mkdir(small)
co.data.user.save_cache("warm", "1", small)
co.data.user.restore_cache("warm", "1", root + "-out")
def anonymous():
    with open("/proc/self/status") as status:
        return next(int(l.split()[1]) for l in status if l.startswith("RssAnon")) >> 10
before = anonymous()
co.data.user.save_cache("big", "1", root)
co.data.user.restore_cache("big", "1", root + "-out")
print(anonymous() - before)
"""
        if not os.path.exists("/proc/self/status"):
            pytest.skip("needs /proc")
        run = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "root")],
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(run.stdout) < {"local": 128, "cloud": 256}[mode]


KILLED = """
import os, signal, sys
import conducto as co
from conducto.merge import Merge
Merge.scan = lambda self: os.kill(os.getpid(), signal.SIGKILL)
co.data.user.restore_cache("deps", "v1", sys.argv[1])
"""


@local_only
def test_what_a_killed_restore_left_is_not_saved(folder: Path, tmp_path: Path) -> None:
    """It would come back with each restore, and be removed by the next."""
    left = folder / "lib" / (staging.STAGING_PREFIX + "0123456789abcdef")
    (left / "deps").mkdir(parents=True)
    (left / "deps" / "x").write_bytes(b"half")
    kept = folder / (staging.STAGING_PREFIX + "notes")
    kept.write_bytes(b"1")
    user.save_cache("deps", "v2", folder)
    user.restore_cache("deps", "v2", tmp_path / "out")
    assert os.listdir(tmp_path / "out/deps/lib").count(left.name) == 0
    assert (tmp_path / "out/deps" / kept.name).read_bytes() == b"1"


def test_what_a_killed_restore_left_goes_with_the_next(folder: Path, tmp_path: Path) -> None:
    user.save_cache("deps", "v1", folder)
    target = tmp_path / "target"
    target.mkdir(mode=0o755)
    subprocess.run([sys.executable, "-c", KILLED, target], check=False)
    [left] = target.iterdir()
    assert left.name.startswith(STAGING_PREFIX)
    with staging.made(str(target)) as target_fd, staging.staged(target_fd):
        assert left not in target.iterdir()
        [used] = target.iterdir()
        user.restore_cache("deps", "v1", target)  # what another is using stays
        assert sorted(target.iterdir()) == sorted([used, target / "deps"])
    assert [*target.iterdir()] == [target / "deps"]
