"""One run per trained model, in real MLflow stores of SQLite: whole, locked, damaged, moved or gone.

A tracking server and the pages that people look at are in test_server.py."""

from __future__ import annotations

import http.server
import os
import shutil
import socketserver
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache
from PIL import Image
from stores import git, twice

from stages import tracking
from stages.files import write_json

PARAMS = {
    "fetch": {"source": "drawn", "pictures": 100},
    "train": {"decoder": "show_tell", "learning_rate": 2e-4, "threads": None, "compile": False},
    "evaluate": {"beam": 3},
    "register": {"model": "captioner"},
}


def client() -> MlflowClient:
    """What anybody sees who opens the store with plain MLflow."""
    return MlflowClient(tracking.uri())


def runs(name: str = "sample") -> list[Any]:
    found = client().get_experiment_by_name(name)
    return list(client().search_runs([found.experiment_id])) if found else []


def curve(run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client().get_metric_history(run_id, key))


def train(folder: Path, epochs: int = 2) -> tracking.Run:
    """What train does with the record."""
    with tracking.start("sample", PARAMS, "cpu") as run:
        for epoch in range(1, epochs + 1):
            run.log({"train_loss": 3.0 / epoch, "val_cider": None if epoch == 1 else epoch / 10}, step=epoch)
    write_json(folder / "models" / "sample" / "run.json", run.record())
    return run


def python(code: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


# --- what a run holds -------------------------------------------------------------------------------------------------


def test_one_run_holds_settings_curves_and_where_it_comes_from(repository: Path) -> None:
    git(repository, "init", "-q", "-b", "main")
    (repository / "stages").mkdir()
    (repository / "stages" / "loop.py").write_text("")
    git(repository, "add", "stages")
    git(repository, "commit", "-q", "-m", "code")
    (repository / "params.yaml").write_text("an: experiment changes it\n")
    lock = """
schema: '2.0'
stages:
  fetch:
    outs: [{path: data/sample/captions_val.json, md5: 0123456789abcdef0123456789abcdef, size: 5}]
  features:
    outs:
    - {path: data/sample/features, md5: fedcba9876543210fedcba9876543210.dir, size: 9}
    - {path: reports/sample/features.json, md5: 11111111111111111111111111111111, size: 9}
"""
    (repository / "dvc.lock").write_text(lock)
    train(repository)

    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "fetch.source": "drawn",
        "fetch.pictures": "100",
        "train.decoder": "show_tell",
        "train.learning_rate": "0.0002",
        "train.threads": "null",
        "train.compile": "false",
    }, "settings that may change for a trained model are no params"
    assert curve(run.info.run_id, "train_loss") == [(1, 3.0), (2, 1.5)]
    assert curve(run.info.run_id, "val_cider") == [(2, 0.2)]
    tags = run.data.tags
    assert tags["commit"] == git(repository, "rev-parse", "HEAD").strip()
    assert tags["code"] == "clean"
    assert tags["profile"] == "sample"
    assert "torch 2." in tags["packages"]
    assert "cores" in tags["hardware"]
    assert float(tags["seconds.train"]) >= 0
    named = {each.dataset.name: each.dataset.digest for each in run.inputs.dataset_inputs}
    assert named == {
        "data/sample/captions_val.json": "0123456789abcdef0123456789abcdef",
        "data/sample/features": "fedcba9876543210fedcba9876543210.dir",
    }


@pytest.mark.parametrize(
    ("file", "said"), [("stages/loop.py", "dirty: stages/loop.py"), ("stages/new.py", "dirty: stages/new.py"),
                       ("README.md", "clean"), ("dvc.lock", "clean")]
)  # fmt: skip
def test_code_that_differs_from_the_commit_is_named(repository: Path, file: str, said: str) -> None:
    git(repository, "init", "-q", "-b", "main")
    for name in ("stages/loop.py", "README.md", "dvc.lock"):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text("")
    git(repository, "add", "stages", "README.md", "dvc.lock")
    git(repository, "commit", "-q", "-m", "all")
    (repository / file).write_text("# changed\n")
    assert tracking.start("sample", PARAMS, "cpu").record()["tags"]["code"] == said


def test_an_experiment_keeps_its_name(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "gusty-fox")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "abc123")
    train(repository)
    (run,) = runs()
    assert run.info.run_name == "gusty-fox"
    assert run.data.tags["dvc.experiment"] == "gusty-fox"
    assert run.data.tags["dvc.baseline"] == "abc123"


def test_an_epoch_costs_one_call(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tracking.start("sample", PARAMS, "cpu")
    calls: list[str] = []
    for name in (name for name in dir(MlflowClient) if not name.startswith("_")):
        method = getattr(MlflowClient, name)
        if callable(method):
            monkeypatch.setattr(
                MlflowClient, name, lambda *a, name=name, m=method, **k: (calls.append(name), m(*a, **k))[1]
            )
    run.log({"train_loss": 1.0, "val_loss": 1.0, "learning_rate": 0.1, "captions_per_second": 9.0}, step=1)
    assert calls == ["log_batch"]


def test_telemetry_is_off(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)  # `make test` has it off already
    tracking.store()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.mark.parametrize(
    ("raised", "status"), [(KeyboardInterrupt(), "KILLED"), (ValueError("the loss is nan"), "FAILED")]
)
def test_a_run_ends_as_its_training_does(repository: Path, raised: BaseException, status: str) -> None:
    with pytest.raises(type(raised)), tracking.start("sample", PARAMS, "cpu"):
        raise raised
    assert [run.info.status for run in runs()] == [status]


def test_a_failing_evaluation_leaves_a_finished_run_finished(repository: Path) -> None:
    train(repository)
    with pytest.raises(ValueError, match="no pictures"), tracking.reopen("models/sample/run.json", "evaluate"):
        raise ValueError("no pictures")
    assert [run.info.status for run in runs()] == ["FINISHED"]


def test_pictures_and_files_go_along(repository: Path) -> None:
    train(repository)
    with tracking.reopen("models/sample/run.json", "evaluate") as run:
        run.figure(Figure(), "curves.png")
        run.figure(Image.new("RGB", (8, 8)), "sheets/captioned.png")
        run.artifact("models/sample/run.json", "files")
        run.artifact("models", "folder")
        with pytest.raises(FileNotFoundError):
            run.artifact("models/none.json")
    stored = repository / "mlartifacts" / "sample" / run.id / "artifacts"
    found = {path.relative_to(stored).as_posix() for path in stored.rglob("*") if path.is_file()}
    assert found == {"curves.png", "sheets/captioned.png", "files/run.json", "folder/sample/run.json"}


def test_a_second_evaluation_replaces_the_scores(repository: Path) -> None:
    train(repository)
    for beam, cider in ((1, 0.5), (3, 0.6)):
        with tracking.reopen("models/sample/run.json", "evaluate", {"beam": beam}) as run:
            rest = {"split": {"name": "test"}, "rows": {"human": {"cider": 0.9}}, "meteor": None}
            run.score({"test": {"cider": cider, "intervals": {"cider": {"low": 0.4}}, **rest}})
    (run_,) = runs()
    scores = {key: value for key, value in run_.data.metrics.items() if "cider" in key and key != "val_cider"}
    assert scores == {"test.cider": 0.6, "test.cider_low": 0.4}
    assert run_.data.tags["evaluate.beam"] == "3"


def test_a_card_of_thousands_of_numbers_is_written(repository: Path) -> None:
    train(repository)
    with tracking.reopen("models/sample/run.json", "evaluate") as run:
        run.score({"test": {f"number_{i}": i for i in range(2500)}})
    assert len(runs()[0].data.metrics) == 2502


# --- killed and resumed -----------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_as_itself_and_one_that_nobody_resumes_is_marked(repository: Path) -> None:
    killed = python(
        f"""
import os
from stages import tracking
first, second = (tracking.start("sample", {PARAMS}, "cpu") for _ in range(2))
second.log({{"train_loss": 3.0, "speed": 50.0}}, step=1)
print(first.id, second.id, flush=True)
os.kill(os.getpid(), 9)
"""
    )
    forgotten, run_id = killed.communicate()[0].split()
    assert killed.returncode == -9
    assert [run.info.status for run in runs()] == ["RUNNING", "RUNNING"]
    with tracking.start("sample", PARAMS, "cpu", run_id) as run:
        assert run.id == run_id
        run.log({"train_loss": 3.0, "speed": 60.0}, step=1)  # as train hands over all rows of its checkpoint
        run.log({"train_loss": 2.0, "speed": 60.0}, step=2)
    assert {each.info.run_id: each.info.status for each in runs()} == {forgotten: "KILLED", run_id: "FINISHED"}
    assert curve(run_id, "train_loss") == [(1, 3.0), (2, 2.0)]
    assert curve(run_id, "speed") == [(1, 50.0), (2, 60.0)]
    rows = [{key: value for key, value in row.items() if key != "at"} for row in run.record()["metrics"]]
    assert rows == [{"step": 1, "train_loss": 3.0, "speed": 50.0}, {"step": 2, "train_loss": 2.0, "speed": 60.0}]


def test_a_living_run_is_left_alone(repository: Path) -> None:
    living = tracking.start("sample", PARAMS, "cpu")
    train(repository)
    assert client().get_run(living.id).info.status == "RUNNING"
    with pytest.raises(tracking.StoreError, match="is being trained by another process"):
        tracking.start("sample", PARAMS, "cpu", living.id)
    living.finish("KILLED")


def test_a_run_that_another_training_buries_is_left_to_it(repository: Path) -> None:
    """A link to nothing is what such a file is: listed, and gone when it is opened."""
    (repository / ".dvc/tmp/runs").mkdir(parents=True)
    (repository / ".dvc/tmp/runs/buried").symlink_to("nowhere")
    train(repository)
    assert [run.info.status for run in runs()] == ["FINISHED"]


# --- rebuilt from its file --------------------------------------------------------------------------------------------


def test_a_store_that_does_not_know_the_run_gets_it_from_its_file(
    repository: Path,
    template: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (repository / "dvc.lock").write_text(
        "stages: {fetch: {outs: [{path: data/sample/x, md5: 0123456789abcdef0123456789abcdef}]}}"
    )
    original = train(repository)
    (before,) = runs()
    with tracking.reopen("models/sample/run.json", "evaluate") as run:
        assert run.id == original.id
    clone = repository.parent / "clone"
    shutil.copytree(repository / "models", clone / "models")
    shutil.copy(template, clone / "mlflow.db")
    os.chdir(clone)
    for _ in range(2):  # rebuilt once, found again after that
        with tracking.reopen("models/sample/run.json", "evaluate") as run:
            run.score({"test": {"cider": 0.5}})
    (after,) = runs()
    assert after.info.run_id != original.id
    assert after.data.tags["rebuilt_from"] == original.id
    assert after.info.status == "FINISHED"
    assert after.info.start_time == before.info.start_time
    assert after.info.end_time == before.info.end_time
    assert after.data.params == before.data.params
    assert {key: after.data.tags[key] for key in original.record()["tags"]} == original.record()["tags"]
    assert curve(after.info.run_id, "train_loss") == [(1, 3.0), (2, 1.5)]
    assert [each.dataset.name for each in after.inputs.dataset_inputs] == ["data/sample/x"]
    assert capsys.readouterr().out.count("rebuilt from models/sample/run.json") == 1


def test_a_deleted_run_comes_back(repository: Path) -> None:
    run_id = train(repository).id
    client().delete_run(run_id)
    assert tracking.reopen("models/sample/run.json", "evaluate").id == run_id
    assert client().get_run(run_id).info.lifecycle_stage == "active"


def test_a_file_that_train_did_not_write_is_refused(repository: Path) -> None:
    write_json("models/sample/run.json", {"run_id": "1"})
    with pytest.raises(ValueError, match=r"run\.json lacks inputs, metrics.*run `dvc repro train`"):
        tracking.reopen("models/sample/run.json", "evaluate")


# --- a store that fails -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("sqlite:///damaged.db", "damaged.db failed: .*file is not a database"),
        ("http://me:secret@127.0.0.1:9", "http://127.0.0.1:9 failed: .*MLFLOW_TRACKING_URI says where"),
        ("sqlite:////proc/none/mlflow.db", "No such file or directory"),
        ("./mlruns", "filesystem tracking backend"),
    ],
)
def test_a_store_that_cannot_be_opened_stops_before_training(
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    uri: str,
    said: str,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (repository / "damaged.db").write_text("this was a database\n" * 100)
    with pytest.raises(tracking.StoreError, match=said) as raised:
        tracking.start("sample", PARAMS, "cpu")
    assert "secret" not in str(raised.value)


def test_a_store_looks_whole_where_a_server_answers(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        for uri, whole in ((f"http://me:secret@127.0.0.1:{port}", True), ("http://127.0.0.1:x", False),
                           ("http://[::1", False), ("http://127.0.0.1:9", False)):  # fmt: skip
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
            assert tracking.looks_whole() is whole, uri
        server.shutdown()


def test_no_password_is_kept_beside_a_running_training(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with tracking._alive("a"):
        assert (repository / ".dvc/tmp/runs/a").read_text() == "http://127.0.0.1:9"


def test_a_store_that_fails_during_training_loses_no_training(
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tracking.start("sample", PARAMS, "cpu")
    run.log({"train_loss": 3.0}, step=1)
    hidden = repository / "mlflow.db.away"
    (repository / "mlflow.db").rename(hidden)
    (repository / "mlflow.db").mkdir()
    with run:
        run.log({"train_loss": 2.0}, step=2)
        run.log({"train_loss": 1.0}, step=3)
    write_json("models/sample/run.json", run.record())
    said = capsys.readouterr().err
    assert said.count("THE RECORD OF THIS RUN IS NOT COMPLETE") == 1, "said once, loudly"
    assert "run `dvc repro`" in said
    (repository / "mlflow.db").rmdir()
    hidden.rename(repository / "mlflow.db")
    tracking.reopen("models/sample/run.json", "evaluate")
    (stored,) = runs()
    assert stored.info.status == "FINISHED"
    assert curve(run.id, "train_loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert "seconds.train" in stored.data.tags


def test_a_store_that_fails_for_a_moment_gets_what_it_missed(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tracking.start("sample", PARAMS, "cpu")
    with monkeypatch.context() as moment:  # really locked, SQLite would wait for twenty seconds
        locked = sqlite3.OperationalError("database is locked")
        moment.setattr(MlflowClient, "log_batch", Mock(side_effect=locked))
        run.log({"train_loss": 3.0}, step=1)
    assert "database is locked" in capsys.readouterr().err
    run.log({"train_loss": 2.0}, step=2)
    run.finish()
    assert curve(run.id, "train_loss") == [(1, 3.0), (2, 2.0)]


# --- where the store is -----------------------------------------------------------------------------------------------


def test_a_relative_store_lies_in_the_repository_not_in_its_temporary_copy(
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = repository / ".dvc" / "tmp" / "exps" / "copy"
    copy.mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(repository))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    monkeypatch.chdir(copy)
    run = train(copy)
    run.artifact("models/sample/run.json", "files")
    assert list(copy.glob("*")) == [copy / "models"]
    assert (repository / "mlartifacts" / "sample" / run.id / "artifacts" / "files" / "run.json").is_file()


def test_two_processes_make_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    start = f"with tracking.start('sample', {PARAMS}, 'cpu') as run: print(run.id)"
    ids = set(twice("import mlflow.store.tracking.sqlalchemy_store; from stages import tracking", start).split())
    assert {run.info.run_id for run in runs()} == ids
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.parametrize("copied", [False, True], ids=["moved", "copied"])
def test_a_repository_that_is_moved_keeps_its_artifacts(
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    copied: bool,
) -> None:
    run = train(repository)
    run.artifact("models/sample/run.json", "files")
    other = repository.parent / "o'ther %_place"
    shutil.copytree(repository, other)
    monkeypatch.chdir(other)
    if not copied:
        for path in repository.iterdir():  # the folder itself is where the test ends
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    path = tracking.store().download_artifacts(run.id, "files/run.json")
    assert Path(path).read_bytes() == (other / "models" / "sample" / "run.json").read_bytes()
    _artifact_repos_cache.clear()  # MLflow's, of this process, which has moved with its repository as none ever does
    with tracking.reopen("models/sample/run.json", "evaluate") as again:
        again.artifact("models/sample/run.json", "later")
    assert (other / "mlartifacts" / "sample" / run.id / "artifacts" / "later" / "run.json").is_file()
    assert not (repository / "mlartifacts" / "sample" / run.id / "artifacts" / "later").exists()
