"""How well what is put is compressed by default: on S3 better than in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from gc_stores import World

import castore

TEXT = b"".join(b"%d: some text, and a number\n" % (i * i) for i in range(20_000))

Stored = Callable[..., int]  # the bytes that a put takes, with these options of the store


@pytest.fixture
def in_folder(tmp_path: Path) -> Stored:
    def stored(**options: int) -> int:
        folder = tmp_path / f"{len([*tmp_path.iterdir()])}"
        with castore.open(folder, chunk_bytes_avg=2816, **options) as store:
            return store.puts("x", TEXT).stored_bytes

    return stored


@pytest.fixture
def on_s3(make_world: Callable[[], World]) -> Stored:
    return lambda **options: make_world().open(**options).puts("x", TEXT).stored_bytes


def test_on_s3(on_s3: Stored) -> None:
    assert on_s3() == on_s3(compression_level=3) != on_s3(compression_level=1)


def test_in_a_folder(in_folder: Stored) -> None:
    assert in_folder() == in_folder(compression_level=1) != in_folder(compression_level=3)
