"""The process that records a training: what it leaves is what `tracking.start` leaves, whoever of the two is killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from test_tracking import PARAMS, curve, runs
from tiny import environment, make_project

from stages import tracking
from stages.files import write_json
from stages.recorder import Recorder


def refuse(repository: Path) -> None:
    """Has MLflow refuse a database that takes writes: it is of a later MLflow."""
    with closing(sqlite3.connect(repository / "mlflow.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")


def test_a_run_is_recorded_as_by_the_process_itself(repository: Path) -> None:
    (repository / "dvc.lock").write_text(
        "stages: {fetch: {outs: [{path: data/sample/x, md5: 0123456789abcdef0123456789abcdef}]}}"
    )
    made: list[tuple[Any, ...]] = []
    began = time.time()
    for record in (tracking.start("sample", PARAMS, "cpu"), Recorder().start("sample", PARAMS, "cpu")):
        with record:
            for epoch in (1, 2, 3):
                record.log({"train_loss": 3.0 / epoch, "val_cider": None if epoch == 1 else 0.1}, step=epoch)
        (run,) = [each for each in runs() if each.info.run_id == record.id]
        kept = record.record()
        changing = ("seconds.train", "mlflow.runName")
        tags = [
            {key: value for key, value in each.items() if key not in changing} for each in (run.data.tags, kept["tags"])
        ]
        rows = [{key: value for key, value in row.items() if key != "at"} for row in kept["metrics"]]
        inputs = [(each.dataset.name, each.dataset.digest) for each in run.inputs.dataset_inputs]
        curves = curve(record.id, "train_loss"), curve(record.id, "val_cider")
        made.append((run.info.status, run.data.params, tags, inputs, curves, rows, kept["params"], sorted(kept)))
        assert began - 1 < kept["started"] <= kept["ended"] < time.time() + 1
        assert 0 < float(run.data.tags["seconds.train"]) < time.time() - began
    assert made[0] == made[1]


def test_train_itself_loads_no_mlflow(repository: Path) -> None:
    code = f"""
import sys
from stages.recorder import Recorder
with Recorder().start("sample", {PARAMS}, "cpu") as record:
    record.log({{"train_loss": 1.0}}, step=1)
record.record()
print(*(name for name in sys.modules if name.startswith(("mlflow", "sqlalchemy"))))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""
    assert [run.info.status for run in runs()] == ["FINISHED"]


@pytest.mark.parametrize(
    ("raised", "status"), [(KeyboardInterrupt(), "KILLED"), (ValueError("the loss is nan"), "FAILED")]
)
def test_a_run_ends_as_its_training_does(repository: Path, raised: BaseException, status: str) -> None:
    with pytest.raises(type(raised)), Recorder().start("sample", PARAMS, "cpu"):
        raise raised
    assert [run.info.status for run in runs()] == [status]


# --- a store that fails -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("sqlite:///damaged.db", "damaged.db failed: .*file is not a database"),
        ("http://127.0.0.1:9", "http://127.0.0.1:9 failed: .*MLFLOW_TRACKING_URI says where"),
        ("./mlruns", "filesystem tracking backend"),
    ],
)
def test_a_store_that_cannot_be_opened_stops_before_training(
    repository: Path, monkeypatch: pytest.MonkeyPatch, uri: str, said: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (repository / "damaged.db").write_text("this was a database\n" * 100)
    with pytest.raises(tracking.StoreError, match=said):
        Recorder().start("sample", PARAMS, "cpu")


def test_a_store_that_only_mlflow_refuses_stops_the_first_epoch(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_project(tmp_path / "refused", template, batch=1)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(root)
    refuse(root)
    assert tracking.looks_whole()
    code = """
import time
import stages.train.__main__ as train
from stages.rim import run
step = train.Training.one_step
def slowly(*arguments):
    time.sleep(1)  # the epoch takes minutes
    return step(*arguments)
def save(training):
    raise ValueError("it got as far as its first save")
train.Training.one_step, train.Training.save = slowly, save
run(train.main)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(root), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "mlflow.db failed: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not any(path.is_file() for top in ("models", "reports") for path in (root / top).rglob("*"))


def test_a_store_that_is_not_there_yet_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with Recorder().start("sample", PARAMS, "cpu"):
        assert (tmp_path / "mlflow.db").is_file(), "by the time that training begins"


# --- killed -----------------------------------------------------------------------------------------------------------


def test_a_recorder_that_is_killed_stops_no_training(repository: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Recorder().start("sample", PARAMS, "cpu") as record:
        record.log({"train_loss": 3.0}, step=1)
        assert record.id
        record._process.kill()
        record._process.wait()
        for epoch in (2, 3):
            record.log({"train_loss": 3.0 / epoch}, step=epoch)
    assert capfd.readouterr().err.count("THE RECORD OF THIS RUN IS NOT COMPLETE") == 1
    write_json("models/sample/run.json", record.record())
    tracking.reopen("models/sample/run.json", "evaluate")
    (run,) = runs()
    assert (run.info.run_id, run.info.status) == (record.id, "FINISHED")
    assert curve(record.id, "train_loss") == [(1, 3.0), (2, 1.5), (3, 1.0)]


TRAINING = f"""
import time
from stages.recorder import Recorder
recorder = Recorder()
record = recorder.start("sample", {PARAMS}, "cpu")
print("begins", recorder._process.pid, flush=True)
record.log({{"train_loss": 3.0}}, step=1)
print(record.id, flush=True)
time.sleep(60)
"""


def ended(pid: int) -> bool:
    """Whether a process that is no child of ours ends within a while."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:1]:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("opened", [False, True], ids=["while MLflow is loaded", "in its first epoch"])
def test_a_training_that_is_killed_takes_its_recorder_along(repository: Path, opened: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", TRAINING], stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout
        pid = int(training.stdout.readline().split()[1])
        run_id = training.stdout.readline().strip() if opened else None
        training.kill()
    assert ended(pid)
    assert [(run.info.run_id, run.info.status) for run in runs()] == ([(run_id, "RUNNING")] if opened else [])
    with Recorder().start("sample", PARAMS, "cpu", run_id) as record:
        record.log({"train_loss": 3.0}, step=1)
        record.log({"train_loss": 2.0}, step=2)
    assert [run.info.status for run in runs()] == ["FINISHED"]
    assert run_id in (None, record.id)
    assert curve(record.id, "train_loss") == [(1, 3.0), (2, 2.0)]
    assert len(record.record()["metrics"]) == 2


def test_ctrl_c_reaches_the_training_only(repository: Path) -> None:
    """A terminal sends it to both; the training decides, and its record says how it ended."""
    code = TRAINING.replace("time.sleep(60)", "with record: print('in it', flush=True); time.sleep(60)")
    # Where the tests were started in the background SIGINT is ignored, and Python leaves it so.
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{code}"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as training:
        assert training.stdout
        while training.stdout.readline() not in ("in it\n", ""):
            pass
        os.killpg(training.pid, signal.SIGINT)
    assert [run.info.status for run in runs()] == ["KILLED"]
    (run,) = runs()
    assert MlflowClient(tracking.uri()).get_metric_history(run.info.run_id, "train_loss")[0].value == 3.0
