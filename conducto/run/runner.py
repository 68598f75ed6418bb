"""A run: what `Progress` lets begin is run by an Executor, recorded, and displayed.

One thread, the caller's, decides and displays. Each attempt has a thread of a pool, which only
blocks on its process.
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
from conducto.nodes.kinds import GENERATE
from conducto.nodes.serialization import dumps, loads
from conducto.run.display import Display
from conducto.run.executor import Executor, Outcome
from conducto.run.jobs import Jobs
from conducto.run.printed import Tail, TreeCatcher
from conducto.run.progress import Progress
from conducto.run.recorder import Recorder
from conducto.run.states import Attempts, State

REFRESH_S = 0.1


class Runner:
    """Runs a tree once. `execs` are the attempts that there were; those that are done stay so."""

    def __init__(
        self,
        root: Node,
        *,
        jobs: Jobs,
        executor: Executor,
        recorder: Recorder,
        display: Display,
        execs: dict[str, Attempts],
        parallel: int,
    ) -> None:
        self.root = root
        self.execs = execs
        self.progress = Progress(root, {n for n, a in execs.items() if a.state is State.DONE})
        self._jobs = jobs
        self._executor = executor
        self._recorder = recorder
        self._display = display
        self._parallel = parallel
        self._tries: Counter[str] = Counter()
        self._running = 0
        self._interrupted = False
        # What ended, or None for an interrupt. A signal's handler may put into a SimpleQueue.
        self._events: SimpleQueue[tuple[Exec, Attempts, Future[Attempted]] | None] = SimpleQueue()

    def run(self) -> State:
        """What the root came to; KILLED if it was interrupted. Raises what the store raises."""
        try:
            with self._interruptible(), ThreadPoolExecutor(self._parallel) as pool:
                try:
                    self._loop(pool)
                except BaseException:
                    self._executor.cancel()
                    raise
        finally:
            self._executor.close()
        return State.KILLED if self._interrupted else self.progress.states[self.root]

    def _loop(self, pool: ThreadPoolExecutor) -> None:
        while self._running or not (self.progress.is_over or self._interrupted):
            while self._running < self._parallel and not self._interrupted:
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
                    self._executor.cancel()
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
        future = pool.submit(self._attempt, node, attempts)
        future.add_done_callback(lambda future: self._events.put((node, attempts, future)))

    def _attempt(self, node: Exec, attempts: Attempts) -> Attempted:
        """On a thread of the pool."""
        tail = Tail()
        catcher = TreeCatcher() if is_generate(node) else None
        masker = self._jobs.masker()

        def keep(piece: bytes) -> None:
            if piece:
                tail.feed(piece)
                self._recorder.output(attempts.node, attempts.attempt, piece)

        def printed(piece: bytes) -> None:
            if catcher is not None:
                catcher.feed(piece)
            keep(masker.feed(piece))

        try:
            outcome = self._jobs.run(node, self._executor, printed)
        except (OSError, ValueError) as error:  # of its folder, its image, its environment
            outcome = Outcome(State.ERROR, reason=f"can't be run: {error}")
        keep(masker.flush())
        return outcome, tail, catcher

    def _ended(self, node: Exec, attempts: Attempts, future: Future[Attempted]) -> None:
        self._running -= 1
        outcome, tail, catcher = future.result()
        attempts.ended = time.time()
        attempts.state, attempts.exit_code = outcome.state, outcome.exit_code
        attempts.reason = outcome.reason
        if catcher is not None and outcome.state is State.DONE:
            self._grow(node, attempts, catcher)
        retries = int(node.inherited("retries") or 0)
        again = attempts.state is State.ERROR and self._tries[attempts.node] <= retries
        if again:
            attempts.reason += f"; {retries - self._tries[attempts.node] + 1} tries are left"
        self._recorder.state(attempts, ended=True)
        self._display.changed(attempts, b"" if attempts.state is State.DONE else tail.text)
        if again:
            self.progress.again(node)
        else:
            self.progress.ended(node, attempts.state)

    def _grow(self, node: Exec, attempts: Attempts, catcher: TreeCatcher) -> None:
        """Put what a Generate printed in its place, or let it have failed."""
        assert isinstance(node.parent, Lazy)
        try:
            text = catcher.tree()
            self._jobs.refuse_secrets(text)
            tree = loads(text)
        except TreeError as error:
            attempts.state, attempts.reason = State.ERROR, str(error)
            return
        self._recorder.grown(attempts.node, dumps(tree))
        node.parent.grow(tree)

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


Attempted = tuple[Outcome, Tail, TreeCatcher | None]


def is_generate(node: Node) -> bool:
    return isinstance(node.parent, Lazy) and node.name == GENERATE
