"""Clusters of dask.distributed whose workers are processes of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
    return _cluster(workers=workers, scheduler=_scheduler(allowed_failures))


@contextmanager
def adapting(scratch: Path, *, workers_max: int) -> Iterator[str]:
    """The address of a cluster that begins with no worker, and makes itself some, of a thread each,
    while tasks wait."""
    distributed = pytest.importorskip("distributed")
    options = {"nthreads": 1, "local_directory": str(scratch / "scratch")}
    kind = {"cls": distributed.Nanny, "options": options}
    with _cluster(worker=kind, scheduler=_scheduler(3)) as cluster:
        cluster.adapt(maximum=workers_max, interval="200ms", target_duration="100ms", wait_count=50)
        yield cluster.scheduler_address


def _scheduler(allowed_failures: int) -> dict[str, Any]:
    return {
        "cls": pytest.importorskip("distributed").Scheduler,
        "options": {
            "dashboard_address": "127.0.0.1:0",
            "port": 0,
            "allowed_failures": allowed_failures,
        },
    }


def _cluster(**how: Any) -> Any:
    distributed = pytest.importorskip("distributed")
    # Dask asserts that its loop begins within 10 s; a busy machine takes longer.
    for _ in range(2):
        with suppress(AssertionError):
            return distributed.SpecCluster(**how, silence_logs=50)
    return distributed.SpecCluster(**how, silence_logs=50)
