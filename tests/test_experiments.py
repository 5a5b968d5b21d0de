"""Experiments as people run them: one at a time, two from the queue at once, in a copy; none mixes with another."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from pipelines import copy, dvc, files, locked, runs, versions

from stages.files import read_json


@pytest.fixture(scope="module")
def repository(straight: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which `dvc repro` ran to its end; the tests of this module work in it one after the other."""
    return copy(straight, tmp_path_factory.mktemp("experiments") / "repository")


def shown(root: Path) -> dict[str, dict[str, Any]]:
    """What `dvc exp show` knows of each experiment, by its name."""
    (baseline,) = [each for each in json.loads(dvc(root, "exp", "show", "--json")) if each["rev"] != "workspace"]
    return {each["name"]: each["revs"][0]["data"] for each in baseline["experiments"] or []}


def test_one_setting_changed_and_back(repository: Path) -> None:
    """The first model comes back from the run cache with its weights and the id of its own run."""
    before, first = locked(repository), read_json(repository / "models/tiny/run.json")["run_id"]
    said = dvc(repository, "exp", "run", "--name", "wide", "-S", "tiny.train.hidden=24")
    assert said.count("Running stage") == 3, "train, evaluate, register"
    assert locked(repository)["models/tiny/captioner.safetensors"] != before["models/tiny/captioner.safetensors"]
    named = {run["name"]: run for run in runs(repository)}
    assert named["wide"]["params"]["train.hidden"] == "24"
    assert named["wide"]["tags"]["dvc.experiment"] == "wide"
    assert named["wide"]["id"] == read_json(repository / "models/tiny/run.json")["run_id"] != first
    assert shown(repository)["wide"]["params"]["params.yaml"]["data"]["tiny"]["train"]["hidden"] == 24

    said = dvc(repository, "exp", "run", "--name", "back", "-S", "tiny.train.hidden=16")
    assert "Running stage" not in said
    assert locked(repository) == before
    assert read_json(repository / "models/tiny/run.json")["run_id"] == first
    assert len(runs(repository)) == 2
    assert len(versions(repository)) == 2


def test_another_profile_and_back(repository: Path) -> None:
    """DVC takes the outputs that it caches of the profile that is left out of the way, and brings them back."""
    before, wanted = locked(repository), files(repository, "tiny")
    said = dvc(repository, "exp", "run", "--name", "other", "-S", "profile=other")
    assert said.count("Running stage") == 6
    assert (repository / "models/other/captioner.safetensors").is_file()
    said = dvc(repository, "exp", "run", "--name", "again", "-S", "profile=tiny")
    assert {line for line in said.splitlines() if line.startswith("Running stage")} <= {
        "Running stage 'fetch':",
        "Running stage 'features':",
    }, "only these two look whether what they keep themselves is whole"
    assert locked(repository) == before
    assert files(repository, "tiny") == wanted
    assert files(repository, "other"), "features of both lie side by side"


def test_two_from_the_queue_at_once_and_one_in_a_copy(repository: Path) -> None:
    before = (locked(repository), files(repository, "tiny"))
    for width in (8, 12):
        dvc(repository, "exp", "run", "--queue", "--name", f"queued-{width}", "-S", f"tiny.train.embedding={width}")
    dvc(repository, "queue", "start", "-j", "2")
    dvc(repository, "exp", "run", "--temp", "--name", "apart", "-S", "tiny.train.embedding=20")
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        states = dvc(repository, "queue", "status")
        if "Running" not in states and "Queued" not in states:
            break
        time.sleep(5)  # asking costs as much of a processor as a stage of what is waited for
    assert states.count("Success") == 2, states
    assert (locked(repository), files(repository, "tiny")) == before, "the workspace is as it was"

    recorded = {run["name"]: run for run in runs(repository)}
    by_name = shown(repository)
    weights = set()
    for name, width in (("queued-8", 8), ("queued-12", 12), ("apart", 20)):
        run, data = recorded[name], by_name[name]
        assert run["status"] == "FINISHED"
        assert run["params"]["train.embedding"] == str(width)
        assert data["params"]["params.yaml"]["data"]["tiny"]["train"]["embedding"] == width
        metrics = data["metrics"]["reports/tiny/metrics.json"]["data"]["test"]
        assert run["metrics"]["test.cider"] == pytest.approx(metrics["cider"])
        weights.add(data["outs"]["models/tiny/captioner.safetensors"]["hash"])
    assert len(weights) == 3
    assert {version["run"] for version in versions(repository)} >= {recorded[f"queued-{n}"]["id"] for n in (8, 12)}
