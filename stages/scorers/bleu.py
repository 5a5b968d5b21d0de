"""Corpus BLEU-1..4 (Papineni et al. 2002) from ten numbers a picture, so that a resample is a matrix product.

The brevity penalty is the corpus's, with the reference closest in length (the shorter of two equally close), as in
coco-caption and nltk's corpus_bleu. Where those two differ, this is what is done here:

- no n-gram of an order matches: BLEU is 0, as in nltk (coco-caption adds 1e-15 and comes out near 1e-4)
- a caption shorter than n words adds nothing to the n-grams of order n, as in coco-caption (nltk adds 1)
- a caption without words counts with length 0, as in coco-caption
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stages.scorers.ngrams import ORDERS, Ints, Matched, References


def bleu(captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> NDArray[np.float64]:
    """BLEU-1..4, (4,), of one token list a picture against each picture's references."""
    table = References(references)
    return bleu_of(statistics(table.match_each(captions), table).sum(axis=0))


def statistics(matched: Matched, references: References) -> Ints:
    """What BLEU needs of each caption, (B, 10): words, words of the closest reference, matches 1..4, n-grams 1..4."""
    counted, hit, lengths = matched.counted, matched.hit, matched.lengths
    clipped = np.minimum(counted.count[hit], matched.reference_count.max(axis=1))
    cell = counted.row[hit] * ORDERS + counted.order[hit]
    matches = np.bincount(cell, clipped, len(lengths) * ORDERS).reshape(-1, ORDERS).astype(np.int64)
    reference_lengths = references.lengths[matched.pictures]
    ngrams = np.maximum(lengths[:, None] - np.arange(ORDERS), 0)
    # The distance decides, then the shorter reference; an absent one is farther than any.
    distance = np.where(reference_lengths < 0, 2**30, np.abs(reference_lengths - lengths[:, None]))
    nearest = np.argmin(distance * 2**31 + reference_lengths, axis=1)
    closest = np.take_along_axis(reference_lengths, nearest[:, None], axis=1)
    return np.hstack([lengths[:, None], closest, matches, ngrams])


def bleu_of(totals: NDArray[np.number]) -> NDArray[np.float64]:
    """BLEU-1..4, (..., 4), of summed statistics (..., 10)."""
    totals = np.asarray(totals, np.float64)
    words, reference_words = totals[..., 0], totals[..., 1]
    matches, ngrams = totals[..., 2 : 2 + ORDERS], totals[..., 2 + ORDERS :]
    with np.errstate(divide="ignore", invalid="ignore"):
        precisions = np.where(matches > 0, matches / ngrams, 0.0)
        means = np.exp(np.cumsum(np.log(precisions), axis=-1) / np.arange(1, ORDERS + 1))
        brevity = np.where(words > 0, np.exp(np.minimum(0.0, 1 - reference_words / words)), 0.0)
    return means * brevity[..., None]
