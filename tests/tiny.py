"""A profile `tiny`: made-up features that say what their captions say, ready for `python -m stages.train`."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from stages.features.store import Draft
from stages.fetch.captions import Picture, write_captions
from stages.train.settings import Settings
from stages.vocab.vocabulary import SPECIALS, Vocabulary

REPOSITORY = Path(__file__).resolve().parent.parent
COLOURS = ("red", "green", "blue", "black", "white")
THINGS = ("dog", "cat", "boat", "house", "tree")


def settings(**changes: Any) -> Settings:
    block = yaml.safe_load((REPOSITORY / "params.yaml").read_text())["sample"]["train"]
    small = {"embedding": 16, "hidden": 16, "batch": 8, "epochs": 3, "patience": 30, "learning_rate": 0.02}
    exact = {"dropout": 0.1, "precision": "float32", "device": "cpu"}
    return Settings(**{**block, **small, **exact, **changes})


def make_project(root: Path, template: Path, **changes: Any) -> Path:
    """A profile `tiny` with 60 pictures whose features say what their captions say, ready for train."""
    root.mkdir(exist_ok=True)
    shutil.copy(template, root / "mlflow.db")
    block = yaml.safe_load((REPOSITORY / "params.yaml").read_text())["sample"]
    block["train"] = settings(**changes).model_dump()
    (root / "params.yaml").write_text(yaml.safe_dump({"profile": "tiny", "tiny": block}))
    data = root / "data" / "tiny"
    (data / "pictures").mkdir(parents=True)
    with zipfile.ZipFile(data / "pictures" / "pictures.zip", "w") as archive:
        for number in range(60):
            png = io.BytesIO()
            Image.new("RGB", (8, 8), (4 * number, 128, 255 - 4 * number)).save(png, "PNG")
            archive.writestr(f"{number}.png", png.getvalue())
    generator = np.random.default_rng(0)
    meaning = generator.normal(size=(len(COLOURS) + len(THINGS), 12))
    draft = Draft(data / "features.partial", "made up")
    splits: dict[str, list[int]] = {}
    number = 0
    for split, count in (("train", 40), ("val", 10), ("test", 10)):
        pictures, rows = [], []
        for _ in range(count):
            colour, thing = generator.integers(len(COLOURS)), generator.integers(len(THINGS))
            words = f"{COLOURS[colour]} {THINGS[thing]}"
            captions = (f"a {words}", f"there is a {words} here", f"one {words} in the picture")
            pictures.append(Picture(number, f"{number}.png", 1, 1, captions[: 2 + number % 2]))
            rows.append(meaning[colour] + meaning[len(COLOURS) + thing])
            number += 1
        draft.open(f"{split}_pooled.npy", (count, 12))
        draft.arrays[f"{split}_pooled.npy"][:] = np.array(rows)
        draft.save()
        draft.close_arrays()
        splits[split] = [picture.id for picture in pictures]
        write_captions(data / f"captions_{split}.json", pictures, {})
    encoder = {"encoder": "made up", "weights": "none", "weights_sha256": "0" * 64, "precision": "float32"}
    preprocessing = {"preprocessing": {"size": 32, "resize": "squash"}, "channels": 12, "regions": 1, "mirror": False}
    draft.finish(data / "features", {**encoder, **preprocessing, "splits": splits})
    words = sorted({"a", "there", "is", "here", "one", "in", "the", "picture", *COLOURS, *THINGS})
    Vocabulary((*SPECIALS, *words)).write(data / "vocab.json")
    return root


def environment(root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "DVC_ROOT": str(root), "OMP_NUM_THREADS": "1"}


def train(root: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """The stage as DVC runs it, to its end."""
    command, variables = [sys.executable, "-m", "stages.train"], environment(root) | more
    return subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True, timeout=120, check=False)


def stop_after_two_epochs(root: Path) -> tuple[str, str, int]:
    """Ctrl-C as soon as train says that epoch 2 is over: what else it prints, its errors, how it ends."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "stages.train"],
        cwd=root,
        env=environment(root),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch  2"):
            process.send_signal(signal.SIGINT)
            break
    rest, errors = process.communicate(timeout=60)
    return rest, errors, process.returncode
