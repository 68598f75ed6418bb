"""Secrets on this machine: one file per profile, beside its store, for both scopes.

A change is read, made and written under a lock, so that of two processes that change it at once
neither loses what the other put. Readers need no lock: the file is replaced whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from conducto.errors import SecretNotFound, SecretsDamaged
from conducto.secrets import files, keys, sealed
from conducto.secrets.sealed import Contents
from conducto.secrets.values import Secret, SecretKey


class LocalSecrets:
    """Those in a folder: `secrets`, the key in `secrets.key` if it is not elsewhere."""

    def __init__(self, folder: str) -> None:
        self.path = os.path.join(folder, "secrets")
        self._key_file = os.path.join(folder, "secrets.key")
        self._lock_file = os.path.join(folder, "secrets.lock")

    def read(self, scopes: Iterable[str]) -> list[Secret]:
        found = self._read()[0].values()
        return [secret for scope in scopes for secret in found if secret.scope == scope]

    def check(self) -> None:
        sealed.require_cryptography()
        self._read()

    def put(self, secrets: list[Secret], replaced: Iterable[str] = ()) -> None:
        """All of them at once. The scopes that are `replaced` lose all others."""
        gone = set(replaced)
        with self._changed() as contents:
            for key in [key for key in contents if key.scope in gone]:
                del contents[key]
            contents.update(sealed.by_key(secrets))

    def delete(self, secret_keys: list[SecretKey]) -> None:
        """All of them; if one is not there, none."""
        with self._changed() as contents:
            missing = [key for key in secret_keys if key not in contents]
            if missing:
                raise SecretNotFound(missing)
            for key in secret_keys:
                contents.pop(key, None)

    @contextmanager
    def _changed(self) -> Iterator[Contents]:
        """What there is, which is written when the block has changed it."""
        sealed.require_cryptography()
        with files.locked(self._lock_file):
            contents, key = self._read()
            yield contents
            if key is None:
                key = keys.new_key(self._key_file)
            files.replace(self.path, sealed.seal(contents, key))

    def _read(self) -> tuple[Contents, sealed.Key | None]:
        """With the key that it is sealed with, if there is a file."""
        raw = files.read(self.path, sealed.FILE_BYTES_MAX)
        if raw is None:
            return {}, None
        if len(raw) > sealed.FILE_BYTES_MAX:
            raise SecretsDamaged(self.path, "it is too large")
        key_id = sealed.key_id(raw, self.path)
        sealed.require_cryptography()
        key = keys.key_for(key_id, self.path, self._key_file)
        return sealed.unseal(raw, key, self.path), key
