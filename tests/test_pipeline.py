"""The pipeline by a real `dvc`: it runs, has nothing to do, is the same when made again, and survives kill -9."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from kills import chain, differences
from pipelines import (
    DVC,
    REPOSITORY,
    copy,
    dvc,
    environment,
    files,
    locked,
    make_repository,
    outputs_apart,
    runs,
    versions,
)

STAGES = ("fetch", "vocab", "features", "train", "evaluate", "register")


@pytest.fixture
def repository(straight: Path, tmp_path: Path) -> Path:
    """A repository in which `dvc repro` ran to its end."""
    return copy(straight, tmp_path / "repository")


def test_it_is_up_to_date_and_the_same_when_made_again(repository: Path) -> None:
    metrics = json.loads((repository / "reports/tiny/metrics.json").read_text())
    assert metrics["test"]["images"] == 6
    assert json.loads((repository / "reports/tiny/registration.json").read_text())
    assert "Data and pipelines are up to date." in dvc(repository, "repro")
    params = yaml.safe_load((repository / "params.yaml").read_text())
    params["other"]["train"]["hidden"] = 24
    (repository / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    assert "Data and pipelines are up to date." in dvc(repository, "repro"), "another block is another model"

    # From nothing, not from what fetch and features keep for themselves: every output has the same bytes again.
    first = locked(repository)
    for folder in ("data", "models", "reports"):
        shutil.rmtree(repository / folder)
    assert dvc(repository, "repro", "--force", "--no-run-cache").count("Running stage") == 6
    again = locked(repository)
    assert {path for path in first if first[path] != again[path]} == {"models/tiny/run.json"}
    assert len(runs(repository)) == 2, "training again is another run"
    assert len(versions(repository)) == 1, "the same weights are the same version"


def test_sample_is_the_same_in_two_clones(tmp_path: Path, template: Path) -> None:
    """With the profile's settings, but few pictures, epochs, resamples; `python tests/twice.py` takes all of them."""
    block = yaml.safe_load((REPOSITORY / "params.yaml").read_text())["sample"]
    block["fetch"]["pictures"], block["train"]["epochs"], block["evaluate"]["resamples"] = 120, 2, 20
    one, other = (make_repository(tmp_path / name, template, sample=block) for name in ("one", "other"))
    for root in (one, other):
        assert dvc(root, "repro", "evaluate").count("Running stage") == 5
    assert list(outputs_apart(other, one, "sample")) == []
    (other / "reports/sample/training.csv").write_text("epoch\n")
    assert list(outputs_apart(other, one, "sample")) == ["reports/sample/training.csv is different"]


def test_kill_9_at_any_moment_changes_nothing(straight: Path, tmp_path: Path, template: Path) -> None:
    """A few moments; reports/kills.md has those of `python tests/kills.py 50`."""
    seconds = float((straight / "seconds").read_text())
    for share in (1.0, 0.5, 0.2):  # where the machine is less busy than it was then, it is over before it is killed
        root = tmp_path / f"killed-{share}"
        hit, _ = chain(root, template, share * seconds, 2, random.Random(11))
        if hit:
            break
    assert hit
    assert list(differences(root, straight)) == []


def stage(root: Path, name: str, *before: str, prepare: Callable[[], None] | None = None) -> str:
    """What a stage says that fails in its own words."""
    done = subprocess.run(
        [*before, sys.executable, "-B", "-m", f"stages.{name}"],
        cwd=root,
        env=environment(root),
        preexec_fn=prepare,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_no_stage_works_under_wrong_settings(repository: Path) -> None:
    text = (repository / "params.yaml").read_text()
    (repository / "params.yaml").write_text(text.replace("learning_rate: 0.002", "learning_rate: -1", 1))
    assert "params.yaml: tiny.train.learning_rate = -1 (must be greater than 0)" in stage(repository, "fetch")


def work_to_do(root: Path) -> None:
    """Settings under which fetch and features cannot keep what they have."""
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["tiny"]["fetch"]["seed"] += 1
    params["tiny"]["features"]["batch"] += 1
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def test_a_disk_that_fills_up_while_a_model_is_saved_is_told(tmp_path: Path) -> None:
    """Checkpoint and artifact by themselves, since under a full disk the store stops a stage long before them."""
    code = """
import os, resource, sys
from pathlib import Path
import torch
from stages.train.artifact import Artifact
from stages.train.decoders import Shape, build
from stages.train.decoding import Decoding
from stages.vocab.vocabulary import SPECIALS, Vocabulary
from test_training import CPU, CrossEntropy, Examples, Source, Training, settings
decoder = build(Shape('show_tell', 4, 8, 16, 16))
source = Source(None, 'train', False, False)
objective = CrossEntropy(Examples([0], [[[1, 2]]]), source, CPU, torch.float32)
training = Training(decoder, objective, settings().plan(), device=CPU, checkpoint=Path(sys.argv[1]))
artifact = Artifact(decoder, Vocabulary(SPECIALS), {}, Decoding())
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for save in (training.save, lambda: artifact.save(sys.argv[1])):
    try:
        save()
    except OSError as error:
        print(error, flush=True)
os._exit(0)  # under the limit, some library's farewell crashes on Python 3.12
"""
    path = tmp_path / "model"
    path.write_text("earlier")
    search = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env={**os.environ, "PYTHONPATH": search},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.count(f"File too large: free some space and run again; not written: '{path}'") == 2
    assert path.read_text() == "earlier"


@pytest.mark.parametrize("name", STAGES)
def test_a_full_disk_is_told_and_leaves_earlier_outputs(repository: Path, name: str) -> None:
    """The operating system takes the first 256 bytes of every file and no more."""
    work_to_do(repository)
    before = files(repository, "tiny")
    said = stage(repository, name, prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (256, 256)))
    assert any(words in said for words in ("free some space", "File too large", "disk I/O error", "disk is full")), said
    after = files(repository, "tiny")
    assert {path: after.get(path) for path in before} == before


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may write everywhere")
@pytest.mark.parametrize("name", ["fetch", "features", "train"])
def test_a_read_only_folder_is_told_and_leaves_earlier_outputs(repository: Path, name: str) -> None:
    work_to_do(repository)
    before = files(repository, "tiny")
    top = "models" if name == "train" else "data"
    folders = [path for path in (repository / top).rglob("*") if path.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    # Root without the right to write in spite of permissions.
    powerless = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    said = stage(repository, name, *powerless)
    for folder in folders:
        folder.chmod(0o755)
    assert "Permission denied" in said
    assert f"{top}/tiny" in said
    assert files(repository, "tiny") == before


def test_of_two_at_once_the_second_says_who_is_at_work(straight: Path, tmp_path: Path) -> None:
    root = copy(straight, tmp_path / "busy")
    work_to_do(root)
    with (root / ".dvc" / "first.log").open("w") as log:
        first = subprocess.Popen(
            [DVC, "repro", "features"],
            cwd=root,
            env=environment(root),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            deadline = time.monotonic() + 60
            while "Running stage" not in (root / ".dvc" / "first.log").read_text() and time.monotonic() < deadline:
                time.sleep(0.05)
            said = dvc(root, "repro", "features", expect=255)
        finally:
            assert first.wait(timeout=120) == 0, (root / ".dvc" / "first.log").read_text()
    assert f"(PID {first.pid})" in said
