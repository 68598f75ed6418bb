"""Do something to each object whose name has a prefix, whichever there are by then.

    python docs/examples/each_name.py --run

Which objects there are is known when the nodes before have put them: a Lazy makes a node for each.
"""

from __future__ import annotations

import csv
import io

import conducto as co


def pipeline(stores: int = 3) -> co.Serial:
    """Collect sales, then check each, and say what all of them come to."""
    with co.Serial(doc=co.util.magic_doc()) as root:
        with co.Parallel(name="collect"):
            for number in range(stores):
                co.Exec(collect, number, name=f"store {number}")
        co.Lazy(each, "sales/", name="check")
        co.Exec("conducto-data-pipeline list --prefix=checked/", name="list")
    return root


def collect(number: int) -> None:
    """The sales of one store; some of them have an error in them."""
    rows = [["item", "price"], *([f"item {n}", n * number] for n in range(1, 6))]
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    co.data.pipeline.puts(f"sales/{number}.csv", text.getvalue().encode())


def each(prefix: str) -> co.Parallel:
    """A node for each name with the prefix."""
    tree = co.Parallel()
    for name in co.data.pipeline.list(prefix):
        tree[name.removeprefix(prefix)] = co.Exec(check, name)
    return tree


def check(name: str) -> None:
    rows = csv.DictReader(io.StringIO(co.data.pipeline.gets(name).decode()))
    total = sum(int(row["price"]) for row in rows)
    co.data.pipeline.puts(f"checked/{name.removeprefix('sales/')}", str(total).encode())
    print(name, "comes to", total)


if __name__ == "__main__":
    co.main(default=pipeline)
