"""How much of the encoder's speed the features stage keeps: decoding, workers, fp16 and disk against the bare forward.

    python tests/benchmarks/bench_features.py [ARCHIVE.zip] [PICTURES]

Bare: the encoder over batches of pixels already in memory, same process, precision and batch. Stage: `extract` from the
archive to arrays on disk. Both in turn, three times; the ratio is of medians. Without an archive: drawn scenes.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from stages.features.device import choose_device, choose_dtype, describe
from stages.features.encoders import EfficientNetLite0
from stages.features.extract import Pixels, extract
from stages.features.launch import Ranks
from stages.features.preprocessing import Preprocessing
from stages.features.store import Draft
from stages.fetch.captions import Picture
from stages.fetch.drawn import fetch_drawn
from stages.fetch.pictures import Pictures
from stages.fetch.settings import Drawn

BATCH, WORKERS, SIZE = 32, 2, 224


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) > 1:
            archives = Pictures(sys.argv[1])
        else:
            fetch_drawn(Drawn(source="drawn", pictures=1000, size=SIZE, seed=1), Path(folder))
            archives = Pictures(Path(folder) / "pictures")
        count = int(sys.argv[2]) if len(sys.argv) > 2 else 960
        pictures = [Picture(i, name, 0, 0, ("-",)) for i, name in enumerate(list(archives)[:count])]
        device = choose_device("auto")
        dtype = choose_dtype("auto", device)
        encoder = EfficientNetLite0("package", dtype).to(device)
        see = Preprocessing(SIZE, "squash")
        pixels = Pixels(archives, pictures, see)
        batch = torch.stack([item for i in range(BATCH) if isinstance(item := pixels[i], torch.Tensor)])
        print(f"{len(pictures)} pictures, batch {BATCH}, {dtype}, {describe(device)}")
        bare, stage = [], []
        encoder(batch)
        for turn in range(3):
            started = time.perf_counter()
            for _ in range(-(-len(pictures) // BATCH)):
                encoder(batch.to(device))
            bare.append(len(pictures) / (time.perf_counter() - started))
            draft = Draft(Path(folder) / f"draft{turn}", str(turn))
            started = time.perf_counter()
            extract(
                encoder, see, archives, pictures, "train", draft,
                grid=False, mirror=False, batch=BATCH, workers=WORKERS, device=device, ranks=Ranks(),
            )  # fmt: skip
            stage.append(len(pictures) / (time.perf_counter() - started))
        ratio = statistics.median(stage) / statistics.median(bare)
        print(
            f"bare forward {statistics.median(bare):.0f} pictures/s, stage {statistics.median(stage):.0f}: {ratio:.2f}"
        )


if __name__ == "__main__":
    main()
