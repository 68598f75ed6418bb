"""A run on the workers of a cluster of dask.distributed: each attempt is one of its tasks.

The runner decides what runs when, as ever, and records states. A worker runs the command and keeps
its log. That a worker died shows when Dask gives its task to another, which finds the attempt
taken: the runner then makes a new one.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import distributed

from castore.system.locks import Lock
from conducto.cli import complain
from conducto.errors import RunError
from conducto.nodes import Exec
from conducto.run import worker
from conducto.run.attempt import Attempted
from conducto.run.executor import GRACE_S, INTERRUPTED, Outcome
from conducto.run.jobs import Task
from conducto.run.options import PARALLEL_MAX
from conducto.run.records import Records
from conducto.run.states import State

CONNECT_S = 10.0
POLL_S = 0.2
COUNT_S = 1.0
END_S = GRACE_S + 10.0  # for a worker to end a command, and to keep the end of its log
END_AT_ONCE_S = 2.0


@contextmanager
def connected(address: str) -> Iterator[distributed.Client]:
    """A client of the scheduler there. Raises RunError where there is none, and if its workers
    can't reach the store."""
    try:
        client = distributed.Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError, ImportError) as error:
        raise RunError(f"no scheduler of dask.distributed answers at {address}: {error}") from error
    with client:
        _check_workers(client)
        yield client


def _check_workers(client: distributed.Client) -> None:
    try:
        client.run(worker.check, worker.Place.here())
    except RunError:
        raise
    except Exception as error:  # whatever theirs is that has another conducto, or none
        raise RunError(
            f"workers of the cluster can't run nodes: {error!r}: they and the scheduler need "
            "castore[dask], in the same version"
        ) from error


class ClusterBackend:
    """Attempts on the workers of a cluster."""

    def __init__(self, client: distributed.Client, records: Records, cwd: str) -> None:
        self._client = client
        self._records = records
        self._run = worker.RemoteRun(records.id, secrets.token_hex(8), cwd, worker.Place.here())
        self._lock = Lock()
        self._futures: dict[str, distributed.Future] = {}
        self._unlimited: set[str] = set()  # resources of which it was said that none has any
        self._deadline = float("inf")
        self._ending: list[threading.Thread] = []
        self._threads = self._count()
        if not self._threads:
            complain("conducto: the cluster has no worker yet: the run waits")
        self._closed = threading.Event()
        self._counting = threading.Thread(target=self._go_on_counting, daemon=True)
        self._counting.start()

    def parallel(self) -> int:
        """One more than its workers have threads by now: Dask makes a cluster grow that is
        `adapt()`ed only where something waits."""
        return min(self._threads + 1, PARALLEL_MAX)

    def run(self, node: Exec, number: int) -> Attempted:
        task = Task.of(node)
        resources = self._resources(task)
        if isinstance(resources, Outcome):
            return Attempted(resources)
        key = f"conducto-{self._run.id}-{self._run.mark}-{task.node}-{number}"
        future = self._client.submit(
            worker.attempt_here,
            self._run,
            task,
            number,
            key=key,
            pure=False,
            resources=resources,
        )
        with self._lock:
            self._futures[key] = future
        try:
            return self._result(future, task, number)
        finally:
            with self._lock:
                del self._futures[key]

    def cancel(self) -> None:
        wait_s = END_S if self._deadline == float("inf") else END_AT_ONCE_S
        self._deadline = time.monotonic() + wait_s
        # A worker that does not answer is not waited for.
        thread = threading.Thread(target=self._end, name="conducto-end", daemon=True)
        thread.start()
        self._ending.append(thread)

    def close(self) -> None:
        self._closed.set()
        for thread in (*self._ending, self._counting):
            thread.join(END_AT_ONCE_S)

    def _count(self) -> int:
        """The threads of all workers."""
        return sum(self._client.nthreads().values())

    def _go_on_counting(self) -> None:
        while not self._closed.wait(COUNT_S):
            try:
                self._threads = self._count()
            except OSError:
                return  # the scheduler is gone, and soon so is the run

    def _end(self) -> None:
        """Workers end what they run; what they have not begun, nobody does."""
        try:
            found = self._client.run(worker.end, self._run.mark, on_error="ignore")
        except OSError:
            return  # the scheduler is gone, and workers end what they run when they see that
        running = {key for keys in found.values() for key in keys}
        with self._lock:
            waiting = [future for key, future in self._futures.items() if key not in running]
        self._client.cancel(waiting)

    def _result(self, future: distributed.Future, task: Task, number: int) -> Attempted:
        settled = threading.Event()
        future.add_done_callback(lambda _: settled.set())
        while not settled.wait(POLL_S) and not future.done():
            if time.monotonic() >= self._deadline:
                future.cancel()
                return Attempted(Outcome(State.KILLED, reason=INTERRUPTED))
        if future.status == "finished":
            attempted: Attempted = future.result()
            return attempted
        if future.status == "error":
            error = future.exception()
            if isinstance(error, distributed.KilledWorker):
                return worker.lost(self._records.taken_by(task.node, number))
            raise RunError(f"a worker can't run {task.node}: {error!r}") from error
        if self._deadline < float("inf"):
            return Attempted(Outcome(State.KILLED, reason=INTERRUPTED))
        if self._client.status != "running":
            raise RunError("the cluster's scheduler is gone")
        return worker.lost(self._records.taken_by(task.node, number))

    def _resources(self, task: Task) -> dict[str, float] | Outcome:
        """What Dask is to find a worker by. Of what no worker declares all have enough."""
        if not task.resources:
            return {}
        workers = self._client.run_on_scheduler(declared)
        most = {
            name: max((each[name] for each in workers if name in each), default=None)
            for name in task.resources
        }
        self._say_unlimited(name for name, amount in most.items() if amount is None)
        wanted = {name: task.resources[name] for name in most if most[name] is not None}
        if any(all(each.get(n, 0) >= amount for n, amount in wanted.items()) for each in workers):
            return wanted
        asked = ", ".join(f"{name}={amount:g}" for name, amount in wanted.items())
        return (
            Outcome(State.ERROR, reason=f"no worker of the cluster has {asked}") if wanted else {}
        )

    def _say_unlimited(self, names: Iterable[str]) -> None:
        with self._lock:
            new = sorted({*names} - self._unlimited)
            self._unlimited.update(new)
        if new:
            example = " ".join(f"{name}=8" for name in new)
            complain(
                f"conducto: no worker declares {' or '.join(new)}, and what nodes say of it is not "
                f"acted on: dask worker --resources {example!r}"
            )


def declared(dask_scheduler: Any) -> list[dict[str, float]]:
    """On the scheduler: the resources of each worker."""
    return [{**each.resources} for each in dask_scheduler.workers.values()]
