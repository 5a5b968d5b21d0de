"""Captions that need no trained model. What a captioner scores says something only beside what these score.

They are made from training captions alone, never tuned on the pictures that are scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stages.scorers.cider import SIGMA, CiderD
from stages.scorers.ngrams import ORDERS, Ints, References, order_of
from stages.scorers.ptb import tokenize

Floats = NDArray[np.float32]
WORD_SALAD = "a a the of in on with and is"  # no sentence, and most of the words that every reference has
NEIGHBOURS = 60  # k of Devlin et al.
CONSENSUS = 125  # m of Devlin et al.: the captions that a caption has to be close to


class Floors:
    """Floors from the captions of training pictures: `captions[i]` are picture i's, as raw text."""

    def __init__(self, captions: Sequence[Sequence[str]]) -> None:
        self.captions = [text for own in captions for text in own]
        self.references = References([[tokenize(text) for text in own] for own in captions])
        self._first = np.cumsum(self.references.per_picture) - self.references.per_picture

    @cached_property
    def constant(self) -> str:
        """The training caption that, given to every training picture, has the best CIDEr-D.

        The hundred captions nearest to the mean of all (unclipped, without length penalty) are tried on a thousand
        pictures, or on all where there are fewer.
        """
        caption, gram, weight = self._vectors
        mean = np.bincount(gram, weight, len(self.references.keys))
        near = np.bincount(caption, weight * mean[gram], len(self.captions))
        # A caption that occurs often stands for itself once.
        _, first = np.unique([" ".join(tokenize(text)) for text in self.captions], return_index=True)
        tried = first[np.argsort(-near[first], kind="stable")[:100]]
        some = np.linspace(0, self.references.pictures - 1, min(1000, self.references.pictures)).astype(np.int64)
        ids = self.references.encode([tokenize(self.captions[each]) for each in tried])
        reward = CiderD(self.references)
        scores = [reward.score(np.broadcast_to(row, (len(some), len(row))), some).mean() for row in ids]
        return self.captions[int(tried[np.argmax(scores)])]

    def neighbours(self, features: NDArray[np.floating], training: NDArray[np.floating]) -> list[str]:
        """The consensus caption of each picture's nearest training pictures (Devlin et al., 1505.04467, section 3).

        `features` (N, D) are of the pictures to caption, `training` (M, D) of the training pictures in the order in
        which their captions were given; near is by cosine. Of the captions of the 60 nearest the one is taken whose
        125 most similar others are most similar to it, by the cosine of CIDEr with CIDEr-D's length penalty.
        """
        if len(training) != self.references.pictures or features.shape[1:] != training.shape[1:]:
            raise ValueError(
                f"features {features.shape} and {training.shape} do not fit {self.references.pictures:,} training"
                " pictures: one row for each and the same width are needed"
            )
        return [self.captions[self._consensus(near)] for near in _nearest(features, training, NEIGHBOURS)]

    @cached_property
    def _vectors(self) -> tuple[Ints, Ints, Floats]:
        """All captions' tf-idf vectors, sparse: (caption, n-gram, weight), rising by caption's picture. Scaled so that
        the product of two captions is the mean over orders of their cosines."""
        references = self.references
        idf = np.log(references.pictures) - np.log(references.frequency)
        pair, place = np.nonzero(references.counts)
        picture, gram = np.divmod(references.pairs[pair], len(references.keys))
        caption = self._first[picture] + place
        weight = references.counts[pair, place] * idf[gram]
        cell = caption * ORDERS + order_of(references.keys)[gram]
        norm = np.sqrt(np.bincount(cell, weight**2, len(self.captions) * ORDERS) * ORDERS)[cell]
        weight = np.divide(weight, norm, out=np.zeros_like(weight), where=norm > 0).astype(np.float32)
        return caption, gram, weight

    @cached_property
    def _ranges(self) -> Ints:
        """Where each picture's entries begin in _vectors, (N + 1,)."""
        caption = self._vectors[0]
        picture = np.searchsorted(self._first, caption, side="right") - 1
        return np.searchsorted(picture, np.arange(self.references.pictures + 1))

    def _consensus(self, pictures: Ints) -> int:
        """The caption, of all captions of `pictures` (K,), that agrees best with the others."""
        vectors, ranges, per_picture = self._vectors, self._ranges, self.references.per_picture
        captions = np.concatenate([self._first[each] + np.arange(per_picture[each]) for each in pictures])
        entries = np.concatenate([np.arange(ranges[each], ranges[each + 1]) for each in pictures])
        caption, gram, weight = (part[entries] for part in vectors)
        row = np.empty(int(captions.max()) + 1, np.int64)
        row[captions] = np.arange(len(captions))
        # What one caption alone has makes it similar to no other.
        _, column, times = np.unique(gram, return_inverse=True, return_counts=True)
        shared = times > 1
        kept = shared[column]
        dense = np.zeros((len(captions), int(shared.sum())), np.float32)
        dense[row[caption[kept]], (np.cumsum(shared) - 1)[column[kept]]] = weight[kept]
        lengths = self._lengths[captions].astype(np.float32)
        similar = dense @ dense.T * np.exp(-((lengths[:, None] - lengths) ** 2) / (2 * SIGMA**2))
        np.fill_diagonal(similar, 0)
        most = min(CONSENSUS, len(captions))
        agreement = np.partition(similar, len(captions) - most, axis=1)[:, len(captions) - most :].sum(axis=1)
        return int(captions[int(np.argmax(agreement))])

    @cached_property
    def _lengths(self) -> Ints:
        lengths = self.references.lengths
        return lengths[lengths >= 0]


def _nearest(features: NDArray[np.floating], training: NDArray[np.floating], count: int) -> Ints:
    """The `count` rows of `training` (M, D) most alike each row of `features` (N, D) by cosine; (N, count)."""
    training = _unit(training)
    count = min(count, len(training))
    found = np.empty((len(features), count), np.int64)
    for start in range(0, len(features), 256):
        alike = _unit(features[start : start + 256]) @ training.T
        found[start : start + 256] = np.argpartition(-alike, count - 1, axis=1)[:, :count]
    return found


def _unit(rows: NDArray[np.floating]) -> Floats:
    rows = np.asarray(rows, np.float32)
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit
