"""Captions for pictures whose features are on disk: what validation and evaluation decode.

Shapes: P pictures of a batch, C channels, R regions
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tqdm import tqdm

from stages.train.batches import Source
from stages.train.decoders import Decoder
from stages.train.decoding import Decoding, Hypothesis, decode


@torch.inference_mode()
def describe(
    decoders: Sequence[Decoder],
    sources: Sequence[Source],
    rows: Sequence[int],
    decoding: Decoding,
    *,
    bad_endings: Sequence[int],
    batch: int,
    device: torch.device,
) -> list[list[Hypothesis]]:
    """For each row of the sources, one for each decoder, its captions, best first. Several decoders vote."""
    found: list[list[Hypothesis]] = []
    bar = tqdm(total=len(rows), desc=f"decode {sources[0].split}", unit="pictures", disable=None, leave=False)
    for first in range(0, len(rows), batch):
        some = rows[first : first + batch]
        contexts = []
        for decoder, source in zip(decoders, sources, strict=True):
            pooled, grid = source.read(some)
            pooled = pooled.to(device).float()
            contexts.append(decoder.context(pooled, grid.to(device).float() if grid is not None else None))
        found += decode(decoders, contexts, decoding, bad_endings=bad_endings, numbers=some)
        bar.update(len(some))
    bar.close()
    return found
