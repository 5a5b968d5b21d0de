"""Pictures in archives are what zipfile reads; any picture becomes upright RGB, or says why it cannot."""

from __future__ import annotations

import io
import pickle
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from builders import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from stages.fetch import pictures as module
from stages.fetch.archives import keep_only, link, pack
from stages.fetch.captions import read_captions
from stages.fetch.pictures import MAX_PIXELS, PictureError, Pictures, decode

MEMBERS = {"a/one.jpg": b"1" * 5_000, "a/two.png": b"", "日本.jpg": random.Random(1).randbytes(3_000), "b.jpg": b"b"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two archives: one packed by deflate, in the ZIP64 form and behind other bytes; one stored."""
    names = list(MEMBERS)
    with (tmp_path / "1.zip").open("wb") as file:
        file.write(b"#!/bin/sh\n")
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.comment = b"a comment"
            archive.mkdir("a")
            for name in names[:3]:
                with archive.open(name, "w", force_zip64=True) as member:
                    member.write(MEMBERS[name])
    pack(tmp_path / "2.zip", [(names[3], MEMBERS[names[3]])])
    return tmp_path


# --- archives ---------------------------------------------------------------------------------------------------------


def test_members_are_what_zipfile_reads(folder: Path) -> None:
    pictures = Pictures(folder)
    expected = {}
    for path in sorted(folder.glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            expected |= {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    assert expected == MEMBERS
    assert {name: pictures.read(name) for name in pictures} == expected
    assert len(pictures) == 4
    assert "b.jpg" in pictures
    assert "a/" not in pictures


@pytest.mark.shared
def test_real_archives_are_what_zipfile_reads(shared: Path) -> None:
    path = shared / "coco" / "train2017_80images.zip"
    pictures = Pictures(path)
    with zipfile.ZipFile(path) as archive:
        assert all(pictures.read(name) == archive.read(name) for name in pictures)
    assert len(pictures) == 80


def test_more_members_than_a_plain_zip_can_count(tmp_path: Path) -> None:
    count = 66_000  # the number of members has 16 bits, beyond that ZIP64's own directory counts
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(count):
            archive.writestr(zipfile.ZipInfo(f"{number:012d}.jpg"), b"x")
    pictures = Pictures(tmp_path)
    assert len(pictures) == count
    assert pictures.read(f"{count - 1:012d}.jpg") == b"x"


def test_one_index_serves_pickles_threads_and_processes(folder: Path) -> None:
    pictures = Pictures(folder)
    assert pictures.read("b.jpg") == b"b"  # opened before it is copied
    copy = pickle.loads(pickle.dumps(pictures))
    assert {name: copy.read(name) for name in copy} == MEMBERS
    with ThreadPoolExecutor(8) as pool:
        names = list(MEMBERS) * 100
        assert list(pool.map(pictures.read, names)) == [MEMBERS[name] for name in names]
    code = "import pickle, sys; print(len(pickle.load(sys.stdin.buffer).read('a/one.jpg')))"
    ran = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(pictures), capture_output=True, check=True)
    assert ran.stdout.strip() == b"5000"


def test_the_same_pictures_are_packed_into_the_same_bytes(tmp_path: Path) -> None:
    for name in ("x.zip", "y.zip"):
        pack(tmp_path / name, MEMBERS.items())
    assert (tmp_path / "x.zip").read_bytes() == (tmp_path / "y.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_a_broken_pack_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    def broken():
        yield "a.jpg", b"a"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        pack(tmp_path / "x.zip", broken())
    assert list(tmp_path.iterdir()) == []


def test_a_link_replaces_what_was_there_and_other_sources_archives_are_removed(folder: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    pack(linked / "x.zip", [("old.jpg", b"old")])
    for name in ("drawn.zip", "coco2017_1000.zip", ".x.zip.17.partial"):
        pack(linked / name, [("stray.jpg", b"")])
    (linked / "stray.zip").symlink_to(folder / "1.zip")
    link(linked / "x.zip", folder / "2.zip", "fetch.pictures")
    keep_only(linked, ["x.zip"])
    assert [path.name for path in linked.iterdir()] == ["x.zip"]
    assert list(Pictures(linked)) == ["b.jpg"]
    assert (linked / "x.zip").readlink().is_absolute()


@pytest.mark.parametrize("path", ["1.zip", "another.zip"])
def test_an_archive_is_not_replaced_by_a_link_to_itself(folder: Path, path: str) -> None:
    before = (folder / "1.zip").read_bytes()
    with pytest.raises(
        ValueError, match=r"fetch\.pictures: .*1\.zip must lie outside .*, where fetch deletes what it has not"
    ):
        link(folder / path, folder / "1.zip", "fetch.pictures")
    assert sorted(entry.name for entry in folder.iterdir()) == ["1.zip", "2.zip"]
    assert (folder / "1.zip").read_bytes() == before


def with_size(archive: Path, name: bytes, size: int) -> None:
    """Makes the archive's directory declare another size for a member."""
    data = bytearray(archive.read_bytes())
    entry = data.index(b"PK\1\2", data.rindex(name) - 46)
    struct.pack_into("<I", data, entry + 24, size)
    archive.write_bytes(data)


def test_absent_and_damaged_archives_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"x\.jpg is not in .*1\.zip, .*2\.zip"):
        Pictures(folder).read("x.jpg")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PictureError, match="empty holds no zip archive of pictures: run `dvc repro fetch`"):
        Pictures(tmp_path / "empty")
    whole = (folder / "2.zip").read_bytes()
    (folder / "2.zip").write_bytes(whole[:40])
    with pytest.raises(PictureError, match=r"2\.zip \(40 bytes\) is not a whole zip"):
        Pictures(folder)
    (folder / "2.zip").unlink()
    (folder / "2.zip").symlink_to(tmp_path / "gone.zip")
    with pytest.raises(PictureError, match=r"2\.zip points to .*gone\.zip, which is not there: put it back"):
        Pictures(folder)
    (folder / "2.zip").unlink()
    pack(folder / "2.zip", [("a/one.jpg", b"")])
    with pytest.raises(PictureError, match=r"a/one\.jpg is twice in the pictures: in .*1\.zip and in .*2\.zip"):
        Pictures(folder)


def test_damaged_and_lying_members_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.zip"
    pack(path, [("a.jpg", b"picture")])
    good = path.read_bytes()
    path.write_bytes(good.replace(b"picture", b"pictura"))
    with pytest.raises(PictureError, match=r"a\.jpg is damaged in .*x\.zip: fetch the archive again"):
        Pictures(path).read("a.jpg")
    path.write_bytes(good.replace(b"PK\3\4", b"PK\3\5"))
    with pytest.raises(PictureError, match="is damaged"):
        Pictures(path).read("a.jpg")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.jpg", b"\0" * 10_000_000)
    with_size(path, b"bomb.jpg", 100)
    with pytest.raises(PictureError, match=r"bomb\.jpg is damaged"):
        Pictures(path).read("bomb.jpg")
    monkeypatch.setattr(module, "MAX_BYTES", 50)
    with pytest.raises(PictureError, match=r"bomb\.jpg has 100 bytes, more than the 50 allowed"):
        Pictures(path).read("bomb.jpg")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.jpg", b"x")
    with pytest.raises(PictureError, match=r"a\.jpg is encrypted or not packed by deflate: repack it"):
        Pictures(path)


def test_a_member_is_never_unpacked_beyond_its_declared_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.jpg", b"\0" * 10_000_000)
    with_size(path, b"bomb.jpg", 100)
    unpacked = []
    real = Pictures._inflate
    monkeypatch.setattr(Pictures, "_inflate", staticmethod(lambda d, s: unpacked.append(real(d, s)) or unpacked[-1]))
    with pytest.raises(PictureError):
        Pictures(path).read("bomb.jpg")
    assert len(unpacked[0]) == 101


# --- decoding ---------------------------------------------------------------------------------------------------------


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


RAMP = np.arange(60 * 40 * 3, dtype=np.uint32).reshape(60, 40, 3) * 7919 % 256
RGB = Image.fromarray(RAMP.astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK"])
def test_modes_become_what_pillow_converts_them_to(mode: str) -> None:
    image = RGB.convert(mode)
    shown = decode(encoded(image, "TIFF"))
    assert shown.mode == "RGB"
    assert np.array_equal(np.asarray(shown), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_has_its_colours() -> None:
    shown = np.asarray(decode(encoded(Image.new("RGB", (16, 16), "red").convert("CMYK"), "JPEG", quality=95)))
    assert np.abs(shown.astype(int) - (255, 0, 0)).max() < 12


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    deep = (np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16) + 5
    for kind in ("PNG", "TIFF", "PPM"):
        shown = np.asarray(decode(encoded(Image.fromarray(deep), kind)))
        assert np.array_equal(shown[..., 1], deep >> 8), kind


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(np.full((4, 4), 70_000, np.int32)), "pixel values 70000 to 70000: at most 16 bits"),
        (Image.fromarray(np.ones((4, 4), np.float32)), "floating-point pixels, whose range nobody knows"),
    ],
)
def test_pixels_without_a_known_range_are_refused(image: Image.Image, message: str) -> None:
    with pytest.raises(PictureError, match=message):
        decode(encoded(image, "TIFF"))


def test_what_is_transparent_is_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = Image.new("LA", (4, 4), (0, 128))
    palette = Image.new("P", (4, 4), 0)
    assert decode(encoded(clear, "PNG")).getpixel((0, 0)) == (255, 255, 255)
    assert decode(encoded(half, "PNG")).getpixel((0, 0)) == (127, 127, 127)
    assert decode(encoded(palette, "PNG", transparency=0)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(10))  # 1 to 8 are known
def test_turned_as_exif_says(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(RGB, "JPEG", exif=exif, quality=95)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(decode(data)), np.asarray(expected))


def test_damaged_exif_turns_nothing() -> None:
    data = encoded(RGB, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(data).size == RGB.size


@pytest.mark.parametrize(("size", "at_least", "expected"), [
    ((640, 480), 224, (320, 240)),
    ((480, 640), 241, (480, 640)),
    ((4000, 3000), 224, (500, 375)),
    ((640, 480), 700, (640, 480)),
    ((640, 480), None, (640, 480)),
])  # fmt: skip
def test_a_draft_is_never_smaller_than_asked(size: tuple[int, int], at_least: int | None, expected: object) -> None:
    assert decode(picture(size=size), at_least).size == expected
    assert decode(picture("PNG", size=size), at_least).size == size


def test_a_draft_shows_the_same() -> None:
    smooth = Image.linear_gradient("L").resize((1024, 1024)).convert("RGB")
    draft = decode(encoded(smooth, "JPEG", quality=95), 256)
    assert draft.size == (256, 256)
    exact = np.asarray(smooth.resize((256, 256), Image.Resampling.BOX), int)
    assert np.abs(np.asarray(draft, int) - exact).max() <= 3


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header declares that many pixels and that holds none."""
    chunks = b""
    for kind, data in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", b""),
        (b"IEND", b""),
    ):
        chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("size", [(30_000, 30_000), (MAX_PIXELS // 2 + 1, 2), (2**31 - 1, 2**31 - 1)])
def test_pixel_bombs_are_refused_before_they_are_decoded(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(PictureError, match="more than the 178,956,970"):
        decode(png_claiming(*size))


def test_the_limit_holds_where_pillows_own_is_lifted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(PictureError, match="has 30,000 x 30,000 pixels, more than the 178,956,970 allowed"):
        decode(png_claiming(30_000, 30_000))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is in none of the formats JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "is in none of the formats"),
        (picture(size=(400, 300))[:2_000], r"cannot be decoded \(OSError: .*truncated"),
        (picture("PNG")[:-30], "cannot be decoded"),
    ],
)
def test_what_cannot_be_decoded_says_why(data: bytes, message: str) -> None:
    with pytest.raises(PictureError, match=message):
        decode(data)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM"]), st.randoms(use_true_random=False))
def test_damaged_bytes_are_a_picture_or_a_picture_error(kind: str, chance: random.Random) -> None:
    data = bytearray(encoded(RGB, kind))
    for _ in range(chance.randint(1, 20)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    data = data[: chance.randint(1, len(data))] if chance.random() < 0.3 else data
    try:
        shown = decode(bytes(data), chance.choice((None, 8)))
    except PictureError:
        return
    assert shown.mode == "RGB"
    with Image.open(io.BytesIO(data)) as image:
        image.load()  # what Pillow cannot read is no picture


@pytest.mark.shared
def test_real_photographs_have_the_size_that_coco_states(shared: Path) -> None:
    pictures = Pictures(shared / "coco" / "train2017_80images.zip")
    for entry in read_captions(shared / "coco" / "captions_train2017_80images.json"):
        shown = decode(pictures.read(f"train2017/{Path(entry.file_name).name}"))
        assert (shown.mode, shown.size) == ("RGB", (entry.width, entry.height))
