"""The bytes of a file of secrets, sealed by AES-256-GCM.

    offset  bytes
    0       8      magic, "CONDSECR"
    8       1      version, 1
    9       16     the key's id: HMAC-SHA256(key, "conducto secrets: key id"), its first 16 bytes
    25      12     nonce, random at each write
    37      n      ciphertext of the contents, with GCM's tag in its last 16 bytes; the 37 bytes
                   before are authenticated with it
    37 + n  16     SHA-256 of all that is before, its first 16 bytes

The checksum tells damage, and the key's id a wrong key, before anything is decrypted. What both
take for good and the tag does not was changed on purpose.

The contents are JSON in UTF-8: {"user": {KEY: {"value": VALUE, "mask": true}, ...}, "org": {...}}.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Iterable
from typing import Any

from castore.errors import UnsupportedFormat
from conducto.errors import InvalidSecret, SecretsDamaged, SecretsUnavailable
from conducto.secrets.values import SCOPES, Secret, SecretKey

MAGIC = b"CONDSECR"
VERSION = 1
KEY_BYTES = 32
KEY_ID_BYTES = 16
NONCE_BYTES = 12
TAG_BYTES = 16
CHECKSUM_BYTES = 16
HEAD_BYTES = len(MAGIC) + 1 + KEY_ID_BYTES + NONCE_BYTES
FILE_BYTES_MAX = 64 << 20

_KEY_ID_OF = b"conducto secrets: key id"

Contents = dict[SecretKey, Secret]


class Key:
    """The 32 bytes of a key, which its repr does not show."""

    __slots__ = ("id", "material")

    def __init__(self, material: bytes) -> None:
        assert len(material) == KEY_BYTES
        self.material = material
        self.id: bytes = hmac.digest(material, _KEY_ID_OF, "sha256")[:KEY_ID_BYTES]

    def __repr__(self) -> str:
        return f"<Key {self.id.hex()}>"


def seal(contents: Contents, key: Key) -> bytes:
    """The file's bytes. Raises InvalidSecret for more than can be read again."""
    nonce = os.urandom(NONCE_BYTES)
    head = MAGIC + bytes((VERSION,)) + key.id + nonce
    body: bytes = head + _cipher(key).encrypt(nonce, _encoded(contents), head)
    if len(body) + CHECKSUM_BYTES > FILE_BYTES_MAX:
        raise InvalidSecret(f"these are more secrets than a file holds, {FILE_BYTES_MAX:,} bytes")
    return body + _checksum(body)


def key_id(sealed: bytes, path: str) -> bytes:
    """Which key it needs. Raises UnsupportedFormat, SecretsDamaged."""
    if len(sealed) >= len(MAGIC) + 1 and sealed.startswith(MAGIC):
        version = sealed[len(MAGIC)]
        if version > VERSION and _is_whole(sealed):
            raise UnsupportedFormat(
                f"{path} is of version {version}, which a newer conducto wrote: update this one"
            )
    if not _is_whole(sealed) or not sealed.startswith(MAGIC + bytes((VERSION,))):
        raise SecretsDamaged(path, "its checksum does not fit")
    return sealed[len(MAGIC) + 1 :][:KEY_ID_BYTES]


def unseal(sealed: bytes, key: Key, path: str) -> Contents:
    """What was sealed. `key` is the one that `key_id` asks for. Raises SecretsDamaged."""
    head, body = sealed[:HEAD_BYTES], sealed[HEAD_BYTES:-CHECKSUM_BYTES]
    contents = _decrypted(key, head, body)
    if contents is None:
        raise SecretsDamaged(path, "it was changed by someone who does not have its key")
    return contents


def require_cryptography() -> None:
    """Raises SecretsUnavailable, which says how to install it."""
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError:
        raise SecretsUnavailable(
            "secrets on this machine are encrypted by the package cryptography, which is not "
            "installed: pip install 'castore[secrets]'"
        ) from None


def _decrypted(key: Key, head: bytes, body: bytes) -> Contents | None:
    # Errors of decoding hold what they could not decode: none of them leaves.
    from cryptography.exceptions import InvalidTag

    try:
        return _decoded(_cipher(key).decrypt(head[-NONCE_BYTES:], body, head))
    except (InvalidTag, ValueError, KeyError, TypeError, AttributeError):
        return None


def _cipher(key: Key) -> Any:
    require_cryptography()
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key.material)


def _encoded(contents: Contents) -> bytes:
    found: dict[str, dict[str, Any]] = {scope: {} for scope in SCOPES}
    for secret in contents.values():
        found[secret.scope][secret.key] = {"value": secret.value, "mask": secret.mask}
    return json.dumps(found).encode()


def _decoded(raw: bytes) -> Contents:
    found = json.loads(raw)
    secrets = (
        Secret(key, fields["value"], scope, fields["mask"])
        for scope in SCOPES
        for key, fields in found[scope].items()
    )
    return by_key(secrets)


def by_key(secrets: Iterable[Secret]) -> Contents:
    return {SecretKey(secret.key, secret.scope): secret for secret in secrets}


def _is_whole(sealed: bytes) -> bool:
    return (
        len(sealed) >= HEAD_BYTES + TAG_BYTES + CHECKSUM_BYTES
        and _checksum(sealed[:-CHECKSUM_BYTES]) == sealed[-CHECKSUM_BYTES:]
    )


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:CHECKSUM_BYTES]
