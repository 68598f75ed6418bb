"""The walks of CONTRIBUTING, followed: calls go down a line of modules, and nothing calls back."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from places import ROOT
from s3_stores import Open

import castore

WALKS = re.compile(r"^### (.+)\n\n((?:\d\. .+\n(?: .+\n)*)+)", re.MULTILINE)


def walk(title: str) -> list[str]:
    """The modules of a walk, in its order."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    steps = dict(WALKS.findall(text))[title]
    return [f"castore/{module}.py" for module in re.findall(r"^\d\. `([a-z_0-9/]+)`", steps, re.M)]


def calls(action: Callable[[], object]) -> set[tuple[str, str]]:
    """(module, module) of all calls from one module of ours to another, in this thread and in those
    that begin meanwhile."""
    home = str(Path(castore.__file__).parent.parent) + "/"
    found = set()

    def module(frame: FrameType) -> str:
        path = frame.f_code.co_filename
        return path[len(home) :] if path.startswith(home) else ""

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or not (called := module(frame)):
            return
        caller = frame.f_back
        while caller is not None and not module(caller):
            caller = caller.f_back
        if caller is not None and module(caller) != called:
            found.add((module(caller), called))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return found


def assert_walked(title: str, found: set[tuple[str, str]]) -> None:
    line = walk(title)
    assert 2 < len(line) <= 7
    called = {each for _, each in found}
    assert set(line[1:]) <= called, "each of them has a part in it"
    for caller, each in found:
        if each in line:
            # What is beside the line may call into it, if it is no tool of all kinds of stores.
            assert caller in line or not re.match(r"castore/(format|system|model|errors)", caller)
        if caller in line and each in line:
            assert line.index(caller) < line.index(each), f"{caller} calls {each}"


def test_a_put_to_a_local_store(store: castore.Store, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 4000)
    assert_walked("A put to a local store", calls(lambda: store.put("a", path)))


@pytest.fixture
def large(open_moto: Open) -> Open:
    with open_moto() as store:
        store.puts("a", bytes(range(256)) * 4000 + b"end")
    return open_moto


def test_a_byte_range_from_s3(large: Open) -> None:
    store = large(2, threads=1)
    assert_walked("A byte range from S3", calls(lambda: store.gets("a", (5000, 6000))))


def test_a_collection_on_s3(large: Open) -> None:
    store = large(2, threads=1)
    store.puts("b", bytes(range(255)) * 4000)
    store.delete("a")
    store.gc(grace_s=0)
    assert_walked("A collection on S3", calls(lambda: store.gc(grace_s=0)))
