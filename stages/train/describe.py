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
from stages.train.memory import Consensus


@torch.inference_mode()
def describe(
    decoders: Sequence[Decoder],
    sources: Sequence[Source],
    rows: Sequence[int],
    decoding: Decoding,
    *,
    bad_endings: Sequence[int],
    remembered: Sequence[Consensus | None] = (),
    batch: int,
    device: torch.device,
) -> list[list[Hypothesis]]:
    """For each row of the sources, one for each decoder, its captions, best first. Several decoders vote.

    `remembered` is what the captioners of the first sources ask, where they do."""
    found: list[list[Hypothesis]] = []
    bar = tqdm(total=len(rows), desc=f"decode {sources[0].split}", unit="pictures", disable=None, leave=False)
    for first in range(0, len(rows), batch):
        some = rows[first : first + batch]
        seen = [source.read(some) for source in sources]
        contexts = [
            decoder.context(pooled.to(device).float(), grid.to(device).float() if grid is not None else None)
            for decoder, (pooled, grid) in zip(decoders, seen, strict=True)
        ]
        found += decode(
            decoders,
            contexts,
            decoding,
            bad_endings=bad_endings,
            numbers=some,
            memories=[(own, pooled) for own, (pooled, _) in zip(remembered, seen, strict=False) if own],
        )
        bar.update(len(some))
    bar.close()
    return found
