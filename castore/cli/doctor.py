"""doctor: whether a store's place is a good one, and what follows where it is not."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from castore.cli import exits
from castore.cli.doctor_places import (
    Check,
    check_file_system,
    check_free_space,
    existing,
    made_own,
)
from castore.cli.output import human_size, print_json, print_line, print_table
from castore.cli.stores import local_store_folder, store_path
from castore.errors import CastoreError, FormatError, StoreNotFound
from castore.local.folder import CONFIG
from castore.local.journal.files import FOLDER, journal_bytes
from castore.local.journal.state import judge
from castore.system import isolated
from castore.system.lmdb_env import open_index
from castore.system.lmdb_snapshot import repeated
from castore.urls import redacted
from castore.wording import counted

if TYPE_CHECKING:
    from castore.store import Store


def doctor(arguments: Namespace) -> int:
    place = arguments.place or store_path(arguments)
    folder = local_store_folder(place)
    if folder is None:
        from castore.cli.doctor_s3 import check_remote  # loads botocore

    checks = check_remote(place) if folder is None else _check_local(folder)
    found: list[Check] = []
    for check in checks:
        found.append(check)
        if arguments.json:
            print_json(check._asdict())
    problems = sum(check.verdict == "problem" for check in found)
    warnings = sum(check.verdict == "warning" for check in found)
    if not arguments.json:
        _print(found)
        print_line("")
        print_line(
            f"{redacted(place)}: {_count(problems, 'problem')}, {_count(warnings, 'warning')}"
        )
    return exits.FAILURE if problems else exits.OK


def _print(checks: list[Check]) -> None:
    print_table([(check.verdict.upper(), check.what, check.found) for check in checks])
    for check in checks:
        if check.means:
            print_line("")
            print_line(f"{check.what}: {check.means}")


def _count(number: int, what: str) -> str:
    return counted(number, what) if number else f"no {what}s"


def _check_local(path: str) -> Iterator[Check]:
    root = os.path.realpath(path)
    found = _open(root)
    if isinstance(found, Check):
        yield found
    else:
        with found as store:
            yield from _look_into(store, root)
    yield check_file_system(root, "file system")
    yield check_free_space(root, "free space")
    yield _extension()


def _look_into(store: Store, root: str) -> Iterator[Check]:
    try:
        stats = store.stats()
    except (CastoreError, OSError) as error:
        yield _unreadable("folder", error)
        return
    yield Check("folder", "ok", f"a store of {_count(stats.objects, 'object')}")
    size = human_size(stats.index_bytes)
    yield Check("index", "ok", f"all its pages are whole, {size}")
    if stats.chunks and not stats.packs:
        found_none = f"none is there, and {_count(stats.chunks, 'chunk')} should be in some"
        means = "bring packs/ back (is it mounted?): nothing but small objects can be read"
        yield Check("packs", "problem", found_none, means)
    yield _journal(root)
    yield _permissions(root)


def _unreadable(what: str, error: CastoreError | OSError) -> Check:
    return Check(what, "problem", exits.describe(error)[1])


def _open(root: str) -> Store | Check:
    import castore
    from castore.local.store import store_around

    around = store_around(root)
    if around is not None and not os.path.exists(os.path.join(root, CONFIG)):
        return _unfit(
            f"it lies inside the store {around}",
            "no store can be made inside another: choose another folder",
        )
    if not os.path.lexists(root):
        return _not_there(root)
    try:
        index_path = os.path.join(root, "index")
        if os.path.exists(os.path.join(index_path, "data.mdb")):
            # Before this process opens it, which a damaged page might end.
            for _ in isolated.run(
                "castore.local.index_walk:look_at_pages", index_path, path=index_path
            ):
                """It reports nothing."""
        return castore.open(root, create=False, read_only=True)
    except StoreNotFound:
        return _without_store(root)
    except (CastoreError, OSError) as error:
        return _unreadable("folder", error)


def _not_there(root: str) -> Check:
    above = existing(root)
    if os.path.isdir(above) and os.access(above, os.W_OK | os.X_OK):
        return Check("folder", "ok", "not there yet: the first put makes the store")
    return _unfit(
        f"not there, and {above} can't be written to",
        "no store can be made here: choose another folder",
    )


def _without_store(root: str) -> Check:
    from castore.local.store import strangers_in

    if strangers_in(root):
        return _unfit(
            "not a store, and not empty", "a store is only made in an empty folder: choose another"
        )
    if not os.access(root, os.W_OK | os.X_OK):
        return _unfit(
            "empty, and can't be written to",
            "no store can be made here: choose another folder, or "
            + made_own(root, f"chown or chmod {root}"),
        )
    return Check("folder", "ok", "empty: the first put makes the store")


def _unfit(found: str, means: str) -> Check:
    return Check("folder", "problem", found, means)


def _journal(root: str) -> Check:
    """Of a store that is open here. What a check of the rows is for is left to that."""
    index = open_index(os.path.join(root, "index"), create=False, lock_free=True)
    try:
        state = repeated(lambda: judge(root, index))
        size = human_size(journal_bytes(os.path.join(root, FOLDER)))
    except FormatError as error:
        return Check("journal", "problem", str(error), "castore check --repair puts it right")
    except (CastoreError, OSError) as error:
        return _unreadable("journal", error)
    finally:
        index.close()
    found = f"generation {state.reading.generation}, {size}"
    if state.refusal:
        return Check("journal", "warning", f"{found}; a gc would refuse", state.refusal)
    if state.gaps and not state.reading.is_there:
        means = "a lost index could not be made anew with its names: castore gc makes a journal"
        return Check("journal", "warning", "none", means)
    if state.gaps:
        means = "a lost index might come back without some names: castore gc writes it anew"
        return Check("journal", "warning", f"{found}; {state.gaps[0]}", means)
    if not state.reading.is_there:
        return Check("journal", "ok", "none yet: the first put begins it")
    return Check("journal", "ok", f"has every name, {found}")


def _permissions(root: str) -> Check:
    mode = os.stat(root).st_mode & 0o777
    if mode & 0o077 == 0:
        return Check("permissions", "ok", f"{mode:04o}: its owner's alone")
    if mode & 0o022 == 0:
        return Check("permissions", "ok", f"{mode:04o}: others may read it, or some of it")
    return Check(
        "permissions",
        "warning",
        f"{mode:04o}: open to other users",
        "whoever may write to a store is trusted with all of it: "
        + made_own(root, f"chmod 700 {root}"),
    )


def _extension() -> Check:
    try:
        from castore import _native  # noqa: F401
    except ImportError:
        return Check(
            "C extension",
            "warning",
            "not built",
            "puts are many times slower and store no deltas, and files are copied where they could "
            "be mapped: install a wheel, or a C compiler and reinstall",
        )
    return Check("C extension", "ok", "built")
