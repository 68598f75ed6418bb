"""Where this process's data lives: the mode, the pipeline, the profile, and the store they give.

`store_url` is the one place that turns them into a store; everything above asks it. The
environment is read at each call, as pipelines change it between steps.
"""

from __future__ import annotations

import atexit
import os
import re
from functools import lru_cache
from typing import TYPE_CHECKING

from castore import expand_home
from castore.errors import BucketNotFound, CastoreError, StoreNotFound
from castore.system.locks import Lock
from conducto.errors import ContextError, InvalidContext

if TYPE_CHECKING:
    import castore

PROFILE_DEFAULT = "default"
ORGANIZATION_DEFAULT = "default"

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
IDENTITY = re.compile(r"[A-Za-z0-9_.:@=+,-]{1,200}")


def is_local(local: bool | None = None) -> bool:
    """Whether data is on this machine: the caller's choice, if there is one.

    Else it is, unless CONDUCTO_EXECUTION_ENV names a cloud or k8s environment (`worker_cloud`,
    `manager_k8s`, ...).

    >>> conducto.context.is_local()
    True
    >>> conducto.context.is_local(False)
    False
    """
    if local is not None:
        return local
    where = os.environ.get("CONDUCTO_EXECUTION_ENV", "")
    return where.rpartition("_")[2] not in ("cloud", "k8s")


def pipeline_id(given: str | None = None) -> str:
    """The caller's pipeline, or that of CONDUCTO_PIPELINE_ID.

    Raises ContextError when there is none, InvalidContext for one that can't be.
    """
    value = given if given is not None else os.environ.get("CONDUCTO_PIPELINE_ID")
    if value is None:
        raise ContextError(
            "Pipeline-scoped data requires a pipeline: set CONDUCTO_PIPELINE_ID, or give its id "
            "with --id. Try conducto.data.pipeline from a node of the pipeline."
        )
    return _path_part(value, "pipeline id")


def identity() -> str:
    """Whose data it is, in the cloud: CONDUCTO_IDENTITY_ID, else who the AWS credentials are.

    Raises ContextError when neither says.
    """
    given = os.environ.get("CONDUCTO_IDENTITY_ID")
    if given:
        return _identity(given)
    from castore import caller_identity  # loads botocore

    try:
        return _identity(caller_identity(f"s3://{_bucket()}"))
    except InvalidContext:
        raise
    except (CastoreError, ValueError) as error:
        raise ContextError(
            f"whose data is it? CONDUCTO_IDENTITY_ID is not set, and AWS can't say: {error}"
        ) from error


def organization() -> str:
    """Whose secrets all its members share, in the cloud: CONDUCTO_ORG_ID, else `default`. Raises
    InvalidContext."""
    return _identity(os.environ.get("CONDUCTO_ORG_ID") or ORGANIZATION_DEFAULT)


def store_url(*, local: bool | None = None, profile: str | None = None) -> str:
    """Where the store for this mode is.

    A path on this machine, for the profile (`~/.conducto/default/store`), or `s3://` in the cloud,
    for the identity. `profile` is the caller's, else CONDUCTO_PROFILE's, else that of the
    configuration file. Raises ContextError, InvalidContext.
    """
    if not is_local(local):
        if profile is not None:
            _path_part(profile, "profile")
        return f"s3://{_bucket()}/{identity()}/store"
    base = os.environ.get("CONDUCTO_BASE_DIR") or os.path.join("~", ".conducto")
    home = os.environ.get("HOME") if base.startswith("~") else None
    profile = profile or os.environ.get("CONDUCTO_PROFILE") or None
    config = os.environ.get("CONDUCTO_CONFIG") if profile is None else None
    return _local_store(base, home, profile, config)


def open_store(
    *, local: bool | None = None, profile: str | None = None, create: bool = True
) -> castore.Store:
    """The store for this mode and profile, opened once per process and closed at its end.

    It is made if there is none and `create` is true. Raises as `store_url` and `castore.open` do.
    """
    url = store_url(local=local, profile=profile)
    store = _stores.get(url)
    if store is not None:
        return store
    with _stores_lock:
        store = _stores.get(url)
        if store is None:
            import castore

            if create and not url.startswith("s3://"):
                os.makedirs(os.path.dirname(url), mode=0o700, exist_ok=True)
            store = castore.open(url, create=create)
            _stores[url] = store
        return store


def find_store(*, local: bool | None = None, profile: str | None = None) -> castore.Store | None:
    """As `open_store`, for what only reads: None where there is no store yet, and none is made. A
    bucket that is not there is not one that has no store yet: BucketNotFound."""
    try:
        return open_store(local=local, profile=profile, create=False)
    except BucketNotFound:
        raise
    except StoreNotFound:
        return None


def left_behind(url: str, key: str) -> str | None:
    """The file, on this machine, in which the first Conducto kept what would have this name in the
    store at `url`."""
    if url.startswith("s3://"):
        return None
    path = os.path.join(os.path.dirname(url), key)
    return path if os.path.exists(path) else None


def close_stores() -> None:
    """Close every store that this process opened through conducto; the next use reopens."""
    with _stores_lock:
        while _stores:
            _stores.popitem()[1].close()


_stores: dict[str, castore.Store] = {}
_stores_lock = Lock()


def _forget_lock() -> None:
    # Another thread may have held it across the fork, and does not exist in the child.
    global _stores_lock
    _stores_lock = Lock()


os.register_at_fork(after_in_child=_forget_lock)
atexit.register(close_stores)


@lru_cache(maxsize=64)
def _local_store(base: str, home: str | None, profile: str | None, config: str | None) -> str:
    folder = os.path.abspath(_home_expanded(base))  # reads HOME: that is why it is a key
    if profile is None:
        profile = _configured_profile(config or os.path.join(folder, "config"))
    elif profile == "__none__":  # how the environment says "not the configured one"
        profile = PROFILE_DEFAULT
    return os.path.join(folder, _path_part(profile, "profile"), "store")


def _home_expanded(path: str) -> str:
    try:
        return expand_home(path)
    except ValueError as error:
        raise InvalidContext(f"{error}; or set CONDUCTO_BASE_DIR") from error


def _configured_profile(path: str) -> str:
    """`default` of section `general` in the user's configuration file."""
    path = _home_expanded(path)
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


def _bucket() -> str:
    bucket = os.environ.get("CONDUCTO_S3_BUCKET")
    if not bucket:
        raise ContextError(
            "data in the cloud is in S3, and CONDUCTO_S3_BUCKET does not say in which bucket: set "
            "it, or use local mode (--local, or local=True)"
        )
    if _BUCKET.fullmatch(bucket) is None:
        raise InvalidContext(f"CONDUCTO_S3_BUCKET must be a bucket's name, not {bucket!r}")
    return bucket


def _identity(value: str) -> str:
    """It becomes one part of keys and of the policies that guard them, where more than these
    characters would mean something."""
    if IDENTITY.fullmatch(value) is None or value in (".", ".."):
        raise InvalidContext(
            f"{value!r} can't be an identity: it is up to 200 letters, digits and _.:@=+,-"
        )
    return value


def _path_part(value: str, what: str) -> str:
    """It becomes one component of names and paths, so it must be one."""
    if not isinstance(value, str) or not value:
        raise InvalidContext(f"a {what} must be text that is not empty, not {value!r}")
    if "/" in value or "\0" in value or value in (".", ".."):
        raise InvalidContext(f"{value!r} can't be a {what}: it is used as one part of a path")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidContext(f"{value!r} can't be a {what}: it is not valid Unicode") from None
    return value
