"""Parquet as `castore.tables` has it written: versions of a table share their chunks."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import castore
from castore.tables import parquet_options


def test_each_caller_gets_options_of_its_own() -> None:
    parquet_options()["use_content_defined_chunking"]["min_chunk_size"] = 1
    assert parquet_options()["use_content_defined_chunking"]["min_chunk_size"] == 32768


def test_the_page_shows_the_options_as_they_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "tables.md").read_text()
    [shown] = re.findall(r"^which is\n\n```python\n(.*?)```$", page, re.MULTILINE | re.DOTALL)
    assert ast.literal_eval(shown) == parquet_options()


def test_inserted_rows_leave_the_rest_as_it_was(store: castore.Store, tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    pyarrow = pytest.importorskip("pyarrow", minversion="21.0")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = 100_000
    first = pyarrow.table({"a": numpy.random.default_rng(1).normal(size=rows)})
    second = pyarrow.concat_tables([first.slice(0, 500), first.slice(0, 3), first.slice(500)])
    added = {}
    for how, options in (("default", {}), ("ours", parquet_options())):
        for name, version in (("first", first), ("second", second)):
            before = store.stats().stored_bytes
            parquet.write_table(version, tmp_path / "table", **options)
            store.put(f"{how}/{name}", tmp_path / "table")
            added[how, name] = store.stats().stored_bytes - before
        with store.open(f"{how}/second") as file:
            assert parquet.read_table(file).equals(second)
    assert added["ours", "second"] < added["ours", "first"] / 3
    assert added["ours", "second"] < added["default", "second"] / 3
