"""Clusters of dask.distributed whose workers are processes of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest


def begun(
    environments: Sequence[Mapping[str, str]],
    scratch: Path,
    *,
    allowed_failures: int,
    resources: Mapping[str, float] | None = None,
) -> Any:
    """A cluster with a worker of two threads for each environment, which is begun anew where it
    dies. A context manager."""
    distributed = pytest.importorskip("distributed")
    workers = {
        number: {
            "cls": distributed.Nanny,
            "options": {
                "nthreads": 2,
                "env": dict(env),
                "resources": resources,
                "local_directory": str(scratch / f"scratch-{number}"),
            },
        }
        for number, env in enumerate(environments)
    }
    scheduler = {
        "cls": distributed.Scheduler,
        "options": {
            "dashboard_address": "127.0.0.1:0",
            "port": 0,
            "allowed_failures": allowed_failures,
        },
    }
    how = {"workers": workers, "scheduler": scheduler, "silence_logs": 50}
    # Dask asserts that its loop begins within 10 s; a busy machine takes longer.
    for _ in range(2):
        with suppress(AssertionError):
            return distributed.SpecCluster(**how)
    return distributed.SpecCluster(**how)
