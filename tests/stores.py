"""Empty MLflow stores, and empty repositories to work in: made in a moment, torn down with the test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages import tracking


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite store: making one takes seconds, copying it nothing. One for all of pytest-xdist's workers."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "template.db"
    with tracking.locked(place):
        if not place.exists():
            partial = place.with_suffix(".partial")
            subprocess.run(
                [
                    sys.executable,
                    "-c",
                    f"from mlflow import MlflowClient as C; C('sqlite:///{partial}').search_experiments()",
                ],
                check=True,
                capture_output=True,
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
            )
            partial.rename(place)
    return place


@pytest.fixture
def repository(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository with an empty store, in which the test works."""
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "repository"
    folder.mkdir()
    shutil.copy(template, folder / "mlflow.db")
    monkeypatch.chdir(folder)
    return folder


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
