"""Stores driven at random by all verbs, and judged after every step: see `driver.py`."""

from __future__ import annotations

from collections.abc import Callable

import forced_batches
import pytest
from driver import drive, shrink
from servers import Server

MakeServer = Callable[[], tuple[str, str]]


@pytest.fixture
def make_server(moto_server: Server, quick: None) -> MakeServer:
    return lambda: (moto_server.endpoint_url, moto_server.bucket)


@pytest.mark.parametrize("steps", [60, pytest.param(240, marks=pytest.mark.long)])
def test_a_local_store_by_all_verbs(steps: int) -> None:
    assert drive(1, range(steps), "local") == steps


@pytest.mark.parametrize("steps", [60, pytest.param(240, marks=pytest.mark.long)])
def test_a_store_on_s3_by_all_verbs(steps: int) -> None:
    assert drive(1, range(steps), "s3") == steps


@pytest.mark.parametrize("steps", [50, pytest.param(300, marks=pytest.mark.long)])
def test_a_store_on_s3_with_batches_by_all_verbs(steps: int) -> None:
    with forced_batches.forced():
        assert drive(1, range(steps), "s3") == steps


def test_a_store_on_a_server_by_all_verbs(make_server: MakeServer) -> None:
    assert drive(1, range(8), "moto", make_server=make_server) == 8


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 140))
def test_a_local_store_by_all_verbs_for_long(seed: int) -> None:
    assert drive(seed, range(500), "local") == 500


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 110))
def test_a_store_on_s3_by_all_verbs_for_long(seed: int) -> None:
    assert drive(seed, range(500), "s3") == 500


def test_what_fails_is_shrunk_to_what_it_takes() -> None:
    tried = []

    def fails(steps: list[int]) -> bool:
        tried.append(steps)
        return {3, 17, 40} <= set(steps)

    assert shrink(fails, list(range(41))) == [3, 17, 40]
    assert len(tried) < 60
