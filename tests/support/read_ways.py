"""Every way to read an object, and what may come of it."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import castore
from castore.errors import ChunkCorrupt, FormatError


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def text(size: int, seed: int) -> bytes:
    rng = random.Random(seed)
    return b"".join(b"%d bottles of beer\n" % rng.randrange(999) for _ in range(size // 15))[:size]


CONTENTS = {
    "noise": noise(60_000, 1),
    "text": text(60_000, 2),
    "both": text(9_000, 3) + noise(9_000, 4) + text(9_000, 5),
    "again": noise(60_000, 1)[5_000:] + b"tail",
    "inline": text(3000, 6),
    "empty": b"",
}


RANGES = {name: [(0, 1), (len(data) // 2, len(data) // 2 + 999)] for name, data in CONTENTS.items()}


def packs_of(root: Path | str) -> list[Path]:
    return sorted(Path(root).glob("packs/*/*.pack"))


def ways_to_read(store: castore.Store, name: str, folder: Path) -> Iterator[Callable[[], bytes]]:
    """Each gives the whole object, or pieces of it side by side with what they should be."""
    data = CONTENTS[name]

    def ranges() -> bytes:
        parts = store.gets_many(name, RANGES[name])
        assert parts == [data[begin:end] for begin, end in RANGES[name]], "wrong bytes"
        return data

    def file_object() -> bytes:
        with store.open(name) as file:
            return file.read()

    def small_reads() -> bytes:
        with store.open(name) as file:
            return b"".join(iter(lambda: file.read1(5000), b""))

    def stream() -> bytes:
        target = io.BytesIO()
        store.get(name, target)
        return target.getvalue()

    def file() -> bytes:
        store.get(name, folder / "target")
        return (folder / "target").read_bytes()

    yield from [lambda: store.gets(name), ranges, file_object, small_reads, stream, file]


def read_everything(
    store: castore.Store, folder: Path, also: tuple[type[Exception], ...] = ()
) -> Counter[str]:
    """How often each outcome came out of reading every object in every way."""
    seen: Counter[str] = Counter()
    for name, data in CONTENTS.items():
        for read in ways_to_read(store, name, folder):
            try:
                assert read() == data, f"wrong bytes of {name}"
                seen["right"] += 1
            except (ChunkCorrupt, FormatError, *also) as error:
                seen[type(error).__name__] += 1
    return seen
