"""Registering a trained model in real MLflow: once per weights, through the gate, whatever kills it on the way."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache
from stores import git, twice
from trained import Trained, registration, stage

from stages import tracking
from stages.files import sha256
from stages.register.registry import Registry
from stages.train.artifact import Artifact
from stages.train.decoding import Decoding

MODEL = "captioner-flickr8k"


@pytest.fixture
def trained(repository: Path) -> Trained:
    """A model whose captions are half right, from committed code."""
    made = Trained(repository)
    made.train(1)
    made.measure(0.5)
    made.commit()
    return made


def versions(model: str = MODEL) -> list[Any]:
    found = MlflowClient(tracking.uri()).search_model_versions(f"name = '{model}'")
    return sorted(found, key=lambda version: int(version.version))


def aliases(model: str = MODEL) -> dict[str, int]:
    return Registry(model).aliases()


# --- the gate at work -------------------------------------------------------------------------------------------------


def test_first_model_is_champion_everywhere(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    stage("stages.register")
    said = registration(trained)
    assert said["alias"] == "champion"
    assert said["verdict"].startswith(f"{MODEL} is champion: there is none yet, and its CIDEr ")
    assert said["clauses"] == {"real": True, "committed": True, "veto": True, "floor": True}
    assert said["verdict"] in capsys.readouterr().out
    (version,) = versions()
    assert version.tags["verdict"] == said["verdict"]
    assert version.tags["weights_sha256"] == said["weights_sha256"]
    assert version.tags["commit"] == git(trained.folder, "rev-parse", "HEAD").strip()
    assert "| **this model** |" in version.description
    assert "Not meant for" in version.description
    client = MlflowClient(tracking.uri())
    run = client.get_run(version.run_id)
    assert run.data.tags["register.verdict"] == said["verdict"]
    assert run.data.tags["register.version"] == "1"
    assert aliases() == {"champion": 1}
    kept = {Path(file.path).name for file in client.list_artifacts(version.run_id, "model/record")}
    assert kept == {"metrics.json", "captions_test.json", "fetch.json", "dvc.lock", "params.yaml"}


def test_a_better_model_takes_over_a_worse_one_does_not(trained: Trained) -> None:
    for seed, quality, champion, challenger in ((1, 0.5, 1, None), (2, 0.9, 2, None), (3, 0.6, 2, 3), (4, 1.0, 4, 3)):
        trained.train(seed)
        trained.measure(quality)
        stage("stages.register")
        expected = {"champion": champion} | ({"challenger": challenger} if challenger else {})
        assert aliases() == expected, f"after version {seed}"
    assert "of version 2, better by more than noise" in registration(trained)["verdict"]
    history = Registry(MODEL).history()
    assert [line.split(" | ")[1:3] for line in history] == [
        ["version 1", "champion"],
        ["version 2", "champion"],
        ["version 3", "challenger"],
        ["version 4", "champion"],
    ]


def test_drawn_scenes_make_no_champion(repository: Path) -> None:
    trained = Trained(repository, profile="sample", source="drawn")
    trained.train(1)
    trained.measure(1.0)
    trained.commit()
    stage("stages.register")
    assert registration(trained) == {
        "model": "captioner-sample",
        "weights_sha256": versions("captioner-sample")[0].tags["weights_sha256"],
        "alias": "challenger",
        "verdict": "captioner-sample is challenger: it knows drawn scenes only, no photographs.",
        "clauses": {"real": False},
    }, "nothing in it depends on the store or on git, so it is the same in every clone"


def test_code_must_be_committed_and_committing_it_is_enough(trained: Trained) -> None:
    (trained.folder / "stages" / "model.py").write_text("LAYERS = 2\n")
    trained.lock()  # as if everything had run with it
    stage("stages.register")
    assert "its code is not committed (stages/model.py)" in registration(trained)["verdict"]
    assert aliases() == {"challenger": 1}
    trained.commit()
    stage("stages.register")
    assert registration(trained)["alias"] == "champion"
    assert aliases() == {"champion": 1}
    assert len(versions()) == 1, "nothing was trained or registered again"


def test_other_decoding_is_not_compared(trained: Trained) -> None:
    stage("stages.register")
    trained.train(2)
    trained.measure(1.0, beam=5)
    stage("stages.register")
    assert "with beam 5, version 1 with beam 3" in registration(trained)["verdict"]
    first, last = versions()
    by_itself = "By itself it decodes with beam 3, length_penalty 0.7, max_words 8; its scores are of another decoding."
    assert by_itself in last.description
    assert "of another decoding" not in first.description


def test_other_pictures_are_not_compared(trained: Trained) -> None:
    stage("stages.register")
    trained.show(trained.pictures[:-1])
    trained.train(2)
    trained.measure(1.0)
    stage("stages.register")
    assert "on other pictures than version 1" in registration(trained)["verdict"]


@pytest.mark.parametrize("where", ["model", "version"])
def test_a_person_can_say_no(trained: Trained, where: str) -> None:
    stage("stages.register")
    trained.train(2)
    trained.measure(1.0)
    client = MlflowClient(tracking.uri())
    if where == "model":
        client.set_registered_model_tag(MODEL, "veto", "under review")
        stage("stages.register")
    else:
        (trained.folder / "stages" / "model.py").write_text("LAYERS = 2\n")
        trained.lock()
        stage("stages.register")
        client.set_model_version_tag(MODEL, "2", "veto", "under review")
        trained.commit()
        stage("stages.register")
    assert registration(trained)["verdict"] == f"{MODEL} is challenger: a person said no (under review)."
    assert aliases() == {"champion": 1, "challenger": 2}


def test_demoting_gives_back_the_champion_before(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, quality in ((1, 0.4), (2, 0.7), (3, 1.0)):
        trained.train(seed)
        trained.measure(quality)
        stage("stages.register")
    MlflowClient(tracking.uri()).set_model_version_tag(MODEL, "2", "veto", "not this one")
    stage("stages.register", "--demote", "--because", "it is rude")
    assert aliases() == {"champion": 1}, "version 2 was vetoed since"
    assert "version 3 is no longer champion (it is rude); champion is version 1 again" in capsys.readouterr().out
    stage("stages.register")
    assert "a person said no (it is rude)" in registration(trained)["verdict"]
    stage("stages.register", "--demote")
    assert "champion" not in aliases()
    assert "there is no champion now" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="has no champion: there is nothing to demote"):
        stage("stages.register", "--demote")
    moves = [line.split(" | ")[1:3] for line in Registry(MODEL).history()]
    assert moves[3:] == [
        ["version 3", "demoted"],
        ["version 1", "champion"],
        ["version 3", "challenger"],
        ["version 1", "demoted"],
    ]


def test_a_reason_without_anything_to_give_it_for_is_told() -> None:
    with pytest.raises(SystemExit, match=r"--because says why a champion is demoted: add --demote, or leave it out"):
        stage("stages.register", "--because", "it is rude")


# --- once, whatever happens -------------------------------------------------------------------------------------------


def test_same_weights_make_one_version_and_the_same_bytes(trained: Trained) -> None:
    stage("stages.register")
    first = (trained.reports / "registration.json").read_bytes()
    trained.train(1)  # as `dvc repro --force` does: another run, the same weights
    trained.measure(0.5)
    stage("stages.register")
    assert (trained.reports / "registration.json").read_bytes() == first
    assert len(versions()) == 1


def test_the_same_weights_with_another_decoding_are_another_version(trained: Trained) -> None:
    """They say something else, and are served as they are."""
    stage("stages.register")
    trained.train(1)  # as with `-S train.guidance=0.6`: no epoch is chosen by it
    path = trained.models / "captioner.safetensors"
    replace(Artifact.load(path), decoding=Decoding(5, 0.7, 8)).save(path)
    trained.measure(1.0, beam=5)
    stage("stages.register")
    first, second = versions()
    assert first.tags["weights_sha256"] == second.tags["weights_sha256"]
    assert first.tags["file_sha256"] != second.tags["file_sha256"] == sha256(path)
    assert "with beam 5, version 1 with beam 3" in registration(trained)["verdict"]
    assert "of another decoding" not in second.description
    assert aliases() == {"champion": 1, "challenger": 2}


def test_the_scores_of_another_captioner_are_refused(trained: Trained) -> None:
    measured = (trained.folder / "dvc.lock").read_text()
    trained.train(2)
    (trained.folder / "dvc.lock").write_text(measured)  # evaluate has not run again
    with pytest.raises(SystemExit, match=r"metrics.json is of another captioner than .*: run `dvc repro`"):
        stage("stages.register")
    assert versions() == []


def test_a_champion_that_is_measured_again_stays(trained: Trained) -> None:
    stage("stages.register")
    trained.measure(0.1)
    stage("stages.register")
    assert registration(trained)["verdict"] == f"{MODEL} stays champion: this very captioner, measured again."


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Counts what is written to the store; the write numbered `kill` is done only half or not at all, and kills."""
    state: dict[str, Any] = {"writes": 0, "kill": None}
    for name in (
        "create_registered_model",
        "log_artifacts",
        "create_model_version",
        "set_model_version_tag",
        "set_registered_model_tag",
        "set_registered_model_alias",
        "delete_registered_model_alias",
        "log_batch",
    ):
        method = getattr(MlflowClient, name)

        def write(self: Any, *arguments: Any, method: Any = method, name: str = name, **named: Any) -> Any:
            state["writes"] += 1
            if state["writes"] == state["kill"]:
                if name == "log_artifacts":  # one file of many has arrived
                    some = next(path for path in sorted(Path(arguments[1]).rglob("*")) if path.is_file())
                    self.log_artifact(arguments[0], str(some), arguments[2])
                raise Killed
            return method(self, *arguments, **named)

        monkeypatch.setattr(MlflowClient, name, write)
    return state


def test_killed_at_any_write_and_run_again_it_ends_as_if_undisturbed(
    trained: Trained, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.register.package.build", small_package)
    stage("stages.register")
    trained.train(2)
    trained.measure(1.0)

    def end(kill: int | None) -> tuple[Any, ...]:
        """What there is after register was killed at the write `kill` and run again, in a copy of all this."""
        place = tmp_path / f"kill-{kill}"
        shutil.copytree(trained.folder, place)
        monkeypatch.chdir(place)
        _artifact_repos_cache.clear()  # MLflow's, by the run's id, which all copies share
        changes.update(writes=0, kill=kill)
        if kill is not None:
            with pytest.raises(Killed):
                stage("stages.register")
        changes["kill"] = None
        stage("stages.register")
        return (
            [{key: each.tags.get(key) for key in ("verdict", "clauses", "weights_sha256")} for each in versions()],
            [line.split(" | ")[1:] for line in Registry(MODEL).history()],
            aliases(),
            [run.info.status for run in MlflowClient(tracking.uri()).search_runs(["1"])],
            sorted(each.relative_to(place / "mlartifacts") for each in (place / "mlartifacts").rglob("*")),
            (place / "reports/flickr8k/registration.json").read_text(),
        )

    undisturbed = end(None)
    writes = changes["writes"]
    assert undisturbed[2] == {"champion": 2}
    assert writes > 8
    for kill in range(1, writes + 1):
        assert end(kill) == undisturbed, f"killed at write {kill} of {writes}"


def small_package(folder: Path, captioner: Path, card: str) -> None:
    """Instead of the whole model, which takes a second to make."""
    (folder / "artifacts").mkdir(parents=True)
    shutil.copy(captioner, folder / "artifacts")
    (folder / "README.md").write_text(card)


@pytest.mark.slow
def test_two_processes_at_once_make_one_version(trained: Trained) -> None:
    said = twice(
        "import runpy, mlflow.pyfunc, stages.evaluate.captioner",
        "runpy.run_module('stages.register', run_name='__main__', alter_sys=True)",
    )
    assert said.count(" is champion: there is none yet") == 2
    assert len(versions()) == 1
    assert aliases() == {"champion": 1}


def test_two_machines_at_once_keep_the_older_version(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine, which no lock of ours reaches, registers the same weights while our version is being made."""
    monkeypatch.setattr("stages.register.package.build", small_package)
    create = MlflowClient.create_model_version

    def late(self: MlflowClient, *arguments: Any, **named: Any) -> Any:
        create(self, *arguments, **named)
        return create(self, *arguments, **named)

    monkeypatch.setattr(MlflowClient, "create_model_version", late)
    stage("stages.register")
    assert [version.version for version in versions()] == [1]
    assert aliases() == {"champion": 1}


def test_a_captioner_that_cannot_be_read_registers_nothing(trained: Trained) -> None:
    path = trained.models / "captioner.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SystemExit, match=r"captioner\.safetensors \(1,000 bytes\) is cut"):
        stage("stages.register")
    assert versions() == []


def test_a_fresh_clone_gets_run_version_and_verdict_back_from_its_files(trained: Trained, template: Path) -> None:
    stage("stages.register")
    before, first = (trained.reports / "registration.json").read_bytes(), versions()[0]
    (trained.folder / "mlflow.db").unlink()
    shutil.rmtree(trained.folder / "mlartifacts")
    tracking._open.cache_clear()
    clone = trained.folder.parent / "clone"
    trained.folder.rename(clone)
    os.chdir(clone)
    shutil.copy(template, clone / "mlflow.db")
    stage("stages.register")
    assert (clone / "reports/flickr8k/registration.json").read_bytes() == before
    (again,) = versions()
    run = MlflowClient(tracking.uri()).get_run(again.run_id)
    assert run.data.tags["rebuilt_from"] == first.run_id
    assert run.data.metrics["test.cider"] > 0
    assert aliases() == {"champion": 1}
