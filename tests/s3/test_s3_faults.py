"""Every request of every operation fails in every way: the operation succeeds, or raises an error
of ours; no write that was acknowledged is lost, and no read gives a wrong byte."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_proxy import Fault, FaultProxy, Rule, answer, corrupt, cut, late, reset, stall, twice
from s3_stores import Open

import castore
from castore.errors import CastoreError, CommitUnknown, NameExists, NameNotFound
from castore.format.s3_gc import GcState, encode_condemned, encode_state
from castore.s3.client import retries
from castore.s3.client.retries import Backoff
from castore.s3.store import S3Store

TIMEOUT_S = 0.4  # of a reply
PATIENCE = Backoff(attempts=4, first_s=0.01, throttled_first_s=0.01)

Model = dict[str, bytes]


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


INLINE, LARGE = noise(1000, 1), noise(150_000, 2)
BEFORE: Model = {"inline": INLINE, "large": LARGE}

FAULTS: dict[str, Callable[[], Fault]] = {
    "500": lambda: answer(500, "InternalError"),
    "500-applied": lambda: answer(500, "InternalError", applied=True),
    "503": lambda: answer(503, "SlowDown"),
    "reset-before": reset,
    "reset-after": lambda: reset(applied=True),
    "cut": cut,
    "cut-reset": lambda: cut(0.9, rst=True),
    "stall": stall,
    "stall-applied": lambda: stall(applied=True),
    "409": lambda: answer(409, "ConditionalRequestConflict"),
    "412-own": lambda: answer(412, "PreconditionFailed", applied=True),
    "wrong-bytes": corrupt,
    "twice": twice,
}
# Like another one to all but the layer below, whose tests have them; or slow.
FOR_LONG = ["500", "cut-reset", "stall-applied", "twice"]
NO_PRECONDITION = {"412-own"}  # where there is none, no server answers so
NO_CHECKSUM = {"wrong-bytes"}  # a listing has none, nor has a reply of S3's to a deletion


@dataclass(frozen=True)
class Case:
    """An operation and one kind of its requests."""

    operation: str
    kind: str
    key: str
    never: frozenset[str] = frozenset()


def case(operation: str, kind: str, key: str, never: set[str] = NO_PRECONDITION) -> Case:
    return Case(operation, kind, key, frozenset(never))


CASES = [
    case("open", "GET", "/castore.json"),
    case("puts inline", "PUT", "/names/", set()),
    case("puts new", "LIST", "", NO_PRECONDITION | NO_CHECKSUM),
    case("puts new", "PUT", "/pins/", set()),
    case("puts new", "PUT", "/packs/"),
    case("puts new", "PUT", "/names/", set()),
    case("puts reusing", "GET", "/hints/"),
    case("puts reusing", "PUT", "/pins/", set()),
    case("puts reusing", "GET", "/gc/state"),
    case("puts reusing", "HEAD", "/packs/"),
    case("puts if absent", "GET", "/names/"),
    case("puts if absent", "HEAD", "/names/"),
    case("puts if absent", "PUT", "/names/", set()),
    case("gets", "GET", "/names/"),
    case("gets", "GET", "/packs/"),
    case("gets warm", "GET", "/names/"),
    case("gets warm", "GET", "/packs/"),
    case("get", "GET", "/packs/"),
    case("open file", "GET", "/packs/"),
    case("copy", "GET", "/names/"),
    case("copy", "PUT", "/names/", set()),
    case("rename", "PUT", "/names/", set()),
    case("rename", "DELETE", "/names/", set()),
    case("delete", "HEAD", "/names/"),
    case("delete", "DELETE", "/names/", set()),
    case("delete prefix", "LIST", "", NO_PRECONDITION | NO_CHECKSUM),
    case("delete prefix", "DELETE", "/names/", set()),
    case("list", "LIST", "", NO_PRECONDITION | NO_CHECKSUM),
    case("list", "GET", "/names/"),
    case("transaction", "PUT", "/names/", set()),
    case("close", "POST", "", NO_PRECONDITION | NO_CHECKSUM),
    case("close", "PUT", "/hints/"),
]


def run(operation: str, store: castore.Store, folder: Path, new: bytes) -> Model:
    """Do it, and check what it returns; what there is afterwards."""
    after = dict(BEFORE)
    match operation:
        case "puts inline":
            store.puts("inline", INLINE[::-1])
            after["inline"] = INLINE[::-1]
        case "puts new" | "close":
            store.puts("new", new)
            after["new"] = new
        case "puts reusing":
            store.puts("new", LARGE + b"!")
            after["new"] = LARGE + b"!"
        case "puts if absent":
            store.puts("new", b"new", if_absent=True)
            after["new"] = b"new"
        case "open" | "gets" | "gets warm":
            assert store.gets("large", (1000, 140_000)) == LARGE[1000:140_000]
            assert store.gets("inline") == INLINE
        case "get":
            store.get("large", folder / "large")
            assert (folder / "large").read_bytes() == LARGE
            target = io.BytesIO()
            store.get("large", target)
            assert target.getvalue() == LARGE
        case "open file":
            with store.open("large") as file:
                assert file.read(1000) == LARGE[:1000]
                file.seek(90_000)
                assert file.read() == LARGE[90_000:]
        case "copy":
            store.copy("large", "new")
            after["new"] = LARGE
        case "rename":
            store.rename("large", "new")
            after["new"] = after.pop("large")
        case "delete":
            store.delete("large")
            del after["large"]
        case "delete prefix":
            assert store.delete_prefix("", unbounded=True) == 2
            after.clear()
        case "list":
            assert [(info.name, info.size) for info in store.list()] == [
                ("inline", 1000),
                ("large", 150_000),
            ]
        case "transaction":
            with store.transaction() as transaction:
                transaction.puts("new", new)
                transaction.puts("new/marker", b"")
            after |= {"new": new, "new/marker": b""}
        case _:
            raise AssertionError(operation)
    return after


def contents(store: castore.Store) -> Model:
    return {name: store.gets(name) for name in store.names()}


def check(found: Model, before: Model, after: Model, *, known: bool, partly: bool) -> None:
    """`known`: it was acknowledged; `partly`: it is of several names, none of them at once."""
    if known:
        assert found == after
    elif not partly:
        assert found in (before, after)
    for name, data in found.items():
        assert data in (before.get(name), after.get(name)), name
    assert found.keys() >= before.keys() & after.keys()


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    monkeypatch.setattr(retries, "BACKOFF", PATIENCE)


each_case = pytest.mark.parametrize(
    "each", CASES, ids=lambda each: f"{each.operation}-{each.kind}{each.key}".replace(" ", "_")
)


@each_case
@pytest.mark.sampled(10)
def test_one_request_fails_in_one_way(
    each: Case,
    patience: None,
    open_moto: Open,
    open_proxied: Open,
    proxy: FaultProxy,
    tmp_path: Path,
) -> None:
    """Another way for each case: all of them take minutes."""
    possible = [fault for fault in FAULTS if fault not in each.never]
    fault = possible[CASES.index(each) % len(possible)]
    attempts(each, [fault], 1, open_moto, open_proxied, proxy, tmp_path)


@pytest.mark.long
@each_case
def test_one_request_fails(
    each: Case,
    patience: None,
    open_moto: Open,
    open_proxied: Open,
    proxy: FaultProxy,
    tmp_path: Path,
) -> None:
    faults = [fault for fault in FAULTS if fault not in FOR_LONG]
    attempts(each, faults, 1, open_moto, open_proxied, proxy, tmp_path)


@pytest.mark.long
@each_case
def test_one_request_fails_in_another_way(
    each: Case,
    patience: None,
    open_moto: Open,
    open_proxied: Open,
    proxy: FaultProxy,
    tmp_path: Path,
) -> None:
    attempts(each, FOR_LONG, 1, open_moto, open_proxied, proxy, tmp_path)


@pytest.mark.long
@each_case
def test_all_requests_fail(
    each: Case,
    patience: None,
    open_moto: Open,
    open_proxied: Open,
    proxy: FaultProxy,
    tmp_path: Path,
) -> None:
    faults = ["500", "500-applied", "503", "reset-before", "reset-after", "cut", "stall", "409"]
    succeeded = attempts(each, faults, 1000, open_moto, open_proxied, proxy, tmp_path)
    # What can't help with closing; and what was applied, and is found to be so.
    if each.operation != "close" and each.kind in ("GET", "HEAD", "LIST"):
        # A reply to a HEAD has no body, nor has a 304; and what a refused HEAD means is asked for
        # with a GET, which may know.
        assert succeeded <= {"cut"} | ({"409"} if each.kind == "HEAD" else set())


def attempts(
    each: Case,
    faults: list[str],
    times: int,
    open_moto: Open,
    open_proxied: Open,
    proxy: FaultProxy,
    folder: Path,
) -> set[str]:
    """The faults despite which the operation succeeded."""
    with open_moto(0) as first:
        for name, data in BEFORE.items():
            first.puts(name, data)
    direct = open_moto(0)
    succeeded = set()
    for machine, fault in enumerate(faults, 1):
        if fault in each.never:
            continue
        try:
            if attempt(each, fault, times, machine, direct, open_moto, open_proxied, proxy, folder):
                succeeded.add(fault)
        except BaseException as error:
            error.add_note(f"the fault is {fault}")
            raise
    return succeeded


def attempt(
    each: Case,
    fault: str,
    times: int,
    machine: int,
    direct: castore.Store,
    open_moto: Open,
    open_proxied: Open,
    proxy: FaultProxy,
    folder: Path,
) -> bool:
    """Whether the operation succeeded. Leaves everything as it was."""
    new = noise(120_000, 100 + machine)
    rule, store, after, failed = None, None, None, None

    def inject() -> Rule:
        return proxy.inject(each.kind, each.key, FAULTS[fault](), times=times)

    try:
        if each.operation == "open":
            rule = inject()
        store = open_proxied(machine, read_timeout_s=TIMEOUT_S)
        if each.operation == "gets warm":
            assert store.info("large").size == len(LARGE)
            assert store.info("inline").size == len(INLINE)
        if rule is None and each.operation != "close":
            rule = inject()
        after = run(each.operation, store, folder, new)
        if rule is None:
            rule = inject()
            store.close()
    except CastoreError as error:
        failed = error
    assert failed is None or (str(failed) and "\n" not in str(failed))
    assert rule is not None
    assert rule.applied, "the operation makes no such request"
    proxy.rules.clear()
    if after is None:
        after = _after(each.operation, new)
    partly = each.operation in ("transaction", "delete prefix", "rename")
    with open_moto(machine + 100) as fresh:
        found = contents(fresh)
    check(found, BEFORE, after, known=failed is None, partly=partly)
    # Nor did it poison what the machine remembers, or the session.
    if store is None or each.operation == "close":
        store = open_proxied(machine)
    assert contents(store) == found
    for name in found.keys() - BEFORE.keys():
        store.delete(name)
    for name, data in BEFORE.items():
        if found.get(name) != data:
            store.puts(name, data)
    assert contents(direct) == BEFORE
    store.close()
    return failed is None


def _after(operation: str, new: bytes) -> Model:
    """What the operation would have made of it."""

    class Done(Exception):
        pass

    class Recorder:
        def __init__(self) -> None:
            self.model = dict(BEFORE)

        def __enter__(self) -> Recorder:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def transaction(self) -> Recorder:
            return self

        def puts(self, name: str, data: bytes, **_: object) -> None:
            self.model[name] = data

        def copy(self, source: str, target: str) -> None:
            self.model[target] = self.model[source]

        def rename(self, source: str, target: str) -> None:
            self.model[target] = self.model.pop(source)

        def delete(self, name: str) -> None:
            del self.model[name]

        def delete_prefix(self, _: str, *, unbounded: bool) -> int:
            self.model.clear()
            return 2

        def __getattr__(self, _: str) -> object:
            raise Done

    recorder = Recorder()
    with contextlib.suppress(Done):
        run(operation, recorder, Path(), new)  # type: ignore[arg-type]
    return recorder.model


# ---------------------------------------------------------------- many faults, at random

SORTS = [name for name in FAULTS if name not in ("412-own", "stall", "stall-applied")]


def fuzz(seed: int, steps: int, open_moto: Open, proxy: FaultProxy, open_proxied: Open) -> int:
    """Random operations while one request in eight fails: what is there is always what an
    operation left that was acknowledged, or that may have been applied. How many succeeded."""
    choose = random.Random(seed)
    store = open_proxied(10, read_timeout_s=TIMEOUT_S)
    possible: dict[str, set[bytes | None]] = {}
    faulty = True

    def fault_for(exchange: object) -> Fault | None:
        if not faulty or choose.random() > 0.125:
            return None
        sort = choose.choice(SORTS)
        if sort == "wrong-bytes" and exchange.kind != "GET":  # type: ignore[attr-defined]
            return None
        return FAULTS[sort]()

    proxy._fault_for = fault_for  # type: ignore[method-assign, assignment]
    succeeded = 0
    for step in range(steps):
        name = f"name/{choose.randrange(5)}"
        possible.setdefault(name, {None})
        size = choose.choice([10, 2000, 70_000, 200_000])
        data = noise(size, choose.randrange(6)) + str(step).encode()
        verb = choose.choice(["puts", "puts", "gets", "gets", "delete", "rename", "copy"])
        other = f"name/{choose.randrange(5)}"
        possible.setdefault(other, {None})
        try:
            if verb == "puts":
                store.puts(name, data)
                possible[name] = {data}
            elif verb == "gets":
                read = store.gets(name)
                assert read in possible[name], "a wrong byte, or a lost write"
                possible[name] = {read}
            elif verb == "delete":
                store.delete(name)
                assert possible[name] != {None}
                possible[name] = {None}
            elif name != other:
                getattr(store, verb)(name, other)
                sources = possible[name] - {None}
                assert sources
                possible[other] = set(sources)
                if verb == "rename":
                    possible[name] = {None}
            succeeded += 1
        except NameNotFound as error:
            if error.name == name:
                assert None in possible[name], "a lost write"
                possible[name] = {None}
        except CastoreError:
            if verb == "puts":
                possible[name] = possible[name] | {data}
            elif verb == "delete":
                possible[name] = possible[name] | {None}
            elif verb in ("copy", "rename"):
                possible[other] = possible[other] | (possible[name] - {None})
                if verb == "rename":
                    possible[name] = possible[name] | {None}
    faulty = False
    for machine in (10, 11):
        reader = open_moto(machine)
        for name, contents in possible.items():
            try:
                found: bytes | None = reader.gets(name)
            except NameNotFound:
                found = None
            assert found in contents, name
    return succeeded


def test_random_faults(
    patience: None, open_moto: Open, open_proxied: Open, proxy: FaultProxy
) -> None:
    assert fuzz(1, 60, open_moto, proxy, open_proxied) > 40


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_random_faults_for_long(
    seed: int, patience: None, open_moto: Open, open_proxied: Open, proxy: FaultProxy
) -> None:
    assert fuzz(seed, 500, open_moto, proxy, open_proxied) > 300


# ---------------------------------------------------------------- particular ones


def test_a_put_whose_outcome_is_unknown_keeps_its_pins(
    patience: None, open_moto: Open, open_proxied: Open, proxy: FaultProxy
) -> None:
    store = open_proxied()
    proxy.inject("PUT", "/names/", reset())
    store.puts("a", LARGE)
    store.close()
    assert proxy.count("POST") == 0  # what may land yet relies on the pins
    store = open_proxied()
    proxy.inject("PUT", "/names/", reset(), times=1000)
    proxy.inject("GET", "/names/", reset(), times=1000)
    with pytest.raises(CommitUnknown, match="look before you repeat it"):
        store.puts("b", noise(100_000, 8))
    store.close()
    assert proxy.count("POST") == 0
    proxy.rules.clear()
    store = open_proxied()
    store.puts("c", noise(100_000, 9))
    store.close()
    assert proxy.count("POST") == 1


def test_a_delete_that_lands_late_deletes_nothing_newer(
    patience: None, open_moto: Open, open_proxied: Open, proxy: FaultProxy
) -> None:
    store = open_proxied()
    store.puts("a", b"old")
    proxy.inject("DELETE", "/names/", late())
    store.delete("a")
    store.puts("a", b"new")
    proxy.land()
    assert proxy.count("DELETE") == 2
    assert open_moto(5).gets("a") == b"new"


def test_if_absent_meets_its_own_write(
    patience: None, open_proxied: Open, proxy: FaultProxy
) -> None:
    store = open_proxied()
    for i, fault in enumerate(("412-own", "500-applied", "reset-after", "twice")):
        proxy.inject("PUT", f"/names/{i}$", FAULTS[fault]())
        store.puts(str(i), b"mine", if_absent=True)
        with pytest.raises(NameExists):
            store.puts(str(i), b"other", if_absent=True)
        assert store.gets(str(i)) == b"mine"


def test_wrong_bytes_that_stay_are_an_error_and_not_a_result(
    patience: None, open_proxied: Open, open_moto: Open, proxy: FaultProxy
) -> None:
    open_moto(1).puts("large", LARGE)
    store = open_proxied(2)
    proxy.inject("GET", "/packs/", corrupt(), times=1000)
    for _ in range(2):
        with pytest.raises(castore.errors.ChunkCorrupt):
            store.gets("large")
    proxy.rules.clear()
    assert store.gets("large") == LARGE
    proxy.inject("GET", "/names/", corrupt(), times=1000)
    with pytest.raises(castore.errors.FormatError, match="the manifest of 'large'"):
        open_proxied(3).gets("large")


@pytest.mark.damages_store("a pack is removed")
def test_a_copy_of_a_damaged_frame_is_not_made(
    patience: None, open_proxied: Open, open_moto: Open, proxy: FaultProxy
) -> None:
    """The packs of the source are condemned, so its frames move; on the way one is damaged."""
    first = open_moto(1)
    first.puts("large", LARGE)
    remote = first._backend
    assert isinstance(remote, S3Store)
    bucket = remote._bucket
    packs = [bytes.fromhex(entry.key[6:38]) for entry in bucket.list("packs/")]
    condemned = encode_condemned(remote.config.store_id, bytes(16), packs)
    bucket.put("gc/condemned/1", condemned)
    bucket.put("gc/state", encode_state(GcState(1, "condemned", bytes(16), "gc/condemned/1")))
    store = open_proxied(2, disk_cache_bytes=0)
    proxy.inject("GET", "/packs/", corrupt())
    store.copy("large", "copied")
    bucket.delete_many(
        [
            entry.key
            for entry in bucket.list("packs/")
            if entry.key[6:38] in {pack.hex() for pack in packs}
        ]
    )
    assert open_moto(3).gets("copied") == LARGE
    # New data that is in the condemned packs alone is stored again.
    open_proxied(4).puts("again", LARGE)
    assert open_moto(5).gets("again") == LARGE
