"""Stores that are opened in other processes: pickled, or after a fork."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading

import pytest

import castore
from castore.testing.contents import fork_is_fine, forked, mixed, noise
from castore.testing.kind import Kind


class OtherProcesses(Kind):
    @pytest.mark.parametrize("read_only", [False, True])
    def test_pickling(self, store: castore.Store, read_only: bool) -> None:
        store.puts("name", noise(10_000))
        opened = self.reopen(store, read_only=read_only, cache_bytes=0, threads=1)
        with opened, pickle.loads(pickle.dumps(opened)) as copy:
            assert copy.read_only is read_only
            assert copy.path == store.path
            assert copy.gets("name") == noise(10_000)
            assert copy._workers.threads == opened._workers.threads == 1
        program = (
            "import pickle, sys; store = pickle.load(sys.stdin.buffer); "
            "sys.stdout.buffer.write(store.gets('name'))"
        )
        elsewhere = subprocess.run(
            [sys.executable, "-c", program],
            input=pickle.dumps(opened),
            capture_output=True,
            check=True,
        )
        assert elsewhere.stdout == noise(10_000)

    @fork_is_fine
    @pytest.mark.timeout(120)
    def test_a_forked_child_has_threads(self, store: castore.Store) -> None:
        """All of them find the index closed, and one opens it again."""
        store.puts("parent", noise(9000))

        def child() -> list[str]:
            barrier, raised = threading.Barrier(8), []

            def work(i: int) -> None:
                barrier.wait()
                try:
                    if i % 2:
                        store.puts(f"{i}", noise(5000, i))
                    else:
                        assert store.gets("parent") == noise(9000)
                except BaseException as error:
                    raised.append(repr(error))

            threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return raised

        for _ in range(25):
            assert forked(child) == []

    @fork_is_fine
    def test_forks_while_threads_are_at_work(self, store: castore.Store) -> None:
        """Whatever a thread holds at the moment of the fork, the child is not stuck with it."""
        data = mixed(300_000)
        store.puts("name", data)
        stop, raised = threading.Event(), []

        def work(i: int) -> None:
            j = 0
            while not stop.is_set():
                try:
                    j += 1
                    store.puts(f"{i}", noise(20_000, j))
                    assert store.gets("name") == data
                    with self.reopen(store) as other:
                        other.stats()
                except BaseException as error:
                    raised.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        try:
            for i in range(20):

                def child(i: int = i) -> bytes:
                    with self.reopen(store) as other:
                        other.puts(f"child {i}", noise(5000))
                    return store.gets("name")

                assert forked(child) == data
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not raised
        assert len(list(store.names("child"))) == 20

    @fork_is_fine
    def test_a_reader_of_the_parent_is_not_freed_by_its_child(self, store: castore.Store) -> None:
        """The child closes the environment that it inherited; the parent's stays whole."""
        store.puts("name", noise(50_000))
        for _ in range(3):
            assert forked(store.close) is None
            assert store.gets("name") == noise(50_000)
            store.puts("name", noise(50_000))
