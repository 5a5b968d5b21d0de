"""Microsoft COCO: 123,287 photographs with five captions each, from its server, a mirror, or where they lie already.

Whole archives are kept in data/downloads (once for all profiles, and for the copies of the repository that experiments
run in) and linked into data/P/pictures. With `limit`, a few pictures are picked out of the archives into a small one.

`official` split: COCO's own test pictures have no captions, so val, in the order of ids, is halved into val and test.
`karpathy` split: that of Karpathy and Li (1412.2306), which captioning papers report; its restval joins train. Both go
by picture ids, and 2017 has the pictures of 2014 in other archives, so that either goes with either year.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stages.fetch.archives import keep_clear, keep_only, link
from stages.fetch.captions import SPLITS, Picture, ids_sha256
from stages.fetch.coco_files import PARTS, CocoError, CocoFiles
from stages.fetch.settings import Coco
from stages.files import named, read_json, whole

# Pictures of train, val and test by (split, year).
COUNTS: dict[tuple[str, int], tuple[int, int, int]] = {
    ("official", 2014): (82_783, 20_252, 20_252),
    ("official", 2017): (118_287, 2_500, 2_500),
    ("karpathy", 2014): (113_287, 5_000, 5_000),
    ("karpathy", 2017): (113_287, 5_000, 5_000),
}

HALVED = "COCO's own test pictures have no captions: val and test are the halves of its val, in the order of ids"

Splits = dict[str, list[Picture]]


def fetch_coco(settings: Coco, data: Path) -> tuple[Splits, dict[str, Any]]:
    """Puts COCO's pictures into data/pictures; returns the pictures by split, in the order of ids, and what to report.

    What is small and doubtful comes first: annotations and splits are checked before any picture is fetched.
    Raises CocoError, CaptionsError, DownloadError or RemoteError, and ValueError where a setting names files that lie
    in data/pictures.
    """
    for name in ("base_url", "karpathy", "images", "annotations"):
        place = getattr(settings, name)
        local = (place or "").removeprefix("file://")
        if local and "://" not in local:
            keep_clear(data / "pictures", f"fetch.{name}", named(local))
    files = CocoFiles(settings, named(str(data.parent / "downloads")))
    parts = {part: files.captions(part) for part in PARTS}
    report: dict[str, Any] = {"year": settings.year, "split": settings.split, "expect": settings.expect}
    if settings.split == "official":
        splits, report["test"] = by_halves(parts), HALVED
        print(f"fetch: {HALVED}", file=sys.stderr)
    else:
        splits, report["unmatched"] = by_karpathy(parts, read_karpathy(files.karpathy()))
    if settings.expect == "official":
        check_counts(splits, settings.split, settings.year, report.get("unmatched", {}))
    if settings.limit is not None:
        report["limit"] = {
            "pictures": settings.limit,
            "seed": settings.seed,
            "of": {
                split: {"pictures": len(all_), "ids_sha256": ids_sha256(map(_id, all_))}
                for split, all_ in splits.items()
            },
        }
        splits = limited(splits, settings.limit, settings.seed)
    _place(files, _by_part(splits, settings.year), settings, data / "pictures")
    return splits, {**report, "files": files.used}


def _place(files: CocoFiles, names: dict[str, list[str]], settings: Coco, folder: Path) -> None:
    """Has `folder` hold the pictures named, and nothing else: links to whole archives, or one small archive."""
    folder.mkdir(parents=True, exist_ok=True)
    before = {path.name for path in folder.iterdir()}
    if settings.limit is None:
        archives = files.archives(names)
        for archive in archives:
            link(folder / archive.name, archive, "fetch.images")
        after = {archive.name for archive in archives} | _witness(folder, archives, names)
    else:
        after = {f"coco{settings.year}_{settings.limit}.zip"}
        files.pick(names, folder / f"coco{settings.year}_{settings.limit}.zip")
    for name in sorted(before - after):
        print(f"{folder / name} is from other settings: removed, nothing of it is used", file=sys.stderr)
    keep_only(folder, after)


def _witness(folder: Path, archives: list[Path], names: dict[str, list[str]]) -> set[str]:
    """Writes names and sizes of a linked folder's pictures beside the link: DVC looks into linked files only."""
    written = set()
    for archive, wanted in zip(archives, names.values(), strict=True):
        if archive.is_dir():
            with whole(folder / f"{archive.name}.txt") as partial:
                lines = (f"{name} {(archive.parent / name).stat().st_size}\n" for name in wanted)
                partial.write_text("".join(lines), encoding="utf-8")
            written.add(f"{archive.name}.txt")
    return written


# --- splits --------------------------------------------------------------------------------------------------------


def by_halves(parts: Splits) -> Splits:
    """COCO's train, and its val halved in the order of ids: the first half is val, the second test."""
    val = sorted(parts["val"], key=_id)
    return {"train": sorted(parts["train"], key=_id), "val": val[: len(val) // 2], "test": val[len(val) // 2 :]}


def by_karpathy(parts: Splits, assigned: dict[int, str]) -> tuple[Splits, dict[str, int]]:
    """Pictures by the split that `assigned` names for their ids; and how many ids only one of the two sides knows."""
    splits: Splits = {split: [] for split in SPLITS}
    pictures = sorted((picture for part in PARTS for picture in parts[part]), key=_id)
    for picture in pictures:
        if picture.id in assigned:
            splits[assigned[picture.id]].append(picture)
    matched = sum(map(len, splits.values()))
    return splits, {"without_split": len(pictures) - matched, "without_captions": len(assigned) - matched}


def read_karpathy(path: Path) -> dict[int, str]:
    """Karpathy's dataset_coco.json as picture id -> train, val or test (restval is train). Raises CocoError."""
    document = read_json(path)
    entries = document.get("images") if isinstance(document, dict) else None
    if not isinstance(entries, list) or document.get("dataset", "coco") != "coco":
        raise CocoError(f"{path} is not Karpathy's dataset_coco.json: it must hold `images` and `dataset`: coco")
    splits = {"train": "train", "restval": "train", "val": "val", "test": "test"}
    assigned: dict[int, str] = {}
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict) or type(entry.get("cocoid")) is not int or entry.get("split") not in splits:
            raise CocoError(f"{path}: images[{place}] must have a `cocoid` and a `split` of {', '.join(splits)}")
        if entry["cocoid"] in assigned:
            raise CocoError(f"{path}: images[{place}] has cocoid {entry['cocoid']}, which an earlier one has already")
        assigned[entry["cocoid"]] = splits[entry["split"]]
    return assigned


def check_counts(splits: Splits, split: str, year: int, unmatched: dict[str, int]) -> None:
    """Raises CocoError unless every split has as many pictures as COCO's and no id is left over."""
    found, expected = tuple(len(splits[name]) for name in SPLITS), COUNTS[split, year]
    if found != expected or any(unmatched.values()):
        raise CocoError(
            f"the {split} split of {year} has {_numbers(found)} pictures in {', '.join(SPLITS)}, expected "
            f"{_numbers(expected)}{f', and {unmatched}' if any(unmatched.values()) else ''}: the annotations or the "
            "split are not COCO's own; delete them, or say `expect: own` where this is meant"
        )


def limited(splits: Splits, limit: int, seed: int) -> Splits:
    """At most so many pictures of each split: those whose SHA-256 of "seed/id" is smallest, in the order of ids.

    So the choice looks at nothing in a picture, and a larger limit with the same seed keeps the pictures of a smaller.
    """

    def rank(picture: Picture) -> bytes:
        return hashlib.sha256(f"{seed}/{picture.id}".encode()).digest()

    return {split: sorted(sorted(pictures, key=rank)[:limit], key=_id) for split, pictures in splits.items()}


def _by_part(splits: Splits, year: int) -> dict[str, list[str]]:
    """Names of all pictures by COCO's own part, each sorted."""
    names = sorted(picture.file_name for split in SPLITS for picture in splits[split])
    return {part: [name for name in names if name.startswith(f"{part}{year}/")] for part in PARTS}


def _id(picture: Picture) -> int:
    return picture.id


def _numbers(numbers: Iterable[int]) -> str:
    return " / ".join(f"{number:,}" for number in numbers)
