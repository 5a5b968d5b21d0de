"""The record of every trained model in MLflow: one run, opened by train, reopened by evaluate and register.

Where: MLFLOW_TRACKING_URI, else mlflow.db in the repository's root with artifacts in mlartifacts/ beside it.
A bare `mlflow ui` there shows everything; no server is needed, and one works as well.

Files are the truth, the store is their index. A store that cannot be opened stops a stage before it works (train, which
has it opened beside its work by recorder.py, in the step in which MLflow refuses it, before anything is saved); one
that fails later stops nothing: `Run` says so once, loudly, and keeps what it could not write. Train writes
`Run.record()` into models/P/run.json, and whatever stage opens that file next (`reopen`) writes what the store lacks;
where the store does not know the run at all (a fresh clone, a lost database), it is rebuilt from that file and tagged
`rebuilt_from`.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import logging
import os
import sqlite3
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from stages import provenance
from stages.files import read_json, repository, shown

if TYPE_CHECKING:  # importing mlflow takes seconds, so it waits until a run is opened
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.entities import Run as Stored

ROOT = "artifacts"  # the experiments' tag that holds the absolute path of mlartifacts/, as it was when they were made
Status = Literal["FINISHED", "KILLED", "FAILED"]
TRAINED = ("fetch", "vocab", "features", "train")  # params cannot change once written; later stages' settings are tags


class StoreError(ValueError):
    """The MLflow store cannot be opened or written; the message says which, why and what to do."""


def start(
    profile: str, params: Mapping[str, Any], device: str, run_id: str | None = None, began: float | None = None
) -> Run:
    """Opens the run of a model that train is about to make, in the experiment named like the profile.

    params are the profile's settings, nested by stage; those up to train become the run's params. run_id is that of an
    earlier, unfinished training which goes on (train keeps it in its resume state); where the store does not know it, a
    new run is opened, so look at `.id`. Runs whose process was killed are marked KILLED on this occasion. began is when
    the stage did, in seconds since 1970; now, where it is not given. Train starts its run by recorder.py.

    Raises StoreError, before any work is lost, when the store cannot be opened.
    """
    began = began or time.time()
    with problems():
        client = store()
        experiment = _experiment(client, profile)
        _bury(client, spared=run_id)
        record: dict[str, Any] = {
            "profile": profile,
            "name": _name(params),
            "started": began,
            "params": dict(flat({stage: params[stage] for stage in TRAINED if stage in params})),
            "tags": {**_provenance(), "profile": profile, "device": device},
            "inputs": [[each.path, each.md5, each.bytes] for each in provenance.inputs(profile)],
            "metrics": [],
        }
        if stored := _find(client, run_id) if run_id else None:
            client.update_run(stored.info.run_id, status="RUNNING")
            record |= {"name": stored.info.run_name, "started": stored.info.start_time / 1000}
        else:
            stored = _create(client, experiment, record)
        alive = _alive(stored.info.run_id)
        run = Run(client, stored, {"run_id": stored.info.run_id, **record}, "train", alive, began)
        run.recall()
        run.catch_up()
        return run


def reopen(run_file: str | Path, stage: str, settings: Mapping[str, Any] | None = None) -> Run:
    """The run of a trained model, found by train's models/P/run.json, for `stage` to add to; settings are the stage's.

    To be called before the stage works, since it may raise: StoreError when the store cannot be opened, ValueError when
    the file is not one that train wrote. What the store lacks of the run is written from the file; a run that it does
    not know is rebuilt.
    """
    record = read_json(run_file)
    missing = {"run_id", "profile", "name", "started", "params", "tags", "inputs", "metrics"} - set(record)
    if missing:
        raise ValueError(f"{run_file} lacks {', '.join(sorted(missing))}: delete it and run `dvc repro train`")
    with problems():
        client = store()
        experiment = _experiment(client, record["profile"])
        stored = _find(client, record["run_id"]) or _rebuilt(client, experiment, record["run_id"])
        if stored is None:
            stored = _create(client, experiment, record, rebuilt_from=record["run_id"])
            print(f"run {record['run_id']} is not in {place()}: rebuilt from {run_file} as {stored.info.run_id}")
        run = Run(client, stored, record, stage, None, time.time())
        run.catch_up()
        if stored.info.status != "FINISHED":
            client.set_terminated(run.id, "FINISHED", _milliseconds(record.get("ended", time.time())))
        now = {"commit": provenance.commit() or "none", "code": _code()}
        run.tag(dict(flat({stage: {**(settings or {}), **now}})))
        return run


class Run:
    """One model's run in the store. After it is open, no method raises because the store fails (see above).

    As a context manager it marks what it ends with: FINISHED, KILLED on Ctrl-C, FAILED on any other exception. Only
    the stage that trained decides over the model's status: an evaluation that fails leaves a finished run finished.
    """

    def __init__(
        self, client: MlflowClient, stored: Stored, record: dict[str, Any], stage: str, alive: Any | None, began: float
    ) -> None:
        self.id: str = stored.info.run_id
        self.name: str = stored.info.run_name
        self.stage = stage
        self._client = client
        self._stored = stored
        self._record = record
        self._alive = alive  # an open, locked file: who can lock it knows that this process is gone
        self._began = began
        self._waiting: list[dict[str, Any]] = []  # rows that the store has not taken yet
        self._written = self._history()
        self._ended = False
        self._complained = False
        self._patience = 0.0  # until this time no curves are sent: the store failed, and failing takes its time

    def log(self, metrics: Mapping[str, float | None], step: int) -> None:
        """Writes one point of each curve, in one call. None is left out. A (key, step) that is there stays as it is, so
        a resumed train hands over all rows of its checkpoint again and the store gets those it missed."""
        points = {key: float(value) for key, value in metrics.items() if value is not None}
        new = {key: value for key, value in points.items() if (key, step) not in self._written}
        if new:
            row = {"step": step, "at": time.time(), **new}
            self._record["metrics"].append(row)
            self._waiting.append(row)
            self._send()

    def score(self, cards: Mapping[str, Any]) -> None:
        """Writes what score cards (split -> card, nested or dotted) have on top, as `test.cider`, and its interval, as
        `test.cider_low` and `test.cider_high`. A new value replaces the old one. The rest of a card is in its file."""
        from mlflow.entities import Metric

        now, latest = _milliseconds(time.time()), self._stored.data.metrics
        numbers = {key: value for key, value in _leaves(cards) if isinstance(value, int | float)}
        wanted: dict[str, float] = {}
        for key in (key for key in numbers if key.count(".") == 1):
            split, _, name = key.partition(".")
            ends = {f"{key}_{end}": numbers.get(f"{split}.intervals.{name}.{end}") for end in ("low", "high")}
            wanted |= {key: numbers[key]} | {end: value for end, value in ends.items() if value is not None}
        new = {key: value for key, value in wanted.items() if latest.get(key) != value}
        with self._lasting():
            self._write([Metric(key, float(value), now, 0) for key, value in new.items()])

    def tag(self, tags: Mapping[str, Any]) -> None:
        """Writes tags; a new value replaces the old one."""
        from mlflow.entities import RunTag

        if self.stage == "train":
            self._record["tags"] |= {key: _text(value) for key, value in tags.items()}
        with self._lasting():
            self._client.log_batch(self.id, tags=[RunTag(key, _text(value)) for key, value in tags.items()])

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Copies a file, or a folder's files, into the run's artifacts, below `folder`."""
        path = Path(path).resolve(strict=True)
        with self._lasting():
            if path.is_dir():
                self._client.log_artifacts(self.id, str(path), folder)
            else:
                self._client.log_artifact(self.id, str(path), folder)

    def figure(self, figure: Any, name: str) -> None:
        """Writes a matplotlib figure or PIL picture as the artifact `name` (`.png`)."""
        with self._lasting():
            if hasattr(figure, "savefig"):
                self._client.log_figure(self.id, figure, name)
            else:
                self._client.log_image(self.id, figure, name)

    def finish(self, status: Status = "FINISHED") -> None:
        """Ends this stage's part of the run, and in train the run. Call it before `record()`; a second call is idle."""
        if self._ended:
            return
        self._ended = True
        self.tag({f"seconds.{self.stage}": f"{time.time() - self._began:.1f}"})
        if self._alive is None:
            return
        self._record["ended"] = time.time()
        self._send(hurry=True)
        with self._lasting():
            self._client.set_terminated(self.id, status, _milliseconds(self._record["ended"]))
        Path(self._alive.name).unlink(missing_ok=True)
        self._alive.close()

    def record(self) -> dict[str, Any]:
        """All that this run holds, for models/P/run.json: from it the run can be rebuilt. Never the same twice."""
        return self._record

    def catch_up(self) -> None:
        """Writes whatever of the record the store lacks."""
        from mlflow.entities import Param, RunTag

        there, named = self._stored.data, self._stored.inputs
        params = [Param(key, value) for key, value in self._record["params"].items() if key not in there.params]
        tags = [RunTag(key, value) for key, value in self._record["tags"].items() if there.tags.get(key) != value]
        known = {(each.dataset.name, each.dataset.digest) for each in (named.dataset_inputs if named else ())}
        with self._lasting():
            if params or tags:
                self._client.log_batch(self.id, params=params, tags=tags)
            _log_inputs(self._client, self.id, [i for i in self._record["inputs"] if (i[0], i[1]) not in known])
        self._waiting = [*self._record["metrics"]]
        self._send()

    def recall(self) -> None:
        """Takes the curves that the store has into the record: they were written before this process went on."""
        rows: dict[int, dict[str, Any]] = {}
        for (key, step), point in sorted(self._written.items(), key=lambda item: item[0][1]):
            rows.setdefault(step, {"step": step, "at": point.timestamp / 1000})[key] = point.value
        self._record["metrics"] = [*rows.values()]

    def _send(self, hurry: bool = False) -> None:
        """Writes, in one call, the points of all rows that the store has not taken yet."""
        from mlflow.entities import Metric

        if time.monotonic() < self._patience and not hurry:
            return
        points = {
            (key, row["step"]): Metric(key, value, _milliseconds(row["at"]), row["step"])
            for row in self._waiting
            for key, value in row.items()
            if key not in ("step", "at") and (key, row["step"]) not in self._written
        }
        with self._lasting():
            self._write([*points.values()])
            self._written |= points
            self._waiting.clear()

    def _write(self, points: Sequence[Metric]) -> None:
        for some in range(0, len(points), 1000):  # MLflow takes a thousand at once
            self._client.log_batch(self.id, metrics=points[some : some + 1000])

    def _history(self) -> dict[tuple[str, int], Metric]:
        """All points of curves that the store has, by (key, step)."""
        return {
            (point.key, point.step): point
            for key in self._stored.data.metrics
            if not key.startswith(("test.", "val."))
            for point in self._client.get_metric_history(self.id, key)
        }

    @contextmanager
    def _lasting(self) -> Iterator[None]:
        """Keeps a stage working when the store fails: what it makes is worth more than the record of it."""
        began = time.monotonic()
        try:
            with problems():
                yield
        except StoreError as problem:
            if not self._complained:
                complain(str(problem))
            self._complained = True
            self._patience = time.monotonic() + 10 * (time.monotonic() - began)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.finish(status_after(kind))


def status_after(raised: type[BaseException] | None) -> Status:
    """What a run is that ends with this exception, or with none."""
    if raised is None:
        return "FINISHED"
    return "KILLED" if issubclass(raised, KeyboardInterrupt) else "FAILED"


def complain(problem: str) -> None:
    """Says that a run's record lacks something, why, and how it gets it."""
    print(
        f"\nTHE RECORD OF THIS RUN IS NOT COMPLETE. {problem}\n"
        f"Work goes on and its files are kept. The next stage that opens the run writes what is missing: "
        f"mend the store, then run `dvc repro`.\n",
        file=sys.stderr,
    )


# --- the store --------------------------------------------------------------------------------------------------------


def uri() -> str:
    """Where the store is. A relative SQLite path is one in the repository, not in the copy of `dvc exp run --temp`."""
    given = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if given.startswith("sqlite:///"):
        return f"sqlite:///{repository() / given.removeprefix('sqlite:///')}"
    return given


def place() -> str:
    """Where the store is, as it may be printed: a server's or a database's address can hold a password."""
    return uri() if _database(uri()) else shown(uri())


def absent() -> bool:
    """Whether there is no store yet: whoever only looks would make an empty one."""
    database = _database(uri())
    return database is not None and not database.exists()


def store() -> MlflowClient:
    """The opened store; a SQLite database is created where there is none. Raises StoreError."""
    with problems():
        return _open(uri())


def looks_whole() -> bool:
    """Whether the store is there and takes writes, seen from outside, in milliseconds and without MLflow, which alone
    can say what is wrong with one that does not."""
    if (database := _database(uri())) is None:
        if not uri().startswith("http"):
            return False
        try:
            urllib.request.urlopen(f"{place()}/health", timeout=5).close()  # noqa: S310 - begins with http
        except urllib.error.HTTPError:
            return True  # it answers, if only that somebody must log in
        except (OSError, ValueError, http.client.HTTPException):  # nobody there, an address that is none, not HTTP
            return False
        return True
    try:
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=rw", uri=True, timeout=1)) as connection:
            connection.execute("SELECT version_num FROM alembic_version").fetchone()
            connection.execute("BEGIN IMMEDIATE")
    except sqlite3.Error:
        return False
    return True


@cache
def _open(where: str) -> MlflowClient:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # about ten seconds; mlflow's seven take minutes
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # `problems` says it in one line
    from mlflow import MlflowClient

    if (database := _database(where)) is None:
        client = MlflowClient(where)
    else:
        database.parent.mkdir(parents=True, exist_ok=True)
        with locked(database):
            if not database.exists():  # made aside and renamed: mlflow itself crashes when two processes make one
                partial = database.with_name(f".{database.name}.{os.getpid()}.partial")
                MlflowClient(f"sqlite:///{partial}").search_experiments(max_results=1)
                partial.replace(database)
            client = MlflowClient(where)
            _follow(database)
    client.search_experiments(max_results=1)
    return client


def _database(where: str) -> Path | None:
    return Path(where.removeprefix("sqlite:///").partition("?")[0]) if where.startswith("sqlite:///") else None


def _artifacts(where: str) -> Path | None:
    """The folder of artifacts of a store that has no server to decide on it."""
    if (database := _database(where)) is not None:
        return database.parent / "mlartifacts"
    return None if where.startswith(("http:", "https:", "databricks")) else repository() / "mlartifacts"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time, on this machine, is inside for `path`; one that is killed lets go."""
    with path.with_name(f"{path.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _follow(database: Path) -> None:
    """Has the paths in the database follow a repository that was moved or copied: MLflow stores them absolute."""
    root = database.parent / "mlartifacts"
    if not root.exists():
        return
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        query = "SELECT DISTINCT value FROM experiment_tags WHERE key = ? AND value <> ?"
        for (old,) in connection.execute(query, (ROOT, str(root))).fetchall():
            for table, column in (
                ("experiments", "artifact_location"),
                ("runs", "artifact_uri"),
                ("model_versions", "source"),
                ("model_versions", "storage_location"),
                ("logged_models", "artifact_location"),
            ):
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",  # noqa: S608
                    (str(root), len(old) + 1, len(old) + 1, f"{old}/"),
                )
            connection.execute(
                "UPDATE experiment_tags SET value = ? WHERE key = ? AND value = ?", (str(root), ROOT, old)
            )
            print(f"the record's artifacts have moved from {old} to {root}: its paths follow")


@contextmanager
def problems() -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = reason.replace(uri().rstrip("/"), place().rstrip("/"))[:400]  # MLflow tells whole addresses
        raise StoreError(
            f"The MLflow store {place()} failed: {reason} "
            f"(MLFLOW_TRACKING_URI says where it is; unset, it is mlflow.db in the repository's root)"
        ) from error


def package(folder: Path, code: Path, artifacts: Mapping[str, Path], example: Any, requirements: Sequence[str]) -> None:
    """Writes into the new `folder` an MLflow model whose code is the file `code` (models from code: nothing is pickled)
    and a copy of this project's modules; `example` is run through it, and its signature comes from its type hints."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow.pyfunc

    logging.getLogger("mlflow.models").setLevel(logging.WARNING)
    with problems(), warnings.catch_warnings():
        warnings.showwarning = lambda *_, **__: None  # that inputs hinted as Any are not checked: the model checks them
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(code),
            artifacts={name: str(path) for name, path in artifacts.items()},
            code_paths=[str(Path(__file__).parent)],
            input_example=example,
            pip_requirements=list(requirements),
        )


def every(search: Callable[..., Any]) -> list[Any]:
    """All that a search of the store finds: MLflow answers by the page. Raises StoreError."""
    with problems():
        found = [*(page := search())]
        while page.token:
            found += (page := search(page_token=page.token))
        return found


# --- runs in it -------------------------------------------------------------------------------------------------------


def _experiment(client: MlflowClient, name: str) -> str:
    """The id of the experiment `name`, made where there is none."""
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(name):
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)
    artifacts = _artifacts(uri())
    location, tags = (str(artifacts / name), {ROOT: str(artifacts)}) if artifacts else (None, {})
    try:
        return str(client.create_experiment(name, location, tags))
    except MlflowException:  # another process was quicker
        if found := client.get_experiment_by_name(name):
            return str(found.experiment_id)
        raise


def find(run_id: str) -> Stored | None:
    """The run with this id as MLflow holds it; None where the store does not know it."""
    with problems():
        return _find(store(), run_id)


def _create(client: MlflowClient, experiment: str, record: dict[str, Any], **tags: str) -> Stored:
    return client.create_run(
        experiment,
        start_time=_milliseconds(record["started"]),
        tags=tags,
        run_name=record["name"],
    )


def _find(client: MlflowClient, run_id: str) -> Stored | None:
    """The run with this id; None where the store does not know it. One that was deleted comes back out of the bin."""
    from mlflow.exceptions import MlflowException

    try:
        stored = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    if stored.info.lifecycle_stage == "deleted":
        client.restore_run(run_id)
    return stored


def _rebuilt(client: MlflowClient, experiment: str, run_id: str) -> Stored | None:
    """The run that was rebuilt for an id which this store never gave out, if there is one."""
    found = client.search_runs([experiment], f"tags.rebuilt_from = '{run_id}'", max_results=1)
    return found[0] if found else None


def _alive(run_id: str) -> Any:
    """Locks a file that stands for this process' run until it ends, however it ends."""
    folder = _running()
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / run_id).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise StoreError(f"run {run_id} is being trained by another process: wait for it or stop it") from None
    file.truncate(0)
    file.write(place())
    file.flush()
    return file


def _bury(client: MlflowClient, spared: str | None) -> None:
    """Marks as KILLED the runs that were started from this repository and whose process is gone."""
    for path in sorted(_running().glob("*")):
        try:
            file = path.open("r+")
        except FileNotFoundError:  # another training has just buried it
            continue
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if path.name == spared or file.read() not in (place(), ""):
                continue
            stored = _find(client, path.name)
            if stored and stored.info.status == "RUNNING":
                client.set_terminated(path.name, "KILLED")
            path.unlink(missing_ok=True)


def _running() -> Path:
    return repository() / ".dvc" / "tmp" / "runs"


def _log_inputs(client: MlflowClient, run_id: str, inputs: Sequence[Sequence[Any]]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    if inputs:
        client.log_inputs(
            run_id,
            [
                DatasetInput(
                    Dataset(path, md5, "local", json.dumps({"uri": path}), profile=json.dumps({"bytes": size})),
                    [InputTag("mlflow.data.context", _context(path))],
                )
                for path, md5, size in inputs
            ],
        )


def _context(path: str) -> str:
    return next((split for split in ("train", "val", "test") if f"_{split}." in path), "training")


# --- what is recorded -------------------------------------------------------------------------------------------------


def _provenance() -> dict[str, str]:
    tags = {
        "commit": provenance.commit() or "none",
        "code": _code(),
        "packages": provenance.packages(),
        "hardware": provenance.hardware(),
        "dvc.experiment": os.environ.get("DVC_EXP_NAME", ""),
        "dvc.baseline": os.environ.get("DVC_EXP_BASELINE_REV", ""),
        "mlflow.source.name": "train",  # these two have columns of their own in the interface
        "mlflow.source.git.commit": provenance.commit(),
    }
    return {key: value for key, value in tags.items() if value}


def _code() -> str:
    """`clean`, or which files of code are not as in the commit."""
    if not provenance.commit():
        return "not committed"
    changed = provenance.changed_code()
    return "clean" if not changed else f"dirty: {', '.join(changed)}"[:5000]


def _name(params: Mapping[str, Any]) -> str:
    """DVC's name of the experiment, or what is trained and when: `show_tell 2026-02-03 04:05:06`."""
    decoder = params.get("train", {}).get("decoder", "captioner")
    return os.environ.get("DVC_EXP_NAME") or f"{decoder} {time.strftime('%Y-%m-%d %H:%M:%S')}"


def flat(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(dotted key, value as text) of nested settings, as they become params and tags."""
    return ((key, _text(value)) for key, value in _leaves(values))


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in nested mappings that is not a mapping."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
