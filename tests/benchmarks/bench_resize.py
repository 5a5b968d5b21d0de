"""What each way of bringing a photograph to the encoder's size costs: bytes, seconds, and what of it is lost.

    python tests/benchmarks/bench_resize.py ARCHIVE.zip CAPTIONS.json [PICTURES]

ARCHIVE has photographs at their own size; the sizes of the pictures in CAPTIONS (COCO's format) say what is lost.
Decode and resize are timed on one core over the archive, three times, the best; the encoder, ResNet-50 with random
weights, on a batch of 8. Bytes are what features keep of a picture: grid and mean in fp16.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torchvision.models import resnet50

from stages.features.device import choose_device, choose_dtype, describe
from stages.features.encoders import ResNet50
from stages.features.preprocessing import Preprocessing
from stages.fetch.captions import read_captions
from stages.fetch.pictures import Pictures, decode

BATCH, ROUNDS = 8, 3


def best(run: object, *arguments: object) -> float:
    """Seconds of the quickest of some calls: other work on the machine only ever adds."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        run(*arguments)  # type: ignore[operator]
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    archive, count = Pictures(sys.argv[1]), int(sys.argv[3]) if len(sys.argv) > 3 else 80
    packed = [archive.read(name) for name in list(archive)[:count]]
    sizes = np.array([(picture.width, picture.height) for picture in read_captions(sys.argv[2])])
    short, long = sizes.min(1), sizes.max(1)
    device = choose_device("auto")
    dtype = choose_dtype("auto", device)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(resnet50().state_dict(), Path(folder) / "resnet50.pth")
        encoder = ResNet50(str(Path(folder) / "resnet50.pth"), dtype).to(device)
    print(f"{len(packed)} photographs, {len(sizes):,} sizes, {describe(device)}, {str(dtype).removeprefix('torch.')}")
    print("| size, resize | grid | bytes a picture | decode and resize, ms | ResNet-50, ms | cut away | stretched |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for size in (224, 448):
        pixels = torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8, device=device)
        forward = best(encoder, pixels) / BATCH
        for resize in ("squash", "crop"):
            see = Preprocessing(size, resize)
            prepared = best(lambda see=see, size=size: [see(decode(data, at_least=size)) for data in packed])
            regions = (size // 32) ** 2
            cut, stretched = (0.0, (long / short).mean() - 1) if resize == "squash" else ((1 - short / long).mean(), 0)
            print(
                f"| {size}, {resize} | {size // 32}x{size // 32} | {2 * 2048 * (regions + 1):,} | "
                f"{1000 * prepared / len(packed):.1f} | {1000 * forward:.0f} | {cut:.0%} | {stretched:.0%} |"
            )


if __name__ == "__main__":
    main()
