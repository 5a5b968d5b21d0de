"""Captions in COCO's results format, as every captioning system writes them: [{"image_id": 42, "caption": "a dog"}]."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from stages.fetch.captions import HALF
from stages.files import read_json, write_json

LARGEST = 256 * 2**20  # bytes; COCO's 40,775 test pictures make 4 MB


class ResultsError(ValueError):
    """A results file breaks the format or does not fit the pictures to score; the message names entry and cure."""


def write_results(path: str | Path, captions: Mapping[int, str]) -> None:
    """Writes a caption for each picture id, in the mapping's order."""
    write_json(path, [{"image_id": picture, "caption": caption} for picture, caption in captions.items()])


def read_results(path: str | Path, expected: Collection[int]) -> dict[int, str]:
    """Reads a caption for each of the `expected` picture ids, in their order.

    Raises ResultsError where the file is not of the format, names a picture twice, misses one or has others.
    """
    path = Path(path)
    if not path.is_file():
        raise ResultsError(f"{path} is not a file: give a JSON file in COCO's results format")
    if (size := path.stat().st_size) > LARGEST:
        raise ResultsError(f"{path} has {size:,} bytes, more than the {LARGEST:,} that a results file may have")
    entries = read_json(path)
    if not isinstance(entries, list):
        raise ResultsError(
            f'{path} holds {_kind(entries)}, not a list of {{"image_id": 42, "caption": "..."}}; a captions file with'
            " `annotations` is not a results file"
        )
    captions: dict[int, str] = {}
    for place, entry in enumerate(entries):
        picture, caption = (entry.get("image_id"), entry.get("caption")) if isinstance(entry, dict) else (None, None)
        if type(picture) is not int or not isinstance(caption, str):
            raise ResultsError(
                f'{path}: entry {place} is {str(entry)[:80]!r}, not {{"image_id": whole number, "caption": text}}'
            )
        if picture in captions:
            raise ResultsError(f"{path}: picture {picture} is captioned twice, again in entry {place}; keep one")
        if HALF.search(caption):
            raise ResultsError(f"{path}: entry {place} has half a character, as of an emoji cut in two: {caption!r}")
        captions[picture] = caption
    wanted = dict.fromkeys(expected)
    missing, extra = [i for i in wanted if i not in captions], [i for i in captions if i not in wanted]
    if missing or extra:
        told = [
            f"{what} {len(ids):,} ({', '.join(map(str, ids[:5]))}{', ...' if len(ids) > 5 else ''})"
            for what, ids in (("misses", missing), ("has captions of other pictures:", extra))
            if ids
        ]
        raise ResultsError(
            f"{path} {' and '.join(told)} of the {len(wanted):,} pictures to score: all and no others count"
        )
    return {picture: captions[picture] for picture in wanted}


def _kind(value: Any) -> str:
    return {dict: "an object", str: "a text", type(None): "null"}.get(type(value), "a number")
