"""Names in batches on S3, in every order of requests; and what each guard is there for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from s3_batches_model import explore
from s3_batches_rules import STRONG, Drop, Entry, Item, Root, Rules, Scenario, Single, Task

READ, LOOK = Task("read"), Task("look")
WRITE, CREATE = Task("write", value="w"), Task("create", value="c")
DELETE, ERASE, PURGE = Task("delete"), Task("erase"), Task("purge")
BATCH, OTHER_BATCH = Task("batch", value="b"), Task("batch", value="o")
REPLACE = Task("replace", value="v", seen="e0")  # what the entry has
REMOVE = Task("remove", seen="e0")
REPLACE_SINGLE = Task("replace", value="v", seen="s")
REMOVE_SINGLE = Task("remove", seen="s")

NONE = (None,)
SINGLE = (Single("s", STRONG, ("s",)),)
WEAK = (Single("k", 1, ("k",)),)
TOMBSTONE = (Single(None, 1, ("t",)),)
ENTRY = Root(1, (Entry((Item(0, "e0", 1),)),))
ENTRY_OF_TWO = Root(1, (Entry((Item(0, "e0", 1), Item(1, "e1", 1))),))
PURGED = Root(2, (*ENTRY.entries, Entry((Item(0, None, 2),))))
PURGED_TWICE = Root(3, (*PURGED.entries, Entry((Item(0, None, 3),))))
PURGED_ALONE = Root(2, (Entry((Item(0, None, 2),)),))
HIDING = Root(2, (Entry((Item(0, "e0", 2),)),))  # of what is put before it
DROP = Root(2, drops=(Drop((0,), 2, age=2),))
DROPPED = ENTRY._replace(version=2, drops=(Drop((0,), 2),))


def of(name: int, task: Task) -> Task:
    return task._replace(names=(name,))


def both(task: Task) -> Task:
    return task._replace(names=(0, 1))


def scenario(
    *clients: tuple[Task, ...],
    singles: tuple[Single | None, ...] = NONE,
    root: Root = Root(),  # noqa: B008 (immutable)
    collectors: int = 0,
) -> Scenario:
    return Scenario(clients, singles, root, collectors)


PUT_AND_READ = scenario((BATCH,), (READ, WRITE, READ))
DELETED = scenario((BATCH, READ, READ), (WRITE,), (DELETE,))
DELETED_EARLY = replace(DELETED, collectors=1)
DELETED_LATE = scenario((BATCH,), (WRITE,), (DELETE,), (READ, READ))
READ_BESIDE = scenario((BATCH,), (WRITE,), (DELETE,), (READ, READ, READ))
CREATED = scenario((BATCH, READ, READ), (CREATE,))
CREATED_ANEW = scenario((CREATE, READ), (BATCH, DELETE, READ))
COVERED = scenario((LOOK,), (WRITE, DELETE), root=ENTRY, collectors=1)
COMPACTED = scenario((READ,), (WRITE,), root=ENTRY, collectors=1)
SLEPT = scenario((REPLACE,), (WRITE, DELETE, READ), root=ENTRY, collectors=1)
REPLACED = scenario((ERASE, READ), (REPLACE, READ), root=ENTRY)
REPLACED_EARLY = replace(REPLACED, collectors=1)
ERASED_BESIDE_PUT = scenario((READ,), (WRITE, READ), (ERASE,), root=ENTRY)
ERASED_BESIDE_LOOK = scenario((LOOK,), (WRITE, DELETE), (ERASE,), root=ENTRY)
CLEANED = scenario((READ, READ), singles=WEAK, root=DROPPED, collectors=1)
CLEANED_TWICE = scenario((READ,), singles=WEAK, root=DROP, collectors=2)
SHED = scenario((WRITE, DELETE, READ), (LOOK,), singles=WEAK, root=HIDING, collectors=1)
SHED_LATER = scenario((BATCH,), (LOOK,), singles=WEAK, root=ENTRY, collectors=1)
SHED_AND_ERASED = scenario((READ,), (ERASE,), singles=WEAK, root=HIDING, collectors=2)
PURGED_ANEW = scenario((PURGE, READ), (WRITE,), (READ, READ), root=ENTRY)
PURGED_EARLY = scenario((READ, READ), root=PURGED, collectors=1)
PURGED_HIDING = scenario((READ, READ), singles=WEAK, root=PURGED_ALONE, collectors=1)
SWEPT = scenario((BATCH, DELETE, READ), singles=TOMBSTONE, root=Root(1), collectors=1)
ELSEWHERE = scenario(
    (WRITE,), (of(1, BATCH), of(1, READ)), singles=(None, None), root=ENTRY, collectors=1
)
TWO_NAMES = scenario(
    (REPLACE, READ), (of(1, WRITE),), singles=(None, None), root=ENTRY_OF_TWO, collectors=1
)

SAFE = {
    "a batch, a put": PUT_AND_READ,
    "a batch, a put, a delete": DELETED,
    "a batch, a put, a delete, reads": DELETED_LATE,
    "a batch, a put, a delete, a read of what it replaces": READ_BESIDE,
    "a batch, a put if absent": CREATED,
    "a batch, a delete, a put if absent": CREATED_ANEW,
    "two batches, a put": scenario((BATCH,), (OTHER_BATCH,), (WRITE,), (READ, READ)),
    "a batch over a single that is replaced and deleted": scenario(
        (BATCH,), (REPLACE_SINGLE,), (DELETE,), (READ, READ), singles=SINGLE
    ),
    "a batch over a batch, a put over the older": scenario(
        (BATCH,), (REPLACE,), (LOOK, LOOK), root=ENTRY
    ),
    "a batch of two names, of which one is put": scenario(
        (both(BATCH), READ), (WRITE, DELETE), (of(1, LOOK),), singles=(None, None)
    ),
    "a rename of what is in a batch": scenario((REMOVE,), (WRITE,), (READ, READ), root=ENTRY),
    "a put and a delete over a batch, a collector": COVERED,
    "a put over one of two names, a collector": TWO_NAMES,
    "a put over a batch, two collectors": replace(COMPACTED, collectors=2),
    "a batch over a tombstone, a collector": SWEPT,
    "a prefix, a put over what is in a batch": REPLACED,
    "a prefix, a put": ERASED_BESIDE_PUT,
    "a prefix, a batch": scenario((ERASE, READ), (BATCH,), (READ, READ), root=ENTRY),
    "a prefix, a put, a delete, a look": ERASED_BESIDE_LOOK,
    "a put that sleeps, a collector": SLEPT,
    "a dropped name, a collector": CLEANED,
    "a dropped name, two collectors": CLEANED_TWICE,
    "a put and a delete over a batch over a put, a collector": SHED,
    "a batch over a put over a batch, a collector": SHED_LATER,
    "a deletion by a batch, a put": PURGED_ANEW,
    "a deletion by a batch, a put, a delete": scenario(
        (PURGE,), (WRITE,), (DELETE,), (READ, READ), root=ENTRY
    ),
    "a deletion by a batch, a put over what it deletes": scenario(
        (PURGE, READ), (REPLACE, READ), (LOOK, LOOK), root=ENTRY
    ),
    "a deletion by a batch, a put if absent": scenario(
        (PURGE,), (CREATE, READ), (LOOK, LOOK), root=ENTRY
    ),
    "a deletion by a batch, a batch": scenario(
        (PURGE, READ), (BATCH, READ), (LOOK, LOOK), root=ENTRY
    ),
    "a deletion by a batch, a batch, a put": scenario(
        (PURGE,), (BATCH,), (WRITE,), (READ, READ), root=ENTRY
    ),
    "two deletions by batches, a put": scenario(
        (PURGE, READ), (PURGE, READ), (WRITE, READ), root=ENTRY
    ),
    "a deletion by a batch, a rename": scenario((PURGE,), (REMOVE,), (READ, READ), root=ENTRY),
    "a deletion by a batch, a collector": scenario(
        (PURGE, READ), (LOOK,), root=ENTRY, collectors=1
    ),
    "what a batch deleted, a collector": PURGED_EARLY,
    "what a batch deleted is put and deleted, a collector": scenario(
        (WRITE, DELETE), (LOOK,), root=PURGED, collectors=1
    ),
    "what a batch deleted, and hides, a collector": PURGED_HIDING,
    "what a batch deleted, and hides, two collectors": scenario(
        (READ,), singles=WEAK, root=PURGED, collectors=2
    ),
    "what two batches deleted, and hide, a collector": scenario(
        (READ,), singles=WEAK, root=PURGED_TWICE, collectors=1
    ),
    "a deletion by a batch of what hides, a put": scenario(
        (PURGE, READ), (WRITE, READ), (LOOK, LOOK), singles=WEAK, root=HIDING
    ),
    "a deletion by a batch of what hides, a collector": scenario(
        (PURGE, READ), (LOOK,), singles=WEAK, root=HIDING, collectors=1
    ),
    "a prefix of what a batch deleted, a collector": scenario(
        (READ, ERASE, READ), root=PURGED, collectors=1
    ),
}
LONG = {
    "a deletion by a batch, a put over what it deletes, a collector": scenario(
        (PURGE,), (REPLACE,), (READ, READ), root=ENTRY, collectors=1
    ),
    "a deletion by a batch, then a put if absent, a collector": scenario(
        (PURGE, CREATE, READ), (LOOK,), root=ENTRY, collectors=1
    ),
    "a batch over what a batch deleted, a collector": scenario(
        (BATCH, READ), (LOOK,), root=PURGED, collectors=1
    ),
    "two batches, a put, a delete": scenario(
        (BATCH,), (OTHER_BATCH,), (WRITE,), (DELETE,), (READ, READ)
    ),
    "a batch, a put if absent, a delete, a look": scenario(
        (BATCH,), (CREATE,), (DELETE,), (LOOK, LOOK), root=ENTRY
    ),
    "a put and a delete over a batch, two collectors": replace(COVERED, collectors=2),
    "a batch, a put, a delete, a collector": DELETED_EARLY,
    "a prefix of two names, a put, a put over": scenario(
        (both(ERASE),),
        (WRITE,),
        (of(1, REPLACE._replace(seen="e1")), of(1, READ)),
        (READ, READ),
        singles=(None, None),
        root=ENTRY_OF_TWO,
    ),
    "a prefix, a put over what is in a batch, a collector": REPLACED_EARLY,
    "a rename, a put, a batch": scenario((REMOVE,), (WRITE,), (BATCH,), (READ, READ), root=ENTRY),
    "a rename, a put, a batch, a collector": scenario(
        (REMOVE,), (WRITE, READ), (BATCH,), root=ENTRY, collectors=1
    ),
    "a batch over a put over a batch, put over and deleted, a collector": scenario(
        (BATCH,), (REPLACE, DELETE), (LOOK,), singles=WEAK, root=ENTRY, collectors=1
    ),
    "a prefix over a batch over a put, two collectors": SHED_AND_ERASED,
}

# Without the guard, some name of that scenario is no register.
GUARDS = {
    "list_first": PUT_AND_READ,
    "apart": scenario((BATCH, READ), singles=SINGLE),
    "renew": DELETED,
    "renew_first": DELETED_LATE,
    "renew_if_match": scenario((BATCH,), (WRITE,), (Task("write", value="x"), READ)),
    "batch_swaps": scenario((BATCH,), (of(1, BATCH), of(1, READ)), singles=(None, None)),
    "weak": CREATED,
    "weak_conditional": scenario((CREATE, READ), (WRITE,)),
    "number_within": scenario((BATCH, DELETE, CREATE, READ)),
    "number_decides": scenario((BATCH,), (CREATE, READ)),
    "root_not_older": CREATED_ANEW,
    "numbers_count": CREATED,
    "ties": scenario((REPLACE, READ), root=ENTRY),
    "strong_if_match": scenario((REPLACE_SINGLE,), (WRITE, READ), singles=SINGLE),
    "root_after": DELETED,
    "tombstones": scenario((DELETE, READ), singles=SINGLE, root=ENTRY),
    "tombstone_conditional": scenario((REMOVE,), (WRITE, READ), root=ENTRY),
    "delete_if_match": scenario((REMOVE_SINGLE,), (WRITE, READ), singles=SINGLE),
    "cover_retired": COVERED,
    "cover_dropped": ERASED_BESIDE_LOOK,
    "forget_later": COVERED,
    "reads_take_minutes": COVERED,
    "weak_take_minutes": SLEPT,
    "retired_asked": COMPACTED,
    "entry_asked": READ_BESIDE,
    "dropped_asked": ERASED_BESIDE_PUT,
    "drop_numbered": REPLACED,
    "drop_first": REPLACED_EARLY,
    "drop_cleaned": CLEANED,
    "drop_forgotten_later": CLEANED,
    "deletes_take_minutes": DELETED_EARLY,
    "compact_later": DELETED_EARLY,
    "own_numbers": TWO_NAMES,
    "compaction_swaps": ELSEWHERE,
    "sweep_if_match": scenario((WRITE, READ), singles=TOMBSTONE, root=Root(1), collectors=1),
    "sweep_uncovered": scenario((READ,), singles=TOMBSTONE, root=ENTRY, collectors=1),
    "sweep_root_after": SWEPT,
    "drop_kept_first": CLEANED_TWICE,
    "shed_hidden": scenario((REPLACE, READ), root=ENTRY, collectors=1),
    "shed_later": SHED_LATER,
    "shed_batched": CLEANED_TWICE,
    "shed_if_match": SHED,
    "shed_soon": SHED_AND_ERASED,
    "clear_soon": CLEANED_TWICE,
    "purge_listed": PURGED_ANEW,
    "purge_kept": PURGED_EARLY,
    "purge_kept_hiding": PURGED_HIDING,
    "purge_retired": PURGED_HIDING,
}


@pytest.mark.parametrize("scenario", SAFE.values(), ids=SAFE)
def test_in_no_order_of_requests_a_name_is_no_register(scenario: Scenario) -> None:
    visited, path = explore(scenario, Rules(), states_max=50_000)
    assert path == []
    assert visited > 20


@pytest.mark.long
@pytest.mark.parametrize("scenario", LONG.values(), ids=LONG)
def test_in_no_order_of_more_requests_either(scenario: Scenario) -> None:
    visited, path = explore(scenario, Rules(), states_max=2_000_000)
    assert path == []
    assert visited > 200


SLOW_GUARDS = {"shed_soon"}


@pytest.mark.parametrize(
    "guard",
    [pytest.param(g, marks=pytest.mark.long) if g in SLOW_GUARDS else g for g in GUARDS],
)
def test_each_guard_is_needed(guard: str) -> None:
    scenario = GUARDS[guard]
    _, path = explore(scenario, replace(Rules(), **{guard: False}), states_max=500_000)
    assert path != []
    if scenario not in [*SAFE.values(), *LONG.values()]:
        assert explore(scenario, Rules(), states_max=200_000)[1] == []


def test_every_guard_has_its_scenario() -> None:
    assert set(GUARDS) == set(Rules.__dataclass_fields__)
