"""What every option of training is worth, over several seeds: the rows of reports/ablations.md.

    python tests/ablations.py train WORK [--profile flickr8k] [--rows NAME ...] [--seeds 1 2 3] [--jobs 2]
    python tests/ablations.py table WORK [--profile flickr8k] [--rows NAME ...] [--split val] [--set guidance=0] \
        > reports/ablations.md

From a repository in which the profile's features were made, on a GPU where there is one. `train` runs the stage, on one
CPU thread each, in a folder of WORK for every row and seed, with the profile's settings but for the row's changes; what
is done is not done again, and what was killed goes on. Rows of other settings than today's are refused: they want a
WORK of their own. `table` has the rows' captioners caption a split, and holds each row against the one that it changes:
over the same pictures and the same seeds (paired bootstrap of the means over seeds). Options are judged on val; test is
for rows that are chosen.

One training leaves a large GPU idle. Of sixteen cores, with `nvidia-cuda-mps-control -d` started before, which lets
processes share the GPU: `--jobs 16`. What was captioned lies in WORK, too, so that of one that was brought from another
machine `table` needs no captioners (captions_*.json, minutes and params.yaml of each folder are enough).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from stages import params
from stages.evaluate.measure import caption
from stages.evaluate.results import read_results, write_results
from stages.evaluate.scorecard import SEED, diagnostics
from stages.features.device import choose_device, set_threads
from stages.features.store import Features
from stages.fetch.captions import Picture, read_captions
from stages.fetch.pictures import Pictures
from stages.files import fingerprint, whole, write_json
from stages.scorers import cider, ngrams
from stages.scorers.bootstrap import interval, resampled_sums
from stages.scorers.score import Judge, Scores
from stages.train import decoders, decoding, describe, memory
from stages.train.artifact import Artifact
from stages.train.decoders import build
from stages.train.decoding import Decoding

# What is said changes with these.
DECODED_BY = [Path(code.__file__) for code in (decoding, memory, decoders, describe, cider, ngrams)]
CROSS_ENTROPY = {"self_critical.epochs": 0}
SHOW_TELL = {"decoder": "show_tell", "captions_per_picture": 1, "epochs": 12, "dropout": 0.5}
OF_A_MACHINE = ("root", "workers", "launch", "device", "checkpoint_minutes")
ROWS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> (the row that it changes, its changes of section train)
    "attend": ("", CROSS_ENTROPY),
    "show_tell": ("attend", SHOW_TELL),
    "self-critical": ("attend", {"self_critical.epochs": 3}),
    "label_smoothing 0": ("attend", {"label_smoothing": 0.0}),
    "dropout 0.5": ("attend", {"dropout": 0.5}),
    "own_words 0.25": ("attend", {"own_words": 0.25}),
    "tied": ("attend", {"tied": True}),
    "average 0.999": ("attend", {"average": 0.999}),
    "no mirrored views": ("attend", {"features.mirror": False}),
    "constant rate": ("attend", {"schedule": "constant"}),
    "12 epochs": ("attend", {"epochs": 12}),
    "hidden 768": ("attend", {"hidden": 768, "embedding": 768}),
    "finetuned": ("attend", {"finetune.epochs": 2}),
}


def changes(row: str) -> dict[str, Any]:
    """All that a row says, the rows that it changes included."""
    before, own = ROWS[row]
    return (changes(before) if before else {}) | own


# --- train ------------------------------------------------------------------------------------------------------------


def place(work: Path, row: str, seed: int) -> Path:
    """The folder of one training."""
    return work / f"{row.replace(' ', '_')}-{seed}"


def train(work: Path, profile: str, row: str, seed: int) -> None:
    """Runs the stage in its folder, unless that is done; raises CalledProcessError where it fails."""
    folder = place(work, row, seed)
    settled, mirrored = settings(profile, row, seed)
    if (folder / "minutes").exists():
        check(folder, profile, settled)
        return
    (folder / "models" / profile).mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(settled, encoding="utf-8")
    link(Path("data") / profile, folder / "data" / profile, mirrored)
    # How long one takes that was killed in between nobody knows.
    began = math.nan if any((folder / "models" / profile).glob("unfinished_*.pt")) else time.time()
    with (folder / "log").open("a", encoding="utf-8") as log:
        environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "stages.train"]
        subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=True)
    if row == "self-critical":
        first_part(
            folder / "models" / profile, place(work, "attend", seed), settings(profile, "attend", seed)[0], began
        )
    done(folder, time.time() - began)


def settings(profile: str, row: str, seed: int) -> tuple[str, bool | None]:
    """The params.yaml of a training, and another word on whether mirrored views are to be used, if it has one."""
    document = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    document["profile"], asked = profile, changes(row)
    mirrored = asked.pop("features.mirror", None)
    for key, value in ({"threads": 1, "seed": seed} | asked).items():
        section = document[profile]["train"]
        *above, last = key.split(".")
        for name in above:
            section = section[name]
        section[last] = value
    return yaml.safe_dump(document, sort_keys=False), mirrored


def check(folder: Path, profile: str, settled: str) -> None:
    """Raises ValueError where the training in `folder` had other settings than the params.yaml `settled`."""
    file = folder / "params.yaml"
    if not file.exists() or learned(file.read_text(encoding="utf-8"), profile) != learned(settled, profile):
        raise ValueError(f"{folder} was trained with other settings than params.yaml has now: take another WORK")


def learned(text: str, profile: str) -> dict[str, Any]:
    """Of a params.yaml what training depends on, wherever it runs."""
    block = yaml.safe_load(text)[profile]
    return {
        stage: {key: value for key, value in block[stage].items() if key not in OF_A_MACHINE}
        for stage in ("fetch", "vocab", "features", "train")
    }


def done(folder: Path, seconds: float) -> None:
    """Notes that a training is finished, and how long it took; what an earlier captioner said there goes."""
    for said in folder.glob("captions_*.json"):
        said.unlink()
    with whole(folder / "minutes") as draft:
        draft.write_text(f"{seconds / 60:.1f}\n", encoding="utf-8")
    print(f"{folder.name}: {seconds / 60:.1f} minutes", flush=True)


def link(data: Path, there: Path, mirrored: bool | None) -> None:
    """The profile's data once more, as links; with another word on whether mirrored views are to be used."""
    (there / "features").mkdir(parents=True, exist_ok=True)
    for path in [*data.iterdir(), *(data / "features").iterdir()]:
        here = there / path.relative_to(data)
        if path.name != "features" and not here.exists():
            here.symlink_to(path.resolve())
    if mirrored is not None:
        index = json.loads((data / "features" / "index.json").read_text(encoding="utf-8"))
        (there / "features" / "index.json").unlink()
        write_json(there / "features" / "index.json", index | {"mirror": mirrored})


def first_part(models: Path, folder: Path, settled: str, began: float) -> None:
    """What a self-critical training began with is what cross-entropy alone ends with: it is not trained twice."""
    if (folder / "minutes").exists():
        return
    checkpoint = models / "unfinished_CrossEntropy.pt"
    last = Artifact.load(models / "captioner.safetensors")
    decoder = build(last.decoder.shape)
    decoder.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["best"])
    there = folder / "models" / models.name
    there.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(settled, encoding="utf-8")
    dataclasses.replace(last, decoder=decoder).save(there / "captioner.safetensors")
    done(folder, checkpoint.stat().st_mtime - began)


# --- table ------------------------------------------------------------------------------------------------------------


ABOUT = """# Training, option by option: the {count} pictures of {split}

`python tests/ablations.py train WORK`, then `table WORK --split {split}`; profile {profile}, every
captioner decoded with {decoding}.

CIDEr-D, BLEU-4 and METEOR are in percent, means over seeds; ± is the standard deviation of seeds. The difference in
CIDEr-D is to the row that is named, over the same seeds, with its 95% interval over pictures. Minutes are of one
CPU thread, with a GPU where one is named, beside whatever else ran. `self-critical` begins with `attend`.
"""


class Split(NamedTuple):
    """What captioners are scored on, and how they are asked."""

    name: str
    pictures: Sequence[Picture]
    data: Path  # the profile's: features, and pictures for captioners whose encoder was tuned
    judge: Judge
    decoding: Decoding


class Told(NamedTuple):
    """What one captioner said of a split."""

    scores: Scores
    minutes: float


def tell(folder: Path, split: Split) -> Told:
    """The scores of the captioner in `folder`; what it says is written there, and read when it is asked the same."""
    key = fingerprint(split.decoding.as_dict(), *DECODED_BY)
    captions = folder / f"captions_{split.name}_{key[:8]}.json"
    if not captions.exists():
        path = next(folder.glob("models/*/captioner.safetensors"), None)
        if path is None:
            raise ValueError(f"{folder} holds neither a captioner nor {captions.name}: bring one of them")
        artifact, device = Artifact.load(path), choose_device("auto")
        asked = {split.name: split.pictures}
        seen = Features(split.data / "features"), Pictures(split.data / "pictures")
        found = caption([artifact], asked, *seen, split.decoding, batch=128, device=device)
        write_results(captions, found[split.name])
    said = read_results(captions, {picture.id: picture.captions for picture in split.pictures})
    return Told(split.judge.score(said), float((folder / "minutes").read_text()))


def cells(own: Mapping[int, Told], before: Mapping[int, Told]) -> list[str]:
    """A row's numbers: means over its seeds, and how far seeds lie apart."""
    metrics = [each.scores.metrics() for each in own.values()]
    words = [diagnostics(each.scores, frozenset()) for each in own.values()]
    gains = [own[seed].scores.cider - before[seed].scores.cider for seed in own if seed in before]
    cider = [100 * (each["cider"] or 0.0) for each in metrics]
    spread = f" ± {np.std(cider, ddof=1):.1f}" if len(cider) > 1 else ""

    def mean(name: str) -> str:
        values = [each[name] for each in metrics]
        return "" if None in values else f"{100 * np.mean([value or 0.0 for value in values]):.1f}"

    return [
        str(len(own)),
        f"{np.mean(cider):.1f}{spread}",
        mean("bleu_4"),
        mean("meteor"),
        f"{np.mean([each['mean_words'] for each in words]):.1f}",
        f"{np.mean([each['distinct_words'] for each in words]):.0f}",
        difference(np.mean(gains, 0)) if gains else "",
        "" if np.isnan(minutes := np.mean([each.minutes for each in own.values()])) else rounded(minutes),
    ]


def rounded(minutes: float) -> str:
    """To two figures or to the minute."""
    return f"{minutes:.1f}" if minutes < 10 else f"{minutes:.0f}"


def difference(of_pictures: NDArray[np.float64]) -> str:
    """The mean of pictures' differences in CIDEr-D (N,), in points, with its 95% interval."""
    means = resampled_sums(of_pictures[:, None], 1000, SEED)[:, 0] / len(of_pictures)
    low, high = interval(means)
    return f"{100 * of_pictures.mean():+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def table(work: Path, profile: str, wanted: Sequence[str], name: str, **decoded: Any) -> None:
    """Prints those of the rows that were trained, decoded as the profile says but for `decoded`."""
    data = Path("data") / profile
    pictures = read_captions(data / f"captions_{name}.json")
    judge = Judge({picture.id: picture.captions for picture in pictures})
    asked = Decoding(**params.check()[1][profile]["train"].decoding()).but(**decoded)
    split = Split(name, pictures, data, judge, asked)
    print(ABOUT.format(count=len(pictures), split=name, profile=profile, decoding=asked.as_dict()))
    print("| training | seeds | CIDEr-D | BLEU-4 | METEOR | words | different words | CIDEr-D over | of | minutes |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---|---:|")
    rows: dict[str, dict[int, Told]] = {}
    needed = {*wanted, *(ROWS[row][0] for row in wanted)}
    for row, (before, _) in ROWS.items():
        if row not in needed:
            continue
        found = sorted(work.glob(f"{place(Path(), row, 0).name[:-1]}*/minutes"))
        rows[row] = {}
        for folder in (path.parent for path in found):
            seed = int(folder.name.rpartition("-")[2])
            check(folder, profile, settings(profile, row, seed)[0])
            rows[row][seed] = tell(folder, split)
        if rows[row] and row in wanted:
            *numbers, over, minutes = cells(rows[row], rows.get(before, {}))
            print(f"| {' | '.join([row, *numbers, over, before if over else '', minutes])} |", flush=True)


def setting(text: str) -> tuple[str, Any]:
    """KEY=VALUE as a setting of decoding."""
    key, equals, value = text.partition("=")
    if not equals or key not in Decoding.__dataclass_fields__:
        raise argparse.ArgumentTypeError(f"{text} is not one of {', '.join(Decoding.__dataclass_fields__)} = a value")
    return key, yaml.safe_load(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = parser.add_subparsers(dest="what", required=True)
    training, telling = (known.add_parser(name) for name in ("train", "table"))
    for each in (training, telling):
        each.add_argument("work", type=Path, help="a folder for what is trained, some 100 MB each")
        each.add_argument("--profile", default="flickr8k")
        each.add_argument("--rows", nargs="+", choices=ROWS, default=[*ROWS], metavar="NAME")
    training.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    training.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    telling.add_argument("--split", choices=("val", "test"), default="val")
    telling.add_argument("--set", nargs="+", default=[], type=setting, metavar="KEY=VALUE", help="decoded so")
    options = parser.parse_args()
    set_threads(1)
    if options.what == "table":
        table(options.work, options.profile, options.rows, options.split, **dict(options.set))
        return
    with ThreadPoolExecutor(options.jobs) as pool:
        # Self-critical training brings its first part along.
        rows = [row for row in options.rows if row != "attend" or "self-critical" not in options.rows]
        asked = [(row, seed) for row in rows for seed in options.seeds]
        for _ in pool.map(lambda each: train(options.work, options.profile, *each), asked):
            pass


if __name__ == "__main__":
    main()
