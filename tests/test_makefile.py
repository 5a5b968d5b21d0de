"""The Makefile's promises: it installs once, again when the lock changes, and says in a sentence what is missing.

Nothing is installed here: uv and the tools are stand-ins that write down how they were called.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs make as from a plain terminal: these tests may themselves have been started by make."""
    plain = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run(["make", *words], cwd=folder, capture_output=True, text=True, check=False, env=plain)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone with an environment whose tools append their name and words to calls.txt."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path)
        os.utime(tmp_path / name, (1e9, 1e9))
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python").symlink_to(sys.executable)
    for tool in ("uv", "dvc", "ruff", "mypy", "pytest", "mlflow"):
        (binaries / tool).write_text(f'#!/bin/sh\necho {tool} "$@" OMP=$OMP_NUM_THREADS PATH=$PATH >> calls.txt\n')
        (binaries / tool).chmod(0o755)
        os.utime(binaries / tool, (1e9 + 1, 1e9 + 1))
    return tmp_path


def calls(clone: Path) -> list[str]:
    """The calls since the last look."""
    file = clone / "calls.txt"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return lines


def test_it_installs_once_and_again_when_the_lock_changes(clone: Path) -> None:
    assert make(clone, "run").returncode == 0
    assert [line.split()[0:3] for line in calls(clone)] == [
        ["uv", "pip", "sync"],
        ["uv", "pip", "install"],
        ["dvc", "repro", "OMP="],
    ]
    assert make(clone, "run").returncode == 0
    assert [line.split()[0] for line in calls(clone)] == ["dvc"]
    (clone / "requirements.lock").touch()
    assert make(clone, "run").returncode == 0
    assert [line.split()[0] for line in calls(clone)] == ["uv", "uv", "dvc"]


def test_an_installation_that_was_cut_short_is_taken_up_again(clone: Path) -> None:
    uv = clone / ".venv/bin/uv"
    good = uv.read_text()
    uv.write_text('#!/bin/sh\ncase "$2" in install) exit 1;; esac\n')
    assert make(clone, "run").returncode != 0
    uv.write_text(good)
    assert make(clone, "run").returncode == 0
    assert [line.split()[0] for line in calls(clone)] == ["uv", "uv", "dvc"]


def test_stages_run_with_the_python_of_the_environment(clone: Path) -> None:
    make(clone, "run")
    assert f"PATH={clone}/.venv/bin:" in calls(clone)[-1]


def test_each_worker_has_one_thread_unless_the_user_says_otherwise(clone: Path) -> None:
    make(clone, "test")
    assert [line.split(" OMP=")[0] for line in calls(clone)[2:]] == [
        "ruff check", "ruff format --check", "mypy", "pytest -n 2 --dist loadfile --no-loadscope-reorder",
    ]  # fmt: skip
    make(clone, "test", "JOBS=4", OMP_NUM_THREADS="3")
    assert calls(clone)[-1].startswith("pytest -n 4 --dist loadfile --no-loadscope-reorder OMP=3 ")


@pytest.mark.parametrize("tool", ["ruff", "mypy", "pytest"])
def test_a_failure_of_any_tool_is_a_failure(clone: Path, tool: str) -> None:
    (clone / ".venv/bin" / tool).write_text("#!/bin/sh\nexit 1\n")
    assert make(clone, "test").returncode != 0


def test_a_lock_that_does_not_fit_is_told(clone: Path) -> None:
    assert make(clone, "check").returncode == 0
    (clone / ".venv/bin/dvc").write_text("#!/bin/sh\necho \"Running stage 'train':\"\n")
    told = make(clone, "check")
    assert told.returncode != 0
    assert "dvc.lock does not fit" in told.stderr
    (clone / ".venv/bin/dvc").write_text("#!/bin/sh\necho broken; exit 1\n")
    told = make(clone, "check")
    assert (told.returncode != 0, "broken" in told.stdout) == (True, True)


def python(folder: Path, fails_at: str) -> str:
    """A python that fails where its words contain `fails_at`."""
    file = folder / "python"
    file.write_text(f'#!/bin/sh\ncase "$*" in *"{fails_at}"*) exit 1;; esac\nexec "{sys.executable}" "$@"\n')
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize(
    ("fails_at", "sentence"),
    [
        ("version_info", "is not Python 3.11 or 3.12: install one, or name it"),
        ("ensurepip", "apt-get install python3-venv"),
    ],
)
def test_a_python_that_will_not_do_is_told(tmp_path: Path, fails_at: str, sentence: str) -> None:
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    named = python(tmp_path, fails_at)
    told = make(tmp_path, "run", f"PYTHON={named}")
    assert told.returncode != 0
    assert sentence in told.stderr
    assert named in told.stderr
    assert not (tmp_path / ".venv").exists()


def test_no_python_at_all_is_told(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    told = make(tmp_path, "run", "PYTHON=python-of-another-world")
    assert told.returncode != 0
    assert 'PYTHON = "python-of-another-world" is not Python 3.11 or 3.12' in told.stderr


def test_an_environment_of_another_python_is_told(clone: Path) -> None:
    (clone / ".venv/bin/python").unlink()
    (clone / ".venv/bin/python").write_text("#!/bin/sh\nexit 1\n")
    (clone / ".venv/bin/python").chmod(0o755)
    told = make(clone, "run")
    assert told.returncode != 0
    assert ".venv is not of Python 3.11 or 3.12: delete it" in told.stderr
    assert calls(clone) == []


def test_help_lists_every_command() -> None:
    listed = re.findall(r"^make (\w+)", make(REPOSITORY, "help").stdout, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert sorted(listed) == sorted(phony[1].split())
