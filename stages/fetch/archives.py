"""How pictures get into data/P/pictures: packed there, or linked from where their archive lies already."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

from stages.files import whole


def pack(path: Path, pictures: Iterable[tuple[str, bytes]]) -> None:
    """Writes (name, bytes) as a zip archive, stored as they are: pictures are compressed already.

    The same pictures give the same bytes: no clock, owner or zip-program version gets in.
    """
    with whole(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for name, data in pictures:
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, data)


def keep_clear(folder: Path, setting: str, path: Path) -> None:
    """Raises ValueError where `path`, which a setting names, is `folder` or lies in it, itself or what it links to."""
    home = folder.resolve()
    if any(place.resolve().is_relative_to(home) for place in (path, path.parent)):
        raise ValueError(
            f"{setting}: {path} must lie outside {folder}, where fetch deletes what it has not made itself: move it "
            "elsewhere"
        )


def link(path: Path, target: Path, setting: str) -> None:
    """Makes `path` a symbolic link to the archive `target`, replacing what was there: gigabytes are not copied.

    Raises ValueError where `target`, which a setting names, lies in the folder of `path`: it would be replaced by a
    link to itself, or deleted.
    """
    keep_clear(path.parent, setting, target)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.symlink_to(target.resolve(strict=True))
    partial.replace(path)


# What any source of fetch leaves in data/P/pictures, beside links and hidden files of its own.
MADE = re.compile(
    r"drawn\.zip|pictures\.zip|coco\d{4}_\d+\.zip|(train|val)\d{4}\.txt|(Flicker8k_Dataset|Flickr8k_Dataset|Images)\.zip"
    r"|\..+\.(partial|lock|checked|from)"
)


def keep_only(folder: Path, names: Iterable[str]) -> None:
    """Removes files of an earlier source or a broken run: whatever archive lies in the folder counts as pictures.

    Raises ValueError, and removes nothing, where one is none that fetch makes: it may be somebody's only copy.
    """
    keep = set(names)
    others = [path for path in folder.iterdir() if path.name not in keep]
    for path in others:
        if not (path.is_symlink() or (path.is_file() and MADE.fullmatch(path.name))):
            raise ValueError(
                f"{path} is nothing that fetch has made, and {folder} holds nothing else: move it elsewhere"
            )
    for path in others:
        path.unlink()
