"""The contract of every verb, on S3: what a test of each is run on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gc_stores import URL, World
from s3_stores import make_store
from servers import Server

import castore
from castore.s3 import session as session_s3
from castore.testing import SharedStoreContract, StoreContract

# Where preconditions are not honoured nothing is collected unless nobody else writes.
COLLECTING = {
    "test_a_collection_takes_what_no_name_leads_to",
    "test_an_object_is_put_while_a_collection_runs",
    "test_collected_chunks_are_stored_again",
    "test_many_put_and_delete_while_one_collects",
}
# To rclone, names are paths of files: "a" and "a/b" can't both be, nor can "a//b".
NOT_ON_RCLONE = COLLECTING | {
    "test_delete_prefix",
    "test_names_are_sorted_by_their_bytes",
    "test_names_are_told_apart",
    "test_objects_and_folders_are_told_apart",
    "test_what_is_right_in_a_folder",
}
# The verbs, on moto, which honours preconditions; the others, and rclone, take minutes.
BY_DEFAULT = {
    "test_a_whole_store_is_checked_repaired_and_rebuilt",
    "test_a_put_that_fails_in_a_transaction_can_be_left_out",
    "test_a_read_only_store_reads_and_does_not_write",
    "test_a_source_that_fails_publishes_nothing",
    "test_a_transaction_tells_the_names_that_there_will_be",
    "test_a_transaction_that_fails_changes_nothing",
    "test_a_writer_publishes_when_it_is_closed",
    "test_a_writer_that_fails_publishes_nothing",
    "test_an_etag_says_which_bytes_of_a_name_are_read",
    "test_an_open_object_is_a_buffered_reader",
    "test_an_open_object_is_one_version",
    "test_closing",
    "test_copy",
    "test_delete",
    "test_delete_prefix",
    "test_get",
    "test_if_absent",
    "test_if_absent_is_decided_by_the_commit",
    "test_mode_bits_are_kept",
    "test_names_are_sorted_by_their_bytes",
    "test_names_are_told_apart",
    "test_objects_and_folders_are_told_apart",
    "test_operations_of_a_transaction_apply_in_order",
    "test_rename",
    "test_size_and_info_and_exists",
    "test_two_writers_of_one_name",
    "test_what_is_right_in_a_folder",
}


def on_s3(name: str, test: Callable[..., None]) -> Callable[..., None]:
    """The test, with the servers that it is run on."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        test(*args, **kwargs)

    servers = ["moto"] if name in NOT_ON_RCLONE else ["moto", "rclone"]
    by_default = {"moto"} if name in BY_DEFAULT else set()
    each = [
        pytest.param(server, marks=() if server in by_default else pytest.mark.long)
        for server in servers
    ]
    return pytest.mark.parametrize("s3_server", each, indirect=True)(run)


class TestOnS3(SharedStoreContract):
    @pytest.fixture
    def store(
        self,
        s3_server: Server,
        quick: None,
        cache_dir: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        request: pytest.FixtureRequest,
    ) -> Iterator[castore.Store]:
        if not s3_server.preconditions and request.node.originalname in COLLECTING:
            pytest.skip("needs a server that honours all preconditions")
        monkeypatch.setattr(session_s3, "INLINE_BYTES_MAX", self.inline_bytes_max)
        monkeypatch.setattr(session_s3, "INLINE_ALONE_BYTES_MAX", self.inline_bytes_max)
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint_url)  # for `store.path`
        make_store(s3_server)
        with castore.open(s3_server.url(), threads=2) as store:
            yield store


for _name in dir(SharedStoreContract):
    if _name.startswith("test_"):
        setattr(TestOnS3, _name, on_s3(_name, getattr(SharedStoreContract, _name)))


@pytest.mark.long
class TestOnMemoryServer(StoreContract):
    """All of them, as nothing goes over the network."""

    @pytest.fixture
    def store(self, world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[castore.Store]:
        monkeypatch.setattr(session_s3, "INLINE_BYTES_MAX", self.inline_bytes_max)
        monkeypatch.setattr(session_s3, "INLINE_ALONE_BYTES_MAX", self.inline_bytes_max)
        monkeypatch.setenv("CASTORE_CACHE_DIR", str(world.cache_of("one")))
        with castore.open(URL, create=False, threads=2) as store:
            yield store
