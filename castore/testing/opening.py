"""Reading only, closing, and the whole store."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

import pytest

import castore
from castore.errors import ReadOnlyStore, StoreClosed
from castore.testing.contents import mixed, noise
from castore.testing.kind import Kind


class Opening(Kind):
    def test_a_read_only_store_reads_and_does_not_write(
        self, store: castore.Store, tmp_path: Path
    ) -> None:
        data = mixed(50_000)
        store.puts("name", data)
        with self.reopen(store, read_only=True) as reading:
            assert reading.read_only
            assert reading.gets("name", (10, 20)) == data[10:20]
            assert reading.open("name").read() == data
            assert list(reading.names()) == ["name"]
            assert reading.stats().objects == 1
            assert reading.get("name", tmp_path / "target").size == 50_000
            for write in (
                lambda: reading.puts("new", b""),
                lambda: reading.put("new", tmp_path / "target"),
                lambda: reading.put("new", io.BytesIO()),
                lambda: reading.copy("name", "new"),
                lambda: reading.rename("name", "new"),
                lambda: reading.delete("name"),
                lambda: reading.delete_prefix("", unbounded=True),
                lambda: reading.open("new", "wb"),
                lambda: reading.puts_many({"new": b""}),
                lambda: reading.open("new", "xb"),
                lambda: reading.transaction(),
            ):
                with pytest.raises(ReadOnlyStore, match="is open for reading only") as caught:
                    write()
                assert isinstance(caught.value, PermissionError)
        assert list(store.names()) == ["name"]

    def test_closing(self, store: castore.Store, tmp_path: Path) -> None:
        store.puts("name", noise(10_000))
        other = self.reopen(store)
        names = store.names()
        store.close()
        store.close()
        for use in (
            lambda: store.gets("name"),
            lambda: store.gets_many("name", []),
            lambda: store.get("name", io.BytesIO()),
            lambda: store.open("name"),
            lambda: store.open("name", "wb"),
            lambda: store.puts("name", b""),
            lambda: store.puts_many({"name": b""}),
            lambda: store.put("name", io.BytesIO()),
            lambda: store.info("name"),
            lambda: store.exists("name"),
            lambda: store.names(),
            lambda: store.list(),
            lambda: store.copy("name", "b"),
            lambda: store.delete("name"),
            lambda: store.delete_prefix("name", unbounded=True),
            lambda: store.transaction(),
            lambda: store.stats(),
            lambda: store.explain_range("name"),
            lambda: store.__enter__(),
        ):
            with pytest.raises(StoreClosed, match="is closed"):
                use()
        assert "closed" in repr(store)
        assert other.gets("name") == noise(10_000), "another Store on the path goes on"
        assert list(names) == ["name"]
        other.close()

    def test_a_writer_that_outlives_its_store(self, store: castore.Store) -> None:
        file = store.open("name", "wb")
        file.write(noise(5_000_000))
        store.close()
        with pytest.raises(StoreClosed):
            file.close()
        assert file.closed
        with self.reopen(store) as again:
            assert list(again.names()) == []

    def test_closing_while_a_put_is_under_way(self, store: castore.Store) -> None:
        begun, raised = threading.Event(), []

        class Slow:
            left = 200

            def read(self, size: int) -> bytes:
                begun.set()
                time.sleep(0.005)
                self.left -= 1
                return noise(1 << 20, self.left) if self.left else b""

        def put() -> None:
            try:
                store.put("name", Slow())
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=put)
        thread.start()
        begun.wait()
        time.sleep(0.1)
        store.close()
        thread.join()
        assert [type(error) for error in raised] == [StoreClosed]
