"""Rows of bench_fs: what pandas and pyarrow read through a file system.

- `csv@LINK`: `pandas.read_csv` of 8 MB.
- `table@LINK`, `column@LINK`: `pyarrow.parquet.read_table` of a file of 55 MB with 16 columns; all
  of them, and one.
- `dataset@LINK`: two neighbouring columns of eight such files of 7 MB; `dataset-arrow@LINK`: by
  `castore.fs.arrow`, where the others know nothing of the kind; `dataset-listed@LINK`: and with
  `use_listings_cache`, as s3fs has it always.
- `csv-local`, `table-local`: the same of a local store, against the plain files, in the page cache.

On the link each contender has a file system that is new, with its connection made: castore once
with an empty disk cache, and once with the one that this left. The same from local files, in the
page cache, is what nobody can do without. What the Parquet files hold is
random, so that nothing compresses it; the CSV file compresses to half.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fs_setting import LOCAL, ProcessorTime, Setting
from measure import Row
from s3_links import Traffic

from castore.fs import CastoreFileSystem

COLUMNS = 16
FILES = 8
COLUMN = ["c05"]
NEIGHBOURS = ["c05", "c06"]


def rows(setting: Setting) -> Iterator[tuple[Row, str]]:
    """Each row, and what it is compared with."""
    missing = [name for name in ("pandas", "pyarrow") if find_spec(name) is None]
    if missing:
        print(f"no rows of tables: {', '.join(missing)} not installed")
        return
    tables = _Tables(setting)
    tables.write()
    tables.fill()
    files = [tables.folder / "parts" / f"{i}.parquet" for i in range(FILES)]
    table = tables.folder / "table.parquet"
    csv = tables.folder / "table.csv"
    link = tables.on_link
    size = csv.stat().st_size
    yield link("csv", f"read_csv of {size:,} bytes", "read_csv", csv.name, size), "s3fs"
    size = table.stat().st_size
    what = f"read_table of {size:,} bytes"
    yield link("table", what, "read_table", table.name, size), "s3fs"
    wanted = column_bytes(table, COLUMN)
    what = f"one of {COLUMNS} columns, {wanted:,} bytes with the footer"
    yield link("column", what, "read_table", table.name, wanted, columns=COLUMN), "s3fs"
    wanted = sum(column_bytes(file, NEIGHBOURS) for file in files)
    what = f"two of {COLUMNS} columns of {FILES} files, {wanted:,} bytes with the footers"
    yield link("dataset", what, "scan", "parts", wanted, columns=NEIGHBOURS), "s3fs"
    what += ", castore's through castore.fs.arrow"
    row = link("dataset-arrow", what, "scan", "parts", wanted, "scan_arrow", columns=NEIGHBOURS)
    yield row, "s3fs"
    what += ", with use_listings_cache"
    options = {"use_listings_cache": True}
    row = link(
        "dataset-listed",
        what,
        "scan",
        "parts",
        wanted,
        "scan_arrow",
        options=options,
        columns=NEIGHBOURS,
    )
    yield row, "s3fs"
    yield tables.local("csv-local", csv), "plain file"
    yield tables.local("table-local", table), "plain file"


class _Tables:
    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.folder = setting.folder / "tables"

    def write(self) -> None:
        """The files that are read."""
        import numpy as np
        import pyarrow as pa
        from pyarrow import csv, parquet

        random = np.random.default_rng(1)

        def table(size: int) -> pa.Table:
            count = size // COLUMNS // 8
            numbers = {
                f"c{i:02d}": random.integers(-(1 << 63), (1 << 63) - 1, count)
                for i in range(COLUMNS)
            }
            return pa.table(numbers)

        (self.folder / "parts").mkdir(parents=True)
        size = self.setting.bytes * 49 // 64  # 55 MB as Parquet, of 64 MiB
        parquet.write_table(table(size), self.folder / "table.parquet")
        for i in range(FILES):
            parquet.write_table(table(size // FILES), self.folder / "parts" / f"{i}.parquet")
        count = self.setting.bytes // 8 // 24  # of lines of about 24 bytes
        prices = {
            "key": np.arange(count),
            "price": np.round(random.gamma(2.0, 40.0, count), 2),
            "kind": random.integers(0, 1 << 30, count),
        }
        csv.write_csv(pa.table(prices), self.folder / "table.csv")

    def fill(self) -> None:
        for kind, client in self.setting.systems.items():
            client("open", **self.setting.where(kind, self.setting.straight, "tables", "fill"))
            if kind != LOCAL:
                client("put", source=str(self.folder), target="tables")
            client("import_readers")
            client("close")

    def on_link(
        self,
        name: str,
        what: str,
        verb: str,
        path: str,
        wanted: int,
        ours: str | None = None,
        options: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> Row:
        """`verb`, or `ours`, by all contenders; `wanted` bytes are those that it can't do
        without; `options` are castore's."""
        link = self.setting.link
        row = Row(f"{name}@{link.name}", what, "ms")
        traffic: dict[str, list[Traffic]] = {}
        gave: list[Any] = []
        for i in range(self.setting.repeats):
            contenders = [("castore", "castore"), ("castore, warm", "castore"), (LOCAL, LOCAL)]
            for label, kind in [*contenders, *((kind, kind) for kind in self.setting.peers)]:
                client = self.setting.systems[kind]
                where = self.setting.where(kind, link, "tables", f"{row.name}-{i}")
                client("open", **where, **(options or {} if kind == "castore" else {}))
                link.clear()
                chosen = ours if ours and kind == "castore" else verb
                seconds, found = client(chosen, path=f"tables/{path}", **arguments)
                traffic.setdefault(label, []).append(link.clear())
                client("close")
                row.add(label, seconds * 1e3)
                gave.append(found)
        assert all(each == gave[0] for each in gave), f"{row.name}: {gave}"
        for label, passed in traffic.items():
            if label == LOCAL:
                continue
            row.notes.append(
                f"{label}: {statistics.median(one.requests for one in passed):g} requests, "
                f"{statistics.median(one.received for one in passed):,.0f} bytes"
            )
        row.bar("cold ≤ 1.3 × s3fs", row.ratio("castore", "s3fs"), lambda x: x <= 1.3)
        row.bar("warm ≤ 0.3 × s3fs", row.ratio("castore, warm", "s3fs"), lambda x: x <= 0.3)
        shares = [one.received / wanted for one in traffic["castore"]]
        row.bar("≤ 1.3 × the bytes wanted", shares, lambda x: x <= 1.3)
        return row

    def local(self, name: str, source: Path) -> Row:
        read = reader(source)
        row = Row(name, f"{source.stat().st_size:,} bytes, page-cached", "ms")
        fs = CastoreFileSystem(str(self.setting.folder / name), skip_instance_cache=True)
        fs.put_file(str(source), source.name)
        processor = ProcessorTime()
        with fs.store:
            for _ in range(max(7, self.setting.repeats)):
                for who, opened in (
                    ("castore", fs.open(source.name)),
                    ("plain file", source.open("rb")),
                ):
                    with opened as file, processor.of(who):
                        began = time.perf_counter()
                        read(file)
                        row.add(who, (time.perf_counter() - began) * 1e3)
        processor.note(row)
        row.bar("≤ 1.3 × the plain file", row.ratio("castore", "plain file"), lambda x: x <= 1.3)
        return row


def reader(source: Path) -> Callable[[Any], object]:
    import pandas
    from pyarrow import parquet

    return pandas.read_csv if source.suffix == ".csv" else parquet.read_table


def column_bytes(file: Path, columns: Sequence[str]) -> int:
    """What these columns of a Parquet file take, and its footer."""
    from pyarrow import parquet

    metadata = parquet.ParquetFile(file).metadata
    sizes = [
        chunk.total_compressed_size
        for group in (metadata.row_group(i) for i in range(metadata.num_row_groups))
        for chunk in (group.column(i) for i in range(metadata.num_columns))
        if chunk.path_in_schema in columns
    ]
    return sum(sizes) + int(metadata.serialized_size)
