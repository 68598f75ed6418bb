"""Every call on a file of a store fails, once each, at a step of every operation: the error is a
typed one, what was acknowledged is there, and the store goes on.

`failing_calls.c` makes them fail, in a process of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import SUPPORT

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None,
    reason="the library that fails is for Linux, and needs a C compiler",
)

PROGRAM = """
import ctypes, errno, io, os, random, sys
import castore
from castore.errors import CastoreError, CommitUnknown

folder, seed, points = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
calls = ctypes.CDLL(None)
chance = random.Random(seed)
path = folder + "/store"
there = {}
failures = {}

def some(size):
    return random.Random(chance.random()).randbytes(size)

def commit(change):
    with store.transaction() as t:
        for name, content in change.items():
            t.delete(name) if content is None else t.puts(name, content)

def read(change):
    for name, content in there.items():
        assert store.gets(name) == content
        target = io.BytesIO()
        store.get(name, target)
        assert target.getvalue() == content

def reopen(change):
    global store
    store.close()
    store = castore.open(path, threads=1)

def gc(change):
    store.gc(repack_below=0.9)

def change_of(kind):
    if kind is commit:
        return {
            f"n{chance.randrange(8)}": some(chance.choice([10, 3000, 60_000, 700_000]))
            for _ in range(chance.choice([1, 1, 3]))
        } | {name: None for name in chance.sample(sorted(there), min(len(there), 1))}
    return {}

def after(change):
    return {n: c for n, c in (there | change).items() if c is not None}

KINDS = [commit, commit, read, reopen] + [gc] * hasattr(castore.Store, "gc")
store = castore.open(path, threads=1)
store.puts("kept", some(200_000))
there["kept"] = store.gets("kept")
point = 0
while point < points:
    kind, change = chance.choice(KINDS), {}
    change = change_of(kind)
    code, opens = chance.choice(
        [(errno.ENOSPC, 0), (errno.EIO, 0), (errno.EMFILE, 1), (errno.ENFILE, 1), (errno.ENOMEM, 0)]
    )
    calls.fail_at(chance.choice([1, 2, 3, 5, 8, 13, 20]), code, chance.random() < 0.3, opens)
    error = None
    try:
        kind(change)
    except (CastoreError, OSError) as caught:
        error = caught
    failed = calls.calls_made()
    calls.fail_at(0, 0, 0, 0)
    if error is None:
        there = after(change)
    else:
        point += 1
        failures[type(error).__name__] = failures.get(type(error).__name__, 0) + 1
        said = f"{kind.__name__} with {errno.errorcode[code]}: {error!r}"
        if not isinstance(error, CastoreError):
            raise AssertionError(said) from error
        assert str(error), said
    try:
        found = {name: store.gets(name) for name in store.names()}
    except CastoreError:
        # What a Store can't get over, another one can.
        store.close()
        store = castore.open(path, threads=1)
        found = {name: store.gets(name) for name in store.names()}
    if found != there:
        assert isinstance(error, CommitUnknown), (kind.__name__, error, found.keys(), there.keys())
        assert found == after(change)
        there = found
    store.puts("again", some(50_000))
    store.delete("again")
store.close()
with castore.open(path, create=False, read_only=True) as store:
    assert {name: store.gets(name) for name in store.names()} == there
print(failures)
"""


def run(tmp_path: Path, seed: int, points: int) -> str:
    library = tmp_path / "failing.so"
    source = SUPPORT / "failing_calls.c"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-lpthread"]
    subprocess.run(command, check=True)
    folder = tmp_path / f"folder-{seed}"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(seed), str(points)],
        env={**os.environ, "LD_PRELOAD": str(library), "FAIL_ROOT": str(folder)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_calls_that_fail(tmp_path: Path) -> None:
    run(tmp_path, seed=1, points=30)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_calls_that_fail_at_1_000_points(tmp_path: Path) -> None:
    for seed in range(2, 12):
        run(tmp_path, seed, points=100)
