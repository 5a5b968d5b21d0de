"""Pictures read where they lie: members of zip archives, and any picture format as plain RGB.

An archive is never unpacked: 123,287 files take minutes to write, hash and delete, while a member is read in place in a
fraction of a millisecond. The index is Python's zipfile; members are then read by position, so that threads and forked
processes can share one index, and a member costs one system call.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 178_956_970  # what Pillow itself refuses: 0.7 GB as Pillow keeps them
MAX_BYTES = 256 << 20  # of one archive member: far beyond any photograph, small enough to hold in memory

# No format that starts another program (EPS) or that nobody photographs in: fewer decoders, fewer holes.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

# EXIF's orientation (tag 274) as what undoes it; 1 is upright. CIPA DC-008, 4.6.5.
_ORIENTATION = 274
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What Pillow's decoders raise when a file is damaged; anything else is our own mistake.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, struct.error, zlib.error)


class PictureError(ValueError):
    """A picture that is not there, is damaged, or is larger than allowed; the message says which and why."""


def is_archive(path: Path) -> bool:
    """Whether a file's name says that it is a zip archive, in small letters or capitals."""
    return path.suffix.lower() == ".zip"


class _Member(NamedTuple):
    archive: int  # place in Pictures.archives
    header: int  # byte at which its local header begins; -1 where the archive is an unpacked folder
    packed: int  # bytes in the archive
    size: int  # bytes after unpacking
    crc: int
    method: int  # zipfile.ZIP_STORED or ZIP_DEFLATED


class Pictures:
    """The pictures of all zip archives in a folder (or of one archive), by member name; together one namespace.

    A folder in it (a link to where a user has unpacked an archive) counts as one; its members are FOLDER/NAME.
    Iterates over names in the archives' order. Can be pickled: another process reopens the archives, not the index.
    Raises PictureError where an archive is missing or damaged, or a name occurs twice.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        here = [path] if is_archive(path) else sorted(path.glob("*"))
        self.archives = [archive for archive in here if is_archive(archive) or archive.is_dir()]
        if not self.archives:
            raise PictureError(f"{path} holds no zip archive of pictures: run `dvc repro fetch`")
        self._members: dict[str, _Member] = {}
        self._files: list[int] | None = None
        for number, archive in enumerate(self.archives):
            self._index(number, archive)

    def _index(self, number: int, archive: Path) -> None:
        if archive.is_dir():
            with os.scandir(archive) as entries:
                sizes = sorted((entry.name, entry.stat().st_size) for entry in entries if entry.is_file())
            for name, size in sizes:
                self._members[f"{archive.name}/{name}"] = _Member(number, -1, size, size, 0, zipfile.ZIP_STORED)
            return
        try:
            with zipfile.ZipFile(archive) as opened:
                members = opened.infolist()
        except FileNotFoundError:
            points = f" points to {archive.readlink()}, which" if archive.is_symlink() else ""
            raise PictureError(f"{archive}{points} is not there: put it back, or run `dvc repro fetch`") from None
        except (zipfile.BadZipFile, EOFError, struct.error) as error:
            size = archive.stat().st_size
            raise PictureError(f"{archive} ({size:,} bytes) is not a whole zip: {error}. Fetch it again") from error
        for info in members:
            if info.is_dir():
                continue
            if info.filename in self._members:
                other = self.archives[self._members[info.filename].archive]
                raise PictureError(f"{info.filename} is twice in the pictures: in {other} and in {archive}")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
                raise PictureError(f"{archive}: {info.filename} is encrypted or not packed by deflate: repack it")
            self._members[info.filename] = _Member(
                number, info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type
            )

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, file_name: object) -> bool:
        return file_name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": None}

    def __del__(self) -> None:
        for file in getattr(self, "_files", None) or ():
            os.close(file)

    def size(self, file_name: str) -> int:
        """Bytes of a picture, from the index."""
        return self._members[file_name].size

    def checksum(self, file_name: str) -> int:
        """CRC-32 of a picture, from the archive's index (unpacked, from its bytes): tells what is shown there apart."""
        member = self._members[file_name]
        return zlib.crc32(self.read(file_name)) if member.header < 0 else member.crc

    def read(self, file_name: str) -> bytes:
        """One picture's bytes, as they were packed. Raises PictureError where they are absent or damaged."""
        member = self._members.get(file_name)
        if member is None:
            raise PictureError(f"{file_name} is not in {', '.join(map(str, self.archives))}")
        if max(member.size, member.packed) > MAX_BYTES:
            raise PictureError(f"{file_name} has {member.size:,} bytes, more than the {MAX_BYTES:,} allowed")
        if member.header < 0:
            try:
                return (self.archives[member.archive].parent / file_name).read_bytes()
            except OSError as error:
                raise PictureError(f"{file_name} was in {self.archives[member.archive]} before: {error}") from error
        if self._files is None:
            self._files = [os.open(archive, os.O_RDONLY) for archive in self.archives]
        # Local header (APPNOTE 4.3.7): 30 bytes, then name and extra field, whose lengths are its last two numbers.
        # Both are read with the data in one call; the extra field is rarely as long as assumed here.
        file, guess = self._files[member.archive], 30 + len(file_name.encode()) + 64
        data = os.pread(file, guess + member.packed, member.header)
        if data[:4] == b"PK\3\4" and len(data) >= 30:
            start = 30 + sum(struct.unpack_from("<HH", data, 26))
            if len(data) < start + member.packed:
                data += os.pread(file, start + member.packed - len(data), member.header + len(data))
            data = data[start : start + member.packed]
            if member.method == zipfile.ZIP_DEFLATED:
                data = self._inflate(data, member.size)
            if len(data) == member.size and zlib.crc32(data) == member.crc:
                return data
        raise PictureError(f"{file_name} is damaged in {self.archives[member.archive]}: fetch the archive again")

    @staticmethod
    def _inflate(data: bytes, size: int) -> bytes:
        """Unpacks at most one byte more than the archive declares: a zip bomb ends there."""
        try:
            return zlib.decompressobj(-15).decompress(data, size + 1)
        except zlib.error:
            return b""


def decode(data: bytes, at_least: int | None = None) -> Image.Image:
    """Any picture as upright 8-bit RGB: grey, palette, CMYK and 16 bits converted, transparency laid over white.

    With `at_least`, a JPEG may come back smaller by 2, 4 or 8, both sides still at least that many pixels: its decoder
    then does an eighth of the work. Raises PictureError, before decoding where the picture has over MAX_PIXELS pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of size below the limit, of metadata that nobody needs
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise PictureError(f"has {width:,} x {height:,} pixels, more than the {MAX_PIXELS:,} allowed")
                if at_least is not None:
                    image.draft(None, (at_least, at_least))
                image.load()  # before EXIF is asked for, which loads a PNG too and keeps to itself that it is damaged
                turn = _UPRIGHT.get(_orientation(image))
                rgb = _rgb(image)
                return rgb.transpose(turn) if turn is not None else rgb
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError(f"is in none of the formats {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"has more than the {MAX_PIXELS:,} pixels allowed ({error})") from error
    except _DAMAGE as error:
        raise PictureError(f"cannot be decoded ({type(error).__name__}: {error})") from error


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 where there is none; damaged EXIF makes no picture worse, viewers ignore it too."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except _DAMAGE:
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion clips at 255 instead of scaling
        low, high = image.convert("I").getextrema()
        if low < 0 or high > 65535:  # type: ignore[operator]  # one band has one pair of numbers
            raise PictureError(f"has pixel values {low} to {high}: at most 16 bits, 0 to 65,535, can be read")
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
    if image.mode == "F":
        raise PictureError("has floating-point pixels, whose range nobody knows: save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
