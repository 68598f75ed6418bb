"""The power goes: whatever of what was not synced is lost, what was acknowledged is there.

A process is recorded (lost_writes.c) while it puts, overwrites, renames and deletes; at moments of
its life a disk is made as it may have been left (lost_writes.py), and a store is opened on it.
"""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path
from typing import Any

import lost_writes
import pytest
from lost_values import value
from lost_writes import Disk

import castore
from castore.errors import CastoreError

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None,
    reason="the recorder is for Linux, and needs a C compiler",
)

PROGRAM = """
import json, os, random, sys
import castore
from lost_values import value
# without

root, seed, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)
said = os.open(root + "/said", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
def say(**what):
    os.write(said, json.dumps(what).encode() + b"\\n")
NAMES = [f"n{i}" for i in range(12)]
say(opening=True)
store = castore.open(root + "/store", threads=2)
there = {}
for step in range(steps):
    kind = chance.choice(["puts"] * 6 + ["many", "delete", "rename", "copy", "reopen", "gc"])
    name, other = chance.sample(NAMES, 2)
    blocks = [chance.randrange(40) for _ in range(chance.choice([0, 1, 1, 3, 8]))]
    change = {}
    if kind == "puts":
        change = {name: blocks}
    elif kind == "many":
        change = {name: blocks, other: [*blocks, 1]} | (
            {gone: None for gone in list(there)[:1] if gone not in (name, other)}
        )
    elif kind == "delete" and name in there:
        change = {name: None}
    elif kind == "rename" and name in there:
        change = {name: None, other: there[name]}
    elif kind == "copy" and name in there:
        change = {other: there[name]}
    say(change=change)
    if kind == "puts":
        store.puts(name, value(blocks))
    elif kind == "many":
        with store.transaction() as t:
            for each, content in change.items():
                t.delete(each) if content is None else t.puts(each, value(content))
    elif kind == "reopen":
        store.close()
        store = castore.open(root + "/store", threads=2)
    elif kind == "gc" and hasattr(store, "gc"):
        store.gc()
    elif change:
        if kind == "delete":
            store.delete(name)
        elif kind == "rename":
            store.rename(name, other)
        else:
            store.copy(name, other)
    there |= change
    there = {each: content for each, content in there.items() if content is not None}
    say(done=True)
"""

WITHOUT = {
    "of packs": """
import types
import castore.local.pack
castore.local.pack.os = types.SimpleNamespace(**{**vars(os), "fsync": lambda fd: None})
""",
    "of folders": """
import castore.store, castore.local.store, castore.system.fileio
for module in list(sys.modules.values()):
    if hasattr(module, "sync_folder"):
        module.sync_folder = lambda folder: None
""",
    "of the index": """
import types
import castore.system.lmdb_env, lmdb
def open_unsynced(*arguments, **options):
    return lmdb.open(*arguments, **{**options, "sync": False})
castore.system.lmdb_env.lmdb = types.SimpleNamespace(**{**vars(lmdb), "open": open_unsynced})
""",
}


def states_at(said: list[tuple[int, dict[str, Any]]], moment: int) -> list[dict[str, list[int]]]:
    """What the names may map to: as acknowledged, or as the change under way leaves it."""
    there: dict[str, list[int]] = {}
    under_way: dict[str, list[int] | None] = {}
    for at, what in said:
        if at >= moment:
            break
        if "done" in what:
            there = after(there, under_way)
            under_way = {}
        under_way = what.get("change", under_way)
    return [there, after(there, under_way)]


def after(there: dict[str, list[int]], change: dict[str, list[int] | None]) -> dict[str, list[int]]:
    return {name: blocks for name, blocks in (there | change).items() if blocks is not None}


def check_images(tmp_path: Path, seed: int, *, count: int, steps: int, without: str = "") -> None:
    root = tmp_path / f"recorded-{seed}"
    root.mkdir()
    program = PROGRAM.replace("# without", without)
    library = lost_writes.build(tmp_path)
    events = lost_writes.record(library, program, root, str(seed), str(steps))
    said = lost_writes.announcements(events, "said")
    disk, at, chance = Disk(root), 0, random.Random(seed)
    for i, moment in enumerate(sorted(chance.sample(range(1, len(events)), count))):
        for event in events[at:moment]:
            disk.apply(event)
        at = moment
        image = tmp_path / "image"
        disk.write_image(image, chance, [0, 1, chance.random()][i % 3])
        check_image(image, states_at(said, moment))
        shutil.rmtree(image)


def check_image(image: Path, allowed: list[dict[str, list[int]]]) -> None:
    """It opens with no manual step, holds one of the allowed states, and can be used."""
    with castore.open(image / "store", threads=1) as store:
        found = {name: store.gets(name) for name in store.names()}
        assert found in [
            {name: value(blocks) for name, blocks in state.items()} for state in allowed
        ]
        store.puts("another", value([99, 98]))
        store.puts("known", value([1, 2, 3]))
    with castore.open(image / "store", threads=1) as store:
        for name, content in found.items():
            assert store.gets(name) == content
        assert store.gets("another") == value([99, 98])
        assert store.gets("known") == value([1, 2, 3])


def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    check_images(tmp_path, seed=1, count=40, steps=30)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_nothing_acknowledged_is_lost_in_500_images(tmp_path: Path) -> None:
    for seed in range(10):
        check_images(tmp_path, seed, count=50, steps=60)


@pytest.mark.damages_store("what was not synced is lost")
@pytest.mark.parametrize("sync", WITHOUT)
def test_each_sync_is_needed(tmp_path: Path, sync: str) -> None:
    """Without it, an image shows a loss: which is also what says that images are made right."""
    with pytest.raises((AssertionError, CastoreError)):
        check_images(tmp_path, seed=1, count=150, steps=30, without=WITHOUT[sync])


APPENDING = """
import os, sys
path = sys.argv[1] + "/appended"
for part in (b"one,", b"two,", b"three"):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, part)
    os.fsync(fd)
    os.close(fd)
folder = os.open(sys.argv[1], os.O_RDONLY)
os.fsync(folder)
"""


def test_a_file_that_is_opened_again_to_append_goes_on_at_its_end(tmp_path: Path) -> None:
    assert (image_at_the_end(tmp_path, APPENDING) / "appended").read_bytes() == b"one,two,three"


REOPENED = """
import os, sys
import castore
from lost_values import value
# without

for i in range(3):
    with castore.open(sys.argv[1] + "/store", threads=1) as store:
        store.puts(f"n{i}", value([i]))
"""
JOURNAL_UNSYNCED = """
import castore.local.journal.log
castore.local.journal.log.Journal.sync = lambda self: None
"""


def test_a_journal_is_durable_when_its_store_was_closed(tmp_path: Path) -> None:
    assert names_by_the_journal(tmp_path, REOPENED) == ["n0", "n1", "n2"]


@pytest.mark.damages_store("what was not synced is lost")
def test_a_journal_that_is_not_synced_is_found_out(tmp_path: Path) -> None:
    program = REOPENED.replace("# without", JOURNAL_UNSYNCED)
    assert names_by_the_journal(tmp_path, program) == []


def names_by_the_journal(tmp_path: Path, program: str) -> list[str]:
    """Those that are left when the power goes after the program, and then the index is lost."""
    root = image_at_the_end(tmp_path, program) / "store"
    shutil.rmtree(root / "index")
    castore.rebuild_index(root)
    with castore.open(root) as store:
        return list(store.names())


def image_at_the_end(tmp_path: Path, program: str) -> Path:
    """What is left of what the program did in its folder, without all that it had not synced."""
    root, image = tmp_path / "recorded", tmp_path / "image"
    root.mkdir()
    disk = Disk(root)
    for event in lost_writes.record(lost_writes.build(tmp_path), program, root):
        disk.apply(event)
    disk.write_image(image, random.Random(0), 0)
    return image
