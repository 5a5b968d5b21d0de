"""Source `flickr8k`: the set as it is distributed (Hodosh, Young, Hockenmaier, JAIR 47, 2013), in a folder that holds

    Flickr8k_Dataset.zip, or the pictures unpacked in Flicker8k_Dataset/, Flickr8k_Dataset/ or Images/
    Flickr8k.token.txt                          NAME.jpg#K<tab>caption, five captions a picture
    Flickr_8k.{train,dev,test}Images.txt        names of 6,000, 1,000 and 1,000 pictures

Where there is no test list, val and test are the first and the second half of the dev list.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from stages.fetch.archives import keep_clear, keep_only, link, pack
from stages.fetch.captions import CaptionsError, Picture, check_name, read_text
from stages.fetch.pictures import PictureError, Pictures, is_archive
from stages.fetch.settings import Flickr8k
from stages.fetch.usable import counted, decodable, refuse
from stages.files import named

TOKENS = "Flickr8k.token.txt"
LISTS = {"train": "Flickr_8k.trainImages.txt", "dev": "Flickr_8k.devImages.txt", "test": "Flickr_8k.testImages.txt"}
FOLDERS = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images")


def fetch_flickr8k(settings: Flickr8k, data: Path) -> tuple[dict[str, list[Picture]], dict[str, Any]]:
    """Links or packs the pictures into data/pictures; returns them by split, and what to report.

    Every picture of a split is decoded once. Captions without a picture (the distributed set has five, of
    `2258277193_586949ec62.jpg.1`) and pictures without captions are reported; a picture of a split that is missing or
    damaged is a PictureError beyond `allow_missing`. A root in data/pictures is a ValueError.
    """
    root = named(settings.root)
    if not root.is_dir():
        raise ValueError(f"fetch.root = {settings.root!r}: {root} is not a folder; it must hold Flickr8k's files")
    keep_clear(data / "pictures", "fetch.root", root)
    captions = read_tokens(_file(root, TOKENS))
    lists = read_lists(root)
    wanted = [name for names in lists.values() for name in names]
    members = _archive(root, data / "pictures", set(wanted), settings.allow_missing)
    captioned = [name for name in wanted if name in captions]
    names = [members.get(name, name) for name in captioned]
    sizes, unusable = decodable(Pictures(data / "pictures"), names, settings.allow_missing)
    splits: dict[str, list[Picture]] = {}
    for split, listed in lists.items():
        usable = [name for name in listed if name in captions and members.get(name) in sizes]
        splits[split] = [_picture(members[name], sizes[members[name]], captions[name]) for name in usable]
    return splits, {
        "captions_without_picture": counted(name for name in captions if name not in members),
        "pictures_without_captions": counted(name for name in members.keys() | set(wanted) if name not in captions),
        "captioned_pictures_in_no_list": counted(captions.keys() & members.keys() - set(wanted)),
        "left_out": {PurePosixPath(name).name: why for name, why in sorted(unusable.items())},
    }


def read_tokens(path: Path) -> dict[str, list[str]]:
    """Captions by picture name, in the file's order, from lines `NAME#K<tab>caption`. Raises CaptionsError."""
    captions: dict[str, list[str]] = {}
    seen = set()
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        key, tab, caption = line.partition("\t")
        name, hash_sign, place = key.rpartition("#")
        if not tab or not hash_sign or not place.isdecimal():
            raise CaptionsError(f"{path}, line {number}: {line!r} is not `NAME.jpg#K<tab>caption`")
        if not caption.strip():
            raise CaptionsError(f"{path}, line {number}: the caption of {key} is empty")
        if key in seen:
            raise CaptionsError(f"{path}, line {number}: {key} has a caption already")
        seen.add(key)
        captions.setdefault(check_name(name), []).append(caption.strip())
    if not captions:
        raise CaptionsError(f"{path} holds no captions")
    return captions


def read_lists(root: Path) -> dict[str, list[str]]:
    """Picture names of train, val and test in the lists' order. Raises CaptionsError where a name is listed twice."""
    lists: dict[str, list[str]] = {}
    listed: dict[str, str] = {}
    for kind, file_name in LISTS.items():
        if kind == "test" and not (root / file_name).exists():
            continue
        path = _file(root, file_name)
        lists[kind] = []
        for number, line in enumerate(read_text(path).split("\n"), 1):
            name = line.strip()
            if name in listed:
                raise CaptionsError(f"{path}, line {number}: {name} is in {listed[name]} already")
            if name:
                listed[check_name(name)] = file_name
                lists[kind].append(name)
    dev = lists["dev"]
    if "test" in lists:
        return {"train": lists["train"], "val": dev, "test": lists["test"]}
    half = len(dev) // 2
    return {"train": lists["train"], "val": dev[:half], "test": dev[half:]}


def _archive(root: Path, folder: Path, wanted: set[str], allow_missing: int) -> dict[str, str]:
    """Has the pictures in one archive in `folder`; returns the member of every picture that is there, by its name."""
    unpacked = next((root / name for name in FOLDERS if (root / name).is_dir()), None)
    zips = sorted(path for path in root.iterdir() if is_archive(path))
    # One of another name may be the texts, which are distributed as a zip too.
    zips = [path for path in zips if path.stem in FOLDERS] or ([] if unpacked else zips)
    if len(zips) == 1:
        members: dict[str, str] = {}
        for member in Pictures(zips[0]):
            path = PurePosixPath(member)
            if not _is_picture(path) or path.parts[0] == "__MACOSX":
                continue
            if path.name in members:
                raise PictureError(f"{zips[0]} holds {path.name} twice: as {members[path.name]} and as {member}")
            members[path.name] = member
        link(folder / zips[0].name, zips[0], "fetch.root")
        keep_only(folder, [zips[0].name])
        return members
    if unpacked is None and zips:
        raise PictureError(
            f"{root} holds several zip archives ({', '.join(p.name for p in zips)}): leave the pictures'"
        )
    if unpacked is None:
        raise PictureError(
            f"{root} holds no pictures: give it Flickr8k_Dataset.zip, or a folder {' or '.join(FOLDERS)}"
        )
    members = {path.name: f"{unpacked.name}/{path.name}" for path in sorted(unpacked.iterdir()) if _is_picture(path)}
    refuse(dict.fromkeys(sorted(wanted - members.keys()), "is not there"), allow_missing)
    inside = [(members[name], unpacked / name) for name in sorted(wanted & members.keys())]
    pack(folder / f"{unpacked.name}.zip", ((member, path.read_bytes()) for member, path in inside))
    keep_only(folder, [f"{unpacked.name}.zip"])
    return members


def _is_picture(path: PurePath) -> bool:
    return path.suffix.lower() in (".jpg", ".jpeg")


def _file(root: Path, name: str) -> Path:
    path = root / name
    if not path.is_file():
        raise CaptionsError(f"{path} is not there: it belongs to Flickr8k_text.zip, unpack that into {root}")
    return path


def _picture(member: str, size: tuple[int, int], captions: list[str]) -> Picture:
    """A picture under the id that Flickr gave it, the number before the underscore of its name."""
    number = re.match(r"(\d+)_", PurePosixPath(member).name)
    if number is None:
        raise CaptionsError(f"picture name {member} does not begin with Flickr's number and an underscore")
    return Picture(int(number[1]), member, *size, tuple(captions))
