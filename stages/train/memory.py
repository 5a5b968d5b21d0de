"""What a captioner remembers of its training pictures, so that it can choose among its own captions.

A decoder's likeliest caption is not the one that people agree with most. What they said of the training pictures
nearest to a new one tells better: of the captions that the decoder finds likely, the one is taken that agrees with
theirs (consensus re-ranking: Devlin et al., 1505.04467; Mao et al., 1412.6632, section 8). Nothing new is learned.

Shapes: M training pictures, C channels, D <= 256 directions in which pictures differ most, L words of all captions with
        an <end> behind each, P pictures of a batch, K neighbours, B captions to choose from, T words of the longest
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.scorers.cider import CiderD
from stages.scorers.ngrams import Ints, References
from stages.vocab.vocabulary import END, Vocabulary

DIRECTIONS = 256  # of 1,280 or 2,048 channels: a fifth of the bytes, and neighbours as good (val of Flickr8k)
FADING = 0.07  # of cosine: a picture that much less alike counts e times less; all alike were worse (val of Flickr8k)


@dataclass(frozen=True, eq=False)
class Memory:
    """The training pictures as an encoder sees them, and what people said of each. Kept in the artifact."""

    mean: Tensor  # (C,) of their pooled features
    axes: Tensor  # (C, D), features minus mean @ axes -> directions
    pictures: Tensor  # (M, D) float16, of length 1
    words: Tensor  # (L,) int32, ids
    captions: Tensor  # (M,) int32, how many of the captions are each picture's

    @classmethod
    def of(cls, pooled: Tensor, captions: Sequence[Sequence[Sequence[int]]]) -> Self:
        """pooled (M, C) as the encoder gives it; captions[i] are picture i's, as ids <start> ... <end>.

        The directions are principal components of standardised features, each divided by the root of its deviation:
        undivided, a few of them decide which pictures are near.
        """
        mean, deviation = pooled.mean(0), pooled.std(0).clamp_min(1e-2)
        standard = (pooled - mean) / deviation
        variance, axes = torch.linalg.eigh(standard.T @ standard / len(pooled))  # rising
        count = min(DIRECTIONS, *pooled.shape)
        variance, axes = variance[-count:].clamp_min(1e-6), axes[:, -count:]
        axes = (axes / variance**0.25) / deviation[:, None]
        words = [word for own in captions for caption in own for word in caption[1:]]
        return cls(
            mean,
            axes.contiguous(),
            unit((pooled - mean) @ axes).half(),
            torch.tensor(words, dtype=torch.int32),
            torch.tensor([len(own) for own in captions], dtype=torch.int32),
        )

    def as_dict(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def near(self, pooled: Tensor, neighbours: int) -> tuple[Ints, NDArray[np.float64]]:
        """pooled (P, C) -> the training pictures most like each, by the cosine of directions, and how much the word of
        each counts: both (P, K), weights of a picture's neighbours sum to 1."""
        alike = unit((pooled.cpu().float() - self.mean) @ self.axes) @ self.pictures.float().T
        cosines, nearest = alike.topk(min(neighbours, len(self.pictures)), sorted=True)
        return nearest.numpy(), (cosines.double() / FADING).softmax(-1).numpy()


class Consensus:
    """How well captions agree with what people said of the nearest training pictures."""

    def __init__(self, memory: Memory, vocabulary: Vocabulary) -> None:
        self.memory, self.vocabulary = memory, vocabulary

    @cached_property
    def cider(self) -> CiderD:
        """Scores captions against those of any training picture; document frequencies are those of all."""
        words = self.memory.words.numpy()
        ends = np.flatnonzero(words == END)
        texts = [
            [self.vocabulary.words[word] for word in words[start:end]]
            for start, end in zip([0, *ends[:-1] + 1], ends, strict=True)
        ]
        waiting = iter(texts)
        return CiderD(References([[*islice(waiting, count)] for count in self.memory.captions.tolist()]))

    def agreement(
        self, pooled: Tensor, captions: Sequence[Sequence[Sequence[int]]], neighbours: int
    ) -> list[NDArray[np.float64]]:
        """pooled (P, C), captions of each picture as ids -> for each picture the mean CIDEr-D of each of its captions,
        held against those of its K nearest training pictures, the nearer the heavier."""
        near, weights = self.memory.near(pooled, neighbours)
        flat = [caption for own in captions for caption in own]
        numbers = self.cider.references.number(self.vocabulary.words)
        ids = np.full((len(flat), max(map(len, flat))), -1)
        for row, caption in zip(ids, flat, strict=True):
            row[: len(caption)] = numbers[[*caption]]
        counts = [len(own) for own in captions]
        against = np.repeat(near, counts, axis=0)  # (B of all, K)
        scores = self.cider.score(np.repeat(ids, against.shape[1], axis=0), against.ravel()).reshape(against.shape)
        return np.split((scores * np.repeat(weights, counts, axis=0)).sum(1), np.cumsum(counts)[:-1])


def unit(vectors: Tensor) -> Tensor:
    """Vectors (..., D) brought to length 1."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)
