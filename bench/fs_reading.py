"""Rows of bench_fs: reads through file objects.

- `read-8M@LINK`: `file.read(8 MiB)` at the start of an object that is in no cache, opened before,
  against boto3's ranged GET of the same.
- `through-1M@LINK`: all of such an object by `file.read(1 MiB)`, against boto3's body read so.
- `through-1M-local`: the same of a local store, against a plain file, both in the page cache.
- `through-1M-local-zstd`: the same of real files, which are stored compressed, against zstandard
  decoding their frames from memory, on one thread.

Each side takes a CRC-32 of what it reads through.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import zstandard
from fs_setting import ProcessorTime, Setting
from local_gets import Frames
from measure import Row
from s3_client import read_in_steps
from s3_links import PLAIN
from sources import write_random, write_real_tar

import castore

MIB = 1 << 20


def rows(setting: Setting) -> Iterator[tuple[Row, str]]:
    """Each row, and what it is compared with."""
    reading = _Reading(setting)
    reading.fill()
    yield reading.read_8m(), "boto3"
    yield reading.through_1m(), "boto3"
    yield reading.through_1m_local(), "plain file"
    yield reading.through_1m_local_zstd(), "bare decode"


class _Reading:
    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.link = setting.link
        self.source = setting.folder / "random.bin"
        write_random(self.source, setting.bytes, seed=1)

    def fill(self) -> None:
        """The object, as itself for boto3, and for castore once for each time that it is cold."""
        name = self.source.name
        ours, peer = self.setting.clients["castore"], self.setting.clients["boto3"]
        straight = self.setting.straight
        ours("open", label="fill", url=straight.store_url("fs"), cache=self._cache("fill"))
        ours("put", label="fill", path=str(self.source), name=name)
        ours("close", label="fill")
        peer("open", label="read", endpoint=straight.endpoint, bucket=PLAIN)
        peer("put", label="read", path=str(self.source), name=name)
        peer("open", label="read", endpoint=self.link.endpoint, bucket=PLAIN)
        peer("gets", label="read", name=name, begin=0, end=1)

    def read_8m(self) -> Row:
        what = f"one read of 8 MiB of {self.source.stat().st_size:,} bytes, cold"
        row = Row(f"read-8M@{self.link.name}", what, "ms")
        self._against_boto3(row, {"begin": 0, "end": 8 * MIB}, "read_file", "gets")
        row.bar("≤ 1.2 × boto3's ranged GET", row.ratio("castore", "boto3"), lambda x: x <= 1.2)
        return row

    def through_1m(self) -> Row:
        row = Row(f"through-1M@{self.link.name}", "all of it, 1 MiB at a time, cold", "ms")
        self._against_boto3(row, {"step": MIB}, "read_through", "read_through")
        return row

    def through_1m_local(self) -> Row:
        row = Row("through-1M-local", "all of it, 1 MiB at a time, page-cached", "ms")
        right = [self.source.stat().st_size, zlib.crc32(self.source.read_bytes())]
        processor = ProcessorTime()
        with castore.open(self.setting.folder / "local", cache_bytes=0) as store:
            store.put("a", self.source)
            for _ in range(max(7, self.setting.repeats)):
                for who, opened in (
                    ("castore", store.open("a")),
                    ("plain file", self.source.open("rb")),
                ):
                    with opened as file, processor.of(who):
                        began = time.perf_counter()
                        assert read_in_steps(file, MIB) == right
                        row.add(who, (time.perf_counter() - began) * 1e3)
        processor.note(row)
        row.bar("≤ 1.3 × the plain file", row.ratio("castore", "plain file"), lambda x: x <= 1.3)
        return row

    def through_1m_local_zstd(self) -> Row:
        row = Row("through-1M-local-zstd", "all of it, 1 MiB at a time, page-cached", "ms")
        source = self.setting.folder / "real.tar"
        write_real_tar(source, self.setting.bytes)
        raw = source.read_bytes()
        right = [len(raw), zlib.crc32(raw)]
        decompress = zstandard.ZstdDecompressor().decompress
        with castore.open(self.setting.folder / "zstd", cache_bytes=0) as store:
            store.put(source.name, source)
            frames = Frames.of(store, source, len(raw))
            parts = [
                raw[begin:end] if frame is None else frame
                for (begin, end), frame in zip(
                    pairwise([*frames.begins, len(raw)]), frames.frames, strict=True
                )
            ]
            for _ in range(max(7, self.setting.repeats)):
                with store.open(source.name) as file:
                    began = time.perf_counter()
                    assert read_in_steps(file, MIB) == right
                    row.add("castore", (time.perf_counter() - began) * 1e3)
                began = time.perf_counter()
                crc = 0
                for part, frame in zip(parts, frames.frames, strict=True):
                    crc = zlib.crc32(part if frame is None else decompress(frame), crc)
                row.add("bare decode", (time.perf_counter() - began) * 1e3)
                assert crc == right[1]
        row.bar("≤ 1.3 × the bare decode", row.ratio("castore", "bare decode"), lambda x: x <= 1.3)
        return row

    def _against_boto3(self, row: Row, what: dict[str, Any], ours: str, theirs: str) -> None:
        client, peer = self.setting.clients["castore"], self.setting.clients["boto3"]
        requests = 0
        for i in range(self.setting.repeats):
            url, cache = self.link.store_url("fs"), self._cache(f"{row.name}-{i}")
            client("open", label="cold", url=url, cache=cache)
            self.link.clear()
            client("open_file", label="cold", name=self.source.name)
            seconds, gave = client(ours, **what)
            requests += self.link.clear().requests
            row.add("castore", seconds * 1e3)
            client("close_file")
            client("close", label="cold")
            seconds, right = peer(theirs, label="read", name=self.source.name, **what)
            row.add("boto3", seconds * 1e3)
            assert gave == right, f"{row.name}: castore read other bytes"
        row.notes.append(
            f"castore: {requests / self.setting.repeats:.1f} requests, manifest included"
        )

    def _cache(self, label: str) -> str:
        """A folder for the store's cache, made anew for each label."""
        return str(Path(self.setting.folder, "caches", label))
