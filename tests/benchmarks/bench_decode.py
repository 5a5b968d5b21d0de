"""Decoding a photograph: Pillow, Pillow's draft, and torchvision, one thread each.

    python tests/benchmarks/bench_decode.py ARCHIVE.zip [PICTURES]

Prints milliseconds of processor time a picture, decoded alone and with the resizing to 224 x 224 that follows.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL.Image import Resampling
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode, decode_jpeg

from stages.fetch.pictures import Pictures, decode

SIDE = 224


def milliseconds(work: Callable[[Any], Any], items: list[Any], rounds: int = 5) -> float:
    """The best of so many rounds over all items, a picture."""
    times = []
    for _ in range(rounds):
        began = time.process_time()
        for item in items:
            work(item)
        times.append(time.process_time() - began)
    return min(times) / len(items) * 1000


def torchvision(data: torch.Tensor) -> torch.Tensor:
    return decode_jpeg(data, mode=ImageReadMode.RGB)


def main() -> None:
    torch.set_num_threads(1)
    pictures = Pictures(sys.argv[1])
    data = [pictures.read(name) for name in islice(pictures, int(sys.argv[2]) if len(sys.argv) > 2 else 200)]
    tensors = [torch.frombuffer(bytearray(one), dtype=torch.uint8) for one in data]
    ways: dict[str, tuple[list[Any], Callable[[Any], Any], Callable[[Any], Any]]] = {
        "Pillow": (
            data,
            lambda one: np.asarray(decode(one)),
            lambda one: np.asarray(decode(one).resize((SIDE, SIDE), Resampling.BICUBIC)),
        ),
        "Pillow, draft": (
            data,
            lambda one: np.asarray(decode(one, SIDE)),
            lambda one: np.asarray(decode(one, SIDE).resize((SIDE, SIDE), Resampling.BICUBIC)),
        ),
        "torchvision": (
            tensors,
            torchvision,
            lambda one: interpolate(torchvision(one)[None], (SIDE, SIDE), mode="bicubic", antialias=True),
        ),
    }
    print(f"{len(data)} pictures          decoded    and resized")
    for name, (items, alone, resized) in ways.items():
        print(f"{name:20}{milliseconds(alone, items):8.2f} ms{milliseconds(resized, items):11.2f} ms")


if __name__ == "__main__":
    main()
