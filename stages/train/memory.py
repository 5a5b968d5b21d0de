"""What a captioner remembers of its training pictures, so that it can be guided, and choose among its own captions.

A decoder's likeliest caption is not the one that people agree with most. What they said of the training pictures
nearest to a new one tells better: of the captions that the decoder finds likely, the one is taken that agrees with
theirs (consensus re-ranking: Devlin et al., 1505.04467; Mao et al., 1412.6632, section 8). And while it writes, words
that they say more often than people do elsewhere are made likelier (unigram rescaling: Gildea and Hofmann 1999,
"Topic-based language models using EM"): a beam of five then holds captions that a beam of ten would. Nothing new is
learned.

Shapes: M training pictures, C channels, D <= 256 directions in which pictures differ most, L words of all captions with
        an <end> behind each, P pictures of a batch, K neighbours, B captions to choose from, T words of the longest,
        V vocabulary
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
from stages.vocab.vocabulary import END, SPECIALS, Vocabulary

DIRECTIONS = 256  # of 1,280 or 2,048 channels: a fifth of the bytes, and neighbours as good (val of Flickr8k)
SELDOM = 0.01  # added to the share of captions that have a word, so that one never said is not impossible
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
    """What people said of the nearest training pictures: which words they prefer, and how well captions agree."""

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

    @cached_property
    def spoken(self) -> tuple[Ints, Ints, NDArray[np.float64]]:
        """The different words of each picture's captions: where a picture's begin (M + 1,), the words, picture after
        picture, and the share of its captions that has each."""
        words, counts, size = self.memory.words.numpy(), self.memory.captions.numpy(), len(self.vocabulary.words)
        ends = words == END
        caption = np.cumsum(ends) - ends
        said = np.unique(caption[~ends] * np.int64(size) + words[~ends])  # once a caption
        owner = np.repeat(np.arange(len(counts)), counts)
        said, captions = np.unique(owner[said // size] * np.int64(size) + said % size, return_counts=True)
        begins = np.searchsorted(said // size, np.arange(len(counts) + 1))
        return begins, said % size, captions / counts[said // size]

    def guide(self, near: Ints, weights: NDArray[np.float64]) -> Tensor:
        """near, weights (P, K) of `Memory.near` -> by how much neighbours say each word more often than all training
        captions do: the logarithm of the ratio of the shares of captions that have it (P, V), 0 for special words."""
        size, (begins, words, shares) = len(self.vocabulary.words), self.spoken
        everywhere = np.bincount(words, shares, size) / len(self.memory.captions)
        picture = np.repeat(np.arange(len(near)), near.shape[1])
        counts = (begins[near + 1] - begins[near]).ravel()
        place = np.arange(counts.sum()) + np.repeat(begins[near].ravel() - np.cumsum(counts) + counts, counts)
        cell = np.repeat(picture, counts) * size + words[place]
        here = np.bincount(cell, shares[place] * np.repeat(weights.ravel(), counts), len(near) * size)
        ratios = np.log((here.reshape(len(near), size) + SELDOM) / (everywhere + SELDOM))
        ratios[:, : len(SPECIALS)] = 0
        return torch.from_numpy(ratios).float()

    def agreement(
        self, near: Ints, weights: NDArray[np.float64], captions: Sequence[Sequence[Sequence[int]]]
    ) -> list[NDArray[np.float64]]:
        """near, weights (P, K) of `Memory.near`, captions of each picture as ids -> the mean CIDEr-D of each of a
        picture's captions, held against those of its neighbours, the nearer the heavier."""
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
