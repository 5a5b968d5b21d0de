"""Publishes the profile's trained captioner: `python -m stages.release NAME --terms "..."`.

Writes models/pretrained/NAME.safetensors, in float16, half the bytes, and its card NAME.md, whose scores are measured
anew from that very file. Then, to bring both to everybody:

    dvc add models/pretrained/NAME.safetensors && dvc push && git add models/pretrained dvcstore

With `--remember` the captioner NAME is published again, trained no further: it is given the profile's training
pictures to remember, unless it remembers some, and decodes as the profile's train section says from then on.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from stages import params
from stages.evaluate.measure import caption, judge, unlike
from stages.features.device import choose_device
from stages.features.store import Features
from stages.fetch.captions import read_captions
from stages.fetch.pictures import Pictures
from stages.files import read_json, whole
from stages.register.card import write_card
from stages.rim import run
from stages.train.artifact import Artifact, read_metadata
from stages.train.batches import Examples
from stages.train.decoding import Decoding
from stages.train.memory import Memory

FOLDER = Path("models/pretrained")
PUBLISHED = "Published in float16 from the weights"  # so begins what a card says of the training
LARGEST = 40_000_000  # bytes of a published captioner: the repository carries it


def main() -> None:
    parser = argparse.ArgumentParser("python -m stages.release", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", metavar="NAME", help="what it is called, as flickr8k_attend")
    parser.add_argument("--terms", required=True, help="what its data is, and under which terms")
    parser.add_argument("--remember", action="store_true", help="publish NAME again as the profile decodes now")
    options = parser.parse_args()
    profile, settings = params.read("evaluate")
    data, models = Path("data") / profile, Path("models") / profile
    path = FOLDER / f"{options.name}.safetensors"
    trained = Artifact.load(path if options.remember else models / "captioner.safetensors")
    if options.remember:
        trained = asked_anew(trained, data, Decoding(**params.read("train")[1].decoding()))
    trained.save(path, torch.float16)
    if (size := path.stat().st_size) > LARGEST:
        path.unlink()
        raise ValueError(f"{path} would have {size:,} bytes, more than {LARGEST:,}: train a smaller one")

    published, features = Artifact.load(path), Features(data / "features")
    pictures = {split: read_captions(data / f"captions_{split}.json") for split in ("train", "val", "test")}
    asked = {split: pictures[split] for split in ("val", "test")}
    device = choose_device(settings.device)
    archives = Pictures(data / "pictures") if unlike(trained, features) else None
    found, before = (
        caption([each], asked, features, archives, each.decoding, batch=settings.batch, device=device)
        for each in (published, trained)
    )
    cards = judge(found, pictures, features, published.decoding.as_dict(), settings.resamples)
    source = read_json(Path("reports") / profile / "fetch.json")["source"]
    about = path.with_suffix(".md")
    if options.remember:  # what the card says of the training stays
        older = about.read_text(encoding="utf-8")
        commit, made = older.partition("from commit `")[2].partition("`")[0], older[older.index(PUBLISHED) :]
        made = (
            f"What it remembers, or how it is decoded, was decided after it had been trained and published: `python -m "
            f"stages.release {options.name} --remember`. What follows is of the training.\n\n{made}"
        )
    else:
        record = read_json(models / "run.json")
        commit = record["tags"].get("commit", "")
        changed = sum(found["test"][key] != before["test"][key] for key in found["test"])
        settled = "\n".join(f"    {key}: {value}" for key, value in record["params"].items())
        made = (
            f"{PUBLISHED} `{trained.weights_sha256}` of run `{record['run_id']}`; {changed} of {len(found['test'])} "
            f"test captions differ from those of float32. The scores above are of the published file.\n\nSettings of "
            f"the run:\n\n{settled}\n"
        )
    card = write_card(options.name, profile, source, read_metadata(path), cards, commit)
    with whole(about) as partial:
        partial.write_text(f"{card}\nData: {options.terms}\n\n{made}", encoding="utf-8")
    print(f"{path}: {size:,} bytes, test CIDEr {cards['test']['cider']:.3f}, BLEU-4 {cards['test']['bleu_4']:.3f}")


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
    run(main)
