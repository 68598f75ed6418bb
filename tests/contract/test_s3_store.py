"""The contract of every verb, on S3: the local store's tests, run on a store of the other kind."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import test_store
from s3_stores import make_store
from servers import Server

import castore
from castore.s3 import session as session_s3

# What looks into the folder of a local store, at its index, or at how it is kept durable. An
# interrupt may come in a destructor of the SDK's, where it is lost.
LOCAL = {
    "test_a_child_that_ends_does_not_unlock_its_parents_pack",
    "test_a_failed_fsync_poisons_the_pack",
    "test_a_forked_child_reads_and_writes",
    "test_a_full_disk_while_a_pack_is_written",
    "test_a_pack_is_durable_before_the_index_names_it",
    "test_a_pack_is_locked_until_what_it_holds_is_committed",
    "test_a_pack_that_nothing_refers_to_is_removed",
    "test_a_transaction_that_stages_rows_before_its_end",
    "test_an_interrupted_get_writes_to_no_other_file",
    "test_an_open_object_keeps_packs_that_are_removed",
    "test_chunks_of_a_lost_pack_are_stored_again",
    "test_get_replaces_a_file_only_when_all_of_it_is_there",
    "test_packs_are_full_at_their_maximum",
    "test_packs_are_sealed_when_the_store_is_closed",
    "test_put_refuses_folders_and_the_inside_of_open_stores",
    "test_reading_keeps_no_descriptors_of_packs",
    "test_short_writes_are_continued",
    "test_stats",
    "test_stats_while_packs_come_and_go",
    "test_what_is_made_is_for_its_owner_alone",
    "test_with_hardly_any_room_to_remember",
}
# To rclone, names are paths of files: "a" and "a/b" can't both be, nor can "a//b".
NOT_ON_RCLONE = {
    "test_delete_prefix",
    "test_names_are_sorted_by_their_bytes",
    "test_names_are_told_apart",
}
# The verbs, on moto, which honours preconditions; the others, and rclone, take minutes.
BY_DEFAULT = {
    "test_a_put_that_fails_in_a_transaction_can_be_left_out",
    "test_a_read_only_store_reads_and_does_not_write",
    "test_a_source_that_fails_publishes_nothing",
    "test_a_transaction_that_fails_changes_nothing",
    "test_a_writer_publishes_when_it_is_closed",
    "test_a_writer_that_fails_publishes_nothing",
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
    "test_operations_of_a_transaction_apply_in_order",
    "test_rename",
    "test_size_and_info_and_exists",
    "test_two_writers_of_one_name",
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


for _name, _test in vars(test_store).items():
    if not _name.startswith("test_") or _name in LOCAL:
        continue
    if "store" in inspect.signature(_test).parameters:  # the others make local stores
        globals()[_name] = on_s3(_name, _test)


@pytest.fixture
def store(
    s3_server: Server,
    quick: None,
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[castore.Store]:
    monkeypatch.setattr(session_s3, "INLINE_BYTES_MAX", 4096)  # the tests know this number
    (tmp_path / "store").mkdir()  # where the local one is
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint_url)  # and open by `store.path`
    make_store(s3_server)
    with castore.open(s3_server.url(), threads=2) as store:
        yield store
