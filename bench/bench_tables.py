"""What versions of one table take in a store, by how their Parquet files are written.

    python bench/bench_tables.py [--quick] [--json FILE] [--rows 2000000]

A table of six columns (a key, a time, a measure, a price, a category, a text) is put once, and then
as it is after each kind of change: rows appended, inserted and removed in ten places, changed all
over in one column, and a column added. Each kind starts from the first version again. Times are of
pyarrow's writing and of reading the file back through the store.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import castore_environment, machine_facts, machine_line, scratch, table, write_json

CATEGORIES = 200
CHANGED = 1000  # one row of so many
PLACES = 10
MIB = 1 << 20


def writers() -> dict[str, dict[str, Any]]:
    from castore.tables import parquet_options

    ours = parquet_options()
    cdc = ours["use_content_defined_chunking"]
    return {
        "snappy (the default)": {},
        "zstd": {"compression": "zstd"},
        "not compressed": {"compression": "none"},
        "zstd, pages by content": {"compression": "zstd", "use_content_defined_chunking": cdc},
        "not compressed, pages by content": {
            "compression": "none",
            "use_content_defined_chunking": cdc,
        },
        "castore.tables.parquet_options()": ours,
    }


def first_version(rows: int) -> Any:
    import numpy as np
    import pyarrow as pa

    random = np.random.default_rng(1)
    words = np.array([f"word{i:05d}" for i in range(20_000)])
    text = np.char.add(np.char.add(random.choice(words, rows), " "), random.choice(words, rows))
    return pa.table(
        {
            "key": np.arange(rows, dtype="i8") * 10,
            "time": np.cumsum(random.integers(0, 2_000_000, rows)).astype("M8[us]"),
            "measure": random.normal(size=rows),
            "price": np.round(random.gamma(2.0, 40.0, rows), 2),
            "category": np.char.add("category-", random.integers(0, CATEGORIES, rows).astype(str)),
            "text": text,
        }
    )


def changes(first: Any) -> dict[str, Any]:
    """The table after each kind of change."""
    import numpy as np
    import pyarrow as pa

    rows = first.num_rows
    random = np.random.default_rng(2)
    few = max(rows // CHANGED, PLACES)
    fresh = first_version(max(rows // 100, 1))
    places = np.sort(random.integers(0, rows, PLACES))
    at = (places[:, None] + np.arange(few // PLACES)).ravel() % rows
    some = first.take(random.integers(0, rows, len(at)))
    some = some.set_column(0, "key", pa.array(np.sort(at) * 10 + 5))
    price = first["price"].to_numpy().copy()
    price[random.choice(rows, few, replace=False)] += 1
    kept = np.ones(rows, dtype=bool)
    kept[at] = False
    return {
        "appended": pa.concat_tables([first, fresh]),
        "inserted": pa.concat_tables([first, some]).sort_by("key"),
        "changed": first.set_column(3, "price", pa.array(price)),
        "removed": first.filter(pa.array(kept)),
        "column added": first.append_column("new", pa.array(random.normal(size=rows))),
    }


def measure(directory: Path, first: Any, after: dict[str, Any], options: dict[str, Any]) -> Any:
    """Bytes and seconds of one way to write."""
    import pyarrow.parquet as pq

    import castore

    with castore.open(directory / "store") as store:
        path = directory / "table"
        begun = time.perf_counter()
        pq.write_table(first, path, **options)
        written_s = time.perf_counter() - begun
        store.put("first", path)
        result: dict[str, Any] = {
            "file_bytes": path.stat().st_size,
            "stored_bytes": store.stats().stored_bytes,
            "write_s": written_s,
        }
        begun = time.perf_counter()
        with store.open("first") as file:
            again = pq.read_table(file)
        result["read_s"] = time.perf_counter() - begun
        if not again.equals(first):
            raise SystemExit("what was read is not what was written")
        new = {}
        for change, version in after.items():
            before = store.stats().stored_bytes
            pq.write_table(version, path, **options)
            store.put(change, path)
            new[change] = store.stats().stored_bytes - before
        result["new_bytes"] = new
        return result


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="a smaller table; seconds")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help="of the first version")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    parser.add_argument("--dir", help="where to work")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("pyarrow") is None:
        print("skipped: pyarrow is not installed (pip install -e '.[bench]')")
        return 0
    rows = options.rows or (20_000 if options.tiny else 200_000 if options.quick else 2_000_000)
    castore_environment()
    print(machine_line())
    first = first_version(rows)
    after = changes(first)
    measured = {}
    for name, how in writers().items():
        with scratch(options.dir) as directory:
            measured[name] = measure(directory, first, after, how)
    print(f"{rows:,} rows, 1 % appended, 0.1 % else; MiB, and seconds to write and to read\n")
    headers = ["written as", "file", "stored", *after, "write s", "read s"]
    print(table(headers, [cells(name, each) for name, each in measured.items()]))
    if options.json:
        facts = {"machine": machine_facts(), "rows": rows, "measured": measured}
        write_json(options.json, {"bench": "tables", **facts})
    return 0


def cells(name: str, each: dict[str, Any]) -> list[str]:
    sizes = [each["file_bytes"], each["stored_bytes"], *each["new_bytes"].values()]
    seconds = [each["write_s"], each["read_s"]]
    return [name, *(f"{size / MIB:.1f}" for size in sizes), *(f"{s:.2f}" for s in seconds)]


if __name__ == "__main__":
    raise SystemExit(main())
