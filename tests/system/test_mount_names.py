"""What a mount knows of names, beside others and itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from between import change_after_each_read

import castore
from castore.mount.names import Names


@pytest.mark.parametrize("after", range(3))
@pytest.mark.parametrize("names", [("x", "x/y"), ("x/y", "x")])
def test_what_is_moved_into_a_folder_of_its_name_is_there_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str], after: int
) -> None:
    with castore.open(tmp_path / "store") as store:
        store.puts(names[0], b"1")
        move = partial(store.rename, *names)
        change_after_each_read(monkeypatch, [lambda: None] * after + [move])
        info, is_folder = Names(store, 0.0).look("x")
        assert info is not None or is_folder


ASK: dict[str, Callable[[Names], object]] = {
    "look": lambda names: names.look("x")[0],
    "list": lambda names: names.listing(""),
}


@pytest.mark.parametrize("ask", ASK)
def test_what_was_asked_before_a_change_is_not_remembered_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    """While one thread asks, another puts a file."""
    with castore.open(tmp_path / "store") as store:
        names = Names(store, 60.0)

        def put() -> None:
            store.puts("x", b"1")
            names.forget()

        change_after_each_read(monkeypatch, [put])
        assert not ASK[ask](names)
        assert ASK[ask](names)
