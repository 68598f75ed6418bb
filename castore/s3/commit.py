"""What one commit does to names on S3, planned: what must be there, and what is done at once.

Names are changed by a request each, or a batch for many, so a commit is not atomic. What is sure to
fail fails before anything is published; then operations are applied in their order, those of a
group at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from castore.errors import NameExists, NameNotFound, ObjectChanged
from castore.format.index import Record
from castore.stream.operations import (
    Copy,
    Delete,
    DeletePrefix,
    Operation,
    Publish,
    SetAttributes,
    same_bytes,
)

COPIES_MAX = 128  # at once: what is inline in their manifests is in memory


def names_to_look_up(
    operations: Sequence[Operation], *, conditional: bool
) -> tuple[set[bytes], set[bytes]]:
    """(those that ought to be there, those that must not be), before the commit. A copy or a
    deletion by itself finds out on its own, and so does what must be absent where the server is
    known to honour conditions (`conditional`)."""
    present: set[bytes] = set()
    absent: set[bytes] = set()
    for operation in operations:
        match operation:
            case Publish(name, _, _, True):
                absent.add(name)
            case Copy(source, target, _, if_absent):
                if if_absent or len(operations) > 1:
                    present.add(source)
                if if_absent:
                    absent.add(target)
            case Delete(name) | SetAttributes(name) if len(operations) > 1:
                present.add(name)
    if conditional and len(operations) == 1:
        absent.clear()
    return present, absent - present


def check(
    operations: Sequence[Operation], asked: Collection[bytes], found: Collection[bytes]
) -> None:
    """Raises NameNotFound, NameExists, ObjectChanged for what is sure to fail, as of the `asked`
    names those `found` are there."""
    _check_over(operations)
    there = set(found)
    for operation in operations:
        match operation:
            case Publish(name, _, _, if_absent):
                _must_be_absent(name, there, if_absent)
                there.add(name)
            case Copy(source, target, _, if_absent, rename):
                if source in asked and source not in there:
                    raise NameNotFound(source.decode())
                _must_be_absent(target, there, if_absent)
                if rename:
                    there.discard(source)
                there.add(target)
            case SetAttributes(name):
                if name in asked and name not in there:
                    raise NameNotFound(name.decode())
            case Delete(name):
                if name in asked and name not in there:
                    raise NameNotFound(name.decode())
                there.discard(name)
            case DeletePrefix(prefix):
                there = {name for name in there if not name.startswith(prefix)}


def _check_over(operations: Sequence[Operation]) -> None:
    """Raises ObjectChanged for what is over bytes that an operation before it takes away."""
    for publish, over, before in each_over(operations):
        if before is None or not (isinstance(before, bytes) or same_bytes(before, over)):
            raise ObjectChanged(publish.name.decode())


def each_over(
    operations: Sequence[Operation],
) -> Iterator[tuple[Publish, Record, Record | bytes | None]]:
    """Each that is over the bytes of a record, with that, and what its name maps to by then: a
    record, nothing, or what another name, or the same, maps to when the commit begins."""
    now: dict[bytes, Record | bytes | None] = {}
    for operation in operations:
        match operation:
            case Publish(name, record, _, _, over):
                if over is not None:
                    yield operation, over, now.get(name, name)
                now[name] = record
            case Copy(source, target, _, _, rename) if source != target:
                now[target] = now.get(source, source)
                if rename:
                    now[source] = None
            case Delete(name):
                now[name] = None
            case DeletePrefix(prefix):
                named = {name for it in operations for names in names_of(it) for name in names}
                now |= dict.fromkeys(name for name in named if name.startswith(prefix))


def _must_be_absent(name: bytes, there: set[bytes], if_absent: bool) -> None:
    if if_absent and name in there:
        raise NameExists(name.decode())


def groups(operations: Sequence[Operation]) -> Iterator[list[Operation]]:
    """The operations in their order, in groups of one kind that are applied at once: none of a
    group depends on another of it. The last that gives something a name is a group of its own, so
    that a marker such as `_SUCCESS` is never there before what it marks."""
    last = max((i for i, it in enumerate(operations) if isinstance(it, Publish | Copy)), default=-1)
    group: list[Operation] = []
    changed: set[bytes] = set()  # by the group
    read: set[bytes] = set()
    for i, operation in enumerate(operations):
        changes, reads = names_of(operation)
        joins = (
            bool(group)
            and type(operation) is type(group[0])
            and i != last
            and not isinstance(operation, DeletePrefix)
            and changed.isdisjoint(changes | reads)
            and read.isdisjoint(changes)
            and not (isinstance(operation, Copy | SetAttributes) and len(group) >= COPIES_MAX)
        )
        if not joins and group:
            yield group
            group, changed, read = [], set(), set()
        group.append(operation)
        changed |= changes
        read |= reads
        if i == last:
            yield group
            group, changed, read = [], set(), set()
    if group:
        yield group


def names_of(operation: Operation) -> tuple[set[bytes], set[bytes]]:
    """(those that it changes, those that it only reads)."""
    match operation:
        case Publish(name) | SetAttributes(name) | Delete(name):
            return {name}, set()
        case Copy(source, target, _, _, True):
            return {source, target}, set()
        case Copy(source, target):
            return {target}, {source}
        case _:
            return set(), set()
