"""What is done to a store and to a dict alike: names, contents, and changes of names, as hypothesis
strategies."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable
from typing import Any, NamedTuple
from zlib import crc32

from hypothesis import strategies as st

from castore.errors import NameExists, NameNotFound

NAMES = ["a", "a/b", "a/b/c", "a0", "b", "é", "\U0001f600", "x" * 480]
PREFIXES = ["", "a", "a/", "a/b", "é", "nothing", "x" * 400]
# What objects are made of: pieces that come again in other objects, at other places.
PIECES = [random.Random(i).randbytes(n) for i, n in enumerate([3000, 9000, 20_000, 40_000])]
PIECES += [b"text that repeats itself\n" * 900, bytes(30_000), b"\x07" * 11264, b"!"]


class Content(bytes):
    """With a repr that can be printed."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes, crc {crc32(self):08x}>"


def joined(pieces: list[int]) -> Content:
    return Content(b"".join(PIECES[i] for i in pieces))


def edited(piece: int, at: int, edit: bytes) -> Content:
    return Content(PIECES[piece][:at] + edit + PIECES[piece][at:])


pieces = st.integers(0, len(PIECES) - 1)
names = st.sampled_from(NAMES)
prefixes = st.sampled_from(PREFIXES)
contents = st.one_of(
    st.sampled_from([0, 1, 4096, 4097]).map(lambda size: Content(bytes(size))),
    st.binary(max_size=300).map(Content),
    st.builds(joined, st.lists(pieces, min_size=1, max_size=4)),
    st.builds(edited, pieces, st.integers(0, 40_000), st.binary(min_size=1, max_size=20)),
)
offsets = st.one_of(st.integers(0, 130_000), st.sampled_from([4096, 4097, 11264]))
byte_ranges = st.tuples(offsets, offsets).map(lambda pair: tuple(sorted(pair)))
maybe_absent = st.sampled_from([False, False, False, True])

Model = dict[str, bytes]


class Failure(Exception):
    """What a `with` block raises on purpose."""


class Blocks:
    """A source of short and long blocks."""

    def __init__(self, data: bytes, block_bytes: int) -> None:
        self.file, self.block_bytes = io.BytesIO(data), block_bytes

    def read(self, size: int, /) -> bytes:
        return self.file.read(min(size, self.block_bytes))


class Change(NamedTuple):
    """A change of names, on a Store or a Transaction, and the same on the model. `absent` is the
    name that a put looks for when it is called, before anything is stored."""

    on_store: Callable[[Any, str], Any]
    on_model: Callable[[Model], None]
    absent: str | None = None


def put_change(name: str, data: bytes, how: str, if_absent: bool) -> Change:
    def on_model(model: Model) -> None:
        if if_absent and name in model:
            raise NameExists(name)
        model[name] = data

    def on_store(target: Any, folder: str) -> Any:
        if how == "bytes":
            return target.puts(name, data, if_absent=if_absent)
        if how == "stream":
            return target.put(name, Blocks(data, 7777), if_absent=if_absent)
        path = os.path.join(folder, "source")
        with open(path, "wb") as file:
            file.write(data)
        return target.put(name, path, if_absent=if_absent)

    return Change(on_store, on_model, name if if_absent else None)


def delete_change(name: str) -> Change:
    def on_model(model: Model) -> None:
        if name not in model:
            raise NameNotFound(name)
        del model[name]

    return Change(lambda target, _: target.delete(name), on_model)


def delete_prefix_change(prefix: str) -> Change:
    def on_model(model: Model) -> None:
        for name in [name for name in model if name.startswith(prefix)]:
            del model[name]

    return Change(lambda target, _: target.delete_prefix(prefix, unbounded=True), on_model)


def copy_change(source: str, target: str, if_absent: bool, rename: bool) -> Change:
    def on_model(model: Model) -> None:
        if source not in model:
            raise NameNotFound(source)
        if if_absent and target in model:
            raise NameExists(target)
        data = model.pop(source) if rename else model[source]
        model[target] = data

    def on_store(on: Any, _: str) -> Any:
        verb = on.rename if rename else on.copy
        return verb(source, target, if_absent=if_absent)

    return Change(on_store, on_model)


changes = st.one_of(
    st.builds(
        put_change, names, contents, st.sampled_from(["bytes", "stream", "path"]), maybe_absent
    ),
    st.builds(
        put_change, names, contents, st.sampled_from(["bytes", "stream", "path"]), maybe_absent
    ),
    st.builds(delete_change, names),
    st.builds(delete_prefix_change, prefixes),
    st.builds(copy_change, names, names, maybe_absent, st.booleans()),
)
