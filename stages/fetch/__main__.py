"""Reads  what params.yaml names as source: nothing (drawn), files of the user (flickr8k, folder), a server (coco).
Writes data/P/pictures/*.zip (or links), data/P/captions_{train,val,test}.json, reports/P/fetch.json.
Why    every later stage reads the same three things, whatever the pictures came from; all doubts about them end here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from stages import params, rim
from stages.fetch.captions import SPLITS, Picture, ids_sha256, write_captions
from stages.fetch.coco import fetch_coco
from stages.fetch.drawn import fetch_drawn
from stages.fetch.flickr8k import fetch_flickr8k
from stages.fetch.folder import fetch_folder
from stages.fetch.pictures import Pictures
from stages.fetch.settings import Coco, Drawn, Flickr8k, Folder
from stages.files import write_json


def main() -> None:
    profile, settings = params.read("fetch")
    data = Path("data") / profile
    splits, report = _source(settings, data)
    _agree(splits, Pictures(data / "pictures"))
    for split in SPLITS:
        write_captions(data / f"captions_{split}.json", splits[split], {"description": f"{profile}, {split}"})
    counts = {
        split: {
            "pictures": len(splits[split]),
            "captions": sum(len(picture.captions) for picture in splits[split]),
            "ids_sha256": ids_sha256(picture.id for picture in splits[split]),
        }
        for split in SPLITS
    }
    write_json(Path("reports") / profile / "fetch.json", {"source": settings.source, "splits": counts, **report})
    for name, why in report.get("left_out", {}).items():
        print(f"fetch: left out {name}: {why}", file=sys.stderr)
    print("fetch: " + ", ".join(f"{len(splits[split]):,} pictures for {split}" for split in SPLITS))


def _source(settings: Any, data: Path) -> tuple[dict[str, list[Picture]], dict[str, Any]]:
    """Has the source put its archives into data/pictures; returns its pictures by split, and what to report."""
    match settings:
        case Drawn():
            return fetch_drawn(settings, data)
        case Flickr8k():
            return fetch_flickr8k(settings, data)
        case Folder():
            return fetch_folder(settings, data)
        case Coco():
            return fetch_coco(settings, data)
    raise AssertionError(f"settings of no known source: {settings!r}")


def _agree(splits: dict[str, list[Picture]], pictures: Pictures) -> None:
    """Raises ValueError unless every split has pictures, all are in the archives, and none is in two places."""
    seen: dict[int, str] = {}
    for split in SPLITS:
        if not splits[split]:
            raise ValueError(f"split {split} has no pictures: give more, or change how they are split")
        for picture in splits[split]:
            if picture.id in seen:
                raise ValueError(f"picture {picture.id} ({picture.file_name}) is in {seen[picture.id]} and in {split}")
            if picture.file_name not in pictures:
                raise ValueError(f"picture {picture.file_name} of {split} is in none of the archives")
            seen[picture.id] = split


if __name__ == "__main__":
    rim.stage("fetch", __doc__, main)
