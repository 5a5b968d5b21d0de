"""Source `folder`: anyone's own pictures, in a folder or a zip archive, and a file with their captions.

    captions.json       COCO's captions format; `file_name` says which picture
    captions.csv        a row per caption: columns `picture` and `caption`, or as named in the settings
    captions.jsonl      an object per line with the same two keys

A picture with several captions has several rows. Whether a picture is for train, val or test is decided by a hash of
its id (COCO) or name, so that it stays where it is when others are added.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from stages.fetch.archives import keep_clear, keep_only, link, pack
from stages.fetch.captions import SPLITS, CaptionsError, Picture, check_name, read_captions, read_text
from stages.fetch.pictures import MAX_BYTES, PictureError, Pictures, is_archive
from stages.fetch.settings import Folder
from stages.fetch.usable import counted, decodable, refuse
from stages.files import named

ARCHIVE = "pictures.zip"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


def fetch_folder(settings: Folder, data: Path) -> tuple[dict[str, list[Picture]], dict[str, Any]]:
    """Links or packs the pictures into data/pictures; returns them by split, and what to report.

    Raises CaptionsError where the captions file breaks a rule (with its line), PictureError where more than
    `allow_missing` pictures are missing or damaged, ValueError where pictures or captions lie in data/pictures.
    """
    keep_clear(data / "pictures", "fetch.pictures", named(settings.pictures))
    keep_clear(data / "pictures", "fetch.captions", named(settings.captions))
    entries = read_entries(named(settings.captions), settings.picture_column, settings.caption_column)
    captioned = [entry for entry in entries if entry.captions]
    members, missing = _archive(named(settings.pictures), data / "pictures", captioned, settings.allow_missing)
    names = [members.get(entry.file_name, entry.file_name) for entry in captioned]
    sizes, unusable = decodable(Pictures(data / "pictures"), names, settings.allow_missing, missing)
    splits: dict[str, list[Picture]] = {split: [] for split in SPLITS}
    for entry, member in zip(captioned, names, strict=True):
        if member in sizes:
            width, height = sizes[member]
            split = split_of(entry.id, settings.val_percent, settings.test_percent)
            splits[split].append(replace(entry, file_name=member, width=width, height=height))
    uncaptioned = members.keys() | {entry.file_name for entry in entries}
    return splits, {
        "pictures_without_captions": counted(uncaptioned - {entry.file_name for entry in captioned}),
        "left_out": dict(sorted(unusable.items())),
    }


def split_of(number: int, val_percent: int, test_percent: int) -> str:
    """train, val or test, from a hash of a picture's id alone."""
    percent = int.from_bytes(hashlib.sha256(str(number).encode()).digest()[:8]) % 100
    return "test" if percent < test_percent else "val" if percent < test_percent + val_percent else "train"


def read_entries(path: Path, picture_column: str, caption_column: str) -> list[Picture]:
    """Reads a captions file of any of the three kinds. Sizes are as the file says, 0 where it does not."""
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows}
    if path.suffix == ".json":
        return read_captions(path, uncaptioned=True)
    if path.suffix not in readers:
        raise CaptionsError(f"{path} must end with .json (COCO's captions format), {' or '.join(readers)}")
    captions: dict[str, list[str]] = {}
    for line, row in readers[path.suffix](path):
        for column in (picture_column, caption_column):
            if not isinstance(row.get(column), str):
                raise CaptionsError(
                    f"{path}, line {line}: column {column!r} must hold text; the line has {dict(row)!r}. "
                    "Columns are named by fetch.picture_column and fetch.caption_column"
                )
        if not row[caption_column].strip():
            raise CaptionsError(f"{path}, line {line}: the caption of {row[picture_column]} is empty")
        try:
            name = PurePosixPath(check_name(row[picture_column].strip())).as_posix()
        except CaptionsError as error:
            raise CaptionsError(f"{path}, line {line}: {error}") from None
        captions.setdefault(name, []).append(row[caption_column].strip())
    return [Picture(_id(name), name, 0, 0, tuple(said)) for name, said in captions.items()]


def _id(name: str) -> int:
    """A number for a picture that has only a name: 48 bits of the name's SHA-256, exact in every JSON reader."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6])


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        for row in reader:
            if None in row:  # what DictReader has no column for
                raise CaptionsError(
                    f"{path}, line {reader.line_num}: has more fields than the header, {row[None]!r} at its end: a "
                    "caption with a comma must stand in double quotes"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise CaptionsError(f"{path}, line {reader.line_num + 1}: is not CSV: {error}") from error


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CaptionsError(
                f"{path}, line {number}: is not whole JSON: {error.msg} at column {error.colno}"
            ) from error
        if not isinstance(row, dict):
            raise CaptionsError(f"{path}, line {number}: must be an object, is {row!r}")
        yield number, row


def _archive(
    pictures: Path, folder: Path, entries: list[Picture], allow_missing: int
) -> tuple[dict[str, str], dict[str, str]]:
    """Has the pictures in one archive in `folder`. Returns the member of every picture that is there, by its name, and
    why those that were left out cannot be."""
    if is_archive(pictures) and pictures.is_file():
        names = [name for name in Pictures(pictures) if _is_picture(name)]
        tops = {name.partition("/")[0] if "/" in name else "" for name in names}
        top = f"{tops.pop()}/" if len(tops) == 1 else ""  # a zip of a folder: captions may leave its name out
        link(folder / pictures.name, pictures, "fetch.pictures")
        keep_only(folder, [pictures.name])
        as_they_are = {name: name for name in names}
        if any(entry.file_name in as_they_are for entry in entries):
            return as_they_are, {}
        return {name.removeprefix(top): name for name in names}, {}
    if not pictures.is_dir():
        raise PictureError(f"fetch.pictures: {pictures} is neither a folder nor a zip archive")
    found = (path.relative_to(pictures).as_posix() for path in sorted(pictures.rglob("*")) if path.is_file())
    members = {name: name for name in found if _is_picture(name)}
    missing = {}
    for name in (entry.file_name for entry in entries):
        if not (pictures / name).is_file():
            missing[name] = "is not there"
        elif (size := (pictures / name).stat().st_size) > MAX_BYTES:
            missing[name] = f"has {size:,} bytes, more than the {MAX_BYTES:,} allowed"
    refuse(missing, allow_missing)
    # Whatever a caption names counts, by whatever link or ending: what it is, decoding says.
    wanted = sorted(entry.file_name for entry in entries if entry.file_name not in missing)
    pack(folder / ARCHIVE, ((name, (pictures / name).read_bytes()) for name in wanted))
    keep_only(folder, [ARCHIVE])
    return members | {name: name for name in wanted}, missing


def _is_picture(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and path.parts[0] != "__MACOSX" and not path.name.startswith(".")
