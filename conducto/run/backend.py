"""Where a run's attempts are made: the contract, and this machine."""

from __future__ import annotations

import os
from typing import Protocol

from conducto.nodes import Exec
from conducto.run.attempt import Attempted, attempt
from conducto.run.executor import Executor, room_for
from conducto.run.jobs import Jobs, Task
from conducto.run.recorder import Recorder


class Backend(Protocol):
    def parallel(self) -> int:
        """How many attempts are to be made at once by now, where nobody says how many. It is asked
        again and again, and does not wait for anything."""

    def run(self, node: Exec, number: int) -> Attempted:
        """Make the attempt with this number, and keep its log. Called on several threads at once.

        It raises what ends the run.
        """

    def cancel(self) -> None:
        """End all that runs: each `run` soon returns KILLED, and each later one at once.

        A second call does not wait for what is slow to end.
        """

    def close(self) -> None:
        """Nothing that was run is left when it returns."""


class LocalBackend:
    """Processes of this machine. Logs go to the store with the run's other records."""

    def __init__(self, jobs: Jobs, executor: Executor, recorder: Recorder) -> None:
        self._jobs = jobs
        self._executor = executor
        self._recorder = recorder

    def parallel(self) -> int:
        if hasattr(os, "sched_getaffinity"):
            return room_for(len(os.sched_getaffinity(0)))
        return room_for(os.cpu_count() or 1)

    def run(self, node: Exec, number: int) -> Attempted:
        task = Task.of(node)
        return attempt(
            task,
            self._jobs,
            self._executor,
            lambda piece: self._recorder.output(task.node, number, piece),
        )

    def cancel(self) -> None:
        self._executor.cancel()

    def close(self) -> None:
        self._executor.close()
