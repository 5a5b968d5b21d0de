"""`dvc exp run -S profile=coco` against a mirror: both years, both splits, limited and then whole, through all six
stages, with kill -9 in every download on the way. Tests walk one way; this is for all of them:

    python tests/coco_walk.py > reports/coco.md

Each pair of year and split is a fresh repository with the params.yaml of this one. DVC and its children are killed when
half of a file has arrived (of a limited choice: some pictures), and the same command is given again; the last one runs
to its end. What fetch then has made is compared with a fetch that nobody disturbed, byte by byte.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from mirror import Fault, Mirror, build
from pipelines import DVC, dvc, environment, files, make_repository
from torchvision.models import resnet50

from stages.files import read_json

REPOSITORY = Path(__file__).resolve().parent.parent
FETCHED = ("data/coco/pictures", "data/coco/captions_", "reports/coco/fetch.json")
LIMIT = 10  # pictures a split
SMALL = {  # what a test has no time for; everything else is as in params.yaml
    "features.size": 64, "features.workers": 0, "features.batch": 16, "features.precision": "float32",
    "train.embedding": 16, "train.hidden": 16, "train.epochs": 1, "train.precision": "float32",
    "vocab.min_count": 1, "evaluate.resamples": 20, "fetch.connections": 1, "fetch.expect": "own",
}  # fmt: skip


class Way(NamedTuple):
    """One command of a user: what fetch is to take."""

    year: int
    split: str
    limit: int | None

    def downloads(self) -> Iterator[tuple[str, str, int]]:
        """Files that come whole or in part: path on the mirror, name of what is kept of it, and how many requests are
        answered before the one in whose answer DVC is killed. The limited choice comes first, so that for the whole
        only the pictures are missing."""
        if self.limit is None:
            for part in ("train", "val"):
                yield f"/zips/{part}{self.year}.zip", f"{part}{self.year}.zip", 2
            return
        yield f"/annotations/annotations_trainval{self.year}.zip", f"annotations_trainval{self.year}.zip", 1
        if self.split == "karpathy":
            yield "/caption_datasets.zip", "caption_datasets.zip", 1
        yield f"/zips/train{self.year}.zip", f"coco{self.year}_{self.limit}.zip", 7


def weights(folder: Path) -> Path:
    """ResNet-50's state dict with random weights."""
    torch.manual_seed(2)
    path = folder / "resnet50.pth"
    torch.save(resnet50().state_dict(), path)
    return path


def command(way: Way, mirror: Mirror, state: Path) -> list[str]:
    """What a user behind a mirror types."""
    limit = "null" if way.limit is None else str(way.limit)
    own = {"fetch.year": way.year, "fetch.split": way.split, "fetch.limit": limit, "fetch.base_url": mirror.url}
    own |= {"fetch.karpathy": f"{mirror.url}/caption_datasets.zip", "features.weights": state}
    return ["exp", "run", "-S", "profile=coco", *(f"-Scoco.{key}={value}" for key, value in (own | SMALL).items())]


def killed(root: Path, arguments: list[str], mirror: Mirror, path: str, kept: str, answered: int) -> int:
    """Starts DVC, kills it with its children in the middle of a download, and returns how many bytes are kept of it."""
    size = (mirror.folder / path.lstrip("/")).stat().st_size
    mirror.faults[path] = [*[None] * answered, Fault("stall", 9 if answered > 2 else size // 2)]
    log = (root / ".dvc" / "killed.log").open("w")
    process = subprocess.Popen(
        [DVC, *arguments],
        cwd=root,
        env=environment(root),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        while True:
            there = [each.stat().st_size for each in (root / "data/downloads").glob(f"{kept}.*.partial")]
            if not mirror.faults[path] and sum(there):
                return sum(there)
            if process.poll() is not None:
                raise SystemExit(f"{path}: DVC was through too early:\n{Path(log.name).read_text()}")
            time.sleep(0.02)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        mirror.faults.clear()


def fetched(root: Path) -> dict[str, str]:
    """sha256 of everything that fetch has made, by path."""
    return {path: value for path, value in files(root, "coco").items() if path.startswith(FETCHED)}


def walk(root: Path, way: Way, mirror: Mirror, state: Path, kills: int = 9) -> dict[str, Any]:
    """Goes one way in the repository at `root`, killed in at most so many downloads, the last ones.

    Returns what is to be said of it, and raises SystemExit where something is not as it must be.
    """
    began = time.monotonic()
    arguments, downloads = command(way, mirror, state), list(way.downloads())[-kills:]
    for path, kept, answered in downloads:
        reached = killed(root, arguments, mirror, path, kept, answered)
        mirror.requests.clear()
        if list((root / "data/coco/pictures").glob(kept)):
            raise SystemExit(f"{path}: something lies under the final name after kill -9")
    said = dvc(root, *arguments)
    if way.limit is None:
        asked = [r.range for r in mirror.requests if r.path == path and r.range not in (None, "bytes=0-0")]
        if not str(asked[0]).startswith(f"bytes={reached}-"):
            raise SystemExit(f"{path}: it did not go on at byte {reached} but asked for {asked}")
    straight = root.with_name(f"{root.name}_straight")
    straight.mkdir(exist_ok=True)
    (straight / "params.yaml").write_bytes((root / "params.yaml").read_bytes())
    where = environment(straight) | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-m", "stages.fetch"], cwd=straight, env=where, check=True, capture_output=True)
    if fetched(root) != fetched(straight):
        raise SystemExit(f"{way}: other bytes than without kill -9")
    metrics = read_json(root / "reports/coco/metrics.json")
    splits = read_json(root / "reports/coco/fetch.json")["splits"]
    return {
        "kills": len(downloads),
        "stages": said.count("Running stage"),
        "pictures": " / ".join(str(splits[split]["pictures"]) for split in ("train", "val", "test")),
        "scored": metrics["test"]["images"],
        "bytes": sum((root / path).stat().st_size for path in fetched(root)),
        "seconds": time.monotonic() - began,
        "said": said,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print("# `dvc exp run -S profile=coco` against a mirror\n")
    print("`python tests/coco_walk.py > reports/coco.md`; DVC is killed (kill -9) once in every download on the way.\n")
    print("| year | split | limit | pictures | kills | stages run at the end | test pictures scored | bytes fetched |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        template, state = folder / "template.db", weights(folder)
        code = f"from mlflow import MlflowClient as C; C('sqlite:///{template}').search_experiments()"
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        with Mirror(build(folder / "mirror")) as mirror:
            mirror.silence = 600
            for year, split in product((2014, 2017), ("official", "karpathy")):
                root = make_repository(folder / f"{split}{year}", template, **profiles())
                for limit in (LIMIT, None):
                    found = walk(root, Way(year, split, limit), mirror, state)
                    print(
                        f"| {year} | {split} | {limit or 'none'} | {found['pictures']} | {found['kills']} | "
                        f"{found['stages']} | {found['scored']} | {found['bytes']:,} |",
                        flush=True,
                    )
                    print(f"{year} {split} {limit}: {found['seconds']:.0f} s", file=sys.stderr, flush=True)
    print("\nAfter each way everything that fetch had made was, byte by byte, what an undisturbed fetch makes.")


def profiles() -> dict[str, Any]:
    """The blocks of this repository's params.yaml, `sample` first."""
    blocks = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    return {name: blocks[name] for name in ("sample", "coco")}


if __name__ == "__main__":
    main()
