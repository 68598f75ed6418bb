"""castore as pyarrow's own kind of file system, for datasets of many files on S3.

pyarrow takes a `CastoreFileSystem` as it is. But then it asks whether each file is there before it
opens it, and whether each folder is one before it lists it: a round trip each, one after the other.
Here what is not there says so when it is opened or listed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from castore.errors import needs_installed

with needs_installed("pyarrow", "pyarrow"):
    from pyarrow import PythonFile
    from pyarrow.fs import FSSpecHandler, PyFileSystem

if TYPE_CHECKING:
    from castore.fs import CastoreFileSystem


def filesystem(fs: CastoreFileSystem) -> PyFileSystem:
    """The file system for pyarrow that reads and writes as `fs` does, in fewer requests.

    >>> import pyarrow.dataset
    >>> import castore.fs.arrow
    >>> fs = castore.fs.CastoreFileSystem("store")
    >>> fs.pipe({"days/1.csv": b"x,y\\n1,2\\n", "days/2.csv": b"x,y\\n3,4\\n"})
    >>> through = castore.fs.arrow.filesystem(fs)
    >>> pyarrow.dataset.dataset("days", filesystem=through, format="csv").to_table().to_pydict()
    {'x': [1, 3], 'y': [2, 4]}
    >>> fs.store.close()
    """
    return PyFileSystem(ArrowHandler(fs))


class ArrowHandler(FSSpecHandler):  # type: ignore[misc]  # pyarrow is untyped
    """What pyarrow calls: fsspec's verbs, of which these ask nothing beforehand."""

    def normalize_path(self, path: str) -> str:
        """The name, as listings have it: pyarrow looks for it at the beginning of theirs."""
        name: str = self.fs._strip_protocol(path)
        return name

    def get_file_info_selector(self, selector: Any) -> list[Any]:
        depth = None if selector.recursive else 1
        found = self.fs.find(selector.base_dir, maxdepth=depth, withdirs=True, detail=True)
        folder = selector.base_dir.strip("/")
        below = [
            self._create_file_info(path, info) for path, info in found.items() if path != folder
        ]
        # If there is nothing below it, this says what it is.
        return below or super().get_file_info_selector(selector)

    def open_input_file(self, path: str) -> Any:
        return PythonFile(self.fs.open(path, "rb"), mode="r")

    def open_input_stream(self, path: str) -> Any:
        return self.open_input_file(path)
