"""`co.api`: secrets, by the names that the former Conducto had for them.

    co.api.Secrets().put_user_secrets({"TOKEN": value})
    co.api.Secrets().put([co.api.Secret("REGION", "eu-west-1", scope="org", mask=False)])

Whoever is asked for a token there needs none here: who may do what is up to AWS's IAM, or to who
may read the file. A token that is given, first or by name, is not looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from conducto import secrets
from conducto.errors import InvalidSecret
from conducto.secrets.values import (
    HIDDEN,
    ORG,
    SCOPES,
    USER,
    Secret,
    SecretKey,
    check_key,
    checked,
)

__all__ = ["Auth", "Secret", "SecretKey", "Secrets", "secrets"]


class Auth:
    """For scripts that get a token and hand it on."""

    def get_token_from_shell(self) -> str:
        """A token, which nothing here looks at."""
        return "no-token-is-needed"


class Secrets:
    """The secrets of the user, and of the user's organization.

    They are on this machine or in the cloud, as `co.data` is; `local` and `profile` say otherwise.
    Each method raises SecretsError and, in the cloud, ContextError and castore's AccessDenied,
    CredentialsError, EndpointUnreachable, RemoteError. No error has a value in it.
    """

    def __init__(self, *, local: bool | None = None, profile: str | None = None) -> None:
        self._local = local
        self._profile = profile

    def get(self, token: Any = None) -> list[Secret]:
        """All secrets, of both scopes."""
        return self._backend().read(SCOPES)

    def put(self, *given: Any, secrets: Any = None, token: Any = None) -> None:
        """Put secrets, and leave the others: `put([Secret(...), ...])`, or one Secret.

        Raises InvalidSecret for what can't be one; then nothing is put. On this machine all are
        put at once, in the cloud one after another.
        """
        hidden = _Given(given, secrets)
        del given, secrets  # no frame of a traceback is to have them
        self._put(checked(hidden.of_type(Secret)))

    def delete(self, *given: Any, secrets: Any = None, token: Any = None) -> None:
        """Delete secrets: `delete([SecretKey(...), ...])`, or one. Raises SecretNotFound, and
        deletes nothing, if one is not there."""
        hidden = _Given(given, secrets)
        del given, secrets
        self._delete(SecretKey(key.key, key.scope) for key in hidden.of_type(SecretKey))

    def get_user_secrets(
        self, token: Any = None, include_org_secrets: bool = False, obfuscate: bool = False
    ) -> dict[str, str]:
        """The user's secrets; with `include_org_secrets` over those of the organization. With
        `obfuscate` each value is `***`."""
        return self._values((ORG, USER) if include_org_secrets else (USER,), obfuscate)

    def get_org_secrets(self, token: Any = None, obfuscate: bool = False) -> dict[str, str]:
        """The organization's."""
        return self._values((ORG,), obfuscate)

    def put_user_secrets(
        self, *given: Any, secrets: Any = None, token: Any = None, replace: bool = False
    ) -> None:
        """Put secrets of the user: `put_user_secrets({"KEY": "value"})`, also with a token before
        or behind it. With `replace` all others are deleted. Raises as `put` does."""
        hidden = _Given(given, secrets, replace)
        del given, secrets
        self._put(checked(hidden.of_scope(USER)), (USER,) if hidden.replace else ())

    def put_org_secrets(
        self, *given: Any, secrets: Any = None, token: Any = None, replace: bool = False
    ) -> None:
        """Put secrets of the organization, as `put_user_secrets` does."""
        hidden = _Given(given, secrets, replace)
        del given, secrets
        self._put(checked(hidden.of_scope(ORG)), (ORG,) if hidden.replace else ())

    def delete_user_secrets(self, *given: Any, secret_names: Any = None, token: Any = None) -> None:
        """Delete secrets of the user: `delete_user_secrets(["KEY", ...])`. Raises SecretNotFound,
        and deletes nothing, if one is not there."""
        names = _Given(given, secret_names).of_type(str)
        self._delete(SecretKey(name, USER) for name in names)

    def delete_org_secrets(self, *given: Any, secret_names: Any = None, token: Any = None) -> None:
        """Delete secrets of the organization, as `delete_user_secrets` does."""
        names = _Given(given, secret_names).of_type(str)
        self._delete(SecretKey(name, ORG) for name in names)

    def _backend(self) -> secrets.Backend:
        return secrets.backend(local=self._local, profile=self._profile)

    def _values(self, scopes: tuple[str, ...], obfuscate: bool) -> dict[str, str]:
        found = self._backend().read(scopes)
        return {secret.key: HIDDEN if obfuscate else secret.value for secret in found}

    def _put(self, wanted: list[Secret], replaced: tuple[str, ...] = ()) -> None:
        if wanted or replaced:
            self._backend().put(wanted, replaced)

    def _delete(self, keys: Iterable[SecretKey]) -> None:
        wanted = [*dict.fromkeys(keys)]  # Parameter Store refuses what names one twice
        for key in wanted:
            check_key(key)
        if wanted:
            self._backend().delete(wanted)


class _Given:
    """What a method was given, in any of its spellings: the secrets, a token before or behind
    them, then whether to replace. Its repr shows none of it."""

    __slots__ = ("_wanted", "replace")

    def __init__(self, given: tuple[Any, ...], named: Any, replace: bool = False) -> None:
        flags = [each for each in given if isinstance(each, bool)]
        self.replace = replace or True in flags
        candidates = [*given, named]
        self._wanted = [each for each in candidates if _is_several(each)]

    def __repr__(self) -> str:
        return "<what was given>"

    def of_scope(self, scope: str) -> list[Secret]:
        """Those of a dict."""
        self._check(isinstance(self._only, Mapping), "a dict of values by their keys")
        if any(isinstance(each, bytes | bytearray) for each in self._only.values()):
            # Its text would be b'...', which is nobody's password.
            raise InvalidSecret("the value of a secret is text, and not bytes: nothing was put")
        return [
            Secret(key, "" if value is None else str(value), scope)
            for key, value in self._only.items()
        ]

    def of_type(self, kind: type[Any]) -> list[Any]:
        """Those of a list, or one alone."""
        self._check(
            self._only is not None
            and not isinstance(self._only, Mapping)
            and all(isinstance(each, kind) for each in self._listed),
            f"a list of {'names' if kind is str else kind.__name__}",
        )
        return self._listed

    @property
    def _only(self) -> Any:
        return self._wanted[0] if len(self._wanted) == 1 else None

    @property
    def _listed(self) -> list[Any]:
        return [self._only] if isinstance(self._only, SecretKey) else list(self._only)

    def _check(self, fits: bool, what: str) -> None:
        if not fits:
            raise InvalidSecret(f"{what} is wanted, and besides a token at most")


def _is_several(each: Any) -> bool:
    """Whether it is what a token is not."""
    return isinstance(each, SecretKey | Collection) and not isinstance(each, str | bytes)
