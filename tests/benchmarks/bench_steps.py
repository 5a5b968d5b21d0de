"""Training's own loop beside a bare loop of the same matrix products, and what is lost between them.

    OMP_NUM_THREADS=1 chrt -f 1 python tests/benchmarks/bench_steps.py [--decoder attend] [--profile] [--compile]

Ours: `Training.one_step` as the stage runs it, from features on disk to the optimiser. Bare: forward and backward of
nothing but the products of LSTMs, output layer and cross-entropy (and of attention), on tensors that are there already,
with the LSTM of our own and with torch's nn.LSTM (on a GPU both are cuDNN's, in float32 and, as autocast has it, in
float16); no embedding, dropout, reading, packing, clipping or optimiser.
Vocabulary of 9,500 words as COCO's, 5 captions of 8 to 14 words a picture, embedding and hidden 512, batch 64, in this
machine's best precision. The ratio is the median over rounds that alternate. `--profile` adds torch's table of ours;
with `--compile` ours is compiled, as `train.compile` has it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.nn.utils.rnn import PackedSequence

from stages.features.device import autocast, choose_device, choose_dtype, describe
from stages.features.store import Draft, Features
from stages.train.batches import Examples, Source
from stages.train.decoders import DECODERS, Shape, Words, build, pack_words
from stages.train.loop import Training
from stages.train.objectives import CrossEntropy
from stages.train.packed_lstm import packed_lstm
from stages.train.settings import Settings

PICTURES, CAPTIONS, WORDS, CHANNELS, REGIONS, HIDDEN, BATCH = 600, 5, 9_500, 1280, 49, 512, 64
PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"
Run = Callable[[nn.LSTM, Tensor, Tensor], Tensor]


def made_up(folder: Path, random: np.random.Generator) -> Features:
    """Features on disk, drawn at random."""
    draft = Draft(folder / "features.partial", "made up")
    for kind, shape in (("pooled", (PICTURES, CHANNELS)), ("grid", (PICTURES, REGIONS, CHANNELS))):
        draft.open(f"train_{kind}.npy", shape)
        draft.arrays[f"train_{kind}.npy"][:] = random.random(shape, np.float32)
    draft.save()
    draft.close_arrays()
    draft.finish(folder / "features", {"splits": {"train": list(range(PICTURES))}})
    return Features(folder / "features")


def torchs(lstm: nn.LSTM, x: Tensor, sizes: Tensor) -> Tensor:
    return lstm(PackedSequence(x, sizes))[0].data


def bare(
    name: str, words: Words, pictures: int, device: torch.device, dtype: torch.dtype, run: Run
) -> Callable[[], None]:
    """Forward and backward of the decoder's products for these words."""
    lead = len(words.owner) if name == "show_tell" else 0  # the picture is the LSTM's first input there
    sizes = torch.cat([words.batch_sizes[:1], words.batch_sizes]) if lead else words.batch_sizes
    lstm, language = (nn.LSTM(width * HIDDEN, HIDDEN).to(device) for width in (1, 2))
    output, image = nn.Linear(HIDDEN, WORDS).to(device), nn.Linear(CHANNELS, HIDDEN).to(device)
    regions, keys, values, query = (
        nn.Linear(channels, HIDDEN).to(device) for channels in (CHANNELS, HIDDEN, HIDDEN, HIDDEN)
    )
    pooled = torch.rand(pictures, CHANNELS, device=device)
    grid = torch.rand(pictures, REGIONS, CHANNELS, device=device)
    x = torch.rand(lead + len(words.read), HIDDEN, device=device, requires_grad=True)
    used = [lstm, output, image, *([language, regions, keys, values, query] if name == "attend" else [])]
    weights = [x, *(weight for layer in used for weight in layer.parameters())]
    heads = HIDDEN // 64
    asked = -(-len(words.read) // pictures)  # words of a picture, about: what attention is asked by each

    def split(vectors: Tensor) -> Tensor:
        return vectors.unflatten(-1, (heads, -1)).transpose(1, 2)

    def products() -> None:
        with autocast(device, dtype):
            seen = image(pooled)
            h = run(lstm, x, sizes)[lead:]
            if name == "attend":
                projected = regions(grid)
                padded = torch.cat([h, h[: asked * pictures - len(h)]]).view(pictures, asked, HIDDEN)
                scores = split(query(padded)) @ split(keys(projected)).transpose(-1, -2) / math.sqrt(64)
                looked = (scores.softmax(-1).to(h.dtype) @ split(values(projected))).transpose(1, 2).flatten(2)
                h = h + run(language, torch.cat([h, looked.flatten(0, 1)[: len(h)]], -1), sizes)
            logits = linear(h, output.weight, output.bias)
        loss = cross_entropy(logits.float(), words.predict) + seen.float().sum()
        torch.autograd.grad(loss, weights)

    return products


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--decoder", choices=tuple(DECODERS), default="show_tell")
    parser.add_argument("--profile", action="store_true", help="where the time of a step goes")
    parser.add_argument("--compile", action="store_true", help="ours compiled")
    parser.add_argument("--steps", type=int, default=12, help="of each way in a round")
    options = parser.parse_args()
    device = choose_device("auto")
    dtype = choose_dtype("auto", device)
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        features = made_up(Path(folder), random)
        texts = [
            [[1, *random.integers(4, WORDS, random.integers(8, 15)).tolist(), 2] for _ in range(CAPTIONS)]
            for _ in range(PICTURES)
        ]
        examples = Examples(list(range(PICTURES)), texts)
        kind = DECODERS[options.decoder]
        block = yaml.safe_load(PARAMS.read_text())["flickr8k"]["train"]
        plan = Settings(**block).plan()
        together = 2 if kind.grid else 1
        source = Source(features, "train", kind.grid, mirror=False)
        objective = CrossEntropy(
            examples, source, device, dtype, captions=BATCH, captions_per_picture=together, label_smoothing=0.1
        )
        decoder = build(Shape(options.decoder, WORDS, CHANNELS, HIDDEN, HIDDEN, 0.5)).train()
        training = Training(decoder, objective, plan, device=device, compiled=options.compile)
        batches = objective.batches(random)[: options.steps]
        groups = [examples.captions[picture][place] for picture, places in batches[0].groups for place in places]
        words = pack_words(groups, [i // together for i in range(len(groups))]).to(device)
        pictures = len(batches[0].groups)
        ways: dict[str, Callable[[int], object]] = {
            "ours": lambda i: training.one_step(batches[i % len(batches)], 1e-3)
        }
        for title, run in (("bare, our LSTM", packed_lstm), ("bare, torch's LSTM", torchs)):
            products = bare(options.decoder, words, pictures, device, dtype, run)
            ways[title] = lambda i, products=products: products()  # type: ignore[misc]
        rates: dict[str, list[float]] = {title: [] for title in ways}
        for number in range(6):
            for title, step in ways.items():
                started = time.perf_counter()
                for i in range(options.steps):
                    step(i)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if number:  # the first round does not count
                    rates[title].append(BATCH * options.steps / (time.perf_counter() - started))
        print(f"{options.decoder}, {describe(device)}, {dtype}: captions/s, median of {len(rates['ours'])} rounds")
        for title, found in rates.items():
            ratio = statistics.median(own / its for own, its in zip(rates["ours"], found, strict=True))
            told = "" if title == "ours" else f"   ours is {ratio:.2f} of it"
            print(f"{title:20}{statistics.median(found):8.0f}  ({min(found):.0f} to {max(found):.0f}){told}")
        if options.profile:
            with torch.profiler.profile() as profiled:
                for batch in batches:
                    training.one_step(batch, 1e-3)
            print(profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=18, max_name_column_width=40))


if __name__ == "__main__":
    main()
