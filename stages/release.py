"""Publishes the profile's trained captioner: `python -m stages.release NAME --terms "..."`.

Writes models/pretrained/NAME.safetensors, in float16, half the bytes, and its card NAME.md, whose scores are measured
anew from that very file. Then, to bring both to everybody:

    dvc add models/pretrained/NAME.safetensors && dvc push -r store && git add models/pretrained dvcstore

With `--remember` the captioner NAME is published again, trained no further: it is given the profile's training
pictures to remember, unless it remembers some, and decodes as the profile's train section says from then on. What its
card says of the training and of the data stays.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from stages import params, rim
from stages.evaluate.measure import caption, judge, unlike
from stages.features.device import choose_device
from stages.features.store import Features
from stages.fetch.captions import read_captions
from stages.fetch.pictures import Pictures
from stages.files import read_json, whole
from stages.register.card import write_card
from stages.train.artifact import Artifact, read_metadata
from stages.train.batches import Examples
from stages.train.decoding import Decoding
from stages.train.memory import Memory

FOLDER = Path("models/pretrained")
DATA = "Data: "  # so begins what it says of the data, in one line
PUBLISHED = "Published in float16 from the weights"  # so begins what a card says of the training
LARGEST = 40_000_000  # bytes of a published captioner: the repository carries it


def main() -> None:
    options = arguments()
    profile, settings = params.read("evaluate")
    data, models = Path("data") / profile, Path("models") / profile
    path = FOLDER / f"{options.name}.safetensors"
    trained = Artifact.load(path if options.remember else models / "captioner.safetensors")
    if options.remember:
        made = published_before(path, profile)
        trained = asked_anew(trained, data, Decoding(**params.read("train")[1].decoding()))
    features = Features(data / "features")
    pictures = {split: read_captions(data / f"captions_{split}.json") for split in ("train", "val", "test")}
    asked = {split: pictures[split] for split in ("val", "test")}
    device = choose_device(settings.device)
    archives = Pictures(data / "pictures") if unlike(trained, features) else None
    source = read_json(Path("reports") / profile / "fetch.json")["source"]
    # Both appear under their names when all is measured: until then what was published before stays.
    with whole(path) as draft, whole(path.with_suffix(".md")) as page:
        trained.save(draft, torch.float16)
        if (size := draft.stat().st_size) > LARGEST:
            raise ValueError(f"{path} would have {size:,} bytes, more than {LARGEST:,}: train a smaller one")
        published = Artifact.load(draft)
        said = partial(
            caption,
            pictures=asked,
            features=features,
            archives=archives,
            decoding=published.decoding,
            batch=settings.batch,
            device=device,
        )
        found = said([published])
        cards = judge(found, pictures, features, published.decoding.as_dict(), settings.resamples)
        if not options.remember:
            before = said([trained])
            changed = sum(found["test"][key] != before["test"][key] for key in found["test"])
            same = f"{changed} of {len(found['test'])} test captions differ from those of float32"
            made = first_published(read_json(models / "run.json"), trained.weights_sha256, same, options.terms)
        card = write_card(options.name, profile, source, read_metadata(draft), cards, made.commit, registered=False)
        page.write_text(f"{card}\n{made.data}\n\n{made.training}", encoding="utf-8")
    print(f"{path}: {size:,} bytes, test CIDEr {cards['test']['cider']:.3f}, BLEU-4 {cards['test']['bleu_4']:.3f}")


def arguments() -> argparse.Namespace:
    parser = rim.parser("python -m stages.release", __doc__)
    parser.add_argument("name", metavar="NAME", help="what it is called, as flickr8k_attend")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--terms", help="what its data is, and under which terms")
    asked.add_argument("--remember", action="store_true", help="publish NAME again as the profile decodes now")
    return parser.parse_args()


class Made(NamedTuple):
    """What a card says of how a captioner came to be."""

    commit: str
    data: str
    training: str


def first_published(record: Mapping[str, Any], weights: str, same: str, terms: str) -> Made:
    """Of the run that has just trained it."""
    settled = "\n".join(f"    {key}: {value}" for key, value in record["params"].items())
    training = (
        f"{PUBLISHED} `{weights}` of run `{record['run_id']}`; {same}. The scores above are of the published file.\n\n"
        f"Settings of the run:\n\n{settled}\n"
    )
    return Made(record["tags"].get("commit", ""), f"{DATA}{' '.join(terms.split())}", training)


def published_before(path: Path, profile: str) -> Made:
    """Of the card that it has. Raises ValueError where that does not say it, or names another profile."""
    about = path.with_suffix(".md")
    older = about.read_text(encoding="utf-8") if about.is_file() else ""
    commit = older.partition("from commit `")[2].partition("`")[0]
    data = next((line for line in older.splitlines() if line.startswith(DATA)), "")
    training = older[older.find(PUBLISHED) :] if PUBLISHED in older else ""
    if not (commit and data and training):
        raise ValueError(f"{about} does not say how {path.stem} was made: publish it first, without --remember")
    if (of := older.partition("Made by profile `")[2].partition("`")[0]) != profile:
        raise ValueError(
            f"{about}: {path.stem} was made by profile {of}, and params.yaml chooses {profile}, whose pictures and "
            f"decoding are others: set `profile: {of}` first"
        )
    again = (
        f"What it remembers, or how it is decoded, was decided after it had been trained and published: `python -m "
        f"stages.release {path.stem} --remember`. What follows is of the training.\n\n"
    )
    return Made(commit, data, again + training)


def asked_anew(artifact: Artifact, data: Path, decoding: Decoding) -> Artifact:
    """The same captioner, asked by `decoding`, with the training pictures of a profile where it remembers none."""
    if artifact.memory:
        return replace(artifact, decoding=decoding)
    features = Features(data / "features")
    if other := unlike(artifact, features):
        raise ValueError(f"{other}: train it with neighbours, or make its features")
    examples = Examples.of(read_captions(data / "captions_train.json"), features, "train", artifact.vocabulary)
    pooled = torch.from_numpy(features.read("train", "pooled", examples.rows)).float()
    memory = Memory.of(pooled, examples.captions)
    return replace(artifact, memory=memory, decoding=decoding)


if __name__ == "__main__":
    rim.run(main)
