"""The programs we are compared with, each behind the same four verbs: init, put, put again, get.

Every adapter only builds commands; `measure.run` times them. Each peer runs as Debian ships it,
with its own defaults for chunking, compression and threads, because that is what a user would
get:

- restic always encrypts (there is no way to turn it off): its times include AES and a key
  derivation of about half a second per command. `--force` on a second backup makes it read the
  file again, as a store that is handed a stream must; by default it would trust the unchanged
  mtime and read nothing.
- borg runs with `--encryption=none` and its default lz4; `--files-cache=disabled` is its
  `--force`.
- casync uses a `.castr` store and a blob index, at its default zstd and 64 KiB average chunks.
- zstd and cp store nothing twice and find nothing again: they are the floor, not peers. Their
  output is synced to disk, as castore's is; restic, borg and castore sync what they write by
  themselves, casync does not.

None of them reads a byte range of a stored file short of a mount, so the range rows have no
peers.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import castore_command, castore_environment


@dataclass(frozen=True, slots=True)
class Command:
    """One command to time, and where it leaves its output."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str | None = None
    output: Path | None = None


class Contender:
    """One program with a place of its own; every verb returns a command that has not been run."""

    name = ""
    program = ""
    stores = True  # False: it has nothing to find again on a second put

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.puts = 0
        self.env: Mapping[str, str] = {**os.environ, "LC_ALL": "C.UTF-8"}

    @classmethod
    def installed(cls) -> bool:
        return shutil.which(cls.program) is not None

    @classmethod
    def version(cls) -> str:
        return _first_line([cls.program, "--version"])

    def renew(self) -> None:
        """Start with an empty store; not timed."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        self.puts = 0

    def put(self, source: Path) -> Command:
        raise NotImplementedError

    def put_again(self, source: Path) -> Command:
        return self.put(source)

    def get(self, target: Path, source: Path) -> Command:
        """Restore what the last put stored into the empty directory `target`."""
        raise NotImplementedError

    def stored_bytes(self) -> int:
        """Bytes allocated on disk below the store."""
        return sum(
            os.lstat(os.path.join(folder, name)).st_blocks * 512
            for folder, _, names in os.walk(self.directory)
            for name in names
        )


class Castore(Contender):
    """The `castore` command: a fresh store is made by the put that is timed."""

    name = "castore"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.env = castore_environment()

    @classmethod
    def installed(cls) -> bool:
        return True

    @classmethod
    def version(cls) -> str:
        return "this tree"

    def prime(self) -> None:
        """Run each verb once, so that its modules are compiled before it is timed."""
        self.renew()
        source = self.directory / "primer"
        source.write_bytes(bytes(range(256)) * 1024)
        for command in (self.put(source), self.get(self.directory, source), self.cat(0, 1)):
            subprocess.run(command.argv, env=command.env, check=True, capture_output=True)
        shutil.rmtree(self.directory)

    def put(self, source: Path) -> Command:
        self.puts += 1
        return self._command("put", str(source), f"put-{self.puts}")

    def cat(self, begin: int, end: int) -> Command:
        return self._command("cat", "--range", f"{begin}:{end}", "put-1")

    def get(self, target: Path, source: Path) -> Command:
        output = target / source.name
        command = self._command("get", "put-1", str(output))
        return Command(command.argv, self.env, output=output)

    def _command(self, *arguments: str) -> Command:
        store = str(self.directory / "store")
        return Command([*castore_command(), "-r", store, *arguments], self.env)


class Restic(Contender):
    name = "restic"
    program = "restic"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.env = {
            **self.env,
            "RESTIC_PASSWORD": "bench",
            "RESTIC_REPOSITORY": str(directory / "repository"),
            "RESTIC_CACHE_DIR": str(directory / "cache"),
            "RESTIC_PROGRESS_FPS": "0.1",
        }

    @classmethod
    def version(cls) -> str:
        return _first_line([cls.program, "version"])

    def renew(self) -> None:
        super().renew()
        _quietly(["restic", "init", "--quiet"], self.env)

    def put(self, source: Path) -> Command:
        argv = ["restic", "backup", "--quiet", "--force", source.name]
        return Command(argv, self.env, cwd=str(source.parent))

    def get(self, target: Path, source: Path) -> Command:
        argv = ["restic", "restore", "--quiet", "latest", "--target", str(target)]
        return Command(argv, self.env, output=target / source.name)


class Borg(Contender):
    name = "borg"
    program = "borg"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.env = {
            **self.env,
            "BORG_BASE_DIR": str(directory / "base"),
            "BORG_REPO": str(directory / "repository"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }

    def renew(self) -> None:
        super().renew()
        (self.directory / "base").mkdir()
        _quietly(["borg", "init", "--encryption=none"], self.env)

    def put(self, source: Path) -> Command:
        self.puts += 1
        argv = ["borg", "create", "--files-cache=disabled", f"::put-{self.puts}", source.name]
        return Command(argv, self.env, cwd=str(source.parent))

    def get(self, target: Path, source: Path) -> Command:
        argv = ["borg", "extract", "::put-1"]
        return Command(argv, self.env, cwd=str(target), output=target / source.name)


class Casync(Contender):
    name = "casync"
    program = "casync"

    def put(self, source: Path) -> Command:
        self.puts += 1
        argv = ["casync", "make", self._store(), self._index(self.puts), str(source)]
        return Command(argv, self.env)

    def get(self, target: Path, source: Path) -> Command:
        output = target / source.name
        argv = ["casync", "extract", self._store(), self._index(1), str(output)]
        return Command(argv, self.env, output=output)

    def _store(self) -> str:
        return f"--store={self.directory / 'store.castr'}"

    def _index(self, put: int) -> str:
        return str(self.directory / f"put-{put}.caibx")


class Zstd(Contender):
    """`zstd -1 -T2 FILE`, then `sync` of the output; `zstd -d`, synced only if castore syncs."""

    name = "zstd"
    program = "zstd"
    stores = False

    def __init__(self, directory: Path, *, sync_get: bool = False) -> None:
        super().__init__(directory)
        self.sync_get = sync_get

    def put(self, source: Path) -> Command:
        output = self.directory / "file.zst"
        compress = ["zstd", "-1", "-T2", "-q", "-f", str(source), "-o", str(output)]
        return Command(_then_sync(compress, output), self.env)

    def get(self, target: Path, source: Path) -> Command:
        output = target / source.name
        decompress = ["zstd", "-d", "-q", "-f", str(self.directory / "file.zst"), "-o", str(output)]
        argv = _then_sync(decompress, output) if self.sync_get else decompress
        return Command(argv, self.env, output=output)


class Copy(Contender):
    """`cp`, and `sync` of the copy; as a get, synced only if castore syncs."""

    name = "cp"
    program = "cp"
    stores = False

    def __init__(self, directory: Path, *, sync_get: bool = False) -> None:
        super().__init__(directory)
        self.sync_get = sync_get

    def put(self, source: Path) -> Command:
        output = self.directory / "copy"
        # No reflinks: a clone of extents would not be a copy of bytes.
        return Command(_then_sync(_cp(source, output), output), self.env)

    def get(self, target: Path, source: Path) -> Command:
        output = target / source.name
        copy = _cp(self.directory / "copy", output)
        argv = _then_sync(copy, output) if self.sync_get else copy
        return Command(argv, self.env, output=output)


class PlainRead(Contender):
    """`cat FILE` to nowhere: reading the bytes, which a put of stored bytes can't avoid."""

    name = "cat"
    program = "cat"
    stores = False

    def put(self, source: Path) -> Command:
        return Command(["cat", str(source)], self.env)


PEERS: tuple[type[Contender], ...] = (Restic, Borg, Casync)


def present(kinds: Sequence[type[Contender]]) -> list[type[Contender]]:
    """The contenders that are installed; a line for each that is not."""
    found = []
    for kind in kinds:
        if kind.installed():
            found.append(kind)
        else:
            print(f"{kind.name}: not installed, skipped")
    return found


def versions(kinds: Sequence[type[Contender]]) -> dict[str, str]:
    return {kind.name: kind.version() for kind in kinds if kind.installed()}


def _cp(source: Path, target: Path) -> list[str]:
    return ["cp", "--reflink=never", str(source), str(target)]


def _then_sync(argv: Sequence[str], output: Path) -> list[str]:
    return ["sh", "-c", f"{shlex.join(argv)} && sync {shlex.quote(str(output))}"]


def _quietly(argv: Sequence[str], env: Mapping[str, str]) -> None:
    subprocess.run(argv, env=env, check=True, capture_output=True)


def _first_line(argv: Sequence[str]) -> str:
    finished = subprocess.run(argv, capture_output=True, text=True, check=False)
    lines = (finished.stdout or finished.stderr).splitlines()
    return lines[0].strip() if lines else "unknown"
