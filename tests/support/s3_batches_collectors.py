"""The requests of collectors in s3_batches_model.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3_batches_rules import LIVE, STRONG, Collector, Drop, Entry, Item, Root, State, Steps, put

if TYPE_CHECKING:
    from s3_batches_model import Model


class CollectorSteps:
    """The next requests of one collector: what it does next is any of its tasks."""

    def __init__(self, model: Model, s: State, i: int) -> None:
        self.model, self.rules, self.meaning = model, model.rules, model.meaning
        self.s, self.i = s, i
        self.c = s.collectors[i]

    def steps(self) -> Steps:
        if self.c.at == "begin":
            yield from self.begin()
        else:
            yield from getattr(self, self.c.at.replace(" ", "_"))()

    def to(self, at: str, state: State | None = None, **changes: object) -> tuple[str, State]:
        state = self.s if state is None else state
        changed = self.c._replace(at=at, **changes)  # type: ignore[arg-type]
        if at == "begin":
            changed = Collector()
        label = f"collector {self.i} {self.c.at} -> {at} {changes}"
        return label, state._replace(collectors=put(state.collectors, self.i, changed))

    def begin(self) -> Steps:
        root = self.s.root
        for e, entry in enumerate(root.entries):
            if entry.age == LIVE and (entry.named == 2 or not self.rules.compact_later):
                yield self.to("compact", root=root, chosen=e)
        age = 2 if self.rules.forget_later else 0
        left = tuple(entry for entry in root.entries if entry.age < age)
        if left != root.entries:
            yield self.to("begin", self.swapped(root._replace(entries=left)))
        for d, drop in enumerate(root.drops):
            if drop.age == 2:
                yield self.to("clean", root=root, chosen=d)
        for name, single in enumerate(self.s.singles):
            if single is not None and single.value is not None and single.number != STRONG:
                yield self.to("hide", single=single, place=name)
            if single is None or single.value is not None:
                continue
            if self.rules.sweep_root_after:
                yield self.to("cover", single=single, place=name)
            elif not self.meaning.covers(root, name):
                yield self.to("see", root=root, place=name)

    def swapped(self, root: Root) -> State:
        return self.s._replace(root=root._replace(version=root.version + 1))

    @staticmethod
    def holds(root: Root, drop: Drop) -> bool:
        """Whether an entry has what would be there again without the drop."""
        return any(
            item.name in drop.names and item.number < drop.number
            for entry in root.entries
            for item in entry.items
        )

    # ------------------------------------------------------------ batches

    def compact(self) -> Steps:
        """Looks at the singles of an entry's names, one after the other."""
        assert self.c.root is not None
        items = self.c.root.entries[self.c.chosen].items
        if self.c.place == len(items):
            yield from self.compacted(self.c.root, items)
            return
        item = items[self.c.place]
        if item.value is None:
            needed = self.is_needed(item, self.c.root)
        else:
            value = self.meaning.value(item.name, self.s.singles[item.name], self.c.root)
            needed = value == item.value
        hidden = self.c.hidden if needed else (*self.c.hidden, item.name)
        yield self.to("compact", place=self.c.place + 1, hidden=hidden)

    def is_needed(self, item: Item, root: Root) -> bool:
        """Whether something would be there without what says that it is deleted."""
        single = self.s.singles[item.name]
        hides = single is not None and single.value is not None and single.number < item.number
        if hides and self.rules.purge_kept_hiding:
            return True
        return self.rules.purge_kept and any(
            other.name == item.name and other.number < item.number and other.value is not None
            for entry in root.entries
            if entry.age == LIVE
            for other in entry.items
        )

    def compacted(self, root: Root, items: tuple[Item, ...]) -> Steps:
        changed = self.s.root.version != root.version
        if not self.c.hidden or (changed and self.rules.compaction_swaps):
            yield self.to("begin")
            return
        if not changed:
            root = self.s.root  # whose ages may be others
        number = root.version + 1
        kept = tuple(
            item if self.rules.own_numbers else item._replace(number=number)
            for item in items
            if item.name not in self.c.hidden
        )
        old = root.entries[self.c.chosen]
        entries = put(root.entries, self.c.chosen, old._replace(age=0))
        if items[0].value is None and not self.rules.purge_retired:
            entries = tuple(entry for entry in root.entries if entry != old)
        if kept:
            entries = (*entries, Entry(kept))
        yield self.to("begin", self.swapped(root._replace(entries=entries)))

    # ------------------------------------------------------------ drops

    def clean(self) -> Steps:
        """Looks for the weak singles that a drop hides, one after the other. If there are any, it
        stays for two hours' ends more, and they are deleted; else it is forgotten."""
        drop = self.drop()
        if self.c.place < len(drop.names) and self.rules.drop_cleaned:
            name = drop.names[self.c.place]
            hidden = (*self.c.hidden, name) if self.hidden_by(drop, name) else self.c.hidden
            yield self.to("clean", place=self.c.place + 1, hidden=hidden)
        elif not self.c.hidden:
            yield from self.forget()
        elif self.rules.drop_kept_first and self.rules.drop_forgotten_later:
            yield self.to("clear", self.aged_anew(drop), place=0)
        else:
            yield self.to("clear", place=0)

    def clear(self) -> Steps:
        """Deletes them."""
        drop = self.drop()
        if self.c.place < len(self.c.hidden):
            name = self.c.hidden[self.c.place]
            after = self.without(name) if self.hidden_by(drop, name) else self.s
            yield self.to("clear", after, place=self.c.place + 1)
        elif not self.rules.drop_forgotten_later:
            yield from self.forget()
        elif not self.rules.drop_kept_first:
            yield self.to("begin", self.aged_anew(drop))
        else:
            yield self.to("begin")

    def forget(self) -> Steps:
        """The drop, unless that has changed since it was looked at."""
        root, drop = self.s.root, self.drop()
        drops = tuple(each for each in root.drops if each != drop)
        if drops == root.drops or self.holds(root, drop):
            yield self.to("begin")
        else:
            yield self.to("begin", self.swapped(root._replace(drops=drops)))

    def aged_anew(self, drop: Drop) -> State:
        """With the same version, or there would be no end of states: no number is between."""
        root = self.s.root
        drops = tuple(
            each._replace(age=0) if each.number == drop.number else each for each in root.drops
        )
        return self.s._replace(root=root._replace(drops=drops))

    def drop(self) -> Drop:
        assert self.c.root is not None
        return self.c.root.drops[self.c.chosen]

    def hidden_by(self, drop: Drop, name: int) -> bool:
        single = self.s.singles[name]
        return single is not None and single.value is not None and single.number < drop.number

    # ------------------------------------------------------------ what a batch hides

    def hide(self) -> Steps:
        """Whether what the root says now hides the weak single that was seen."""
        assert self.c.single is not None
        hides = self.meaning.hides(self.s.root, self.c.place)
        hidden = self.c.single.number < hides or (hides >= 0 and not self.rules.shed_hidden)
        yield self.to("shed" if hidden else "begin")

    def shed(self) -> Steps:
        there = self.s.singles[self.c.place]
        assert self.c.single is not None
        same = there is not None and there.etag == self.c.single.etag
        if same or not self.rules.shed_if_match:
            yield self.to("begin", self.without(self.c.place))
        else:
            yield self.to("begin")

    def without(self, name: int) -> State:
        """Without its single. From the root by which that is decided to the end of a read of it,
        that ends later, less than an hour passes: no more than one hour's end."""
        single = self.s.singles[name]
        clients = tuple(
            client._replace(hours=max(client.hours, self.c.hours))
            if client.single is not None and client.single == single
            else client
            for client in self.s.clients
        )
        return self.s._replace(singles=put(self.s.singles, name, None), clients=clients)

    # ------------------------------------------------------------ tombstones

    def cover(self) -> Steps:
        covered = self.meaning.covers(self.s.root, self.c.place)
        yield self.to("begin" if covered and self.rules.sweep_uncovered else "sweep")

    def see(self) -> Steps:
        single = self.s.singles[self.c.place]
        if single is None or single.value is not None:
            yield self.to("begin")
        else:
            yield self.to("sweep", single=single)

    def sweep(self) -> Steps:
        there = self.s.singles[self.c.place]
        assert self.c.single is not None
        same = there is not None and there.etag == self.c.single.etag
        if same or not self.rules.sweep_if_match:
            yield self.to("begin", self.s._replace(singles=put(self.s.singles, self.c.place, None)))
        else:
            yield self.to("begin")
