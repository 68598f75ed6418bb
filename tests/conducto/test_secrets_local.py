"""Secrets on this machine: an encrypted file, its key, and what befalls both."""

from __future__ import annotations

import base64
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from castore.errors import UnsupportedFormat
from conducto import secrets
from conducto.errors import (
    InvalidSecret,
    SecretNotFound,
    SecretsDamaged,
    SecretsError,
    SecretsKeyError,
    SecretsUnavailable,
)
from conducto.secrets import Secret, SecretKey, files, sealed
from conducto.secrets.local import LocalSecrets
from conducto.secrets.values import SCOPES, check_secret

VALUE = "s3kr1t-of-nobody"
KEY = base64.b64encode(b"k" * 32).decode()


@pytest.fixture(autouse=True)
def on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CONDUCTO_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CONDUCTO_BASE_DIR", str(tmp_path / "base"))
    monkeypatch.setitem(sys.modules, "keyring", None)  # not installed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "base" / "default"


@pytest.fixture
def kept(folder: Path) -> LocalSecrets:
    return LocalSecrets(str(folder))


def everything(kept: LocalSecrets) -> dict[tuple[str, str], str]:
    return {(secret.scope, secret.key): secret.value for secret in kept.read(SCOPES)}


def test_put_read_delete(kept: LocalSecrets, folder: Path) -> None:
    assert everything(kept) == {}
    assert not folder.exists()  # who has no secrets gets no files
    kept.put([Secret("A", VALUE), Secret("B", "two\nlines\n", "org", mask=False)])
    kept.put([Secret("A", "anew"), Secret("A", VALUE, "org")])
    assert kept.read(["org"]) == [
        Secret("B", "two\nlines\n", "org", mask=False),
        Secret("A", VALUE, "org"),
    ]
    assert secrets.environment() == {"A": "anew", "B": "two\nlines\n"}
    kept.put([Secret("C", "c", "org")], replaced=["org"])
    assert everything(kept) == {("user", "A"): "anew", ("org", "C"): "c"}
    with pytest.raises(SecretNotFound, match=r"no secret C \(user\): nothing was deleted"):
        kept.delete([SecretKey("A"), SecretKey("C")])
    kept.delete([SecretKey("C", "org")])
    assert everything(kept) == {("user", "A"): "anew"}


def test_profiles_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets.backend(profile="one").put([Secret("A", VALUE)])
    assert secrets.for_nodes(profile="one").environment == {"A": VALUE}
    assert secrets.environment() == {}


def test_values_too_short_to_be_looked_for() -> None:
    short = [Secret("A", "i\n\n\n"), Secret("B", " x    y "), Secret("C", "abc")]
    known = secrets.NodeSecrets([*short, Secret("D", "abcd"), Secret("E", VALUE, mask=False)])
    assert known.found_in(f"x y is in abc {VALUE}".encode()) == []
    assert known.found_in(b"it is in <abcd>") == ["D"]


def test_files_are_for_the_owner_alone(kept: LocalSecrets, folder: Path) -> None:
    before = os.umask(0)
    try:
        kept.put([Secret("A", VALUE)])
    finally:
        os.umask(before)
    assert sorted(os.listdir(folder)) == ["secrets", "secrets.key", "secrets.lock"]
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert VALUE.encode() not in path.read_bytes()
        assert b'"A"' not in path.read_bytes()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / "secrets.key").chmod(0o640)
    with pytest.raises(SecretsKeyError, match=r"others may use the key .*-rw-r-----.*chmod 600"):
        everything(kept)


def test_a_folder_whose_file_system_has_no_permission_bits(
    kept: LocalSecrets, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As FAT's: no chmod helps there. Nothing is sealed with a key that is not taken again."""

    def all_may_read(path: str, **options: Any) -> os.stat_result:
        found = stat_of(path, **options)
        return os.stat_result((found.st_mode | 0o077, *found[1:]))

    stat_of = os.stat
    monkeypatch.setattr(os, "stat", all_may_read)
    for _ in range(2):
        with pytest.raises(SecretsKeyError, match=r"FAT.*set CONDUCTO_SECRETS_KEY"):
            kept.put([Secret("A", VALUE)])
    assert not (folder / "secrets").exists()
    monkeypatch.setenv("CONDUCTO_SECRETS_KEY", (folder / "secrets.key").read_text().strip())
    kept.put([Secret("A", VALUE)])
    assert everything(kept) == {("user", "A"): VALUE}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_makes_in_somebodys_folder_is_theirs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CONDUCTO_BASE_DIR", str(tmp_path / "home" / "base"))
    (tmp_path / "home").mkdir()
    os.chown(tmp_path / "home", 54321, 12345)
    secrets.backend().put([Secret("A", VALUE)])
    made = list((tmp_path / "home").rglob("*"))
    assert len(made) == 5
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(54321, 12345)}


def test_what_is_refused() -> None:
    for key in ("", "1A", "A-B", "A B", "A=b", "Ä", "A" * 129, None, 7):
        with pytest.raises(InvalidSecret, match="called like a variable"):
            check_secret(Secret(key, VALUE))  # type: ignore[arg-type]
    for key in ("PATH", "LD_PRELOAD", "CONDUCTO_SECRETS_KEY", "PYTHONPATH"):
        with pytest.raises(InvalidSecret, match="nodes would run something else"):
            check_secret(Secret(key, VALUE))
    for value, why in {
        "": "is empty",
        " \n": "is empty",
        "a\0b": "has a NUL",
        "a\udc80": "is not valid Unicode",
        "x" * 8001: "has more than 8,000 bytes",
        7: "is not a str",
    }.items():
        with pytest.raises(InvalidSecret, match=f"^the value of the secret A {why}"):
            check_secret(Secret("A", value))  # type: ignore[arg-type]
    with pytest.raises(InvalidSecret, match='scope of a secret is "user" or "org"'):
        check_secret(Secret("A", VALUE, "team"))
    check_secret(Secret("_a1", "x" * 8000))


class TestKey:
    @pytest.mark.parametrize("text", [KEY, KEY.rstrip("="), (b"k" * 32).hex(), f" {KEY}\n"])
    def test_from_the_environment(
        self, kept: LocalSecrets, folder: Path, monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        monkeypatch.setenv("CONDUCTO_SECRETS_KEY", text)
        kept.put([Secret("A", VALUE)])
        monkeypatch.setenv("CONDUCTO_SECRETS_KEY", KEY)
        assert everything(kept) == {("user", "A"): VALUE}
        assert not (folder / "secrets.key").exists()
        monkeypatch.delenv("CONDUCTO_SECRETS_KEY")
        with pytest.raises(SecretsKeyError, match=r"the key to the secrets in .* is gone"):
            everything(kept)

    def test_that_is_wrong(self, kept: LocalSecrets, monkeypatch: pytest.MonkeyPatch) -> None:
        kept.put([Secret("A", VALUE)])
        monkeypatch.setenv("CONDUCTO_SECRETS_KEY", KEY)
        wrong = "need another key than the one in CONDUCTO_SECRETS_KEY"
        with pytest.raises(SecretsKeyError, match=wrong):
            everything(kept)
        with pytest.raises(SecretsKeyError, match=wrong):  # and nothing is lost by a put
            kept.put([Secret("B", VALUE)])
        monkeypatch.delenv("CONDUCTO_SECRETS_KEY")
        assert everything(kept) == {("user", "A"): VALUE}

    @pytest.mark.parametrize("text", ["hunter/2", KEY[:-4], "ü" * 32, "aa" * 31, KEY * 2])
    def test_that_is_none(
        self, kept: LocalSecrets, monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        monkeypatch.setenv("CONDUCTO_SECRETS_KEY", text)
        with pytest.raises(SecretsKeyError, match="openssl rand -base64 32") as caught:
            kept.put([Secret("A", VALUE)])
        assert text not in with_locals(caught.value)

    def test_file_that_is_gone_or_another(self, kept: LocalSecrets, folder: Path) -> None:
        kept.put([Secret("A", VALUE)])
        key = (folder / "secrets.key").read_bytes()
        (folder / "secrets.key").unlink()
        with pytest.raises(SecretsKeyError, match="is gone"):
            kept.put([Secret("A", "b")])
        assert not (folder / "secrets.key").exists()  # no new one beside old secrets
        (folder / "secrets.key").write_text(KEY)
        (folder / "secrets.key").chmod(0o600)
        with pytest.raises(SecretsKeyError, match=r"need another key than .*secrets\.key"):
            everything(kept)
        (folder / "secrets.key").write_bytes(key)
        assert everything(kept) == {("user", "A"): VALUE}

    def test_is_masked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nodes have it, and may print all that they have."""
        monkeypatch.setenv("CONDUCTO_SECRETS_KEY", KEY)
        masker = secrets.for_nodes().masker()
        assert (
            masker.feed(f"CONDUCTO_SECRETS_KEY={KEY}\n".encode()) == b"CONDUCTO_SECRETS_KEY=***\n"
        )


class Keyring:
    """As the package's backends are."""

    priority: ClassVar[float] = 5
    locked = False

    def __init__(self) -> None:
        self.passwords: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        if self.locked:
            raise RuntimeError("locked")
        return self.passwords.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        if self.locked:
            raise RuntimeError(f"can't keep {password}")
        self.passwords[service, username] = password


class TestKeyring:
    @pytest.fixture(autouse=True)
    def keyring(self, monkeypatch: pytest.MonkeyPatch) -> Keyring:
        backend = Keyring()
        module = types.ModuleType("keyring")
        module.get_keyring = lambda: backend  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "keyring", module)
        return backend

    def test_has_the_key(self, kept: LocalSecrets, folder: Path, keyring: Keyring) -> None:
        kept.put([Secret("A", VALUE)])
        kept.put([Secret("B", VALUE)])
        assert not (folder / "secrets.key").exists()
        [(service, key_id)] = keyring.passwords
        assert service == "conducto secrets"
        assert bytes.fromhex(key_id) in (folder / "secrets").read_bytes()
        assert everything(LocalSecrets(str(folder))) == {("user", "A"): VALUE, ("user", "B"): VALUE}
        keyring.passwords.clear()
        with pytest.raises(SecretsKeyError, match="is gone"):
            everything(kept)

    def test_that_is_locked(self, kept: LocalSecrets, folder: Path, keyring: Keyring) -> None:
        keyring.locked = True
        with pytest.raises(SecretsKeyError, match=r"does not take the key .*Unlock it") as caught:
            kept.put([Secret("A", VALUE)])
        assert "can't keep" not in with_locals(caught.value)
        assert not (folder / "secrets").exists()
        keyring.locked = False
        kept.put([Secret("A", VALUE)])
        keyring.locked = True
        with pytest.raises(SecretsKeyError, match="does not give the key"):
            everything(kept)

    def test_that_is_none(
        self, kept: LocalSecrets, folder: Path, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Keyring, "priority", 0.5)  # a plain file
        kept.put([Secret("A", VALUE)])
        assert (folder / "secrets.key").exists()
        assert keyring.passwords == {}

    def test_key_file_that_was_there_first(
        self, kept: LocalSecrets, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "keyring", None)
            kept.put([Secret("A", VALUE)])
        kept.put([Secret("B", VALUE)])
        assert set(everything(kept)) == {("user", "A"), ("user", "B")}
        assert keyring.passwords == {}


class TestDamage:
    def test_any_byte(self, kept: LocalSecrets, folder: Path) -> None:
        kept.put([Secret("A", VALUE)])
        path = folder / "secrets"
        whole = path.read_bytes()
        for at in range(len(whole)):
            path.write_bytes(whole[:at] + bytes((whole[at] ^ 1 << at % 8,)) + whole[at + 1 :])
            with pytest.raises(SecretsDamaged, match="its checksum does not fit"):
                everything(kept)
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            with pytest.raises(SecretsDamaged, match="restore the file from a backup"):
                kept.put([Secret("B", VALUE)])
            assert path.read_bytes() == whole[:size]  # it was left as it is
        path.write_bytes(whole)
        assert everything(kept) == {("user", "A"): VALUE}

    def test_on_purpose(self, kept: LocalSecrets, folder: Path) -> None:
        """Somebody without the key can make the checksum fit, and no more."""
        kept.put([Secret("A", VALUE)])
        path = folder / "secrets"
        body = path.read_bytes()[: -sealed.CHECKSUM_BYTES]
        for at in (9 + 16, 37, len(body) - 1):  # the nonce, what is sealed, its tag
            forged = body[:at] + bytes((body[at] ^ 1,)) + body[at + 1 :]
            path.write_bytes(forged + sealed._checksum(forged))
            with pytest.raises(SecretsDamaged, match="by someone who does not have its key") as it:
                everything(kept)
            assert VALUE not in with_locals(it.value)

    def test_contents_that_make_no_sense(self) -> None:
        key = sealed.Key(bytes(32))
        for raw in (b"{}", b"[]", b'{"user": [], "org": 3}', b"\xff", b'{"user": {"A": 1}}'):
            head = sealed.MAGIC + bytes((sealed.VERSION,)) + key.id + bytes(12)
            cipher = sealed._cipher(key)
            body = head + cipher.encrypt(bytes(12), raw, head)
            with pytest.raises(SecretsDamaged):
                sealed.unseal(body + sealed._checksum(body), key, "x")

    def test_newer_version(self, kept: LocalSecrets, folder: Path) -> None:
        kept.put([Secret("A", VALUE)])
        body = bytearray((folder / "secrets").read_bytes()[: -sealed.CHECKSUM_BYTES])
        body[8] = 2
        (folder / "secrets").write_bytes(body + bytes(sealed.CHECKSUM_BYTES))
        with pytest.raises(SecretsDamaged, match="its checksum does not fit"):
            everything(kept)
        (folder / "secrets").write_bytes(bytes(body) + sealed._checksum(bytes(body)))
        with pytest.raises(
            UnsupportedFormat, match="is of version 2, which a newer conducto wrote"
        ):
            kept.put([Secret("A", VALUE)])

    def test_the_bytes_are_as_documented(self) -> None:
        """A file of version 1, as it is read for good."""
        raw = base64.b64decode(GOLDEN)
        key = sealed.Key(bytes(range(32)))
        assert sealed.key_id(raw, "x") == key.id
        assert list(sealed.unseal(raw, key, "x").values()) == [
            Secret("A", "ü", "user"),
            Secret("B", "b", "org", mask=False),
        ]


GOLDEN = (
    "Q09ORFNFQ1IBB+JqedjSzki4+QR0NiBIYQABAgMEBQYHCAkKCzwgo2igl+AhrTq1ypPTWBahoOZY"
    "hR59RhhFufAtWWbRIzyO3sKgYfNWnl+Z+vJNRZN1QK81pMT4BbdRO1rBz86LHrAbv6RDQyZ0iAzN"
    "oy7KVeu6CVRZcw6cke2pBY3Euhpm70JLaOqIey3FWg6QlPvwUgPqhzf1p8SuHrDFH/I="
)


def test_more_than_can_be_read_is_not_written(
    kept: LocalSecrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.put([Secret("A", VALUE)])
    size = os.path.getsize(kept.path)
    monkeypatch.setattr(sealed, "FILE_BYTES_MAX", size)
    with pytest.raises(InvalidSecret, match="more secrets than a file holds"):
        kept.put([Secret("B", VALUE)])
    assert everything(kept) == {("user", "A"): VALUE}
    kept.put([Secret("A", VALUE[::-1])])
    assert os.path.getsize(kept.path) == size
    monkeypatch.setattr(sealed, "FILE_BYTES_MAX", size - 1)
    with pytest.raises(InvalidSecret, match="more secrets than a file holds"):
        sealed.seal(sealed.by_key([Secret("A", VALUE)]), sealed.Key(bytes(32)))


def put_many(folder: str, worker: int, count: int) -> None:
    for n in range(count):
        LocalSecrets(folder).put([Secret(f"W{worker}_{n}", str(n))])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_processes_that_put_at_once_lose_nothing(kept: LocalSecrets, folder: Path) -> None:
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=put_many, args=(str(folder), each, 15)) for each in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert set(everything(kept)) == {("user", f"W{w}_{n}") for w in range(4) for n in range(15)}
    assert sorted(os.listdir(folder)) == ["secrets", "secrets.key", "secrets.lock"]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("step", range(1, 12))
def test_killed_at_any_step(
    kept: LocalSecrets, folder: Path, monkeypatch: pytest.MonkeyPatch, step: int, first: bool
) -> None:
    """In a child that dies there as by kill -9: what was there is there, or what was put."""
    if not first:
        kept.put([Secret("A", VALUE)])
    before = everything(kept)
    child = os.fork()
    if not child:
        left = [step]

        def dying(call: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*args: Any, **named: Any) -> Any:
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **named)

            return counted

        for name in ("open", "fsync", "rename"):
            setattr(os, name, dying(getattr(os, name)))
        kept.put([Secret("B", VALUE)])
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    after = {**before, ("user", "B"): VALUE}
    found = everything(kept)
    assert found in (before, after)
    if os.WIFEXITED(status):
        assert found == after
    kept.put([Secret("C", VALUE)])
    assert everything(kept) == {**found, ("user", "C"): VALUE}
    assert sorted(os.listdir(folder)) == ["secrets", "secrets.key", "secrets.lock"]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="asks /proc what is open")
def test_it_is_durable(kept: LocalSecrets, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this order: what was written, all of it, its name, and before both the key."""
    said: list[str] = []
    synced_bytes: list[int] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        said.append("sync " + ("draft" if path.endswith(".draft") else os.path.basename(path)))
        if path.endswith(".draft"):
            synced_bytes.append(os.fstat(fd).st_size)
        fsync(fd)

    def noted_rename(source: str, target: str) -> None:
        said.append("rename " + os.path.basename(target))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    kept.put([Secret("A", VALUE)])
    replaced = ["sync draft", "rename secrets.key", "sync default"]
    assert said[-6:] == [*replaced, "sync draft", "rename secrets", "sync default"]
    assert said[:-6] == [f"sync {folder.parent.parent.name}", "sync base"]  # folders just made
    written = [(folder / name).stat().st_size for name in ("secrets.key", "secrets")]
    assert synced_bytes == written


def test_drafts_that_are_not_ours_stay(kept: LocalSecrets, folder: Path) -> None:
    kept.put([Secret("A", VALUE)])
    theirs = (".secrets.swp", ".other.0123456789abcdef.draft", "secrets.draft")
    for name in (*theirs, ".secrets.0123456789abcdef.draft"):
        (folder / name).write_bytes(b"")
    kept.put([Secret("B", VALUE)])
    ours = ("secrets", "secrets.key", "secrets.lock")
    assert sorted(os.listdir(folder)) == sorted([*ours, *theirs])


@pytest.mark.parametrize("times", [1, 99])
def test_full_disk(
    kept: LocalSecrets, folder: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    kept.put([Secret("A", VALUE)])
    fsync, left = os.fsync, times

    def full(fd: int) -> None:
        nonlocal left
        if not left:
            return fsync(fd)
        left -= 1
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        kept.put([Secret("B", VALUE)])
    assert VALUE not in with_locals(caught.value)
    monkeypatch.undo()
    assert everything(LocalSecrets(str(folder))) == {("user", "A"): VALUE}
    assert sorted(os.listdir(folder)) == ["secrets", "secrets.key", "secrets.lock"]


def test_without_cryptography(kept: LocalSecrets) -> None:
    """One line, with the remedy; and who has no secrets does not need it."""
    program = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from conducto import errors, secrets\n"
        "print(secrets.environment())\n"
        "try: secrets.backend().put([secrets.Secret('A', 'b')])\n"
        "except errors.SecretsUnavailable as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    nothing, said = done.stdout.splitlines()
    assert nothing == "{}"
    assert "pip install 'castore[secrets]'" in said
    kept.put([Secret("A", VALUE)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cryptography", None)
        with pytest.raises(SecretsUnavailable, match="pip install"):
            everything(kept)


def with_locals(error: BaseException) -> str:
    """All that a report of the error could show: the locals of the frames of conducto, and what is
    behind it."""
    found = traceback.TracebackException.from_exception(error, capture_locals=True)
    said = ""
    while found is not None:
        frames = [frame for frame in found.stack if f"{os.sep}conducto{os.sep}" in frame.filename]
        frames = [frame for frame in frames if f"{os.sep}tests{os.sep}" not in frame.filename]
        said += "".join(found.format_exception_only()) + repr([f.locals for f in frames])
        found = found.__cause__ or found.__context__
    return said


def test_nothing_shows_a_value() -> None:
    secret = Secret("A", VALUE)
    shown = f"{secret} {secret!r} {[secret]} {secrets.NodeSecrets([secret])} {SecretsError(secret)}"
    assert VALUE not in shown
    assert "A" in shown
    assert not hasattr(secret, "__dict__")
    assert repr(sealed.Key(b"k" * 32)).count("k") == 0
