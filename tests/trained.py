"""A repository in which the stages before register have just run, made in a moment: a captioner with drawn weights,
captions that are as good as is asked for, their real score card, a run in a real store, git and dvc.lock."""

from __future__ import annotations

import hashlib
import json
import runpy
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from stores import fresh, git

from stages import tracking
from stages.evaluate.results import write_results
from stages.evaluate.scorecard import Training, build
from stages.features.encoders import ENCODERS
from stages.fetch.captions import Picture, write_captions
from stages.files import write_json
from stages.provenance import md5
from stages.scorers.meteor import MeteorUnavailable
from stages.train.artifact import Artifact
from stages.train.decoders import Shape
from stages.train.decoders import build as build_decoder
from stages.train.decoding import Decoding
from stages.vocab.vocabulary import SPECIALS, Vocabulary

SOURCE = Path(__file__).resolve().parent.parent
WORDS = ("a", "dog", "cat", "runs", "sleeps", "on", "grass", "the", "red", "sofa", "child", "with", "ball", "plays")


class Trained:
    """The state of a repository after evaluate. Everything is of profile `flickr8k` unless `profile` says otherwise."""

    def __init__(self, folder: Path, profile: str = "flickr8k", source: str = "flickr8k", pictures: int = 60) -> None:
        self.folder, self.profile, self.source = folder, profile, source
        self.data, self.models, self.reports = (folder / top / profile for top in ("data", "models", "reports"))
        self.block = yaml.safe_load((SOURCE / "params.yaml").read_text())
        self.block["profile"] = profile
        (folder / "params.yaml").write_text(yaml.safe_dump(self.block, sort_keys=False))
        (folder / "stages").mkdir()
        (folder / "stages" / "model.py").write_text("LAYERS = 1\n")
        (folder / ".gitignore").write_text("/data/\n/models/\n/reports/\n/mlflow.db*\n/mlartifacts/\n/.dvc/\n")
        git(folder, "init", "-q", "-b", "main")
        numbers = range(1, pictures + 1)
        self.show([Picture(i, f"{i}.png", 64, 64, (sentence(3 * i), sentence(3 * i + 1))) for i in numbers])
        write_json(self.data / "vocab.json", [*SPECIALS, *WORDS])
        (self.data / "features").mkdir()
        (self.data / "features" / "index.json").write_text("{}\n")
        write_json(self.reports / "fetch.json", {"source": source})

    def show(self, pictures: Sequence[Picture]) -> None:
        """Has all splits hold these pictures."""
        self.pictures = pictures
        for split in ("train", "val", "test"):
            write_captions(self.data / f"captions_{split}.json", pictures, {"description": split})

    def train(self, seed: int) -> tracking.Run:
        """Writes a captioner whose weights are drawn from `seed`, and its run."""
        torch.manual_seed(seed)
        encoder = ENCODERS["efficientnet_lite0"]("package")
        shape = Shape("show_tell", len(SPECIALS) + len(WORDS), encoder.channels, 16, 16)
        about = {
            "encoder": "efficientnet_lite0",
            "weights": "package",
            "weights_sha256": encoder.weights_sha256,
            "precision": "float32",
            "preprocessing": {"size": 224, "resize": "squash"},
        }
        vocabulary = Vocabulary((*SPECIALS, *WORDS))
        Artifact(build_decoder(shape), vocabulary, about, Decoding(3, 0.7, 8)).save(
            self.models / "captioner.safetensors"
        )
        self.lock()
        with tracking.start(self.profile, self.block[self.profile], "cpu") as run:
            for epoch in (1, 2, 3):
                run.log({"train_loss": 3 / epoch, "val_cider": epoch / 10, "learning_rate": 0.1 / epoch}, step=epoch)
        write_json(self.models / "run.json", run.record())
        return run

    def measure(self, quality: float, beam: int = 3) -> None:
        """Writes captions of which the share `quality` is what people say, and their score card, as evaluate does."""
        right = round(quality * len(self.pictures))
        captions = {
            picture.id: picture.captions[0] if i < right else sentence(7 * i + 5)
            for i, picture in enumerate(self.pictures)
        }
        references = {picture.id: picture.captions for picture in self.pictures}
        training = Training([picture.captions for picture in self.pictures])
        decoding = {"beam": beam, "length_penalty": 0.7, "max_words": 8}
        with patch("stages.scorers.meteor.statistics", side_effect=MeteorUnavailable("it takes seconds to start")):
            card = build(captions, references, split="test", training=training, decoding=decoding, resamples=100)
        write_results(self.reports / "captions_test.json", captions)
        write_json(self.reports / "metrics.json", {"test": card, "val": card})
        with tracking.reopen(self.models / "run.json", "evaluate", self.block[self.profile]["evaluate"]) as run:
            run.score({"test": card})
        self.lock()

    def lock(self) -> None:
        """Writes dvc.lock as DVC does, with what is there."""
        data, reports = f"data/{self.profile}", f"reports/{self.profile}"
        captions = [f"{data}/captions_{split}.json" for split in ("train", "val", "test")]
        stages: dict[str, tuple[Sequence[str], Sequence[str]]] = {
            "fetch": ([], captions),
            "vocab": (captions, [f"{data}/vocab.json"]),
            "features": (captions, [f"{data}/features"]),
            "train": ([f"{data}/vocab.json", f"{data}/features"], [f"models/{self.profile}/captioner.safetensors"]),
            "evaluate": (
                [*captions, f"models/{self.profile}/captioner.safetensors"],
                [f"{reports}/metrics.json", f"{reports}/captions_test.json"],
            ),
        }
        entries: dict[str, Any] = {}
        for stage, (deps, outs) in stages.items():
            named = {
                kind: [self.entry(path) for path in paths if (self.folder / path).exists()]
                for kind, paths in (("deps", [*deps, "stages/model.py"]), ("outs", outs))
            }
            entries[stage] = {"cmd": f"python -m stages.{stage}", **named}
        (self.folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": entries}))

    @contextmanager
    def copied(self, place: Path) -> Iterator[Trained]:
        """The same in a copy of the repository, in which the block works."""
        shutil.copytree(self.folder, place)
        copy = Trained.__new__(Trained)
        copy.__dict__ |= self.__dict__ | {"folder": place}
        copy.data, copy.models, copy.reports = (place / top / self.profile for top in ("data", "models", "reports"))
        with fresh(place):
            yield copy

    def entry(self, path: str) -> dict[str, Any]:
        place = self.folder / path
        return {"path": path, "hash": "md5", "md5": md5(place), "size": 1}

    def commit(self) -> str:
        git(self.folder, "add", "-A")
        git(self.folder, "commit", "-q", "--allow-empty", "-m", "as it is")
        return git(self.folder, "rev-parse", "HEAD").strip()


def sentence(number: int) -> str:
    """A sentence of six words, another one for almost every number."""
    digest = hashlib.sha256(str(number).encode()).digest()
    return " ".join(WORDS[byte % len(WORDS)] for byte in digest[:6])


def stage(name: str, *arguments: str) -> None:
    """Runs `python -m NAME ARGUMENTS` in this process: the imports, most of the seconds, are paid once."""
    before = sys.argv
    sys.argv = [name, *arguments]
    try:
        runpy.run_module(name, run_name="__main__")
    finally:
        sys.argv = before


def registration(trained: Trained) -> dict[str, Any]:
    return dict(json.loads((trained.reports / "registration.json").read_text()))
