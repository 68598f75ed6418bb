"""A store on S3 of many terabytes, of which only what is asked for is made: a server of its own.

    python bench/scale_server.py PORT FOLDER

It speaks as much of S3 as castore does, by HTTP. What is put is kept in FOLDER. `POST /simulate`
with `{"store": PREFIX, "terabytes": N}` adds hints of so much that others have stored, and samples
of them, of which the keys and the samples' head are made, and the rest from a seed when it is read:
objects of hints as large as they come, and generations of samples as collections leave them. What
is told of by hints that were put before is in the samples, too.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import numpy as np
import xxhash
from bill_s3 import BilledS3, Stored

from castore.format.config import decode_config
from castore.format.pack import PackEntry
from castore.format.s3_samples import (
    RECORD_BYTES,
    SAMPLED_IN,
    Samples,
    encode_samples,
    is_sampled,
    part_of,
    record,
    records_of,
    shape,
)
from castore.format.s3_told import decode_hints, encode_hints
from castore.s3.hints import FRAMES_MAX
from castore.s3.keys import HINTS, hints_id_of, hints_key, new_samples_key, shard_key

CHUNK_BYTES = 64 << 10
PACK_FRAMES = 256
GENERATIONS = (0.8, 0.16, 0.04)  # of all hints: each as collections leave them
SEED = 7
_RECORD = np.dtype([("id", ">u8"), ("hints", "<u4")])


# ---------------------------------------------------------------- what is made


def object_of_hints(store_id: bytes, number: int) -> bytes:
    """Of packs that are not there."""
    source = random.Random(SEED << 64 | number)
    ids = source.randbytes(16 * FRAMES_MAX)
    entries = [
        PackEntry(ids[16 * i : 16 * i + 16], 64, CHUNK_BYTES, CHUNK_BYTES)
        for i in range(FRAMES_MAX)
    ]
    packs = [
        (source.randbytes(16), entries[i : i + PACK_FRAMES])
        for i in range(0, FRAMES_MAX, PACK_FRAMES)
    ]
    return encode_hints(store_id, packs)


class Generation:
    """Samples of `hints`, the ids of objects of hints; `real` are records of chunks that are there,
    which are to be found."""

    def __init__(self, number: int, hints: list[bytes], real: list[bytes]) -> None:
        self._number = number
        self._hints = hints
        total = len(hints) * FRAMES_MAX // SAMPLED_IN
        buckets, shards = shape(total)
        self._per_bucket = total // buckets
        self._real: dict[int, list[bytes]] = defaultdict(list)
        for each in real:
            self._real[part_of(each, buckets)].append(each)
        told = [
            (len(raw) // RECORD_BYTES, xxhash.xxh3_64_intdigest(raw)) for raw in self._all(buckets)
        ]
        self.samples = Samples(hints, told, shards)
        self.places = self.samples.places()
        self.bucket = lru_cache(maxsize=256)(lambda i: self._bucket(i, buckets))

    def _all(self, buckets: int) -> Any:
        return (self._bucket(i, buckets) for i in range(buckets))

    def _bucket(self, i: int, buckets: int) -> bytes:
        raw = random.Random(f"{SEED} {self._number} {i}").randbytes(RECORD_BYTES * self._per_bucket)
        bits = buckets.bit_length() - 1
        ids = np.frombuffer(raw, ">u8", self._per_bucket).astype(np.uint64)
        made = np.empty(self._per_bucket, _RECORD)
        made["id"] = np.sort((ids >> np.uint64(bits)) | np.uint64((i << 64 - bits) if bits else 0))
        hints = np.frombuffer(raw, "<u4", self._per_bucket, 8 * self._per_bucket)
        made["hints"] = hints % len(self._hints)
        found = made.tobytes()
        real = self._real.get(i)
        return b"".join(sorted([*records_of(found), *real])) if real else found

    def shard_bytes(self, shard: int) -> int:
        return max(end for at, _, end in self.places if at == shard)

    def read_shard(self, shard: int, begin: int, end: int) -> bytes:
        """Bytes `[begin, end)` of it."""
        per_shard = len(self.places) // self.samples.shards
        first = shard * per_shard
        parts, at = [], begin
        for i in range(first, first + per_shard):
            _, low, high = self.places[i]
            if low < end and high > begin:
                parts.append(self.bucket(i)[max(begin - low, 0) : end - low])
                at = min(high, end)
        assert at == end or begin >= end
        return b"".join(parts)


class LazyS3(BilledS3):
    """As its base, but that bodies may be made when they are read."""

    def simulate(self, store: str, terabytes: float) -> dict[str, float]:
        began = time.perf_counter()
        config = decode_config(self.body(f"{store}/castore.json"))
        own = [key for key in self._keys if key.startswith(f"{store}/{HINTS}")]
        count = max(int(terabytes * 1e12) // CHUNK_BYTES // FRAMES_MAX, len(GENERATIONS))
        source = random.Random(SEED)
        ids = [source.randbytes(16) for _ in range(count)]
        size = len(object_of_hints(config.store_id, 0))
        for number, each in enumerate(ids):
            self._add(
                f"{store}/{hints_key(each)}",
                size,
                lambda begin, end, number=number: object_of_hints(config.store_id, number)[
                    begin:end
                ],
            )
        at = 0
        for number, share in enumerate(GENERATIONS):
            part = ids[at : at + max(int(count * share), 1)]
            at += len(part)
            real: list[bytes] = []
            for key in own if number == 0 else ():
                _, packs = decode_hints(self.body(key))
                chunks = [entry.chunk_id for _, entries in packs for entry in entries]
                real += [record(i, len(part)) for i in chunks if is_sampled(i)]
                part.append(hints_id_of(key.removeprefix(f"{store}/")))
            self._add_samples(store, config.store_id, Generation(number, part, real))
        self._keys.sort()
        return {"bytes": float(count * size), "seconds": time.perf_counter() - began}

    def _add_samples(self, store: str, store_id: bytes, made: Generation) -> None:
        key = new_samples_key()
        head = encode_samples(store_id, made.samples)
        self._add(f"{store}/{key}", len(head), lambda begin, end: head[begin:end])
        for shard in range(made.samples.shards):
            self._add(
                f"{store}/{shard_key(key, shard)}",
                made.shard_bytes(shard),
                lambda begin, end, shard=shard: made.read_shard(shard, begin, end),
            )

    def _add(self, key: str, size: int, read: Callable[[int, int], bytes]) -> None:
        etag = f'"{hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()}"'
        self._objects[key] = Stored(read, size, etag, self.clock)
        self._keys.append(key)

    def body(self, key: str) -> bytes:
        stored = self._objects[key]
        return stored.read(0, stored.size)


# ---------------------------------------------------------------- HTTP


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits for the head to be acknowledged
    server: Server

    def do_GET(self) -> None:
        key, query = self._asked()
        if not key:
            return self._reply(200, self._list(query), type="application/xml")
        stored = self._stored(key)
        if stored is None:
            return self._refuse(404, "NoSuchKey")
        if self.headers.get("If-None-Match") == stored.etag:
            return self._reply(304, b"", etag=stored.etag)
        given = self.headers.get("Range")
        begin, end = 0, stored.size
        if given is not None:
            first, _, last = given.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last) + 1, stored.size)
            if begin >= stored.size:
                return self._refuse(416, "InvalidRange")
        body = stored.read(begin, end)
        ranged = {"Content-Range": f"bytes {begin}-{end - 1}/{stored.size}"} if given else {}
        return self._reply(206 if given else 200, body, etag=stored.etag, **ranged)

    def do_HEAD(self) -> None:
        key, _ = self._asked()
        stored = self._stored(key) if key else None
        if key and stored is None:
            return self._refuse(404, "NoSuchKey")
        return self._reply(
            200, b"", etag=stored.etag if stored else "", size=stored.size if stored else 0
        )

    def do_PUT(self) -> None:
        key, _ = self._asked()
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.store._lock:
            refused = self._precondition(key)
            if refused is None:
                etag = self.server.store._put(key, raw).etag
        return self._refuse(*refused) if refused else self._reply(200, b"", etag=etag)

    def do_DELETE(self) -> None:
        key, _ = self._asked()
        with self.server.store._lock:
            refused = self._precondition(key)
            if refused is None:
                self.server.store._remove(key)
        return self._refuse(*refused) if refused else self._reply(204, b"")

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/simulate":
            asked = json.loads(raw)
            with self.server.store._lock:
                made = self.server.store.simulate(asked["store"], asked["terabytes"])
            return self._reply(200, json.dumps(made).encode())
        bucket = self.path[1:].partition("?")[0].rstrip("/")
        asked_for = [
            e.text or "" for e in ElementTree.fromstring(raw).iter() if e.tag.endswith("Key")
        ]
        with self.server.store._lock:
            for key in asked_for:
                self.server.store._remove(f"{bucket}/{key}")
        gone = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in asked_for)
        body = f"<DeleteResult>{gone}</DeleteResult>".encode()
        return self._reply(200, body, type="application/xml")

    def _asked(self) -> tuple[str, dict[str, list[str]]]:
        """(key, with the bucket before it, or nothing for the bucket itself; query)."""
        parts = urlsplit(self.path)
        path = unquote(parts.path)[1:]
        return path if "/" in path.rstrip("/") else "", parse_qs(parts.query)

    def _stored(self, key: str) -> Stored | None:
        with self.server.store._lock:
            return self.server.store._objects.get(key)

    def _precondition(self, key: str) -> tuple[int, str] | None:
        there = self.server.store._objects.get(key)
        if self.headers.get("If-None-Match") == "*" and there is not None:
            return 412, "PreconditionFailed"
        wanted = self.headers.get("If-Match")
        if wanted is not None and there is None:
            return 404, "NoSuchKey"
        if wanted is not None and there is not None and there.etag != wanted:
            return 412, "PreconditionFailed"
        return None

    def _list(self, query: dict[str, list[str]]) -> bytes:
        bucket = unquote(urlsplit(self.path).path).strip("/")
        prefix = query.get("prefix", [""])[0]
        after = query.get("continuation-token", query.get("start-after", [""]))[0]
        with self.server.store._lock:
            page, truncated = self.server.store.page(
                f"{bucket}/{prefix}", f"{bucket}/{after}" if after else ""
            )
            found = [(key, self.server.store._objects[key]) for key in page]
        parts = ["<ListBucketResult><EncodingType>url</EncodingType>"]
        for key, stored in found:
            made = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(stored.modified))
            name = quote(key.removeprefix(f"{bucket}/"))
            parts.append(
                f"<Contents><Key>{name}</Key><Size>{stored.size}</Size>"
                f"<ETag>{escape(stored.etag)}</ETag><LastModified>{made}</LastModified></Contents>"
            )
        parts.append(f"<IsTruncated>{str(truncated).lower()}</IsTruncated>")
        if truncated:
            last = page[-1].removeprefix(bucket + "/")
            parts.append(f"<NextContinuationToken>{escape(last)}</NextContinuationToken>")
        return "".join([*parts, "</ListBucketResult>"]).encode()

    def _reply(
        self,
        status: int,
        body: bytes,
        *,
        etag: str = "",
        type: str = "",
        size: int | None = None,
        **more: str,
    ) -> None:
        self.send_response(status)
        if etag:
            self.send_header("ETag", etag)
            self.send_header("Last-Modified", formatdate(self.server.store.clock, usegmt=True))
        if type:
            self.send_header("Content-Type", type)
        for name, value in more.items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body) if size is None else size))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>it is simulated</Message></Error>".encode()
        self._reply(status, b"" if self.command == "HEAD" else body, type="application/xml")

    def log_message(self, *_: object) -> None:
        """Not a line for each request."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, folder: Path) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.store = LazyS3(folder)
        self.store.clock = time.time()


if __name__ == "__main__":
    Server(int(sys.argv[1]), Path(sys.argv[2])).serve_forever()
