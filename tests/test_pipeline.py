"""The pipeline by a real `dvc` in a clone: it runs, has nothing to do, and is the same when made again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
DVC = Path(sys.executable).with_name("dvc")


def tiny(block: dict[str, Any], **fetch: Any) -> dict[str, Any]:
    """A profile small enough that all six stages take seconds."""
    block = json.loads(json.dumps(block))
    block["fetch"] |= {"pictures": 60, "size": 64} | fetch
    block["features"] |= {"size": 64, "workers": 0, "precision": "float32"}
    block["train"] |= {"embedding": 16, "hidden": 16, "epochs": 2, "precision": "float32"}
    block["evaluate"] |= {"resamples": 20}
    return block


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Path:
    """A repository with this working tree's pipeline, two tiny profiles, and an empty store."""
    root = tmp_path_factory.mktemp("clone")
    for name in ("stages", ".dvc/config", ".dvcignore", ".gitignore", "dvc.yaml", "params.yaml"):
        source, target = REPOSITORY / name, root / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    sample = yaml.safe_load((root / "params.yaml").read_text())["sample"]
    params = {"profile": "one", "one": tiny(sample), "two": tiny(sample, seed=7)}
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    shutil.copy(template, root / "mlflow.db")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *command], cwd=root, check=True)
    return root


def dvc(root: Path, *arguments: str) -> str:
    path = f"{DVC.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [DVC, *arguments],
        cwd=root,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def outputs(root: Path) -> dict[str, str]:
    """md5 of every output by its path, from dvc.lock."""
    lock = yaml.safe_load((root / "dvc.lock").read_text())
    return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage.get("outs", [])}


def test_it_runs_is_up_to_date_and_the_same_when_made_again(clone: Path) -> None:
    said = dvc(clone, "repro")
    assert said.count("Running stage") == 6
    first = outputs(clone)
    metrics = json.loads((clone / "reports/one/metrics.json").read_text())
    assert metrics["test"]["images"] == 6
    assert json.loads((clone / "reports/one/registration.json").read_text())
    assert "Data and pipelines are up to date." in dvc(clone, "repro")

    # From nothing, not from what fetch and features keep for themselves: every output has the same bytes again.
    for folder in ("data", "models", "reports"):
        shutil.rmtree(clone / folder)
    dvc(clone, "repro", "--force", "--no-run-cache")
    again = outputs(clone)
    assert {path for path in first if first[path] != again[path]} == {"models/one/run.json"}


def test_a_change_in_another_block_reruns_nothing(clone: Path) -> None:
    if not (clone / "dvc.lock").exists():
        pytest.skip("needs the run of the test before")
    params = yaml.safe_load((clone / "params.yaml").read_text())
    params["two"]["train"]["hidden"] = 24
    (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    assert "Data and pipelines are up to date." in dvc(clone, "repro")


def test_no_stage_works_under_wrong_settings(clone: Path) -> None:
    before = (clone / "params.yaml").read_text()
    (clone / "params.yaml").write_text(before.replace("learning_rate: 0.002", "learning_rate: -1", 1))
    done = subprocess.run(
        [sys.executable, "-m", "stages.fetch"],
        cwd=clone,
        env={**os.environ, "PYTHONPATH": str(clone)},
        capture_output=True,
        text=True,
        check=False,
    )
    (clone / "params.yaml").write_text(before)
    assert done.returncode == 1
    assert "params.yaml: one.train.learning_rate = -1 (must be greater than 0)" in done.stderr
