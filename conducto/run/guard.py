"""A process that outlives a killed runner, and ends what it was running.

It knows the runner's processes by two things: the process groups it was told of, and, on Linux, a
variable in their environment, which also those have that left their group. It waits for the end of
a pipe that only the runner holds; a SIGKILL closes that, too.

It runs this file by itself, which finds no other of ours.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import AbstractContextManager
from queue import Empty, SimpleQueue

VARIABLE = "CONDUCTO_RUN"
PASSES_MAX = 200  # a process that can't be killed is not waited for forever
PASS_S = 0.01
READ_S = 5.0  # nor one whose environment can't be read


class Guard:
    """The runner's side of it. One that somebody ended is begun again."""

    def __init__(self, cookie: str, lock: AbstractContextManager[object]) -> None:
        """`cookie` is the variable's value; `lock` is for one thread at a time."""
        self._cookie = cookie
        self._lock = lock
        self._groups: set[int] = set()
        self._process = self._start()

    def began(self, group: int) -> None:
        with self._lock:
            self._groups.add(group)
            self._tell(f"+{group}\n")

    def ended(self, group: int) -> None:
        with self._lock:
            self._groups.discard(group)
            self._tell(f"-{group}\n")

    def close(self) -> None:
        """Let it end what is left, and wait for it."""
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode())
        except BrokenPipeError:
            self._process.stdin.close()
            self._process.wait()
            self._process = self._start()
            for group in self._groups:
                self._tell(f"+{group}\n")

    def _start(self) -> subprocess.Popen[bytes]:
        # Without the mark of a run that this is itself a part of: it has to outlive that.
        env = {name: value for name, value in os.environ.items() if name != VARIABLE}
        return subprocess.Popen(
            [sys.executable, "-I", "-S", os.path.abspath(__file__), self._cookie],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            bufsize=0,
            env=env,
            cwd="/",
            start_new_session=True,  # a Ctrl-C of the terminal is not for it
        )


def watch(cookie: str) -> None:
    groups: set[int] = set()
    with os.fdopen(0, "rb") as told:
        for line in told:
            if line.endswith(b"\n"):  # the last one may be torn
                (groups.add if line[:1] == b"+" else groups.discard)(int(line[1:]))
    for group in groups:
        end(group, is_group=True)
    marker = f"{VARIABLE}={cookie}".encode()
    clean = 0
    stuck: set[int] = set()
    # A process that was just about to begin has the variable a moment later: look twice.
    for _ in range(PASSES_MAX):
        found = marked(marker, stuck)
        for pid in found:
            end(pid)
        clean = 0 if found else clean + 1
        if clean == 2:
            return
        time.sleep(PASS_S)


def marked(marker: bytes, stuck: set[int]) -> list[int]:
    """The processes that have this in their environment; those that are `stuck` are not looked at.

    Who reads the environment of a process that begins a program waits until it has, and where that
    is read from a disk that does not answer, without an end. It may be anybody's: after `READ_S`
    it joins the stuck ones.
    """
    found, left = [], deque(pid for pid in processes() if pid not in stuck)
    while left:
        read: SimpleQueue[list[bytes]] = SimpleQueue()
        threading.Thread(target=_read, args=(tuple(left), read), daemon=True).start()
        try:
            while left:
                if marker in read.get(timeout=READ_S):
                    found.append(left[0])
                left.popleft()
        except Empty:
            stuck.add(left.popleft())
    return found


def _read(pids: tuple[int, ...], read: SimpleQueue[list[bytes]]) -> None:
    for pid in pids:
        read.put(environment(pid))


def processes() -> list[int]:
    """All of this machine, where /proc tells."""
    if not os.path.isdir("/proc/self"):
        return []
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def environment(pid: int) -> list[bytes]:
    """Its variables; none of a process that is gone, is a zombie, or is somebody else's."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def end(pid: int, *, is_group: bool = False) -> None:
    try:
        (os.killpg if is_group else os.kill)(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # gone, or not ours


if __name__ == "__main__":
    watch(sys.argv[1])
