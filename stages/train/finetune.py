"""The last blocks of the encoder, trained together with a decoder that has converged.

Shapes: P pictures of a batch, N of a split, B of one that is encoded, S pixels a side, R regions, C channels
        lower (P, c, h, w), what the last blocks are given: 192 x 7 x 7 for up to five of EfficientNet-Lite0 at 224

What lies below the trained blocks never changes, so it is computed once per picture and view and kept in memory: 19 kB
each of the above, 401 kB below ResNet-50's last three, 45 GB for COCO. An epoch then costs little more than one of the
decoder alone. BatchNorm is folded into convolutions, as for features, so its statistics cannot move.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from stages.features.device import autocast
from stages.features.extract import Pixels, collate
from stages.features.preprocessing import Preprocessing
from stages.features.store import Array
from stages.fetch.captions import Picture
from stages.fetch.pictures import Pictures
from stages.train.batches import Source
from stages.train.decoders import Context, Decoder, State, Words


@dataclass(frozen=True)
class Kept(Source):
    """What a network says of a split's pictures, in memory instead of on disk, rows as those of the features."""

    views: Sequence[Mapping[bool, Array]]  # of what `read` gives first and second; by whether mirrored

    def read(self, rows: Sequence[int], mirrored: Sequence[bool] | None = None) -> tuple[Tensor, Tensor | None]:
        found = []
        for view in self.views:
            values = view[False][rows]
            if mirrored is not None and any(mirrored):
                flip = np.flatnonzero(mirrored)
                values[flip] = view[True][np.asarray(rows)[flip]]
            found.append(torch.from_numpy(values))
        return found[0], found[1] if len(found) > 1 else None


def keep(
    see: Callable[[Tensor], Sequence[Tensor]],
    source: Source,
    archives: Pictures,
    pictures: Sequence[Picture],
    preprocessing: Preprocessing,
    *,
    workers: int,
    device: torch.device,
    batch: int = 32,
) -> Kept:
    """A source of what `see` says instead: of pixels (B, 3, S, S) uint8 one or two tensors (B, ...).

    Raises ValueError where a picture cannot be read, a value is too large for float16, or all of it for the memory.
    """
    total = len(source.features.index["splits"][source.split])
    rows = source.features.rows(source.split)
    loader = DataLoader(
        Pixels(archives, pictures, preprocessing),
        batch_size=batch,
        num_workers=min(workers, -(-len(pictures) // batch)),
        collate_fn=partial(collate, preprocessing.size),
    )
    views: list[dict[bool, Array]] = []
    bar = tqdm(total=len(pictures), desc=f"encode {source.split}", unit="pictures", disable=None, leave=False)
    done = 0
    for pixels, reasons in loader:
        own = pictures[done : done + len(pixels)]
        if failed := [f"{picture.file_name}: {reason}" for picture, reason in zip(own, reasons, strict=True) if reason]:
            raise ValueError(f"{source.split} picture {failed[0]}: mend it, or run `dvc repro features`")
        for mirrored in (False, True) if source.mirror else (False,):
            seen = [each.half() for each in see((pixels.flip(-1) if mirrored else pixels).to(device))]
            if not views:
                numbers = (2 if source.mirror else 1) * sum(math.prod(each.shape[1:]) for each in seen)
                check_memory(source.split, total, numbers)
                views = [{} for _ in seen]
            for view, half in zip(views, seen, strict=True):
                if not half.isfinite().all():
                    raise ValueError(
                        f"{source.split} pictures {done} to {done + len(own)} exceed float16 in the encoder"
                    )
                if mirrored not in view:
                    view[mirrored] = np.zeros((total, *half.shape[1:]), np.float16)
                view[mirrored][[rows[picture.id] for picture in own]] = half.cpu().numpy()
        done += len(own)
        bar.update(len(own))
    bar.close()
    return Kept(source.features, source.split, source.grid, source.mirror, views)


def check_memory(split: str, pictures: int, numbers: int) -> None:
    """Raises ValueError where so many float16 numbers of each picture do not fit into the memory that is free, in every
    process of this machine: one that takes more is killed without a word, hours later."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's word
    needed, free = 2 * pictures * numbers * processes, psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"{split}: {pictures:,} pictures of {numbers:,} numbers need {needed / 1e9:.1f} GB of memory in "
            f"{processes} processes, {free / 1e9:.1f} GB are free: take fewer pictures (of COCO by fetch.limit), or, "
            "to finetune, fewer blocks (train.finetune.blocks)"
        )


class Tuned(Decoder):
    """A decoder that looks through the last blocks of the encoder: `context` takes what those are given, not features.

    Blocks run in `dtype`; in eval their answer is rounded as features on disk are. They learn at `share` of the
    decoder's rate.
    """

    name = "tuned"
    grid = False

    def __init__(self, decoder: Decoder, upper: nn.ModuleDict, dtype: torch.dtype, share: float) -> None:
        nn.Module.__init__(self)
        self.decoder, self.upper, self.dtype, self.share = decoder, upper, dtype, share
        self.shape, self.dropout = decoder.shape, decoder.dropout

    def see(self, lower: Tensor) -> tuple[Tensor, Tensor]:
        """lower (P, c, h, w) -> pooled (P, C) and grid (P, R, C), as the tuned encoder gives them."""
        x = lower.contiguous(memory_format=torch.channels_last)
        with autocast(x.device, self.dtype):
            for layer in self.upper.values():
                x = layer(x)
        regions = x.flatten(2).transpose(1, 2).float()
        mean = regions.mean(1)
        return (mean, regions) if self.training else (mean.half().float(), regions.half().float())

    def context(self, pooled: Tensor, grid: Tensor | None = None) -> Context:
        """pooled: lower (P, c, h, w)."""
        mean, regions = self.see(pooled)
        return self.decoder.context(mean, regions if self.decoder.grid else None)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [*self.decoder.parameter_groups(), {"params": [*self.upper.parameters()], "share": self.share}]

    def sharpen(self, factor: float) -> None:
        self.decoder.sharpen(factor)

    def forward(self, context: Context, words: Words) -> Tensor:
        logits: Tensor = self.decoder(context, words)
        return logits

    def attention(self, context: Context, words: Words) -> Tensor | None:
        return self.decoder.attention(context, words)

    def start(self, context: Context) -> State:
        return self.decoder.start(context)

    def step(self, words: Tensor, state: State, before: Tensor, context: Context) -> tuple[Tensor, State]:
        return self.decoder.step(words, state, before, context)
