"""Store side by side with a dict, through whatever sequence of verbs hypothesis comes up with.

    class MineAndDict(CollectedStoreAndDict):
        def create(self, guard, **options): ...
        def open_again(self, **options): ...

    def test_a_store_is_a_dict():
        run_machine(MineAndDict, 60, 25)

It needs hypothesis: the extra `test`.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

import castore
from castore.errors import NameExists, NameNotFound, StoreClosed, UnpublishedResourceWarning
from castore.objectfile import ObjectWriterFile
from castore.testing.changes import (
    Blocks,
    Change,
    Failure,
    Model,
    byte_ranges,
    changes,
    contents,
    names,
    offsets,
    prefixes,
)


class StoreAndDict(RuleBasedStateMachine):
    """Two Stores on one place: what one writes, the other sees at once. A subclass says how they
    are made."""

    INLINE_BYTES_MAX: ClassVar[int] = 4096

    files = Bundle("files")
    writers = Bundle("writers")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="castore-stateful-")
        self.model: Model = {}
        self.written: list[ObjectWriterFile] = []

    def create(self, guard: str | None, **options: Any) -> castore.Store:
        """Make a store with this `collision_guard` and `chunk_bytes_avg=2816`, and open it with
        these options of `castore.open`."""
        raise NotImplementedError("a kind of store supplies `create`")

    def open_again(self, **options: Any) -> castore.Store:
        """Another Store on it."""
        raise NotImplementedError("a kind of store supplies `open_again`")

    @initialize(guard=st.sampled_from([None, None, "sha256"]), cache=st.sampled_from([0, 1 << 20]))
    def make(self, guard: str | None, cache: int) -> None:
        self.options: dict[str, Any] = {"threads": 2, "cache_bytes": cache}
        self.store = self.create(guard, **self.options)
        self.other = self.open_again(cache_bytes=0, threads=1)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            assert self.everything(self.other) == self.model
            for file in self.written:
                file.abort()
            self.other.close()
            self.store.close()
            with self.open_again(read_only=True) as again:
                assert self.everything(again) == self.model
        shutil.rmtree(self.folder)

    @staticmethod
    def everything(store: castore.Store) -> Model:
        return {name: store.gets(name) for name in store.names()}

    @contextlib.contextmanager
    def as_model(self, apply: Callable[[Model], None], model: Model) -> Iterator[None]:
        """The block must raise what `apply` raises on a copy of the model, which else is kept."""
        after = dict(model)
        expected: type[Exception] | None = None
        try:
            apply(after)
        except (NameNotFound, NameExists) as error:
            expected = type(error)
        if expected is not None:
            with pytest.raises(expected):
                yield
        else:
            yield
            model.clear()
            model.update(after)

    # ------------------------------------------------------------ changes

    @rule(change=changes, look=st.booleans())
    def change(self, change: Change, look: bool) -> None:
        """`look`: read all that there is, so that it is remembered when it changes next."""
        on_store, on_model, _ = change
        before = len(self.model)
        with self.as_model(on_model, self.model):
            result = on_store(self.store, self.folder)
            if isinstance(result, castore.ObjectInfo):
                assert result == self.other.info(result.name)
            elif isinstance(result, int):
                after = dict(self.model)
                on_model(after)
                assert result == before - len(after)
        if look:
            assert self.everything(self.store) == self.model

    @rule(
        batch=st.lists(changes, min_size=1, max_size=5), fails=st.sampled_from([False, False, True])
    )
    def transaction(self, batch: list[Change], fails: bool) -> None:
        """The changes one after the other, or none of them."""

        def all_of_them(model: Model) -> None:
            for change in batch:
                change.on_model(model)

        before = dict(self.model)
        try:
            with self.as_model(all_of_them, self.model), self.store.transaction() as transaction:
                for change in batch:
                    change.on_store(transaction, self.folder)
                assert set(self.other.names()) == set(before)
                if fails:
                    raise Failure
        except Failure:
            self.model = before
        except NameExists:
            # Refused early: the name is published, though the transaction would have deleted it.
            assert any(change.absent in before for change in batch)
            self.model = before

    @rule(name=names, data=contents, how=st.sampled_from(["raise", "abort", "drop", "source"]))
    def put_that_fails(self, name: str, data: bytes, how: str) -> None:
        if how == "source":

            class Failing(Blocks):
                def read(self, size: int, /) -> bytes:
                    block = super().read(size)
                    if not block:
                        raise Failure
                    return block

            with pytest.raises(Failure):
                self.store.put(name, Failing(data, 5000))
        elif how == "raise":
            with contextlib.suppress(Failure), self.store.open(name, "wb") as file:
                file.write(data)
                raise Failure
        else:
            file = self.store.open(name, "wb")
            file.write(data)
            if how == "abort":
                file.abort()
                return
            with pytest.warns(UnpublishedResourceWarning):
                del file

    # ------------------------------------------------------------ file objects

    @rule(target=files, name=names)
    def open_for_reading(self, name: str) -> Any:
        if name not in self.model:
            with pytest.raises(NameNotFound):
                self.store.open(name)
            return multiple()
        file = self.store.open(name)
        assert file.info == self.other.info(name)
        return file, self.model[name]

    @rule(opened=files, at=offsets, size=st.integers(-1, 50_000))
    def read_what_was_opened(self, opened: Any, at: int, size: int) -> None:
        """Whatever happened to the name since."""
        file, data = opened
        expected = io.BytesIO(data)
        assert file.seek(at) == expected.seek(at)
        assert file.read(size) == expected.read(size)
        assert file.tell() == expected.tell()

    @rule(opened=consumes(files))
    def read_to_the_end_and_close(self, opened: Any) -> None:
        file, data = opened
        with file:
            file.seek(0)
            assert file.read() == data

    @rule(target=writers, name=names, mode=st.sampled_from(["wb", "wb", "xb"]))
    def open_for_writing(self, name: str, mode: str) -> Any:
        if mode == "xb" and name in self.model:
            with pytest.raises(NameExists):
                self.store.open(name, mode)
            return multiple()
        file = self.store.open(name, mode)
        assert isinstance(file, ObjectWriterFile)
        self.written.append(file)
        return file, self.store, name, mode, bytearray()

    @contextlib.contextmanager
    def closed_with(self, store: castore.Store) -> Iterator[None]:
        """What belongs to a Store that was closed may say so."""
        try:
            yield
        except StoreClosed:
            assert store is not self.store

    @rule(opened=writers, data=contents)
    def write(self, opened: Any, data: bytes) -> None:
        file, store, _, _, written = opened
        if not file.closed:
            with self.closed_with(store):
                assert file.write(data) == len(data)
                written += data

    @rule(opened=consumes(writers), how=st.sampled_from(["close", "close", "abort"]))
    def end_writing(self, opened: Any, how: str) -> None:
        file, store, name, mode, written = opened
        if how == "abort":
            file.abort()
        elif mode == "xb" and name in self.model and not file.closed:
            with self.closed_with(store), pytest.raises(NameExists):
                file.close()
        elif not file.closed:
            with self.closed_with(store):
                file.close()
                assert file.info == self.store.info(name)
                self.model[name] = bytes(written)
        assert file.closed

    # ------------------------------------------------------------ reads

    @precondition(lambda self: self.model)
    @rule(data=st.data(), several=st.lists(byte_ranges, max_size=5))
    def ranges(self, data: st.DataObject, several: list[tuple[int, int]]) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        whole = self.model[name]
        expected = [whole[begin:end] for begin, end in several]
        assert [self.store.gets(name, byte_range) for byte_range in several] == expected
        assert self.other.gets_many(name, several) == expected
        assert self.store.gets(name) == whole
        plan = self.store.explain_range(name)
        info = self.store.info(name)
        assert (info.size, info.chunks) == (len(whole), plan.chunks)
        if plan.bases:  # which are not the object's own
            assert info.stored_bytes < plan.frame_bytes
        elif plan.chunks:
            assert info.stored_bytes == plan.frame_bytes

    @rule(name=names, to=st.sampled_from(["path", "stream"]))
    def get(self, name: str, to: str) -> None:
        path = os.path.join(self.folder, "target")
        target: Any = path if to == "path" else io.BytesIO()
        if name not in self.model:
            with pytest.raises(NameNotFound):
                self.store.get(name, target)
            return
        assert self.store.get(name, target).size == len(self.model[name])
        if to == "path":
            with open(path, "rb") as file:
                got = file.read()
        else:
            got = target.getvalue()
        assert got == self.model[name]

    @rule(prefix=prefixes)
    def listing(self, prefix: str) -> None:
        expected = sorted((n for n in self.model if n.startswith(prefix)), key=str.encode)
        assert list(self.store.names(prefix)) == expected
        assert [(info.name, info.size) for info in self.other.list(prefix)] == [
            (name, len(self.model[name])) for name in expected
        ]

    @rule(name=names)
    def facts(self, name: str) -> None:
        assert self.store.exists(name) == self.other.exists(name) == (name in self.model)
        if name in self.model:
            assert self.store.size(name) == len(self.model[name])
        else:
            for verb in (self.store.size, self.store.info, self.store.gets, self.store.delete):
                with pytest.raises(NameNotFound):
                    verb(name)

    # ------------------------------------------------------------ the store

    @rule(both=st.booleans())
    def reopen(self, both: bool) -> None:
        """Open files and writers of the old Store go on, or end in an error: never in a
        half-published object."""
        if both:
            self.other.close()
            self.store.close()
            self.other = self.open_again(cache_bytes=0, threads=1)
        else:
            self.store.close()
        self.store = self.open_again(**self.options)

    @invariant()
    def totals_add_up(self) -> None:
        if not hasattr(self, "store"):
            return
        stats = self.store.stats()
        assert stats.objects == len(self.model)
        assert stats.logical_bytes == sum(map(len, self.model.values()))
        assert stats.pack_bytes >= stats.stored_bytes - self.INLINE_BYTES_MAX * len(self.model)


class CollectedStoreAndDict(StoreAndDict):
    """One whose garbage goes at any time."""

    @rule(repack_below=st.sampled_from([0, 0.5, 0.9, 1]), dry_run=st.booleans())
    def collect(self, repack_below: float, dry_run: bool) -> None:
        """Files are open and puts begun; none of them notices."""
        before = self.store.stats()
        report = self.store.gc(repack_below=repack_below, dry_run=dry_run)
        assert report.objects == len(self.model)
        assert (report.damaged, report.missing) == ((), ())
        after = self.store.stats()
        if dry_run:
            assert (after.chunks, after.stored_bytes) == (before.chunks, before.stored_bytes)
        else:
            assert after.chunks == report.chunks <= before.chunks
        assert self.everything(self.other) == self.model

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.gc()
            assert self.everything(self.other) == self.model
            assert self.other.check(read_data=True).problems == []
        super().teardown()


def run_machine(machine: type[StoreAndDict], examples: int, steps: int) -> None:
    """So many sequences of so many verbs."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
