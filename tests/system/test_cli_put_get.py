"""The commands put, get and cat."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import socket
import sys
import threading
from pathlib import Path

import pytest
from cli_runs import DATA, fails, make_tree, names

import castore
from castore.cli import main
from castore.errors import NameNotFound
from castore.store import Store
from castore.transfer.imports import BATCH_BYTES_MAX, BATCH_FILES_MAX, Source, batches


def test_put_a_file_under_a_name_a_prefix_or_its_own_name(run, tmp_path):
    (tmp_path / "f.bin").write_bytes(DATA)
    assert run("put", tmp_path / "f.bin", "deep/name").code == 0
    assert run("put", tmp_path / "f.bin", "prefix/").code == 0
    assert run("put", tmp_path / "f.bin").code == 0
    assert names(run) == ["deep/name", "f.bin", "prefix/f.bin", "seed"]
    assert run("cat", "deep/name").out == DATA


def test_put_several_files_needs_a_prefix(run, tmp_path):
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path in paths:
        path.write_text(path.name)
    assert run("put", *paths, "all/").code == 0
    assert names(run, "all/") == ["all/a", "all/b", "all/c"]
    assert run("put", *paths, "/").code == 0
    assert names(run) == ["a", "all/a", "all/b", "all/c", "b", "c", "seed"]
    fails(run("put", *paths, "all"), 2, "all/", "prefix")
    fails(run("put", *paths), 2, "prefix")


def test_put_refuses_two_files_for_one_name(run, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x").write_text(folder)
    fails(run("put", tmp_path / "one" / "x", tmp_path / "two" / "x", "p/"), 2, "one", "two", "p/x")
    assert names(run, "p/") == []


def test_put_checks_all_files_before_any_is_put_or_a_store_made(bare, run, tmp_path):
    (tmp_path / "a").write_text("a")
    fails(run("put", tmp_path / "a", tmp_path / "none", "p/"), 1, str(tmp_path / "none"))
    assert names(run) == ["seed"]
    (tmp_path / "folder").mkdir()
    fails(run("put", tmp_path / "folder", "x"), 1, "folder", "put -R")
    fails(bare("-r", tmp_path / "new", "put", tmp_path / "none", "x"), 1, "none")
    assert not (tmp_path / "new").exists()


def test_put_from_stdin(run):
    assert run("put", "-", "in", stdin=DATA).code == 0
    assert run("cat", "in").out == DATA
    fails(run("put", "-"), 2, "put - NAME")
    fails(run("put", "-", "prefix/"), 2, "put - NAME")
    fails(run("put", "-R", "-", "x"), 2, "folder")
    fails(run("put", "-", "in", "x", stdin=b"1"), 2, "end with a prefix")
    assert names(run) == ["in", "seed"]


def test_put_from_stdin_that_is_closed(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["-r", str(tmp_path / "store"), "put", "-", "in"]) == 1
    assert capsys.readouterr().err == "castore: standard input is closed\n"
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", ["/abs", "a/../b", "./a", "x" * 481])
def test_put_refuses_bad_names(run, name):
    fails(run("put", "-", name, stdin=b"1"), 2)


def test_put_if_absent(run):
    fails(run("put", "--if-absent", "-", "seed", stdin=b"new"), 1, "'seed'", "already")
    assert run("cat", "seed").out == b"seed"
    assert run("put", "--if-absent", "-", "other", stdin=b"new").code == 0
    assert run("put", "-", "seed", stdin=b"new").code == 0
    assert run("cat", "seed").out == b"new"


def test_put_with_an_empty_name_is_a_mistake(run, tmp_path):
    (tmp_path / "f").write_bytes(DATA)
    before = run("ls").out
    fails(run("put", tmp_path / "f", ""), 2, "the name is empty")
    fails(run("put", tmp_path / "f", tmp_path / "f", ""), 2, "the name is empty")
    assert run("ls").out == before
    assert run("put", tmp_path / "f", "/").code == 0
    assert run("cat", "f").out == DATA


def test_put_prints_json(run, tmp_path):
    (tmp_path / "f").write_bytes(DATA)
    assert run("put", tmp_path / "f", "x").out == b""
    [document] = run("put", tmp_path / "f", "x", "--json").documents
    assert document["name"] == "x"
    assert document["size"] == len(DATA)
    sizes = {"size", "chunks", "stored_bytes", "deltas"}
    assert set(document) == {"name", "mtime", "mode", "etag", *sizes}
    assert run("--json", "put", tmp_path / "f", "x").documents[0]["etag"] == document["etag"]


def test_put_like_says_what_the_file_resembles(run, tmp_path):
    words = random.Random(5).choices([f"word{n}" for n in range(5000)], k=200_000)
    (tmp_path / "old").write_text(" ".join(words))
    words[::5000] = ["changed"] * 40
    (tmp_path / "new").write_text(" ".join(words))
    run("put", tmp_path / "old", "a/old")
    assert run("put", tmp_path / "new", "z/new").code == 0
    assert "deltas" not in run("stats").text, "nothing says that one is a version of the other"
    run("rm", "z/new")
    run("gc")
    [document] = run("put", tmp_path / "new", "z/new", "--like", "a/old", "--json").documents
    assert 0 < document["deltas"] <= document["chunks"]
    assert run("cat", "z/new").out == (tmp_path / "new").read_bytes()
    stat = run("stat", "z/new").text
    assert f"chunks, {document['deltas']} of them deltas when it was put" in stat
    [totals] = run("stats", "--json").documents
    assert totals["deltas"] == document["deltas"]
    assert totals["delta_saved_bytes"] > totals["delta_stored_bytes"]
    assert totals["frames_per_chunk"] == 1 + totals["delta_bases"] / totals["chunks"]
    assert f"{totals['frames_per_chunk']:.2f}  frames to read one chunk" in run("stats").text
    assert [each["deltas"] for each in run("ls", "--json", "z/").documents] == [document["deltas"]]
    fails(run("put", tmp_path / "new", "b", "--like", "none"), 14, "'none'")
    fails(run("put", tmp_path / "new", tmp_path / "old", "p/", "--like", "a/old"), 2, "one file")
    fails(run("put", "-R", tmp_path, "p", "--like", "a/old"), 2, "one file")


def test_put_reads_a_named_pipe_that_is_named(run, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(DATA,))
    writer.start()
    assert run("put", tmp_path / "pipe", "x").code == 0
    writer.join()
    assert run("cat", "x").out == DATA


def test_put_and_get_a_folder(run, tmp_path):
    tree = make_tree(tmp_path / "tree")
    (tree / "sub" / "one").chmod(0o750)
    assert run("put", "-R", tree, "back/up").code == 0
    below = [".hidden", "sub/deeper/two", "sub/one", "top.txt"]
    assert names(run, "back/") == [f"back/up/{name}" for name in below]
    assert run("put", "-R", tree, "back/up/").code == 0
    assert run("put", "-R", tree).code == 0
    assert names(run, "tree/") == [f"tree/{name}" for name in below]
    assert run("put", "-R", tree, "/").code == 0
    assert "top.txt" in names(run)
    assert run("get", "-R", "back/up", tmp_path / "out").code == 0
    for name in below:
        assert (tmp_path / "out" / name).read_bytes() == (tree / name).read_bytes()
    assert (tmp_path / "out" / "sub" / "one").stat().st_mode & 0o777 == 0o750
    assert not (tmp_path / "out" / "empty").exists()


def test_put_and_get_of_a_folder_do_not_compare(run, tmp_path):
    """What has the size and the time that it had is put, and written, all the same."""
    tree, out = tmp_path / "tree", tmp_path / "out"
    for folder in (tree, out):
        folder.mkdir()
        (folder / "file").write_bytes(b"old")
        os.utime(folder / "file", (1000, 1000))
    assert run("put", "-R", tree, "p").code == 0
    [before] = run("stat", "p/file", "--json").documents
    assert before["mtime"] > 1000, "the time of the put"
    assert run("put", "-R", tree, "p").code == 0
    [after] = run("stat", "p/file", "--json").documents
    assert after["mtime"] > before["mtime"]
    assert run("get", "-R", "p", out).code == 0
    written = (out / "file").stat()
    assert written.st_mtime > 1000, "the time of the get"
    assert run("get", "-R", "p", out).code == 0
    assert (out / "file").stat().st_ino != written.st_ino


def test_put_a_folder_prints_a_json_line_for_each_file(run, tmp_path):
    documents = run("--json", "put", "-R", make_tree(tmp_path / "tree"), "p").documents
    assert [each["name"] for each in documents] == [
        "p/.hidden",
        "p/sub/deeper/two",
        "p/sub/one",
        "p/top.txt",
    ]


def test_put_a_folder_follows_links_to_files_and_skips_what_is_no_file(run, tmp_path):
    tree = make_tree(tmp_path / "tree")
    (tmp_path / "elsewhere").write_text("linked")
    (tree / "link").symlink_to(tmp_path / "elsewhere")
    (tree / "loop").symlink_to(tree)
    (tree / "dangling").symlink_to(tmp_path / "nothing")
    (tree / "round").symlink_to(tree / "round")
    os.mkfifo(tree / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(tree)  # a socket's path may be about 100 bytes long
        server.bind("socket")
        os.chdir(here)
        result = run("put", "-R", tree, "p")
    assert result.code == 1
    assert run("cat", "p/link").out == b"linked"
    assert len(names(run, "p/")) == 5
    lines = sorted(line.split(": ", 2)[1:] for line in result.err.splitlines())
    assert lines == [
        [f"{tree}/dangling is left out", "it is a symlink to nothing"],
        [f"{tree}/loop is left out", "it is a symlink to a folder"],
        [f"{tree}/pipe is left out", "it is a named pipe"],
        [
            f"{tree}/round is left out",
            "it is a symlink that leads nowhere (Too many levels of symbolic links)",
        ],
        [f"{tree}/socket is left out", "it is a socket"],
    ]


def test_put_a_folder_leaves_out_what_cannot_be_named(run, tmp_path):
    tree = make_tree(tmp_path / "tree")
    (tree / "zz-\udcff").write_text("not UTF-8")
    fails(run("put", "-R", tree, "p"), 1, "zz-\\udcff is left out", "not valid Unicode")
    assert len(names(run, "p/")) == 4
    fails(run("put", "-R", make_tree(tmp_path / "other"), "p/../q"), 2, "'..'")
    assert len(names(run)) == 5


def test_put_a_folder_leaves_out_what_cannot_be_read(run, tmp_path, monkeypatch):
    tree = make_tree(tmp_path / "tree")
    (tree / "sub" / "mem").symlink_to("/proc/self/mem")  # readable by mode, not in fact
    (tree / "top.txt").unlink()
    listed = os.listdir

    def listdir(path):
        return [*listed(path), "top.txt"] if path == str(tree) else listed(path)

    monkeypatch.setattr(os, "listdir", listdir)
    result = run("put", "-R", tree, "p")
    assert result.code == 1
    assert f"{tree}/top.txt is left out: it vanished meanwhile" in result.err
    assert f"{tree}/sub/mem is left out: Input/output error" in result.err
    assert names(run, "p/") == ["p/.hidden", "p/sub/deeper/two", "p/sub/one"]
    assert run("check", "--read-data").code == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize(("locked", "left"), [("sub", 2), ("sub/one", 3)])
def test_put_a_folder_leaves_out_what_is_not_ours_to_read(run, tmp_path, locked, left):
    tree = make_tree(tmp_path / "tree")
    (tree / locked).chmod(0)
    try:
        fails(run("put", "-R", tree, "p"), 1, f"{tree}/{locked} is left out: Permission denied")
    finally:
        (tree / locked).chmod(0o700)
    assert len(names(run, "p/")) == left


def test_what_is_left_out_is_json_where_json_is_asked_for(run, tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a").write_bytes(b"1")
    (tmp_path / "tree" / "b").symlink_to("nothing")
    left_out = {"what": str(tmp_path / "tree" / "b"), "reason": "it is a symlink to nothing"}
    for verb in (["put", "-R", tmp_path / "tree", "p"], ["import", tmp_path / "tree", "p"]):
        result = run(*verb, "--json")
        assert (result.code, len(result.documents)) == (1, 1)
        assert [json.loads(line) for line in result.err.splitlines()] == [{"left_out": left_out}]


def test_get_and_cat_of_several_go_on(run, tmp_path):
    run("put", "-", "a", stdin=b"1")
    run("put", "-", "z", stdin=b"2")
    for verb in (["get", "a", "gone", "seed", "z", tmp_path], ["cat", "a", "gone", "z"]):
        result = run(*verb)
        assert result.code == 14
        assert result.err == "castore: gone is left out: no object is named 'gone'\n"
    assert result.out == b"12"
    assert {name: (tmp_path / name).read_bytes() for name in ("a", "seed", "z")} == {
        **{"a": b"1", "seed": b"seed", "z": b"2"},
    }


def test_stat_of_several_goes_on(run):
    run("put", "-", "a", stdin=b"1")
    run("put", "-", "folder/b", stdin=b"2")
    result = run("stat", "a", "gone", "folder", "seed")
    assert result.code == 14
    assert result.err.splitlines() == [
        "castore: gone is left out: no object is named 'gone'",
        "castore: folder is left out: folder is a folder: castore ls -l folder/",
    ]
    assert [line.split()[1] for line in result.text.splitlines() if "name" in line] == ["a", "seed"]
    documents = run("stat", "--json", "gone", "a", "seed")
    assert (documents.code, [each["name"] for each in documents.documents]) == (14, ["a", "seed"])
    assert json.loads(documents.err)["left_out"]["what"] == "gone"


def test_get_of_several_leaves_out_what_cannot_be_written(run, tmp_path):
    long = "n" * 300  # as a name it will do, and not as a file's
    for name in ("a", long, "taken", "z"):
        run("put", "-", name, stdin=b"1")
    (tmp_path / "out" / "taken").mkdir(parents=True)
    result = run("get", "a", long, "taken", "z", tmp_path / "out")
    assert result.code == 1
    assert result.err.splitlines() == [
        f"castore: {long} is left out: {tmp_path}/out/{long}: File name too long",
        f"castore: taken is left out: {tmp_path}/out/taken is a folder",
    ]
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "taken", "z"]
    assert os.listdir(tmp_path / "out" / "taken") == []
    fails(run("get", "taken", tmp_path / "out"), 1, f"{tmp_path}/out/taken is a folder")


def test_a_full_disk_ends_a_get_of_several(run, tmp_path, monkeypatch):
    def full(store, name, file, progress=None):
        asked.append(name)
        raise OSError(errno.ENOSPC, "No space left on device", file)

    run("put", "-", "a", stdin=b"1")
    asked = []
    monkeypatch.setattr(Store, "get", full)
    fails(run("get", "a", "seed", tmp_path), 1, f"{tmp_path}/a: No space left")
    assert asked == ["a"]


def test_what_a_get_of_several_leaves_out_is_json_where_json_is_asked_for(run, tmp_path):
    result = run("get", "gone", "seed", tmp_path, "--json")
    assert (result.code, len(result.documents)) == (14, 1)
    left_out = {"what": "gone", "reason": "no object is named 'gone'"}
    assert [json.loads(line) for line in result.err.splitlines()] == [{"left_out": left_out}]


def test_the_bar_of_a_get_of_several_bears_a_name_that_goes_meanwhile(run, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def gone(store, name):
        raise NameNotFound(name)

    run("put", "-", "a", stdin=b"1")
    monkeypatch.setattr(Store, "size", gone)  # and put anew before it is its turn
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert run("get", "a", "seed", tmp_path).code == 0
    assert (tmp_path / "seed").read_bytes() == b"seed"


def test_many_that_are_left_out_are_counted(run, tmp_path):
    tree = make_tree(tmp_path / "tree")
    for i in range(30):
        (tree / f"{i}").symlink_to("nothing")
    for verb in (["put", "-R", tree, "p"], ["import", tree, "p"]):
        result = run(*verb)
        assert (result.code, result.err.count("\n")) == (1, 21)
        assert result.err.endswith("castore: and 10 more left out: --verbose names all\n")
        assert run(*verb, "--verbose").err.count("\n") == 30


def test_put_a_folder_leaves_out_the_store_inside_it(bare, tmp_path):
    tree = make_tree(tmp_path / "tree")
    for _ in range(2):
        result = bare("-r", tree / "store", "put", "-R", tree, "p")
        assert result.code == 0
    assert f"{tree}/store is left out: it is the store itself" in result.err
    assert len(bare("-r", tree / "store", "ls").text.splitlines()) == 4


def test_put_a_folder_corner_cases(run, tmp_path):
    (tmp_path / "empty").mkdir()
    result = run("put", "-R", tmp_path / "empty", "p")
    assert result.code == 0
    assert "no regular files" in result.err
    fails(run("put", "-R", tmp_path / "none", "p"), 1, "none: No such file")
    fails(run("put", "-R", tmp_path / "empty", tmp_path / "empty", "p"), 2, "one folder")
    (tmp_path / "file").write_text("1")
    assert run("put", "-R", tmp_path / "file", "p").code == 0
    assert run("cat", "p").out == b"1"


@pytest.mark.parametrize("verb", [("put", "-R"), ("import",)])
def test_a_folder_that_can_not_be_put_makes_no_store(bare, tmp_path, verb):
    tree, store = make_tree(tmp_path / "tree"), tmp_path / "new"
    fails(bare("-r", store, *verb, tmp_path / "none", "p"), 1, "none: No such file")
    result = bare("-r", store, *verb, tree, "p/../q")
    fails(result, 2, "has a '..' component")
    assert result.err.count("\n") == 1
    assert not store.exists()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "f").write_bytes(b"1")
    longest = "/".join(["p" * 238, "q" * 239])
    assert bare("-r", store, *verb, tmp_path / "one", longest).code == 0
    fails(bare("-r", store, *verb, tmp_path / "one", longest + "r"), 2, "the most is 480")


def test_put_a_folder_of_which_nothing_can_be_put_names_all(bare, tmp_path):
    """As one that may not be looked into: that there is nothing to put is no success then."""
    (tmp_path / "folder" / "empty").mkdir(parents=True)
    (tmp_path / "folder" / "link").symlink_to("nothing")
    for _ in range(2):
        result = bare("-r", tmp_path / "store", "put", "-R", tmp_path / "folder", "p")
        assert (result.code, result.out) == (1, b"")
        named, nothing = result.err.splitlines()
        assert named.endswith("folder/link is left out: it is a symlink to nothing")
        assert nothing.endswith("folder holds no file that can be put: nothing to put")
    assert not (tmp_path / "store").exists()
    (tmp_path / "folder" / "link").unlink()
    bare("-r", tmp_path / "folder" / "store", "put", "-", "x", stdin=b"1")
    result = bare("-r", tmp_path / "folder" / "store", "put", "-R", tmp_path / "folder", "p")
    assert result.code == 0  # the store itself is left out on purpose
    assert "no regular files: nothing to put" in result.err


def test_put_a_folder_leaves_out_names_that_are_taken(run, tmp_path, monkeypatch):
    from castore.transfer import imports

    monkeypatch.setattr(imports, "BATCH_FILES_MAX", 2)
    tree = make_tree(tmp_path / "tree")
    assert run("put", "-", "p/sub/one", stdin=b"mine").code == 0
    fails(run("put", "--if-absent", "-R", tree, "p"), 1, "sub/one is left out", "already named")
    assert names(run, "p/") == ["p/.hidden", "p/sub/deeper/two", "p/sub/one", "p/top.txt"]
    assert run("cat", "p/sub/one").out == b"mine"


def test_put_a_folder_says_how_far_it_came(run, tmp_path, monkeypatch):
    from castore.errors import StoreFull
    from castore.transfer import imports

    monkeypatch.setattr(imports, "BATCH_FILES_MAX", 2)
    whole = imports.put_files

    def put_files(store, batch, *rest):
        if batch[0].name == "p/sub/one":
            raise StoreFull("no space left")
        return whole(store, batch, *rest)

    monkeypatch.setattr(imports, "put_files", put_files)
    result = run("put", "-R", make_tree(tmp_path / "tree"), "p")
    assert (result.code, result.err) == (
        1,
        "castore: 2 files put, and not all the others, because of:\ncastore: no space left\n",
    )
    assert names(run, "p/") == ["p/.hidden", "p/sub/deeper/two"]


def test_get_of_one_without_permission_has_the_code_of_that(run, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "out")

    monkeypatch.setattr(castore.Store, "get", refuse)
    fails(run("get", "seed", tmp_path / "out"), 12, "out: Permission denied")


def test_put_of_files_says_how_far_it_came(run, tmp_path, monkeypatch):
    from castore.cli import put

    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"1")
    monkeypatch.setattr(put, "batches", lambda sources: [[each] for each in sources])
    assert run("put", "-", "p/c", stdin=b"mine").code == 0
    result = run("put", "--if-absent", *(tmp_path / name for name in ("a", "b", "c")), "p/")
    assert result.code == 1
    assert result.err.startswith("castore: 2 files put, and not all the others, because of:\n")
    assert "already named 'p/c'" in result.err
    assert names(run, "p/") == ["p/a", "p/b", "p/c"]
    assert run("cat", "p/c").out == b"mine"


def test_a_put_under_a_name_that_none_can_have_makes_no_store(bare, tmp_path):
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"1")
    for source in (tmp_path / "file", "-"):
        for name in ("a/../b", "n" * 481, "a\nb/./c"):
            fails(bare("-r", tmp_path / "store", "put", source, name, stdin=b"1"), 2)
    fails(bare("-r", tmp_path / "store", "put", "-R", tmp_path / "folder", "a/../b"), 2)
    fails(bare("-r", tmp_path / "store", "put", tmp_path / "file", "--like", "a/../b"), 2)
    assert not (tmp_path / "store").exists()


def test_batches_are_bounded_by_files_and_by_bytes():
    small = [Source(f"{n}", f"{n}", 1) for n in range(4203)]
    assert [len(batch) for batch in batches(small)] == [2000, 2000, 203]
    mebibyte = 1 << 20
    large = [Source("", "", size * mebibyte) for size in (100, 100, 100, 1000, 1, 255, 1)]
    assert [[each.size // mebibyte for each in batch] for batch in batches(large)] == [
        [100, 100],
        [100],
        [1000],
        [1, 255],
        [1],
    ]
    assert list(batches([])) == []


def test_the_help_of_put_tells_how_large_batches_are(run):
    help_ = run("put", "--help").text
    assert f"up to {BATCH_FILES_MAX:,} files or\n{BATCH_BYTES_MAX >> 20} MiB" in help_


def test_get_to_a_file_a_folder_and_stdout(run, tmp_path):
    (tmp_path / "in").write_bytes(DATA)
    (tmp_path / "in").chmod(0o640)
    run("put", tmp_path / "in", "deep/x")
    assert run("get", "deep/x", tmp_path / "out").code == 0
    assert (tmp_path / "out").read_bytes() == DATA
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640
    (tmp_path / "folder").mkdir()
    assert run("get", "deep/x", "seed", tmp_path / "folder").code == 0
    assert (tmp_path / "folder" / "x").read_bytes() == DATA
    assert (tmp_path / "folder" / "seed").read_bytes() == b"seed"
    assert run("get", "deep/x").code == 0
    assert Path("x").read_bytes() == DATA
    assert run("get", "deep/x", "-").out == DATA
    assert run("get", "seed", tmp_path / "out").out == b""
    [document] = run("get", "seed", tmp_path / "out", "--json").documents
    assert (document["file"], document["size"]) == (str(tmp_path / "out"), 4)
    documents = run("get", "-R", "deep", tmp_path / "all", "--json").documents
    assert [(each["file"], each["name"]) for each in documents] == [
        (str(tmp_path / "all" / "x"), "deep/x")
    ]
    assert run("get", "-R", "deep", tmp_path / "all").out == b""


def test_get_errors(run, tmp_path):
    fails(run("get", "none", tmp_path / "out"), 14, "no object is named 'none'")
    assert not (tmp_path / "out").exists()
    fails(run("get", "seed", f"{tmp_path}/nowhere/"), 1, "no folder", "nowhere", "make it first")
    fails(run("get", "seed", tmp_path / "nowhere" / "x"), 1, "nowhere")
    fails(run("get", ""), 2, "must not be empty")
    fails(run("get", "seed/", tmp_path), 2, "'seed/' ends with '/'")
    fails(run("get", "seed", "seed", tmp_path), 2, "same file")
    fails(run("get", "seed", "seed", tmp_path / "out"), 2, "folder")
    fails(run("get", "-R", "seed"), 2, "get -R PREFIX FOLDER")
    fails(run("get", "-R", "none", tmp_path / "out"), 14, "none/")
    fails(run("get", "-R", "see", tmp_path / "out"), 14, "see/")


def test_get_a_folder_leaves_out_names_that_are_no_paths(run, tmp_path):
    for name in ("p/a", "p/b//c", "p/d/", "p2/x"):
        assert run("put", "-", "x", stdin=b"1").code == 0
        with castore.open(run.store) as store:
            store.puts(name, b"1")
    result = run("get", "-R", "p", tmp_path / "out")
    assert result.code == 1
    assert "p/b//c is left out" in result.err
    assert "p/d/ is left out" in result.err
    assert sorted(os.listdir(tmp_path / "out")) == ["a"]


def test_get_a_folder_where_a_name_is_also_a_folder(run, tmp_path):
    with castore.open(run.store) as store:
        store.puts("p/a", b"1")
        store.puts("p/a/b", b"1")
    result = run("get", "-R", "p", tmp_path / "out")
    assert result.code == 1
    assert str(tmp_path / "out" / "a") in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0:10", DATA[0:10]),
        ("100000:200001", DATA[100000:200001]),
        (":5", DATA[:5]),
        ("299990:", DATA[299990:]),
        (":", DATA),
        ("7:7", b""),
        ("299999:999999999", DATA[-1:]),
        ("300000:", b""),
        ("400000:500000", b""),
    ],
)
def test_cat_a_range(run, text, wanted):
    run("put", "-", "x", stdin=DATA)
    result = run("cat", "x", "--range", text)
    assert (result.code, result.out, result.err) == (0, wanted, "")


@pytest.mark.parametrize(
    "text", ["", "5", "1:2:3", "a:b", "1.5:2", "-5:10", "5:2", "1 :2", "+1:2", "١:٢", "0x1:2"]
)
def test_cat_refuses_other_ranges(run, text):
    fails(run("cat", "seed", f"--range={text}"), 2, "--range")


def test_cat_several_objects_and_none(run):
    run("put", "-", "x", stdin=b"x")
    assert run("cat", "seed", "x").out == b"seedx"
    fails(run("cat", "seed", "x", "--range", "0:1"), 2, "one NAME")
    fails(run("cat", "none"), 14, "'none'")
    fails(run("cat", "none", "--range", "0:1"), 14, "'none'")


@pytest.mark.damages_store("a pack is removed")
def test_damage_exits_13_and_spares_the_other_objects(run, tmp_path):
    run("put", "-", "p/bad", stdin=DATA)
    run("put", "-", "p/good", stdin=b"small, inline")
    for pack in run.store.glob("packs/*/*.pack"):
        damaged = bytearray(pack.read_bytes())
        middle = len(DATA) // 2
        damaged[middle : middle + 50] = bytes(50)
        pack.chmod(0o600)
        pack.write_bytes(damaged)
    result = run("get", "p/bad", tmp_path / "bad")
    fails(result, 13, "corrupt")
    assert not (tmp_path / "bad").exists()
    result = run("get", "-R", "p", tmp_path / "out")
    assert result.code == 13
    assert "p/bad is left out" in result.err
    assert (tmp_path / "out" / "good").read_bytes() == b"small, inline"
    assert not (tmp_path / "out" / "bad").exists()
    for pack in run.store.glob("packs/*/*.pack"):
        pack.unlink()
    fails(run("get", "p/bad", tmp_path / "bad"), 14, "missing")
