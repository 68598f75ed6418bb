"""`castore doctor`: what it looks at, what it says, its exit code."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from servers import Server

import castore
from castore.cli import doctor_places, doctor_s3, exits, main
from castore.cli.output import human_size
from castore.errors import AccessDenied, FormatError, NotAStore, StoreIOError
from castore.s3.client import probe
from castore.s3.client.bucket import Bucket
from castore.s3.client.probe import ServerFeatures
from castore.system.lmdb_env import index_folders

pytest_plugins = ["servers"]

Checks = dict[str, dict[str, str]]
Doctor = Callable[..., tuple[int, Checks]]


@pytest.fixture
def examine(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Doctor:
    """(exit code, checks by what was looked at); nothing on stderr."""
    monkeypatch.delenv("CASTORE_STORE", raising=False)
    monkeypatch.setenv("CASTORE_CACHE_DIR", str(tmp_path / "cache"))

    def examine(place: object) -> tuple[int, Checks]:
        code = main(["doctor", "--json", str(place)])
        out, err = capsys.readouterr()
        assert err == ""
        checks = [json.loads(line) for line in out.splitlines()]
        assert all(set(check) == {"what", "verdict", "found", "means"} for check in checks)
        return code, {check["what"]: check for check in checks}

    return examine


def verdicts(checks: Checks) -> dict[str, str]:
    return {what: check["verdict"] for what, check in checks.items()}


class TestFolder:
    def test_a_store_without_its_packs(self, examine: Doctor, tmp_path: Path) -> None:
        with castore.open(tmp_path / "store") as store:
            store.puts("x", os.urandom(100_000))
        (tmp_path / "store" / "packs").rename(tmp_path / "not mounted")
        code, checks = examine(tmp_path / "store")
        assert (code, verdicts(checks)["packs"]) == (exits.FAILURE, "problem")
        (tmp_path / "not mounted").rename(tmp_path / "store" / "packs")
        assert examine(tmp_path / "store")[0] == exits.OK

    @pytest.mark.damages_store("its journal or packs can't be read")
    @pytest.mark.parametrize("part", ["packs", "journal"])
    def test_a_store_of_which_a_folder_cannot_be_read(
        self, examine: Doctor, tmp_path: Path, part: str
    ) -> None:
        """That is a problem like another, and what else there is to say is said."""
        with castore.open(tmp_path / "store") as store:
            store.puts("x", os.urandom(100_000))
        (tmp_path / "store" / part).rename(tmp_path / part)
        (tmp_path / "store" / part).symlink_to(part)  # a loop, which root can't read either
        code, checks = examine(tmp_path / "store")
        assert code == exits.FAILURE
        assert any(f"/{part}" in each["found"] for each in checks.values())
        assert "file system" in checks

    @pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), NotAStore("is another")])
    @pytest.mark.parametrize(
        ("what", "call"),
        [
            ("folder", "castore.open"),
            ("folder", "castore.store.Store.stats"),
            ("journal", "castore.cli.doctor.judge"),
        ],
    )
    def test_what_fails_is_one_of_the_things_that_are_told(
        self,
        examine: Doctor,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        what: str,
        call: str,
        error: Exception,
    ) -> None:
        castore.open(tmp_path / "store").close()
        before = {*index_folders()}  # what other tests have left open

        def fails(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(call, fails)
        code, checks = examine(tmp_path / "store")
        assert (code, verdicts(checks)[what]) == (exits.FAILURE, "problem")
        assert str(error.args[-1]) in checks[what]["found"]
        assert "file system" in checks
        assert before >= {*index_folders()}

    def test_a_journal_that_is_not_as_it_was_written(
        self, examine: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        castore.open(tmp_path / "store").close()

        def fails(*_: object) -> None:
            raise FormatError("a log is damaged")

        monkeypatch.setattr("castore.cli.doctor.judge", fails)
        code, checks = examine(tmp_path / "store")
        assert (code, checks["journal"]["found"]) == (exits.FAILURE, "a log is damaged")
        assert "castore check --repair" in checks["journal"]["means"]

    def test_it_changes_nothing(self, examine: Doctor, tmp_path: Path) -> None:
        """A lock file that root makes here would keep the store's owner from writing to it."""
        with castore.open(tmp_path / "store") as store:
            store.puts("x", b"1")
        (tmp_path / "store" / "index" / "lock.mdb").unlink(missing_ok=True)

        def state() -> dict[Path, tuple[int, int]]:
            paths = sorted((tmp_path / "store").rglob("*"))
            return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}

        before = state()
        assert examine(tmp_path / "store")[0] == exits.OK
        assert state() == before

    def test_a_store_that_was_moved_into_another(self, examine: Doctor, tmp_path: Path) -> None:
        """It is there already, and opened as it is."""
        for name in ("outer", "inner"):
            castore.open(tmp_path / name).close()
        (tmp_path / "inner").rename(tmp_path / "outer" / "inner")
        castore.open(tmp_path / "outer" / "inner", create=False).close()
        code, checks = examine(tmp_path / "outer" / "inner")
        assert (code, checks["folder"]["found"]) == (exits.OK, "a store of no objects")

    def test_below_what_cannot_be_written_to_no_store_can_be_made(
        self, examine: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_bytes(b"")
        code, checks = examine(tmp_path / "file" / "a" / "b")
        assert (code, verdicts(checks)["folder"]) == (exits.FAILURE, "problem")
        assert f"{tmp_path / 'file'} can't be written to" in checks["folder"]["found"]
        for denied in (os.W_OK, os.X_OK):
            monkeypatch.setattr(os, "access", lambda path, mode, no=denied: not mode & no)
            code, checks = examine(tmp_path / "a" / "b")
            assert (code, verdicts(checks)["folder"]) == (exits.FAILURE, "problem")
            assert f"{tmp_path} can't be written to" in checks["folder"]["found"]

    def test_where_a_store_can_be_made_and_where_not(self, examine: Doctor, tmp_path: Path) -> None:
        """As a put finds then."""
        begun = tmp_path / "begun"  # a creation that was cut off
        begun.mkdir()
        (begun / "castore.lock").touch()
        assert verdicts(examine(begun)[1])["folder"] == "ok"
        castore.open(begun).close()
        for inside in (begun / "x", begun / "packs"):
            code, checks = examine(inside)
            assert (code, "inside the store" in checks["folder"]["found"]) == (1, True)
            with pytest.raises(castore.errors.NotAStore):
                castore.open(inside)

    def test_a_store(self, examine: Doctor, tmp_path: Path) -> None:
        with castore.open(tmp_path / "store") as store:
            store.puts("x", b"1")
        code, checks = examine(tmp_path / "store")
        assert code == exits.OK
        assert checks["folder"]["found"] == "a store of 1 object"
        assert verdicts(checks)["index"] == verdicts(checks)["permissions"] == "ok"
        assert set(checks) >= {"file system", "free space", "C extension"}

    def test_none_yet(self, examine: Doctor, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        for place, said in (("a/b/c", "not there yet"), ("empty", "empty: the first put")):
            code, checks = examine(tmp_path / place)
            assert (code, verdicts(checks)["folder"]) == (exits.OK, "ok")
            assert said in checks["folder"]["found"]
        assert os.listdir(tmp_path) == ["empty"]  # nothing was made

    def test_an_empty_folder_that_cannot_be_written_to(
        self, examine: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
        code, checks = examine(tmp_path)
        assert (code, verdicts(checks)["folder"]) == (exits.FAILURE, "problem")
        assert str(tmp_path) in checks["folder"]["means"]

    def test_what_is_no_store(self, examine: Doctor, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        os.mkfifo(tmp_path / "pipe")
        for place, said in ((".", "not empty"), ("file", "is a file"), ("pipe", "is a file")):
            code, checks = examine(tmp_path / place)
            assert (code, verdicts(checks)["folder"]) == (exits.FAILURE, "problem")
            assert said in checks["folder"]["found"]

    def test_the_journal(self, examine: Doctor, tmp_path: Path) -> None:
        """How it stands, and what is to be done: which is so afterwards."""
        folder = tmp_path / "store"
        castore.open(folder).close()
        assert examine(folder)[1]["journal"]["found"].startswith("none yet")
        with castore.open(folder) as store:
            store.puts("x", b"1")
            journal = examine(folder)[1]["journal"]
            assert journal["verdict"] == "ok"
            assert journal["found"].startswith("has every name, generation 1, ")
            store.puts("y", b"2")
        log = next((folder / "journal").glob("*.log"))
        os.truncate(log, log.stat().st_size - 100)
        code, checks = examine(folder)
        assert (code, checks["journal"]["verdict"]) == (exits.OK, "warning")
        assert "generation 1, " in checks["journal"]["found"]
        assert "transactions 2 to 2 are missing" in checks["journal"]["found"]
        assert "castore gc" in checks["journal"]["means"]
        shutil.rmtree(folder / "journal")
        journal = examine(folder)[1]["journal"]
        assert (journal["verdict"], journal["found"]) == ("warning", "none")
        assert "castore gc" in journal["means"]
        with castore.open(folder) as store:
            store.gc()
        assert examine(folder)[1]["journal"]["found"].startswith("has every name, generation 2, ")

    def test_a_journal_whose_files_the_disk_does_not_tell_of(
        self, examine: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is one of the things that are told, and what comes behind it is, too."""
        with castore.open(tmp_path / "store") as store:
            store.puts("x", b"1")

        def fails(folder: str) -> int:
            raise StoreIOError(f"{folder}: Input/output error")

        monkeypatch.setattr("castore.cli.doctor.journal_bytes", fails)
        code, checks = examine(tmp_path / "store")
        assert (code, verdicts(checks)["journal"]) == (exits.FAILURE, "problem")
        assert "Input/output error" in checks["journal"]["found"]
        assert list(checks)[-1] != "journal"

    def test_an_index_that_is_older_than_the_journal(self, examine: Doctor, tmp_path: Path) -> None:
        folder = tmp_path / "store"
        with castore.open(folder) as store:
            store.puts("x", b"1")
        shutil.copytree(folder / "index", tmp_path / "old")
        with castore.open(folder) as store:
            store.puts("y", b"2")
        shutil.rmtree(folder / "index")
        shutil.copytree(tmp_path / "old", folder / "index")
        code, checks = examine(folder)
        assert (code, checks["journal"]["verdict"]) == (exits.OK, "warning")
        assert "index rebuild" in checks["journal"]["means"]
        castore.rebuild_index(folder)
        assert examine(folder)[1]["journal"]["verdict"] == "ok"
        with castore.open(folder) as store:
            assert list(store.names()) == ["x", "y"]

    @pytest.mark.parametrize(
        ("instead", "said"),
        [
            (probe.IGNORED, "may take away"),
            (probe.REFUSED, "of attributes fail"),
            (probe.UNKNOWN, "of attributes fail"),
            (probe.DONE_ANYWAY, "may take away"),
            (probe.UNQUOTED, "while a check repairs"),
        ],
    )
    def test_what_replaces_one_version_there(self, instead: str, said: str) -> None:
        instead_of = {"if_match_put": instead}
        features = ServerFeatures(True, False, True, True, True, instead=instead_of)
        [check] = [c for c in doctor_s3.of_features(features) if c.what == "If-Match on PUT"]
        assert (check.verdict, check.found) == ("warning", instead)
        assert said in check.means
        assert ("of attributes" in check.means) == (instead != probe.UNQUOTED)

    @pytest.mark.damages_store("castore.json is another")
    def test_a_damaged_store(self, examine: Doctor, tmp_path: Path) -> None:
        castore.open(tmp_path / "store").close()
        (tmp_path / "store" / "castore.json").write_text("{")
        code, checks = examine(tmp_path / "store")
        assert (code, verdicts(checks)["folder"]) == (exits.FAILURE, "problem")

    def test_open_to_others(self, examine: Doctor, tmp_path: Path) -> None:
        castore.open(tmp_path / "store").close()
        (tmp_path / "store").chmod(0o775)
        code, checks = examine(tmp_path / "store")
        assert (code, verdicts(checks)["permissions"]) == (exits.OK, "warning")
        assert "chmod 700" in checks["permissions"]["means"]

        for mode, said in ((0o755, "0755: others may read it"), (0o700, "0700: its owner's alone")):
            (tmp_path / "store").chmod(mode)
            code, checks = examine(tmp_path / "store")
            assert (code, verdicts(checks)["permissions"]) == (exits.OK, "ok")
            assert said in checks["permissions"]["found"]

    @pytest.mark.parametrize("kind", ["vfat", "exfat"])
    def test_a_file_system_without_permission_bits(
        self, examine: Doctor, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No chmod helps there: all files have what it was mounted with."""
        mounts = tmp_path / "mounts"
        mounts.write_text(f"1 0 8:1 / / rw - {kind} /dev/x rw\n")
        monkeypatch.setattr(doctor_places.file_system_of, "__defaults__", (str(mounts),))
        castore.open(tmp_path / "store").close()
        (tmp_path / "store").chmod(0o777)
        _, checks = examine(tmp_path / "store")
        assert verdicts(checks)["permissions"] == "warning"
        assert "chmod" not in checks["permissions"]["means"]
        assert f"{kind} keeps no permission bits" in checks["permissions"]["means"]
        assert "umask=077" in checks["permissions"]["means"]
        (tmp_path / "empty").mkdir()
        monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
        code, checks = examine(tmp_path / "empty")
        assert (code, verdicts(checks)["folder"]) == (exits.FAILURE, "problem")
        assert "chmod" not in checks["folder"]["means"]
        assert f"{kind} keeps no permission bits" in checks["folder"]["means"]

    @pytest.mark.parametrize(
        ("kind", "verdict"), [("ext4", "ok"), ("nfs4", "warning"), ("tmpfs", "warning")]
    )
    def test_file_systems(
        self,
        examine: Doctor,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        kind: str,
        verdict: str,
    ) -> None:
        mounts = tmp_path / "mountinfo"
        point = str(tmp_path / "a disk").replace(" ", r"\040")
        mounts.write_text(
            "22 1 8:1 / / rw,relatime - xfs /dev/sda1 rw\n"
            f"23 22 0:5 / {tmp_path}/a rw - proc proc rw\n"
            f"36 22 0:31 / {point} rw,nosuid shared:1 - {kind} host:/export rw\n"
        )
        monkeypatch.setattr(doctor_places.file_system_of, "__defaults__", (str(mounts),))
        assert doctor_places.file_system_of(f"{tmp_path}/other") == ("xfs", "/")
        code, checks = examine(tmp_path / "a disk" / "store")
        assert (code, verdicts(checks)["file system"]) == (exits.OK, verdict)
        assert checks["file system"]["found"].startswith(kind)

    def test_a_cache_in_memory_is_well_and_one_on_the_network_is_not(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A cache may be lost; what is said of a store would mislead."""
        mounts = tmp_path / "mounts"
        monkeypatch.setattr(doctor_places.file_system_of, "__defaults__", (str(mounts),))
        mounts.write_text("1 0 0:5 / / rw - tmpfs tmpfs rw\n")
        assert doctor_places.check_file_system("/c", "cache on") == (
            "cache on",
            "ok",
            "tmpfs at /",
            "",
        )
        mounts.write_text("1 0 0:5 / / rw - nfs host:/x rw\n")
        check = doctor_places.check_file_system("/c", "cache on")
        assert check.verdict == "warning"
        assert "CASTORE_CACHE_DIR" in check.means

    def test_a_system_that_does_not_say_what_is_mounted(self, tmp_path: Path) -> None:
        mounts = tmp_path / "mounts"
        assert doctor_places.file_system_of("/x", str(mounts)) == ("", "")
        mounts.write_text("1 0 8:1 / / rw - ext4 /dev/x rw\nof another kind\n")
        assert doctor_places.file_system_of("/x", str(mounts)) == ("", "")

    @pytest.mark.parametrize(("missing", "verdict"), [(0, "ok"), (1, "warning")])
    def test_free_space_is_what_this_user_may_fill(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: int, verdict: str
    ) -> None:
        """In the file system's own units; what is kept for root does not count."""
        blocks = doctor_places.FREE_BYTES_MIN // 4096 - missing
        told = SimpleNamespace(f_bavail=blocks, f_frsize=4096, f_bfree=1 << 40, f_bsize=1 << 20)
        monkeypatch.setattr(os, "statvfs", lambda _: told)
        check = doctor_places.check_free_space(str(tmp_path), "free space")
        assert (check.verdict, check.found) == (verdict, human_size(4096 * blocks))

    def test_little_space_and_no_extension(
        self, examine: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(doctor_places, "FREE_BYTES_MIN", 1 << 80)
        monkeypatch.setitem(sys.modules, "castore._native", None)
        monkeypatch.delattr(castore, "_native", raising=False)
        code, checks = examine(tmp_path / "store")
        assert code == exits.OK
        assert verdicts(checks)["free space"] == verdicts(checks)["C extension"] == "warning"
        assert "store no deltas" in checks["C extension"]["means"]

    def test_as_text(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["-r", str(tmp_path / "store"), "doctor"]) == exits.OK
        lines = capsys.readouterr().out.splitlines()
        assert re.fullmatch(r"OK  +folder  +not there yet: the first put makes the store", lines[0])
        assert lines[-1].startswith(f"{tmp_path / 'store'}: no problems, ")
        assert not [line for line in lines if line.startswith("folder: ")]  # nothing follows

    def test_what_follows_is_told_below(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "stranger").touch()
        assert main(["-r", str(tmp_path), "doctor"]) == exits.FAILURE
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("PROBLEM  folder ")
        means = "a store is only made in an empty folder: choose another"
        assert f"folder: {means}" in lines
        assert lines[-1].startswith(f"{tmp_path}: 1 problem, ")

    def test_boto_is_not_loaded(self, tmp_path: Path) -> None:
        program = (
            "import sys; from castore.cli import main; "
            f"code = main(['doctor', {str(tmp_path / 'store')!r}]); "
            "print([m for m in ('boto3', 'botocore') if m in sys.modules]); sys.exit(code)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[]"), done.stderr


class TestServer:
    def test_moto_honours_it_all(
        self, examine: Doctor, moto_server: Server, tmp_path: Path
    ) -> None:
        code, checks = examine(moto_server.url())
        assert code == exits.OK
        server = {"If-None-Match on PUT", "If-Match on PUT", "If-Match on DELETE", "ranges"}
        server |= {"store", "writing", "listing after writing", "clock"}
        assert {what for what, verdict in verdicts(checks).items() if verdict == "ok"} >= server
        assert "none yet" in checks["store"]["found"]
        assert "versions" not in checks
        assert set(checks) >= {"cache on", "cache's free space"}
        assert checks["cache"]["found"] == os.path.realpath(tmp_path / "cache")
        assert list(Bucket(moto_server.settings()).list()) == []  # it cleans up

    @pytest.mark.preconditions_ignored
    def test_rclone_ignores_preconditions(self, examine: Doctor, rclone_server: Server) -> None:
        code, checks = examine(rclone_server.url())
        assert code == exits.OK
        for what in ("If-None-Match on PUT", "If-Match on PUT", "If-Match on DELETE"):
            assert checks[what]["verdict"] == "warning"
            assert checks[what]["found"] == "ignored"
            assert checks[what]["means"]
        assert verdicts(checks)["ranges"] == "ok"

    @pytest.mark.damages_store("castore.json is another")
    def test_a_store_and_something_else(self, examine: Doctor, moto_server: Server) -> None:
        castore.open(moto_server.url("here")).close()
        _, checks = examine(moto_server.url("here"))
        assert checks["store"]["found"].startswith("there, and read by version")
        code, checks = examine(moto_server.url(""))
        assert (code, checks["store"]["verdict"]) == (exits.FAILURE, "problem")
        moto_server.client().put_object(
            Bucket=moto_server.bucket, Key="here/castore.json", Body=b"{"
        )
        code, checks = examine(moto_server.url("here"))
        assert (code, checks["store"]["verdict"]) == (exits.FAILURE, "problem")
        assert "castore.json" in checks["store"]["found"]

    def test_a_versioned_bucket(self, examine: Doctor, moto_server: Server) -> None:
        moto_server.client().put_bucket_versioning(
            Bucket=moto_server.bucket, VersioningConfiguration={"Status": "Enabled"}
        )
        code, checks = examine(moto_server.url())
        assert (code, checks["versions"]["verdict"]) == (exits.OK, "warning")
        assert "lifecycle rule" in checks["versions"]["means"]

    def test_rights_and_clocks(
        self, examine: Doctor, moto_server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def denied(_: object) -> ServerFeatures:
            raise AccessDenied("s3:PutObject", "s3://b/probe/1")

        monkeypatch.setattr(probe, "probe", denied)
        monkeypatch.setattr(Bucket, "clock_skew", lambda _: 400.0)
        code, checks = examine(moto_server.url())
        assert checks["writing"]["verdict"] == "warning"
        assert checks["writing"]["found"] == "s3:PutObject is denied"
        assert (code, checks["clock"]["verdict"]) == (exits.FAILURE, "problem")
        assert checks["clock"]["found"] == "400 s behind the server's"

    def test_a_server_that_honours_nothing(self) -> None:
        checks = list(doctor_s3.of_features(ServerFeatures(False, False, False, False, False)))
        assert [check.verdict for check in checks] == ["warning"] * 3 + ["problem"] * 3
        assert all(check.means for check in checks)

    @pytest.mark.parametrize(
        ("missing", "verdict", "safe", "not_safe"),
        [
            (None, "ok", "put --if-absent, mv, rm, gc, check --repair", ""),
            (
                "if_none_match",
                "warning",
                "mv, rm",
                "only while nobody else writes: put --if-absent, gc, check --repair",
            ),
            (
                "if_match_put",
                "warning",
                "put --if-absent, mv, rm",
                "only while nobody else writes: gc, check --repair",
            ),
            (
                "if_match_delete",
                "warning",
                "put --if-absent, gc, check --repair",
                "only while nobody else writes: mv, rm",
            ),
            (
                "list_consistent",
                "problem",
                "put --if-absent, mv, rm",
                "never: gc, check --repair",
            ),
        ],
    )
    def test_what_is_safe_beside_others(
        self, missing: str | None, verdict: str, safe: str, not_safe: str
    ) -> None:
        features = ServerFeatures(True, True, True, True, True)
        if missing is not None:
            features = dataclasses.replace(features, **{missing: False})
        *others, verbs = doctor_s3.of_features(features)
        found = f"safe beside others: put, get, ls, cp, {safe}"
        assert (verbs.what, verbs.verdict) == ("verbs", verdict)
        assert verbs.found == (f"{found}; {not_safe}" if not_safe else found)
        assert ("gc with --alone" in verbs.means) == (missing in ("if_none_match", "if_match_put"))
        assert [each.verdict for each in others if each.verdict != "ok"] == [verdict] * bool(
            missing
        )

    def test_what_is_never_safe_is_not_told_as_safe_alone(self) -> None:
        *_, verbs = doctor_s3.of_features(ServerFeatures(False, False, False, True, False))
        assert verbs.verdict == "problem"
        assert verbs.found == (
            "safe beside others: put, get, ls, cp; only while nobody else writes: "
            "put --if-absent, mv, rm; never: gc, check --repair"
        )

    def test_a_server_that_refuses_ranges_past_the_end(self) -> None:
        features = ServerFeatures(True, True, True, True, True, ranges_past_end=False)
        checks = {check.what: check for check in doctor_s3.of_features(features)}
        assert checks["ranges"].verdict == "warning"
        assert checks["verbs"].verdict == "ok"

    @pytest.mark.parametrize(
        ("skew", "verdict", "found"),
        [
            (300.0, "ok", "300 s from the server's"),
            (-300.0, "ok", "300 s from the server's"),
            (301.0, "problem", "301 s behind the server's"),
            (-301.0, "problem", "301 s ahead of the server's"),
        ],
    )
    def test_a_clock_that_is_too_far_off(self, skew: float, verdict: str, found: str) -> None:
        bucket = cast("Bucket", SimpleNamespace(clock_skew=lambda: skew))
        check = doctor_s3._clock(bucket)
        assert (check.verdict, check.found) == (verdict, found)

    def test_what_a_doctor_left_behind_is_no_strangers(
        self, examine: Doctor, moto_server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And where there is no home there is no cache, which is told."""
        monkeypatch.setattr(probe, "probe", lambda _: ServerFeatures(True, True, True, True, True))
        monkeypatch.setattr("castore.s3.cache.folder.cache_root", lambda: None)
        client = moto_server.client()
        for key, verdict in (("store/probe/x", "ok"), ("store/stranger", "problem")):
            client.put_object(Bucket=moto_server.bucket, Key=key, Body=b"")
            code, checks = examine(moto_server.url())
            assert (code, checks["store"]["verdict"]) == (verdict == "problem", verdict)
        assert "stranger" in checks["store"]["found"]
        assert checks["cache"]["verdict"] == "warning"
        assert "CASTORE_CACHE_DIR" in checks["cache"]["means"]

    @pytest.mark.parametrize(
        ("place", "code", "message"),
        [
            ("s3://no-such-bucket-here/x", exits.NO_STORE, "there is no bucket"),
            ("s3://bucket?colour=red", exits.USAGE, "'colour' is not a setting"),
            ("gs://b/x", exits.USAGE, "gs:// is not a kind of store"),
        ],
    )
    def test_errors_are_one_line(
        self,
        moto_server: Server,
        place: str,
        code: int,
        message: str,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", moto_server.endpoint_url)
        assert main(["doctor", place]) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert message in err


def test_help_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--help"]) == 0
    assert "scratch keys" in capsys.readouterr().out
