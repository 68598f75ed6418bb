"""doctor: whether a store's place is a good one, and what follows where it is not."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from castore.cli import exits
from castore.cli.output import human_size, print_json, print_line, print_table
from castore.cli.stores import local_store_folder, places_refused, store_path
from castore.errors import (
    AccessDenied,
    BucketNotFound,
    CastoreError,
    FormatError,
    StoreNotFound,
    UnsupportedFormat,
)
from castore.local.journal.files import FOLDER, journal_bytes
from castore.local.journal.state import judge
from castore.system import isolated
from castore.system.lmdb_env import open_index, repeated
from castore.urls import redacted

if TYPE_CHECKING:
    from castore.s3.client.bucket import Bucket
    from castore.s3.client.probe import ServerFeatures
    from castore.s3.client.settings import S3Settings
    from castore.store import Store

FREE_BYTES_MIN = 1 << 30
CLOCK_S_MAX = 300  # past that a collector refuses to run, and servers refuse requests
MOUNTS = "/proc/self/mountinfo"
NETWORK = {"9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs"}
NETWORK |= {"nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb2", "smb3", "smbfs", "vboxsf"}
NETWORK |= {"fuse.s3fs", "fuse.sshfs", "fuse.glusterfs", "fuse.rclone", "fuse.gcsfuse", "virtiofs"}
IN_MEMORY = {"tmpfs", "ramfs"}

Verdict = Literal["ok", "warning", "problem"]


class Check(NamedTuple):
    """One thing that was looked at. `means` is what follows for the user, if anything does."""

    what: str
    verdict: Verdict
    found: str
    means: str = ""


def doctor(arguments: Namespace) -> int:
    place = arguments.place or store_path(arguments)
    folder = local_store_folder(place)
    checks = _check_remote(place) if folder is None else _check_local(folder)
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
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


# -------------------------------------------------------------------- s3://


def _check_remote(url: str) -> Iterator[Check]:
    from castore.s3.client.bucket import Bucket
    from castore.s3.client.probe import probe
    from castore.s3.client.settings import parse_settings
    from castore.s3.client.versions import is_versioned

    with places_refused():
        settings = parse_settings(url)
    with Bucket(settings) as bucket:
        yield _remote_store(bucket, url)
        try:
            features = probe(bucket)
        except AccessDenied as error:
            yield Check(
                "writing",
                "warning",
                f"{error.action} is denied",
                "with these credentials the store can be read at most; what the server honours "
                "can't be found out",
            )
        else:
            yield Check("writing", "ok", "allowed: scratch keys were written and removed")
            yield from of_features(features)
        yield _clock(bucket)
    if is_versioned(settings):
        yield Check(
            "versions",
            "warning",
            "the bucket keeps what is overwritten and deleted",
            "space does not come back by itself: give the bucket a lifecycle rule that expires "
            "noncurrent versions and expired delete markers",
        )
    yield from _check_cache(settings)


def of_features(features: ServerFeatures) -> Iterator[Check]:
    """What follows from what a server honours."""
    from castore.s3.client.probe import IGNORED

    def honoured(what: str, feature: str, means: str) -> Check:
        if getattr(features, feature):
            return Check(what, "ok", "honoured")
        return Check(what, "warning", features.instead.get(feature, IGNORED), means)

    alone = "a gc has to be told that nobody else is writing"
    yield honoured(
        "If-None-Match on PUT",
        "if_none_match",
        "of two puts with if_absent at once both may succeed, and the later one stays; make the "
        f"store before many use it; {alone}",
    )
    yield honoured(
        "If-Match on PUT",
        "if_match_put",
        "collectors can't tell whether they are alone, nor a repair whether a name was put "
        f"meanwhile: {alone}, and nobody may write while a check repairs",
    )
    yield honoured(
        "If-Match on DELETE",
        "if_match_delete",
        "a rename or a delete may take away what another put under the name just then: don't "
        "rename or delete names that others are writing",
    )
    if not features.ranges:
        yield Check(
            "ranges",
            "problem",
            "not answered as asked",
            "a store can't be read here: use a server that answers ranged GETs",
        )
    elif features.ranges_past_end:
        yield Check("ranges", "ok", "honoured")
    else:
        yield Check(
            "ranges",
            "warning",
            "refused where they end behind the last byte",
            "a name that was not read before takes three requests, where one would do",
        )
    listing = "listing after writing"
    if features.list_consistent:
        yield Check(listing, "ok", "consistent")
    else:
        yield Check(
            listing,
            "problem",
            "not consistent",
            "names may be missed or seen after they are gone, and a gc would lose data: never run "
            "one here",
        )
    yield _safe_verbs(features)


def _safe_verbs(features: ServerFeatures) -> Check:
    """What may be done here, beside others who do the same."""
    if not features.ranges:
        return Check("verbs", "problem", "none is safe", "use another server")
    safe = ["put", "get", "ls", "cp"]
    alone: list[str] = []
    (safe if features.if_none_match else alone).append("put --if-absent")
    (safe if features.if_match_delete else alone).extend(("mv", "rm"))
    may_collect = features.if_none_match and features.if_match_put
    (safe if may_collect else alone).extend(("gc", "check --repair"))
    if not features.list_consistent:
        for verbs in (safe, alone):
            verbs[:] = [verb for verb in verbs if verb not in ("gc", "check --repair")]
    found = f"safe beside others: {', '.join(safe)}"
    if alone:
        found += f"; only while nobody else writes: {', '.join(alone)}"
    if not features.list_consistent:
        return Check("verbs", "problem", f"{found}; never: gc, check --repair")
    if alone:
        means = "run these when nobody else writes" + (
            ", gc with --alone" if not may_collect else ""
        )
        return Check("verbs", "warning", found, means)
    return Check("verbs", "ok", found)


def _remote_store(bucket: Bucket, url: str) -> Check:
    import castore
    from castore.s3.keys import PROBE

    try:
        with castore.open(url, create=False, read_only=True):
            return Check("store", "ok", f"there, and read by version {castore.__version__}")
    except StoreNotFound as error:
        if isinstance(error, BucketNotFound):
            raise
    except (UnsupportedFormat, FormatError) as error:
        return Check("store", "problem", str(error))
    other = next((entry.key for entry in bucket.list() if not entry.key.startswith(PROBE)), None)
    if other is None:
        return Check("store", "ok", "none yet: the first put makes it")
    return Check(
        "store",
        "problem",
        f"none, and there is something else ({other})",
        "a store is only made under an empty prefix: choose another",
    )


def _clock(bucket: Bucket) -> Check:
    skew = bucket.clock_skew()
    if abs(skew) <= CLOCK_S_MAX:
        return Check("clock", "ok", f"{abs(skew):.0f} s from the server's")
    return Check(
        "clock",
        "problem",
        f"{abs(skew):.0f} s {'behind' if skew > 0 else 'ahead of'} the server's",
        "a gc refuses to run, and the server may refuse requests: set this machine's clock",
    )


def _check_cache(settings: S3Settings) -> Iterator[Check]:
    from castore.s3.cache.folder import cache_root

    where = cache_root()
    if where is None:
        yield Check("cache", "warning", "none", "each read asks S3: set HOME or CASTORE_CACHE_DIR")
        return
    root = os.path.realpath(where)
    yield _file_system(root, "cache on")
    yield _free_space(root, "cache's free space")


# -------------------------------------------------------------------- folders


def _check_local(path: str) -> Iterator[Check]:
    root = os.path.realpath(path)
    found = _open(root)
    if isinstance(found, Check):
        yield found
    else:
        with found as store:
            stats = store.stats()
            yield Check("folder", "ok", f"a store of {_count(stats.objects, 'object')}")
            size = human_size(stats.index_bytes)
            yield Check("index", "ok", f"all its pages are whole, {size}")
            yield _journal(root)
            yield _permissions(root)
    yield _file_system(root, "file system")
    yield _free_space(root, "free space")
    yield _extension()


def _open(root: str) -> Store | Check:
    import castore

    if not os.path.lexists(root):
        above = _existing(root)
        if os.path.isdir(above) and os.access(above, os.W_OK | os.X_OK):
            return Check("folder", "ok", "not there yet: the first put makes the store")
        return Check(
            "folder",
            "problem",
            f"not there, and {above} can't be written to",
            "no store can be made here: choose another folder",
        )
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
        if not os.path.isdir(root):
            return Check("folder", "problem", "it is not a folder")
        if os.listdir(root):
            return Check(
                "folder",
                "problem",
                "not a store, and not empty",
                "a store is only made in an empty folder: choose another",
            )
        if not os.access(root, os.W_OK | os.X_OK):
            return Check(
                "folder",
                "problem",
                "empty, and can't be written to",
                f"no store can be made here: chown or chmod {root}, or choose another folder",
            )
        return Check("folder", "ok", "empty: the first put makes the store")
    except (CastoreError, OSError) as error:
        return Check("folder", "problem", exits.describe(error)[1])


def _journal(root: str) -> Check:
    """Of a store that is open here. What a check of the rows is for is left to that."""
    index = open_index(os.path.join(root, "index"), create=False, lock_free=True)
    try:
        state = repeated(lambda: judge(root, index))
    except FormatError as error:
        return Check("journal", "problem", str(error), "castore check --repair puts it right")
    finally:
        index.close()
    size = human_size(journal_bytes(os.path.join(root, FOLDER)))
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
        f"whoever may write to a store is trusted with all of it: chmod 700 {root}",
    )


def _extension() -> Check:
    try:
        from castore import _native  # noqa: F401
    except ImportError:
        return Check(
            "C extension",
            "warning",
            "not built",
            "puts are many times slower, and files are copied where they could be mapped: install "
            "a wheel, or a C compiler and reinstall",
        )
    return Check("C extension", "ok", "built")


# -------------------------------------------------------------------- both


def _file_system(path: str, what: str) -> Check:
    kind, mounted = file_system_of(path)
    if kind in NETWORK:
        return Check(
            what,
            "warning",
            f"{kind}, a network file system, at {mounted}",
            "LMDB's locks and maps don't work across machines: one machine at a time, or the index "
            "is lost; for many machines use a store on S3"
            if what == "file system"
            else "LMDB's locks and maps don't work across machines: set CASTORE_CACHE_DIR to a "
            "local disk",
        )
    if kind in IN_MEMORY and what == "file system":
        return Check(
            what,
            "warning",
            f"{kind} at {mounted}",
            "it is in memory, and gone with a restart of the machine",
        )
    return Check(what, "ok", f"{kind} at {mounted}" if kind else "of an unknown kind")


def file_system_of(path: str, mounts: str = MOUNTS) -> tuple[str, str]:
    """(type, where it is mounted) of the file system that a path is or would be on; ("", "") on a
    system that doesn't say."""
    kind, mounted = "", ""
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                left, _, right = line.partition(" - ")
                point = _unescaped(left.split(" ")[4])
                inside = path == point or path.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(mounted):  # of several at a place the last counts
                    kind, mounted = right.split(" ")[0], point
    except (OSError, IndexError):
        return "", ""
    return kind, mounted


def _unescaped(point: str) -> str:
    for escape, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        point = point.replace(escape, character)
    return point


def _free_space(path: str, what: str) -> Check:
    status = os.statvfs(_existing(path))
    free = status.f_bavail * status.f_frsize
    if free >= FREE_BYTES_MIN:
        return Check(what, "ok", human_size(free))
    return Check(what, "warning", human_size(free), "puts and the index need room: free some")


def _existing(path: str) -> str:
    """The path, or the nearest folder above it that is there."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path
