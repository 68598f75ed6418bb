"""Archiving pipelines: what one has goes, or what all have that nothing was written of for long."""

from __future__ import annotations

import time
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING

from conducto import context
from conducto.errors import InvalidContext, RunError

if TYPE_CHECKING:
    import castore


def archive(pipeline_id: str, *, local: bool | None = None, profile: str | None = None) -> int:
    """Delete every name of a pipeline; how many there were.

    A run of it can't be resumed from the first one on. In local mode the others go in one step; in
    the cloud they go one after another, and to repeat it is to go on. Their space comes back when
    the store next collects garbage. Raises RunError while somebody runs the pipeline, or archives
    it: what its runner went on to record would be left.

    >>> co.data.pipeline.bound(pipeline_id="7").puts("result", b"42")
    >>> co.data.archive("7")
    1
    """
    from conducto.run.records import Records  # takes longer to load than all of this module

    prefix = f"pipelines/{context.pipeline_id(pipeline_id)}/"
    store = context.find_store(local=local, profile=profile)
    if store is None:
        return 0
    with Records(store, pipeline_id).retired() as deleted:
        deleted += store.delete_prefix(prefix)
    store.remove_old_versions(prefix, below=True)
    return deleted


def archive_quiet(
    older_than_s: float,
    *,
    dry_run: bool = False,
    local: bool | None = None,
    profile: str | None = None,
) -> dict[str, int]:
    """Archive every pipeline that wrote nothing for `older_than_s` seconds; its ids and their
    names.

    The answer is how many names each had, by its id. With `dry_run` nothing is deleted. Reading a
    name does not count as use. What was written is as old as its object's time says: that of a file
    which `cp -p` or tar put into a mount is the file's own.

    Each is looked at again right before it is archived; what is written after that look goes with
    it. One that somebody runs is left; so is one that does not tell, with a warning. What belongs
    to the user is not looked at at all. ValueError for a negative time.
    """
    if not older_than_s >= 0:
        raise ValueError(f"older_than_s is not negative, and not {older_than_s!r}")
    from conducto.run.records import Records

    store = context.find_store(local=local, profile=profile)
    if store is None:
        return {}
    before = time.time() - older_than_s
    quiet = {}
    for pipeline_id, (names, newest) in _activity(store, "pipelines/").items():
        if newest >= before:
            continue
        try:
            if Records(store, pipeline_id).is_running:
                continue
        except (InvalidContext, RunError) as error:  # it is none, or a later version's
            warnings.warn(f"not archived: {error}", stacklevel=2)
            continue
        if dry_run:
            quiet[pipeline_id] = names
            continue
        again = _activity(store, f"pipelines/{pipeline_id}/").get(pipeline_id)
        if again is not None and again[1] < before:
            with suppress(RunError):  # somebody resumed it just now
                quiet[pipeline_id] = archive(pipeline_id, local=local, profile=profile)
    return quiet


def _activity(store: castore.Store, prefix: str) -> dict[str, tuple[int, float]]:
    """(names, when the last of them was written) of each pipeline, by its id."""
    found: dict[str, tuple[int, float]] = {}
    for info in store.list(prefix):
        pipeline_id = info.name.split("/")[1]
        names, newest = found.get(pipeline_id, (0, 0.0))
        found[pipeline_id] = names + 1, max(newest, info.mtime)
    return found
