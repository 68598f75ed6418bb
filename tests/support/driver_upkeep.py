"""The steps of `driver.py` that are done to a store as a whole."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import driver_judge as judge
from driver_model import Thing, now_after

import castore
from castore.errors import ChunkCorrupt, FormatError, PackMissing, UnclaimedData

if TYPE_CHECKING:
    from driver import Driver

BACKUPS_MAX = 3
DAY = 86_400.0


def gc(driver: Driver) -> str:
    """With others at work, and any settings."""
    choose = driver.choose
    options: dict[str, Any] = {
        "repack_below": choose.choice([0.0, 0.3, 0.5, 0.9, 1.0]),
        "max_repack_bytes": choose.choice([None, None, 0, 20_000, 1_000_000]),
        "grace_s": choose.choice([0.0, DAY]),
    }
    dry_run = choose.random() < 0.15
    by_peer = driver.peer is not None and choose.random() < 0.3
    driver.say(f"gc {options}{' by the other process' * by_peer}{' dry' * dry_run}")
    if by_peer:
        assert driver.peer is not None
        driver.peer.ask(verb="gc", options=options)
        return ""
    report = choose.choice([driver.store, driver.other]).gc(dry_run=dry_run, **options)
    assert not report.damaged, report
    assert not report.missing, report
    driver.pass_time(choose.choice([0.0, 60.0]))
    return ""


def quiet_gc(driver: Driver) -> str:
    """Nobody else is at work: nothing is left that nothing needs, and the next one rests."""
    choose = driver.choose
    below = choose.choice([0.0, 0.3, 0.5, 0.9])
    driver.say(f"gc of a quiet store, below {below}")
    driver.close_all()
    driver.pass_time(8 * DAY)  # what was killed pinned packs
    driver.open_all()
    options = {"repack_below": below, "grace_s": 0.0}
    report = driver.store.gc(**options)
    assert not report.damaged, report
    judge.nothing_is_left(driver, below)
    judge.comes_to_rest(driver, **options)
    clean = driver.store.check(True)
    assert clean.clean, [problem.what for problem in clean.problems]
    assert not clean.garbage, clean.garbage
    return ""


def reopen(driver: Driver) -> str:
    driver.say("reopen")
    driver.close_all()
    driver.open_all()
    return ""


def repair(driver: Driver) -> str:
    """Of a store that is whole: nothing is done."""
    driver.say("check --repair")
    before = driver.model.names()
    report = driver.store.check(repair=True)
    assert not report.repaired, report.repaired
    assert list(driver.store.names()) == before
    return ""


def damage(driver: Driver) -> str:
    """Flip a bit of a pack: a check names what can't be read, a repair leaves a whole store, and
    what was lost can be put again."""
    driver.say("a flipped bit, and check --repair")
    driver.close_all()
    driver.place.flip(driver.choose)
    driver.open_all()
    model = driver.model
    # A chunk may have two frames: what is read of one is not to stand for the other.
    with driver.place.open(cache_bytes=0) as plain:
        broken = {name for name in model.names() if not _is_read(plain, name)}
    report = driver.store.check(True)
    said = [f"{each.kind}: {each.what}" for each in report.problems]
    assert set(report.damaged_names) == broken, (said, broken)
    driver.store.check(repair=True)
    report = driver.store.check(True)
    assert report.clean, [problem.what for problem in report.problems]
    lost = broken - set(driver.store.names())
    again = {name: model.things.pop(name).data for name in lost}
    for info in driver.store.list("quarantine/"):
        # One that was put again and is lost again is kept beside what was kept of it before, or,
        # if it is the same, in its place.
        of = info.name.split("/", 2)[2].removesuffix(".json")
        if info.name not in model.things or of in again:
            data = driver.store.gets(info.name)
            before = model.things.get(info.name)
            same = before is not None and before.data == data  # but for its mode, perhaps
            if not same:
                assert info.name.endswith(".json") or len(data) == len(again.get(of, data))
            elif of not in again:
                continue
            model.things[info.name] = Thing(data, info.mode, (0, 1 << 63))
    for name, data in again.items():
        began = time.time_ns()
        driver.store.puts(name, data)
        assert driver.other.gets(name) == data
        model.things[name] = Thing(data, 0o644, now_after(began))
    return ""


def _is_read(store: castore.Store, name: str) -> bool:
    try:
        store.gets(name)
    except (ChunkCorrupt, FormatError, PackMissing):
        return False
    return True


def backup(driver: Driver) -> str:
    driver.say("backup")
    path = driver.scratch / f"backup-{driver.step}"
    report = driver.store.backup(path)
    assert report.names == len(driver.model.things)
    driver.backups.append((path, driver.model.copy()))
    if len(driver.backups) > BACKUPS_MAX:
        driver.backups.pop(driver.choose.randrange(BACKUPS_MAX))[0].unlink()
    return ""


def restore(driver: Driver) -> str:
    """A backup, perhaps an older one. Over an index that is whole, the names are those of then, and
    nothing is collected until that is accepted; where the index is lost, those since come from the
    journal. Of what was collected since it is said that it is lost."""
    if not driver.backups:
        return backup(driver)
    path, model = driver.choose.choice(driver.backups)
    by_force = driver.choose.random() < 0.5
    driver.say(f"restore {path.name} {'by force' if by_force else 'as the index is lost'}")
    driver.close_all()
    if by_force:
        driver.model.things = dict(model.things)
    else:
        shutil.rmtree(Path(driver.place.url) / "index")
    report = castore.restore(path, driver.place.url, force=by_force)
    driver.open_all()
    assert set(report.lost) <= driver.model.things.keys()
    for name in report.lost:
        try:
            driver.store.gets(name)
        except PackMissing:
            driver.store.delete(name)
            del driver.model.things[name]
        else:
            raise AssertionError(f"{name!r} is said to be lost, and can be read")
    if by_force and driver.store.check().problems:
        with contextlib.suppress(UnclaimedData):
            driver.store.gc()
            raise AssertionError("a collection takes what a backup does not know of")
        driver.store.gc(accept_unclaimed=True)
    return ""


def rebuild(driver: Driver) -> str:
    driver.say("index rebuild")
    if driver.place.kind == "local":
        driver.close_all()
        root = Path(driver.place.url)
        if driver.choose.random() < 0.5 and any(root.glob("journal/*")):
            shutil.rmtree(root / "index")
        report = castore.rebuild_index(driver.place.url)
        driver.open_all()
    else:
        report = driver.store.rebuild_index()
    assert not report.lost, report.lost
    assert report.names == len(driver.model.things)
    return ""


def wait(driver: Driver) -> str:
    seconds = driver.choose.choice([60.0, 3600.0, DAY, 8 * DAY])
    driver.say(f"{seconds:.0f} s pass")
    if driver.writing is not None:  # a put may take a day at most
        driver.writing[0].abort()
        driver.writing = None
    driver.pass_time(seconds)
    return ""


STEPS: dict[Any, tuple[int, str]] = {
    gc: (6, "local s3 moto"),
    quiet_gc: (3, "local s3"),
    reopen: (2, "local s3 moto"),
    repair: (1, "local s3 moto"),
    damage: (1, "local s3"),
    backup: (1, "local"),
    restore: (1, "local"),
    rebuild: (1, "local s3 moto"),
    wait: (3, "s3"),
}
