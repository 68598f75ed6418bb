"""ls, stat, du and stats: what the store holds."""

from __future__ import annotations

import stat as file_mode
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from castore.cli import exits
from castore.cli.exits import Failure
from castore.cli.leftout import one_by_one
from castore.cli.names import naming_folders
from castore.cli.output import (
    human_ratio,
    human_size,
    json_line,
    object_document,
    print_json,
    print_line,
    print_table,
    ratio_of,
)
from castore.cli.salvage import read_all
from castore.cli.stores import open_to_read
from castore.errors import NameNotFound
from castore.model import ObjectInfo, StoreStats, sort_key
from castore.wording import counted

if TYPE_CHECKING:
    from castore.store import Store


class Sum:
    """What the objects below one prefix add up to."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.objects = self.size = self.stored_bytes = 0

    def add(self, info: ObjectInfo) -> None:
        self.objects += 1
        self.size += info.size
        self.stored_bytes += info.stored_bytes


def ls(arguments: Namespace) -> int:
    prefix: str = arguments.prefix if arguments.prefix.strip("/") else ""
    line_of = _line_of(arguments)
    last = ""

    def work(store: Store, _: bool) -> int:
        nonlocal last
        found = store.list(prefix) if line_of is not None else store.names(prefix)
        for each in found:
            name = each if isinstance(each, str) else each.name
            if sort_key(name) > sort_key(last):  # not printed before the damage was met
                last = name
                print_line(name if line_of is None or isinstance(each, str) else line_of(each))
        return exits.OK

    code = read_all(arguments, work)
    if prefix and not last and code == exits.OK:
        raise Failure(f"no name starts with {prefix!r}", exits.NOT_FOUND)
    return code


def _line_of(arguments: Namespace) -> Callable[[ObjectInfo], str] | None:
    """How an object is shown; None if its name is all."""
    if arguments.json:
        return lambda info: json_line(object_document(info))
    return _long_line if arguments.long else None


def stat(arguments: Namespace) -> int:
    with open_to_read(arguments) as store:
        shown = False

        def show(name: str) -> None:
            nonlocal shown
            with naming_folders(store, "ls -l {}/"):
                info = store.info(name)
            if arguments.json:
                print_json(object_document(info))
                return
            if shown:
                print_line("")
            print_table(_facts(info))
            shown = True

        return one_by_one(arguments.names, show, arguments)


def du(arguments: Namespace) -> int:
    stem = arguments.prefix.rstrip("/")
    prefix = stem + "/" if stem else ""
    with open_to_read(arguments) as store:
        sums = list(sum_up(store.list(prefix), prefix))
        if prefix and not sums[-1].objects:
            if not store.exists(stem):
                raise NameNotFound(prefix)
            sums = [Sum(stem)]
            sums[-1].add(store.info(stem))
    if arguments.json:
        for each in sums:
            print_json(vars(each))
        return exits.OK
    rows = [("OBJECTS", "SIZE", "STORED", "PREFIX")]
    for each in sums:
        name = each.prefix or "(all)"
        size, stored = human_size(each.size), human_size(each.stored_bytes)
        rows.append((f"{each.objects:,}", size, stored, name))
    print_table(rows, right=(0, 1, 2))
    return exits.OK


def sum_up(infos: Iterable[ObjectInfo], prefix: str) -> Iterator[Sum]:
    """A sum for each next part that has a '/' after it, then the total.

    `infos` come sorted, so that what shares a prefix stands together: one sum is open at a time.
    """
    total = Sum(prefix)
    part: Sum | None = None
    for info in infos:
        total.add(info)
        head, slash, _ = info.name[len(prefix) :].partition("/")
        if not slash:
            continue
        if part is None or part.prefix != f"{prefix}{head}/":
            if part is not None:
                yield part
            part = Sum(f"{prefix}{head}/")
        part.add(info)
    if part is not None:
        yield part
    yield total


def stats(arguments: Namespace) -> int:
    with open_to_read(arguments) as store:
        found = store.stats()
        on_s3 = store.path.startswith("s3://")
        place = ("on S3", "packs") if on_s3 else ("on disk", "packs, index and journal")
    occupied = found.pack_bytes + found.index_bytes + found.journal_bytes
    dedup = ratio_of(found.logical_bytes, found.unique_bytes)
    compression = ratio_of(found.unique_bytes, found.stored_bytes)
    total = ratio_of(found.logical_bytes, found.stored_bytes)
    if arguments.json:
        print_json(
            {
                **found._asdict(),
                "delta_saved_bytes": found.delta_saved_bytes,
                "frames_per_chunk": found.frames_per_chunk,
                "dedup_ratio": dedup,
                "compression_ratio": compression,
                "total_ratio": total,
            }
        )
        return exits.OK
    rows = [
        ("objects", f"{found.objects:,}", ""),
        ("chunks", f"{found.chunks:,}", ""),
        ("packs", f"{found.packs:,}", ""),
        ("logical", human_size(found.logical_bytes), "what the objects add up to"),
        ("unique", human_size(found.unique_bytes), f"deduplication {human_ratio(dedup)}"),
        ("stored", human_size(found.stored_bytes), f"compression {human_ratio(compression)}"),
        ("", "", f"together {human_ratio(total)}"),
        *_delta_rows(found),
        (place[0], human_size(occupied), place[1]),
    ]
    print_table(rows, right=(1,))
    return exits.OK


def _delta_rows(found: StoreStats) -> list[tuple[str, str, str]]:
    if not found.deltas:
        return []
    saved = human_size(found.delta_saved_bytes)
    return [
        ("deltas", f"{found.deltas:,}", f"stored in place of chunks, which saves about {saved}"),
        ("decoded", f"{found.frames_per_chunk:.2f}", "frames to read one chunk, on average"),
    ]


def _facts(info: ObjectInfo) -> list[tuple[str, str]]:
    chunks = counted(info.chunks, "chunk")
    kind = "a delta" if info.deltas == 1 else "deltas"
    deltas = f", {info.deltas:,} of them {kind} when it was put" if info.deltas else ""
    return [
        ("name", info.name),
        ("size", _size(info.size)),
        ("stored", f"{_size(info.stored_bytes)} in {chunks}{deltas}"),
        ("mode", f"{_mode(info)} ({info.mode:04o})"),
        ("put", time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(info.mtime))),
        ("etag", info.etag),
    ]


def _size(size: int) -> str:
    return counted(size, "byte") + (f" ({human_size(size)})" if size >= 1024 else "")


def _long_line(info: ObjectInfo) -> str:
    put = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.mtime))
    return f"{_mode(info)}  {human_size(info.size):>10}  {put}  {info.name}"


def _mode(info: ObjectInfo) -> str:
    return file_mode.filemode(file_mode.S_IFREG | info.mode)
