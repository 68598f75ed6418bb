"""What is right in a folder: any names, and pages of a few. `castore.testing` has the rest."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from castore.errors import InvalidName
from castore.testing.names import level


def test_folders_of_more_than_a_page(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("castore.local.lookup.PAGE_NAMES", 3)
    names = [f"f{i % 7}/{i}" for i in range(40)] + [f"n{i:02}" for i in range(20)]
    with store.transaction() as transaction:
        for name in names:
            transaction.puts(name, b"")
    found = [(entry.name, entry.is_folder) for entry in store.scandir()]
    assert found == level(names, "")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.text("a/-0", min_size=1, max_size=6), max_size=12), st.text("a/-0", max_size=4))
def test_any_names(store: Any, names: list[str], folder: str) -> None:
    there = []
    for name in names:
        try:
            store.puts(name, b"")
        except InvalidName:
            continue
        there.append(name)
    folder = folder.strip("/")
    found = [(entry.name, entry.is_folder) for entry in store.scandir(folder)]
    expected = sorted(set(level(list(store.names()), folder)))
    assert sorted(set(found)) == expected
    assert len(found) == len(set(found))
