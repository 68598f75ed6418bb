"""Names that no object can have: a check tells them, a repair gives the objects others."""

from __future__ import annotations

from pathlib import Path

from stores import change_rows, rows, small

import castore
from castore.cli import main

BAD = (b"p/../../x", b"p/..", b"p/b\xff", b"/etc/x", b"p/\0z")
LARGE, SMALL = b"large" * 6000, b"small" * 6


def test_names_that_no_object_can_have(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with small(folder) as store:
        store.puts("p/a", LARGE)
        store.puts("p/z", SMALL)
    found = rows(folder)[b"names"]
    records = (found[b"p/a"], found[b"p/z"])
    change_rows(folder, b"names", {name: records[i % 2] for i, name in enumerate(BAD)})
    report = castore.check_store(folder, read_data=True)
    assert report.exit_code == 13
    told = [p.what for p in report.problems if "is no name that an object can have" in p.what]
    assert len(told) == len(BAD)
    assert main(["-r", str(folder), "check", "--repair", "--yes"]) == 0
    assert castore.check_store(folder, read_data=True).exit_code == 0
    with castore.open(folder) as store:
        kept = [name for name in store.names("quarantine/") if not name.endswith(".json")]
        assert sorted(map(store.gets, kept)) == [LARGE, LARGE, LARGE, SMALL, SMALL]
        assert [name for name in store.names() if name not in kept][:2] == ["p/a", "p/z"]
