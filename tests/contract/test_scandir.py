"""What is right in a folder, on both kinds of stores."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from castore.errors import InvalidName

NAMES = ["a", "a/b", "a/c/d", "a-b", "a.txt", "a0", "b//c", "b/", "c/d", "é/ü", "z/" + "y" * 300]


def level(names: list[str], folder: str) -> list[tuple[str, bool]]:
    """As it is defined."""
    prefix = folder + "/" if folder else ""
    found = set()
    for name in names:
        if name.startswith(prefix):
            inner, slash, _ = name[len(prefix) :].partition("/")
            found.add((prefix + inner, bool(slash)))
    return sorted(found, key=lambda each: (each[0] + "/" * each[1]).encode())


def test_each_folder_s_own(any_store: Any) -> None:
    for name in NAMES:
        any_store.puts(name, name.encode())
    for folder in ["", "a", "a/c", "b", "b/", "c", "é", "z", "nothing", "a-b"]:
        with_details = list(any_store.scandir(folder))
        found = [(entry.name, entry.is_folder) for entry in with_details]
        assert found == level(NAMES, folder.rstrip("/")), folder
        without = list(any_store.scandir(folder, details=False))
        assert [(entry.name, entry.is_folder) for entry in without] == found
        assert all(entry.info is None for entry in without)
        for entry in with_details:
            assert (entry.info is None) == entry.is_folder
            assert entry.info is None or entry.info == any_store.info(entry.name)


def test_objects_and_folders_are_told_apart(any_store: Any) -> None:
    for name in NAMES:
        any_store.puts(name, b"")
    assert any_store.kind("a") == (True, True)
    assert any_store.kind("a/b") == (True, False)
    assert any_store.kind("a/c") == (False, True)
    assert any_store.kind("c") == (False, True)
    assert any_store.kind("a0") == (True, False)
    assert any_store.kind("nothing") == (False, False)
    with pytest.raises(InvalidName):
        any_store.kind("")
    assert list(any_store.scandir("a/../b")) == [], "no name begins like that"


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
