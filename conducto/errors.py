"""Every error that conducto raises on purpose, beside those of `castore.errors`.

Each names the thing and the remedy, and also subclasses the builtin that a caller would catch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from castore.errors import CastoreError, FormatError, NameNotFound

if TYPE_CHECKING:
    from conducto.secrets.values import SecretKey


class ContextError(CastoreError, RuntimeError):
    """What is asked for needs something that this process was not told: a pipeline's id, the
    app's URL, a store in the cloud."""


class InvalidContext(ContextError, ValueError):
    """A pipeline id, a profile or a configuration file that can't be used."""


class CacheNotFound(NameNotFound):
    """There is no cache with this name and checksum. `name` is where it would be."""

    def __str__(self) -> str:
        return f"Cache not found: {self.name!r}"


class NameIsFolder(NameNotFound, IsADirectoryError):
    """No object has this name, but others lie below it."""

    def __str__(self) -> str:
        return f"no object is named {self.name!r}: it is a folder of others"


class NotTakenOver(NameNotFound):
    """The store has no object with this name, but the former Conducto kept one on this machine, at
    `path`."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__(name)
        self.path = path

    def __str__(self) -> str:
        return (
            f"no object is named {self.name!r}, but an earlier Conducto kept {self.path}: "
            "`conducto take-over` puts what it kept into the store"
        )


class NotCacheable(CastoreError, ValueError):
    """The folder holds what a cache can't: a link that leads outside to no file, a device, a name
    that is too long."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path!r} can't be cached: {self.reason}"


class CacheRefused(FormatError):
    """The cache's archive is malformed, or holds what a restore must not make. Nothing of it
    was restored."""


class SecretsError(CastoreError, RuntimeError):
    """The base of what goes wrong with secrets. No message repeats a value."""


class InvalidSecret(SecretsError, ValueError):
    """A name, a scope or a value that no secret can have."""


class SecretNotFound(SecretsError, LookupError):
    """There are no secrets with these names. `keys` are the missing ones."""

    def __init__(self, keys: list[SecretKey]) -> None:
        names = ", ".join(f"{key.key} ({key.scope})" for key in keys)
        super().__init__(f"there is no secret {names}: nothing was deleted")
        self.keys = keys


class SecretsKeyError(SecretsError):
    """The key that the secrets on this machine are encrypted with is wrong, or can't be had."""


class SecretsDamaged(SecretsError, FormatError):
    """The file of secrets at `path` does not decrypt with its own key. It was left as it is."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"the secrets in {path} are damaged ({reason}): restore the file from a backup, or "
            "move it away and set them again"
        )
        self.path = path


class SecretsUnavailable(SecretsError):
    """What secrets on this machine need is not installed."""


class RunNotFound(NameNotFound):
    """No run of a pipeline with this id is in the store. `name` is the id."""

    def __str__(self) -> str:
        return f"no run of a pipeline {self.name!r} is in the store"


class RunError(CastoreError, RuntimeError):
    """A pipeline can't be run or resumed as it was asked for."""
