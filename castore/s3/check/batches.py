"""Batches of names, as a check looks at them: the root, each batch, and what nobody needs."""

from __future__ import annotations

from collections.abc import Iterator

from castore.errors import FormatError, UnsupportedFormat
from castore.format.s3_batches import RootEntry
from castore.s3.batches import BatchGone
from castore.s3.client.bucket import Bucket
from castore.s3.keys import BATCHES, BATCHES_ROOT_KEY, batch_of
from castore.s3.namespace.writing import Namespace
from castore.stream.reports import Severity
from castore.wording import counted


def faults_of_batches(names: Namespace) -> Iterator[tuple[Severity, str]]:
    """What is wrong with the root, and with batches that it tells of. From then on `names` goes on
    without them. Their manifests are looked at as names are."""
    batches = names.batches
    if batches is None:
        return
    try:
        entries = batches.fresh().root.entries
    except (FormatError, UnsupportedFormat) as error:
        batches.root_is_lost = True
        yield "corrupt", str(error)
        return
    for entry in entries:
        try:
            index = batches.index(entry)
            if len(index.rows) != entry.names or index.rows[-1].end != entry.size:
                raise FormatError("it is not the batch that batches/root tells of")
        except BatchGone as gone:
            if not batches.has(entry.batch_id):
                continue  # it was collected meanwhile
            batches.lost.add(entry.batch_id)
            yield "missing", f"{gone.strerror} ({names_of(entry)})"
        except (FormatError, UnsupportedFormat) as error:
            batches.lost.add(entry.batch_id)
            yield "corrupt", f"batches/{entry.batch_id.hex()}: {error} ({names_of(entry)})"


def names_of(entry: RootEntry) -> str:
    """How many it has, and that it deletes them if it does."""
    return counted(entry.names, "deleted name" if entry.deletes else "name")


def batches_of_nobody(names: Namespace, bucket: Bucket) -> tuple[list[int], list[str]]:
    """(the bytes of each batch that the root does not tell of, keys that are none). Where the
    root is lost, no batch is known to be nobody's."""
    if names.batches is None:
        return [], []
    listed = list(bucket.list(BATCHES))  # first: a batch is there before the root tells of it
    told = {entry.batch_id for entry in names.batches.fresh().root.entries} | names.batches.lost
    sizes, odd = [], []
    for entry in listed:
        batch_id = batch_of(entry.key)
        if batch_id is not None:
            if batch_id not in told and not names.batches.root_is_lost:
                sizes.append(entry.size)
        elif entry.key != BATCHES_ROOT_KEY:
            odd.append(entry.key)
    return sizes, odd
