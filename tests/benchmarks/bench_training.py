"""Training from features on disk against the classic loop, which runs ResNet-50 for every caption; in one run.

    python tests/benchmarks/bench_training.py

Classic: each step takes 64 pictures of 224 x 224, already pixels in memory, through torchvision's ResNet-50
(random weights; frozen, without gradients), then trains the decoder; once in float32, as notebooks do, once in this
machine's best precision. Cached: the same decoder and step from pooled features.
Vocabulary of 9,500 words as COCO's, captions of 8 to 14 words, embedding 512, hidden 512, batch 64.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stages.features.device import autocast, choose_device, choose_dtype, describe
from stages.train.decoders import Shape, build, pack_words

BATCH, WORDS, CHANNELS = 64, 9_500, 2048


def rate(step: Callable[[], object], steps: int) -> float:
    """Captions per second of `steps` steps, after one that does not count."""
    step()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return BATCH * steps / (time.perf_counter() - started)


def main() -> None:
    device = choose_device("auto")
    best = choose_dtype("auto", device)
    random = np.random.default_rng(0)
    captions = [[1, *random.integers(4, WORDS, random.integers(8, 15)).tolist(), 2] for _ in range(BATCH)]
    words = pack_words(captions, list(range(BATCH))).to(device)
    pixels = torch.randint(0, 256, (BATCH, 3, 224, 224), dtype=torch.uint8, device=device)
    features = torch.rand(BATCH, CHANNELS, device=device).half()
    resnet = torchvision.models.resnet50().eval().to(device)
    resnet.fc = nn.Identity()
    decoder = build(Shape("show_tell", WORDS, CHANNELS, 512, 512, 0.5)).to(device)
    optimizer = torch.optim.AdamW(decoder.parameters(), fused=device.type in ("cpu", "cuda"))

    def learn(pooled: Tensor, dtype: torch.dtype) -> float:
        with autocast(device, dtype):
            logits = decoder(decoder.context(pooled), words)
        loss = cross_entropy(logits.float(), words.predict)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    def classic(dtype: torch.dtype) -> float:
        with torch.no_grad(), autocast(device, dtype):
            pooled = resnet(pixels.float() / 255)
        return learn(pooled.float(), dtype)

    print(f"{describe(device)}; captions/s")
    slow = rate(lambda: classic(torch.float32), 2)
    same = rate(lambda: classic(best), 3)
    cached = rate(lambda: learn(features.float(), best), 30)
    print(f"classic loop, float32     {slow:7.1f}")
    print(f"classic loop, {str(best).removeprefix('torch.'):11} {same:7.1f}")
    name = str(best).removeprefix("torch.")
    print(f"from features, {name:10} {cached:7.1f}  = {cached / slow:.0f} x and {cached / same:.0f} x")


if __name__ == "__main__":
    main()
