"""The requests of clients in s3_batches_model.py: who reads, puts, deletes, and puts batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from linearizability import Value
from s3_batches_rules import (
    FRESH,
    STRONG,
    Client,
    Drop,
    Entry,
    Item,
    Root,
    Single,
    State,
    Steps,
    put,
)

if TYPE_CHECKING:
    from s3_batches_model import Model


class ClientSteps:
    """The next requests of one client."""

    DELETING = ("delete", "remove", "erase", "purge")
    DECIDED = ("create", "replace")  # what the root says, which is asked for with the single

    def __init__(self, model: Model, s: State, i: int) -> None:
        self.model, self.rules, self.meaning = model, model.rules, model.meaning
        self.s, self.i = s, i
        self.c = s.clients[i]
        self.task = model.scenario.clients[i][self.c.task]
        self.name = self.task.names[min(self.c.place, len(self.task.names) - 1)]
        self.id = (i, self.c.task)
        if self.c.at == "begin":  # the first request is the invocation
            ids = [(*self.id, 0), (*self.id, 1)] if self.task.verb == "erase" else [(*self.id, 0)]
            self.s = model.invoke(s, self.task.names, *ids)

    def steps(self) -> Steps:
        at = self.first() if self.c.at == "begin" else self.c.at
        yield from getattr(self, at.replace(" ", "_"))()

    def first(self) -> str:
        verb = self.task.verb
        if verb == "batch":
            return "list" if self.rules.list_first else "swap"
        if verb == "purge":
            return "seen" if self.rules.purge_listed else "purge"
        if verb == "erase" and self.rules.drop_first:
            return "drop"
        return "put" if verb == "write" else "read"

    # ------------------------------------------------------------ where it goes from here

    def to(self, at: str, state: State | None = None, **changes: object) -> tuple[str, State]:
        state = self.s if state is None else state
        changed = self.c._replace(at=at, **changes)  # type: ignore[arg-type]
        label = f"client {self.i} {self.task.verb} {self.name}: {self.c.at} -> {at} {changes}"
        return label, state._replace(clients=put(state.clients, self.i, changed))

    def again(self) -> tuple[str, State]:
        return self.to("read", **FRESH)

    def done(self, result: object, state: State | None = None) -> tuple[str, State]:
        """A name is done, and with it the task; but an `erase` goes on with its next name."""
        state = self.s if state is None else state
        if self.task.verb != "erase":
            return self.finish(result, state)
        if self.c.place + 1 < len(self.task.names):
            return self.to("read", state, place=self.c.place + 1, **FRESH)
        if not self.rules.drop_first:
            return self.to("drop", state, place=0, **FRESH)
        return self.finish("ok", state)

    def finish(self, result: object, state: State) -> tuple[str, State]:
        """The answer; then the next task."""
        if not self.c.answered:
            state = self.answered(result, state)
        clients = put(state.clients, self.i, Client(task=self.c.task + 1))
        label = f"client {self.i} {self.task}: {self.c.at} -> ANSWER {result}"
        return label, state._replace(clients=clients)

    def answered(self, result: object, state: State) -> State:
        for again in range(2 if self.task.verb == "erase" else 1):
            state = self.model.answer(state, self.task.names, (*self.id, again), result)
        return state

    def write(self, single: Single | None, name: int | None = None) -> State:
        name = self.name if name is None else name
        return self.s._replace(singles=put(self.s.singles, name, single))

    def there(self) -> Single | None:
        return self.s.singles[self.name]

    def same(self) -> bool:
        """Whether If-Match, or If-None-Match, holds."""
        there = self.there()
        if there is None or self.c.single is None:
            return there is self.c.single
        return there.etag == self.c.single.etag

    # ------------------------------------------------------------ reads, and what they decide

    def put(self) -> Steps:
        yield self.done("ok", self.write(Single(self.task.value, STRONG, self.id)))

    def read(self) -> Steps:
        verb = self.task.verb
        if verb in ("look", *self.DECIDED):
            yield self.to("root", single=self.there())
            yield self.to("single", root=self.s.root)
            return
        if verb in self.DELETING and not self.rules.root_after:
            yield self.to("both", root=self.s.root)
            return
        single = self.there()
        strong = single is not None and single.number == STRONG
        if not strong or verb in self.DELETING:
            yield self.to("root", single=single)
        else:
            assert single is not None
            yield from self.decide(single, single.value, None)

    def root(self) -> Steps:
        yield from self.understand(self.c.single, self.s.root)

    def single(self) -> Steps:
        assert self.c.root is not None
        yield from self.understand(self.there(), self.c.root)

    both = single

    def understand(self, single: Single | None, root: Root) -> Steps:
        if self.task.verb in self.DECIDED and single is not None:
            if single.number == STRONG:
                yield from self.decide(single, single.value, None)
                return
            if single.number > root.version and self.rules.root_not_older:
                yield self.again()
                return
        if self.meaning.doubtful(self.name, single, root):
            yield self.to("doubt", single=single, root=root)
        else:
            yield from self.decide(single, self.meaning.value(self.name, single, root), root)

    def doubt(self) -> Steps:
        """Asks for the single once more, now that the root is the older one."""
        assert self.c.root is not None
        if self.same():
            value = self.meaning.value(self.name, self.c.single, self.c.root)
            yield from self.decide(self.c.single, value, self.c.root)
        else:
            yield self.again()

    def decide(self, single: Single | None, value: Value, root: Root | None) -> Steps:
        """Given what the name maps to; `root` is None where a strong single said so."""
        verb, task = self.task.verb, self.task
        if verb in ("read", "look"):
            yield self.done(value)
        elif verb == "create" and value is not None:
            yield self.done("exists")
        elif verb in ("replace", "remove") and value != task.seen:
            yield self.done("changed")
        elif verb in ("delete", "erase") and value is None:
            yield self.done("absent")
        elif verb == "purge" and value is None:
            yield self.done("ok")  # another deleted it
        elif verb in ("create", "replace"):
            if root is None:
                yield self.to("strong", single=single, root=None)
            else:
                number = root.version
                if not self.rules.number_within:
                    number = self.model.scenario.root.version
                yield self.to("weak", single=single, root=None, number=number)
        else:
            assert root is not None
            from_batch = single is None or not self.alive(single, root)
            if verb == "erase" and from_batch:
                yield self.done("ok")  # of a batch that came after the drop
            elif self.meaning.covers(root, self.name) and (self.rules.tombstones or single is None):
                yield self.to("tombstone", single=single, root=None, number=root.version)
            else:
                yield self.to("delete", single=single, root=None)

    def alive(self, single: Single, root: Root) -> bool:
        return self.meaning.value(self.name, single, root) == single.value is not None

    # ------------------------------------------------------------ single names

    def strong(self) -> Steps:
        if self.same() or not self.rules.strong_if_match:
            yield self.done("ok", self.write(Single(self.task.value, STRONG, self.id)))
        else:
            yield self.again()

    def weak(self) -> Steps:
        if not self.rules.number_decides and self.c.number != self.s.root.version:
            yield self.to("weak", number=self.s.root.version)
        number = self.c.number if self.rules.weak else STRONG
        if self.same() or not self.rules.weak_conditional:
            yield self.done("ok", self.write(Single(self.task.value, number, self.id)))
        else:
            yield self.again()

    def tombstone(self) -> Steps:
        if self.same() or not self.rules.tombstone_conditional:
            etag = (*self.id, self.name)
            yield self.done("ok", self.write(Single(None, self.c.number, etag)))
        else:
            yield self.again()

    def delete(self) -> Steps:
        if self.same() or not self.rules.delete_if_match:
            yield self.done("ok", self.write(None))
        else:
            yield self.again()

    # ------------------------------------------------------------ a prefix

    def drop(self) -> Steps:
        root, names = self.s.root, self.task.names
        after = self.s
        if any(item.name in names for entry in root.entries for item in entry.items):
            drops = (*root.drops, Drop(names, root.version + 1))
            after = self.s._replace(root=root._replace(version=root.version + 1, drops=drops))
        if self.rules.drop_first:
            yield self.to("read", after)
        else:
            yield self.finish("ok", after)

    # ------------------------------------------------------------ deletions by a batch

    def seen(self) -> Steps:
        """What is no single that may count is left to the batch."""
        single = self.there()
        hidden = single is None or single.number < self.meaning.hides_now(self.s.root, self.name)
        yield self.to("purge" if hidden else "read")

    def purge(self) -> Steps:
        root = self.s.root
        number = root.version + 1
        entries = (*root.entries, Entry((Item(self.name, None, number),), named=0))
        after = self.s._replace(root=root._replace(version=number, entries=entries))
        yield self.finish("ok", after)

    # ------------------------------------------------------------ a batch

    def next_place(
        self, at: str, then: str, state: State | None = None, **changes: object
    ) -> Steps:
        place = self.c.place + 1
        if place < len(self.task.names):
            yield self.to(at, state, place=place, single=None, **changes)
        elif then == "end":
            yield self.finish("ok", self.s if state is None else state)
        else:
            yield self.to(then, state, place=0, single=None, **changes)

    def list(self) -> Steps:
        single = self.there()
        apart = self.c.apart
        if single is not None and single.number == STRONG and self.rules.apart:
            apart = (*apart, self.name)
        if self.rules.list_first:
            then = "apart" if apart else "swap"
        else:
            then = "apart" if apart else "end"
        yield from self.next_place("list", then, apart=apart)

    def apart(self) -> Steps:
        """Puts those names for themselves."""
        then = "swap" if self.rules.list_first else "end"
        if self.name not in self.c.apart:
            yield from self.next_place("apart", then)
            return
        after = self.write(Single(self.task.value, STRONG, (*self.id, self.name)))
        yield from self.next_place("apart", then, after)

    def swap(self) -> Steps:
        if not self.rules.batch_swaps and self.c.root is None:
            yield self.to("swap", root=self.s.root)
            return
        root = self.s.root if self.c.root is None else self.c.root
        number = root.version + 1
        assert self.task.value is not None
        kept = [name for name in self.task.names if name not in self.c.apart]
        items = tuple(Item(name, self.task.value, number) for name in kept)
        after = self.s
        if items:
            entries = (*root.entries, Entry(items, named=0))
            after = self.s._replace(root=root._replace(version=number, entries=entries))
        if not self.rules.list_first:
            yield self.to("list", after, root=None, place=0)
        elif not self.rules.renew:
            yield self.finish("ok", after)
        elif self.rules.renew_first:
            yield self.to("renew", after, root=None, place=0)
        else:
            yield self.to("renew", self.answered("ok", after), root=None, place=0, answered=True)

    def renew(self) -> Steps:
        """Looks for strong singles that came since the list."""
        single = self.there()
        if single is not None and single.number == STRONG and self.name not in self.c.apart:
            yield self.to("renewal", single=single)
        else:
            yield from self.next_place("renew", "end")

    def renewal(self) -> Steps:
        after = self.s
        if self.same() or not self.rules.renew_if_match:
            assert self.c.single is not None
            etag = (*self.c.single.etag, "anew", self.i)
            after = self.write(self.c.single._replace(etag=etag))
        yield from self.next_place("renew", "end", after)
