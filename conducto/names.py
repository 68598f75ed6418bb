"""The caller's names, and the store's: what stands before a name in the store is nobody's business
but ours, and in no message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from castore import NAME_BYTES_MAX
from castore.errors import InvalidName, ManifestUnreadable, NameExists, NameNotFound


def key_of(scope: str, name: str) -> str:
    """The name in the store. Raises InvalidName for one that can't be, as the caller wrote it."""
    cleaned = cleaned_name(name)
    bytes_max = NAME_BYTES_MAX - len(scope.encode())
    try:
        size = len(cleaned.encode())
    except UnicodeEncodeError as error:
        raise InvalidName(f"name {name!r} is not valid Unicode: {error.reason}") from error
    if "\0" in cleaned:
        raise InvalidName(f"name {name!r} has a NUL byte")
    if size > bytes_max:
        raise InvalidName(
            f"name {name[:40]!r}... has {size} bytes in UTF-8; the most is {bytes_max} here"
        )
    return scope + cleaned


def stripped(name: str) -> str:
    if not isinstance(name, str):
        raise InvalidName(f"a name is a str, not {type(name).__name__}")
    return name.lstrip("/")


def cleaned_name(name: str) -> str:
    """The name inside its scope."""
    cleaned = stripped(name)
    if not cleaned:
        raise InvalidName(f"name {name!r} is empty")
    for part in cleaned.split("/"):
        if part in (".", ".."):
            raise InvalidName(f"name {name!r} has a {part!r} component")
    return cleaned


def cleaned_prefix(prefix: str) -> tuple[str, str]:
    """What the caller wrote before the names that are meant, and what these start with. "." is
    where all are."""
    cleaned = stripped(prefix)
    if ".." in cleaned.split("/"):
        raise InvalidName(f"prefix {prefix!r} has a '..' component")
    if "\0" in cleaned:
        raise InvalidName(f"prefix {prefix!r} has a NUL byte")
    try:
        cleaned.encode()
    except UnicodeEncodeError as error:
        raise InvalidName(f"prefix {prefix!r} is not valid Unicode: {error.reason}") from error
    if cleaned in (".", "./"):
        return "", ""
    return prefix[: len(prefix) - len(cleaned)], cleaned


def is_all(name: str) -> bool:
    """Whether it names the folder that all names are in."""
    return stripped(name) in ("", ".", "./")


def cache_folder(name: str) -> str:
    return f"conducto-cache/{cleaned_name(name).rstrip('/')}"


def cache_name(name: str, checksum: str) -> str:
    if not isinstance(checksum, str) or not checksum:
        raise InvalidName(f"a cache's checksum must be text that is not empty, not {checksum!r}")
    return f"{cache_folder(name)}/{checksum}.tar.gz"


@contextmanager
def called(name: str, key: str) -> Iterator[None]:
    """What goes wrong with the object `key` goes by the name that the caller used for it."""
    try:
        yield
    except (NameNotFound, NameExists) as error:
        raise (type(error)(name) if error.name == key else error) from None
    except ManifestUnreadable as error:
        if error.name != key:
            raise
        raise ManifestUnreadable(name, error.reason) from error
