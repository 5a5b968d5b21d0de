"""CIDEr-D (Vedantam et al., 1411.5726, sections 5 and 6): score of a test set and reward of self-critical training.

As coco-caption computes it: tf-idf vectors of the n-grams of order 1..4, clipped cosine with each reference, a
Gaussian (sigma 6) over the difference in length, mean over references and orders, times 10. One n-gram machinery
scores 5,000 captions of a split or batches of sampled captions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stages.scorers.ngrams import ORDERS, Ints, Matched, References, order_of

Floats = NDArray[np.float64]
SIGMA = 6.0


def cider(captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Floats:
    """CIDEr-D of one token list a picture against each picture's references, (B,); the mean is the corpus's score."""
    table = References(references)
    return CiderD(table).of(table.match_each(captions))


class CiderD:
    """Scores captions against their pictures' references.

    `documents` are the references that the document frequencies are counted in; without them those of `references`
    itself, which is what coco-caption does for a split and what training on `references` wants. Where both are given
    they must share their numbers (`numbered_like`).

        references = References(training_tokens)              # per picture, a list of token lists
        reward = CiderD(references)                           # once
        lookup = references.number(vocabulary)                # the reward's number of each word id
        lookup[[PAD, START, END]] = -1                        # not words; a caption ends before its first -1
        scores = reward.score(lookup[sampled], pictures)      # (B, T) ids, (B,) places in training_tokens -> (B,)
    """

    def __init__(self, references: References, documents: References | None = None) -> None:
        self.references, self.documents = references, documents or references
        # (G + 1,) of every n-gram of the documents; the last one, found at -1, is that of all others
        idf = np.log(self.documents.pictures) - np.log(np.maximum(self.documents.frequency, 1))
        self._idf = np.append(idf, np.log(self.documents.pictures))
        # (N, R, 4) length of each reference's vector
        picture, gram = np.divmod(references.pairs, len(references.keys))
        key = references.keys[gram]
        cell = picture * ORDERS + order_of(key)
        idf = self._idf[self.documents.find(references.keys)][gram]
        squares = (_sums(cell, (counts * idf) ** 2, references.pictures) for counts in references.counts.T)
        self._norms = np.sqrt(np.stack(list(squares), axis=1))

    def score(self, ids: Ints, pictures: Ints) -> Floats:
        """CIDEr-D, (B,), of captions given as word numbers (B, T) against the references of `pictures` (B,)."""
        return self.of(self.references.match(ids, pictures))

    def of(self, matched: Matched) -> Floats:
        """As `score`, of captions that have been matched with the references already."""
        counted, hit, references = matched.counted, matched.hit, self.references
        captions = len(matched.lengths)
        gram = matched.gram if self.documents is references else self.documents.find(counted.key)
        idf = self._idf[gram]
        cell = counted.row * ORDERS + counted.order
        norm = np.sqrt(_sums(cell, (counted.count * idf) ** 2, captions))
        cell, idf, count = cell[hit], idf[hit], counted.count[hit]
        total = np.zeros((captions, ORDERS))
        for r, reference_count in enumerate(matched.reference_count.T):
            products = _sums(cell, np.minimum(count, reference_count) * reference_count * idf**2, captions)
            norms = norm * self._norms[matched.pictures, r]
            # coco-caption takes the number of bigrams for the length
            bigrams = np.maximum(references.lengths[matched.pictures, r] - 1, 0)
            apart = np.maximum(matched.lengths - 1, 0) - bigrams
            penalty = np.exp(-(apart**2) / (2 * SIGMA**2))
            total += np.divide(products, norms, out=np.zeros_like(norms), where=norms > 0) * penalty[:, None]
        scores: Floats = 10 * total.mean(axis=1) / references.per_picture[matched.pictures]
        return scores


def _sums(cell: Ints, values: Floats, rows: int) -> Floats:
    """Sums `values` by cell = row * 4 + order; (rows, 4)."""
    return np.asarray(np.bincount(cell, values, rows * ORDERS), np.float64).reshape(rows, ORDERS)
