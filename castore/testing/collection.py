"""Collecting garbage, checking, repairing, and making anew what is derived."""

from __future__ import annotations

import random
import threading

import castore
from castore.testing.contents import mixed, noise
from castore.testing.kind import Kind


def collect(store: castore.Store, *, repack_below: float = 1.0) -> None:
    """Until nothing is left to take: a kind that has a grace condemns first, and then removes."""
    for _ in range(4):
        store.gc(grace_s=0, repack_below=repack_below)


class Collection(Kind):
    def test_a_collection_takes_what_no_name_leads_to(self, store: castore.Store) -> None:
        kept = {f"kept/{i}": mixed(60_000, i) for i in range(4)}
        for name, data in kept.items():
            store.puts(name, data)
            store.puts(f"gone/{name}", noise(60_000, hash(name) & 0xFFFF))
        store.delete_prefix("gone")
        before = store.stats()
        report = store.gc(dry_run=True, grace_s=0)
        assert (report.objects, report.dry_run) == (4, True)
        assert store.stats() == before
        collect(store)
        after = store.stats()
        assert after.objects == 4
        assert after.pack_bytes < before.pack_bytes
        assert {name: store.gets(name) for name in store.names()} == kept
        with self.reopen(store, cache_bytes=0) as other:
            assert {name: other.gets(name) for name in other.names()} == kept
            assert other.check(read_data=True).problems == []
        store.delete_prefix("", unbounded=True)
        collect(store)
        stats = store.stats()
        assert (stats.objects, stats.chunks, stats.packs, stats.stored_bytes) == (0, 0, 0, 0)

    def test_collected_chunks_are_stored_again(self, store: castore.Store) -> None:
        data = mixed(100_000)
        store.puts("name", data)
        store.delete("name")
        collect(store)
        store.puts("again", data)
        assert store.gets("again") == data
        assert store.check(read_data=True).problems == []

    def test_an_object_is_put_while_a_collection_runs(self, store: castore.Store) -> None:
        """What a put relies on when it begins is there when it commits."""
        data = mixed(200_000)
        store.puts("old", data)
        with store.transaction() as transaction:
            transaction.puts("new", data[:150_000] + noise(20_000))
            store.delete("old")
            store.gc(grace_s=0, repack_below=1.0)
        assert store.gets("new") == data[:150_000] + noise(20_000)
        assert store.check(read_data=True).problems == []

    def test_many_put_and_delete_while_one_collects(self, store: castore.Store) -> None:
        """Their data overlaps, so that each relies on chunks that another has just let go of."""
        pieces = [noise(15_000, i) for i in range(6)]
        failed: list[BaseException] = []

        def work(seed: int) -> None:
            choose = random.Random(seed)
            try:
                for i in range(12):
                    data = b"".join(choose.choices(pieces, k=3))
                    store.puts(f"{seed}/{i % 3}", data)
                    assert store.gets(f"{seed}/{i % 3}") == data
                    if choose.random() < 0.4:
                        store.delete(f"{seed}/{i % 3}")
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            store.gc(repack_below=1.0)
        for thread in threads:
            thread.join()
        assert failed == []
        assert store.check(read_data=True).problems == []

    def test_a_whole_store_is_checked_repaired_and_rebuilt(self, store: castore.Store) -> None:
        contents = {"inline": b"inline", "chunks": mixed(100_000), "empty": b""}
        for name, data in contents.items():
            store.puts(name, data)
        report = store.check(read_data=True)
        assert (report.problems, report.exit_code, report.names) == ([], 0, 3)
        assert report.read_frames > 0
        repaired = store.check(repair=True)
        assert (repaired.problems, repaired.repaired) == ([], [])
        assert store.check(read_data=0.5).clean
        assert {name: store.gets(name) for name in store.names()} == contents
