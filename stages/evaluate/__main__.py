"""Evaluate: captions of all val and test pictures, decoded in batches, and the score card of both splits.

Reads:  models/P/captioner.safetensors, models/P/run.json, data/P/features, data/P/pictures, reports/P/training.csv,
        data/P/captions_train.json, data/P/captions_val.json, data/P/captions_test.json
Writes: reports/P/captions_val.json, reports/P/captions_test.json, reports/P/metrics.json, reports/P/scorecard.md,
        reports/P/gallery.html
Why:    a score counts only over every picture of its split, with its noise, its floors and how it was decoded.

`python -m stages.evaluate --captions results.json [--split val]` prints the same card for any captions of the profile's
pictures in COCO's results format, whoever made them; `--model FILE` for another captioner, or for several that vote.
These write nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from stages import params, rim, tracking
from stages.evaluate import figures, gallery, scorecard
from stages.evaluate.measure import attention, hypotheses, judge, per_word, rows_of_all, seen, texts, unlike
from stages.evaluate.results import read_results, write_results
from stages.evaluate.settings import Settings
from stages.features.device import choose_device
from stages.features.preprocessing import Preprocessing
from stages.features.store import Features
from stages.fetch.captions import Picture, read_captions
from stages.fetch.pictures import Pictures, decode
from stages.fetch.thumbnails import thumbnails
from stages.files import whole, write_json
from stages.scorers.score import Judge
from stages.train.artifact import Artifact
from stages.train.decoding import Decoding, Hypothesis

SPLITS = ("val", "test")
SHOWN = 12  # test pictures that go into the record with their captions
ATTENDED = 4  # of these, with where the model looked
FIRST = 200  # test pictures in the gallery that goes into the record


def main() -> None:
    options = arguments()
    profile, settings = params.read("evaluate")
    assert isinstance(settings, Settings)
    data, models, reports = (Path(top) / profile for top in ("data", "models", "reports"))
    pictures = {split: read_captions(data / f"captions_{split}.json") for split in ("train", *SPLITS)}
    if options.captions:
        references = {picture.id: picture.captions for picture in pictures[options.split]}
        captions = read_results(options.captions, references)
        features = Features(data / "features") if (data / "features").is_dir() else None
        card = judge({options.split: captions}, pictures, features, {"captions": options.captions}, settings.resamples)
        print(scorecard.markdown(card))
        return

    artifacts = [Artifact.load(path) for path in options.model or [models / "captioner.safetensors"]]
    features = Features(data / "features")
    if not options.model and (other := unlike(replace(artifacts[0], tuned={}), features)):
        raise ValueError(f"{other}: run `dvc repro`")
    decoding = artifacts[0].decoding.but(**settings.decoding())
    asked = {split: pictures[split] for split in ([options.split] if options.model else SPLITS)}
    # Opened before the work, which a store that cannot be opened would make in vain.
    record = None if options.model else tracking.reopen(models / "run.json", "evaluate", settings.model_dump())
    for unfinished in () if options.model else models.glob("unfinished_*.pt"):
        if unfinished.stat().st_mtime <= (models / "run.json").stat().st_mtime:
            unfinished.unlink()  # train's checkpoints: now that DVC has its outputs, it is never resumed
    device = choose_device(settings.device)
    # Pictures are needed to be shown, and by a captioner that sees other than the features on disk.
    strange = any(unlike(artifact, features) for artifact in artifacts)
    archives = Pictures(data / "pictures") if record or strange else None
    best = hypotheses(artifacts, asked, features, archives, decoding, batch=settings.batch, device=device)
    found = {split: texts(artifacts[0], own) for split, own in best.items()}
    cards = judge(found, pictures, features, decoding.as_dict(), settings.resamples)
    if record is None or archives is None:
        print(scorecard.markdown(cards))
        return
    for split in SPLITS:
        write_results(reports / f"captions_{split}.json", found[split])
    write_json(reports / "metrics.json", cards)
    with whole(reports / "scorecard.md") as draft:
        draft.write_text(scorecard.markdown(cards), encoding="utf-8")
    looked = {}
    if artifacts[0].decoder.grid:
        rows = rows_of_all(pictures["test"], features, "test")
        source = seen(artifacts[0], pictures["test"], features, "test", archives, device)
        said = [best["test"][picture.id][0].words for picture in pictures["test"]]
        weights = attention(artifacts[0].decoder, source, rows, said, batch=settings.batch)
        looked = dict(zip(best["test"], weights, strict=True))
    pages = galleries(profile, pictures, cards["test"], artifacts[0], decoding, best["test"], looked, archives)
    with whole(reports / "gallery.html") as draft:
        draft.write_text(next(pages), encoding="utf-8")
    with record:
        record.score(cards)
        for name in ("metrics.json", "scorecard.md", "captions_val.json", "captions_test.json"):
            record.artifact(reports / name)
        record.figure(figures.curves(pd.read_csv(reports / "training.csv")), "curves.png")
        shown = spread(pictures["test"], SHOWN)
        images = read_pictures(archives, shown)
        spoken = [found["test"][picture.id] for picture in shown]
        record.figure(figures.sheet(images, spoken, [picture.captions[0] for picture in shown]), "captions.png")
        for picture, image, words in list(zip(shown, images, spoken, strict=True))[:ATTENDED]:
            if picture.id in looked:
                box = Preprocessing(**artifacts[0].encoder["preprocessing"]).box(*image.size)
                figure = figures.attention(image, words.split(), looked[picture.id], box)
                record.figure(figure, f"attention/{picture.id}.png")
        with tempfile.TemporaryDirectory() as folder:  # MLflow names an artifact like its file
            (Path(folder) / "gallery.html").write_text(next(pages), encoding="utf-8")
            record.artifact(Path(folder) / "gallery.html")
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


def galleries(
    profile: str,
    pictures: Mapping[str, Sequence[Picture]],
    card: Mapping[str, Any],
    artifact: Artifact,
    decoding: Decoding,
    best: Mapping[int, Sequence[Hypothesis]],
    looked: Mapping[int, NDArray[np.float32]],
    archives: Pictures,
) -> Iterator[str]:
    """The gallery of all test pictures, then that of the first ones, as pages."""
    words = artifact.vocabulary.decode
    captions = {i: [(words(each.words), per_word(each, decoding)) for each in own] for i, own in best.items()}
    judged = Judge({picture.id: picture.captions for picture in pictures["test"]})
    scores = judged.score({i: own[0][0] for i, own in captions.items()}, with_meteor=False)
    seen = scorecard.Training([picture.captions for picture in pictures["train"]]).seen
    shown = gallery.show(pictures["test"], captions, scores, seen, looked)
    names = [picture.file_name for picture in pictures["test"]]
    small = thumbnails(archives, names, gallery.SIDE)
    model = (
        f"The model: {artifact.decoder.name} on {artifact.encoder['encoder']}, weights {artifact.weights_sha256[:12]}."
    )
    cropped = artifact.encoder["preprocessing"]["resize"] == "crop"
    for count in (len(shown), FIRST):
        yield gallery.gallery(profile, card, shown[:count], small[:count], model, cropped)


def read_pictures(archives: Pictures, pictures: Sequence[Picture]) -> list[Image.Image]:
    """The pictures themselves, small enough to be looked at together."""
    images = [decode(archives.read(picture.file_name), at_least=400) for picture in pictures]
    for image in images:
        image.thumbnail((400, 400))
    return images


def arguments() -> argparse.Namespace:
    """The command line; the stage itself is run without any."""
    parser = rim.parser("python -m stages.evaluate", __doc__)
    others = parser.add_mutually_exclusive_group()
    others.add_argument("--captions", metavar="FILE", help="score this results file (COCO's format) instead of a model")
    others.add_argument(
        "--model", action="append", metavar="FILE", help="score this captioner; several vote, decoded as the first says"
    )
    parser.add_argument("--split", choices=SPLITS, help="... on this split (default: test)")
    options = parser.parse_args()
    if options.split and not (options.captions or options.model):
        parser.error("--split goes with --captions or --model: the stage scores both splits")
    options.split = options.split or "test"
    return options


if __name__ == "__main__":
    rim.run(main)
