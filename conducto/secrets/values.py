"""A secret: a variable of nodes' environment that nobody else is to see.

Its text and its repr have no value in them, so that none gets into a log, an error or the locals of
a traceback by being printed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from conducto.errors import InvalidSecret

USER, ORG = "user", "org"
SCOPES = (USER, ORG)
HIDDEN = "***"
KEY_CHARS_MAX = 128
VALUE_BYTES_MAX = 8000  # what a parameter of AWS holds

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Who writes an organization's secrets is not to decide what its members' nodes execute, nor where
# their data goes.
_RESERVED = {
    *("BASH_ENV", "ENV", "HOME", "IFS", "PATH", "SHELL"),
    *("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP"),
}
_RESERVED_STARTS = ("CONDUCTO_", "CASTORE_", "LD_", "DYLD_")


class SecretKey:
    """What a secret is called: the name of a variable, in the `scope` "user" or "org"."""

    __slots__ = ("key", "scope")

    def __init__(self, key: str, scope: str = USER) -> None:
        self.key = key
        self.scope = scope

    def as_dict(self) -> dict[str, Any]:
        """Its fields."""
        return {"scope": self.scope, "key": self.key}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._shown_key()!r}, scope={self.scope!r})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    def _fields(self) -> tuple[Any, ...]:
        return self.scope, self.key

    def _shown_key(self) -> str:
        # What is no name may be a value, in the wrong place.
        return self.key if _is_name(self.key) else HIDDEN


class Secret(SecretKey):
    """A secret and its value. What nodes print is masked where it is the value, unless `mask` is
    False: for values such as `eu-west-1`, which are no secrets by themselves."""

    __slots__ = ("mask", "value")

    def __init__(self, key: str, value: str, scope: str = USER, mask: bool = True) -> None:
        super().__init__(key, scope)
        self.value = value
        self.mask = mask

    def as_dict(self) -> dict[str, Any]:
        """Its fields, with the value."""
        return {**super().as_dict(), "value": self.value, "mask": self.mask}

    def __repr__(self) -> str:
        hidden = f"{self._shown_key()!r}, {HIDDEN!r}, scope={self.scope!r}, mask={self.mask!r}"
        return f"{type(self).__name__}({hidden})"

    def _fields(self) -> tuple[Any, ...]:
        return self.scope, self.key, self.value, self.mask


def check_key(key: SecretKey) -> None:
    """Raises InvalidSecret if nothing can be called so."""
    check_scope(key.scope)
    if not _is_name(key.key):
        raise InvalidSecret(
            f"a secret is called like a variable: up to {KEY_CHARS_MAX} letters, digits and _, "
            "not a digit first. This name is not repeated here, as it may be a value"
        )
    if key.key in _RESERVED or key.key.startswith(_RESERVED_STARTS):
        raise InvalidSecret(
            f"no secret may be called {key.key}: nodes would run something else, or elsewhere"
        )


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and len(name) <= KEY_CHARS_MAX and bool(_KEY.fullmatch(name))


def check_scope(scope: str) -> None:
    if scope not in SCOPES:
        raise InvalidSecret('the scope of a secret is "user" or "org"')


def checked(secrets: Iterable[Secret]) -> list[Secret]:
    """All of them. Raises InvalidSecret."""
    found = list(secrets)
    for secret in found:
        check_secret(secret)
    return found


def check_secret(secret: Secret) -> None:
    """Raises InvalidSecret, which does not repeat the value."""
    check_key(secret)
    problem = _problem(secret)
    if problem:
        raise InvalidSecret(f"the value of the secret {secret.key} {problem}")


def _problem(secret: Secret) -> str:
    if not isinstance(secret.value, str):
        return "is not a str"
    if not secret.value.strip():
        return "is empty"
    if "\0" in secret.value:
        return "has a NUL, which no variable can have"
    if any("\ud800" <= character <= "\udfff" for character in secret.value):
        return "is not valid Unicode"
    if len(secret.value.encode()) > VALUE_BYTES_MAX:
        return f"has more than {VALUE_BYTES_MAX:,} bytes"
    return ""


def described(keys: Iterable[SecretKey]) -> str:
    """Their names, as messages say them: `A, B (user), C (org)`."""
    by_scope: dict[str, list[str]] = {}
    for key in keys:
        by_scope.setdefault(key.scope, []).append(key.key)
    return "; ".join(f"{', '.join(names)} ({scope})" for scope, names in by_scope.items())
