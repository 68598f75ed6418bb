"""Where this process's data lives: the mode, the pipeline, the profile, and the store they give.

`store_url` is the one place that turns them into a store; everything above asks it. The
environment is read at each call, as pipelines change it between steps.
"""

from __future__ import annotations

import atexit
import os
import threading
from functools import lru_cache
from typing import TYPE_CHECKING

from conducto.errors import ContextError, InvalidContext

if TYPE_CHECKING:
    import castore

PROFILE_DEFAULT = "default"


def is_local(local: bool | None = None) -> bool:
    """The caller's choice; without one, local unless CONDUCTO_EXECUTION_ENV names a cloud or
    k8s environment (`worker_cloud`, `manager_k8s`, ...)."""
    if local is not None:
        return local
    where = os.environ.get("CONDUCTO_EXECUTION_ENV", "")
    return where.rpartition("_")[2] not in ("cloud", "k8s")


def pipeline_id(given: str | None = None) -> str:
    """The caller's pipeline, or that of CONDUCTO_PIPELINE_ID; ContextError when there is none."""
    value = given if given is not None else os.environ.get("CONDUCTO_PIPELINE_ID")
    if value is None:
        raise ContextError(
            "Pipeline-scoped data requires a pipeline: set CONDUCTO_PIPELINE_ID, or give its id "
            "with --id. Try conducto.data.pipeline from a node of the pipeline."
        )
    return _path_part(value, "pipeline id")


def store_url(*, local: bool | None = None, profile: str | None = None) -> str:
    """The store for this mode and profile."""
    if not is_local(local):
        raise ContextError(
            "this is a cloud environment, whose data is in S3, and the S3 store isn't available "
            "in this version: use local mode (--local, or local=True)"
        )
    base = os.environ.get("CONDUCTO_BASE_DIR") or os.path.join("~", ".conducto")
    home = os.environ.get("HOME") if base.startswith("~") else None
    profile = profile or os.environ.get("CONDUCTO_PROFILE") or None
    config = os.environ.get("CONDUCTO_CONFIG") if profile is None else None
    return _local_store(base, home, profile, config)


def open_store(*, local: bool | None = None, profile: str | None = None) -> castore.Store:
    """The store for this mode and profile, opened once per process and closed at its end."""
    url = store_url(local=local, profile=profile)
    store = _stores.get(url)
    if store is not None:
        return store
    with _stores_lock:
        store = _stores.get(url)
        if store is None:
            import castore

            os.makedirs(os.path.dirname(url), mode=0o700, exist_ok=True)
            store = castore.open(url)
            _stores[url] = store
        return store


def close_stores() -> None:
    """Close every store that this process opened through conducto; the next use reopens."""
    with _stores_lock:
        while _stores:
            _stores.popitem()[1].close()


_stores: dict[str, castore.Store] = {}
_stores_lock = threading.Lock()


def _forget_lock() -> None:
    # Another thread may have held it across the fork, and does not exist in the child.
    global _stores_lock
    _stores_lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_lock)
atexit.register(close_stores)


@lru_cache(maxsize=64)
def _local_store(base: str, home: str | None, profile: str | None, config: str | None) -> str:
    folder = os.path.abspath(os.path.expanduser(base))  # reads HOME: that is why it is a key
    if profile is None:
        profile = _configured_profile(config or os.path.join(folder, "config"))
    elif profile == "__none__":  # how the environment says "not the configured one"
        profile = PROFILE_DEFAULT
    return os.path.join(folder, _path_part(profile, "profile"), "store")


def _configured_profile(path: str) -> str:
    """`default` of section `general` in the user's configuration file."""
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        return PROFILE_DEFAULT
    import configparser

    parser = configparser.ConfigParser(interpolation=None)
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except (configparser.Error, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InvalidContext(f"the configuration file {path!r} can't be read: {reason}") from error
    return parser.get("general", "default", fallback="") or PROFILE_DEFAULT


def _path_part(value: str, what: str) -> str:
    """It becomes one component of names and paths, so it must be one."""
    if not isinstance(value, str) or not value:
        raise InvalidContext(f"a {what} must be text that is not empty, not {value!r}")
    if "/" in value or "\0" in value or value in (".", ".."):
        raise InvalidContext(f"{value!r} can't be a {what}: it is used as one part of a path")
    return value
