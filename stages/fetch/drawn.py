"""Source `drawn`: scenes drawn and described by a seeded generator, so that the whole pipeline runs without a download.

Picture number i depends on the seed and i alone: every tenth is for test, every tenth for val. Some pairs of colour and
shape, one colour for every shape, never occur in train; a quarter of the pictures of val and test show such a pair, so
that a score on them says whether colours and shapes were learned apart or by heart. The report names both.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from tqdm import tqdm

from stages.fetch.archives import keep_only, pack
from stages.fetch.captions import SPLITS, Picture
from stages.fetch.grammar import describe
from stages.fetch.scenes import BACKGROUNDS, COLOURS, SHAPES, Group, Scene, paint
from stages.fetch.settings import Drawn

ARCHIVE = "drawn.zip"

# Pairs of colour and kind that train never shows.
HELD_OUT = frozenset((list(COLOURS)[(3 * place) % len(COLOURS)], kind) for place, kind in enumerate(SHAPES))


def fetch_drawn(settings: Drawn, data: Path) -> tuple[dict[str, list[Picture]], dict[str, Any]]:
    """Draws `settings.pictures` scenes into data/pictures; returns them by split, and what to report.

    The same settings give the same bytes on one machine, whatever PYTHONHASHSEED says.
    """
    scenes = [scene(settings.seed, number) for number in range(settings.pictures)]
    pack(data / "pictures" / ARCHIVE, _drawings(scenes, settings))
    keep_only(data / "pictures", [ARCHIVE])
    splits: dict[str, list[Picture]] = {split: [] for split in SPLITS}
    unseen: dict[str, list[int]] = {split: [] for split in SPLITS}
    for number, drawn in enumerate(scenes):
        captions = describe(drawn, _stream(settings.seed, number, "captions"))
        picture = Picture(number + 1, _name(number), settings.size, settings.size, captions)
        splits[split_of(number)].append(picture)
        if any((group.colour, group.kind) in HELD_OUT for group in drawn.groups):
            unseen[split_of(number)].append(picture.id)
    return splits, {
        "held_out_of_train": sorted(f"{colour} {kind}" for colour, kind in HELD_OUT),
        "pictures_with_held_out": unseen,
    }


def split_of(number: int) -> str:
    """train, val or test: 8 of 10, 1 of 10, 1 of 10, whatever the number of pictures."""
    return {8: "val", 9: "test"}.get(number % 10, "train")


def scene(seed: int, number: int) -> Scene:
    """What is in picture `number`, counted from 0."""
    rng = _stream(seed, number, "scene")
    training = split_of(number) == "train"
    background = rng.choice(list(BACKGROUNDS))
    relation = None if rng.random() < 0.5 else rng.choice(("left", "right", "above", "below", "behind"))
    wanted = not training and rng.random() < 1 / 4  # a held-out pair in the first group
    groups: list[Group] = []
    for first in (True, False) if relation else (True,):
        count = 1 if relation == "behind" else rng.choice((1, 1, 2, 3) if relation is None else (1, 1, 2))
        sizes = ("big",) if relation == "behind" else ("medium", "big") if count == 1 else ("small", "medium")
        while True:
            colour, kind = rng.choice(list(COLOURS)), rng.choice(list(SHAPES))
            taken = {BACKGROUNDS[background].hides, *(group.colour for group in groups)}
            if colour in taken or any(kind == group.kind for group in groups):
                continue
            if ((colour, kind) in HELD_OUT) == (wanted and first):
                break
        groups.append(Group(count, rng.choice(sizes) if first else "small", colour, kind))
    return Scene(background, tuple(groups), relation)


def _drawings(scenes: list[Scene], settings: Drawn) -> Iterator[tuple[str, bytes]]:
    for number, drawn in enumerate(tqdm(scenes, desc="drawing", unit=" pictures", disable=None)):
        data = io.BytesIO()
        paint(drawn, settings.size, _stream(settings.seed, number, "paint")).save(data, "JPEG", quality=90)
        yield _name(number), data.getvalue()


def _name(number: int) -> str:
    return f"drawn/{number + 1:06d}.jpg"


def _stream(seed: int, number: int, purpose: str) -> Random:
    """A generator of its own for every picture and purpose; seeding with text hashes it by SHA-512, not by hash()."""
    return Random(f"{seed} {number} {purpose}")  # noqa: S311 - pictures keep no secrets
