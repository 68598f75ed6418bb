"""What has to happen around a fork, in one place.

A forked child shares the parent's LMDB environment, flocks and locks without owning any of them.
Every ForkLock is held over a fork, so that nothing is cut in two (an inherited transaction that
the child drops would give up the parent's reader slot); what holds such things is told in the
child to let go.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Generator
from enum import IntEnum
from typing import Protocol

from castore.system.locks import Lock


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
    def after_fork_in_child(self) -> None:
        """Let go of what the parent owns; come back to life on the next use."""


class ForkLock(Lock):  # type: ignore[misc]
    """A lock that no other thread holds at a fork, and that is free in the child."""

    def __init__(self, rank: Rank) -> None:
        with _registry:
            _locks[self] = rank

    def __new__(cls, rank: Rank) -> ForkLock:
        return super().__new__(cls)

    def reset_in_child(self) -> None:
        """Free it, unless the thread that forked had it."""
        if not self._is_owned():  # type: ignore[attr-defined]
            self._at_fork_reinit()  # type: ignore[attr-defined]


_Held = dict[int, Generator[None]]  # what keeps a lock, by the lock's id

_registry = Lock()
_one_fork = Lock()
_locks: weakref.WeakKeyDictionary[ForkLock, Rank] = weakref.WeakKeyDictionary()
_aware: weakref.WeakSet[ForkAware] = weakref.WeakSet()
_quiesced: _Held = {}


def register(instance: ForkAware) -> None:
    with _registry:
        _aware.add(instance)


def _hold(lock: Lock, held: _Held) -> None:
    """Take `lock` until its generator in `held` is closed. It is put there first: a signal handler
    that raises, wherever it does, leaves no lock that is taken and not known to be."""

    def keep() -> Generator[None]:
        with lock:
            yield

    if id(lock) not in held or held[id(lock)].gi_frame is None:  # type: ignore[attr-defined]
        held[id(lock)] = keep()
        next(held[id(lock)])


def _hold_all(held: _Held) -> None:
    _hold(_one_fork, held)
    while True:
        with _registry:
            waiting = sorted((rank, id(lock), lock) for lock, rank in _locks.items())
        for _, _, lock in waiting:
            _hold(lock, held)
        # Innermost, as where a lock is made while others are held: held over the fork, so that the
        # registry is whole in the child.
        _hold(_registry, held)
        if all(id(lock) in held for lock in _locks):
            return
        held.pop(id(_registry)).close()


def _before() -> None:
    global _quiesced
    held: _Held = {}
    interruption: BaseException | None = None
    while True:
        try:
            _hold_all(held)
            _quiesced = held
            break
        except BaseException as error:  # a signal handler's; the fork goes on, whatever is raised
            interruption = error
    if interruption is not None:
        raise interruption  # Python reports what a hook raises, and goes on


def _release_all() -> None:
    while _quiesced:
        _quiesced.popitem()[1].close()  # last taken, first released


def _after_in_child() -> None:
    _release_all()
    for lock in _locks:
        lock.reset_in_child()
    for instance in list(_aware):
        instance.after_fork_in_child()


os.register_at_fork(before=_before, after_in_parent=_release_all, after_in_child=_after_in_child)
