"""Each error: the builtin that it is too, its text, and what is left of it after a pickle."""

from __future__ import annotations

import errno
import inspect
import os
import pickle
import subprocess
import sys

import pytest

import castore.errors
import conducto.errors
from castore.errors import (
    CastoreError,
    NameNotFound,
    PermissionDenied,
    StoreFull,
    StoreIOError,
    StoreNotFound,
    needs_installed,
)
from castore.system.fileio import typed_errors
from conducto.secrets import SecretKey

ERRORS = [
    kind
    for module in (castore.errors, conducto.errors)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, CastoreError) and kind is not CastoreError
]
FACTS: dict[str, object] = {"code": 28, "time_ns": 10**20, "chunk_id": b"\1" * 16}
FACTS |= {"pack_id": b"\2" * 16, "offset": 7, "skew_s": 3.5, "version": 1, "seen": 2, "status": 503}
FACTS |= {"keys": [SecretKey("A_KEY", "user")]}


def made(kind: type[CastoreError]) -> CastoreError:
    if inspect.isfunction(kind.__init__):
        names = list(inspect.signature(kind).parameters)
        return kind(*(FACTS.get(name, f"some {name}") for name in names))
    return kind(11, "a text") if issubclass(kind, OSError) else kind("a text")


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_a_pickled_error_is_the_same_error(kind: type[CastoreError]) -> None:
    error = made(kind)
    error.tried = 3  # what somebody else noted on it
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), vars(again)) == (str(error), vars(error))
    for fact in ("errno", "filename"):
        assert getattr(again, fact, None) == getattr(error, fact, None)
    assert again.args == error.args
    assert "[Errno" not in str(error)


def system_error(code: int, *named: str) -> OSError:
    return OSError(code, os.strerror(code), *named)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (system_error(errno.ENOSPC), StoreFull, "no space left for /s/pack: free some and repeat"),
        (system_error(errno.EDQUOT), StoreFull, "no space left for /s/pack: free some and repeat"),
        (system_error(errno.EDQUOT, "/s/x"), StoreFull, "no space left for /s/x: free some"),
        (system_error(errno.ENOENT), StoreNotFound, "/s/pack: its folder was removed while it was"),
        (system_error(errno.EACCES), PermissionDenied, "no permission for /s/pack: use the store"),
        (system_error(errno.EROFS, "/s/x"), StoreIOError, f"/s/x: {os.strerror(errno.EROFS)}"),
        (NameNotFound("x"), NameNotFound, "no object is named 'x'"),
    ],
)
def test_what_the_system_says_of_a_file_of_a_store_is_said_as_castores(
    error: Exception, kind: type[CastoreError], said: str
) -> None:
    with pytest.raises(kind) as caught, typed_errors("/s/pack"):
        raise error
    assert str(caught.value).startswith(said)
    if isinstance(error, OSError) and kind is not StoreFull:
        assert isinstance(caught.value, OSError)
        assert caught.value.errno == error.errno


@pytest.mark.parametrize(
    ("module", "package", "remedy"),
    [
        ("castore.fs", "fsspec", "castore[fsspec]"),
        ("castore.fs.arrow", "pyarrow", "pyarrow"),
        ("castore.fs.upath", "upath", "universal_pathlib"),
        ("castore.mount.library", "mfusepy", "castore[mount]"),
        ("conducto.fs", "fsspec", "castore[fsspec]"),
        ("conducto.upath", "fsspec", "castore[fsspec]"),
    ],
)
def test_what_is_not_installed_is_named_with_its_remedy(
    module: str, package: str, remedy: str
) -> None:
    script = f"""
import os, sys
os.environ["FUSE_LIBRARY_PATH"] = "any"  # there may be no libfuse here, which is told first
sys.modules[{package!r}] = None
try:
    import {module}
except ModuleNotFoundError as error:
    print(error.name, error)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert said.stdout == f"{package} {package} is not installed: pip install '{remedy}'\n"


def test_another_module_that_is_missing_is_told_as_it_is() -> None:
    with (
        pytest.raises(ModuleNotFoundError, match="No module named 'there_is_no_such'"),
        needs_installed("fsspec", "castore[fsspec]"),
    ):
        import there_is_no_such  # noqa: F401
