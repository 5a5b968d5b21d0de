"""Captions as counted n-grams in flat arrays: what BLEU and CIDEr-D are both made of, so that both are a few sums.

Legend: B captions, T words at most, N pictures, R references of a picture at most, G different n-grams of the
references, E different n-grams of the captions. An n-gram of order n = 1..4 is one unsigned 64-bit fingerprint: its
words' numbers as digits of a polynomial, mixed, with n - 1 in the lowest two bits. Two of ten million n-grams share
a fingerprint with probability 3e-6.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
ORDERS = 4
_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_LOW = np.uint64(ORDERS - 1)
_NONE = np.uint64(2**64 - 1)  # sorts behind every n-gram


@dataclass(frozen=True, slots=True)
class Counted:
    """The different n-grams of B captions, those of a caption together: four arrays of length E."""

    row: Ints  # the caption
    key: NDArray[np.uint64]  # fingerprint
    order: Ints  # n - 1
    count: Ints  # how often the caption has it


@dataclass(frozen=True, slots=True)
class Matched:
    """The different n-grams of B captions beside those of their own picture's references."""

    counted: Counted
    lengths: Ints  # (B,) words of each caption
    pictures: Ints  # (B,) whose references it is held against
    gram: Ints  # (E,) place of the n-gram in References.keys, -1 where no reference of any picture has it
    hit: Ints  # (H,) which of the E occur in a reference of the caption's picture
    reference_count: NDArray[np.unsignedinteger]  # (H, R) how often each reference has it


class References:
    """The n-grams of every picture's references, found for a batch of captions in one search.

    `captions[i]` are picture i's references, each a list of tokens. Words get numbers as they are met; `number` gives
    the numbers of other words, new ones where a word is new, so that an unknown word is a word like any other that no
    reference has. `numbered_like` shares the numbers with another set of references.
    """

    def __init__(self, captions: Sequence[Sequence[Sequence[str]]], numbered_like: References | None = None) -> None:
        self.pictures = len(captions)
        if not self.pictures or not all(captions):
            missing = [i for i, references in enumerate(captions) if not references]
            raise ValueError(
                f"every picture needs a reference: {len(missing)} of {self.pictures} have none {missing[:3]}"
            )
        self._numbers: dict[str, int] = numbered_like._numbers if numbered_like else {}
        per_picture = np.array([len(references) for references in captions])
        ids = self.encode([caption for references in captions for caption in references])
        picture = np.repeat(np.arange(self.pictures), per_picture)
        place = np.arange(len(picture)) - np.repeat(np.cumsum(per_picture) - per_picture, per_picture)
        width = int(per_picture.max())
        self.per_picture = per_picture
        self.lengths = np.full((self.pictures, width), -1)  # (N, R) words of each reference, -1 where there is none
        self.lengths[picture, place] = (ids >= 0).sum(axis=1)

        parts = list(_counted_in_parts(ids))
        key = np.concatenate([part.key for part in parts])
        row = np.concatenate([part.row for part in parts])
        count = np.concatenate([part.count for part in parts])
        self.keys, gram = np.unique(key, return_inverse=True)  # (G,) fingerprints, rising
        # Fingerprints are spread evenly, so the first bits of one lead to its place in a step or two, where a binary
        # search through ten million would miss the processor's cache at every step.
        bits = max(1, len(self.keys).bit_length())
        self._shift = np.uint64(64 - bits)
        edges = np.arange(2**bits, dtype=np.uint64) << self._shift
        self._starts = np.append(np.searchsorted(self.keys, edges), len(self.keys))
        # (P,) picture * G + n-gram, rising, of what its references have; (P, R) how often each has it
        self.pairs, pair = np.unique(picture[row] * len(self.keys) + gram, return_inverse=True)
        self.counts = np.zeros((len(self.pairs), width), np.min_scalar_type(int(count.max(initial=0))))
        self.counts[pair, place[row]] = count
        # (G,) in how many pictures' references an n-gram occurs
        self.frequency = np.bincount(self.pairs % max(len(self.keys), 1), minlength=len(self.keys))

    def number(self, words: Sequence[str]) -> Ints:
        """The number of each word, (len(words),)."""
        numbers = self._numbers
        return np.fromiter((numbers.setdefault(word, len(numbers)) for word in words), np.int64, len(words))

    def encode(self, captions: Sequence[Sequence[str]]) -> Ints:
        """Token lists as numbers, (B, T), filled up with -1."""
        lengths = np.array([len(caption) for caption in captions], np.int64)
        ids = np.full((len(captions), int(np.max(lengths, initial=1))), -1)
        ids[np.arange(ids.shape[1]) < lengths[:, None]] = self.number(
            [word for caption in captions for word in caption]
        )
        return ids

    def find(self, keys: NDArray[np.uint64]) -> Ints:
        """The place of each fingerprint in `self.keys`, -1 where it is not there."""
        bucket = (keys >> self._shift).astype(np.int64)
        place, end = self._starts[bucket], self._starts[bucket + 1]
        found = np.full(len(keys), -1)
        left = np.flatnonzero(place < end)  # whose bucket may still hold them
        while len(left):
            at = place[left]
            there = self.keys[at]
            same = there == keys[left]
            found[left[same]] = at[same]
            left = left[there < keys[left]]
            place[left] += 1
            left = left[place[left] < end[left]]
        return found

    def match_each(self, captions: Sequence[Sequence[str]]) -> Matched:
        """Matches one token list a picture, in the pictures' order."""
        if len(captions) != self.pictures:
            raise ValueError(f"{len(captions)} captions for {self.pictures} pictures: one for each is needed")
        return self.match(self.encode(captions), np.arange(self.pictures))

    def match(self, ids: Ints, pictures: Ints) -> Matched:
        """Counts the n-grams of captions `ids` (B, T) and finds them in the references of `pictures` (B,)."""
        counted = count(ids)
        gram = self.find(counted.key)
        known = np.flatnonzero(gram >= 0)
        pair = _search(self.pairs, pictures[counted.row[known]] * len(self.keys) + gram[known])
        found = pair >= 0
        lengths = np.logical_and.accumulate(ids >= 0, axis=1).sum(axis=1)
        return Matched(counted, lengths, pictures, gram, known[found], self.counts[pair[found]])


def order_of(key: NDArray[np.uint64]) -> Ints:
    """n - 1 of each fingerprint."""
    return (key & _LOW).astype(np.int64)


def _search(rising: NDArray[Any], wanted: NDArray[Any]) -> Ints:
    """The place of each of `wanted` in `rising`, -1 where it is not there."""
    if not len(rising):
        return np.full(len(wanted), -1)
    place = np.searchsorted(rising, wanted)
    place[place == len(rising)] = 0
    return np.where(rising[place] == wanted, place, -1)


def count(ids: Ints) -> Counted:
    """Counts the n-grams of captions given as numbers (B, T); a caption ends before its first negative number."""
    captions, width = ids.shape
    words = ids.astype(np.uint64)
    inside = np.logical_and.accumulate(ids >= 0, axis=1)
    keys = np.full((captions, sum(range(max(width - ORDERS + 1, 1), width + 1)) + 1), _NONE)
    left, polynomial = 0, np.zeros_like(words)
    for order in range(min(ORDERS, width)):
        starts = width - order
        polynomial = polynomial[:, :starts] * _BASE + words[:, order:] + np.uint64(1)
        mixed = polynomial * _MIX
        mixed ^= mixed >> np.uint64(32)
        mixed = (mixed * _MIX) & ~_LOW | np.uint64(order)
        keys[:, left : left + starts] = np.where(inside[:, order:], mixed, _NONE)
        left += starts
    keys.sort(axis=1)  # the last column stays _NONE and closes every row
    flat = keys.ravel()
    first = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))
    counts = np.diff(first, append=len(flat))
    kept = flat[first] != _NONE
    first, counts = first[kept], counts[kept]
    key = flat[first]
    return Counted(first // keys.shape[1], key, order_of(key), counts)


def _counted_in_parts(ids: Ints, size: int = 16384) -> Iterator[Counted]:
    """`count` of many captions, sorted by length and in parts, so that one long caption does not widen the others."""
    lengths = (ids >= 0).sum(axis=1)
    rows = np.argsort(lengths, kind="stable")
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        counted = count(ids[part, : max(lengths[part[-1]], 1)])
        yield Counted(part[counted.row], counted.key, counted.order, counted.count)
