"""What the demo stages: real files, as they are and with a few edits, each as one tar."""

from __future__ import annotations

import io
import os
import platform
import random
import stat
import sysconfig
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

from castore.errors import CastoreError
from castore.wording import counted

EDITED_SHARE = 0.03
REPLACED_SHARE = 0.005
SEED = 1


class DemoError(CastoreError):
    """The demo can't run here, or what it read back was not what it had put."""


@dataclass(frozen=True, slots=True)
class CorpusFile:
    path: str
    inner: str
    size: int


@dataclass(frozen=True, slots=True)
class Corpus:
    """The real files that a demo stages; `note` says what was left out of them."""

    label: str
    note: str
    files: list[CorpusFile]
    size: int


@dataclass(frozen=True, slots=True)
class Edits:
    """What happens to the files between yesterday and today."""

    inserted: dict[str, tuple[int, bytes]]  # by inner path: (offset, new bytes)
    removed: set[str]
    added: dict[str, bytes]


def choose_corpus(source: str | None, *, bytes_max: int) -> Corpus:
    """The files to stage: regular files of up to `bytes_max` together, in a fixed order."""
    folder = sysconfig.get_path("stdlib") if source is None else source
    if source is None:
        label = f"the standard library of Python {platform.python_version()}"
        found = _files_below(folder, _is_not_library)
        notes = ["without site-packages, __pycache__ and build files"]
    elif os.path.isfile(source):
        label = source
        found = iter([CorpusFile(source, os.path.basename(source), os.path.getsize(source))])
        notes = []
    else:
        os.stat(source)  # a missing path is said to be missing, not empty
        label = source
        found = _files_below(folder, lambda inner: False)
        notes = []
    files: list[CorpusFile] = []
    size = left_out = 0
    for file in found:
        if size + file.size > bytes_max:
            left_out += 1
            continue
        files.append(file)
        size += file.size
    if left_out:
        notes.append(
            f"{counted(left_out, 'file')} left out to stay below {bytes_max / (1 << 20):.0f} MiB"
        )
    if size == 0:
        where = (
            f"this Python's standard library is not at {folder}"
            if source is None
            else (f"{source} holds no readable bytes in files of at most {bytes_max >> 20} MiB")
        )
        raise DemoError(f"{where}: give the demo a folder of yours: castore demo PATH")
    return Corpus(label, "; ".join(notes), files, size)


def plan_edits(corpus: Corpus) -> Edits:
    """About 3 % of the files get a line in the middle or at the end, 0.5 % go, as many come."""
    chance = random.Random(SEED)
    shuffled = chance.sample(corpus.files, len(corpus.files))
    edited_count = max(1, round(EDITED_SHARE * len(shuffled)))
    replaced_count = round(REPLACED_SHARE * len(shuffled))
    removed = {file.inner for file in shuffled[:replaced_count]}
    inserted: dict[str, tuple[int, bytes]] = {}
    added: dict[str, bytes] = {}
    for file in shuffled[replaced_count:]:
        if len(inserted) >= edited_count and len(added) >= replaced_count:
            break
        if not _is_text(file):
            continue
        if len(inserted) < edited_count:
            number = len(inserted)
            offset = _line_break(file, file.size // 2) if number % 2 else file.size
            inserted[file.inner] = (offset, b"# changed between the two: line %d\n" % number)
        elif file.size < 1 << 20:
            added[file.inner + ".new"] = _shuffled_lines(file, chance)
    if not inserted:  # nothing but binary files: a few bytes in the middle of one of them
        largest = max(corpus.files, key=lambda file: file.size)
        removed.discard(largest.inner)
        inserted[largest.inner] = (largest.size // 2, b"changed between the two")
    return Edits(inserted, removed, added)


def write_tar(path: str, corpus: Corpus, edits: Edits | None) -> None:
    """The corpus as an uncompressed tar at `path`, with `edits` made to it."""
    inserted = edits.inserted if edits else {}
    removed = edits.removed if edits else set()
    with open(path, "wb") as raw:
        with tarfile.open(fileobj=raw, mode="w") as tar:
            for file in corpus.files:
                if file.inner in removed:
                    continue
                try:
                    _add_file(tar, file, *inserted.get(file.inner, (0, b"")))
                except OSError as error:
                    cut_short = error.errno is None  # as tarfile says it
                    if not cut_short and not isinstance(error, FileNotFoundError):
                        raise
                    raise DemoError(
                        f"{file.path} changed while it was packed: give the demo a folder in "
                        "which nothing changes"
                    ) from error
            for inner, data in edits.added.items() if edits else ():
                tar.addfile(_tar_entry(inner, len(data), 0), io.BytesIO(data))
        os.fsync(raw.fileno())


def _add_file(tar: tarfile.TarFile, file: CorpusFile, offset: int, text: bytes) -> None:
    with open(file.path, "rb") as content:
        status = os.fstat(content.fileno())
        entry = _tar_entry(file.inner, file.size, int(status.st_mtime))
        if text:
            entry.size += len(text)
            entry.mtime += 86_400
            tar.addfile(entry, _Spliced(content, offset, text))
        else:
            tar.addfile(entry, content)


def _files_below(folder: str, leave_out: Callable[[str], bool]) -> Iterator[CorpusFile]:
    for parent, subfolders, names in os.walk(folder):
        inner_parent = os.path.relpath(parent, folder)
        base = "" if inner_parent == "." else inner_parent + "/"
        subfolders[:] = sorted(name for name in subfolders if not leave_out(base + name))
        for name in sorted(names):
            path = os.path.join(parent, name)
            try:
                status = os.lstat(path)
            except FileNotFoundError:  # it went meanwhile
                continue
            if stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK):
                yield CorpusFile(path, base + name, status.st_size)


def _is_not_library(inner: str) -> bool:
    name = inner.rsplit("/", 1)[-1]
    return name in ("site-packages", "dist-packages", "__pycache__") or inner.startswith("config-")


def _is_text(file: CorpusFile) -> bool:
    if file.size == 0:
        return False
    with open(file.path, "rb") as content:
        head = content.read(4096)
    return b"\0" not in head and b"\n" in head


def _line_break(file: CorpusFile, offset: int) -> int:
    """The offset after the first line break at or after `offset`, or the file's size."""
    with open(file.path, "rb") as content:
        content.seek(offset)
        rest = content.read(1 << 16)
    line_break = rest.find(b"\n")
    return offset + line_break + 1 if line_break >= 0 else file.size


def _shuffled_lines(file: CorpusFile, chance: random.Random) -> bytes:
    """New text that compresses like real text, since that is what it is made of."""
    with open(file.path, "rb") as content:
        lines = content.read().splitlines(keepends=True)
    chance.shuffle(lines)
    return b"".join(lines)


def _tar_entry(inner: str, size: int, mtime: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(inner)
    entry.size, entry.mtime = size, mtime
    return entry


class _Spliced(io.RawIOBase):
    """A file with `text` inserted at `offset`, as one stream."""

    def __init__(self, content: IO[bytes], offset: int, text: bytes) -> None:
        self._content = content
        self._before = offset
        self._text = io.BytesIO(text)

    def read(self, size: int = -1) -> bytes:
        block = self._content.read(min(size, self._before))
        self._before -= len(block)
        if self._before == 0:
            block += self._text.read(size - len(block))
            block += self._content.read(size - len(block))
        return block
