"""Publishes the profile's trained captioner: `python -m stages.release NAME --terms "..."`.

Writes models/pretrained/NAME.safetensors, in float16, half the bytes, and its card NAME.md, whose scores are measured
anew from that very file. Then, to bring both to everybody:

    dvc add models/pretrained/NAME.safetensors && dvc push && git add models/pretrained dvcstore
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from stages import params
from stages.evaluate.measure import caption, judge
from stages.features.device import choose_device
from stages.features.store import Features
from stages.fetch.captions import read_captions
from stages.fetch.pictures import Pictures
from stages.files import read_json, whole
from stages.register.card import write_card
from stages.rim import run
from stages.train.artifact import Artifact, read_metadata

FOLDER = Path("models/pretrained")
LARGEST = 40_000_000  # bytes of a published captioner: the repository carries it


def main() -> None:
    parser = argparse.ArgumentParser("python -m stages.release", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", metavar="NAME", help="what it is called, as flickr8k_attend")
    parser.add_argument("--terms", required=True, help="what its data is, and under which terms")
    options = parser.parse_args()
    profile, settings = params.read("evaluate")
    data, models = Path("data") / profile, Path("models") / profile
    trained = Artifact.load(models / "captioner.safetensors")
    path = FOLDER / f"{options.name}.safetensors"
    trained.save(path, torch.float16)
    if (size := path.stat().st_size) > LARGEST:
        path.unlink()
        raise ValueError(f"{path} would have {size:,} bytes, more than {LARGEST:,}: train a smaller one")

    published, features = Artifact.load(path), Features(data / "features")
    pictures = {split: read_captions(data / f"captions_{split}.json") for split in ("train", "val", "test")}
    asked = {split: pictures[split] for split in ("val", "test")}
    device = choose_device(settings.device)
    archives = Pictures(data / "pictures") if trained.tuned else None
    found, before = (
        caption([each], asked, features, archives, each.decoding, batch=settings.batch, device=device)
        for each in (published, trained)
    )
    cards = judge(found, pictures, features, published.decoding.as_dict(), settings.resamples)
    record = read_json(models / "run.json")
    source = read_json(Path("reports") / profile / "fetch.json")["source"]
    card = write_card(options.name, profile, source, read_metadata(path), cards, record["tags"].get("commit", ""))
    changed = sum(found["test"][key] != before["test"][key] for key in found["test"])
    settled = "\n".join(f"    {key}: {value}" for key, value in record["params"].items())
    with whole(path.with_suffix(".md")) as partial:
        partial.write_text(
            f"{card}\nData: {options.terms}\n\nPublished in float16 from the weights `{trained.weights_sha256}` of run "
            f"`{record['run_id']}`; {changed} of {len(found['test'])} test captions differ from those of float32. The "
            f"scores above are of the published file.\n\nSettings of the run:\n\n{settled}\n",
            encoding="utf-8",
        )
    print(f"{path}: {size:,} bytes, test CIDEr {cards['test']['cider']:.3f}, BLEU-4 {cards['test']['bleu_4']:.3f}")


if __name__ == "__main__":
    run(main)
