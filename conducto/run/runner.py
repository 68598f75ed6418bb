"""A run: what `Progress` lets begin is run by a Backend, recorded, and displayed.

One thread, the caller's, decides and displays. Each attempt has a thread of a pool, which only
blocks on its process, or on the worker that runs it.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import Empty, SimpleQueue

from conducto.nodes import Exec, Lazy, Node, TreeError
from conducto.nodes.serialization import dumps, loads
from conducto.run.attempt import Attempted
from conducto.run.backend import Backend
from conducto.run.display import Display
from conducto.run.options import PARALLEL_MAX
from conducto.run.progress import Progress
from conducto.run.recorder import Recorder
from conducto.run.states import Attempts, State

REFRESH_S = 0.1
LOST_MAX = 3  # how often a command is run again because what ran it is gone


class Runner:
    """Runs a tree once. `execs` are the attempts that there were; those that are done stay so."""

    def __init__(
        self,
        root: Node,
        *,
        backend: Backend,
        recorder: Recorder,
        display: Display,
        execs: dict[str, Attempts],
        parallel: int | None = None,
    ) -> None:
        """`parallel`: how many commands are run at once; by default, as many as the backend says
        by then."""
        self.root = root
        self.execs = execs
        self.progress = Progress(root, {n for n, a in execs.items() if a.state is State.DONE})
        self._backend = backend
        self._recorder = recorder
        self._display = display
        self._parallel = parallel
        self._tries: Counter[str] = Counter()
        self._losses: Counter[str] = Counter()
        self._running = 0
        self._interrupted = False
        # What ended, or None for an interrupt. A signal's handler may put into a SimpleQueue.
        self._events: SimpleQueue[tuple[Exec, Attempts, Future[Attempted]] | None] = SimpleQueue()

    def run(self) -> State:
        """What the root came to; KILLED if it was interrupted. Raises what the store raises."""
        try:
            with self._interruptible(), ThreadPoolExecutor(PARALLEL_MAX) as pool:
                try:
                    self._loop(pool)
                except BaseException:
                    self._backend.cancel()
                    raise
        finally:
            self._backend.close()
        return State.KILLED if self._interrupted else self.progress.states[self.root]

    def _loop(self, pool: ThreadPoolExecutor) -> None:
        while self._running or not (self.progress.is_over or self._interrupted):
            parallel = self._parallel or self._backend.parallel()
            while self._running < parallel and not self._interrupted:
                node = self.progress.next()
                if node is None:
                    break
                self._begin(node, pool)
            try:
                event = self._events.get(timeout=REFRESH_S)
            except Empty:
                pass
            else:
                if event is None:
                    self._interrupted = True
                    self._backend.cancel()
                else:
                    self._ended(*event)
            self._recorder.check()
            self._display.refresh()

    def _begin(self, node: Exec, pool: ThreadPoolExecutor) -> None:
        path = str(node)
        before = self.execs.get(path)
        number = before.attempt + 1 if before else 1
        attempts = Attempts(path, State.RUNNING, number, time.time())
        self.execs[path] = attempts
        self._tries[path] += 1
        self._running += 1
        self._recorder.state(attempts)
        self._display.changed(attempts, b"")
        future = pool.submit(self._backend.run, node, number)
        future.add_done_callback(lambda future: self._events.put((node, attempts, future)))

    def _ended(self, node: Exec, attempts: Attempts, future: Future[Attempted]) -> None:
        self._running -= 1
        attempted = future.result()
        outcome = attempted.outcome
        attempts.ended = time.time()
        if outcome.took_s is not None:  # what it had to wait for is not its own time
            attempts.began = attempts.ended - outcome.took_s
        attempts.state, attempts.exit_code = outcome.state, outcome.exit_code
        attempts.reason = outcome.reason
        tree = attempted.tree
        grown = None if tree is None else self._grow(node, attempts, tree)
        if attempted.is_lost:
            again = self._bear_loss(attempts)
        else:
            again = self._has_tries(node, attempts)
        self._recorder.state(attempts, ended=True, grown=grown)
        self._display.changed(attempts, b"" if attempts.state is State.DONE else attempted.tail)
        if again:
            self.progress.again(node)
        else:
            self.progress.ended(node, attempts.state)

    def _has_tries(self, node: Exec, attempts: Attempts) -> bool:
        """Whether it failed, and its `retries` let it run again."""
        left = int(node.inherited("retries") or 0) - self._tries[attempts.node] + 1
        if attempts.state is not State.ERROR or left <= 0:
            return False
        attempts.reason += f"; tries left: {left}"
        return True

    def _bear_loss(self, attempts: Attempts) -> bool:
        """Whether it runs again; as it did not fail, that is none of its `retries`."""
        self._losses[attempts.node] += 1
        if self._losses[attempts.node] > LOST_MAX:
            attempts.state = State.ERROR
            attempts.reason += f", the {self._losses[attempts.node]}th time: it may be its fault"
            return False
        self._tries[attempts.node] -= 1
        attempts.reason += "; it is run again"
        return True

    def _grow(self, node: Exec, attempts: Attempts, text: bytes) -> str | None:
        """Put what a Generate printed in its place, or let it have failed; what is to be recorded
        of it."""
        assert isinstance(node.parent, Lazy)
        try:
            tree = loads(text)
        except TreeError as error:
            attempts.state, attempts.reason = State.ERROR, str(error)
            return None
        node.parent.grow(tree)
        return dumps(tree)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """A Ctrl-C, a SIGTERM and a lost terminal end what runs, and then the run."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {
            kind: signal.signal(kind, lambda *_: self._events.put(None))
            for kind in kinds
            if signal.getsignal(kind) is not signal.SIG_IGN  # as nohup has it
        }
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)
