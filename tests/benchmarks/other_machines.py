"""How far results of other machines lie apart: features to scores by the code that other processors run.

    python tests/benchmarks/other_machines.py [PROFILE] [MACHINE ...]

From a repository in which `dvc repro fetch vocab` of the profile (sample) was run; nothing is written there. torch and
oneDNN carry code for several processors; which of it runs can be told them. Of every machine: test scores of the model
that the first machine trained, and of the one that it trains itself. Rows of other seeds say what chance alone does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

FULL, HALF = "float32", "auto"  # auto: bfloat16 where the processor multiplies it
OLD = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
MACHINES: dict[
    str, tuple[dict[str, str], str, dict[str, Any]]
] = {  # name -> (environment, precision, train's settings)
    "this one, 1 thread": ({}, HALF, {"threads": 1}),
    "this one, 2 threads": ({}, HALF, {"threads": 2}),
    "without bfloat16": ({}, FULL, {"threads": 1}),
    "AVX2": (AVX2, FULL, {"threads": 1}),
    "SSE 4.1": (OLD, FULL, {"threads": 1}),
    "seed 2": ({}, HALF, {"threads": 1, "seed": 2}),
    "seed 3": ({}, HALF, {"threads": 1, "seed": 3}),
}


def prepare(folder: Path, repository: Path, profile: str, precision: str, settings: dict[str, Any]) -> None:
    """Lets `folder` look like the repository after fetch and vocab, under other settings."""
    folder.mkdir()
    (folder / "stages").symlink_to(repository / "stages")
    (folder / "data" / profile).mkdir(parents=True)
    for path in (repository / "data" / profile).iterdir():
        if not path.name.startswith("features"):
            (folder / "data" / profile / path.name).symlink_to(path)
    document = yaml.safe_load((repository / "params.yaml").read_text())
    document["profile"], block = profile, document[profile]
    block["train"] |= settings | {"precision": precision}
    block["features"]["precision"] = precision
    (folder / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False))


def main() -> None:
    profile = sys.argv[1] if len(sys.argv) > 1 else "sample"
    first, *others = MACHINES
    asked = [first, *(sys.argv[2:] or others)]
    repository = Path.cwd()
    print("| machine | its score of the first's model | captions that differ | its own model's score | differ |")
    print("|---|---:|---:|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        said: dict[int, str] = {}
        for name in asked:
            more, precision, settings = MACHINES[name]
            folder, models = Path(temporary) / name, Path(temporary) / first
            prepare(folder, repository, profile, precision, settings)
            environment = {**os.environ, **more, "MLFLOW_TRACKING_URI": f"sqlite:///{temporary}/mlflow.db"}

            def run(stage: str, folder: Path = folder, environment: dict[str, str] = environment) -> None:
                command = [sys.executable, "-m", f"stages.{stage}"]
                subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)

            def scored(folder: Path = folder) -> str:
                run("evaluate")
                reports = folder / "reports" / profile
                card = json.loads((reports / "metrics.json").read_text())["test"]
                results = json.loads((reports / "captions_test.json").read_text())
                captions = {each["image_id"]: each["caption"] for each in results}
                if not said:
                    said.update(captions)
                apart = sum(captions[picture] != text for picture, text in said.items())
                return f"CIDEr {100 * card['cider']:.1f}, BLEU-4 {100 * card['bleu_4']:.1f} | {apart} of {len(said)}"

            run("features")
            lent = "the same | 0"
            if name != first:
                shutil.copytree(models / "models", folder / "models")
                (folder / "reports" / profile).mkdir(parents=True, exist_ok=True)
                shutil.copy(models / "reports" / profile / "training.csv", folder / "reports" / profile)
                lent = scored()
            run("train")
            print(f"| {name} | {lent} | {scored()} |", flush=True)


if __name__ == "__main__":
    main()
