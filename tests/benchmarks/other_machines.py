"""How far results of other machines lie apart: features to scores by the code that other processors run.

    python tests/benchmarks/other_machines.py [PROFILE] [--epochs N]

From a repository in which `dvc repro vocab` of the profile (sample) was run; nothing is written there. torch and oneDNN
carry code for several processors; which of it runs can be told them. Of every machine: test scores of the model that
the first machine trained, and of the one that it trains itself. Rows of other seeds say what chance alone does.
Fewer epochs than the profile's (at most N) take less time and keep what machines make of the same rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
SSE = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
FIRST = "AVX2"
# name -> (environment, train's settings; its precision is that of features, too)
MACHINES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    FIRST: (AVX2, {}),
    "SSE": (SSE, {}),
    "AVX2, seed 2": (AVX2, {"seed": 2}),
    "AVX2, seed 3": (AVX2, {"seed": 3}),
    "this processor's best": ({}, {}),
    "the same in bfloat16": ({}, {"precision": "bfloat16"}),
    "AVX2, 2 threads": (AVX2, {"threads": 2}),
}


class Machine:
    """A folder that looks like the repository after fetch and vocab, in float32 and with one thread unless the machine
    says otherwise, and the environment in which its stages run."""

    def __init__(self, folder: Path, repository: Path, profile: str, name: str, epochs: int | None) -> None:
        self.name, self.folder, self.profile = name, folder / name, profile
        more, settings = MACHINES[name]
        self.threads: int = settings.get("threads", 1)
        own = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "OMP_NUM_THREADS": str(self.threads)}
        self.environment = {**os.environ, **more, **own}
        self.folder.mkdir()
        (self.folder / "stages").symlink_to(repository / "stages")
        (self.folder / "data" / profile).mkdir(parents=True)
        for path in (repository / "data" / profile).iterdir():
            if not path.name.startswith("features"):
                (self.folder / "data" / profile / path.name).symlink_to(path)
        document = yaml.safe_load((repository / "params.yaml").read_text())
        document["profile"], block = profile, document[profile]
        block["train"] |= {"precision": "float32", "threads": 1} | settings
        block["train"]["epochs"] = min(block["train"]["epochs"], epochs or block["train"]["epochs"])
        block["features"]["precision"] = block["train"]["precision"]
        (self.folder / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False))

    def run(self, stage: str) -> None:
        command = [sys.executable, "-m", f"stages.{stage}"]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, check=False, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{stage} of {self.name}: {done.stderr[-2000:]}")

    def learn(self) -> None:
        """Trains a model of its own and scores it."""
        began = time.monotonic()
        for stage in ("features", "train", "evaluate"):
            self.run(stage)
        self.own = self.scores()
        print(f"{self.name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    def borrow(self, first: Machine) -> None:
        """Scores the model of the first."""
        for lent in (f"models/{self.profile}/captioner.safetensors", f"models/{self.profile}/run.json"):
            shutil.copy(first.folder / lent, self.folder / lent)
        self.run("evaluate")
        self.lent = self.scores()

    def scores(self) -> tuple[float, float, dict[int, str]]:
        """CIDEr-D and BLEU-4 of the test part, and its captions by picture."""
        reports = self.folder / "reports" / self.profile
        card = json.loads((reports / "metrics.json").read_text())["test"]
        results = json.loads((reports / "captions_test.json").read_text())
        return card["cider"], card["bleu_4"], {each["image_id"]: each["caption"] for each in results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", nargs="?", default="sample")
    parser.add_argument("--epochs", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        repository = Path.cwd()
        machines = [Machine(Path(folder), repository, options.profile, name, options.epochs) for name in MACHINES]
        first, *others = machines
        with ThreadPoolExecutor(os.cpu_count()) as cores:  # those of one thread, side by side
            [*cores.map(Machine.learn, [each for each in machines if each.threads == 1])]
        for each in machines:
            if each.threads > 1:
                each.learn()
        with ThreadPoolExecutor(os.cpu_count()) as cores:
            [*cores.map(lambda each: each.borrow(first), others)]
    print("| machine | its score of the first's model | captions that differ | its own model's score | differ |")
    print("|---|---:|---:|---:|---:|")
    said = first.own[2]
    for each in machines:
        cells = [each.name]
        for cider, bleu_4, captions in (first.own if each is first else each.lent, each.own):
            apart = sum(captions[picture] != caption for picture, caption in said.items())
            cells += [f"CIDEr-D {100 * cider:.1f}, BLEU-4 {100 * bleu_4:.1f}", f"{apart} of {len(said)}"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
