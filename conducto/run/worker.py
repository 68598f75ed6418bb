"""A run's attempts on a worker of dask.distributed: what its scheduler has a worker do.

Nothing of this goes through the scheduler but the task, and how it ended. The worker reads the
secrets itself, and puts the log into the store itself.
"""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from distributed import Status, get_worker

from castore.errors import CastoreError
from castore.system.locks import Lock
from conducto import context
from conducto.errors import RunError
from conducto.mount import data_folder
from conducto.run.attempt import Attempted, attempt
from conducto.run.executor import Executor, Outcome
from conducto.run.jobs import Jobs, Task
from conducto.run.recorder import Recorder
from conducto.run.records import Records
from conducto.run.states import State
from conducto.secrets import NodeSecrets, for_nodes

if TYPE_CHECKING:
    from distributed import Worker

POLL_S = 0.5
OVER = (Status.stopping, Status.stopped, Status.closing, Status.closed, Status.failed)
RUNS_KEPT = 16  # of how many runs a worker knows the secrets


@dataclass(frozen=True, slots=True)
class Place:
    """Where the store is, on the machine `host` if not on S3."""

    store_url: str
    host: str | None

    @staticmethod
    def here() -> Place:
        host = socket.gethostname() if context.is_local() else None
        return Place(context.store_url(), host)


@dataclass(frozen=True, slots=True)
class RemoteRun:
    """What all attempts of a runner have in common. `mark` is the runner's own."""

    id: str
    mark: str
    cwd: str
    store: Place


def check(store: Place) -> None:
    """Raise RunError unless this process has that store."""
    host, url = socket.gethostname(), context.store_url()
    if store.host is not None and store.host != host:
        raise RunError(
            f"the worker on {host} can't read a store on {store.host}: keep it on S3, with "
            "CONDUCTO_EXECUTION_ENV=worker_cloud and CONDUCTO_S3_BUCKET, here and for the workers"
        )
    if store.store_url != url:
        raise RunError(
            f"the worker on {host} has the store {url}, and the run is in {store.store_url}: give "
            "workers the same CONDUCTO_ variables"
        )


def attempt_here(run: RemoteRun, task: Task, number: int) -> Attempted:
    """Make an attempt, unless another worker has begun it: that one is gone then, as Dask gives a
    task to one worker only."""
    worker = get_worker()
    try:
        check(run.store)
        records = Records(context.open_store(), run.id)
        if not records.take(task.node, number, worker.address):
            return lost(records.taken_by(task.node, number))
        with (
            closing(Recorder(records)) as recorder,
            data_folder(run.id) as data,
            _executor(run, worker) as (executor, cookie),
        ):
            return attempt(
                task,
                Jobs(run.id, cookie, run.cwd, _secrets(run), data),
                executor,
                lambda piece: recorder.output(task.node, number, piece),
            )
    except CastoreError as error:
        return Attempted(Outcome(State.ERROR, reason=f"on {worker.address}: {error}"))


def lost(worker: str) -> Attempted:
    reason = f"its worker {worker} died" if worker else "its worker died"
    return Attempted(Outcome(State.KILLED, reason=reason), is_lost=True)


def end(mark: str) -> list[str]:
    """End the attempts of this runner that run here, and let no other begin; the keys of those."""
    with _lock:
        _ended.add(mark)
        running = {**_running.get(mark, {})}
    for executor in running.values():
        executor.cancel()
    return [*running]


@lru_cache(RUNS_KEPT)
def _secrets(run: RemoteRun) -> NodeSecrets:
    return for_nodes()


_lock = Lock()
_running: dict[str, dict[str, Executor]] = {}  # by the marks of runners, and keys of tasks
_ended: set[str] = set()  # marks


@contextmanager
def _executor(run: RemoteRun, worker: Worker) -> Iterator[tuple[Executor, str]]:
    """One for this attempt, and the cookie of its processes, which end with it."""
    key, cookie, ended = worker.get_current_task(), secrets.token_hex(16), threading.Event()
    executor = Executor(cookie)
    with _lock:
        _running.setdefault(run.mark, {})[key] = executor
        is_over = run.mark in _ended
    if is_over:
        executor.cancel()
    watcher = threading.Thread(target=_watch, args=(worker, key, executor, ended), daemon=True)
    watcher.start()
    try:
        yield executor, cookie
    finally:
        ended.set()
        with _lock:
            del _running[run.mark][key]
            if not _running[run.mark]:
                del _running[run.mark]
        watcher.join()
        executor.close()


def _watch(worker: Worker, key: str, executor: Executor, ended: threading.Event) -> None:
    """End the command when nobody waits for it any more: its runner was killed, or the worker is
    cut off from the scheduler, which has others do its work."""
    while not ended.wait(POLL_S):
        task = worker.state.tasks.get(key)
        is_wanted = task is not None and task.state in ("executing", "long-running")
        if not is_wanted or worker.status in OVER:
            executor.cancel()
            return
