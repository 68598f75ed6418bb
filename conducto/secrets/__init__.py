"""Secrets of a user and of an organization: variables in the environment of every node, and in no
log.

On this machine they are in one encrypted file (`local`), in the cloud in AWS Systems Manager
Parameter Store (`parameter_store`). `co.api.Secrets` and `conducto secrets` change them; who runs
nodes asks `for_nodes`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Protocol

from conducto import context
from conducto.errors import SecretsUnavailable
from conducto.secrets.masker import Masker
from conducto.secrets.values import SCOPES, USER, Secret, SecretKey

__all__ = ["Masker", "NodeSecrets", "Secret", "SecretKey", "environment", "for_nodes"]

FOUND_BYTES_MIN = 4


class Backend(Protocol):
    """Where secrets are. What it is given was checked."""

    def read(self, scopes: Iterable[str]) -> list[Secret]:
        """Those of each scope, in this order."""

    def check(self) -> None:
        """Raise what would keep secrets from being put, as far as it shows before."""

    def put(self, secrets: list[Secret], replaced: Iterable[str] = ()) -> None:
        """The scopes that are `replaced` keep no others."""

    def delete(self, secret_keys: list[SecretKey]) -> None:
        """All of them; raises SecretNotFound, and deletes none, if one is not there."""


class NodeSecrets:
    """What nodes get of the secrets: `environment`, the variables, and `masker`."""

    __slots__ = ("_hidden", "_masked", "environment")

    def __init__(self, secrets: Iterable[Secret]) -> None:
        known = sorted(secrets, key=lambda secret: secret.scope == USER)  # org first
        self.environment = {secret.key: secret.value for secret in known}
        self._masked = [secret for secret in known if secret.mask]
        self._hidden = {secret.value for secret in self._masked}
        # A node may print all of its environment, and has this to use secrets itself.
        self._hidden |= {os.environ.get("CONDUCTO_SECRETS_KEY", "")}

    def masker(self) -> Masker:
        """A new filter for one stream that a node prints to."""
        return Masker(self._hidden)

    def found_in(self, data: bytes) -> list[str]:
        """The names of the secrets whose values are in what is to be kept. Those of less than
        `FOUND_BYTES_MIN` bytes, without the space around words, are not looked for, as they are in
        anything."""
        known = [
            each
            for each in self._masked
            if len(" ".join(each.value.split()).encode()) >= FOUND_BYTES_MIN
        ]
        if not _is_changed(data, known):
            return []
        return [secret.key for secret in known if _is_changed(data, [secret])]

    def __repr__(self) -> str:
        return f"<NodeSecrets {', '.join(self.environment)}>"


def for_nodes(*, local: bool | None = None, profile: str | None = None) -> NodeSecrets:
    """The secrets as nodes get them: ask once for a run, not for each node.

        secrets = conducto.secrets.for_nodes()
        env = {**os.environ, **secrets.environment, **node.env}
        masker = secrets.masker()  # one for each stream

    Mode and profile are the environment's unless given. Raises SecretsError and, in the cloud,
    ContextError and castore's AccessDenied, CredentialsError, EndpointUnreachable, RemoteError.
    """
    return NodeSecrets(backend(local=local, profile=profile).read(SCOPES))


def environment() -> dict[str, str]:
    """The variables that nodes get: those of the organization, overlaid by the user's. Raises as
    `for_nodes` does."""
    return for_nodes().environment


def backend(*, local: bool | None = None, profile: str | None = None) -> Backend:
    """Where the secrets are in this mode, and for this profile on this machine."""
    if context.is_local(local):
        from conducto.secrets.local import LocalSecrets

        return LocalSecrets(os.path.dirname(context.store_url(local=True, profile=profile)))
    if os.environ.get("CONDUCTO_SECRETS_PATH") == NOWHERE:
        return _Nowhere()
    from conducto.secrets.parameter_store import ParameterStore

    return ParameterStore.of_context()


NOWHERE = "none"  # as CONDUCTO_SECRETS_PATH: beside servers of S3 that have no Parameter Store


class _Nowhere:
    """There are no secrets, and there can't be any."""

    def read(self, scopes: Iterable[str]) -> list[Secret]:
        return []

    def check(self) -> None:
        raise SecretsUnavailable(
            f"CONDUCTO_SECRETS_PATH={NOWHERE} says that there is no Parameter Store here: unset it"
        )

    def put(self, secrets: list[Secret], replaced: Iterable[str] = ()) -> None:
        self.check()

    def delete(self, secret_keys: list[SecretKey]) -> None:
        self.check()


def _is_changed(data: bytes, secrets: Iterable[Secret]) -> bool:
    masker = Masker(secret.value for secret in secrets)
    return masker.feed(data) + masker.flush() != data
