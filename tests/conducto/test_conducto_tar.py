"""Hostile archives: only CacheRefused, nothing restored, little memory; and the two formats."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import random
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tars import END, GOOD, SEEDS, extension, file, header, link, patched, pax, with_checksums

from castore.errors import FormatError
from conducto import cache
from conducto.errors import CacheRefused
from conducto.staging import STAGING_PREFIX
from conducto.stored_gzip import BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, StoredGzip, block_end
from conducto.tar import Limits, TarReader, clean_name, decode_header, decode_pax

SMALL = Limits(
    bytes_max=8 << 20,
    members_max=50,
    name_bytes_max=300,
    depth_max=10,
    extension_bytes_max=4096,
    extensions_max=4,
    pax_records_max=100,
    folders_max=20,
    entered_max=150,
    link_bytes_max=200,
)


def restore(archive: bytes, target: Path, limits: Limits = SMALL) -> None:
    cache.restore(io.BytesIO(archive), len(archive), target, limits)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "parent": (file("../evil"), r"leaves the folder: its name has a '\.\.'"),
    "parent inside": (file("a/../../evil"), r"leaves the folder"),
    "parent in pax": (pax(path="../evil") + file("ok"), r"leaves the folder"),
    "parent in GNU long name": (extension(b"L", b"../evil\0") + file("ok"), "leaves the folder"),
    "absolute": (file("/evil"), "leaves the folder: its name starts with '/'"),
    "absolute folder": (header("/evil", tarfile.DIRTYPE), "leaves the folder"),
    "absolute link": (
        link("l", "/tmp"),
        "'l' is a symbolic link that leaves the folder: to '/tmp'",
    ),
    "link upwards": (link("l", ".."), "leaves the folder"),
    "link upwards, later": (link("a/l", "../../x"), "leaves the folder"),
    "link upwards, through another": (link("a", ".") + link("b", "a/../x"), "leaves the folder"),
    "link to nothing": (link("l", ""), "leaves the folder"),
    "link in pax": (pax(linkpath="../x") + link("l", "ok"), "leaves the folder"),
    "GNU long link": (extension(b"K", b"../x\0") + link("l", "ok"), "leaves the folder"),
    "long link": (link("l", "x" * 201), "leads to a name that is too long"),
    "link, then through it": (link("l", "d") + file("d/a") + file("l/evil"), "has 'l' twice"),
    "link, then in its place": (link("l", "d") + file("l"), "has 'l' twice"),
    "folder, then a link": (header("l", tarfile.DIRTYPE) + link("l", "d"), "has 'l' twice"),
    "link without a name": (link(".", "d"), "no name"),
    "global link": (extension(b"g", b"14 linkpath=x\n") + file("ok"), "one name or size"),
    "hard link": (header("l", tarfile.LNKTYPE, linkname="/etc/passwd"), "'l' is a hard link"),
    "character device": (header("d", tarfile.CHRTYPE), "'d' is a device"),
    "block device": (header("d", tarfile.BLKTYPE), "'d' is a device"),
    "FIFO": (header("d", tarfile.FIFOTYPE), "'d' is a FIFO"),
    "sparse": (header("d", tarfile.GNUTYPE_SPARSE), "sparse file"),
    "sparse in pax": (pax(GNU_sparse_major="1") + file("ok"), "sparse file"),
    "unknown type": (patched(header("d"), 156, b"V"), "unknown type b'V'"),
    "twice": (file("a") + file("a"), "has 'a' twice"),
    "twice, spelled otherwise": (file("a/b") + file("./a//b"), "has 'a/b' twice"),
    "folder twice": (2 * header("a", tarfile.DIRTYPE), "has 'a' twice"),
    "file, then folder": (file("a") + header("a", tarfile.DIRTYPE), "has 'a' twice"),
    "file, then below it": (file("a") + file("a/b"), "has 'a' twice"),
    "folder, then file": (header("a", tarfile.DIRTYPE) + file("a"), "has 'a' twice"),
    "no name": (file("."), "a file has no name"),
    "NUL": (pax(path="a\0b") + file("ok"), "NUL"),
    "long part": (file("x" * 256), "part of over 255 bytes"),
    "long name": (file("/".join(["x" * 90] * 4)), "longer than 300 bytes"),
    "deep": (file("a/" * 20 + "x"), "more than 10 folders deep"),
    "many members": (b"".join(file(f"f{n}") for n in range(51)), "more than 50 members"),
    "many folders": (
        b"".join(header(f"{n}{'x' * 90}", tarfile.DIRTYPE) for n in range(30)),
        "too many folders",
    ),
    "many implied folders": (
        file("a/b/c/d/e/f/g/x") + file("h/i/j/k/l/m/n/o/p/x") + file("q/r/s/t/u/v/x"),
        "too many folders",
    ),
    "deep chains": (
        b"".join(file(f"{'ab'[n % 2]}/{'c/' * 7}{n}") for n in range(40)),
        "goes through too many folders",
    ),
    "long pax header": (extension(b"x", b"9" * 5000), "5000 bytes is too long"),
    "long GNU name": (extension(b"L", b"n" * 5000) + file("ok"), "5000 bytes is too long"),
    "endless pax headers": (30_000 * extension(b"g", b"7 a=b \n"), "too many extended headers"),
    "endless pax records": (
        b"".join(pax(**{f"k{i}": "v" for i in range(9)}) + file(f"{n}") for n in range(12)),
        "extended headers say too much",
    ),
    "global path": (extension(b"g", b"9 path=x\n") + file("ok"), "one name or size"),
    "pax at the end": (pax(path="x"), "ends where a member should be"),
    "pax length 0": (extension(b"x", b"0 a=b\n"), "malformed"),
    "pax length too long": (extension(b"x", b"99 a=b\n"), "malformed"),
    "pax without =": (extension(b"x", b"6 abc\n"), "malformed"),
    "pax without keyword": (extension(b"x", b"6 =bc\n"), "malformed"),
    "pax without newline": (extension(b"x", b"6 a=bc"), "malformed"),
    "pax size": (pax(size="-1") + file("ok"), "size is not a number"),
    "pax size not a number": (pax(size="1e3") + file("ok"), "size is not a number"),
    "pax mtime": (pax(mtime="nan") + file("ok"), "mtime is not a number"),
    "size of more than there is": (header("a", size=10**6) + b"x" * 1024, "cut short"),
    "huge size": (patched(header("a"), 124, b"\x80" + b"\xff" * 11), "cut short"),
    "negative size": (patched(header("a"), 124, b"\xff" * 12), "size is not a number"),
    "signed size": (patched(header("a"), 124, b"-0000000001\0"), "size is not a number"),
    "underscored size": (patched(header("a"), 124, b"0_000000001\0"), "size is not a number"),
    "mode": (patched(header("a"), 100, b"rwxr-xr\0"), "mode is not a number"),
    "folder with content": (
        patched(header("a", tarfile.DIRTYPE), 124, b"00000001000\0") + b"x" * 512,
        "the folder 'a/' has content",
    ),
    "not a tar": (b"x" * 512, "not a tar archive"),
    "checksum": (b"x" + header("abc")[1:], "a header's checksum is wrong"),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("zipped", [True, False])
def test_hostile(case: str, zipped: bool, tmp_path: Path) -> None:
    members, message = HOSTILE[case]
    archive = file("before", b"good") + members + END
    with pytest.raises(CacheRefused, match=message) as caught:
        restore(gzip.compress(archive, 1, mtime=0) if zipped else archive, tmp_path / "out")
    assert isinstance(caught.value, FormatError)
    assert isinstance(caught.value, ValueError)
    assert os.listdir(tmp_path) == []
    # Nor does it touch a folder that was there.
    (tmp_path / "there").mkdir()
    with pytest.raises(CacheRefused):
        restore(archive, tmp_path / "there")
    assert os.listdir(tmp_path / "there") == []


class TestDamagedStreams:
    ZIPPED = gzip.compress(GOOD, mtime=0)

    @pytest.mark.parametrize("at", [0, 1, 2, 5, 10, 40, -9, -8, -4, -1])
    def test_cut_short(self, at: int, tmp_path: Path) -> None:
        with pytest.raises(CacheRefused):
            restore(self.ZIPPED[:at], tmp_path / "out")
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("at", [3, 11, 30, -5, -1])
    def test_flipped(self, at: int, tmp_path: Path) -> None:
        damaged = bytearray(self.ZIPPED)
        damaged[at] ^= 0xFF
        with pytest.raises(CacheRefused):
            restore(bytes(damaged), tmp_path / "out")
        assert os.listdir(tmp_path) == []

    def test_a_plain_tar_cut_short(self, tmp_path: Path) -> None:
        for at in (100, 512, 700, len(GOOD) - 1024):
            with pytest.raises(CacheRefused, match="cut short"):
                restore(GOOD[:at], tmp_path / "out")

    def test_garbage_after_the_end(self, tmp_path: Path) -> None:
        with pytest.raises(CacheRefused):
            restore(self.ZIPPED + b"garbage", tmp_path / "out")
        restore(self.ZIPPED + bytes(1000), tmp_path / "padded")  # as tapes have it
        two_members = gzip.compress(GOOD[:700]) + gzip.compress(GOOD[700:])
        restore(two_members, tmp_path / "two")
        assert (tmp_path / "two/a/one").read_bytes() == b"1" * 1000

    def test_a_bomb(self, tmp_path: Path) -> None:
        huge = header("zeros", size=1 << 33)
        compress = zlib.compressobj(9, wbits=31)
        bomb = compress.compress(huge) + b"".join(
            compress.compress(bytes(1 << 20)) for _ in range(40)
        )
        bomb += compress.flush()
        limits = Limits()
        tracemalloc.start()
        with pytest.raises(CacheRefused, match="cut short"):
            restore(bomb, tmp_path / "out", limits)
        with pytest.raises(CacheRefused, match=f"unpacks to more than {8 << 20} bytes"):
            restore(bomb, tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 12 << 20
        assert os.listdir(tmp_path) == []

    def test_expansion(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cache, "EXPANSION_FREE_BYTES", 1 << 20)
        zeros = gzip.compress(file("zeros", bytes(16 << 20)) + END)  # about 1000 times
        with pytest.raises(CacheRefused, match="unpacks to more than"):
            restore(zeros, tmp_path / "out", Limits())
        restore(zeros, tmp_path / "out", Limits(expansion_max=1000))

    def test_empty_gzip_members_count(self, tmp_path: Path) -> None:
        empty = gzip.compress(b"", mtime=0)
        archive = file("a") + END
        restore(20 * empty + gzip.compress(archive) + 20 * empty + bytes(700), tmp_path / "out")
        assert (tmp_path / "out" / "a").read_bytes() == b"x"
        with pytest.raises(CacheRefused, match="unpacks to more than"):
            restore(2000 * empty + gzip.compress(archive), tmp_path / "other")
        with pytest.raises(CacheRefused, match="damaged or cut short"):
            restore(gzip.compress(archive) + empty[:12], tmp_path / "other")
        assert os.listdir(tmp_path) == ["out"]

    def test_deep_chains_in_order_are_gone_through_once(self, tmp_path: Path) -> None:
        names = [f"{'ab'[n // 20]}/{'c/' * 7}{n}" for n in range(40)]
        restore(b"".join(file(name) for name in names) + END, tmp_path / "out")
        assert all((tmp_path / "out" / name).is_file() for name in names)

    def test_what_an_extended_header_says_is_not_kept(self, tmp_path: Path) -> None:
        records = b"".join(b"%d k%05d=v\n" % (12, n) for n in range(5000))
        content = b"".join(
            extension(b"x", records.replace(b"k", b"%c" % (97 + n))) for n in range(8)
        )
        tracemalloc.start()
        restore(content + file("a") + END, tmp_path / "out", Limits())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 << 20

    def test_errors_of_the_store_are_not_the_archives(self, tmp_path: Path) -> None:
        class Failing(io.BytesIO):
            def readinto(self, buffer: object) -> int:
                raise PermissionError("the store's own")

            def read(self, size: int | None = -1) -> bytes:
                if size == 2:
                    return b"\x1f\x8b"
                raise PermissionError("the store's own")

        with pytest.raises(PermissionError):
            cache.restore(Failing(b"x" * 100), 100, tmp_path / "out")
        assert os.listdir(tmp_path) == []


def mutate(data: bytes, seed: int) -> bytes:
    rnd = random.Random(seed)
    mutated = bytearray(data)
    for _ in range(rnd.choice((1, 1, 2, 8))):
        at = rnd.randrange(len(mutated) + 1)
        action = rnd.randrange(4)
        if action == 0 and at < len(mutated):
            mutated[at] ^= 1 << rnd.randrange(8)
        elif action == 1:
            mutated[at:at] = rnd.randbytes(rnd.choice((1, 7, 512)))
        elif action == 2:
            del mutated[at : at + rnd.choice((1, 7, 512))]
        else:
            source = rnd.randrange(len(mutated) + 1)
            mutated[at : at + 12] = mutated[source : source + 12]
    return bytes(mutated)


class TestMutants:
    @given(st.sampled_from(SEEDS), st.integers(0, 2**32), st.booleans(), st.booleans())
    @settings(
        max_examples=400,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    def test_tar(self, tmp_path: Path, archive: bytes, seed: int, zipped: bool, fix: bool) -> None:
        archive = mutate(archive, seed)
        archive = with_checksums(archive) if fix else archive
        self.check(tmp_path, gzip.compress(archive, 1) if zipped else archive)

    @given(st.sampled_from(SEEDS), st.integers(0, 2**32))
    @settings(
        max_examples=400,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    def test_gzip(self, tmp_path: Path, archive: bytes, seed: int) -> None:
        self.check(tmp_path, mutate(gzip.compress(archive, 1, mtime=0), seed))

    @given(st.binary(max_size=2000))
    @settings(max_examples=200, deadline=None)
    def test_decoders(self, data: bytes) -> None:
        for decode in (
            lambda: decode_header(data[:512].ljust(512, b"\0")),
            lambda: decode_header(patched(data[:512].ljust(512, b"\0"), 0, b"")),
            lambda: decode_pax(data),
            lambda: clean_name(data, SMALL),
            lambda: list(TarReader(io.BytesIO(data).read, SMALL)),
        ):
            with contextlib.suppress(CacheRefused):
                decode()

    def check(self, tmp_path: Path, archive: bytes) -> None:
        target = tmp_path / "out"
        try:
            restore(archive, target)
        except CacheRefused:
            assert not target.exists()
        else:
            for path in target.rglob("*"):
                assert Path(os.path.realpath(path)).is_relative_to(target)
            assert not any(name.startswith(STAGING_PREFIX) for name in os.listdir(target))
            remove(target)
        assert os.listdir(tmp_path) == []


def remove(folder: Path) -> None:
    for path, folders, files in os.walk(folder, topdown=False):
        os.chmod(path, 0o700)
        for name in files:
            os.unlink(os.path.join(path, name))
        for name in folders:
            inner = os.path.join(path, name)
            (os.unlink if os.path.islink(inner) else os.rmdir)(inner)
    os.rmdir(folder)


class TestStoredGzip:
    @given(st.lists(st.binary(max_size=3000), max_size=8), st.integers(0, 2**16))
    @settings(max_examples=50, deadline=None)
    def test_any_writes(self, pieces: list[bytes], seed: int) -> None:
        rnd = random.Random(seed)
        pieces = [piece * rnd.choice((1, 1, 100)) for piece in pieces]
        sink = io.BytesIO()
        out = StoredGzip(sink)
        for piece in pieces:
            out.write(piece)
            if rnd.random() < 0.3:
                out.boundary()
        out.close()
        assert gzip.decompress(sink.getvalue()) == b"".join(pieces)

    def test_blocks_do_not_depend_on_how_it_is_written(self) -> None:
        content = random.Random(1).randbytes(500_000)
        outputs = set()
        for step in (1000, 65_536, 500_000):
            sink = io.BytesIO()
            out = StoredGzip(sink)
            for begin in range(0, len(content), step):
                out.write(content[begin : begin + step])
            out.close()
            outputs.add(sink.getvalue())
        assert len(outputs) == 1

    def test_block_lengths(self) -> None:
        content = random.Random(2).randbytes(1 << 20)
        begin, lengths = 0, []
        while len(content) - begin > BLOCK_BYTES_MAX:
            end = block_end(content, begin)
            lengths.append(end - begin)
            begin = end
        assert min(lengths) >= BLOCK_BYTES_MIN
        assert max(lengths) <= BLOCK_BYTES_MAX
        assert block_end(bytes(1 << 20), 7) == 7 + BLOCK_BYTES_MAX

    def test_golden(self) -> None:
        sink = io.BytesIO()
        out = StoredGzip(sink)
        out.write(b"ab")
        out.boundary()
        out.write(b"c")
        out.close()
        assert sink.getvalue().hex() == (
            "1f8b08000000000000ff000200fdff6162000100feff63010000ffffc241243503000000"
        )
