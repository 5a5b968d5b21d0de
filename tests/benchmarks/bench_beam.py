"""Beam search over 1,000 pictures from features in memory: in batches, and one picture at a time, with equal tokens.

    dvc pull && chrt -f 1 python tests/benchmarks/bench_beam.py [PICTURES] [--model FILE] [--batch N] [--profile]

By default with the pretrained captioners. Features are drawn, with each channel's mean and deviation in training.
`--profile` says what bounds both: the share of matrix products in the time, and how fast they are.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from stages.features.device import choose_device
from stages.features.device import describe as describe_device
from stages.train.artifact import Artifact
from stages.train.batches import Source
from stages.train.decoding import Decoding
from stages.train.describe import describe
from stages.train.finetune import Kept

PRETRAINED = Path(__file__).resolve().parents[2] / "models" / "pretrained"


def products(work: Callable[[], object]) -> str:
    """What part of the time of `work` is matrix products, and how fast they are."""
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as watched:
        work()
    every = watched.key_averages()
    multiplied = [each for each in every if each.key in ("aten::addmm", "aten::mm", "aten::bmm")]
    spent, total = (sum(each.self_cpu_time_total for each in some) / 1e6 for some in (multiplied, every))  # seconds
    operations = sum(each.flops for each in multiplied)
    return f"{100 * spent / total:.0f} % matrix products, at {operations / spent / 1e9:.0f} GFLOP/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pictures", nargs="?", type=int, default=1000)
    parser.add_argument("--model", action="append", metavar="FILE", help="a captioner.safetensors")
    parser.add_argument("--batch", type=int, default=256, metavar="N", help="pictures together (default: 256)")
    parser.add_argument("--profile", action="store_true", help="what bounds it, too")
    options = parser.parse_args()
    device = choose_device("auto")
    decoders = [Artifact.load(path).decoder for path in options.model or sorted(PRETRAINED.glob("*.safetensors"))]
    torch.manual_seed(0)
    rows = list(range(options.pictures))
    decoding = Decoding(beam=5)
    print(f"{options.pictures} pictures, beam {decoding.beam}, {describe_device(device)}")
    for decoder in decoders:
        pictures = torch.randn(options.pictures, 1, len(decoder.mean)) + torch.randn(
            options.pictures, 49, len(decoder.mean)
        )
        grid = (decoder.mean + decoder.deviation * pictures).clamp_min(0).half().numpy()
        views = [{False: grid.mean(1)}, {False: grid}] if decoder.grid else [{False: grid.mean(1)}]
        source: Source = Kept(None, "made up", decoder.grid, False, views)  # type: ignore[arg-type] - all is in memory
        seconds, found = {}, {}
        for batch in (options.batch, 1):
            started = time.perf_counter()
            search = partial(describe, [decoder.to(device)], [source], rows, decoding, bad_endings=(), device=device)
            found[batch] = search(batch=batch)
            seconds[batch] = time.perf_counter() - started
            if options.profile:
                print(f"  in batches of {batch}: {products(partial(search, batch=batch))}")
        one, many = found[1], found[options.batch]
        alike = sum([h.words for h in own] == [h.words for h in other] for own, other in zip(one, many, strict=True))
        words = np.mean([len(best[0].words) for best in many])
        together, alone = seconds[options.batch], seconds[1]
        print(
            f"{decoder.shape.decoder:10} {together:6.1f} s in batches of {options.batch}, {alone:6.1f} s alone: "
            f"{alone / together:.1f} times; {alike} of {options.pictures} captioned alike, {words:.1f} words"
        )


if __name__ == "__main__":
    main()
