"""Evaluate: captions of all val and test pictures, decoded in batches, and the score card of both splits.

Reads:  models/P/captioner.safetensors, models/P/run.json, data/P/features, data/P/pictures, reports/P/training.csv,
        data/P/captions_train.json, data/P/captions_val.json, data/P/captions_test.json
Writes: reports/P/captions_val.json, reports/P/captions_test.json, reports/P/metrics.json, reports/P/scorecard.md
Why:    a score counts only over every picture of its split, with its noise, its floors and how it was decoded.

`python -m stages.evaluate --captions results.json [--split val]` prints the same card for any captions of the profile's
pictures in COCO's results format, whoever made them; `--model FILE` for another captioner, or for several that vote.
These write nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from stages import params, tracking
from stages.evaluate import figures, scorecard
from stages.evaluate.measure import caption, judge, rows_of_all, seen
from stages.evaluate.results import read_results, write_results
from stages.evaluate.settings import Settings
from stages.features.device import choose_device
from stages.features.store import Features
from stages.fetch.captions import Picture, read_captions
from stages.fetch.pictures import Pictures, decode
from stages.files import whole, write_json
from stages.rim import run
from stages.train.artifact import Artifact
from stages.train.batches import Source
from stages.train.decoders import Decoder, pack_words
from stages.vocab.vocabulary import Vocabulary

SPLITS = ("val", "test")
SHOWN = 12  # test pictures that go into the record with their captions


def main() -> None:
    profile, settings = params.read("evaluate")
    assert isinstance(settings, Settings)
    data, models, reports = (Path(top) / profile for top in ("data", "models", "reports"))
    pictures = {split: read_captions(data / f"captions_{split}.json") for split in ("train", *SPLITS)}
    options = arguments()
    if options.captions:
        references = {picture.id: picture.captions for picture in pictures[options.split]}
        captions = read_results(options.captions, references)
        features = Features(data / "features") if (data / "features").is_dir() else None
        card = judge({options.split: captions}, pictures, features, {"captions": options.captions}, settings.resamples)
        print(scorecard.markdown(card))
        return

    artifacts = [Artifact.load(path) for path in options.model or [models / "captioner.safetensors"]]
    features = Features(data / "features")
    decoding = artifacts[0].decoding.but(**settings.decoding())
    asked = {split: pictures[split] for split in ([options.split] if options.model else SPLITS)}
    # Opened before the work, which a store that cannot be opened would make in vain.
    record = None if options.model else tracking.reopen(models / "run.json", "evaluate", settings.model_dump())
    for unfinished in () if options.model else models.glob("unfinished_*.pt"):
        unfinished.unlink()  # train's checkpoints: now that DVC has its outputs, it is never resumed
    device = choose_device(settings.device)
    archives = Pictures(data / "pictures") if any(artifact.tuned for artifact in artifacts) else None
    found = caption(artifacts, asked, features, archives, decoding, batch=settings.batch, device=device)
    cards = judge(found, pictures, features, decoding.as_dict(), settings.resamples)
    if record is None:
        print(scorecard.markdown(cards))
        return
    artifact, decoder = artifacts[0], artifacts[0].decoder.cpu()
    for split in SPLITS:
        write_results(reports / f"captions_{split}.json", found[split])
    write_json(reports / "metrics.json", cards)
    with whole(reports / "scorecard.md") as partial:
        partial.write_text(scorecard.markdown(cards), encoding="utf-8")
    with record:
        record.score(cards)
        for name in ("metrics.json", "scorecard.md", "captions_val.json", "captions_test.json"):
            record.artifact(reports / name)
        record.figure(figures.curves(pd.read_csv(reports / "training.csv")), "curves.png")
        shown = spread(pictures["test"], SHOWN)
        images = read_pictures(data / "pictures", shown)
        said = [found["test"][picture.id] for picture in shown]
        record.figure(figures.sheet(images, said, [picture.captions[0] for picture in shown]), "captions.png")
        if decoder.grid:
            rows = rows_of_all(shown[:4], features, "test")
            source = seen(artifact, shown[:4], features, "test", archives, torch.device("cpu"))
            for picture, image, row, text in zip(shown, images, rows, said, strict=False):
                words, weights = look(decoder, source, row, artifact.vocabulary, text)
                record.figure(figures.attention(image, words, weights), f"attention/{picture.id}.png")
    test = cards["test"]
    ends = test["intervals"].get("cider")  # none where settings ask for no resamples
    span = f" ({ends['low']:.3f} to {ends['high']:.3f})" if ends else ""
    print(
        f"test, {test['images']:,} pictures: BLEU-4 {test['bleu_4']:.3f}, CIDEr {test['cider']:.3f}{span}: "
        f"{reports}/scorecard.md"
    )


def spread(pictures: Sequence[Picture], count: int) -> list[Picture]:
    """`count` pictures at even distances in their order, so that nobody has chosen them."""
    return [pictures[i * len(pictures) // count] for i in range(min(count, len(pictures)))]


def read_pictures(archives: Path, pictures: Sequence[Picture]) -> list[Image.Image]:
    """The pictures themselves, small enough to be looked at together."""
    opened = Pictures(archives)
    images = [decode(opened.read(picture.file_name), at_least=400) for picture in pictures]
    for image in images:
        image.thumbnail((400, 400))
    return images


@torch.inference_mode()
def look(
    decoder: Decoder, source: Source, row: int, vocabulary: Vocabulary, caption: str
) -> tuple[list[str], NDArray[np.float32]]:
    """The words of a caption and <end>, and where the decoder looked for each: (T, R)."""
    pooled, grid = source.read([row])
    words = pack_words([vocabulary.encode(caption)], [0])
    weights = decoder.attention(decoder.context(pooled.float(), grid.float() if grid is not None else None), words)
    assert weights is not None
    return [vocabulary.words[word] for word in words.predict.tolist()], weights.numpy()


def arguments() -> argparse.Namespace:
    """The command line; the stage itself is run without any."""
    parser = argparse.ArgumentParser("python -m stages.evaluate", description="Scores captions of pictures.")
    parser.add_argument("--captions", metavar="FILE", help="score this results file (COCO's format) instead of a model")
    parser.add_argument(
        "--model", action="append", metavar="FILE", help="score this captioner; given several times, they vote"
    )
    parser.add_argument("--split", choices=SPLITS, default="test", help="the split to score")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
