"""ROUGE-L (Lin 2004, section 3) as coco-caption computes it: the best precision and the best recall of any reference.

Precision and recall are the longest common subsequence over the words of caption and reference; they may come from
different references, and are joined with beta 1.2. A caption without words scores 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.scorers.ngrams import Ints

BETA = 1.2


def rouge_l(ids: Ints, references: Ints, owner: Ints) -> NDArray[np.float64]:
    """ROUGE-L of captions given as numbers (B, T), -1 after the last word; (B,).

    `references` (C, S) are all captions' references in the same numbers, `owner` (C,) the caption each belongs to.
    """
    words, reference_words = (ids >= 0).sum(axis=1), (references >= 0).sum(axis=1)
    common = _common_subsequence(ids[owner], references)
    precision, recall = np.zeros(len(ids)), np.zeros(len(ids))
    np.maximum.at(precision, owner, common / np.maximum(words[owner], 1))
    np.maximum.at(recall, owner, common / np.maximum(reference_words, 1))
    both = np.maximum(recall + BETA**2 * precision, 1e-300)
    return (1 + BETA**2) * precision * recall / both


def _longest(rows: Ints) -> int:
    """Words of the longest of some captions (B, T), each ending before its first -1."""
    return int(np.max(np.count_nonzero(rows >= 0, axis=1), initial=0))


def _common_subsequence(left: Ints, right: Ints) -> Ints:
    """Length of the longest common subsequence of each pair of rows; rows (C, T) and (C, S) end before the first -1.

    The usual table, filled for all pairs at once, one row of it at a time; shared and sorted lengths keep it small.
    """
    lengths = np.zeros(len(left), np.int64)
    order = np.argsort((right >= 0).sum(axis=1), kind="stable")
    for part in np.array_split(order, max(1, len(order) // 4096)):
        a, b = left[part], right[part]
        a, b = (np.ascontiguousarray(rows[:, : max(1, _longest(rows))].T) for rows in (a, b))
        above = np.zeros((len(b) + 1, len(part)), np.int16)
        for word in a:
            same = (b == word) & (word >= 0)
            row = np.zeros_like(above)
            # Where the words are the same the diagonal counts one more; a running maximum carries it to the right.
            np.maximum(above[1:], above[:-1] + same, out=row[1:])
            above = np.maximum.accumulate(row, axis=0)
        lengths[part] = above[-1]
    return lengths
