"""Where in Parameter Store secrets are."""

from __future__ import annotations

import os
import re

from conducto.errors import InvalidContext

PATH_DEFAULT = "/conducto"

_PATH = re.compile(r"(/[A-Za-z0-9_.-]{1,100}){1,8}")
_RESERVED = ("/aws", "/ssm")  # by AWS, in any case


def secrets_path() -> str:
    """What all parameters are below. Raises InvalidContext."""
    path = os.environ.get("CONDUCTO_SECRETS_PATH") or PATH_DEFAULT
    if _PATH.fullmatch(path) is None or path.lower().startswith(_RESERVED):
        raise InvalidContext(
            f"CONDUCTO_SECRETS_PATH must be a path in Parameter Store such as {PATH_DEFAULT}: "
            f"letters, digits and _.- between slashes, not {path!r}"
        )
    return path


def scope_path(path: str, scope: str, whose: str) -> str:
    """Below which a user's or an organization's parameters are. What parameters can't have in
    their names is written as `.3A`, so that no two share one."""
    escaped = re.sub(r"[^A-Za-z0-9_-]", lambda found: f".{ord(found[0]):02X}", whose)
    return f"{path}/{scope}/{escaped}"
