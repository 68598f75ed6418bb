"""What s3_batches_model.py is about: singles, batches and the root; what a name maps to; and the
guards.

Each guard of the protocol is a field of Rules, so that a test can show what it is there for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from linearizability import History, Value

STRONG = 1 << 20  # the number of a single that always counts
LIVE = -1  # age of an entry that is not retired; else the hours that ended since, up to 2


@dataclass(frozen=True)
class Rules:
    """The guards, all of which hold unless a test takes one away."""

    list_first: bool = True  # before the swap, not after it
    apart: bool = True  # what is a strong single is put as one, and left out of the batch
    renew: bool = True  # those that came meanwhile get a new etag
    renew_first: bool = True  # before the batch is acknowledged
    renew_if_match: bool = True
    batch_swaps: bool = True  # by compare-and-swap
    weak: bool = True  # what is put with a condition has a number
    weak_conditional: bool = True
    number_within: bool = True  # it is read within the operation
    number_decides: bool = True  # with what decided
    root_not_older: bool = True  # than what the single was decided by, over which it is put
    numbers_count: bool = True  # a weak single loses to a higher number
    ties: bool = True  # and wins against the same one
    strong_if_match: bool = True  # a conditional put over a strong single
    root_after: bool = True  # a delete reads the root after the single
    tombstones: bool = True  # of what an entry covers
    tombstone_conditional: bool = True
    delete_if_match: bool = True
    cover_retired: bool = True  # an entry covers until it is forgotten
    cover_dropped: bool = True  # whatever was dropped of it
    forget_later: bool = True  # two hours' ends after it was retired
    reads_take_minutes: bool = True  # else they begin anew
    weak_take_minutes: bool = True  # what is put with a number, too
    deletes_take_minutes: bool = True
    retired_asked: bool = True  # where a retired entry would count, the single is read again
    entry_asked: bool = True  # and where one counts that the reader did not know before
    dropped_asked: bool = True  # and where one that was dropped would
    drop_numbered: bool = True  # weak singles before it are dropped, too
    drop_first: bool = True  # and then the singles
    drop_cleaned: bool = True  # of such singles, before it is forgotten
    drop_forgotten_later: bool = True  # than that
    drop_kept_first: bool = True  # until they were deleted, and then they are
    compact_later: bool = True  # two hours' ends after the batch was named
    own_numbers: bool = True  # in a batch that is written anew
    compaction_swaps: bool = True
    sweep_if_match: bool = True  # tombstones
    sweep_uncovered: bool = True
    sweep_root_after: bool = True
    shed_hidden: bool = True  # of weak singles, those that do not count
    shed_later: bool = True  # two hours' ends after the batch was named that hides them
    shed_batched: bool = True  # hidden by what counts in an entry, and not by a drop
    shed_if_match: bool = True
    shed_soon: bool = True  # after the root that was read for it
    clear_soon: bool = True  # after the root that was put for it, in which a drop is kept
    purge_listed: bool = True  # what is a single is deleted by itself
    purge_kept: bool = True  # while an entry that counts has what would be there again without it
    purge_kept_hiding: bool = True  # and while it hides a weak single
    purge_retired: bool = True  # and is retired then, as what was written anew


class Single(NamedTuple):
    value: Value  # None: a tombstone
    number: int
    etag: tuple[object, ...]


class Item(NamedTuple):
    name: int
    value: Value  # None: it says that the name is deleted
    number: int


class Entry(NamedTuple):
    items: tuple[Item, ...]
    age: int = LIVE
    named: int = 2  # hours that ended since a batch was named, up to 2


class Drop(NamedTuple):
    names: tuple[int, ...]
    number: int
    age: int = 0


class Root(NamedTuple):
    version: int = 0
    entries: tuple[Entry, ...] = ()
    drops: tuple[Drop, ...] = ()


class Task(NamedTuple):
    """What a client does: a verb of Operation, `batch` or `erase` (a prefix), `purge` (a deletion
    by a batch), or `look` (a read that asks for the single and the root at once)."""

    verb: str
    names: tuple[int, ...] = (0,)
    value: Value = None
    seen: Value = None


@dataclass(frozen=True)
class Scenario:
    clients: tuple[tuple[Task, ...], ...]
    singles: tuple[Single | None, ...] = (None,)
    root: Root = Root()  # noqa: RUF009 (immutable)
    collectors: int = 0


class Client(NamedTuple):
    at: str = "begin"
    task: int = 0
    place: int = 0  # among the task's names
    single: Single | None = None
    root: Root | None = None
    number: int = 0
    hours: int = 0  # that ended since it began to read
    apart: tuple[int, ...] = ()
    answered: bool = False


class Collector(NamedTuple):
    at: str = "begin"
    root: Root | None = None
    chosen: int = 0
    place: int = 0
    hidden: tuple[int, ...] = ()
    single: Single | None = None
    hours: int = 0  # that ended since it read, or put, the root by which it takes a single away


class State(NamedTuple):
    singles: tuple[Single | None, ...]
    root: Root
    histories: tuple[History, ...]
    clients: tuple[Client, ...]
    collectors: tuple[Collector, ...]


Steps = Iterator[tuple[str, State]]
FRESH: dict[str, Any] = {"single": None, "root": None, "number": 0, "hours": 0}
VERBS = {"batch": "write", "purge": "write", "look": "read"}


def put(items: tuple, i: int, item: object) -> tuple:  # type: ignore[type-arg]
    return (*items[:i], item, *items[i + 1 :])


class Meaning:
    """What a name maps to, given its single and the root."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    def value(self, name: int, single: Single | None, root: Root) -> Value:
        return self.counts(name, single, root)[1]

    def counts(self, name: int, single: Single | None, root: Root) -> tuple[int, Value]:
        """(the number that counts, the value)."""
        if single is not None and single.number == STRONG:
            return STRONG, single.value
        dropped = self.dropped(root, name)
        found: list[tuple[int, int, Value]] = [(-1, 0, None)]  # number, rank, value
        for entry in root.entries:
            for item in entry.items if entry.age == LIVE else ():
                if item.name == name and item.number >= dropped:
                    found.append((item.number, 1, item.value))
        if single is not None and (single.number >= dropped or not self.rules.drop_numbered):
            if not self.rules.numbers_count:
                return STRONG, single.value
            found.append((single.number, 2 if self.rules.ties else 0, single.value))
        number, _, value = max(found, key=lambda it: it[:2])
        return number, value

    def doubtful(self, name: int, single: Single | None, root: Root) -> bool:
        """Whether an entry counts that may have been named after the single was read, or something
        would count but for its being retired or dropped, which may have been done after that."""
        number, value = self.counts(name, single, root)
        by_single = single is not None and (single.value, single.number) == (value, number)
        if self.rules.entry_asked and value is not None and not by_single:
            return True
        dropped = self.dropped(root, name) if self.rules.dropped_asked else 0
        if single is not None:
            number = max(number, single.number)
            if single.value is not None and single.number < dropped:
                return True
        return any(
            item.name == name and item.number > number
            for entry in root.entries
            for item in entry.items
            if item.number < dropped or (entry.age != LIVE and self.rules.retired_asked)
        )

    def covers(self, root: Root, name: int) -> bool:
        dropped = 0 if self.rules.cover_dropped else self.dropped(root, name)
        return any(
            item.name == name and item.number >= dropped
            for entry in root.entries
            if entry.age == LIVE or self.rules.cover_retired
            for item in entry.items
        )

    def hides(self, root: Root, name: int) -> int:
        """The number of what hides weak singles of lower ones for good; -1 if nothing does."""
        dropped = self.dropped(root, name)
        numbers = [
            item.number
            for entry in root.entries
            if entry.age == LIVE and (entry.named == 2 or not self.rules.shed_later)
            for item in entry.items
            if item.name == name and item.number >= dropped
        ]
        if not self.rules.shed_batched:
            numbers.append(dropped)
        return max(numbers, default=-1)

    @staticmethod
    def hides_now(root: Root, name: int) -> int:
        """The highest number of an entry that has the name; -1 if none does."""
        live = (entry for entry in root.entries if entry.age == LIVE)
        return max((i.number for entry in live for i in entry.items if i.name == name), default=-1)

    @staticmethod
    def dropped(root: Root, name: int) -> int:
        return max((drop.number for drop in root.drops if name in drop.names), default=0)
