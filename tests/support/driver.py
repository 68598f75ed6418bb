"""A store driven at random by all its verbs beside a plain dict, and judged after every step.

    python tests/support/driver.py --seed 7 --steps 500 --kind local
    python tests/support/driver.py --seed 7 --kind s3 --only 3,17,40     those steps alone

`--kind` is a folder (local), S3 in memory (s3), or moto. A step is decided by its seed, its number
and by what the store holds, so that any of them may be left out: where one fails, `--shrink` leaves
out what it can do without. The parts are in `driver_*.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import driver_folders
import driver_judge as judge
import driver_processes
import driver_steps
import driver_upkeep
from driver_doors import CommandDoor, Door, PeerDoor, doors_of
from driver_model import Change, Model, now_after
from driver_places import MemoryPlace, Place, place_of
from memory_s3 import Actor, Killed

import castore
from castore.errors import CastoreError
from conducto import context

SIZE_MAX = 2_000_000  # bytes of objects, above which more are deleted than put


class Wrong(AssertionError):
    """The product does not do as the model, or does not agree with itself; after these steps."""

    done: list[int]


class Driver:
    def __init__(self, place: Place, seed: int) -> None:
        self.place = place
        self.seed = seed
        self.step = 0
        self.said: list[str] = []
        self.choose = random.Random()
        self.model = Model()
        self.scratch = place.folder / "scratch"
        self.scratch.mkdir()
        self.size_max = SIZE_MAX
        self.peer: PeerDoor | None = None
        self.doors: dict[str, Door] = {}
        self.held: list[tuple[Any, bytes]] = []
        self.writing: tuple[Any, Change] | None = None
        self.backups: list[tuple[Path, Model]] = []
        self.touched: list[str] = []
        self.open_all()

    # ------------------------------------------------------------ the store, opened

    def open_all(self) -> None:
        self.store = self.place.open("one")
        self.other = self.place.open("two")
        self.place.open_as("one")
        self.doors = doors_of(self.store, self.place.url, self.scratch)

    def close_all(self) -> None:
        """Nobody uses the store any more."""
        while self.held:
            driver_steps.release(self)
        if self.writing is not None:
            self.writing[0].abort()
            self.writing = None
        if self.peer is not None:
            self.peer.close()
            self.peer = None
        for door in self.doors.values():
            door.close()
        self.other.close()
        context.close_stores()

    def command(self, *words: str) -> bytes:
        """What `castore` says that succeeds."""
        door = self.doors["command"]
        assert isinstance(door, CommandDoor)
        code, said, complaint = door.run(*words)
        assert code == 0, (words, code, complaint)
        return said

    def settle(self, before: Model, changes: list[Change], began_ns: int) -> None:
        """Each name is as before, or as after one of the changes: find out which."""
        when = now_after(began_ns)
        allowed = {name: [thing] for name, thing in before.things.items()}
        after = before.copy()
        for change in changes:
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                change.apply(after, when)
            for name in {*after.things, *allowed}:
                thing = after.things.get(name)
                allowed.setdefault(name, [])
                if thing is not None:
                    allowed[name].append(thing)
        found = set(self.store.names())
        assert found <= allowed.keys(), found - allowed.keys()
        things = {}
        for name in sorted(found):
            data = self.store.gets(name)
            fitting = [thing for thing in reversed(allowed[name]) if thing.data == data]
            assert fitting, f"{name!r} is {len(data)} bytes that were never put"
            info = self.store.info(name)
            exact = [thing for thing in fitting if thing.fits(info.mode, info.mtime)]
            assert exact, f"{name!r} has a mode or a time that was never its: {info}"
            things[name] = exact[0]
        self.model.things = things

    # ------------------------------------------------------------ on S3 in memory

    def pass_time(self, seconds: float) -> None:
        if isinstance(self.place, MemoryPlace):
            self.place.server.clock += seconds

    def die_while(self, work: Callable[[castore.Store], object], after: int) -> None:
        """A machine does this, and is gone before its request of that number."""
        place = self.place
        assert isinstance(place, MemoryPlace)
        actor = Actor("dying")
        with place.acting(actor):
            store = place.open(f"dying-{self.step}")
        place.open_as("one")

        def run() -> None:
            with contextlib.suppress(Killed, CastoreError):
                work(store)

        thread = threading.Thread(target=run)
        actor.stop_at(len(actor.steps) + after)
        thread.start()
        actor.await_stop(thread)
        actor.kill()
        thread.join(60)
        assert not thread.is_alive()
        with contextlib.suppress(Killed, CastoreError):
            store.close()

    # ------------------------------------------------------------ steps

    def say(self, what: str) -> None:
        self.said.append(f"{self.step}: {what}")

    def run_step(self, step: int) -> None:
        self.step = step
        self.choose = random.Random(f"{self.seed} {step}")
        do = self.choose.choices(*self._steps())[0]
        try:
            more = do(self)
            if more:
                self.say(more)
            judge.look(self, step)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)
            ours = [f"{frame.name}:{frame.lineno}" for frame in where if "driver" in frame.filename]
            what = f"{type(error).__name__}: {error}"
            raise Wrong(f"step {step}, {' '.join(ours)}: {what}") from error

    def _steps(self) -> tuple[list[Any], list[int]]:
        parts = (driver_steps, driver_folders, driver_processes, driver_upkeep)
        found = {do: facts for part in parts for do, facts in part.STEPS.items()}
        steps = {do: weight for do, (weight, kinds) in found.items() if self.place.kind in kinds}
        return list(steps), list(steps.values())


# ---------------------------------------------------------------- running


def drive(
    seed: int,
    steps: Iterable[int],
    kind: str,
    *,
    make_server: Callable[[], tuple[str, str]] = lambda: ("", ""),
    say: Callable[[str], None] | None = None,
) -> int:
    """Drive a new store through these steps; how many were done. Raises Wrong, with how to repeat
    it."""
    in_memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # nothing here is about fsync
    done: list[int] = []
    with contextlib.ExitStack() as opened:
        made = tempfile.TemporaryDirectory(dir=in_memory, prefix="castore-driver-")
        folder = Path(opened.enter_context(made)) / "place"
        place = opened.enter_context(place_of(kind, seed, folder, make_server))
        driver = Driver(place, seed)
        try:
            for step in steps:
                done.append(step)
                driver.run_step(step)
                if say is not None:
                    say(driver.said[-1] if driver.said else "")
            driver.step = -1
            driver_upkeep.quiet_gc(driver)
        except Exception as error:
            said = "\n  ".join([str(place.settings), *driver.said[-40:]])
            only = f"--only {','.join(map(str, done))}"
            if done == list(range(len(done))):
                only = f"--until {done[-1]}"
            how = f"python tests/support/driver.py --seed {seed} --kind {kind} {only}"
            wrong = Wrong(f"{error}\n  {said}\n{how}")
            wrong.done = done
            raise wrong from error
        finally:
            with contextlib.suppress(Exception):
                driver.close_all()
    return len(done)


def shrink(fails: Callable[[list[int]], bool], steps: list[int]) -> list[int]:
    """Fewer steps, of which the last still fails: halves are left out, then quarters, and so on."""
    size = max(len(steps) // 2, 1)
    while True:
        at = 0
        while at < len(steps) - 1:
            fewer = steps[:at] + steps[min(at + size, len(steps) - 1) :]
            if fails(fewer):
                steps = fewer
            else:
                at += size
        if size == 1:
            return steps
        size //= 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--until", type=int, help="the last step")
    parser.add_argument("--only", help="these steps: 3,17,40")
    parser.add_argument("--kind", choices=("local", "s3"), default="local")
    parser.add_argument("--shrink", action="store_true")
    parser.add_argument("-v", action="store_true", help="say each step")
    given = parser.parse_args()
    warnings.simplefilter("error")
    steps = list(range(given.steps if given.until is None else given.until + 1))
    if given.only:
        steps = [int(step) for step in given.only.split(",")]
    began = time.monotonic()
    try:
        done = drive(given.seed, steps, given.kind, say=print if given.v else None)
    except Wrong as error:
        traceback.print_exception(error.__cause__ and error.__cause__.__cause__)
        print(error, file=sys.stderr)
        if given.shrink:
            _shrink(given.seed, given.kind, error.done)
        return 1
    print(f"{done} steps in {time.monotonic() - began:.1f} s")
    return 0


def _shrink(seed: int, kind: str, steps: list[int]) -> None:
    def fails(fewer: list[int]) -> bool:
        try:
            drive(seed, fewer, kind)
        except Wrong:
            return True
        return False

    fewer = shrink(fails, steps)
    try:
        drive(seed, fewer, kind)
    except Wrong as error:
        print(f"\n{len(fewer)} steps do:\n{error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
