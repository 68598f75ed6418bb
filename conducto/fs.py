"""`conducto://pipeline/NAME` and `conducto://user/NAME` for fsspec.

    pandas.read_parquet("conducto://pipeline/tables/day.parquet")
    fs = fsspec.filesystem("conducto")
    fs.ls("user")

Paths are those of `co.data.pipeline` and `co.data.user`, behind the scope's name; all else is as
`castore.fs` has it. Which store and which pipeline, or that there is none, is decided when the file
system is made, from its options or the environment. One that is pickled, or made again from its
JSON, keeps all of that, whatever the environment says there.
"""

from __future__ import annotations

import os
from typing import Any, Literal

from castore.fs import CastoreFileSystem
from conducto import context, data
from conducto.errors import ContextError
from conducto.scopes import PIPELINE, ScopedStore, Scopes


class _InContext(type(CastoreFileSystem)):  # type: ignore[misc]  # fsspec is untyped
    """Says which store and pipeline are meant before fsspec looks among the instances it keeps."""

    def __call__(
        cls,
        store: str | None = None,
        *,
        pipeline_id: str | Literal[False] | None = None,
        local: bool | None = None,
        profile: str | None = None,
        **storage_options: Any,
    ) -> Any:
        if pipeline_id is None and "CONDUCTO_PIPELINE_ID" not in os.environ:
            pipeline_id = False
        if pipeline_id is not False:
            pipeline_id = context.pipeline_id(pipeline_id)
        store = store or context.store_url(local=local, profile=profile)
        return super().__call__(store, pipeline_id=pipeline_id, **storage_options)


class ConductoFileSystem(CastoreFileSystem, metaclass=_InContext):
    """The user's data, and a pipeline's, as an fsspec file system.

    `pipeline_id`, `local` and `profile` are as in `co.data.pipeline.bound`; False is no pipeline,
    whatever the environment says. The other options are those of `castore.fs.CastoreFileSystem`.
    Without a pipeline `pipeline/...` raises ContextError.

    >>> fs = conducto.fs.ConductoFileSystem(pipeline_id="7")
    >>> fs.pipe_file("pipeline/result", b"42")
    >>> co.data.pipeline.bound(pipeline_id="7").gets("result")
    b'42'
    >>> fs.store.close()
    """

    protocol = "conducto"

    def __init__(
        self, store: str, *, pipeline_id: str | Literal[False] = False, **storage_options: Any
    ) -> None:
        super().__init__(store, **storage_options)
        self.pipeline_id = pipeline_id or None
        self._scopes = Scopes(self.pipeline_id)

    @property
    def fsid(self) -> str:
        return f"conducto_{self.store_path}_{self.pipeline_id or ''}"

    def unstrip_protocol(self, name: str) -> str:
        return f"conducto://{self._strip_protocol(name)}"

    def url(self, path: str, **kwargs: Any) -> str:
        """Where the app shows the object, as `co.data.pipeline.url` has it, with path_only=False.

        Raises ContextError without CONDUCTO_AUTO_URL, or without a pipeline; InvalidName.
        """
        name = self._strip_protocol(path)
        self._scopes.key(name)
        scope, _, inner = name.partition("/")
        if self.pipeline_id is None:
            raise ContextError("the app shows data by its pipeline: give pipeline_id")
        shown = data.pipeline if scope == PIPELINE else data.user
        return shown.bound(pipeline_id=self.pipeline_id).url(inner, path_only=False)

    def _open_store(self, *, create: bool) -> Any:
        if create and "://" not in self.store_path:
            os.makedirs(os.path.dirname(self.store_path), mode=0o700, exist_ok=True)
        return ScopedStore(super()._open_store(create=create), self._scopes)
