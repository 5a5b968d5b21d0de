"""Captioned pictures as every source delivers them, and the file in which they travel between stages.

The file is COCO's captions format (https://cocodataset.org/#format-data), so that any tool that reads COCO reads it:

    {"info": {...},
     "images": [{"id": 1000268201, "file_name": "Flicker8k_Dataset/1000268201_693b08cb0e.jpg", "width": 224, ...}],
     "annotations": [{"id": 1, "image_id": 1000268201, "caption": "A girl going into a wooden building ."}]}
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from stages.files import read_json, whole

SPLITS = ("train", "val", "test")
HALF = re.compile(r"[\ud800-\udfff]")  # of a character; JSON can say it, and no file can hold it


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture and what people said about it. `file_name` is its member name in the archives of data/P/pictures."""

    id: int
    file_name: str
    width: int  # pixels; 0 where the source does not say
    height: int  # pixels; 0 where the source does not say
    captions: tuple[str, ...]


class CaptionsError(ValueError):
    """A captions file, or what was to go into one, breaks a rule of the format; the message names the entry."""


def check_name(name: str) -> str:
    """Returns a picture's name, or raises CaptionsError where it could lead out of its folder or archive."""
    if not name or name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or "\0" in name:
        raise CaptionsError(f"picture name {name!r} must be relative: no leading slash, no drive letter")
    if ".." in re.split(r"[/\\]", name):
        raise CaptionsError(f"picture name {name!r} climbs out of its folder: it must not contain '..'")
    return name


def read_text(path: Path) -> str:
    """A text file as UTF-8, with or without byte-order mark; anything else is a CaptionsError that names the line."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{data[error.start]:02x}"
        raise CaptionsError(f"{path}, line {line}: {found} is not UTF-8; save the file as UTF-8") from error


def read_captions(path: str | Path, uncaptioned: bool = False) -> list[Picture]:
    """Reads pictures in the file's order, each with its captions in the file's order.

    Every entry is checked: ids and names unique, every caption with a picture, no empty caption, and, unless
    `uncaptioned` allows them, no picture without captions. Raises CaptionsError or ValueError (JSON that is cut).
    """
    try:
        return _pictures(_index(read_json(path)), uncaptioned)
    except CaptionsError as error:
        raise CaptionsError(f"{path}: {error}") from None


_KEYS: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str},
    "annotations": {"id": int, "image_id": int, "caption": str},
}


def _index(document: Any) -> COCO:
    """pycocotools' index over a document whose entries have the right keys and types and name nothing twice."""
    if not isinstance(document, dict) or not all(isinstance(document.get(k), list) for k in ("images", "annotations")):
        raise CaptionsError("is not in COCO's captions format: it must hold the lists `images` and `annotations`")
    for kind, keys in _KEYS.items():
        seen = set()
        for place, entry in enumerate(document[kind]):
            for key, wanted in keys.items():
                if not isinstance(entry, dict) or type(entry.get(key)) is not wanted:
                    raise CaptionsError(f"{kind}[{place}] = {entry!r} must have `{key}` of type {wanted.__name__}")
            if entry["id"] in seen:
                raise CaptionsError(f"{kind}[{place}] has id {entry['id']}, which an earlier entry has already")
            seen.add(entry["id"])
    coco = COCO()
    coco.dataset = document
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress with print
        coco.createIndex()
    return coco


def _pictures(coco: COCO, uncaptioned: bool) -> list[Picture]:
    for image_id, entries in coco.imgToAnns.items():
        if image_id not in coco.imgs:
            raise CaptionsError(f"caption {entries[0]['id']} belongs to picture {image_id}, which `images` lacks")
    pictures: list[Picture] = []
    names: set[str] = set()
    for image in coco.dataset["images"]:
        captions = tuple(annotation["caption"] for annotation in coco.imgToAnns.get(image["id"], ()))
        size = (image.get("width", 0), image.get("height", 0))
        if any(type(side) is not int or side < 0 for side in size):
            raise CaptionsError(f"picture {image['id']} has size {size!r}: width and height must be whole numbers")
        picture = Picture(image["id"], image["file_name"], *size, captions)
        _check(picture, names, uncaptioned)
        pictures.append(picture)
    return pictures


def _check(picture: Picture, names: set[str], uncaptioned: bool) -> None:
    """Adds the picture's name to `names`, or raises CaptionsError."""
    if check_name(picture.file_name) in names:
        raise CaptionsError(f"picture {picture.id} has the name {picture.file_name}, which another picture has already")
    names.add(picture.file_name)
    if not picture.captions and not uncaptioned:
        raise CaptionsError(f"picture {picture.id} ({picture.file_name}) has no caption")
    for caption in picture.captions:
        if not caption.strip():
            raise CaptionsError(f"picture {picture.id} ({picture.file_name}) has an empty caption")
        if HALF.search(caption):
            raise CaptionsError(
                f"picture {picture.id} ({picture.file_name}) has half a character, as of an emoji cut in two, in its "
                f"caption {caption!r}: mend it"
            )


def write_captions(path: str | Path, pictures: Iterable[Picture], info: dict[str, Any]) -> None:
    """Writes pictures in the order given, one entry a line; captions are numbered from 1.

    `info` says where they are from. The same pictures give the same bytes. Raises CaptionsError before it writes.
    """
    images: list[str] = []
    annotations: list[str] = []
    names: set[str] = set()
    ids: set[int] = set()
    for picture in pictures:
        _check(picture, names, uncaptioned=False)
        if picture.id in ids:
            raise CaptionsError(f"picture id {picture.id} ({picture.file_name}) is taken by another picture already")
        ids.add(picture.id)
        size = {"width": picture.width, "height": picture.height}
        images.append(_line({"id": picture.id, "file_name": picture.file_name, **size}))
        for caption in picture.captions:
            annotations.append(_line({"id": len(annotations) + 1, "image_id": picture.id, "caption": caption}))
    with whole(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write('{"info": ' + _line(info) + ',\n"images": [\n')
        file.write(",\n".join(images) + '\n],\n"annotations": [\n' + ",\n".join(annotations) + "\n]}\n")


_line = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def ids_sha256(ids: Iterable[int]) -> str:
    """A split's name that nobody can mistake: SHA-256 of its picture ids, sorted, in decimal, a line each."""
    return hashlib.sha256("".join(f"{number}\n" for number in sorted(ids)).encode()).hexdigest()
