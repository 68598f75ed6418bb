"""Which commands of a tree may run: a pure machine, told what ended and asked what may begin."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from heapq import heappop, heappush
from itertools import count

from conducto.nodes import Exec, Node, Serial
from conducto.run.states import GOOD, State


class Progress:
    """One run of a tree. `states` has the nodes that have begun or ended, by identity.

    Nothing recurses, so that a Serial of any length whose nodes are all done is one loop.
    """

    def __init__(self, root: Node, done: Collection[str] = ()) -> None:
        """`done` are the paths of commands that are not run again."""
        self.root = root
        self.states: dict[Node, State] = {}
        self._done = done
        # By the nearest node above with max_concurrent: those in one queue may all begin, or none.
        self._ready: dict[Node | None, deque[tuple[int, Exec]]] = {}
        # Each queue that is not empty, by its first number: here, or below a node without room.
        self._queues: list[tuple[int, Node | None]] = []
        self._waiting: dict[Node, list[tuple[int, Node | None]]] = {}
        self._numbers = count()
        self._running: dict[Node, int] = {}  # below nodes with max_concurrent
        self._open: dict[Node, int] = {}  # how many children of a group have not ended
        self._following: dict[Node, Iterator[str]] = {}  # what of a Serial has not begun
        self._failed: set[Node] = set()  # groups below which something failed
        self._advance([(root, State.RUNNING)])

    @property
    def is_over(self) -> bool:
        return self.states.get(self.root) not in (None, State.RUNNING)

    def next(self) -> Exec | None:
        """A command to begin now, which then is running; None if none may. The first that was
        ready comes first."""
        while self._queues:
            first = heappop(self._queues)
            bound = first[1]
            above = [] if bound is None else [*bound.lineage()]
            full = next((each for each in above if not self._has_room(each)), None)
            if full is not None:
                heappush(self._waiting.setdefault(full, []), first)
                self._look_again(above)
                continue
            _, node = self._ready[bound].popleft()
            if self._ready[bound]:
                heappush(self._queues, (self._ready[bound][0][0], bound))
            self._begins(node, above)
            return node
        return None

    def _begins(self, node: Exec, bounds: list[Node]) -> None:
        for above in node.lineage():
            if above.max_concurrent is not None:
                self._running[above] = self._running.get(above, 0) + 1
        self.states[node] = State.RUNNING
        self._look_again(bounds)

    def _look_again(self, nodes: Iterable[Node]) -> None:
        """Where one of these has room, what waits for it the longest may begin."""
        for node in nodes:
            waiting = self._waiting.get(node)
            if waiting and self._has_room(node):
                heappush(self._queues, heappop(waiting))

    def again(self, node: Exec) -> None:
        """A command that `next` gave has ended, and is to run once more, after the others."""
        self._release(node)
        del self.states[node]
        self._is_ready(node)

    def ended(self, node: Exec, state: State) -> None:
        """A command that `next` gave has ended. What a Lazy made is in its place by now."""
        self._release(node)
        self._advance([(node, state)])

    def _is_ready(self, node: Exec) -> None:
        bounded = (above for above in node.lineage() if above.max_concurrent is not None)
        bound, number = next(bounded, None), next(self._numbers)
        queue = self._ready.setdefault(bound, deque())
        if not queue:
            heappush(self._queues, (number, bound))
        queue.append((number, node))

    def _has_room(self, node: Node) -> bool:
        limit = node.max_concurrent
        return limit is None or self._running.get(node, 0) < limit

    def _release(self, node: Exec) -> None:
        for above in node.lineage():
            if above in self._running:
                self._running[above] -= 1
                self._look_again([above])

    def _advance(self, work: list[tuple[Node, State]]) -> None:
        """Begin and end nodes, the last first, until only commands can go on."""
        while work:
            node, state = work.pop()
            if state is State.RUNNING:
                self._begin(node, work)
                continue
            self.states[node] = state
            parent = node.parent
            if node is not self.root and parent is not None:
                self._child_ended(parent, state, work)

    def _begin(self, node: Node, work: list[tuple[Node, State]]) -> None:
        if node.skip:
            work.append((node, State.SKIPPED))
        elif isinstance(node, Exec):
            if str(node) in self._done:
                work.append((node, State.DONE))
            else:
                self._is_ready(node)
        elif not node.children:
            work.append((node, State.DONE))
        else:
            self.states[node] = State.RUNNING
            self._open[node] = len(node.children)
            names = [*node.children]
            if node.is_ordered:
                self._following[node] = iter(names)  # by name, as a Lazy puts another node there
                names = [next(self._following[node])]
            work.extend((node.children[name], State.RUNNING) for name in reversed(names))

    def _child_ended(self, node: Node, state: State, work: list[tuple[Node, State]]) -> None:
        self._open[node] -= 1
        if state not in GOOD:
            self._failed.add(node)
        stops = isinstance(node, Serial) and node.stop_on_error and state not in GOOD
        if self._open[node] == 0 or stops:
            fails = node in self._failed and not node.suppress_errors
            work.append((node, State.ERROR if fails else State.DONE))
        elif node.is_ordered:
            work.append((node.children[next(self._following[node])], State.RUNNING))
