"""Which captions of which pictures make up each batch of an epoch, and the features that go with them.

Shapes: P pictures of a batch, B captions, C channels, R regions
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.features.store import Features
from stages.fetch.captions import Picture
from stages.train.decoders import Words, pack_words
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


def epoch(
    examples: Examples, batch: int, captions_per_picture: int, generator: np.random.Generator
) -> list[list[Group]]:
    """Every caption exactly once, pictures shuffled over the whole split, `captions_per_picture` captions together.

    An epoch goes round the pictures as often as needed: with 1 caption at a time, five times; with 5, once. Features of
    a picture are then read once per round. A batch has `batch` captions, the last one fewer.
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
    together = max(1, batch // captions_per_picture)
    return [groups[first : first + together] for first in range(0, len(groups), together)]


@dataclass(frozen=True)
class Source:
    """A split's features on disk, and which of them a decoder wants."""

    features: Features
    split: str
    grid: bool
    mirror: bool  # whether the split has mirrored views

    def read(self, rows: Sequence[int], mirrored: Sequence[bool] | None = None) -> tuple[Tensor, Tensor | None]:
        """-> pooled (P, C) and grid (P, R, C) or None, float16; `mirrored` says which rows are to be mirrored."""
        return self._read("pooled", rows, mirrored), self._read("grid", rows, mirrored) if self.grid else None

    def _read(self, kind: str, rows: Sequence[int], mirrored: Sequence[bool] | None) -> Tensor:
        values = self.features.array(self.split, kind)[rows]
        if mirrored is not None and any(mirrored):
            flip = np.flatnonzero(mirrored)
            values[flip] = self.features.array(self.split, kind, mirrored=True)[np.asarray(rows)[flip]]
        return torch.from_numpy(values)


def load_batch(
    groups: Sequence[Group], examples: Examples, source: Source, mirrored: Sequence[bool] | None
) -> tuple[Tensor, Tensor | None, Words]:
    """-> pooled (P, C), grid (P, R, C) or None, and the groups' captions packed."""
    pooled, grid = source.read([examples.rows[picture] for picture, _ in groups], mirrored)
    captions = [examples.captions[picture][place] for picture, places in groups for place in places]
    owner = [number for number, (_, places) in enumerate(groups) for _ in places]
    return pooled, grid, pack_words(captions, owner)


def in_order(examples: Examples, batch: int) -> Iterator[list[Group]]:
    """All pictures with all their captions, `batch` pictures at a time, for validation."""
    for first in range(0, len(examples), batch):
        yield [(p, list(range(len(examples.captions[p])))) for p in range(first, min(first + batch, len(examples)))]
