"""Stores on S3 in which a batch takes all small objects that are put in one commit, be it one.

`pytest --batches` runs all tests so that make stores on servers with preconditions by way of
`s3_stores`, `gc_stores` or the driver; not in programs that they start.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from unittest import mock

from castore.format.config import StoreConfig
from castore.s3.namespace import writing

with_batches = functools.partial(StoreConfig, batches=True)


@contextlib.contextmanager
def forced() -> Iterator[None]:
    import driver_places
    import gc_stores
    import s3_stores

    with contextlib.ExitStack() as patches:
        for module in (s3_stores, gc_stores, driver_places):
            patches.enter_context(mock.patch.object(module, "StoreConfig", with_batches))
        patches.enter_context(mock.patch.object(writing, "BATCH_NAMES_MIN", 1))
        yield
