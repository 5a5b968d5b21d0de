"""A repository with this working tree's pipeline and profiles that take seconds, and the real `dvc` to run it with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from stores import git, once

from stages.files import sha256

REPOSITORY = Path(__file__).resolve().parent.parent
DVC = Path(sys.executable).with_name("dvc")
NO_JAVA = REPOSITORY / "tests" / "no_java"


def tiny(**fetch: Any) -> dict[str, Any]:
    """A profile small enough that all six stages take seconds."""
    block: dict[str, Any] = yaml.safe_load((REPOSITORY / "params.yaml").read_text())["sample"]
    block["fetch"] |= {"pictures": 60, "size": 64} | fetch
    block["features"] |= {"size": 64, "workers": 0, "precision": "float32"}
    block["train"] |= {"embedding": 16, "hidden": 16, "epochs": 2, "precision": "float32"}
    block["evaluate"] |= {"resamples": 20}
    return block


def make_repository(root: Path, template: Path, **profiles: dict[str, Any]) -> Path:
    """A git repository with the pipeline's code, the given profiles, the first of them chosen, and an empty store."""
    for name in ("stages", ".dvc/config", ".dvcignore", ".gitignore", "dvc.yaml"):
        source, target = REPOSITORY / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    params = {"profile": next(iter(profiles)), **profiles}
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    shutil.copy(template, root / "mlflow.db")
    git(root, "init", "-q")
    commit(root, "start")
    return root


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Path:
    """A repository in which `dvc repro` ran to its end, committed; how many seconds that took is in `seconds`. Tests
    work in copies of it."""
    with once(tmp_path_factory, "straight") as (place, missing):
        if missing:
            partial = make_repository(place.with_suffix(".partial"), template, tiny=tiny(), other=tiny(seed=7))
            started = time.monotonic()
            assert dvc(partial, "repro").count("Running stage") == 6
            (partial / "seconds").write_text(f"{time.monotonic() - started:.1f}")
            commit(partial, "dvc.lock")
            partial.rename(place)
    return place


def commit(root: Path, message: str) -> None:
    git(root, "add", "-A")
    git(root, "commit", "-qm", message)


def search(*folders: Path) -> str:
    """PATH with this Python first, then these folders."""
    return os.pathsep.join([*map(str, (DVC.parent, *folders)), os.environ["PATH"]])


def environment(root: Path) -> dict[str, str]:
    """What `dvc` and stages run under: this Python first, the repository's own stages, one thread, no METEOR."""
    own = {name: value for name, value in os.environ.items() if name not in ("DVC_ROOT", "MLFLOW_TRACKING_URI")}
    git_user = {f"GIT_{who}_{what}": "t@t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    # No PYTHONPATH: `python -m stages.X` finds the stages of the folder it is started in, also in `exp run --temp`.
    own.pop("PYTHONPATH", None)
    return {**own, **git_user, "PATH": search(NO_JAVA), "OMP_NUM_THREADS": "1"}


def dvc(root: Path, *arguments: str, expect: int = 0, **more: str) -> str:
    """What `dvc` says, on both streams; fails unless it ends with `expect`."""
    done = subprocess.run(
        [DVC, *arguments],
        cwd=root,
        env=environment(root) | more,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def locked(root: Path) -> dict[str, str]:
    """md5 of every output by its path, from dvc.lock."""
    lock = yaml.safe_load((root / "dvc.lock").read_text())
    return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage.get("outs", [])}


def files(root: Path, profile: str) -> dict[str, str]:
    """sha256 of everything that the stages wrote for a profile, as it lies there, by its path."""
    tops = (root / top / profile for top in ("data", "models", "reports"))
    found = sorted(path for top in tops for path in top.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): sha256(path) for path in found}


def lock_without_run(root: Path, run: str) -> object:
    """dvc.lock but for the md5 and size of the file that holds the run's id."""
    lock = yaml.safe_load((root / "dvc.lock").read_text())
    for stage in lock["stages"].values():
        for entry in (*stage.get("deps", []), *stage.get("outs", [])):
            if entry["path"] == run:
                entry |= {"md5": "", "size": 0}
    return lock


def outputs_apart(root: Path, other: Path, profile: str) -> Iterator[str]:
    """What of a profile's outputs, as they lie there and as dvc.lock names them, is not as in the other repository."""
    run = f"models/{profile}/run.json"  # holds the run's id and times: the one file that differs
    mine, wanted = (
        {path: value for path, value in files(each, profile).items() if path != run} for each in (root, other)
    )
    for path in sorted(mine.keys() | wanted.keys()):
        if mine.get(path) != wanted.get(path):
            yield f"{path} is {'missing' if path not in mine else 'too much' if path not in wanted else 'different'}"
    if lock_without_run(root, run) != lock_without_run(other, run):
        yield "dvc.lock differs"


def runs(root: Path) -> list[dict[str, Any]]:
    """Every run of the repository's store: id, status, name, tags, params, metrics."""
    code = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient('sqlite:///mlflow.db')
ids = [each.experiment_id for each in client.search_experiments()]
print(json.dumps([{'id': run.info.run_id, 'status': run.info.status, 'name': run.info.run_name, 'tags': run.data.tags,
  'params': run.data.params, 'metrics': run.data.metrics} for run in client.search_runs(ids, max_results=1000)]))
"""
    return _asked(root, code)


def versions(root: Path) -> list[dict[str, Any]]:
    """Every model version of the repository's store: number, run, status, and the names of its run's files."""
    code = """
import json
from mlflow import MlflowClient
client = MlflowClient('sqlite:///mlflow.db')
print(json.dumps([{'version': each.version, 'run': each.run_id, 'status': each.status, 'tags': each.tags}
  for each in client.search_model_versions(max_results=1000)]))
"""
    return _asked(root, code)


def _asked(root: Path, code: str) -> Any:
    more = {"MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment(root) | more, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def copy(root: Path, target: Path) -> Path:
    """The repository as it is, somewhere else."""
    shutil.copytree(root, target, symlinks=True)
    return target
