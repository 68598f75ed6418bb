"""Where the key of a file of secrets is: in CONDUCTO_SECRETS_KEY, else in the system's keyring,
else in a file beside it that only its owner may read.

A file of secrets says by the key's id which key it needs. A new key is made only for a new file.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from typing import Any

from conducto.errors import SecretsKeyError
from conducto.secrets import files
from conducto.secrets.sealed import KEY_BYTES, Key

VARIABLE = "CONDUCTO_SECRETS_KEY"
SERVICE = "conducto secrets"  # what the keyring knows the keys by, with a key's id
KEYRING_PRIORITY_MIN = 1  # less have keyrings that are files in plain text, or none at all

_TEXT_BYTES_MAX = 1024


def key_for(key_id: bytes, path: str, key_file: str) -> Key:
    """The key with this id, which the secrets in `path` need. Raises SecretsKeyError."""
    given = given_key()
    in_file = None if given else _from_file(key_file)
    for key in (given, in_file):
        if key is not None and key.id == key_id:
            return key
    kept = None if given else _from_keyring(key_id)
    if kept is not None and kept.id == key_id:
        return kept
    found = f"the one in {VARIABLE}" if given else f"the one in {key_file}" if in_file else ""
    raise SecretsKeyError(
        f"the secrets in {path} need another key than {found}: set {VARIABLE} to theirs"
        if found
        else f"the key to the secrets in {path} is gone: it is in none of {VARIABLE}, {key_file} "
        "and the system's keyring. Without it nobody can read them: put the key back, or move the "
        "file away and set the secrets again"
    )


def new_key(key_file: str) -> Key:
    """The key for a new file of secrets, kept durably before anything is sealed with it. The lock
    is held. Raises SecretsKeyError."""
    key = given_key() or _from_file(key_file)
    if key is None:
        key = Key(os.urandom(KEY_BYTES))
        if not _to_keyring(key):
            files.replace(key_file, _text(key).encode() + b"\n")
            _from_file(key_file)  # which refuses it here where it would be refused later
    return key


def given_key() -> Key | None:
    """That of CONDUCTO_SECRETS_KEY."""
    if not os.environ.get(VARIABLE):
        return None
    return _checked(_parsed(os.environ[VARIABLE]), VARIABLE)


def _from_file(path: str) -> Key | None:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    if mode & 0o077:
        raise SecretsKeyError(
            f"others may use the key in {path} ({stat.filemode(mode)}): chmod 600 it or, where the "
            f"file system has no permission bits (FAT), set {VARIABLE} to it and remove the file"
        )
    raw = files.read(path, _TEXT_BYTES_MAX)
    return None if raw is None else _checked(_parsed(raw.decode("ascii", "replace")), path)


def _checked(key: Key | None, where: str) -> Key:
    if key is None:
        raise SecretsKeyError(
            f"what is in {where} is no key: that is {KEY_BYTES} random bytes, in base64 (as "
            f"`openssl rand -base64 {KEY_BYTES}` prints them) or in hexadecimal"
        )
    return key


def _parsed(text: str) -> Key | None:
    # Raises nothing: what it was given would be in the traceback.
    text = text.strip()
    try:
        if re.fullmatch("[0-9A-Fa-f]{64}", text):
            return Key(bytes.fromhex(text))
        padded = text + "=" * (-len(text) % 4)
        material = base64.b64decode(padded.translate(str.maketrans("-_", "+/")), validate=True)
    except (binascii.Error, ValueError):
        return None
    return Key(material) if len(material) == KEY_BYTES else None


def _text(key: Key) -> str:
    return base64.b64encode(key.material).decode()


def _from_keyring(key_id: bytes) -> Key | None:
    keyring = _keyring()
    if keyring is None:
        return None
    try:
        text = keyring.get_password(SERVICE, key_id.hex())
    except Exception as error:  # each keyring has its own
        raise _refused(keyring, "does not give the key of the secrets", error) from error
    return None if text is None else _parsed(text)


def _to_keyring(key: Key) -> bool:
    """Whether there is one, which then has the key."""
    keyring = _keyring()
    if keyring is None:
        return False
    try:
        keyring.set_password(SERVICE, key.id.hex(), _text(key))
    except Exception as error:
        reason = _refused(keyring, "does not take the key of the secrets", error)
    else:
        return True
    raise reason  # without what was raised, whose frames have the key


def _refused(keyring: Any, what: str, error: Exception) -> SecretsKeyError:
    return SecretsKeyError(
        f"the system's keyring ({type(keyring).__name__}) {what}: {type(error).__name__}. Unlock "
        f"it, or set {VARIABLE}; with PYTHON_KEYRING_BACKEND=keyring.backends.null.Keyring the key "
        "is kept in a file"
    )


def _keyring() -> Any:
    """The system's, if the package keyring is installed and finds one that is safe."""
    try:
        import keyring
    except ModuleNotFoundError:
        return None
    backend = keyring.get_keyring()
    return backend if backend.priority >= KEYRING_PRIORITY_MIN else None
