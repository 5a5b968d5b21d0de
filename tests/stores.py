"""Empty MLflow stores, and empty repositories to work in: made in a moment, torn down with the test."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from stages import tracking


@contextmanager
def once(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[tuple[Path, bool]]:
    """A place for something that is costly to make, and whether it is still to be made; one for all of pytest-xdist's
    workers, who wait here for the first. What it is made as must be renamed to the place when it is whole."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with tracking.locked(place):
        yield place, not place.exists()


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite store: making one takes seconds, copying it nothing."""
    with once(tmp_path_factory, "template.db") as (place, missing):
        if missing:
            partial = place.with_suffix(".partial")
            code = f"from mlflow import MlflowClient as C; C('sqlite:///{partial}').search_experiments()"
            more = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=more)
            partial.rename(place)
    return place


@pytest.fixture
def repository(tmp_path: Path, template: Path) -> Iterator[Path]:
    """An empty repository with an empty store, in which the test works."""
    folder = tmp_path / "repository"
    folder.mkdir()
    with fresh(folder, template):
        yield folder


@contextmanager
def fresh(folder: Path, template: Path | None = None) -> Iterator[None]:
    """Works in `folder`, with an empty store there where `template` is given, and with nothing said in the environment
    about stores and experiments."""
    if template is not None:
        shutil.copy(template, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVC_STAGE"):
            patch.delenv(name, raising=False)
        patch.chdir(folder)
        yield


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout


def twice(imports: str, code: str) -> str:
    """Runs `code` in two processes at once, in the current folder, and returns what they print. They are forks of one
    that has done the imports, the most of its seconds, and nothing else. Fails unless both end well."""
    forks = f"""
import os, sys
{imports}
children = []
for _ in range(2):
    if not (child := os.fork()):
        status = 1
        try:
            {code}
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        os._exit(status)
    children.append(child)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""
    done = subprocess.run([sys.executable, "-c", forks], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def serving(folder: Path, *command: str, ready: str, **environment: str) -> Iterator[str]:
    """Runs a server in `folder`, on a free port of loopback that replaces PORT in its command; yields its address when
    it answers at `ready`. What it says is in the error where it does not."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    address, log = f"http://127.0.0.1:{port}", folder / f"server-{port}.log"
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with log.open("w") as file:
        process = subprocess.Popen(
            [port if word == "PORT" else word for word in command],
            cwd=folder,
            env={**os.environ, **quiet, "PATH": path, **environment},
            stdout=file,
            stderr=file,
            start_new_session=True,  # servers start workers: the whole group is ended below
        )
    try:
        until = time.monotonic() + 150
        while process.poll() is None and time.monotonic() < until:
            with suppress(OSError), urllib.request.urlopen(address + ready, timeout=5):
                break
            time.sleep(0.2)
        else:
            raise AssertionError(f"{' '.join(command)} does not answer: {log.read_text()[-3000:]}")
        yield address
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
