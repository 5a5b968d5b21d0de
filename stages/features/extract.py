"""Runs a frozen encoder once over the pictures of a split, batch by batch, into a draft that a killed run goes on from.

Shapes: B pictures of a batch, S pixels a side, R regions, C channels
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from stages.features.encoders import Encoder
from stages.features.launch import Ranks
from stages.features.preprocessing import Preprocessing
from stages.features.store import Draft, array_name
from stages.fetch.captions import Picture
from stages.fetch.pictures import PictureError, Pictures, decode


class Pixels(Dataset[Tensor | str]):
    """Pictures as an encoder sees them: (3, S, S) uint8, or why one cannot be read. Runs in worker processes."""

    def __init__(self, archives: Pictures, pictures: Sequence[Picture], preprocessing: Preprocessing) -> None:
        self.archives, self.pictures, self.preprocessing = archives, pictures, preprocessing

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, row: int) -> Tensor | str:
        try:
            data = self.archives.read(self.pictures[row].file_name)
            return self.preprocessing(decode(data, at_least=self.preprocessing.size))
        except PictureError as error:
            return str(error)


def collate(size: int, items: list[Tensor | str]) -> tuple[Tensor, list[str | None]]:
    """-> pictures (B, 3, S, S) uint8, black where one could not be read, and for each the reason or None."""
    black = torch.zeros(3, size, size, dtype=torch.uint8)
    pixels = [black if isinstance(item, str) else item for item in items]
    return torch.stack(pixels), [item if isinstance(item, str) else None for item in items]


def extract(
    encoder: Encoder,
    preprocessing: Preprocessing,
    archives: Pictures,
    pictures: Sequence[Picture],
    split: str,
    draft: Draft,
    *,
    grid: bool,
    mirror: bool,
    batch: int,
    workers: int,
    device: torch.device,
    ranks: Ranks,
) -> None:
    """Fills the arrays of one split, of those batches that no journal of the draft has yet, every rank its share.

    A batch has the same pictures whoever does it, so that their features are the same. A picture that cannot be read
    leaves a row of zeros and an entry in `draft.unreadable`, from which readers know it. Raises ValueError when a
    feature is not finite.
    """
    regions = (preprocessing.size // 32) ** 2
    kinds: dict[str, tuple[int, ...]] = {"pooled": (encoder.channels,)}
    if grid:
        kinds["grid"] = (regions, encoder.channels)
    views = (False, True) if mirror else (False,)
    for kind, shape in kinds.items():
        for mirrored in views:
            name = array_name(split, kind, mirrored)
            ranks.after_first(partial(draft.open, name, (len(pictures), *shape)))
    batches = [range(first, min(first + batch, len(pictures))) for first in range(0, len(pictures), batch)]
    done = ranks.first(partial(draft.all_done, split))
    todo = [number for number in range(len(batches)) if number not in done][ranks.rank :: ranks.size]
    own = draft.done.setdefault(split, [])

    loader = DataLoader(
        Pixels(archives, pictures, preprocessing),
        batch_sampler=[[*batches[number]] for number in todo],
        num_workers=min(workers, len(todo)),
        collate_fn=partial(collate, preprocessing.size),
        pin_memory=device.type == "cuda",
    )
    bar = tqdm(
        total=sum(len(batches[number]) for number in todo),
        desc=f"features {split}" + (f", one of {ranks.size} shares" if ranks.size > 1 else ""),
        unit="pictures",
        disable=None if ranks.rank == 0 else True,
        smoothing=0.1,
    )
    for number, (pixels, reasons) in zip(todo, loader, strict=True):
        rows = slice(batches[number].start, batches[number].stop)
        pixels = pixels.to(device, non_blocking=True)
        for mirrored in views:
            regions_seen = encoder(pixels.flip(-1) if mirrored else pixels)
            found = {"pooled": regions_seen.mean(1), "grid": regions_seen}
            for kind in kinds:
                half = found[kind].half()
                if not half.isfinite().all():
                    raise ValueError(
                        f"{split} rows {rows.start} to {rows.stop}: features exceed fp16: are the weights right?"
                    )
                for place, reason in enumerate(reasons):
                    if reason is not None:
                        half[place] = 0
                draft.arrays[array_name(split, kind, mirrored)][rows] = half.cpu().numpy()
        for place, reason in enumerate(reasons):
            if reason is not None:
                picture = pictures[rows.start + place]
                draft.unreadable.append(
                    {"split": split, "id": picture.id, "file_name": picture.file_name, "reason": reason}
                )
        own.append(number)
        bar.update(len(pixels))
        if len(own) % 32 == 0:
            draft.save()
    bar.close()
    draft.save()
    draft.close_arrays()
