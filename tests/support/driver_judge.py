"""What `driver.py` asks of a store after every step: its verbs must agree with the model, with each
other, and with what is on the disk."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

from driver_count import Count, count_of
from driver_doors import CommandDoor
from driver_model import Thing

import castore
from castore.local.gc import repack as local_repack
from castore.s3.gc import survey
from castore.stream.reports import GcReport

if TYPE_CHECKING:
    from driver import Driver

NAMES_LOOKED_AT = 3  # at each step, and all at every EVERY-th
EVERY = 12
SUMS = (
    *("objects", "chunks", "packs", "logical_bytes", "unique_bytes", "stored_bytes", "pack_bytes"),
    *("deltas", "delta_raw_bytes", "delta_stored_bytes", "delta_bases"),
)


def look(driver: Driver, step: int) -> None:
    """After every step."""
    choose = random.Random(f"look {driver.seed} {step}")
    store, model = driver.store, driver.model
    names = model.names()
    found = list(store.names())
    assert found == names, (sorted({*found} - {*names}), sorted({*names} - {*found}))
    some = names if step % EVERY == 0 else choose.sample(names, min(NAMES_LOOKED_AT, len(names)))
    for name in some:
        look_at(driver, choose.choice([driver.store, driver.other]), name, choose)
    infos = {info.name: info for info in store.list()}
    sizes = {name: info.size for name, info in infos.items()}
    wrong = {n: size for n, size in sizes.items() if size != len(model.things[n].data)}
    assert not wrong, (wrong, [model.things[name] for name in wrong])
    for name in some:
        assert infos[name] == store.info(name)
    check(driver)
    count = count_of(store, driver.place.url)
    agree(driver, count)
    if step % EVERY == 0:
        look_from_elsewhere(driver, choose)


def look_at(driver: Driver, store: castore.Store, name: str, choose: random.Random) -> None:
    thing = driver.model.things[name]
    size = len(thing.data)
    assert store.gets(name) == thing.data, f"{name!r} is not {thing}"
    begin, end = sorted((choose.randrange(size + 2), choose.randrange(size + 2)))
    assert store.gets_many(name, [(begin, end), (end, end), (begin, 1 << 40)]) == [
        thing.data[begin:end],
        b"",
        thing.data[begin:],
    ]
    assert store.exists(name)
    same_info(driver, store.info(name), thing)


def same_info(driver: Driver, info: castore.ObjectInfo, thing: Thing) -> None:
    assert info.size == len(thing.data), (info, thing)
    assert thing.fits(info.mode, info.mtime), (info, thing, thing.mtime)
    assert driver.model.etags.setdefault(thing.data, info.etag) == info.etag, info


def check(driver: Driver) -> None:
    """With all data read. What is garbage is no problem."""
    report = driver.store.check(True)
    problems = [f"{each.severity} {each.kind}: {each.what}" for each in report.problems]
    assert not problems, "\n".join(problems)
    assert report.names == len(driver.model.things), report


def agree(driver: Driver, count: Count) -> None:
    """stats, the names, the rows, the files."""
    model = driver.model
    stats = driver.store.stats()
    found = {name: getattr(stats, name) for name in SUMS}
    assert found == count.expected_stats()
    assert (count.objects, count.logical_bytes) == (len(model.things), model.size)
    lost = count.live.keys() - count.packs.keys()
    assert not lost, f"{len(lost)} packs that names lead to are gone"
    if count.pack_rows is not None:
        assert count.pack_rows <= count.packs.keys(), "rows of packs that are gone"


def look_from_elsewhere(driver: Driver, choose: random.Random) -> None:
    """Every door agrees about the names and one object; the command line about the sums."""
    model = driver.model
    names = model.names()
    for word, door in driver.doors.items():
        reach = ("data/", "pipelines/p1/data/") if word == "conducto" else ("",)
        found = [name for name in names if name.startswith(reach)]
        assert sorted(door.names()) == sorted(found), word
        if found:
            name = choose.choice(found)
            assert door.gets(name) == model.things[name].data, (word, name)
    if driver.peer is not None:
        assert driver.peer.names() == names
        assert driver.peer.ask(verb="stats") == driver.store.stats()._asdict()
    command = driver.doors["command"]
    assert isinstance(command, CommandDoor)
    code, said, complaint = command.run("check", "--read-data")
    assert code == 0, (code, said.decode(), complaint)
    code, said, complaint = command.run("--json", "stats")
    assert code == 0, complaint
    told = json.loads(said)
    stats = driver.store.stats()
    assert {name: told[name] for name in SUMS} == {name: getattr(stats, name) for name in SUMS}
    code, said, complaint = command.run("--json", "du")
    assert code == 0, complaint
    assert json.loads(said.splitlines()[-1])["size"] == model.size


# ---------------------------------------------------------------- after a collection


def nothing_is_left(driver: Driver, repack_below: float) -> None:
    """After a collection without a bound, while nobody else writes: no space that nothing needs,
    but for what is not worth moving."""
    count = count_of(driver.store, driver.place.url)
    unused = [i.hex() for i in count.packs if not count.live.get(i)]
    assert not unused, f"{len(unused)} packs that no name leads to"
    assert count.chunks.keys() == count.live_chunks, "rows of chunks that no name leads to"
    assert not count.orphan_segments
    sparse = [i for i in count.packs if count.live_share(i) < repack_below]
    assert not sparse, [count.live_share(i) for i in sparse]
    if count.pack_rows is not None:
        assert count.pack_rows == count.packs.keys()
        most, small = local_repack.SMALL_PACKS_MAX, local_repack.SMALL_PACK_BYTES
    else:
        most, small = survey.SMALL_PACKS_MAX, survey.SMALL_PACK_BYTES
    are_small = [
        i
        for i, size in count.packs.items()
        if size < small and 2 * len(count.live[i]) < local_repack.FRAMES_MAX
    ]
    assert not repack_below or len(are_small) <= most, f"{len(are_small)} small packs"


def comes_to_rest(driver: Driver, **options: Any) -> None:
    """Another collection finds nothing."""
    report = driver.store.gc(**options)
    assert report.found_nothing, facts(report)


def facts(report: GcReport) -> dict[str, Any]:
    """What is not as in a report of nothing."""
    nothing = GcReport(dry_run=report.dry_run)
    found = {name: getattr(report, name) for name in GcReport.__dataclass_fields__}
    return {name: value for name, value in found.items() if value != getattr(nothing, name)}
