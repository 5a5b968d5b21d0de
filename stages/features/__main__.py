"""Features: a frozen pretrained CNN looks at every picture once, never once per caption.

Reads:  data/P/pictures, data/P/captions_train.json, data/P/captions_val.json, data/P/captions_test.json
Writes: data/P/features
Why:    94% of a captioner's work is the CNN; its answer to a picture never changes, so it is kept.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import PIL
import torch

from stages import params, rim
from stages.features.device import choose_device, choose_dtype
from stages.features.encoders import ENCODERS
from stages.features.extract import extract
from stages.features.launch import Ranks, launch
from stages.features.preprocessing import Preprocessing
from stages.features.settings import Settings
from stages.features.store import Draft, reuse
from stages.fetch.captions import SPLITS, read_captions
from stages.fetch.pictures import Pictures
from stages.files import fingerprint, repository


def main() -> None:
    profile, settings = params.read("features")
    assert isinstance(settings, Settings)
    launch("features", profile, settings.launch.processes, settings.device, partial(encode, profile, settings))


def encode(profile: str, settings: Settings, ranks: Ranks) -> None:
    """Each rank writes its share of the pictures' features; rank 0 finishes."""
    if int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size)) < ranks.size:
        raise ValueError("features is for one machine, whose processes map the same files: start it without torchrun")
    data = Path("data") / profile
    folder = data / "features"

    device = choose_device(settings.device)
    dtype = choose_dtype(settings.precision, device)
    encoder = ranks.after_first(lambda: ENCODERS[settings.encoder](settings.weights, dtype)).to(device)
    preprocessing = Preprocessing(settings.size, settings.resize)
    archives = Pictures(data / "pictures")
    splits = {split: read_captions(data / f"captions_{split}.json") for split in SPLITS}
    ids = {split: [picture.id for picture in pictures] for split, pictures in splits.items()}
    index = {
        "encoder": encoder.name,
        "weights": settings.weights,
        "weights_sha256": encoder.weights_sha256,
        "preprocessing": preprocessing.as_dict(),
        "precision": str(dtype).removeprefix("torch."),
        "channels": encoder.channels,
        "regions": (settings.size // 32) ** 2,
        "mirror": settings.mirror,
        "splits": ids,
    }
    # What the arrays depend on: everything above, the pictures' bytes (by checksum), and what makes them.
    made_from = fingerprint(
        index,
        {"grid": settings.grid, "batch": settings.batch, "device": device.type},
        [[archives.checksum(picture.file_name) for picture in pictures] for pictures in splits.values()],
        *made_by(),
    )
    ranks.agree(made_from)
    if place := ranks.first(lambda: reuse(folder, repository() / folder, made_from)):
        if ranks.rank == 0:
            print(f"features of the same pictures, encoder and settings are whole in {place}: kept")
        return
    draft = ranks.after_first(lambda: Draft(data / "features.partial", made_from, ranks.rank))
    for split, pictures in splits.items():
        extract(
            encoder,
            preprocessing,
            archives,
            pictures,
            split,
            draft,
            grid=settings.grid,
            mirror=settings.mirror and split == "train",
            batch=settings.batch,
            workers=settings.workers,
            device=device,
            ranks=ranks,
        )
    ranks.all(None)
    if ranks.rank > 0:
        return
    unreadable = draft.all_unreadable(ids)
    for failure in unreadable:
        print("unreadable: {split} picture {id}, {file_name}: {reason}".format(**failure))
    if len(unreadable) > settings.allow_unreadable:
        raise ValueError(
            f"{len(unreadable)} pictures cannot be read, features.allow_unreadable = {settings.allow_unreadable} "
            f"allows fewer; the first is {unreadable[0]['file_name']}: mend them, or raise the number"
        )
    draft.finish(folder, index)


def made_by() -> list[Any]:
    """What makes features of pictures, for `fingerprint`: the code, and packages whose next version may decode or add
    in another way."""
    stages = Path(__file__).parents[1]
    versions = {"pillow": PIL.__version__, "torch": torch.__version__}
    return [versions, *sorted((stages / "features").glob("*.py")), stages / "fetch" / "pictures.py"]


if __name__ == "__main__":
    rim.stage("features", __doc__, main)
