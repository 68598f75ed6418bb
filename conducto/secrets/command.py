"""`conducto secrets set|list|delete`.

A value comes from a prompt or from stdin: others can see the arguments of a process. None is
printed, and no message repeats an argument that might be one.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Sequence

from conducto import secrets
from conducto.arguments import WHERE, HelpWanted, Parameter, UsageError, Value, parse, where
from conducto.cli import write_text
from conducto.errors import InvalidSecret, SecretsError
from conducto.secrets.values import (
    ORG,
    USER,
    VALUE_BYTES_MAX,
    Secret,
    SecretKey,
    check_key,
    check_secret,
)

HELP = """\
usage: conducto secrets set KEY [--org] [--no-mask]
       conducto secrets list [--org]
       conducto secrets delete KEY [--org]

A secret is a variable in the environment of every node of yours that no log shows: what nodes
print is masked.

set asks for the value, without showing it, or reads it from stdin. A line's end behind it is not
taken for a part of it, unless it has several lines. The value is no argument, as others could see
it. list prints the names, as JSON, and no values.

  --org                secrets of your organization, which all its members have: a user's own come
                       before them
  --mask/--no-mask     --no-mask for a value that may be shown, such as a region
  --local/--no-local   those on this machine, encrypted, or in AWS Systems Manager Parameter Store
  --profile PROFILE    the profile; else CONDUCTO_PROFILE
"""
COMMON = (
    Parameter("org", "the organization's", "flag", False, False),
    *WHERE,
)
KEY = Parameter("key", "the variable's name")
MASK = Parameter("mask", "whether what nodes print is masked", "flag", False, False)
PARAMETERS = {"set": (KEY, MASK, *COMMON), "list": COMMON, "delete": (KEY, *COMMON)}


def run(argv: Sequence[str]) -> int:
    """Run one command line behind `conducto secrets`; its exit code. Raises UsageError."""
    # Should this process crash, its memory is not to be kept.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if not argv:
        raise UsageError("no command given: secrets set, list or delete")
    verb, *rest = argv
    if verb in ("-h", "--help"):
        write_text(HELP)
        return 0
    if verb not in PARAMETERS:
        raise UsageError("there are: secrets set, list and delete")
    try:
        given = _parsed(verb, rest)
    except HelpWanted:
        write_text(HELP)
        return 0
    _VERBS[verb](given, _backend(given))
    return 0


def _parsed(verb: str, argv: Sequence[str]) -> dict[str, Value]:
    try:
        return parse(PARAMETERS[verb], argv)
    except UsageError:
        usage = " ".join(parameter.usage() for parameter in PARAMETERS[verb])
    raise UsageError(
        f"it is: secrets {verb} {usage}. A value is no argument: it is asked for, or read from "
        "stdin"
    )


def _set(given: dict[str, Value], backend: secrets.Backend) -> None:
    key = _key(given)
    check_key(key)
    if sys.stdin is not None and sys.stdin.isatty():
        backend.check()  # nobody types a value to be told that it can't be kept
    secret = Secret(key.key, _value(key.key), key.scope, bool(given.get("mask", True)))
    check_secret(secret)
    backend.put([secret])


def _list(given: dict[str, Value], backend: secrets.Backend) -> None:
    found = [
        {"key": secret.key, "scope": secret.scope, "mask": secret.mask}
        for secret in backend.read([_scope(given)])
    ]
    write_text(json.dumps(sorted(found, key=lambda each: str(each["key"]))) + "\n")


def _delete(given: dict[str, Value], backend: secrets.Backend) -> None:
    key = _key(given)
    check_key(key)
    backend.delete([key])


_VERBS: dict[str, Callable[[dict[str, Value], secrets.Backend], None]] = {
    "set": _set,
    "list": _list,
    "delete": _delete,
}


def _backend(given: dict[str, Value]) -> secrets.Backend:
    return secrets.backend(**where(given))


def _key(given: dict[str, Value]) -> SecretKey:
    return SecretKey(str(given["key"]), _scope(given))


def _scope(given: dict[str, Value]) -> str:
    return ORG if given.get("org") else USER


def _value(key: str) -> str:
    if sys.stdin is None:
        raise SecretsError(
            "stdin is closed: a value is asked for on a terminal, or read from stdin"
        )
    if sys.stdin.isatty():
        import getpass

        try:
            return getpass.getpass(f"{key}: ")
        except EOFError:
            raise SecretsError("no value was given: nothing was set") from None
    return _piped(sys.stdin.buffer.read(VALUE_BYTES_MAX + 4), key)


def _piped(raw: bytes, key: str) -> str:
    line = raw.removesuffix(b"\n").removesuffix(b"\r")
    text = _text(raw if b"\n" in line else line, whole=len(raw) < VALUE_BYTES_MAX + 4)
    if text is None:
        raise InvalidSecret(f"the value of the secret {key} is not UTF-8")
    return text


def _text(raw: bytes, *, whole: bool) -> str | None:
    try:
        return raw.decode(errors="strict" if whole else "replace")  # else it is refused as too long
    except UnicodeDecodeError:
        return None
