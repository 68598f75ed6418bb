"""One contender of bench_s3, in a process of its own: `python s3_client.py castore|boto3|s3fs`.

Each line on standard input is `[verb, arguments]` in JSON; the answer says how many seconds the
verb took here and what it gave: bytes as their length and CRC-32, so that the caller can tell
whether they are right. It imports nothing but the contender, which may live in another Python.

boto3 and s3fs run with their defaults, but for checksums only `when_required`: rclone answers a
ranged GET with the whole object's checksum, which they would refuse. castore does the same with
any endpoint that is not AWS's.
"""

# mypy: disable-error-code="import-untyped, import-not-found"

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

CHECKSUMS = {
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
}


def read_in_steps(file: Any, step: int) -> list[int]:
    """[how many bytes there are, their CRC-32], read so many at a time."""
    size = crc = 0
    while part := file.read(step):
        size, crc = size + len(part), zlib.crc32(part, crc)
    return [size, crc]


class OpenFile:
    """The verbs on a file that another verb has opened."""

    _file: Any = None

    def read_file(self, begin: int, end: int) -> bytes:
        self._file.seek(begin)
        return self._file.read(end - begin)  # type: ignore[no-any-return]

    def read_through(self, step: int) -> list[int]:
        return read_in_steps(self._file, step)

    def close_file(self) -> None:
        self._file.close()


class Castore(OpenFile):
    """Stores by a label of the caller's."""

    def __init__(self) -> None:
        import castore

        self._castore = castore
        self._stores: dict[str, Any] = {}

    def open(self, label: str, url: str, cache: str, **options: Any) -> None:
        os.environ["CASTORE_CACHE_DIR"] = cache
        self._stores[label] = self._castore.open(url, **options)

    def close(self, label: str) -> None:
        self._stores.pop(label).close()

    def gets(self, label: str, name: str, begin: int, end: int) -> bytes:
        return self._stores[label].gets(name, (begin, end))  # type: ignore[no-any-return]

    def first(self, url: str, cache: str, name: str, begin: int, end: int, **options: Any) -> bytes:
        """Open, and read."""
        self.open("first", url, cache, **options)
        return self.gets("first", name, begin, end)

    def frame_bytes(self, label: str, name: str, begin: int, end: int) -> list[int]:
        """[how many chunks cover the range, the bytes of their frames]."""
        plan = self._stores[label].explain_range(name, (begin, end))
        return [plan.chunks, plan.frame_bytes]

    def open_file(self, label: str, name: str) -> None:
        self._file = self._stores[label].open(name)

    def get(self, label: str, name: str, path: str) -> None:
        self._stores[label].get(name, path)

    def put(self, label: str, path: str, name: str) -> None:
        self._stores[label].put(name, path)

    def copies(self, label: str, source: str, names: list[str]) -> None:
        for name in names:
            self._stores[label].copy(source, name)

    def stage(self, url: str, cache: str, path: str, name: str, **options: Any) -> None:
        """What a daily job does: open, put, close."""
        self.open("stage", url, cache, **options)
        try:
            self.put("stage", path, name)
        finally:
            self.close("stage")


class Boto3:
    """A client by a label of the caller's; objects are in one bucket."""

    def __init__(self) -> None:
        import boto3
        from botocore.config import Config

        self._boto3 = boto3
        self._config = Config(s3={"addressing_style": "path"}, **CHECKSUMS)
        self._clients: dict[str, Any] = {}

    def open(self, label: str, endpoint: str, bucket: str) -> None:
        self._bucket = bucket
        # A session of its own, as in a process of its own: the second client of one costs little.
        self._clients[label] = self._boto3.Session().client(
            "s3", endpoint_url=endpoint, config=self._config
        )

    def close(self, label: str) -> None:
        self._clients.pop(label).close()

    def connect(self, label: str) -> None:
        self._clients[label].head_bucket(Bucket=self._bucket)

    def gets(self, label: str, name: str, begin: int, end: int) -> bytes:
        part = f"bytes={begin}-{end - 1}"
        got = self._clients[label].get_object(Bucket=self._bucket, Key=name, Range=part)
        return got["Body"].read()  # type: ignore[no-any-return]

    def read_through(self, label: str, name: str, step: int) -> list[int]:
        got = self._clients[label].get_object(Bucket=self._bucket, Key=name)
        return read_in_steps(got["Body"], step)

    def first(self, endpoint: str, bucket: str, name: str, begin: int, end: int) -> bytes:
        self.open("first", endpoint, bucket)
        return self.gets("first", name, begin, end)

    def get(self, label: str, name: str, path: str) -> None:
        self._clients[label].download_file(self._bucket, name, path)

    def put(self, label: str, path: str, name: str) -> None:
        self._clients[label].upload_file(path, self._bucket, name)

    def stage(self, endpoint: str, bucket: str, path: str, name: str) -> None:
        self.open("stage", endpoint, bucket)
        self.put("stage", path, name)
        self.close("stage")


class S3fs:
    """As Boto3, with another instance of the file system for each label."""

    def __init__(self) -> None:
        import s3fs

        self._s3fs = s3fs
        self._systems: dict[str, Any] = {}

    def open(self, label: str, endpoint: str, bucket: str) -> None:
        self._bucket = bucket
        self._systems[label] = self._s3fs.S3FileSystem(
            endpoint_url=endpoint,
            config_kwargs={"s3": {"addressing_style": "path"}, **CHECKSUMS},
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def close(self, label: str) -> None:
        del self._systems[label]

    def connect(self, label: str) -> None:
        self._systems[label].call_s3("head_bucket", Bucket=self._bucket)

    def gets(self, label: str, name: str, begin: int, end: int) -> bytes:
        path = f"{self._bucket}/{name}"
        return self._systems[label].cat_file(path, start=begin, end=end)  # type: ignore[no-any-return]

    def first(self, endpoint: str, bucket: str, name: str, begin: int, end: int) -> bytes:
        self.open("first", endpoint, bucket)
        return self.gets("first", name, begin, end)

    def get(self, label: str, name: str, path: str) -> None:
        self._systems[label].get_file(f"{self._bucket}/{name}", path)

    def put(self, label: str, path: str, name: str) -> None:
        self._systems[label].put_file(path, f"{self._bucket}/{name}")

    def stage(self, endpoint: str, bucket: str, path: str, name: str) -> None:
        self.open("stage", endpoint, bucket)
        self.put("stage", path, name)
        self.close("stage")


KINDS: dict[str, Callable[[], Any]] = {"castore": Castore, "boto3": Boto3, "s3fs": S3fs}


def answer(contender: Any) -> None:
    """Run the verbs of standard input until it ends."""
    # What a library prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        verb, arguments = json.loads(line)
        said: dict[str, Any]
        try:
            began = time.perf_counter()
            gave = getattr(contender, verb)(**arguments)
            seconds = time.perf_counter() - began
            if isinstance(gave, bytes):
                gave = [len(gave), zlib.crc32(gave)]
            said = {"seconds": seconds, "gave": gave}
        except Exception as error:
            said = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(said) + "\n")
        answers.flush()


if __name__ == "__main__":
    answer(KINDS[sys.argv[1]]())
