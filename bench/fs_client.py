"""One file system of bench_fs, in a process of its own: `python fs_client.py KIND`.

Answers as s3_client.py does. The verbs are those of fsspec and of what reads through it, and the
same for all; it imports nothing but the contender and what a verb needs. Each runs with its
defaults, but for checksums, as in s3_client.py.
"""

# mypy: disable-error-code="import-untyped, import-not-found"

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from s3_client import CHECKSUMS, OpenFile, answer


class FileSystem(OpenFile):
    """A file system that is new, so that it knows nothing, with its connection made. Paths are
    relative to `root`."""

    def __init__(self, make: Callable[..., tuple[Any, str]]) -> None:
        self._make = make

    def open(self, **where: Any) -> None:
        self._fs, self._root = self._make(**where)
        self._fs.exists(self._root + "no such file")

    def close(self) -> None:
        if hasattr(self._fs, "store"):
            self._fs.store.close()
        del self._fs

    def open_file(self, path: str) -> None:
        self._file = self._fs.open(self._root + path)

    def read_csv(self, path: str) -> list[int]:
        import pandas

        with self._fs.open(self._root + path) as file:
            return list(pandas.read_csv(file).shape)

    def read_table(self, path: str, columns: Sequence[str] | None = None) -> list[int]:
        from pyarrow import parquet

        table = parquet.read_table(self._root + path, filesystem=self._fs, columns=columns)
        return [*table.shape, table.nbytes]

    def scan(self, path: str, columns: Sequence[str]) -> list[int]:
        """A dataset: all files in a folder."""
        from pyarrow import dataset

        found = dataset.dataset(self._root + path, filesystem=self._fs, format="parquet")
        table = found.to_table(columns=list(columns))
        return [*table.shape, table.nbytes]

    def scan_arrow(self, path: str, columns: Sequence[str]) -> list[int]:
        """As `scan`, through `castore.fs.arrow`."""
        from pyarrow import dataset

        from castore.fs.arrow import filesystem

        found = dataset.dataset(path, filesystem=filesystem(self._fs), format="parquet")
        table = found.to_table(columns=list(columns))
        return [*table.shape, table.nbytes]

    def import_readers(self) -> None:
        """So that no verb is the first to load them."""
        import pandas
        import pyarrow.dataset
        import pyarrow.parquet

        if hasattr(self._fs, "store"):
            import castore.fs.arrow

            assert castore.fs.arrow
        assert pandas
        assert pyarrow.parquet

    def put(self, source: str, target: str) -> None:
        """A folder, with all that is in it."""
        self._fs.put(source + "/", self._root + target + "/", recursive=True)

    def get(self, source: str, target: str) -> None:
        self._fs.get(self._root + source + "/", target + "/", recursive=True)

    def cp(self, source: str, target: str) -> None:
        self._fs.cp(self._root + source + "/", self._root + target + "/", recursive=True)

    def mv(self, source: str, target: str) -> None:
        self._fs.mv(self._root + source + "/", self._root + target + "/", recursive=True)

    def rm(self, path: str) -> None:
        self._fs.rm(self._root + path, recursive=True)

    def ls(self, path: str) -> int:
        return len(self._fs.ls(self._root + path, detail=False))

    def ls_detail(self, path: str) -> list[int]:
        """[how many there are, their bytes]."""
        entries = self._fs.ls(self._root + path, detail=True)
        return [len(entries), sum(entry["size"] or 0 for entry in entries)]

    def find(self, path: str) -> int:
        return len(self._fs.find(self._root + path))

    def du(self, path: str) -> int:
        return self._fs.du(self._root + path)  # type: ignore[no-any-return]

    def isdir(self, path: str) -> bool:
        return self._fs.isdir(self._root + path)  # type: ignore[no-any-return]


def castore_fs(url: str, cache: str, **options: Any) -> tuple[Any, str]:
    from castore.fs import CastoreFileSystem

    os.environ["CASTORE_CACHE_DIR"] = cache
    return CastoreFileSystem(url, skip_instance_cache=True, **options), ""


def s3fs(endpoint: str, bucket: str) -> tuple[Any, str]:
    import s3fs

    config = {"s3": {"addressing_style": "path"}, **CHECKSUMS}
    fs = s3fs.S3FileSystem(endpoint_url=endpoint, config_kwargs=config, skip_instance_cache=True)
    return fs, f"{bucket}/"


def obstore(endpoint: str, bucket: str) -> tuple[Any, str]:
    from obstore.fsspec import FsspecStore

    config = {"endpoint": endpoint, "virtual_hosted_style_request": False}
    fs = FsspecStore(
        "s3", config=config, client_options={"allow_http": True}, skip_instance_cache=True
    )
    return fs, f"{bucket}/"


def local_files(root: str) -> tuple[Any, str]:
    """What reading costs without anything to fetch."""
    from fsspec.implementations.local import LocalFileSystem

    return LocalFileSystem(), f"{root}/"


KINDS = {"local file": local_files, "castore": castore_fs, "s3fs": s3fs, "obstore": obstore}


if __name__ == "__main__":
    answer(FileSystem(KINDS[sys.argv[1]]))
