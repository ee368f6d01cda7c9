"""Archives: what is trusted is unpacked exactly, everything else is refused before a byte is written."""

import io
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from tiny_archives import listing, packed

from semcorr.core.errors import UserError
from semcorr.data.download.archive import DamagedError, extract

FILES = {"top/a.txt": b"one" * 50, "top/sub/b.txt": b"two" * 2000, "top/c:d.json": b"{}"}
KINDS = ["zip", "tar", "tar.gz"]


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "inner" / "into"
    folder.mkdir(parents=True)
    return folder


def archive(tmp_path: Path, content: bytes, kind: str) -> Path:
    path = tmp_path / f"official.{kind}"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_comes_out_as_it_went_in(tmp_path, into, kind):
    extract(archive(tmp_path, packed(FILES, kind), kind), into, f"official.{kind}")

    assert {name: content for name, content in listing(into).items() if content is not None} == FILES


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_is_known_by_its_content_not_by_its_name(tmp_path, into, kind):
    extract(archive(tmp_path, packed(FILES, kind), "download"), into, "official.zip")

    assert (into / "top/a.txt").read_bytes() == FILES["top/a.txt"]


def test_a_list_is_copied(tmp_path, into):
    extract(archive(tmp_path, b"a,b\n1,2\n", "csv"), into, "pairs.csv")

    assert listing(into) == {"pairs.csv": b"a,b\n1,2\n"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_desktop_adds_is_left_out(tmp_path, into, kind):
    junk = {"__MACOSX/top/._a.txt": b"x", "top/.DS_Store": b"x"}
    extract(archive(tmp_path, packed(FILES | junk, kind), kind), into, f"official.{kind}")

    assert listing(into) == {"top": None, "top/sub": None, **FILES}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_files_are_readable_and_never_writable_by_others(tmp_path, into, umask):
    """An archive's own permissions (0600 here) mean nothing; the umask may take rights away."""
    before = os.umask(umask)
    try:
        extract(archive(tmp_path, packed(FILES, "tar"), "tar"), into, "official.tar")
    finally:
        os.umask(before)

    assert stat.S_IMODE((into / "top/a.txt").stat().st_mode) == 0o644 & ~umask
    assert stat.S_IMODE((into / "top/sub").stat().st_mode) == 0o755 & ~umask


# -- what is refused --


def tar_of(*members: tuple[str, bytes, str]) -> bytes:
    """Members by name, type and, for a link, what it points to."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            info.size = 1 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"x"))
    return buffer.getvalue()


def zip_of(*members: tuple[str, int]) -> bytes:
    """Members by name and Unix mode, written without the library's own tidying of names."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, mode in members:
            info = zipfile.ZipInfo("placeholder")
            info.filename, info.external_attr = name, mode << 16
            archive.writestr(info, "../../outside" if stat.S_ISLNK(mode) else "x")
    return buffer.getvalue()


FILE, LINK = stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777
ABSOLUTE = ["/outside", "\\outside", "C:\\outside", "C:outside"]
CLIMBING = ["../outside", "top/../../outside", "top\\..\\..\\outside", *ABSOLUTE]
FINE = ("top/ok", tarfile.REGTYPE, "")
REFUSED = {
    **{f"zip {name}": (zip_of(("top/ok", FILE), (name, FILE)), name) for name in CLIMBING},
    **{f"tar {name}": (tar_of(FINE, (name, tarfile.REGTYPE, "")), name) for name in CLIMBING},
    "tar folder": (tar_of(("../outside", tarfile.DIRTYPE, "")), "../outside"),
    "zip link": (zip_of(("top/link", LINK), ("top/link/outside", FILE)), "top/link"),
    "zip pipe": (zip_of(("pipe", stat.S_IFIFO | 0o644)), "pipe"),
    "tar link": (tar_of(("link", tarfile.SYMTYPE, "../.."), ("link/outside", tarfile.REGTYPE, "")), "link"),
    "tar absolute link": (tar_of(("link", tarfile.SYMTYPE, "/etc/passwd")), "link"),
    "tar hard link": (tar_of(("link", tarfile.LNKTYPE, "../../outside")), "link"),
    "tar inner hard link": (tar_of(("a", tarfile.REGTYPE, ""), ("b", tarfile.LNKTYPE, "a")), "b"),
    "tar device": (tar_of(("null", tarfile.CHRTYPE, "")), "null"),
    "tar pipe": (tar_of(("pipe", tarfile.FIFOTYPE, "")), "pipe"),
    "twice": (tar_of(("a", tarfile.REGTYPE, ""), ("./a", tarfile.REGTYPE, "")), "./a"),
    "file and folder": (tar_of(("a", tarfile.REGTYPE, ""), ("a/b", tarfile.REGTYPE, "")), "a"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_an_archive_that_reaches_out_is_refused_and_named_with_its_member(tmp_path, into, case):
    content, member = REFUSED[case]
    path = archive(tmp_path, content, "zip" if content.startswith(b"PK") else "tar.gz")
    before = listing(tmp_path)

    with pytest.raises(UserError, match="Nothing of it is unpacked") as error:
        extract(path, into, path.name)

    assert str(path) in str(error.value)
    assert f"member {member!r}" in str(error.value)
    assert listing(tmp_path) == before


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_has_a_name_twice_is_refused(tmp_path, into):
    with pytest.raises(UserError, match="member 'a' is there twice"):
        extract(archive(tmp_path, zip_of(("a", FILE), ("a", FILE)), "zip"), into, "official.zip")


def test_one_archive_does_not_overwrite_anothers_files(tmp_path, into):
    extract(archive(tmp_path, packed(FILES, "zip"), "zip"), into, "official.zip")

    with pytest.raises(UserError, match=r"member 'top/a.txt' is in another archive too"):
        extract(archive(tmp_path, packed({"top/a.txt": b"other"}, "tar"), "tar"), into, "official.tar")

    assert (into / "top/a.txt").read_bytes() == FILES["top/a.txt"]


# -- damage --


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_cut_short_anywhere_is_damaged(tmp_path, kind):
    whole = packed(FILES, kind)
    end = len(whole.rstrip(b"\0")) if kind == "tar" else len(whole)  # some of a tar's last zeros can be spared
    for length in range(0, end, max(1, end // 60)):
        (into := tmp_path / str(length)).mkdir()
        path = archive(tmp_path, whole[:length], kind)
        with pytest.raises(DamagedError, match=f"official.{kind} is damaged or not an archive"):
            extract(path, into, path.name)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_flipped_bit_is_noticed_or_does_not_matter(tmp_path, kind):
    """Both kinds carry checksums. A plain tar has them for its headers only."""
    whole = packed(FILES, kind)
    for place in range(len(whole)):
        (into := tmp_path / str(place)).mkdir()
        path = archive(tmp_path, whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :], kind)
        try:
            extract(path, into, path.name)
        except UserError:
            continue
        assert {name: content for name, content in listing(into).items() if content is not None} == FILES, place


def test_a_damaged_header_in_the_middle_of_a_tar_is_not_its_end(tmp_path, into):
    """Python's tarfile stops there without a word."""
    whole = bytearray(packed(FILES, "tar"))
    whole[2 * 512 + 3] ^= 1  # the second member's name

    with pytest.raises(DamagedError, match="a header is not readable"):
        extract(archive(tmp_path, bytes(whole), "tar"), into, "official.tar")
    assert listing(into) == {}


@pytest.mark.parametrize("content", [b"", b"hello", b"PK", b"\x1f\x8b"])
def test_what_is_no_archive_is_reported_as_such(tmp_path, into, content):
    with pytest.raises(DamagedError, match="damaged or not an archive"):
        extract(archive(tmp_path, content, "zip"), into, "official.zip")


# -- room --


@pytest.mark.parametrize("kind", KINDS)
def test_too_little_room_is_known_before_anything_is_written(tmp_path, into, monkeypatch, kind):
    monkeypatch.setattr(
        "semcorr.data.download.archive.shutil.disk_usage", lambda _: type("Usage", (), {"free": 12_000})
    )

    with pytest.raises(UserError, match=r"needs 16.4 kB unpacked, .* has 12.0 kB left"):  # 4096, 8192, 4096 bytes
        extract(archive(tmp_path, packed(FILES, kind), kind), into, f"official.{kind}")

    assert listing(into) == {}


def test_a_zip_cannot_write_more_than_it_says(tmp_path, into):
    """The room is reckoned by the sizes an archive states."""
    bomb = bytearray(packed({"a": bytes(100_000)}, "zip"))
    for place in (bomb.index(b"PK\3\4") + 22, bomb.index(b"PK\1\2") + 24):
        bomb[place : place + 4] = (10).to_bytes(4, "little")

    with pytest.raises(DamagedError):
        extract(archive(tmp_path, bytes(bomb), "zip"), into, "official.zip")
    assert (into / "a").stat().st_size <= 10


def test_a_disk_that_refuses_is_an_error_of_the_system_with_the_file(tmp_path, into):
    """A real one: the process may write no file of more than 4 KiB."""
    path = archive(tmp_path, packed(FILES, "zip"), "zip")
    code = f"""
import resource
from pathlib import Path
from semcorr.data.download.archive import extract
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    extract(Path({str(path)!r}), Path({str(into)!r}), "official.zip")
except OSError as error:
    print(error.errno)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "27", done.stderr  # EFBIG
