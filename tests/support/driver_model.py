"""What a store should hold: a dict, beside which `driver.py` drives the store; and where the bytes
come from that it is filled with."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from zlib import crc32

from castore.errors import NameExists, NameNotFound

# Flat and nested, one the beginning of another, and what others take for patterns or options.
NAMES = [
    *(f"n/{i}" for i in range(6)),
    *(f"n/deep/er/{i}" for i in range(4)),
    *("a", "a/b", "a/b/c", "a0", "ab", "data[1].csv", "data1.csv", "x*y", "what?", "-n", " "),
    *("é", "\U0001f600/x", "x" * 480, "tab\there", "new\nline", "%41", "a+b&c=d#e", "Ä/ß"),
    *(f"data/{i}" for i in range(4)),
    *(f"pipelines/p1/data/{i}" for i in range(3)),
    "pipelines/p12/data/other",
]
PREFIXES = ["", "n/", "n/deep", "a", "a/", "a/b", "data/", "é", "nothing", "pipelines/p1"]
ANY_MODE = -1  # a door that does not say
Interval = tuple[int, int]  # ns since the epoch, both ends included


@dataclass(frozen=True, slots=True)
class Thing:
    """What a name maps to, and when it was put, as far as the driver can tell."""

    data: bytes
    mode: int
    mtime: Interval

    def fits(self, mode: int, mtime: float) -> bool:
        first, last = self.mtime
        return self.mode in (ANY_MODE, mode) and first <= mtime * 1e9 <= last

    def __repr__(self) -> str:
        return f"<{len(self.data)} bytes, crc {crc32(self.data):08x}, {self.mode:o}>"


@dataclass
class Model:
    things: dict[str, Thing] = field(default_factory=dict)
    etags: dict[bytes, str] = field(default_factory=dict)  # of equal bytes they are equal

    def copy(self) -> Model:
        return Model(dict(self.things), self.etags)

    def names(self, prefix: str = "") -> list[str]:
        return sorted((name for name in self.things if name.startswith(prefix)), key=str.encode)

    def below(self, prefix: str) -> list[str]:
        """As the folder that the prefix may be, and the name itself."""
        folder = f"{prefix}/" if prefix else ""
        return [n for n in self.names(prefix) if n == prefix or n.startswith(folder)]

    @property
    def size(self) -> int:
        return sum(len(thing.data) for thing in self.things.values())


Apply = Callable[[Model, Interval], None]


@dataclass(frozen=True, slots=True)
class Change:
    """One change of names, in words, and what it does to a model: it raises what the store does,
    and the model is as it was. `absent` is the name that a put looks for when it is called, before
    anything is stored."""

    verb: str
    name: str
    data: bytes = b""
    mode: int = 0o644
    if_absent: bool = False
    target: str = ""

    def __repr__(self) -> str:
        what = f" <{len(self.data)} bytes, {self.mode:o}>" if self.verb == "put" else ""
        to = f" -> {self.target!r}" if self.target else ""
        return f"{self.verb} {self.name!r}{to}{what}{' if absent' if self.if_absent else ''}"

    @property
    def absent(self) -> str | None:
        return self.name if self.verb == "put" and self.if_absent else None

    def apply(self, model: Model, when: Interval) -> None:
        things = model.things
        if self.verb == "put":
            if self.if_absent and self.name in things:
                raise NameExists(self.name)
            things[self.name] = Thing(self.data, self.mode, when)
        elif self.verb == "delete":
            if self.name not in things:
                raise NameNotFound(self.name)
            del things[self.name]
        elif self.verb == "delete_prefix":
            for name in model.names(self.name):
                del things[name]
        elif self.verb == "delete_tree":
            if not (doomed := model.below(self.name)):
                raise NameNotFound(self.name)
            for name in doomed:
                del things[name]
        else:
            if self.name not in things:
                raise NameNotFound(self.name)
            if self.if_absent and self.target in things:
                raise NameExists(self.target)
            if self.name == self.target:
                return
            if self.verb == "rename":
                things[self.target] = things.pop(self.name)
            else:
                things[self.target] = replace(things[self.name], mtime=when)


def now_after(began_ns: int) -> Interval:
    """Times are kept as floats of seconds by some doors: give or take that."""
    return began_ns - 1000, time.time_ns() + 1000


# ---------------------------------------------------------------- bytes


class Source:
    """Bytes as stores get them: new, seen before, shifted, edited, joined; random, text, zeros; the
    same and alike pieces again and again."""

    def __init__(self, choose: random.Random, seen: Iterable[bytes], *, bytes_max: int) -> None:
        self._choose = choose
        self._seen = [data for data in seen if data]
        self._max = bytes_max

    def make(self) -> bytes:
        choose = self._choose
        if choose.random() < 0.2:
            data = self.of_pieces()
        elif self._seen and choose.random() < 0.45:
            data = self._of_what_was_seen()
        else:
            data = self._new()
        return data[: self._max]

    def of_pieces(self) -> bytes:
        """A few, each of some chunks, and those that were made of them by little changes."""
        choose = self._choose
        pieces = [self._piece() for _ in range(choose.randrange(1, 7))]
        pieces += [self._touched(choose.choice(pieces)) for _ in range(choose.randrange(1, 7))]
        return b"".join(choose.choice(pieces) for _ in range(choose.randrange(2, 25)))

    def _piece(self) -> bytes:
        choose = self._choose
        size = int(2 ** choose.uniform(11, 15))
        kind = choose.randrange(8)
        if kind == 0 and self._seen:
            data = choose.choice(self._seen)
            at = choose.randrange(len(data))
            return data[at : at + size]
        if kind == 1:
            return bytes(size)
        return choose.randbytes(size) if kind == 2 else choose.randbytes(size // 2).hex().encode()

    def _touched(self, data: bytes) -> bytes:
        """Each chunk of it resembles one of it."""
        choose, touched = self._choose, bytearray(data)
        step = choose.randrange(300, 5000)
        for at in range(choose.randrange(step), len(touched), step):
            touched[at] ^= choose.randrange(1, 256)
        if choose.random() < 0.3:
            at = choose.randrange(len(touched) + 1)
            touched[at : at + choose.randrange(200)] = choose.randbytes(choose.randrange(200))
        return bytes(touched)

    def _size(self) -> int:
        choose = self._choose
        if choose.random() < 0.15:
            return choose.choice([0, 1, 255, 256, 703, 704, 4095, 4096, 4097, 11264, 65536, 65537])
        return int(2 ** choose.uniform(4, 18 if choose.random() < 0.9 else 21))

    def _new(self) -> bytes:
        choose, size = self._choose, self._size()
        kind = choose.randrange(6)
        if kind < 2:
            return choose.randbytes(size)
        if kind == 2:
            words = [choose.randbytes(choose.randrange(1, 9)).hex() for _ in range(200)]
            text = " ".join(choose.choice(words) for _ in range(size // 8 + 1))
            return text.encode()[:size]
        if kind == 3:
            return bytes([choose.choice([0, 0, 7, 255])]) * size
        if kind == 4:
            record = choose.randbytes(choose.randrange(1, 200))
            return (record * (size // len(record) + 1))[:size]
        return b"".join(b"%d,%d\n" % (i, choose.randrange(1000)) for i in range(size // 9))

    def _of_what_was_seen(self) -> bytes:
        choose = self._choose
        data, other = choose.choice(self._seen), choose.choice(self._seen)
        kind = choose.randrange(6)
        if kind == 0:
            return data
        if kind == 1:
            return choose.randbytes(choose.randrange(1, 40)) + data
        if kind == 2:
            edited = bytearray(data)
            for _ in range(choose.randrange(1, 6)):
                edited[choose.randrange(len(edited))] ^= 1 << choose.randrange(8)
            return bytes(edited)
        if kind == 3:
            return data + other
        if kind == 4:
            at = choose.randrange(len(data) + 1)
            return data[:at] + choose.randbytes(choose.randrange(1, 3000)) + data[at:]
        begin, end = sorted((choose.randrange(len(data) + 1), choose.randrange(len(data) + 1)))
        return data[begin:end] + other[begin:end]
