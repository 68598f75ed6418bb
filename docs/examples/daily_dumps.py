"""Stage a database's dump of each day, see what that takes, and ask them something.

    python docs/examples/daily_dumps.py --run -j 2

A dump is mostly that of the day before. All days are kept whole, and each can be read by itself or
in part; the store has what is the same in them once.
"""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path

import castore
import conducto as co

ROWS = 200_000


def pipeline(days: int = 4) -> co.Serial:
    """Dump each day, then look at what is stored and ask for what changed."""
    with co.Serial(doc=co.util.magic_doc()) as root:
        with co.Serial(name="dump"):
            for day in range(days):
                co.Exec(dump, day, name=f"day {day}")
        with co.Parallel(name="look"):
            co.Exec(stored, name="stored")
            for day in range(1, days):
                co.Exec(changed, day, name=f"changed on day {day}")
    return root


def dump(day: int) -> None:
    """Today's database: yesterday's, with some orders more and some of the old ones paid."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "orders.db"
        if day:
            co.data.pipeline.get(f"dumps/{day - 1}", str(path))
        database = sqlite3.connect(path)
        database.execute("create table if not exists orders (id integer primary key, paid int)")
        begin = 0 if day == 0 else ROWS + 100 * (day - 1)
        end = ROWS + 100 * day
        database.executemany(
            "insert into orders values (?, 0)", ((number,) for number in range(begin, end))
        )
        database.execute("update orders set paid = ? where id / 50 = ?", (day, day))
        database.commit()
        database.close()
        co.data.pipeline.put(f"dumps/{day}", str(path))
    print(f"day {day}: {co.data.pipeline.size(f'dumps/{day}')} bytes")


def stored() -> None:
    """What the store has for all that was staged, on this machine or on S3."""
    with castore.open(co.context.store_url(), read_only=True) as store:
        stats = store.stats()
    print(f"{stats.logical_bytes} bytes were put, and {stats.stored_bytes} are stored")


def changed(day: int) -> None:
    """Which orders were paid on this day."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("before", "after")]
        for path, each in zip(paths, (day - 1, day), strict=True):
            co.data.pipeline.get(f"dumps/{each}", str(path))
        database = sqlite3.connect(paths[1])
        database.execute("attach ? as yesterday", (str(paths[0]),))
        [(paid, new)] = database.execute(
            "select sum(o.paid > 0 and y.paid = 0), sum(y.id is null) from orders o"
            " left join yesterday.orders y using (id)"
        )
        database.close()
    print(f"day {day}: {paid} paid, {new} new")


if __name__ == "__main__":
    co.main(default=pipeline)
