"""Rows of bench_fs: lists of names, and many small files in and out.

- `ls@LINK`, `ls-detail@LINK`, `find@LINK`, `du@LINK`, `isdir@LINK`: of a folder of 1,500 objects;
  `ls-parent@LINK`: of the folder that it is in, with details. In requests, with the time in a note.
- `put-r@LINK`, `get-r@LINK`, `cp-r@LINK`, `mv-r@LINK`, `rm-r@LINK`: of 1,000 files of 8 KiB in ten
  folders. s3fs has no row of `mv-r`: where it copies folders it fails.
- `ls-local`: the two folders of a local store that all of 1 M names are in.

On the link each contender has a file system that is new and knows nothing, with its connection
made, and castore with its store open.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fs_setting import Setting
from measure import Row

import castore
from castore.fs import CastoreFileSystem

FULL, TINY = (1500, 1000, 1_000_000), (40, 20, 2000)  # names in a folder, files, local names
FILE_BYTES = 8 << 10
FOLDERS = 10
CONTENDERS = ("castore", "s3fs")
LISTS = {  # the verb, and of which folder
    "ls": ("ls", "lists/many"),
    "ls-detail": ("ls_detail", "lists/many"),
    "ls-parent": ("ls_detail", "lists"),
    "find": ("find", "lists/many"),
    "du": ("du", "lists/many"),
    "isdir": ("isdir", "lists/many"),
}


def rows(setting: Setting) -> Iterator[tuple[Row, str]]:
    """Each row, and what it is compared with."""
    names = _Names(setting)
    names.fill()
    for name, (verb, path) in LISTS.items():
        yield names.listed(name, verb, path), "s3fs"
    for row in names.moved():
        yield row, "s3fs"
    yield names.local(), "castore"


class _Names:
    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.folder = setting.folder / "names"
        self.names, self.files, self.local_names = FULL if setting.judged else TINY
        self.kinds = [kind for kind in CONTENDERS if kind in setting.systems]

    def fill(self) -> None:
        numbers = random.Random(1)
        for i in range(self.names):
            self._write(self.folder / "lists" / "many" / f"{i:04}", b"%d" % i)
        for i in range(self.files):
            path = self.folder / "tree" / f"{i % FOLDERS}" / f"{i:04}"
            self._write(path, numbers.randbytes(FILE_BYTES))
        for kind in self.kinds:
            client = self.setting.systems[kind]
            client("open", **self.setting.where(kind, self.setting.straight, "names", "fill"))
            client("put", source=str(self.folder / "lists"), target="lists")
            client("close")

    def _write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def listed(self, name: str, verb: str, path: str) -> Row:
        row = Row(f"{name}@{self.setting.link.name}", f"{verb} of {path}, cold", "requests")
        seconds: dict[str, list[float]] = {}
        gave: list[Any] = []
        for i in range(self.setting.repeats):
            for kind in self.kinds:
                requests, took, found = self._once(kind, f"{name}-{i}", verb, path=path)
                row.add(kind, requests)
                seconds.setdefault(kind, []).append(took)
                gave.append(found)
        assert all(each == gave[0] for each in gave), f"{row.name}: {gave}"
        for kind, took_each in seconds.items():
            row.notes.append(f"{kind}: {statistics.median(took_each) * 1e3:.0f} ms")
        counts = [row.samples.get(kind, []) for kind in CONTENDERS]
        more = [ours - theirs for ours, theirs in zip(*counts, strict=False)]
        row.bar("≤ s3fs's requests + 1 (measured: how many more)", more, lambda x: x <= 1)
        return row

    def moved(self) -> list[Row]:
        """All verbs on one tree, which is put, and gone at the end."""
        what = f"{self.files} files of {FILE_BYTES >> 10} KiB"
        link = self.setting.link.name
        verbs: dict[str, dict[str, str]] = {
            "put-r": {"source": str(self.folder / "tree"), "target": "tree"},
            "get-r": {"source": "tree", "target": ""},
            "cp-r": {"source": "tree", "target": "copied"},
            "mv-r": {"source": "copied", "target": "moved"},
            "rm-r": {"path": "tree"},
        }
        rows = {name: Row(f"{name}@{link}", f"{what}, cold", "ms") for name in verbs}
        asked: dict[tuple[str, str], list[int]] = {}
        for i in range(self.setting.repeats):
            for kind in self.kinds:
                into = self.folder / f"{kind}-{i}"
                for name, arguments in verbs.items():
                    if (kind, name) == ("s3fs", "mv-r"):
                        continue
                    given = {**arguments, "target": str(into)} if name == "get-r" else arguments
                    label, verb = f"{kind}-{name}-{i}", name.removesuffix("-r")
                    requests, seconds, _ = self._once(kind, label, verb, **given)
                    rows[name].add(kind, seconds * 1e3)
                    asked.setdefault((name, kind), []).append(requests)
                self._check(into)
                client = self.setting.systems[kind]
                client("open", **self.setting.where(kind, self.setting.straight, "names", "rm"))
                client("rm", path="moved" if kind == "castore" else "copied")
                assert client("find", path="tree")[1] == 0, f"{kind} left files"
                client("close")
        for (name, kind), counts in asked.items():
            rows[name].notes.append(f"{kind}: {statistics.median(counts):g} requests")
        for name in ("put-r", "get-r", "rm-r"):
            row = rows[name]
            row.bar("≤ 1 × s3fs", row.ratio("castore", "s3fs"), lambda x: x <= 1)
        return list(rows.values())

    def _check(self, into: Path) -> None:
        for path in (self.folder / "tree").rglob("*"):
            if path.is_file():
                got = into / path.relative_to(self.folder / "tree")
                assert got.read_bytes() == path.read_bytes(), f"{got} is another file"

    def _once(self, kind: str, label: str, verb: str, **arguments: Any) -> tuple[int, float, Any]:
        """(requests, seconds, what it gave) of a verb on a file system that is new."""
        client, link = self.setting.systems[kind], self.setting.link
        client("open", **self.setting.where(kind, link, "names", label))
        link.clear()
        seconds, gave = client(verb, **arguments)
        requests = link.clear().requests
        client("close")
        return requests, seconds, gave

    def local(self) -> Row:
        row = Row("ls-local", f"ls of two folders that {self.local_names:,} names are in", "ms")
        with castore.open(self.folder / "store") as store:
            half = self.local_names // 2
            for begin in range(0, self.local_names, 20_000):
                with store.transaction() as transaction:
                    for i in range(begin, min(begin + 20_000, self.local_names)):
                        transaction.puts(f"{i // half}/{i % 1000}/{i}", b"")
        fs = CastoreFileSystem(str(self.folder / "store"), skip_instance_cache=True)
        with fs.store:
            for _ in range(max(7, self.setting.repeats)):
                began = time.perf_counter()
                found = fs.ls("")
                row.add("castore", (time.perf_counter() - began) * 1e3)
                assert [each["name"] for each in found] == ["0", "1"]
        row.bar("≤ 1 ms", row.samples["castore"], lambda x: x <= 1)
        return row
