"""Pictures that are there twice: the same bytes, and pictures that look the same though they were saved anew.

Shapes: N pictures, P pairs

A picture's hash is its difference hash: in grey, 9 x 8 pixels, whether each is darker than its right neighbour, 64 bits
(Krawetz 2013, "Kind of Like That"). Two pictures are alike where at most FAR bits differ and their 16 x 16 grey pixels
correlate by at least ALIKE: the second throws out what is alike in outline only. Measured on 3,000 photographs of
Flickr8k: of 4.5 million pairs none passes; of copies at JPEG quality 30, half size or 15 % brighter 98 in 100 do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.fetch.pictures import PictureError, Pictures, decode

FAR = 7  # bits of 64; pairs nearer than the number of bytes in a hash share one of its bytes, and are found by it
ALIKE = 0.95  # correlation


class Look(NamedTuple):
    """What is kept of a picture to compare it by."""

    hash: int  # 64 bits
    grey: bytes  # 16 x 16 pixels


def look(pictures: Pictures, name: str) -> Look | str:
    """A picture's look, or why it has none. A JPEG is decoded at an eighth of its size where it is large enough."""
    try:
        grey = decode(pictures.read(name), at_least=32).convert("L")
    except PictureError as error:
        return str(error)
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = np.packbits(small[:, :-1] < small[:, 1:])
    return Look(int.from_bytes(bits.tobytes(), "big"), grey.resize((16, 16), Image.Resampling.BOX).tobytes())


def same_bytes(pictures: Pictures, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pairs of names whose pictures have the same size in bytes and the same CRC-32: the first of each kind with every
    other one. Nothing is read but the archives' index, unless they are unpacked."""
    first: dict[tuple[int, int], str] = {}
    for name in names:
        other = first.setdefault((pictures.size(name), pictures.checksum(name)), name)
        if other != name:
            yield other, name


def alike(looks: Sequence[Look]) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of looks that are alike, sorted. Of many with one hash only the first is compared with
    other hashes, so that a thousand copies of one picture take no longer."""
    hashes = np.array([each.hash for each in looks], np.uint64)
    grey = np.frombuffer(b"".join(each.grey for each in looks), np.uint8).reshape(len(looks), -1)
    different, first, owner = np.unique(hashes, return_index=True, return_inverse=True)
    copies = np.flatnonzero(first[owner] != np.arange(len(looks)))
    pairs = [np.stack([first[owner[copies]], copies], 1)]
    for shift in range(0, 64, 8):
        byte = (different >> np.uint64(shift)) & np.uint64(255)
        order = np.argsort(byte, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(byte[order])) + 1):
            pairs += [first[found] for found in _near(different, bucket)]
    found = np.unique(np.sort(np.concatenate(pairs), 1), axis=0)
    return [(int(i), int(j)) for i, j in found[_correlation(grey, found) >= ALIKE]]


def _near(hashes: NDArray[np.uint64], bucket: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    """Pairs (P, 2) of places in `bucket` whose hashes differ in at most FAR bits, some rows at a time."""
    for start in range(0, len(bucket), 1024):
        rows = bucket[start : start + 1024]
        apart = np.bitwise_count(hashes[rows, None] ^ hashes[None, bucket[start:]])
        i, j = np.nonzero(np.triu(apart <= FAR, 1))
        yield np.stack([rows[i], bucket[start:][j]], 1)


def _correlation(grey: NDArray[np.uint8], pairs: NDArray[np.intp]) -> NDArray[np.float32]:
    """How alike the pixels (N, 256) of each pair (P, 2) are, (P,): 1 is the same but for brightness and contrast. A
    picture of one colour is like no other."""
    found = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), 4096):
        left, right = (grey[pairs[start : start + 4096, side]].astype(np.float32) for side in (0, 1))
        left, right = (each - each.mean(1, keepdims=True) for each in (left, right))
        norms = np.maximum(np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1), 1.0)
        found[start : start + 4096] = (left * right).sum(1) / norms
    return found


def groups(pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Names that hang together by pairs, each group sorted, the largest first."""
    root: dict[str, str] = {}

    def top(name: str) -> str:
        while root.setdefault(name, name) != name:
            root[name] = name = root[root[name]]
        return name

    for one, other in pairs:
        root[max(top(one), top(other))] = min(top(one), top(other))
    found: dict[str, list[str]] = defaultdict(list)
    for name in sorted(root):
        found[top(name)].append(name)
    return sorted(found.values(), key=lambda each: (-len(each), each))
