"""The steps of `driver.py` that take whole folders in and out."""

from __future__ import annotations

import stat
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from driver_doors import PIPELINE
from driver_model import ANY_MODE, Thing, now_after
from driver_steps import expecting

import conducto

if TYPE_CHECKING:
    from driver import Driver


def folder(driver: Driver) -> str:
    """Export what is below a prefix, change some of the files, and import it again."""
    choose, model = driver.choose, driver.model
    prefix, target = choose.choice(["n", "data", "Ä"]), choose.choice(["n", "data", "imported"])
    by_command = choose.random() < 0.4
    driver.say(f"export {prefix} and import it as {target}{' by command' if by_command else ''}")
    if not model.names(f"{prefix}/"):
        return ""
    with tempfile.TemporaryDirectory(dir=driver.scratch) as made:
        place = Path(made)
        if by_command:
            driver.command("get", "-R", f"{prefix}/", str(place))
        else:
            report = driver.store.export_folder(prefix, place)
            assert not report.left_out, report.left_out
        _same_files(driver, prefix, place, times=not by_command)
        began = time.time_ns()
        _change_files(driver, place)
        if by_command:
            driver.command("put", "-R", str(place), target)
        else:
            assert not driver.other.import_folder(place, target).left_out
        for path in sorted(path for path in place.rglob("*") if path.is_file()):
            status = path.stat()
            when = status.st_mtime_ns - 1000, status.st_mtime_ns + 1000
            if by_command:
                when = now_after(began)
            thing = Thing(path.read_bytes(), stat.S_IMODE(status.st_mode), when)
            model.things[f"{target}/{path.relative_to(place)}"] = thing
    return ""


def _same_files(driver: Driver, prefix: str, place: Path, *, times: bool) -> None:
    names = driver.model.names(f"{prefix}/")
    found = {f"{prefix}/{p.relative_to(place)}" for p in place.rglob("*") if p.is_file()}
    assert found == set(names)
    for name in names:
        path, thing = place / name.removeprefix(f"{prefix}/"), driver.model.things[name]
        assert path.read_bytes() == thing.data
        status = path.stat()
        assert thing.mode in (ANY_MODE, stat.S_IMODE(status.st_mode))
        if times:
            assert thing.mtime[0] - 1000 <= status.st_mtime_ns <= thing.mtime[1] + 1000, name


def _change_files(driver: Driver, place: Path) -> None:
    choose = driver.choose
    for path in sorted(place.rglob("*")):
        if path.is_file() and choose.random() < 0.4:
            data = path.read_bytes() + choose.randbytes(choose.randrange(1, 2000))
            path.unlink()
            path.write_bytes(data)
    (place / "added").write_bytes(choose.randbytes(choose.randrange(9000)))


def cache(driver: Driver) -> str:
    """conducto's copy of a folder, saved and restored; or cleared."""
    choose, model = driver.choose, driver.model
    name, checksum = choose.choice(["deps", "venv"]), choose.choice(["1", "2"])
    key = f"{PIPELINE}conducto-cache/{name}/{checksum}.tar.gz"
    data = conducto.data.pipeline
    how = choose.choice(["save", "save", "clear", "archive"])
    driver.say(f"{how} the cache {name} {checksum}")
    assert data.cache_exists(name, checksum) == (key in model.things)
    if how == "clear":
        with expecting(None if key in model.things else FileNotFoundError):
            data.clear_cache(name, checksum)
        model.things.pop(key, None)
        return ""
    if how == "archive":
        doomed = model.names("pipelines/p1/")
        if choose.random() < 0.3:
            assert conducto.data.archive("p1") == len(doomed)
            for each in doomed:
                del model.things[each]
        return ""
    with tempfile.TemporaryDirectory(dir=driver.scratch) as made:
        source, target = Path(made) / "source", Path(made) / "target"
        files = {}
        for each in choose.sample(["a", "b/c", "b/d", "e/f/g"], choose.randrange(1, 5)):
            path = source / each
            path.parent.mkdir(parents=True, exist_ok=True)
            files[each] = choose.randbytes(choose.randrange(20_000))
            path.write_bytes(files[each])
        began = time.time_ns()
        data.save_cache(name, checksum, source)
        target.mkdir()
        data.restore_cache(name, checksum, target)
        inside = target / source.name
        restored = {str(p.relative_to(inside)): p for p in inside.rglob("*") if p.is_file()}
        assert {each: path.read_bytes() for each, path in restored.items()} == files
    model.things[key] = Thing(driver.store.gets(key), ANY_MODE, now_after(began))
    return ""


STEPS: dict[Any, tuple[int, str]] = {
    folder: (2, "local s3 moto"),
    cache: (3, "local s3 moto"),
}
