"""Which captions of which pictures make up each batch of an epoch, and the features that go with them.

Shapes: P pictures of a batch, C channels, R regions
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.features.store import Features
from stages.fetch.captions import Picture
from stages.vocab.vocabulary import Vocabulary


@dataclass(frozen=True)
class Examples:
    """The captioned pictures of a split, as ids and rows."""

    rows: list[int]  # of each picture in the split's feature arrays
    captions: list[list[list[int]]]  # of each picture; each <start> ... <end>

    @classmethod
    def of(cls, pictures: Sequence[Picture], features: Features, split: str, vocabulary: Vocabulary) -> Examples:
        """Encodes every caption of every picture that has features; pictures that did not decode have none."""
        rows = features.rows(split)
        seen = [picture for picture in pictures if picture.id in rows]
        captions = [[vocabulary.encode(caption) for caption in picture.captions] for picture in seen]
        return cls([rows[picture.id] for picture in seen], captions)

    def __len__(self) -> int:
        return len(self.rows)


Group = tuple[int, list[int]]  # a picture (place in Examples) and some of its captions (places)


class Batch(NamedTuple):
    """Pictures with some of their captions, and which of the pictures are seen mirrored (None: none)."""

    groups: list[Group]
    mirrored: list[bool] | None

    @property
    def captions(self) -> int:
        return sum(len(places) for _, places in self.groups)

    def share(self, rank: int, size: int) -> Batch:
        """The pictures of one of `size` ranks, every size-th; none where the batch has fewer than ranks."""
        return Batch(self.groups[rank::size], self.mirrored[rank::size] if self.mirrored else None)


def in_rounds(examples: Examples, captions_per_picture: int, generator: np.random.Generator) -> list[Group]:
    """Every caption exactly once, pictures shuffled over the whole split, `captions_per_picture` captions together.

    An epoch goes round the pictures as often as needed: with 1 caption at a time, five times; with 5, once. Features of
    a picture are then read once per round.
    """
    rounds: list[list[Group]] = []
    for picture, captions in enumerate(examples.captions):
        order = generator.permutation(len(captions)).tolist()
        for number, first in enumerate(range(0, len(order), captions_per_picture)):
            if number == len(rounds):
                rounds.append([])
            rounds[number].append((picture, order[first : first + captions_per_picture]))
    groups: list[Group] = []
    for groups_of_round in rounds:
        groups += [groups_of_round[i] for i in generator.permutation(len(groups_of_round)).tolist()]
    return groups


def in_batches(groups: Sequence[Group], size: int, mirror: bool, generator: np.random.Generator) -> list[Batch]:
    """`size` groups a batch, the last one fewer; with `mirror`, half of all pictures by chance are seen mirrored."""
    flips = (generator.random(len(groups)) < 0.5).tolist() if mirror else None
    parts = [slice(first, first + size) for first in range(0, len(groups), size)]
    return [Batch(list(groups[part]), flips[part] if flips else None) for part in parts]


@dataclass(frozen=True)
class Source:
    """A split's features on disk, and which of them a decoder wants."""

    features: Features
    split: str
    grid: bool
    mirror: bool  # whether the split has mirrored views

    def read(self, rows: Sequence[int], mirrored: Sequence[bool] | None = None) -> tuple[Tensor, Tensor | None]:
        """-> pooled (P, C) and grid (P, R, C) or None, float16; `mirrored` says which rows are to be mirrored."""
        pooled, grid = (
            torch.from_numpy(self.features.read(self.split, kind, rows, mirrored)) if wanted else None
            for kind, wanted in (("pooled", True), ("grid", self.grid))
        )
        assert pooled is not None
        return pooled, grid


def in_order(examples: Examples, size: int) -> Iterator[Batch]:
    """All pictures with all their captions, `size` pictures at a time, for validation."""
    for first in range(0, len(examples), size):
        places = range(first, min(first + size, len(examples)))
        yield Batch([(place, list(range(len(examples.captions[place])))) for place in places], None)
