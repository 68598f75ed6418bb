"""What this machine knows of a store on S3, and what the hints tell others, learned anew."""

from __future__ import annotations

from castore.model import Progress, Stages
from castore.s3.check.check import open_check
from castore.s3.damaged import damaged_packs
from castore.s3.packs import absent_packs
from castore.s3.parts import Parts
from castore.stream.reports import RebuildReport


def rebuild_index(parts: Parts, *, progress: Progress | None) -> RebuildReport:
    """Forget what this machine knows, learn it anew from packs and names, and put the hints for
    other machines anew."""
    stages = Stages(progress)
    told = parts.hints.told()
    with open_check(parts, stages) as check:
        check.read_packs(fraction=0)
        stages.end()
        damaged = damaged_packs(parts.bucket)
        there = check.readings
        packs = {i: list(r.frames) for i, r in there.items() if i not in damaged}
    report = RebuildReport(packs=len(packs), chunks=sum(map(len, packs.values())))
    parts.cache.clear()
    parts.catalog.forget_all()
    parts.cache.add_chunks(packs.items())
    parts.hints.replace(told, packs.items())
    known = set(there)
    for version in parts.catalog.versions(b""):
        report.names += 1
        unlisted = set(version.head.packs) - known
        if unlisted:  # put since the packs were listed, or gone
            gone = absent_packs(parts.bucket, parts.requests, unlisted)
            known |= unlisted - gone
            if gone:
                report.lost.append(version.name.decode())
    return report
