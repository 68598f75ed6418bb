"""The steps of `driver.py` that change or read names: each does one thing by the product and by the
model, and compares. What it returns says what it did."""

from __future__ import annotations

import contextlib
import io
import pickle
import stat
import time
import warnings
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

from driver_doors import Blocks, Door, FsDoor, StoreDoor, write_blocks
from driver_model import ANY_MODE, NAMES, PREFIXES, Change, Model, Source, Thing, now_after

from castore.errors import (
    NameExists,
    NameNotFound,
    ObjectChanged,
    ReadOnlyStore,
    UnpublishedResourceWarning,
)

if TYPE_CHECKING:
    from driver import Driver

    import castore

VERSION_BYTES_MIN = 20_000
MODES = (0o644, 0o644, 0o600, 0o755, 0o444, 0o640)
EXPECTED = (FileNotFoundError, FileExistsError, IsADirectoryError)


class Failure(Exception):
    """What a block raises on purpose."""


def change_of(driver: Driver, verbs: tuple[str, ...]) -> Change:
    choose = driver.choose
    weights = {"put": 12, "delete": 3, "copy": 2, "rename": 2, "delete_prefix": 1, "delete_tree": 1}
    if driver.model.size > driver.size_max:
        weights |= {"put": 3, "delete": 12, "delete_prefix": 2}
    verb = choose.choices(verbs, [weights[each] for each in verbs])[0]
    if verb == "put":
        source = Source(
            choose,
            [driver.model.things[name].data for name in driver.model.names()],
            bytes_max=driver.place.settings.data_bytes_max,
        )
        name, mode = choose.choice(NAMES), choose.choice(MODES)
        return Change("put", name, source.make(), mode, choose.random() < 0.15)
    if verb == "delete_prefix":
        return Change(verb, choose.choice(PREFIXES[1:] if choose.random() < 0.97 else PREFIXES))
    name = _name(driver)
    if verb in ("copy", "rename"):
        return Change(verb, name, if_absent=choose.random() < 0.2, target=choose.choice(NAMES))
    return Change(verb, name)


def _name(driver: Driver) -> str:
    """Mostly one that is there."""
    there = driver.model.names()
    if there and driver.choose.random() < 0.85:
        return driver.choose.choice(there)
    return driver.choose.choice(NAMES)


@contextlib.contextmanager
def expecting(kind: type[Exception] | None) -> Iterator[None]:
    """The block must raise this, or nothing."""
    try:
        yield
    except EXPECTED as error:
        if kind is None or not isinstance(error, kind):
            raise
    else:
        assert kind is None, f"{kind.__name__} was not raised"


def on_model(model: Model, changes: list[Change], began_ns: int) -> type[Exception] | None:
    """Apply all of them, or none and say why."""
    after = model.copy()
    try:
        for change in changes:
            change.apply(after, now_after(began_ns))
    except (NameNotFound, NameExists) as error:
        return FileNotFoundError if isinstance(error, NameNotFound) else FileExistsError
    model.things = after.things
    return None


def change(driver: Driver) -> str:
    """By any door."""
    choose = driver.choose
    everyone = [*driver.doors, "other"] + ["peer"] * (driver.peer is not None)
    word = choose.choice(everyone)
    door: Door = driver.doors.get(word, driver.doors["store"])
    inner = choose.choice([*driver.doors])
    if word == "peer":
        door = driver.doors[inner]
    elif word == "other":
        door = StoreDoor(driver.scratch, driver.other)
    for _ in range(50):
        what = change_of(driver, door.verbs)
        if door.takes(what, driver.model):
            break
    else:
        return f"nothing by {word}"
    way = choose.choice(door.ways)
    if way not in door.keeps_mode:
        what = Change(what.verb, what.name, what.data, 0o644, what.if_absent, what.target)
    driver.say(f"{what} by {word}{' ' + inner if word == 'peer' else ''} ({way})")
    refused = door.refuses(what, driver.model)
    began, after = time.time_ns(), driver.model.copy()
    # Applied by a copy first: the time of what was put is known only when it was.
    expected = refused or on_model(after, [what], began)
    with expecting(expected):
        if word == "peer":
            assert driver.peer is not None
            driver.peer.inner(inner, what, way, choose.getrandbits(32))
        else:
            door.do(what, way, choose)
    if refused is None:
        on_model(driver.model, [what], began)
    driver.touched = [what.name, what.target]
    return ""


def transaction(driver: Driver) -> str:
    """Several changes, committed, or not as the block raises or another was faster."""
    choose, model = driver.choose, driver.model
    door = driver.doors["store"]
    assert isinstance(door, StoreDoor)
    changes, ways = [], []
    for _ in range(choose.randrange(1, 7)):
        what, way = (
            change_of(driver, door.verbs),
            choose.choice(["bytes", "path", "stream", "many"]),
        )
        if way not in ("bytes", "path"):
            what = Change(what.verb, what.name, what.data, 0o644, what.if_absent, what.target)
        changes.append(what)
        ways.append(way)
    end = choose.choice(["commit", "commit", "raise", "race"])
    racing = change_of(driver, ("put", "delete")) if end == "race" else None
    driver.say(f"a transaction to {end} ({racing}) of {changes}")
    began, before = time.time_ns(), model.copy()
    failed: BaseException | None = None
    try:
        with driver.store.transaction() as target:
            told = zip(changes, ways, strict=True)
            for (many, if_absent), run in groupby(told, lambda each: _together(*each)):
                if many:
                    objects = [(what.name, what.data) for what, _ in run]
                    target.puts_many(objects, if_absent=if_absent)
                    continue
                for what, way in run:
                    door.on(target, what, way, choose)
            if end == "raise":
                raise Failure
            if racing is not None:
                with expecting(on_model(before.copy(), [racing], began)):
                    StoreDoor(driver.scratch, driver.other).do(racing, "bytes", choose)
                on_model(model, [racing], began)
    except (Failure, NameNotFound, NameExists) as error:
        failed = error
    if isinstance(failed, Failure):
        return ""
    middle = model.copy()
    expected = on_model(model, changes, began)
    if failed is None:
        assert expected is None, f"{expected} was not raised"
    elif expected is None:
        # Refused early: a name is taken as long as what would free it is not committed.
        assert isinstance(failed, NameExists), failed
        assert any(what.absent in before.things or what.absent in middle.things for what in changes)
        model.things = middle.things
    if failed is not None and driver.place.kind != "local":
        driver.settle(middle, changes, began)
    return ""


def _together(what: Change, way: str) -> tuple[bool, bool]:
    """Whether it is put with those beside it, and only if absent."""
    return way == "many" and what.verb == "put", what.if_absent


def version(driver: Driver) -> str:
    """A later version of an object, in whose chunks a byte here and there is another; of none that
    is there, or of which it is said."""
    choose, model, store = driver.choose, driver.model, driver.store
    there = [name for name in model.names() if len(model.things[name].data) > VERSION_BYTES_MIN]
    old = choose.choice(there) if there else None
    data = bytearray(
        choose.randbytes(choose.randrange(VERSION_BYTES_MIN, 8 * VERSION_BYTES_MIN))
        if old is None
        else model.things[old].data
    )
    step = choose.randrange(300, 5000)
    for at in range(choose.randrange(step), len(data), step):
        data[at] ^= choose.randrange(1, 256)
    if choose.random() < 0.3:
        at = choose.randrange(len(data))
        data[at:at] = choose.randbytes(choose.randrange(1, 2000))
    in_place = choose.random() < 0.3 or model.size > driver.size_max
    name = old if old is not None and in_place else choose.choice(NAMES)
    like = old if choose.random() < 0.6 else None
    missing = choose.random() < 0.1 and "nothing" not in model.things
    what = Change("put", name, bytes(data), choose.choice(MODES))
    driver.say(f"{what}, a version of {old!r}, like {'nothing' if missing else like!r}")
    began = time.time_ns()
    with expecting(FileNotFoundError if missing else None):
        store.puts(name, what.data, mode=what.mode, like="nothing" if missing else like)
    if not missing:
        on_model(model, [what], began)
        driver.touched = [name]
    return ""


def put_that_fails(driver: Driver) -> str:
    choose = driver.choose
    what = change_of(driver, ("put",))
    how = choose.choice(["raise", "abort", "drop", "source", "missing"])
    driver.say(f"{what} that fails: {how}")
    store = driver.store
    if how == "source":

        class Failing(Blocks):
            def read(self, size: int = -1, /) -> bytes:
                block = super().read(size)
                if not block:
                    raise Failure
                return block

        with contextlib.suppress(Failure):
            store.put(what.name, Failing(what.data, choose))
    elif how == "missing":
        with contextlib.suppress(FileNotFoundError):
            store.put(what.name, driver.scratch / "nothing-here")
    elif how == "raise":
        with contextlib.suppress(Failure), store.open(what.name, "wb") as file:
            write_blocks(file, what.data, choose)
            raise Failure
    else:
        file = store.open(what.name, "wb")
        write_blocks(file, what.data, choose)
        if how == "abort":
            file.abort()
        else:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                del file
            assert [each.category for each in said] == [UnpublishedResourceWarning]
    return ""


def read(driver: Driver) -> str:
    """get to a file or a stream, file objects, ranges; names that are not there."""
    choose, model, store = driver.choose, driver.model, driver.store
    name = _name(driver)
    how = choose.choice(["path", "stream", "file", "list", "pickle"])
    driver.say(f"read {name!r} by {how}")
    if how == "list":
        prefix = choose.choice(PREFIXES)
        assert list(store.names(prefix)) == model.names(prefix)
        sizes = [(info.name, info.size) for info in driver.other.list(prefix)]
        assert sizes == [(n, len(model.things[n].data)) for n in model.names(prefix)]
        return ""
    if name not in model.things:
        for verb in (store.gets, store.size, store.info, store.open, store.explain_range):
            with expecting(FileNotFoundError):
                verb(name)
        assert not store.exists(name)
        return ""
    thing = model.things[name]
    if how == "path":
        path = driver.scratch / "target"
        store.get(name, path)
        assert path.read_bytes() == thing.data
        assert thing.mode in (ANY_MODE, stat.S_IMODE(path.stat().st_mode))
        path.unlink()
    elif how == "stream":
        stream = io.BytesIO()
        driver.other.get(name, stream)
        assert stream.getvalue() == thing.data
    elif how == "file":
        with store.open(name) as file:
            _same_as(file, thing.data, choose)
    else:
        with pickle.loads(pickle.dumps(store)) as again:
            assert again.gets(name) == thing.data
    return ""


def _same_as(file: Any, data: bytes, choose: Any) -> None:
    expected = io.BytesIO(data)
    for _ in range(4):
        at, size = choose.randrange(len(data) + 10), choose.randrange(-1, len(data) // 2 + 10)
        assert file.seek(at) == expected.seek(at)
        assert file.read(size) == expected.read(size)
        assert file.tell() == expected.tell()


def tree(driver: Driver) -> str:
    """What fsspec makes of names: folders, ranges; and a Store that only reads."""
    choose, model = driver.choose, driver.model
    door = driver.doors["fs"]
    assert isinstance(door, FsDoor)
    path = choose.choice(["", "n", "n/deep", "a", "data", "pipelines", "nothing"])
    driver.say(f"the tree below {path!r}")
    below = f"{path}/" if path else ""
    entries = set()
    for name in model.names(below):
        inner, slash, _ = name[len(below) :].partition("/")
        entries.add((below + inner, "directory" if slash else "file"))
    if entries or path in model.things:
        found = {(each["name"], each["type"]) for each in door.fs.ls(path, detail=True)}
        assert found == (entries or {(path, "file")})
        expected = model.names(below) or [path]
        assert sorted(door.fs.find(path)) == sorted(expected)
        assert door.fs.du(path) == sum(len(model.things[name].data) for name in expected)
    else:
        with expecting(FileNotFoundError if path else None):
            door.fs.ls(path)
    assert door.fs.isdir(path) == (not path or (bool(entries) and path not in model.things))
    with driver.place.open("one", read_only=True) as store:
        for name in choose.sample(model.names(), min(2, len(model.things))):
            data = model.things[name].data
            begin, end = (choose.randrange(-len(data) - 1, len(data) + 2) for _ in range(2))
            assert door.fs.cat_file(name, begin, end) == data[begin:end]
            assert store.gets(name) == data
        with contextlib.suppress(ReadOnlyStore):
            store.puts("never", b"")
            raise AssertionError("a store that only reads was written to")
    return ""


def hold(driver: Driver) -> str:
    """Open an object, to be read at a later step, whatever happened to its name."""
    if not driver.model.things or len(driver.held) >= 3:
        return release(driver)
    name = driver.choose.choice(driver.model.names())
    driver.say(f"hold {name!r}")
    driver.held.append((driver.store.open(name), driver.model.things[name].data))
    return ""


def release(driver: Driver) -> str:
    if driver.held:
        file, data = driver.held.pop(0)
        with file:
            _same_as(file, data, driver.choose)
            file.seek(0)
            assert file.read() == data
    return ""


def write_on(driver: Driver) -> str:
    """A new object that is written over several steps."""
    choose = driver.choose
    if driver.writing is None:
        what = change_of(driver, ("put",))
        driver.say(f"begin {what}")
        mode = "xb" if what.if_absent else "wb"
        taken = what.if_absent and what.name in driver.model.things
        with expecting(FileExistsError if taken else None):
            driver.writing = driver.store.open(what.name, mode), what
            driver.writing[0].write(what.data)
        return ""
    (file, what), driver.writing = driver.writing, None
    how = choose.choice(["close", "close", "abort"])
    driver.say(f"{how} {what}")
    if how == "abort":
        file.abort()
        return ""
    began = time.time_ns()
    what = Change("put", what.name, what.data, 0o644, what.if_absent)
    with expecting(on_model(driver.model.copy(), [what], began)):
        file.close()
    on_model(driver.model, [what], began)
    return ""


def append(driver: Driver) -> str:
    """An object that begins as the one there is, or as none; perhaps another is put meanwhile."""
    choose, model = driver.choose, driver.model
    name = _name(driver)
    what = Change("put", name, choose.randbytes(choose.choice([0, 1, 300, 5000, 40_000])), 0o644)
    fs = driver.doors["fs"]
    assert isinstance(fs, FsDoor)
    ways = ["store", "other", "transaction", *(["fs"] if fs.takes(what, model) else [])]
    by = choose.choice(ways)
    how = choose.choice(["close", "close", "close", "raise", "race"])
    driver.say(f"append {len(what.data)} bytes to {name!r} by {by}: {how}")
    open_one = {
        "store": driver.store.open,
        "other": driver.other.open,
        "transaction": partial(_open_in_transaction, driver.store),
        "fs": fs.fs.open,
    }[by]
    old, began = model.things.get(name), time.time_ns()
    faster = Change("put", name, b"faster", 0o644)
    try:
        with open_one(name, "ab") as file:
            write_blocks(file, what.data, choose)
            if how == "raise":
                raise Failure
            if how == "race":
                StoreDoor(driver.scratch, driver.other).do(faster, "bytes", choose)
                on_model(model, [faster], began)
    except Failure:
        return ""
    except (ObjectChanged, NameExists) as error:
        if how != "race" or isinstance(error, NameExists) != (old is None):
            raise
        return ""
    assert how != "race" or (old is not None and old.data == faster.data)
    data = (b"" if old is None else old.data) + what.data
    mode = 0o644 if old is None else old.mode
    model.things[name] = Thing(data, mode, now_after(began))
    driver.touched = [name, name]
    return ""


@contextlib.contextmanager
def _open_in_transaction(store: castore.Store, name: str, mode: Any) -> Iterator[Any]:
    with store.transaction() as t, t.open(name, mode) as file:
        yield file


def look(driver: Driver) -> str:
    """Folder by folder, and several ranges of several objects at once."""
    choose, model = driver.choose, driver.model
    store = choose.choice([driver.store, driver.other])
    folder = choose.choice(["", "n", "n/deep", "a", "data", "pipelines", "nothing"])
    driver.say(f"look into {folder!r}")
    below = f"{folder}/" if folder else ""
    expected: dict[tuple[str, bool], int | None] = {}
    for name in model.names(below):
        inner, slash, _ = name[len(below) :].partition("/")
        size = None if slash else len(model.things[name].data)
        expected[below + inner, bool(slash)] = size
    found = list(store.scandir(folder))
    assert {(e.name, e.is_folder): e.info and e.info.size for e in found} == expected
    assert len(found) == len(expected)
    name = _name(driver)
    assert store.kind(name) == (name in model.things, bool(model.names(f"{name}/")))
    wanted: list[tuple[str, tuple[int, int] | None]] = []
    for _ in range(choose.randrange(1, 6)):
        name, begin = _name(driver), choose.randrange(2000)
        wanted.append((name, choose.choice([None, (begin, begin + choose.randrange(90_000))])))
    for (name, part), got in zip(wanted, store.gets_ranges(wanted), strict=True):
        if name not in model.things:
            assert isinstance(got, NameNotFound)
        else:
            data = model.things[name].data
            assert got == (data if part is None else data[slice(*part)])
    return ""


STEPS: dict[Any, tuple[int, str]] = {
    change: (60, "local s3 moto"),
    transaction: (10, "local s3 moto"),
    version: (12, "local s3 moto"),
    put_that_fails: (5, "local s3 moto"),
    read: (10, "local s3 moto"),
    tree: (3, "local s3 moto"),
    hold: (3, "local"),
    write_on: (4, "local s3 moto"),
    append: (5, "local s3 moto"),
    look: (4, "local s3 moto"),
}
