"""What doctor says of a store on S3: its server, the clock, this machine's cache."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from castore.cli.doctor_places import Check, check_file_system, check_free_space
from castore.cli.stores import places_refused
from castore.errors import (
    AccessDenied,
    BucketNotFound,
    FormatError,
    StoreNotFound,
    UnsupportedFormat,
)

if TYPE_CHECKING:
    from castore.s3.client.bucket import Bucket
    from castore.s3.client.probe import ServerFeatures
    from castore.s3.client.settings import S3Settings

CLOCK_S_MAX = 300  # past that a collector refuses to run, and servers refuse requests


def check_remote(url: str) -> Iterator[Check]:
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
    from castore.s3.client.probe import DONE_ANYWAY, IGNORED, UNQUOTED

    def honoured(what: str, feature: str, means: str) -> Check:
        if getattr(features, feature):
            return Check(what, "ok", "honoured")
        return Check(what, "warning", features.instead.get(feature, IGNORED), means)

    alone = "a gc has to be told that nobody else is writing"
    taken = "; an append or a change of attributes may take away what another put just then"
    replacing = {
        UNQUOTED: "",  # it is given ETags without quotes
        IGNORED: taken,
        DONE_ANYWAY: taken,
    }.get(features.instead.get("if_match_put", IGNORED), "; appends and changes of attributes fail")
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
        f"meanwhile: {alone}, and nobody may write while a check repairs{replacing}",
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
    yield Check("cache", "ok", root)
    yield check_file_system(root, "cache on")
    yield check_free_space(root, "cache's free space")
