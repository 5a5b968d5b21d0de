"""A picture that somebody sends to a server: its limits are checked before anything is decoded, no path is ever opened.

For whoever answers strangers: the live page (stages/live) and MLflow's scoring server (register/served.py).
"""

from __future__ import annotations

import base64
import io

from PIL import Image, UnidentifiedImageError

from stages.fetch.pictures import FORMATS, PictureError, decode

MAX_BYTES = 32 << 20  # of one picture's file
MAX_PIXELS = 64_000_000  # of one picture: more than phones take. Decoding takes up to 1 GB, of a WebP up to 1.5
MAX_SCANS = 100  # of one JPEG: cameras write 1, progressive ones about 10
SENDABLE = tuple(name for name in FORMATS if name != "PPM")  # Python itself decodes some PPM, 32 MB in 20 s


def from_base64(text: str) -> bytes:
    """The bytes of a picture given as base64, with or without `data:image/...;base64,`. Raises PictureError."""
    text = text.partition(",")[2] if text.startswith("data:") else text
    check_bytes(len(text) * 3 // 4)
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise PictureError(f"is not base64 ({error})") from error


def check_bytes(size: int) -> None:
    """Raises PictureError where a file is too large to be looked at."""
    if size > MAX_BYTES:
        raise PictureError(f"has {size:,} bytes, more than the {MAX_BYTES:,} allowed")


def decode_sent(data: bytes, at_least: int) -> Image.Image:
    """A picture's file as RGB, like `decode`, within the limits of this module. Raises PictureError."""
    if not data:
        raise PictureError("is empty")
    check_bytes(len(data))
    try:
        with Image.open(io.BytesIO(data), formats=SENDABLE) as header:
            width, height = header.size
    except UnidentifiedImageError as error:
        raise PictureError(f"is in none of the formats {', '.join(SENDABLE)}") from error
    except Exception:  # decode says what is wrong
        width = height = 0
    if width * height > MAX_PIXELS:
        raise PictureError(f"has {width:,} x {height:,} pixels, more than the {MAX_PIXELS:,} allowed")
    # A scan of nothing takes a few bytes and as long as any other: 32 MB of them would take hours. Within a scan 0xff
    # is always followed by 0 or a restart marker (T.81, B.1.1.5): this counts scans, and those of a thumbnail.
    if data.startswith(b"\xff\xd8") and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise PictureError(f"has {scans:,} scans, more than the {MAX_SCANS} allowed: save it as a plain JPEG")
    return decode(data, at_least=at_least)
