"""The bytes that the benches store.

`write_real_tar`: an uncompressed tar of what this Python has installed (its standard library and
its site-packages, without caches; sorted, with fixed times and owners), cut at the size asked
for. It is real input: text, JSON, machine code, a few files that are compressed already, and the
duplicates that such trees have. Where the size asked for is larger than the tree (some hundred
MB), the tar follows again with 16 random bytes in every 4 KiB of it: no chunk of such a copy
equals one of the original, and it compresses by a fraction of a percent less. The bytes depend
only on what is installed.

`write_random`: bytes of a seeded generator, which nothing compresses and nothing finds again.

`edit`: makes a file its own next version, in which every chunk is another one.
"""

from __future__ import annotations

import io
import os
import random
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

BLOCK_BYTES = 1 << 20
EDIT_EVERY_BYTES = 4096
EDIT_BYTES = 16


def write_real_tar(path: Path, size: int) -> int:
    """Write `size` bytes of the tar; returns how many of them are the tree's first copy."""
    with open(path, "wb") as target:
        sink = _Capped(target, size)
        _write_tree(sink)
        distinct = sink.written
    copy = 0
    with open(path, "r+b") as target:
        while (written := target.seek(0, os.SEEK_END)) < size:
            copy += 1
            _append_edited(target, min(distinct, size - written), random.Random(copy))
    return distinct


def write_random(path: Path, size: int, seed: int) -> None:
    with open(path, "wb") as target:
        for block in random_blocks(size, seed):
            target.write(block)


def random_blocks(size: int, seed: int) -> Iterator[bytes]:
    """`size` bytes of a seeded generator, in blocks of up to 1 MiB."""
    source = random.Random(seed)
    for begin in range(0, size, BLOCK_BYTES):
        yield source.randbytes(min(BLOCK_BYTES, size - begin))


def edit(path: Path, every: int, seed: int) -> None:
    """Write 16 random bytes into the file at every so many."""
    edits = random.Random(seed)
    size = path.stat().st_size
    with open(path, "r+b") as target:
        for at in range(0, size - EDIT_BYTES, every):
            target.seek(at)
            target.write(edits.randbytes(EDIT_BYTES))


class _Full(Exception):
    """The file has all the bytes that were asked for."""


class _Capped(io.RawIOBase):
    """A sink that takes the first `size` bytes and then raises `_Full`."""

    def __init__(self, target: BinaryIO, size: int) -> None:
        super().__init__()
        self._target = target
        self._size = size
        self.written = 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        room = self._size - self.written
        self.written += self._target.write(memoryview(data)[:room])
        if len(data) > room:
            raise _Full
        return len(data)


def _write_tree(sink: _Capped) -> None:
    try:
        with tarfile.open(fileobj=sink, mode="w|", format=tarfile.GNU_FORMAT) as archive:
            for root in _roots():
                for file in _files(root):
                    _add(archive, file, str(file.relative_to(root)))
    except _Full:
        return


def _add(archive: tarfile.TarFile, file: Path, name: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = file.stat().st_size
    with open(file, "rb") as source:
        archive.addfile(entry, source)


def _roots() -> list[Path]:
    """Where this Python keeps its library and its packages, each tree once."""
    known = sysconfig.get_paths()
    roots: list[Path] = []
    for key in ("stdlib", "purelib", "platlib"):
        root = Path(known[key]).resolve()
        if root.is_dir() and root not in roots:
            roots.append(root)
    return roots


def _files(root: Path) -> Iterator[Path]:
    nested = {str(other) for other in _roots() if other != root}
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(
            name
            for name in folders
            if name != "__pycache__" and os.path.join(folder, name) not in nested
        )
        for name in sorted(names):
            file = Path(folder, name)
            if file.is_file() and not file.is_symlink():
                yield file


def _append_edited(target: BinaryIO, size: int, edits: random.Random) -> None:
    """Append the file's first `size` bytes to it, edited all over."""
    for begin in range(0, size, BLOCK_BYTES):
        target.seek(begin)
        block = bytearray(target.read(min(BLOCK_BYTES, size - begin)))
        for at in range(0, len(block), EDIT_EVERY_BYTES):
            end = min(at + EDIT_BYTES, len(block))
            block[at:end] = edits.randbytes(end - at)
        target.seek(0, os.SEEK_END)
        target.write(block)
