"""Writing a run's records while it runs, from one thread, many of them in each commit.

What happened is in the store one commit later, some hundredths of a second on a disk. A log that
grows is written now and then: the longer it has been growing, the more rarely.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass, field

from conducto.run.records import BEAT_S, Records, Session
from conducto.run.states import Attempts

BUFFER_BYTES_MAX = 8 << 20  # of all logs; who prints more waits
LOG_BYTES = 1 << 18  # of one log: no waiting
LOG_S, LOG_S_MAX, LOG_SHARE = 0.5, 30.0, 0.05
PACE = 4.0  # a commit takes a fifth of the time at most
PAUSE_S = 0.02


@dataclass(slots=True)
class Log:
    """What an attempt printed and is not in the store."""

    key: str
    began: float = field(default_factory=time.monotonic)
    written: float = field(default_factory=time.monotonic)
    pieces: list[bytes] = field(default_factory=list)
    size: int = 0
    stored: bool = False  # whether the store has its beginning
    ended: bool = False

    def due_in(self, now: float) -> float:
        """Seconds until it is to be written."""
        if self.ended or self.size >= LOG_BYTES:
            return 0.0
        wait = min(LOG_S_MAX, max(LOG_S, (now - self.began) * LOG_SHARE))
        return max(0.0, self.written + wait - now)

    def take(self, now: float) -> bytes:
        taken, self.pieces, self.size, self.written = b"".join(self.pieces), [], 0, now
        return taken


class Recorder:
    """Used by all threads of a runner, or for one attempt elsewhere, which is no `session`, and
    has only a log. What goes wrong with the store is raised by `check`."""

    def __init__(self, records: Records, session: Session | None = None, number: int = 0) -> None:
        self._records = records
        self._session = session
        self._number = number
        self._changed = threading.Condition()
        self._states: dict[str, bytes] = {}  # and trees that grew: what to put, by key
        self._logs: dict[str, Log] = {}
        self._buffered = 0
        self._closing = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="conducto-recorder", daemon=True)
        self._thread.start()

    def state(self, attempts: Attempts, *, ended: bool = False, grown: str | None = None) -> None:
        """`ended`: its log is whole. `grown`: the tree that a Lazy made, of whose Generate this is
        the state; it goes into the same commit."""
        with self._changed:
            if grown is not None:
                self._states[self._records.grown_key(attempts.node)] = grown.encode()
            self._states[self._records.node_key(attempts.node)] = _json(attempts.to_dict())
            log = self._logs.get(self._records.log_key(attempts.node, attempts.attempt))
            if ended and log is not None:
                log.ended = True
            self._changed.notify_all()

    def output(self, node: str, attempt: int, piece: bytes) -> None:
        """Waits while too much is buffered."""
        with self._changed:
            self._changed.wait_for(lambda: self._buffered < BUFFER_BYTES_MAX or self._error)
            key = self._records.log_key(node, attempt)
            log = self._logs.setdefault(key, Log(key))
            log.pieces.append(piece)
            log.size += len(piece)
            self._buffered += len(piece)
            if log.size == len(piece) or log.size >= LOG_BYTES or self._is_urgent():
                self._changed.notify_all()

    def check(self) -> None:
        """Raise what went wrong."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Write all, and that the session has ended."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self.check()
        if self._session is not None:
            self._session.ended = time.time()
            key = self._records.session_key(self._number)
            self._records.store.puts(key, _json(asdict(self._session)))

    def _run(self) -> None:
        try:
            while not self._step():
                pass
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _step(self) -> bool:
        """Wait for something to write, and write it; whether that was the last."""
        with self._changed:
            while not self._is_due():  # what comes meanwhile may be due earlier
                self._changed.wait(self._due_in())
            closing = self._closing
            states, self._states = self._states, {}
            logs = self._take_logs(everything=closing)
        if self._session is not None and self._is_to_beat():
            # A machine that slept, say: what it would write is not to replace what others did.
            self._records.check_last(self._number)
            self._session.beat = time.time()
            states[self._records.session_key(self._number)] = _json(asdict(self._session))
        began = time.monotonic()
        self._write(states, logs)
        if states or logs:
            pause_s = max(PAUSE_S, (time.monotonic() - began) * PACE)
            with self._changed:
                self._changed.wait_for(self._is_urgent, pause_s)
        return closing

    def _is_due(self) -> bool:
        now = time.monotonic()
        return bool(
            self._closing
            or self._states
            or self._is_to_beat()
            or any(log.due_in(now) <= 0 for log in self._logs.values() if log.size or log.ended)
        )

    def _is_to_beat(self) -> bool:
        return self._session is not None and time.time() - self._session.beat >= BEAT_S

    def _is_urgent(self) -> bool:
        return self._closing or self._buffered >= BUFFER_BYTES_MAX // 2

    def _due_in(self) -> float:
        now = time.monotonic()
        waits = [log.due_in(now) for log in self._logs.values() if log.size or log.ended]
        return min([BEAT_S, *waits])

    def _take_logs(self, *, everything: bool) -> list[tuple[Log, bytes]]:
        now = time.monotonic()
        taken = []
        for log in [*self._logs.values()]:
            if log.size and (everything or log.due_in(now) <= 0):
                self._buffered -= log.size
                taken.append((log, log.take(now)))
            if log.ended and not log.size:
                del self._logs[log.key]
        self._changed.notify_all()
        return taken

    def _write(self, states: dict[str, bytes], logs: list[tuple[Log, bytes]]) -> None:
        """All of it in one commit, or where that is not possible logs first."""
        if not states and not logs:
            return
        with self._records.store.transaction() as transaction:
            for log, text in logs:
                if log.stored:
                    with transaction.open(log.key, "ab") as file:
                        file.write(text)
                else:
                    transaction.puts(log.key, text)
            for key, document in states.items():
                transaction.puts(key, document)
        for log, _ in logs:
            log.stored = True


def _json(document: object) -> bytes:
    return json.dumps(document).encode()
