"""A user's mistake ends in one message and exit status 1; ours keep their traceback."""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages import rim

REPOSITORY = Path(__file__).resolve().parent.parent


def broken(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("x.zip has 3 bytes: fetch it again"), "x.zip has 3 bytes: fetch it again"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.csv"), "x.csv: No such file or directory"),
        (OSError("the disk is full"), "the disk is full"),
        (KeyboardInterrupt(), 130),
    ],
)
def test_mistakes_of_users_are_one_message(error: BaseException, code: object) -> None:
    with pytest.raises(SystemExit) as caught:
        rim.run(lambda: broken(error))
    assert caught.value.code == code


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), AssertionError("x")])
def test_mistakes_of_ours_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        rim.run(lambda: broken(error))


def test_a_traceback_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEBACK", "1")
    with pytest.raises(ValueError, match="x"):
        rim.run(lambda: broken(ValueError("x")))


def test_a_stage_run_in_the_wrong_place_says_so(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "stages.fetch"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    expected = (1, "", "params.yaml is not here: run from the repository's root, where it lies\n")
    assert (ran.returncode, ran.stdout, ran.stderr) == expected


@pytest.mark.parametrize("name", ["fetch", "vocab", "features", "train"])
def test_a_stage_has_a_help_and_takes_nothing_else(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    for argument, code in (("--help", 0), ("--profile", 2)):
        command = [sys.executable, "-m", f"stages.{name}", argument]
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == code
        assert (ran.stdout or ran.stderr).startswith(f"usage: python -m stages.{name} [-h]")


@pytest.mark.parametrize(
    "command", ["caption", "compare", "evaluate.__main__", "lineage", "register.__main__", "release"]
)
def test_every_command_has_a_help(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Where nothing is yet that it would work on."""
    main = importlib.import_module(f"stages.{command}").main
    monkeypatch.setattr("sys.argv", [command, "--help"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: ")
    assert "--" in said.partition("options:")[2]
