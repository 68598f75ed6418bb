"""The `castore` command: each verb, its output, its errors and its exit codes."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import termios
import time
from argparse import Namespace
from pathlib import Path

import pytest
from cli_runs import DATA, Result, fails, make_tree, names

import castore
from castore.cli import exits
from castore.cli.ls import sum_up
from castore.cli.output import ProgressBar, complain_each, human_size, one_line, print_table
from castore.model import ObjectInfo
from castore.stream.reports import Damage, GcReport, Undeletable

COMMAND = [sys.executable, "-m", "castore"]


def environment(store: str | Path) -> dict[str, str]:
    """For a process of its own: this castore, installed or not, and this store."""
    roots = [str(Path(castore.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    found = os.environ | {"CASTORE_STORE": str(store)}
    return found | {"PYTHONPATH": os.pathsep.join(filter(None, roots))}


# ---------------------------------------------------------------- the command itself


def test_imports_stay_lazy_until_a_verb_needs_them():
    code = (
        "import sys; before = set(sys.modules)\n"
        "from castore.cli import main\n"
        "assert main(['--help']) == 0 and main(['put', '--help']) == 0\n"
        "assert main(['ls']) == 2\n"
        "heavy = {'lmdb', 'zstandard', 'xxhash', 'numpy', 'castore.store', 'castore._native',\n"
        "    'json', 'tarfile', 'shutil', 'multiprocessing', 'asyncio', 'importlib.metadata'}\n"
        "loaded = heavy & (set(sys.modules) - before)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment(store=""),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "castore demo" in done.stdout


def test_python_looks_for_no_garbage_among_the_modules_of_a_command(run):
    code = (
        "import gc, sys\n"
        "from castore.cli import main\n"
        "assert main() == 0 and gc.get_freeze_count() > 10_000, gc.get_freeze_count()\n"
        "assert gc.isenabled() and gc.get_threshold()[0] == 20_000\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "-r", run.store, "ls"],
        capture_output=True,
        text=True,
        env=environment(store=""),
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "seed\n"), done.stderr


def test_help_names_every_verb_and_the_exit_codes(bare):
    result = bare("--help")
    assert result.code == 0
    for word in ("put", "get", "cat", "ls", "stat", "rm", "cp", "mv", "du", "stats", "demo", "14"):
        assert f" {word} " in result.text or f"{word}," in result.text


@pytest.mark.parametrize(
    "verb",
    [
        *("put", "get", "cat", "ls", "stat", "rm", "cp", "mv", "du", "stats", "demo"),
        *("export", "import", "check", "backup", "restore", "index", "doctor"),
    ],
)
def test_every_verb_has_help(bare, verb):
    result = bare(verb, "--help")
    assert result.code == 0
    assert f"usage: castore [-r PATH] {verb}" in result.text
    assert [line for line in result.text.splitlines() if len(line) > 100] == []


def test_help_tells_a_cron_job_what_goes_where(run, bare):
    """Under --json, too, a note on stderr is text: who parses stderr is told so."""
    text = " ".join(bare("--help").text.split())
    assert 'notes such as "castore: created store at ...", stay text' in text
    new = bare("--json", "-r", run.store.parent / "new", "put", "-", "x", stdin=b"1")
    assert new.err.startswith("castore: created store at ")
    assert new.documents[0]["name"] == "x"


def test_version(bare):
    result = bare("--version")
    assert result.code == 0
    assert result.text.startswith("castore ")


def test_errors_are_json_where_json_is_asked_for(run, bare, tmp_path):
    for arguments, kind, code in (
        (["-r", run.store, "stat", "none", "--json"], "NameNotFound", 14),
        (["--json", "-r", tmp_path / "none", "ls"], "StoreNotFound", 10),
        (["ls", "--json", "--bogus"], "UsageError", 2),
        (["-r", run.store, "put", "--json", "none", "x"], "FileNotFoundError", 1),
    ):
        result = bare(*arguments)
        error = json.loads(result.err)["error"]
        assert (result.code, result.out, error["type"], error["exit_code"]) == (
            *(code, b"", kind, code),
        )
        assert error["message"]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["lst"], "did you mean ls?"),
        (["imprt", "a", "b"], "did you mean import?"),
        (["chek"], "did you mean check?"),
        (["frobnicate"], "there is no verb 'frobnicate' (see"),
        (["put", "--if-abstent", "a", "b"], "did you mean --if-absent? (see castore put --help"),
        (["check", "--read-dta=10%"], "did you mean --read-data?"),
        (["ls", "--zzz"], "--zzz (see castore ls --help"),
        (["ls", "-r", "x"], "castore: -r names the store"),
        (["get", "-r", "x"], "castore: for a folder say -R"),
        (["cp", "-r", "x", "y"], "castore: for a folder say -R"),
    ],
)
def test_what_is_misspelt_gets_a_hint(bare, arguments, hint):
    fails(bare(*arguments), 2, hint)


def test_a_folder_is_called_one(run):
    run("put", "-", "a/b/c", stdin=b"1")
    for verb, instead in (
        (["get", "a"], "get -R a FOLDER"),
        (["get", "a/", "-"], "get -R a FOLDER"),
        (["cat", "a/b"], "get -R a/b FOLDER"),
        (["cat", "a/b", "--range", "0:1"], "get -R a/b FOLDER"),
        (["rm", "a"], "rm -R a"),
        (["cp", "a", "x"], "cp -R a TARGET"),
        (["mv", "a/b", "x"], "mv -R a/b TARGET"),
        (["stat", "a"], "ls -l a/"),
    ):
        fails(run(*verb), 14, "is a folder", f"castore {instead}")
    assert names(run) == ["a/b/c", "seed"]
    assert "a/b/c" in run("du", "a/b/c").text
    assert run("du", "--json", "a/b/c").documents[0]["size"] == 1


def test_cp_and_mv_of_a_folder(run):
    for name in ("a/x", "a/b/y", "ab/z", "a"):
        run("put", "-", name, stdin=name.encode())
    assert run("cp", "-R", "a", "copy/of").code == 0
    assert names(run, "copy") == ["copy/of/b/y", "copy/of/x"]
    result = run("mv", "-R", "copy/of/", "moved", "--json")
    assert [each["name"] for each in result.documents] == ["moved/b/y", "moved/x"]
    assert names(run) == ["a", "a/b/y", "a/x", "ab/z", "moved/b/y", "moved/x", "seed"]
    assert run("cat", "moved/b/y").out == b"a/b/y"
    fails(run("cp", "-R", "none", "x"), 14, "none/")
    for within in (["a", "a/b"], ["a/b", "a"], ["a", "a"], ["/", "x"]):
        fails(run("mv", "-R", *within), 2, "lies below")
    assert run("cp", "-R", "--if-absent", "moved", "a").code == 1
    assert names(run, "a") == ["a", "a/b/y", "a/x", "ab/z"]
    assert run("check", "--read-data").code == 0


def test_usage_errors_are_one_line_and_exit_2(bare, tmp_path):
    fails(bare(), 2, "which verb?", "castore --help")
    fails(bare("frobnicate"), 2, "frobnicate")
    fails(bare("--sto", "x", "ls"), 2)
    fails(bare("ls", "--bogus"), 2, "--bogus")
    fails(bare("ls"), 2, "-r PATH", "--store PATH", "CASTORE_STORE")
    fails(bare("put", "-r", "folder"), 2, "-R", "castore put --help")
    fails(bare("-r", tmp_path, "put"), 2, "FILE")


def test_two_dashes_are_an_argument_behind_those_that_end_the_options(run):
    Path("--").write_bytes(b"dashes")
    assert run("put", "--", "--", "to").code == 0
    assert run("put", "--like=--", "--", "--", "other").code == 14  # it is not there yet
    for arguments in (("cp", "--", "to", "--"), ("mv", "--", "--", "a"), ("cp", "--", "a", "--")):
        assert run(*arguments).code == 0, arguments
    assert names(run) == ["--", "a", "seed", "to"]
    assert run("cat", "--", "--").out == b"dashes"
    assert run("put", "--like=--", "--", "--", "a").code == 0
    assert "'--/'" in run("export", "--", "--", "folder").err  # nothing is below it
    assert run("rm", "--", "--").code == 0
    assert names(run) == ["a", "seed", "to"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gc", "--grace", "5"], "'5' is not a time such as 90s"),
        (["gc", "--grace", "36501d"], "'36501d' is longer than a hundred years"),
        (["gc", "--max-repack-bytes", "10X"], "'10X' is not a size such as"),
        (["gc", "--max-cost", "free"], "'free' is not a sum of dollars"),
        (["gc", "--repack-below", "2"], "'2' is not a part of all"),
        (["check", "--read-data=0"], "'0' is not a part of all"),
        (["check", "--read-data=--"], "'--' is not a part of all"),
        (["check", "--repair", "--read-data=5%"], "--repair reads all data: leave out --read-data"),
        (["check", "--repair", "--read-data"], "--repair reads all data: leave out --read-data"),
        (["gc", "--grace=--"], "'--' is not a time such as 90s"),
        (["backup", "-"], "a backup is a file"),
        (["mount", "store", "folder", "more"], "mount takes [STORE] FOLDER"),
    ],
)
def test_values_that_can_not_be(run, arguments, said):
    fails(run(*arguments), 2, said)


@pytest.mark.parametrize("none", ["0", "0.0", "0s", "0d"])
@pytest.mark.parametrize("option", ["--grace", "--horizon"])
def test_no_time_needs_no_unit(run, option, none):
    assert run("gc", option, none).code == 0


def test_the_store_comes_from_the_option_or_the_environment(bare, tmp_path, monkeypatch):
    monkeypatch.setenv("CASTORE_STORE", str(tmp_path / "one"))
    assert bare("put", "-", "a", stdin=b"1").code == 0
    assert bare("cat", "a").out == b"1"
    assert bare("-r", tmp_path / "two", "put", "-", "b", stdin=b"2").code == 0
    assert bare("cat", "b", "--store", tmp_path / "two").out == b"2"
    assert bare("ls").text == "a\n"


def test_only_put_makes_a_store_and_says_so(bare, tmp_path):
    path = tmp_path / "new"
    for verb in (["ls"], ["cat", "x"], ["rm", "x"], ["cp", "x", "y"], ["stats"], ["get", "x"]):
        fails(bare("-r", path, *verb), 10, "new")
        assert not path.exists()
    result = bare("-r", path, "put", "-", "x", stdin=b"1")
    assert (result.code, result.err) == (0, f"castore: created store at {path}\n")
    assert bare("-r", path, "put", "-", "x", stdin=b"1").err == ""


def test_errors_name_what_the_user_knows(run, bare, monkeypatch, tmp_path):
    """Neither the number of an error nor a temporary file's name."""
    missing = tmp_path / "missing"
    store = bare("-r", missing, "ls")
    remedy = ": check the path, or make one with a put"
    assert store.err == f"castore: there is no store at {missing}{remedy}\n"
    backup = run("backup", missing / "names")
    assert backup.err == f"castore: {missing}: No such file or directory\n"
    on_s3 = bare("-r", "s3://bucket/x", "restore", "names")
    assert on_s3.err.startswith(
        "castore: s3://bucket/x is on S3, where the bucket itself has the names"
    )

    make = os.open

    def denied(path, *arguments, **options):
        if "castore.json." in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return make(path, *arguments, **options)

    monkeypatch.setattr(os, "open", denied)
    new = bare("-r", missing, "put", "-", "name", stdin=b"x")
    assert new.err.startswith(f"castore: no permission for {missing}: ")
    assert [store.code, backup.code, on_s3.code, new.code] == [10, 1, 1, 12]


def test_bytes_are_not_printed_as_json(run):
    for arguments in (["cat", "--json", "seed"], ["get", "seed", "-", "--json"]):
        result = run(*arguments)
        assert (result.code, result.out) == (2, b"")
        assert "leave --json out" in json.loads(result.err)["error"]["message"]
    assert "--json" not in run("cat", "--help").text


def test_an_empty_path_is_not_the_store_of_the_environment(run, bare, monkeypatch):
    monkeypatch.setenv("CASTORE_STORE", str(run.store))
    assert bare("ls").text == "seed\n"
    fails(bare("-r", "", "rm", "seed"), 2, "which store")
    assert bare("ls").text == "seed\n"


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no such file names")
def test_an_import_that_leaves_a_file_out_exits_1(run):
    os.mkdir("folder")
    os.mkfifo("folder/pipe")
    Path("folder/fine").write_bytes(b"fine")
    result = run("import", "folder", "p")
    assert (result.code, "pipe is left out" in result.err) == (1, True)
    Path(os.fsdecode(b"folder/latin\xe9")).write_bytes(b"x")
    result = run("import", "folder", "p")
    assert (result.code, "not valid Unicode" in result.err) == (1, True)
    assert run("import", "--json", "folder", "p").documents[0]["refused"] == 1


def test_gc_says_what_it_did_and_no_more(run, monkeypatch):
    assert run("gc").text == "nothing to collect in 1 object\n"
    assert run("put", "-", "name", stdin=DATA).code == run("rm", "name").code == 0
    planned = run("gc", "-n").text
    assert planned.count("would be removed") == 3
    done = run("gc").text
    assert planned.replace("would be ", "").startswith(done)
    lines = [line.split(maxsplit=2) for line in done.splitlines()]
    assert [line[0] for line in lines] == ["chunks", "manifests", "packs", "freed"]
    assert lines[1] == ["manifests", "1", "removed: no name leads to them"]

    def gc(self, **_):
        return GcReport(
            False, packs_condemned=2, bytes_condemned=2048, bytes_freed=-1536, next_run_at=0.0
        )

    monkeypatch.setattr("castore.store.Store.gc", gc)
    *rows, last = run("gc").text.splitlines()
    assert rows == [
        "used       1.5 KiB  more than before",
        "condemned        2  packs, 2.0 KiB",
    ]
    assert last.startswith("what is condemned can be removed from ")


@pytest.fixture
def collected(monkeypatch):
    """What a `gc` is asked for, and, set before, what it reports."""
    asked = {"report": GcReport(False)}

    def gc(store, **options):
        asked.update(options, read_only=store.read_only)
        return asked["report"]

    monkeypatch.setattr("castore.store.Store.gc", gc)
    return asked


def test_a_gc_is_asked_for_as_it_was_said(run, collected):
    """A bound that is lost on the way would cost money, or data that was to be kept."""
    told = "--grace 2h --max-repack-bytes 10K --repack-below 25% --max-cost 3 --horizon 30d"
    assert run("gc", *told.split(), "--alone").code == 0
    expected = {
        "dry_run": False,
        "grace_s": 7200.0,
        "max_repack_bytes": 10 << 10,
        "repack_below": 0.25,
        "max_cost": 3.0,
        "horizon_s": 30 * 86_400.0,
        "alone": True,
        "carry_undeletable": False,
        "accept_unclaimed": False,
    }
    assert expected.items() <= collected.items()
    for option in ("dry-run", "carry-undeletable", "accept-unclaimed"):
        assert run("gc", f"--{option}").code == 0
        assert collected[option.replace("-", "_")]
        assert not collected["alone"]
        assert collected["read_only"] == (option == "dry-run")


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        (
            {"damaged": (Damage("p", 7, "c", "bad"),)},
            13,
            ["chunk c is damaged at byte 7 of pack p"],
        ),
        ({"missing": ("m",)}, 13, ["pack m is missing, and names need it"]),
        ({"undeletable": (Undeletable("u", "locked"),)}, 1, ["pack u can't be removed", "--carry"]),
        ({"missing": ("m",), "undeletable": (Undeletable("u", "locked"),)}, 13, ["m", "u", "let"]),
    ],
)
def test_what_a_gc_could_not_do_is_told_and_has_a_code(run, collected, found, code, said):
    collected["report"] = GcReport(False, objects=1, **found)
    for more in ([], ["--json"]):
        done = run("gc", *more)
        assert done.code == code
        for line, part in zip(done.err.splitlines(), said, strict=True):
            assert part in line
    assert done.documents[0]["objects"] == 1


ALL_THAT_A_GC_DOES = """\
chunks        1,234  removed, of 1,244
manifests         2  removed: no name leads to them
packs             3  removed, 1 of which no commit had named
packs             4  sealed, whose writers had ended without
rewritten   1.5 KiB  copied from 2 packs: still in use
freed       2.0 KiB  net of what is rewritten
condemned         1  pack, 4.0 KiB
pins              7  of writers that died, expired
batches           8  of names rewritten, of which few counted any more
batches           9  of names removed: nothing needs them
tombstones       11  of names that no batch has any more, removed
leftovers         5  of restores, rebuilds or who made the store, removed
caches            6  unused for 30 days, 3.0 KiB
repacking costs $0.2500, for 3 requests (1 manifest put anew), and frees 5.0 KiB, which saves \
$0.5000 within the horizon
6.0 KiB of garbage stay in packs that are in use otherwise
1 pack left, whose writers are at work
"""


def test_all_that_a_gc_does_is_told(run, collected):
    report = collected["report"] = GcReport(
        dry_run=False,
        chunks=10,
        chunks_removed=1234,
        manifests_removed=2,
        packs_removed=3,
        orphans_removed=1,
        packs_sealed=4,
        packs_rewritten=2,
        bytes_rewritten=1536,
        bytes_freed=2048,
        packs_condemned=1,
        bytes_condemned=4096,
        pins_expired=7,
        batches_rewritten=8,
        batches_removed=9,
        tombstones_removed=11,
        leftovers_removed=5,
        caches_removed=6,
        cache_bytes_freed=3072,
        repack_requests=3,
        repack_manifests=1,
        repack_cost=0.25,
        repack_bytes_freed=5120,
        repack_saves=0.5,
        bytes_left=6144,
        packs_busy=1,
    )
    done = run("gc").text
    assert done == ALL_THAT_A_GC_DOES
    report.dry_run = True
    planned = run("gc", "-n").text
    assert planned.count("would be ") == 6
    assert "this is what would be done: nothing was\n" in planned
    assert "would cost $0.2500" in planned
    assert "and free 5.0 KiB" in planned


@pytest.mark.parametrize("verb", ["get", "get -R", "export"])
def test_a_full_disk_is_said_of_the_file(run, monkeypatch, tmp_path, verb):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    assert run("put", "-", "p/name", stdin=DATA).code == 0
    monkeypatch.setattr("castore.stream.chunkreader.write_all", full)
    path = tmp_path / "out" / "name"
    path.parent.mkdir()
    names = ["p/name", path] if verb == "get" else ["p", path.parent]
    failed = run(*verb.split(), *names)
    assert (failed.code, failed.err) == (1, f"castore: {path}: No space left on device\n")
    assert not list(path.parent.iterdir())


def test_a_name_that_has_a_file_in_its_way(run, tmp_path):
    for name in ("p/a", "p/a/b"):
        assert run("put", "-", name, stdin=b"x").code == 0
    result = run("get", "-R", "p", tmp_path / "out")
    assert (result.code, result.out) == (1, b"")
    assert f"is left out: {tmp_path / 'out' / 'a'} is a f" in result.err  # file, or folder


def test_an_export_of_nothing_makes_no_folder(run, tmp_path):
    fails(run("export", "nothing", tmp_path / "out"), 14, "nothing/")
    assert not (tmp_path / "out").exists()
    for verb in (["export"], ["get", "-R"]):
        fails(run(*verb, "/", run.store / "out"), 1, "lies inside the open store")
        assert not (run.store / "out").exists()
    assert run("rm", "seed").code == run("export", "/", tmp_path / "out").code == 0


def test_a_lock_or_a_denial_is_said_without_its_number(tmp_path):
    for error in (
        castore.errors.StoreLocked(errno.EAGAIN, "in use"),
        castore.errors.ReadOnlyStore(errno.EACCES, "in use"),
        castore.errors.StoreNotFound(errno.ENOENT, "in use"),
    ):
        assert str(error) == str(pickle.loads(pickle.dumps(error))) == "in use"
        assert pickle.loads(pickle.dumps(error)).errno == error.errno
    assert str(castore.errors.StoreNotFound("gone")) == "gone"


def test_a_path_that_is_no_store(bare, tmp_path):
    (tmp_path / "file").write_text("no store")
    for verb in (["ls"], ["gc"], ["check"], ["index", "compact"], ["index", "rebuild"]):
        fails(bare("-r", tmp_path / "file", *verb), 10, "file")
        fails(bare("-r", tmp_path / "nothing", *verb), 10, "nothing")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("keep me")
    fails(bare("-r", tmp_path / "folder", "put", "-", "x", stdin=b"1"), 1, "folder")
    assert (tmp_path / "folder" / "precious").read_text() == "keep me"
    fails(bare("-r", "gopher://store", "put", "-", "x", stdin=b"1"), 2, "gopher")
    fails(bare("-r", "s3:/bucket/x", "put", "-", "x", stdin=b"1"), 2, "use s3://bucket/prefix")
    assert not os.path.exists("s3:")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "there is not enough memory for it: give it more (ulimit -v)"),
        (RuntimeError("can't start new thread"), "no further thread can be started"),
        (OSError("said by a library"), "unexpected OSError: said by a library (CASTORE_DEBUG=1"),
        (AssertionError(), "unexpected AssertionError (CASTORE_DEBUG=1"),
    ],
)
def test_errors_that_are_not_castores_are_told_in_words(run, monkeypatch, error, line):
    def explode(self):
        raise error

    monkeypatch.setattr("castore.store.Store.stats", explode)
    result = run("stats")
    assert result.code == 1
    assert result.err.startswith(f"castore: {line}")


def test_unexpected_errors_are_one_line_unless_debugging(run, monkeypatch, capsysbinary):
    def explode(self):
        raise ZeroDivisionError("boom\nsecond line")

    monkeypatch.setattr("castore.store.Store.stats", explode)
    fails(run("stats"), 1, "ZeroDivisionError", "boom", "CASTORE_DEBUG=1")
    monkeypatch.setenv("CASTORE_DEBUG", "1")
    result = run("stats")
    assert result.code == 1
    assert "Traceback" in result.err


# ---------------------------------------------------------------- the other verbs


def test_ls(run):
    for name in ("logs/b", "logs/a", "logs.txt", "other"):
        run("put", "-", name, stdin=DATA[:5000])
    assert names(run) == ["logs.txt", "logs/a", "logs/b", "other", "seed"]
    assert names(run, "logs") == ["logs.txt", "logs/a", "logs/b"]
    assert names(run, "logs/") == ["logs/a", "logs/b"]
    assert names(run, "/") == names(run, "") == names(run)  # as for du, export and get -R
    fails(run("ls", "none"), 14, "no name starts with 'none'")
    line = run("ls", "-l", "logs/a").text.split()
    assert (line[0], line[1:3], line[-1]) == ("-rw-r--r--", ["4.9", "KiB"], "logs/a")
    documents = run("ls", "--json", "logs/").documents
    assert [each["name"] for each in documents] == ["logs/a", "logs/b"]
    assert documents[0]["size"] == 5000


def test_what_a_damaged_index_does_not_show_is_not_said_to_be_missing(run, monkeypatch):
    monkeypatch.setattr("castore.cli.ls.read_all", lambda arguments, work: exits.CORRUPT)
    assert run("ls", "none") == Result(exits.CORRUPT, b"", "")


def test_stat_of_several(run):
    one, two = (run("stat", *names).text for names in (["seed"], ["seed", "seed"]))
    assert two == f"{one}\n{one}"


def test_stat(run):
    run("put", "-", "x", stdin=DATA)
    text = run("stat", "x").text
    for part in ("name    x\n", "300,000 bytes (293.0 KiB)", "-rw-r--r-- (0644)", "etag"):
        assert part in text
    first, second = run("stat", "x", "seed", "--json").documents
    assert (first["size"], second["size"]) == (300_000, 4)
    fails(run("stat", "none"), 14, "'none'")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"deltas": 0, "size": 1023}, ["1,023 bytes\n", "in 3 chunks\n"]),
        (
            {"deltas": 1, "size": 1024},
            ["1,024 bytes (1.0 KiB)\n", "chunks, 1 of them a delta when"],
        ),
        ({"deltas": 2, "size": 1}, ["1 byte\n", "in 3 chunks, 2 of them deltas when it was put\n"]),
    ],
)
def test_stat_tells_of_deltas_and_in_bytes(run, monkeypatch, facts, said):
    info = castore.Store.info

    def replaced(store: castore.Store, name: str) -> ObjectInfo:
        return info(store, name)._replace(chunks=3, **facts)

    monkeypatch.setattr(castore.Store, "info", replaced)
    text = run("stat", "seed").text
    for part in said:
        assert part in text


def test_rm(run):
    for name in ("a", "b", "c"):
        run("put", "-", name, stdin=b"1")
    fails(run("rm", "a", "none"), 14, "'none'")
    assert names(run) == ["a", "b", "c", "seed"]
    assert run("rm", "a", "b", "a").code == 0
    assert run("rm", "c", "--json").documents == [{"removed": 1}]
    assert names(run) == ["seed"]


def test_rm_recursive_is_bounded_by_a_slash(run):
    for name in ("a", "a/x", "a/y/z", "a2", "a2/x", "a.txt"):
        run("put", "-", name, stdin=b"1")
    fails(run("rm", "-R", "a2", "none"), 14, "'none'")
    assert run("rm", "-R", "a", "--json").documents == [{"removed": 3}]
    assert names(run) == ["a.txt", "a2", "a2/x", "seed"]
    for everything in ("", "/", "//"):
        fails(run("rm", "-R", everything), 2, "everything")
    assert run("rm", "-R", "a2/x", "a2/", "a2").code == 0  # what goes with another is gone once
    assert names(run) == ["a.txt", "seed"]


def test_cp_and_mv(run):
    assert run("cp", "seed", "copy").code == 0
    assert run("mv", "copy", "folder/").code == 0
    assert run("cp", "folder/copy", "seed2", "--json").documents[0]["name"] == "seed2"
    assert names(run) == ["folder/copy", "seed", "seed2"]
    assert run("cat", "folder/copy").out == b"seed"
    fails(run("cp", "none", "x"), 14, "'none'")
    fails(run("mv", "none", "x"), 14, "'none'")
    fails(run("cp", "--if-absent", "seed", "seed2"), 1, "'seed2'")
    fails(run("mv", "--if-absent", "seed", "seed2"), 1, "'seed2'")
    fails(run("mv", "seed", "../x"), 2, "'..'")
    assert run("mv", "seed", "seed2", "--json").documents[0]["name"] == "seed2"
    assert names(run) == ["folder/copy", "seed2"]


def test_what_a_folder_was_copied_to_is_asked_for_at_once(run, monkeypatch):
    """On S3 each question is a request."""
    for name in ("a/x", "a/y"):
        run("put", "-", name, stdin=name.encode())
    monkeypatch.setattr(castore.Store, "info", None)
    for verb, source, target in (("cp", "a", "b"), ("mv", "b", "c")):
        done = run(verb, "-R", source, target, "--json")
        assert [each["name"] for each in done.documents] == [f"{target}/x", f"{target}/y"]
        assert done.documents[0]["size"] == 3


def test_a_copy_that_somebody_deletes_is_done(run, monkeypatch):
    info = castore.Store.info

    def deleted(store: castore.Store, name: str) -> ObjectInfo:
        with castore.open(store.path) as other:
            other.delete(name)
        return info(store, name)

    monkeypatch.setattr(castore.Store, "info", deleted)
    done = run("cp", "seed", "copy", "--json")
    assert (done.code, done.out, done.err) == (0, b"", "")


def test_du(run):
    for name in ("p/a/1", "p/a/2", "p/b/3", "p/4", "p/a.txt", "q/x"):
        run("put", "-", name, stdin=b"12345")
    rows = [line.split() for line in run("du", "p").text.splitlines()]
    assert rows[0] == ["OBJECTS", "SIZE", "STORED", "PREFIX"]
    assert [(row[0], row[1], row[-1]) for row in rows[1:]] == [
        ("2", "10", "p/a/"),
        ("1", "5", "p/b/"),
        ("5", "25", "p/"),
    ]
    documents = run("du", "--json").documents
    assert [(each["prefix"], each["size"]) for each in documents] == [
        ("p/", 25),
        ("q/", 5),
        ("", 34),
    ]
    stored = sum(each["stored_bytes"] for each in run("ls", "--json").documents)
    assert documents[-1]["stored_bytes"] == stored > 0
    assert run("du", "p").code == 0
    fails(run("du", "none"), 14, "none/")


def test_du_of_one_object_and_of_none(run):
    [document] = run("du", "--json", "seed").documents
    assert (document["prefix"], document["objects"], document["size"]) == ("seed", 1, 4)
    assert document["stored_bytes"] > 0
    [_, line] = run("du").text.splitlines()  # no part has a slash behind it
    assert (line.split()[0], line.split()[-1]) == ("1", "(all)")
    run("rm", "seed")
    [_, line] = run("du").text.splitlines()
    assert (line.split()[0], line.split()[-1]) == ("0", "(all)")


def test_du_sums_one_part_at_a_time():
    infos = [
        ObjectInfo(name, 1, 0.0, 0o644, "", 1, 1) for name in ("a", "a.b/x", "a/x", "a/y", "b/")
    ]
    sums = [(each.prefix, each.objects) for each in sum_up(infos, "")]
    assert sums == [("a.b/", 1), ("a/", 2), ("b/", 1), ("", 5)]


def test_stats(run):
    run("put", "-", "x", stdin=DATA)
    run("put", "-", "y", stdin=DATA)
    [document] = run("stats", "--json").documents
    assert document["objects"] == 3
    assert document["logical_bytes"] == 600_004
    assert document["dedup_ratio"] == pytest.approx(2, rel=0.01)
    assert document["compression_ratio"] == pytest.approx(1, rel=0.05)
    assert document["total_ratio"] == pytest.approx(
        document["dedup_ratio"] * document["compression_ratio"]
    )
    assert document["journal_bytes"] > 0
    text = run("stats").text
    assert "deduplication 2.00x" in text
    assert "packs, index and journal" in text
    occupied = sum(document[f"{what}_bytes"] for what in ("pack", "index", "journal"))
    [line] = [line for line in text.splitlines() if line.startswith("on disk")]
    assert human_size(occupied) in line
    assert "objects" in text


def test_stats_tells_of_deltas_where_there_are_any(run, monkeypatch):
    assert "deltas" not in run("stats").text
    whole = castore.Store.stats
    with_some = {"chunks": 5000, "deltas": 2500, "delta_raw_bytes": 10_000, "delta_bases": 2500}

    def stats(store: castore.Store) -> castore.StoreStats:
        return whole(store)._replace(**with_some)

    monkeypatch.setattr(castore.Store, "stats", stats)
    lines = run("stats").text.splitlines()
    assert [line.split()[:2] for line in lines[-3:-1]] == [["deltas", "2,500"], ["decoded", "1.50"]]


def test_stats_of_an_empty_store_has_no_ratios(run):
    run("rm", "seed")
    [document] = run("stats", "--json").documents
    assert document["objects"] == 0
    assert run("stats").code == 0


# ---------------------------------------------------------------- pipes and signals


@pytest.fixture
def process(run):
    """Start `castore ARGUMENTS` as a process of its own on the same store."""
    started = []

    def start(*arguments, **options):
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE} | options
        begun = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stderr=subprocess.PIPE,
            env=environment(run.store),
            **options,
        )
        started.append(begun)
        return begun

    yield start
    for each in started:
        each.kill()
        each.communicate()


def test_a_reader_that_hangs_up_is_no_error(run, process):
    run("put", "-", "big", stdin=DATA * 10)
    cat = process("cat", "big")
    assert cat.stdout.read(10) == DATA[:10]
    cat.stdout.close()
    assert cat.wait(20) == exits.BROKEN_PIPE
    assert cat.stderr.read() == b""


def test_a_full_output_is_one_line(process):
    with open("/dev/full", "wb") as full:
        for verb in (["ls"], ["cat", "seed"]):
            begun = process(*verb, stdout=full)
            assert begun.wait(20) == 1
            assert begun.stderr.read() == b"castore: No space left on device\n"


def test_a_closed_output_is_one_line(run):
    for verb in ("cat seed", "ls"):
        done = subprocess.run(
            ["sh", "-c", f'exec "$0" -m castore {verb} >&-', sys.executable],
            capture_output=True,
            env=environment(run.store),
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr == b"castore: standard output is closed\n"


def test_a_second_interrupt_while_the_first_is_told_of_prints_no_traceback():
    program = (
        "import os, signal, sys, castore.cli as cli\n"
        "from castore.cli import output\n"
        "interrupt = lambda *_: os.kill(os.getpid(), signal.SIGINT)\n"
        "cli._run = output.complain = interrupt\n"
        "sys.exit(cli.main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGINT, 130, b"castore: interrupted\n"), (signal.SIGTERM, 143, b"")],
)
def test_an_interrupted_put_publishes_nothing(run, process, number, code, line):
    put = process("put", "-", "half")
    put.stdin.write(DATA)
    put.stdin.flush()
    unread = bytearray(4)
    while fcntl.ioctl(put.stdin, termios.FIONREAD, unread) == 0 and any(unread):
        time.sleep(0.01)
    time.sleep(0.1)  # it has taken all there is, and now waits for more
    put.send_signal(number)
    assert put.wait(20) == code
    assert put.stderr.read() == line
    assert names(run) == ["seed"]


# ---------------------------------------------------------------- output


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_progress_bar_shows_only_when_a_job_is_long():
    now = [0.0]
    screen = Terminal()
    with ProgressBar("x", screen, clock=lambda: now[0]) as bar:
        bar.set_size(4 << 20)
        bar.relative_update(1 << 20)
        now[0] = 0.4
        bar.relative_update(1 << 20)
        assert screen.getvalue() == ""
        now[0] = 1.0
        bar.relative_update(1 << 20)
        line = screen.getvalue()
        assert " 75% [##################......] 3.0 MiB  3.0 MiB/s  0:00 left" in line
        now[0] = 1.05
        bar.relative_update(1)
        assert screen.getvalue() == line
    assert screen.getvalue().endswith("\r\x1b[K")


def test_the_progress_bar_of_many_files_and_of_unknown_sizes():
    now = [0.0]
    screen = Terminal()
    with ProgressBar("a" * 200, screen, total_bytes=7200 << 20, clock=lambda: now[0]) as bar:
        bar.set_size(5)
        now[0] = 10.0
        bar.relative_update(10 << 20)
    assert "1:59:50 left" in screen.getvalue()
    assert max(len(part) for part in screen.getvalue().split("\r")) < 90
    screen = Terminal()
    with ProgressBar("-", screen, clock=lambda: now[0]) as bar:
        now[0] = 20.0
        bar.relative_update(10 << 20)
    assert "10.0 MiB  1.0 MiB/s" in screen.getvalue()
    assert "%" not in screen.getvalue()


def test_the_progress_bar_of_a_job_in_stages():
    now = [0.0]
    screen = Terminal()
    with ProgressBar("gc", screen, clock=lambda: now[0]) as bar:
        bar.begin_stage("marking", 100)
        now[0] = 1.0
        bar.relative_update(99)
        assert "gc: marking   99% [" in screen.getvalue()
        bar.relative_update(1)
        assert "gc: marking  100% [" in screen.getvalue()
        bar.begin_stage("repacking", 4 << 20)
        now[0] = 3.0
        bar.relative_update(1 << 20)
    assert "gc: repacking   25% [######.........." in screen.getvalue()
    assert "512.0 KiB/s  0:06 left" in screen.getvalue()


def test_no_progress_bar_unless_stderr_is_a_terminal(run, monkeypatch, tmp_path):
    monkeypatch.setattr("castore.cli.output.BAR_DELAY_S", -1)
    assert run("put", "-", "x", stdin=DATA).err == ""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    assert run("put", "-", "x", stdin=DATA).code == 0
    assert "/s" in screen.getvalue()
    make_tree(tmp_path / "tree")
    for arguments in (
        ("put", "-R", tmp_path / "tree", "p"),
        ("get", "-R", "p", tmp_path / "out"),
        ("get", "x", tmp_path / "y"),
    ):
        screen.truncate(0)
        assert run(*arguments).code == 0
        assert "% [" in screen.getvalue()


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (5 << 30, "5.0 GiB"),
        (3 << 40, "3.0 TiB"),
        (2 << 50, "2.0 PiB"),
    ],
)
def test_human_size(size, text):
    assert human_size(size) == text


def test_print_table_aligns_columns(capsys):
    print_table([("a", "bb"), ("ccc", "d")], right=(1,))
    assert capsys.readouterr().out == "a    bb\nccc   d\n"


@pytest.mark.parametrize(("count", "verbose", "lines"), [(20, 0, 20), (23, 0, 21), (23, 1, 23)])
def test_many_complaints_are_counted(capsys, count, verbose, lines):
    complain_each([f"{i}" for i in range(count)], Namespace(verbose=verbose))
    err = capsys.readouterr().err
    assert err.count("\n") == lines
    assert ("castore: and 3 more: --verbose names all\n" in err) is (lines == 21)


def test_one_line_escapes_what_a_terminal_would_obey():
    assert one_line("a\nb\x1b[31m\té 日") == "a\\nb\\x1b[31m\\té 日"


def test_names_with_control_characters_reach_pipes_as_they_are(run):
    with castore.open(run.store) as store:
        store.puts("red\x1b[31m", b"1")
    assert run("ls", "red").out == b"red\x1b[31m\n"
