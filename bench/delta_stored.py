"""The rows `stored-SERIES` of bench_delta: what a series of versions takes on disk.

Every version is put, the oldest first, each by a process of its own, and everything that the store
is made of counts, its index too. `castore, delta=False` makes no deltas; `zstd, one stream` is
`zstd -3 --long=31` of all versions one behind the other: about what there is to be had, but in one
piece. The newest version of castore's is read back and compared, and its store checked, data and
all.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from measure import Bar, Row, castore_command, run, same_bytes, settle
from peers import Castore, Command, Contender

MEGABYTE = 1e6
STREAM = "zstd, one stream"
STREAM_BAR = 1.3
PEER_BARS = {"sdist": 1 / 3, "wheel": 0.55}  # of the best peer
CODE_WITHOUT = """
import sys, castore
with castore.open(sys.argv[1], delta=False) as store:
    store.put(sys.argv[2], sys.argv[3])
"""


class Versions(Castore):
    """Each file under its own name: the one before it is found by that."""

    def put(self, source: Path) -> Command:
        return self._command("put", str(source), source.name)


class VersionsWithoutDeltas(Versions):
    name = "castore, delta=False"

    def put(self, source: Path) -> Command:
        store = str(self.directory / "store")
        argv = [sys.executable, "-c", CODE_WITHOUT, store, source.name, str(source)]
        return Command(argv, self.env)


def measured(
    name: str,
    what: str,
    versions: Sequence[Path],
    kinds: Sequence[type[Contender]],
    folder: Path,
    *,
    peer_bar: float | None,
    judged: bool,
) -> Row:
    total = sum(path.stat().st_size for path in versions)
    row = Row(f"stored-{name}", f"{len(versions)} {what}, {total / MEGABYTE:,.0f} MB", "MB")
    for kind in (Versions, VersionsWithoutDeltas, *kinds):
        contender = kind(folder / "stored")
        contender.renew()
        settle()
        seconds = 0.0
        for path in versions:
            command = contender.put(path)
            seconds += run(command.argv, env=command.env, cwd=command.cwd).wall_s
        settle()  # what is not written out has no blocks yet
        row.add(contender.name, contender.stored_bytes() / MEGABYTE)
        row.notes.append(f"{contender.name}: {seconds:.1f} s for all puts")
        if kind is Versions:
            row.notes.append(_told(contender.directory / "store"))
            _check(contender.directory / "store", versions[-1], folder)
        shutil.rmtree(contender.directory)
    if shutil.which("zstd") is not None:
        row.add(STREAM, _one_stream(versions, folder / "stream") / MEGABYTE)
    _judge(row, [kind.name for kind in kinds], peer_bar, judged=judged)
    return row


def _one_stream(versions: Sequence[Path], target: Path) -> int:
    """The size of all versions as one stream."""
    files = shlex.join(str(path) for path in versions)
    command = f"cat {files} | zstd -3 --long=31 -q -c > {shlex.quote(str(target))}"
    subprocess.run(["sh", "-c", command], check=True)
    size = target.stat().st_size
    target.unlink()
    return size


def _told(store: Path) -> str:
    import castore

    with castore.open(store, read_only=True) as opened:
        stats = opened.stats()
    return (
        f"castore: {stats.deltas:,} of {stats.chunks:,} chunks are deltas, of "
        f"{stats.delta_bases / max(stats.deltas, 1):.2f} bases; {stats.frames_per_chunk:.2f} "
        f"frames for one; index {stats.index_bytes / MEGABYTE:.1f} MB"
    )


def _check(store: Path, newest: Path, folder: Path) -> None:
    """Raises CommandFailed, or AssertionError."""
    run([*castore_command(), "-r", str(store), "check", "--read-data"])
    target = folder / "read-back"
    run([*castore_command(), "-r", str(store), "get", newest.name, str(target)])
    if not same_bytes(target, newest):
        raise AssertionError(f"{newest.name} was read back with other bytes")
    target.unlink()


def _judge(row: Row, peers: Sequence[str], peer_bar: float | None, *, judged: bool) -> None:
    [ours] = row.samples["castore"]
    if peers:
        best = min(row.samples[peer][0] for peer in peers)
        if peer_bar is None:
            row.notes.append(f"{ours / best:.2f} of the best peer")
        else:
            met = ours / best <= peer_bar if judged else None
            text = f"≤ {peer_bar:.2f} of the best of {', '.join(peers)}"
            row.bars.append(Bar(text, f"{ours / best:.2f}", met))
    if STREAM in row.samples:
        ratio = ours / row.samples[STREAM][0]
        met = ratio <= STREAM_BAR if judged else None
        row.bars.append(Bar(f"≤ {STREAM_BAR} × `zstd --long=31` of all", f"{ratio:.2f}", met))
