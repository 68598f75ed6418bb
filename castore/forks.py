"""What has to happen around a fork, in one place.

A forked child shares the parent's LMDB environment, flocks and locks without owning any of them.
What holds such things registers here: it is quiesced before the fork (an inherited transaction
that the child drops would give up the parent's reader slot), and told in the child to let go.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class ForkAware(Protocol):
    def before_fork(self) -> None:
        """Finish what must not be cut in two, and keep it from starting again."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Let go of what the parent owns; come back to life on the next use."""


_registered: weakref.WeakSet[ForkAware] = weakref.WeakSet()
_quiesced: list[ForkAware] = []


def register(instance: ForkAware) -> None:
    _registered.add(instance)


def _before() -> None:
    for instance in list(_registered):
        instance.before_fork()
        _quiesced.append(instance)


def _after_in_parent() -> None:
    while _quiesced:
        _quiesced.pop().after_fork_in_parent()


def _after_in_child() -> None:
    while _quiesced:
        _quiesced.pop().after_fork_in_child()


os.register_at_fork(
    before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)
