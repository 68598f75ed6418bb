"""Secrets in the cloud: AWS Systems Manager Parameter Store.

Each is a parameter of type SecureString, below a path per user and one per organization:

    /conducto/user/<identity>/<KEY>
    /conducto/org/<organization>/<KEY>

IAM says who may read and write which path: `python -m conducto.policy --secrets`. The settings are
CONDUCTO_SECRETS_PATH (`/conducto`; `none` where there is no Parameter Store), CONDUCTO_ORG_ID
(`default`) and CONDUCTO_SECRETS_KMS_KEY_ID (the account's key for Parameter Store); region,
credentials and endpoint are AWS's own.

A parameter's value is the secret's. Only if it is not masked, or begins as the marks of this module
do, a mark is put before it. What is below a path and no secret can be called is left alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from conducto import context
from conducto.errors import InvalidSecret, SecretNotFound
from conducto.secrets.paths import scope_path, secrets_path
from conducto.secrets.ssm import Client, Failure
from conducto.secrets.values import ORG, USER, Secret, SecretKey, check_key, described

_PAGE = 10  # as many as one request may name
_MARK, _MASKED, _UNMASKED = "conducto:", "conducto:masked:", "conducto:unmasked:"


class ParameterStore:
    """The secrets of one user and one organization."""

    def __init__(self, folders: dict[str, str], kms_key_id: str | None) -> None:
        self._folders = folders  # by scope
        self._kms_key_id = kms_key_id
        self._client = Client()

    @classmethod
    def of_context(cls) -> ParameterStore:
        """As the environment says. Raises ContextError, CredentialsError."""
        path = secrets_path()
        folders = {
            USER: scope_path(path, USER, context.identity()),
            ORG: scope_path(path, ORG, context.organization()),
        }
        return cls(folders, os.environ.get("CONDUCTO_SECRETS_KMS_KEY_ID") or None)

    def read(self, scopes: Iterable[str]) -> list[Secret]:
        return [secret for scope in scopes for secret in self._read(scope)]

    def check(self) -> None:
        self._page(USER, "", decrypted=False)

    def put(self, secrets: list[Secret], replaced: Iterable[str] = ()) -> None:
        """One after another, then the scopes that are `replaced` lose all others: an error says
        which were put before it, and nothing that there was is gone."""
        for at, secret in enumerate(secrets):
            reply = self._put(secret)
            if isinstance(reply, Failure):
                if at:
                    reply.error.add_note(f"{described(secrets[:at])} were put before")
                raise reply.error
        kept = {(secret.scope, secret.key) for secret in secrets}
        for scope in replaced:
            self._delete([key for key in self._keys(scope) if (scope, key.key) not in kept])

    def delete(self, secret_keys: list[SecretKey]) -> None:
        there = {key for scope in {key.scope for key in secret_keys} for key in self._keys(scope)}
        missing = [key for key in secret_keys if key not in there]
        if missing:
            raise SecretNotFound(missing)
        self._delete(secret_keys)

    def _put(self, secret: Secret) -> dict[str, Any] | Failure:
        name = self._name(secret)
        key = {} if self._kms_key_id is None else {"KeyId": self._kms_key_id}
        return self._client.ask(
            "put_parameter",
            name,
            hidden=secret.value,
            Name=name,
            Value=_encoded(secret),
            Type="SecureString",
            Overwrite=True,
            Tier="Intelligent-Tiering",  # what has over 4 KiB needs another one, and costs
            **key,
        )

    def _delete(self, secret_keys: list[SecretKey]) -> None:
        for at in range(0, len(secret_keys), _PAGE):
            names = [self._name(key) for key in secret_keys[at : at + _PAGE]]
            reply = self._client.ask("delete_parameters", names[0], Names=names)
            if isinstance(reply, Failure):
                raise reply.error

    def _keys(self, scope: str) -> Iterator[SecretKey]:
        for secret in self._read(scope, decrypted=False):
            yield SecretKey(secret.key, secret.scope)

    def _read(self, scope: str, *, decrypted: bool = True) -> Iterator[Secret]:
        """Without decryption the values mean nothing."""
        token = ""
        while True:
            secrets, token = self._page(scope, token, decrypted=decrypted)
            yield from secrets
            if not token:
                return

    def _page(self, scope: str, token: str, *, decrypted: bool) -> tuple[list[Secret], str]:
        folder = self._folders[scope]
        next_token = {"NextToken": token} if token else {}
        reply = self._client.ask(
            "get_parameters_by_path",
            folder,
            Path=folder,
            Recursive=False,
            WithDecryption=decrypted,
            MaxResults=_PAGE,
            **next_token,
        )
        if isinstance(reply, Failure):
            raise reply.error
        secrets = [
            _decoded(parameter["Name"].rpartition("/")[2], parameter["Value"], scope)
            for parameter in reply["Parameters"]
        ]
        return [secret for secret in secrets if _is_possible(secret)], reply.get("NextToken", "")

    def _name(self, key: SecretKey) -> str:
        return f"{self._folders[key.scope]}/{key.key}"


def _encoded(secret: Secret) -> str:
    if not secret.mask:
        return _UNMASKED + secret.value
    return _MASKED + secret.value if secret.value.startswith(_MARK) else secret.value


def _decoded(key: str, value: str, scope: str) -> Secret:
    for mark, mask in ((_UNMASKED, False), (_MASKED, True)):
        if value.startswith(mark):
            return Secret(key, value.removeprefix(mark), scope, mask)
    return Secret(key, value, scope)


def _is_possible(key: SecretKey) -> bool:
    try:
        check_key(SecretKey(key.key, key.scope))
    except InvalidSecret:
        return False
    return True
