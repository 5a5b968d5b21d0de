"""The chain from a model version back to its data: whole where nothing was touched, and each broken link by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache
from stores import fresh, git
from trained import Trained, stage

from stages import compare, tracking
from stages.provenance import md5
from stages.register.registry import Registry

MODEL = "captioner-flickr8k"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[Trained]:
    """A registered model; tests work on copies of its repository."""
    folder = tmp_path_factory.mktemp("made") / "repository"
    folder.mkdir()
    with fresh(folder, template):
        trained = Trained(folder)
        trained.commit()
        trained.train(1)
        trained.measure(0.5)
        stage("stages.register")
    return trained


@pytest.fixture
def trained(made: Trained, tmp_path: Path) -> Iterator[Trained]:
    _artifact_repos_cache.clear()  # MLflow's, by the run's id, which all copies share
    with made.copied(tmp_path / "copy") as copy:
        yield copy


def artifacts(trained: Trained) -> Path:
    """The folder of the version's files."""
    return trained.folder / "mlartifacts" / "flickr8k" / Registry(MODEL).get(1).run_id / "artifacts" / "model"


def test_a_version_is_compared_by_the_file_that_was_registered(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`stages.compare NAME/N` brings the very captioner; that captioners are decoded is tested with evaluate."""
    monkeypatch.setattr(compare, "_by_captioner", lambda path, *_: {1: md5(path)})
    for name in (f"{MODEL}/1", f"models:/{MODEL}/1"):
        found = compare.captions_of(name, "test", [], trained.data / "features", None)
        assert found == {1: md5(trained.models / "captioner.safetensors")}
    with pytest.raises(tracking.StoreError, match="99"):
        compare.captions_of(f"{MODEL}/99", "test", [], trained.data / "features", None)


# --- whole ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    ["1", f"{MODEL}/1", f"{MODEL}@champion", f"models:/{MODEL}/1", f"models:/{MODEL}@champion",
     "models/flickr8k/captioner.safetensors"],
)  # fmt: skip
def test_an_untouched_chain_holds(trained: Trained, capsys: pytest.CaptureFixture[str], asked: str) -> None:
    stage("stages.lineage", asked)
    lines = capsys.readouterr().out.splitlines()[1:]  # the first says that the repository has moved
    assert all(line.startswith("ok ") for line in lines)
    said = "\n".join(lines)
    assert git(trained.folder, "rev-parse", "HEAD")[:12] in said
    for path in ("captions_train.json", "captions_val.json", "captions_test.json", "vocab.json", "features"):
        assert f"{md5(trained.data / path)}  data/flickr8k/{path}" in said
    for link in ("weights", "run", "commit"):
        assert f"version -> {link} " in said
    assert "run -> settings" in said
    assert "run -> score card" in said


def test_data_that_is_elsewhere_is_said_and_breaks_nothing(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    (trained.data / "captions_train.json").unlink()
    trained.block["profile"] = "coco"  # another profile has run since: dvc.lock speaks of other files
    lock = yaml.safe_load((trained.folder / "dvc.lock").read_text())
    lock["stages"]["vocab"]["outs"] = []
    (trained.folder / "dvc.lock").write_text(yaml.safe_dump(lock))
    stage("stages.lineage", "1")
    said = capsys.readouterr().out
    assert "data/flickr8k/captions_train.json (not on this machine, not checked)" in said
    assert "data/flickr8k/vocab.json (not on this machine, not checked)" in said


# --- broken -----------------------------------------------------------------------------------------------------------


def change_weights(trained: Trained) -> None:
    path = artifacts(trained) / "artifacts" / "captioner.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def lose_weights(trained: Trained) -> None:
    (artifacts(trained) / "artifacts" / "captioner.safetensors").unlink()


def lose_files(trained: Trained) -> None:
    artifacts(trained).rename(trained.folder / "elsewhere")


def change_scores(trained: Trained) -> None:
    path = artifacts(trained) / "record" / "metrics.json"
    card = json.loads(path.read_text())
    card["test"]["cider"] = 9.9
    path.write_text(json.dumps(card))


def change_captions(trained: Trained) -> None:
    path = artifacts(trained) / "record" / "captions_test.json"
    path.write_text(path.read_text() + " ")


def change_settings(trained: Trained) -> None:
    path = artifacts(trained) / "record" / "params.yaml"
    path.write_text(path.read_text().replace("hidden: 512", "hidden: 511"))


def change_commit(trained: Trained) -> None:
    MlflowClient(tracking.uri()).set_model_version_tag(MODEL, "1", "commit", "0" * 40)


def change_commit_to_an_option(trained: Trained) -> None:
    """What git would take for the name of a file to write."""
    MlflowClient(tracking.uri()).set_model_version_tag(MODEL, "1", "commit", f"--output={trained.folder}/written")


def change_decoder(trained: Trained) -> None:
    """A setting that is text."""
    path = artifacts(trained) / "record" / "params.yaml"
    path.write_text(path.read_text().replace("decoder: attend", "decoder: show_tell"))


def change_code(trained: Trained) -> None:
    """The version says that it is of a later commit, whose code is another one."""
    (trained.folder / "stages" / "model.py").write_text("LAYERS = 7\n")
    MlflowClient(tracking.uri()).set_model_version_tag(MODEL, "1", "commit", trained.commit())


def lose_lock(trained: Trained) -> None:
    (artifacts(trained) / "record" / "dvc.lock").unlink()


def change_data(trained: Trained) -> None:
    path = trained.data / "captions_val.json"
    path.write_text(path.read_text().replace("dog", "cat"))


def change_features(trained: Trained) -> None:
    (trained.data / "features" / "more.npy").write_bytes(b"more")


def change_run(trained: Trained) -> None:
    """The run was given other data than the lock names."""
    path = artifacts(trained) / "record" / "dvc.lock"
    path.write_text(path.read_text().replace(md5(trained.data / "vocab.json"), "ab" * 16))


def lose_run(trained: Trained) -> None:
    MlflowClient(tracking.uri()).set_terminated(Registry(MODEL).get(1).run_id, "FAILED")


@pytest.mark.parametrize(
    ("damage", "link", "reason"),
    [
        (change_weights, "version -> weights", "the file's sha256 is"),
        (lose_weights, "version -> weights", "captioner.safetensors is not among the version's files"),
        (lose_files, "version -> its files", "failed"),
        (change_scores, "run -> score card", "the run does not know test CIDEr 9.9"),
        (change_scores, "dvc.lock -> evaluate", "for reports/flickr8k/metrics.json, the version's is"),
        (change_captions, "dvc.lock -> evaluate", "for reports/flickr8k/captions_test.json, the version's is"),
        (change_settings, "run -> settings", "train.hidden 512 for 511"),
        (change_decoder, "run -> settings", "train.decoder attend for show_tell"),
        (change_commit, "version -> commit", f"commit {'0' * 40} is not in this repository"),
        (change_commit_to_an_option, "version -> commit", "written' is no commit's hash"),
        (change_commit_to_an_option, "commit -> dvc.lock", "does not hold what ran: stages/model.py"),
        (change_code, "commit -> dvc.lock", "does not hold what ran: stages/model.py"),
        (lose_lock, "version -> dvc.lock", "registered without a dvc.lock"),
        (change_data, "dvc.lock -> data", "data/flickr8k/captions_val.json has md5"),
        (change_features, "dvc.lock -> data", "data/flickr8k/features has md5"),
        (change_run, "run -> data", "for data/flickr8k/vocab.json, dvc.lock abababab"),
        (lose_run, "version -> run", "it did not finish"),
    ],
)
def test_a_broken_link_is_named(
    trained: Trained, capsys: pytest.CaptureFixture[str], damage: Callable[[Trained], None], link: str, reason: str
) -> None:
    tracking.store()
    damage(trained)
    with pytest.raises(SystemExit) as ended:
        stage("stages.lineage", "1")
    assert str(ended.value).split("\n")[0].endswith("of the chain's links do not hold:")
    named = [line for line in str(ended.value).split("\n")[1:] if line.startswith(f"{link}: ")]
    assert reason in named[0]
    broken = [line for line in capsys.readouterr().out.splitlines() if line.startswith("BROKEN")]
    assert any(link in line for line in broken)
    assert not list(trained.folder.glob("written*"))


def test_a_captioner_whose_vocabulary_was_changed_is_told_apart(trained: Trained) -> None:
    """The weights are those of version 1, the file is not."""
    path = trained.models / "captioner.safetensors"
    path.write_bytes(path.read_bytes().replace(b'\\"dog\\"', b'\\"cow\\"'))
    with pytest.raises(SystemExit, match=r"has the weights of .* version 1 .*, but something beside them was changed"):
        stage("stages.lineage", str(path))


def test_a_captioner_that_nobody_registered_is_said(trained: Trained) -> None:
    trained.train(5)
    with pytest.raises(SystemExit, match=r"no version in sqlite:.* has its weights .*: register it"):
        stage("stages.lineage", "models/flickr8k/captioner.safetensors")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("7", "Model Version .*version=7.* not found"),
        ("nobody/1", "nobody.* not found"),
        (f"{MODEL}@winner", "has no alias winner"),
        ("what is this", "what is this is no file and no version: write NUMBER, NAME/NUMBER"),
    ],
)
def test_a_version_that_is_not_there_is_said(trained: Trained, asked: str, said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        stage("stages.lineage", asked)


# --- md5 as DVC counts it ---------------------------------------------------------------------------------------------


def test_md5_is_dvcs(tmp_path: Path) -> None:
    """Of a file and of a folder whose files sort differently as paths and as text."""
    folder = tmp_path / "folder"
    for name in ("b", "a/z", "a/b/c", "a-b", "a.b", "\u00fcber", "A"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    dvc: Any = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    subprocess.run([*dvc, "add", "--no-commit", "-q", "folder"], cwd=tmp_path, check=True)
    (out,) = yaml.safe_load((tmp_path / "folder.dvc").read_text())["outs"]
    assert md5(folder) == out["md5"]
