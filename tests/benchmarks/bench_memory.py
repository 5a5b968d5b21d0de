"""What keeping freed memory brings (stages.features.device.keep_memory), in one process each, one thread:

    python tests/benchmarks/bench_memory.py

An encoder over random pictures and steps of a decoder over random features, without it and with it.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from stages.features.device import keep_memory
from stages.features.encoders import ENCODERS
from stages.train.decoders import Shape, build, pack_words


def encoder() -> Callable[[], object]:
    """32 pictures of 224 pixels a side."""
    encode = ENCODERS["efficientnet_lite0"]("package")
    pictures = torch.randint(0, 256, (32, 3, 224, 224), dtype=torch.uint8)
    return lambda: encode(pictures)


def decoder() -> Callable[[], object]:
    """64 captions of 12 words about 32 pictures."""
    attend = build(Shape("attend", 3000, 1280, 512, 512, 0.5))
    grid = torch.randn(32, 49, 1280)
    words = pack_words(
        [[2, *torch.randint(4, 3000, (11,)).tolist(), 3] for _ in range(64)], [i // 2 for i in range(64)]
    )
    optimizer = torch.optim.AdamW(attend.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        logits = attend(attend.context(grid.mean(1), grid), words)
        torch.nn.functional.cross_entropy(logits, words.predict).backward()
        optimizer.step()

    return step


WORK = {"encoder": encoder, "decoder": decoder}


def main() -> None:
    if len(sys.argv) == 1:
        for name in WORK:
            for way in ("as it is", "kept"):
                subprocess.run([sys.executable, __file__, name, way], check=True)
        return
    name, way = sys.argv[1:]
    if way == "kept":
        keep_memory()
    torch.set_num_threads(1)
    step = WORK[name]()
    for _ in range(3):
        step()
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    for _ in range(10):
        step()
    after, seconds = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - began
    system = after.ru_stime - before.ru_stime
    peak = after.ru_maxrss / (1 << 20)
    print(f"{name}, {way}: {seconds / 10:.3f} s a step, {system / seconds:.0%} of it the system's; peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
