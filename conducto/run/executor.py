"""Running one command: the contract, and processes of this machine.

An Executor is all that a runner knows of where commands run. `run` blocks until the command has
ended, on a thread of the runner's; what it prints goes to `output` while it prints it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import selectors
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import IO, Any

from castore.system.locks import Lock
from conducto.run.guard import Guard
from conducto.run.states import State

PIECE_BYTES = 1 << 16
GRACE_S = 5.0  # between SIGTERM and SIGKILL
INTERRUPTED = "interrupted"
POLL_S = 0.05  # where the system has no pidfd
FILES_EACH = 3  # descriptors that a command takes: of its output, of its end, to wait for both
FILES_ELSE = 128  # those of the store and of all else


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt of a command: `shell -c command` in `cwd`, with just these variables."""

    node: str
    command: str
    shell: str
    env: Mapping[str, str]
    cwd: str
    timeout_s: float

    def replaced(self, **fields: Any) -> Job:
        return replace(self, **fields)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended: DONE, ERROR or KILLED. `exit_code` is negative for a signal, as Python's.
    `took_s`: how long its process was there; None if it has had none."""

    state: State
    exit_code: int | None = None
    reason: str = ""
    took_s: float | None = None

    @property
    def is_cut_short(self) -> bool:
        """Whether the run or a signal ended it, also that of its time limit, and not it itself."""
        return self.state is State.KILLED or (self.exit_code is not None and self.exit_code < 0)


class Executor:
    """Each command is a session of its own, which ends as a whole with its first process.

    What leaves its session and goes on ends when the run does. If this process dies, a guard ends
    all.
    """

    def __init__(self, cookie: str) -> None:
        """`cookie` is in the environment of each job, and of nothing else."""
        self._guard = Guard(cookie, Lock())
        self._cancelled = threading.Event()
        self._lock = Lock()
        self._groups: set[int] = set()

    def run(self, job: Job, output: Callable[[bytes], None]) -> Outcome:
        """Run it to its end. Called on several threads at once."""
        with self._lock:
            if self._cancelled.is_set():
                return Outcome(State.KILLED, reason=INTERRUPTED)
            began = time.monotonic()
            try:
                process = subprocess.Popen(
                    [job.shell, "-c", job.command],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    bufsize=0,
                    env=job.env,
                    cwd=job.cwd,
                    start_new_session=True,
                )
            except (OSError, ValueError, TypeError) as error:
                return Outcome(State.ERROR, reason=f"can't be started: {error}")
            self._groups.add(process.pid)
        try:
            self._guard.began(process.pid)
            outcome = self._follow(process, job, output)
            return replace(outcome, took_s=time.monotonic() - began)
        finally:
            if process.returncode is None:  # `output` or the guard raised
                _signal_group(process.pid, signal.SIGKILL)
                process.wait()
            with self._lock:
                self._groups.discard(process.pid)
            self._guard.ended(process.pid)
            if process.stdout is not None:
                process.stdout.close()

    def wait(self, time_s: float) -> bool:
        """Let so many seconds pass, or fewer if it is cancelled: whether it is."""
        return self._cancelled.wait(time_s)

    def cancel(self) -> None:
        """End all that runs: each `run` soon returns KILLED, and each later one at once.

        A second call does not wait for what is slow to end.
        """
        with self._lock:
            number = signal.SIGKILL if self._cancelled.is_set() else signal.SIGTERM
            self._cancelled.set()
            for group in self._groups:
                _signal_group(group, number)

    def close(self) -> None:
        """Nothing that was run is left when it returns."""
        self._guard.close()

    def _follow(
        self, process: subprocess.Popen[bytes], job: Job, output: Callable[[bytes], None]
    ) -> Outcome:
        assert process.stdout is not None
        deadline, reason = time.monotonic() + job.timeout_s, ""
        with _Watch(process) as watch:
            while not _has_ended(process):
                left = deadline - time.monotonic()
                if self._cancelled.is_set() and not reason:
                    reason, deadline = INTERRUPTED, time.monotonic() + GRACE_S
                elif left <= 0:
                    _signal_group(process.pid, signal.SIGKILL if reason else signal.SIGTERM)
                    reason = reason or f"timed out after {job.timeout_s:g} s"
                    deadline = time.monotonic() + GRACE_S
                else:
                    watch.wait(min(left, 1.0), output)
            watch.drain(output)
        # Also what it left in the background; before it is waited for, as its number may be
        # somebody else's afterwards.
        _signal_group(process.pid, signal.SIGKILL)
        exit_code = process.wait()
        if self._cancelled.is_set():
            return Outcome(State.KILLED, exit_code, INTERRUPTED)
        return _outcome(exit_code, reason)


def room_for(count: int) -> int:
    """How many commands can run at once of so many that are to: as many as can have their
    descriptors. What the system lets this process have, and so the commands, is raised if need be.
    """
    least = FILES_ELSE + FILES_EACH * count
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return count
    if soft < least:
        raised = least if hard == resource.RLIM_INFINITY else min(least, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    return max(1, min(count, (soft - FILES_ELSE) // FILES_EACH))


class _Watch:
    """A process's output and its end. Others may hold the output open when it has ended."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._out: IO[bytes] = process.stdout
        os.set_blocking(self._out.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._out, selectors.EVENT_READ)
        self._pidfd = _pidfd(process.pid)
        if self._pidfd is not None:
            self._selector.register(self._pidfd, selectors.EVENT_READ)

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *raised: object) -> None:
        self._selector.close()
        if self._pidfd is not None:
            os.close(self._pidfd)

    def wait(self, timeout_s: float, output: Callable[[bytes], None]) -> None:
        """Until it prints or ends, and not longer."""
        if self._pidfd is None:
            timeout_s = min(timeout_s, POLL_S)
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._out:
                self._read(output)

    def drain(self, output: Callable[[bytes], None]) -> None:
        """What is there to be read by now: who holds it open may go on printing without an end."""
        there = fcntl.ioctl(self._out, termios.FIONREAD, bytes(4))
        left = int.from_bytes(there, sys.byteorder)
        while left > 0:
            piece = self._out.read(min(left, PIECE_BYTES))
            if not piece:
                return
            output(piece)
            left -= len(piece)

    def _read(self, output: Callable[[bytes], None]) -> None:
        piece = self._out.read(PIECE_BYTES)  # None if there is nothing now
        if piece:
            output(piece)
        elif piece is not None:
            self._selector.unregister(self._out)


def _pidfd(pid: int) -> int | None:
    """What can be read when the process ends; None where there is no such thing."""
    try:
        return os.pidfd_open(pid)
    except AttributeError:  # macOS
        return None
    except OSError as error:
        if error.errno == errno.ENOSYS:  # an older Linux
            return None
        raise


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """It then still is to be waited for, where the system can look without that."""
    if not hasattr(os, "waitid"):
        return process.poll() is not None
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, flags) is not None


def _outcome(exit_code: int, reason: str) -> Outcome:
    if reason:
        return Outcome(State.ERROR, exit_code, reason)
    if exit_code == 0:
        return Outcome(State.DONE, 0)
    if exit_code > 0:
        return Outcome(State.ERROR, exit_code, f"exit code {exit_code}")
    names = {int(each): each.name for each in signal.Signals}
    name = names.get(-exit_code, f"signal {-exit_code}")
    return Outcome(State.ERROR, exit_code, f"ended by {name}")


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return  # all of it has ended
    except PermissionError:
        return  # macOS: what is left of it are processes that ended and were not waited for
