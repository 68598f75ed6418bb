"""Sources that change while they are read, and some that are no plain files."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import castore
from castore.errors import SourceChanged
from castore.stream import sourcefile
from castore.testing.contents import Told, noise
from castore.testing.kind import Kind


class Overwriting(Told):
    """Overwrites the source in place when some of it was read, so many times."""

    def __init__(self, path: Path, times: int) -> None:
        super().__init__()
        self.path, self.left = path, times

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        if self.left:
            self.left -= 1
            status = self.path.stat()
            with open(self.path, "r+b") as file:
                file.write(b"new" * (status.st_size // 3))
            os.utime(self.path, ns=(status.st_atime_ns, status.st_mtime_ns))


class Truncating(Told):
    """Truncates the source once some of it was read."""

    def __init__(self, path: Path, size: int, at: str) -> None:
        super().__init__()
        self.path, self.to, self.at = path, size, at

    def set_size(self, size: int) -> None:
        if self.at == "start":
            os.truncate(self.path, self.to)

    def relative_update(self, inc: int = 1) -> None:
        if self.at == "middle" and not self.steps:
            os.truncate(self.path, self.to)
        super().relative_update(inc)


class ChangingSources(Kind):
    def test_a_source_that_is_written_to_meanwhile_is_stored_consistently(
        self, store: castore.Store, tmp_path: Path
    ) -> None:
        """Or not at all: a mix that never was is not."""
        path = tmp_path / "source"
        path.write_bytes(bytes(8) + noise(4 << 20) + bytes(8))
        stop = threading.Event()

        def scribble() -> None:
            """A number at its start, then the same at its end: that there is never a higher one."""
            number = 0
            with open(path, "r+b") as file:
                while not stop.is_set():
                    number += 1
                    for at in (0, 8 + (4 << 20)):
                        os.pwrite(file.fileno(), number.to_bytes(8), at)

        thread = threading.Thread(target=scribble)
        thread.start()
        try:
            for i in range(3):
                with contextlib.suppress(SourceChanged):
                    store.put(f"{i}", path)
        finally:
            stop.set()
            thread.join()
        for name in store.names():  # the thread may have had to wait for so long
            first, last = store.gets_many(name, [(0, 8), (8 + (4 << 20), 16 + (4 << 20))])
            assert int.from_bytes(first) - int.from_bytes(last) in (0, 1)
        store.put("still", path)
        assert store.gets("still") == path.read_bytes()
        assert store.check(True).exit_code <= 1

    @pytest.mark.parametrize("size", [3 << 20, 30 << 20])
    def test_a_source_that_is_overwritten_once_is_read_again(
        self, store: castore.Store, tmp_path: Path, size: int
    ) -> None:
        """Its size and time are what they were: what can't be set back is the time of
        the change."""
        path = tmp_path / "source"
        path.write_bytes(noise(size))
        progress = Overwriting(path, 1)
        store.put("name", path, progress=progress)
        assert store.gets("name") == path.read_bytes() == b"new" * (size // 3)
        assert (sum(progress.steps), min(progress.steps) > 0) == (size, True), "it never goes back"
        assert store.check(True).exit_code <= 1

    def test_a_source_that_changes_each_time_it_is_read(
        self, store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "source"
        path.write_bytes(noise(3 << 20))
        read, readings = sourcefile._read, 0

        def read_and_write(*args: Any) -> Any:
            nonlocal readings
            readings += 1
            found = read(*args)
            path.write_bytes(noise(3 << 20, readings))
            return found

        monkeypatch.setattr(sourcefile, "_read", read_and_write)
        with pytest.raises(SourceChanged, match="was changed each time it was read"):
            store.put("name", path)
        assert readings > 1
        assert not list(store.names())
        assert store.check(True).exit_code <= 1

    def test_a_change_within_a_tick_of_the_clock_is_seen(
        self, store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its times tell nothing then: a second reading does."""
        monkeypatch.setattr("castore.stream.sourcefile.is_young", lambda _: True)
        monkeypatch.setattr("castore.stream.sourcefile._is_same", lambda *_: True)
        path = tmp_path / "source"
        path.write_bytes(noise(3 << 20))
        store.put("name", path, progress=Overwriting(path, 1))
        assert store.gets("name") == path.read_bytes() == b"new" * (1 << 20)

    def test_a_log_that_only_grows_is_stored_as_it_was(
        self, store: castore.Store, tmp_path: Path
    ) -> None:
        path = tmp_path / "log"
        path.write_bytes(noise(5 << 20))
        stop = threading.Event()

        def grow() -> None:
            with open(path, "ab", buffering=0) as file:
                while not stop.wait(0.0005):  # or it outgrows a kind of store that is slow
                    file.write(b"line\n" * 100)

        thread = threading.Thread(target=grow)
        thread.start()
        try:
            sizes = [store.put(f"{i}", path).size for i in range(5)]
        finally:
            stop.set()
            thread.join()
        for i, size in enumerate(sizes):
            assert size >= 5 << 20
            assert store.gets(f"{i}") == path.read_bytes()[:size]

    def test_a_short_log_that_grows_whenever_it_is_read_is_stored_as_it_was_at_first(
        self, store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "log"
        path.write_bytes(b"first\n")
        read = sourcefile._read

        def read_and_grow(*args: Any) -> Any:
            found = read(*args)
            with open(path, "ab") as file:
                file.write(b"more\n")
            return found

        monkeypatch.setattr(sourcefile, "_read", read_and_grow)
        assert store.put("name", path).size == 6
        assert store.gets("name") == b"first\n"

    def test_a_source_that_is_read_again_has_the_mode_that_it_has_by_then(
        self, store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "source"
        path.write_bytes(b"public")
        path.chmod(0o644)
        steps: list[Callable[[], object]] = [
            lambda: path.chmod(0o600),
            lambda: path.write_bytes(b"secret"),
        ]
        read = sourcefile._read

        def read_and_change(*args: Any) -> Any:
            found = read(*args)
            while steps:
                steps.pop()()
            return found

        monkeypatch.setattr(sourcefile, "_read", read_and_change)
        assert store.put("name", path).mode == 0o600
        assert store.gets("name") == b"secret"

    @pytest.mark.parametrize("at", ["start", "middle"])
    @pytest.mark.parametrize(
        "left",
        [0, 1, 4096, 4 << 20, (5 << 20) + 1, (6 << 20) - 5000, (6 << 20) - 100, (6 << 20) - 1],
    )
    def test_a_source_that_is_truncated_meanwhile(
        self, store: castore.Store, tmp_path: Path, at: str, left: int
    ) -> None:
        """By less than a page there isn't even a fault: the rest of the page reads as zeros."""
        path = tmp_path / "source"
        path.write_bytes(noise(6 << 20))
        store.puts("name", b"old")
        with pytest.raises(
            SourceChanged, match=re.escape(f"{path} was cut short of its 6,291,456 b")
        ):
            store.put("name", path, progress=Truncating(path, left, at))
        assert store.gets("name") == b"old"

    def test_how_large_a_pipe_is_is_not_told_before_it_was_read(
        self, store: castore.Store, tmp_path: Path
    ) -> None:
        path, told = tmp_path / "pipe", Told()
        os.mkfifo(path)
        thread = threading.Thread(target=path.write_bytes, args=(noise(100_000),))
        thread.start()
        store.put("name", path, progress=told)
        thread.join()
        assert (told.size, sum(told.steps)) == (None, 100_000)

    def test_a_source_that_grows_meanwhile(self, store: castore.Store, tmp_path: Path) -> None:
        path = tmp_path / "source"
        path.write_bytes(noise(5 << 20))
        store.put("name", path, progress=Truncating(path, 9 << 20, "middle"))
        assert store.gets("name") == noise(5 << 20)
