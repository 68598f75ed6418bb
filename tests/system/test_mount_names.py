"""What a mount knows of names, beside others and itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from between import change_after_each_read

import castore
from castore.mount.names import Names

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
