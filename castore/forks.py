"""What has to happen around a fork, in one place.

A forked child shares the parent's LMDB environment, flocks and locks without owning any of them.
What holds such things registers here: it is quiesced before the fork (an inherited transaction
that the child drops would give up the parent's reader slot), and told in the child to let go.
"""

from __future__ import annotations

import _thread
import os
import threading
import weakref
from enum import IntEnum
from typing import Protocol


class Rank(IntEnum):
    """The order in which locks are taken, here and everywhere: who holds one takes only later
    ones. A fork takes all of them."""

    STORES = 0
    PACKS = 1
    INDEXES = 2
    WRITE_GATE = 3
    READ_GATE = 4
    LEAF = 5


class ForkAware(Protocol):
    def before_fork(self) -> None:
        """Finish what must not be cut in two, and keep it from starting again."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Let go of what the parent owns; come back to life on the next use."""


_ranks: weakref.WeakKeyDictionary[ForkAware, Rank] = weakref.WeakKeyDictionary()
_ranks_lock = threading.Lock()
_one_fork = threading.Lock()
_quiesced: list[ForkAware] = []
_stopped: set[int] = set()  # the ids of those


def register(instance: ForkAware, rank: Rank) -> None:
    with _ranks_lock:
        _ranks[instance] = rank


class ForkLock(_thread.RLock):  # type: ignore[misc]
    """A lock that no other thread holds at a fork, and that is free in the child. As RLock's own,
    its `with` is one step that no signal handler can come between."""

    def __init__(self, rank: Rank) -> None:
        register(self, rank)

    def __new__(cls, rank: Rank) -> ForkLock:
        return super().__new__(cls)

    def before_fork(self) -> None:
        self.acquire()

    def after_fork_in_parent(self) -> None:
        self.release()

    def after_fork_in_child(self) -> None:
        self._at_fork_reinit()  # type: ignore[attr-defined]


def _before() -> None:
    _one_fork.acquire()
    while True:
        with _ranks_lock:
            waiting = sorted(
                (rank, id(instance), instance)
                for instance, rank in _ranks.items()
                if id(instance) not in _stopped
            )
        for _, _, instance in waiting:
            instance.before_fork()
            _quiesced.append(instance)
            _stopped.add(id(instance))
        # Innermost, as where an instance registers while it holds others: held over the fork, so
        # that the registry is whole in the child.
        _ranks_lock.acquire()
        if all(id(instance) in _stopped for instance in _ranks):
            return
        _ranks_lock.release()


def _after_in_parent() -> None:
    _ranks_lock.release()
    _stopped.clear()
    while _quiesced:
        _quiesced.pop().after_fork_in_parent()
    _one_fork.release()


def _after_in_child() -> None:
    _ranks_lock.release()
    _stopped.clear()
    while _quiesced:
        _quiesced.pop().after_fork_in_child()
    _one_fork.release()


os.register_at_fork(
    before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)
