"""Series of versions that bench_delta stores: generated ones, as files. They depend on nothing but
the seed; each version is made from the one before.

- `csv`: a table of rows, of which 1 % are edited.
- `parquet`, `parquet-cdc`: the rows of bench_tables, of which a thousandth are changed and as many
  inserted in ten places; written plainly, and as `castore.tables.parquet_options()` says, with
  pages that are cut by content.
- `sqlite`: a database file in which 1 % of the rows are updated.
- `log`: lines, to which a quarter of the first version's size is added.
- `dump`: INSERT statements, of which 1 % are deleted.
"""

from __future__ import annotations

import importlib.util
import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import bench_tables
import corpora

SHARE = 100  # one row of so many changes

Make = Callable[[Path, int, int], Iterator[Path]]  # where, bytes of a version, how many


def rows_of(name: str, size: int, chance: random.Random) -> list[bytes]:
    """Rows of corpora.GENERATED, of about `size` bytes together."""
    row = corpora.GENERATED[name]
    rows: list[bytes] = []
    total = 0
    while total < size:
        rows.append(row(chance, len(rows)))
        total += len(rows[-1])
    return rows


def csv(folder: Path, size: int, versions: int) -> Iterator[Path]:
    chance = random.Random("csv")
    rows = rows_of("csv", size, chance)
    yield written(folder, "csv", 0, rows)
    for version in range(1, versions):
        for at in chance.sample(range(len(rows)), len(rows) // SHARE):
            rows[at] = corpora.GENERATED["csv"](chance, at)
        yield written(folder, "csv", version, rows)


def log(folder: Path, size: int, versions: int) -> Iterator[Path]:
    chance = random.Random("log")
    rows = rows_of("log lines", 2 * size, chance)
    for version in range(versions):
        share = (4 + version) / (4 + versions)
        yield written(folder, "log", version, rows[: int(len(rows) * share)])


def dump(folder: Path, size: int, versions: int) -> Iterator[Path]:
    chance = random.Random("dump")
    rows = [
        b"INSERT INTO orders VALUES (" + row.rstrip().replace(b",", b", ") + b");\n"
        for row in rows_of("csv", size, chance)
    ]
    yield written(folder, "dump", 0, rows)
    for version in range(1, versions):
        doomed = set(chance.sample(range(len(rows)), len(rows) // SHARE))
        rows = [row for at, row in enumerate(rows) if at not in doomed]
        yield written(folder, "dump", version, rows)


def sqlite(folder: Path, size: int, versions: int) -> Iterator[Path]:
    chance = random.Random("sqlite")
    path = folder / "sqlite-work"
    words = [f"word{i:04d}" for i in range(5000)]
    count = size // 100
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, price REAL, note TEXT)")
    database.executemany(
        "INSERT INTO t VALUES (?, ?, ?, ?)",
        (
            (i, chance.choice(words), chance.random() * 1000, " ".join(chance.choices(words, k=7)))
            for i in range(count)
        ),
    )
    for version in range(versions):
        if version:
            database.executemany(
                "UPDATE t SET price = ?, name = ? WHERE id = ?",
                (
                    (chance.random() * 1000, chance.choice(words), i)
                    for i in chance.sample(range(count), count // SHARE)
                ),
            )
        database.commit()
        yield written(folder, "sqlite", version, [path.read_bytes()])
    database.close()
    path.unlink()


def parquet(folder: Path, size: int, versions: int) -> Iterator[Path]:
    return _tables(folder, size, versions, "parquet")


def parquet_cdc(folder: Path, size: int, versions: int) -> Iterator[Path]:
    return _tables(folder, size, versions, "parquet-cdc")


def _tables(folder: Path, size: int, versions: int, name: str) -> Iterator[Path]:
    import pyarrow.parquet as pq

    from castore.tables import parquet_options

    table = bench_tables.first_version(max(size // 45, 1000))
    for version in range(versions):
        if version:
            changed = bench_tables.changes(table)
            table = changed[("changed", "inserted")[version % 2]]
        path = folder / f"{name}-{version}"
        pq.write_table(table, path, **(parquet_options() if name == "parquet-cdc" else {}))
        yield path


def written(folder: Path, name: str, version: int, rows: list[bytes]) -> Path:
    path = folder / f"{name}-{version}"
    path.write_bytes(b"".join(rows))
    return path


MAKE: dict[str, Make] = {
    "csv": csv,
    "parquet": parquet,
    "parquet-cdc": parquet_cdc,
    "sqlite": sqlite,
    "log": log,
    "dump": dump,
}


def missing(name: str) -> str | None:
    """What this Python would have to have to make the series; None if it has it."""
    wanted = "pyarrow" if name.startswith("parquet") else None
    return wanted if wanted and importlib.util.find_spec(wanted) is None else None
