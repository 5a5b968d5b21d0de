"""Several processes do what one does: same features, same losses, one writer, one error; any number goes on."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import pytest
import test_features
import tiny
import torch
import torch.distributed as dist
import yaml
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from stages import params
from stages.features.launch import Ranks
from stages.features.store import Features
from stages.fetch.captions import Picture
from stages.train import objectives
from stages.train.batches import Batch, Examples, Source
from stages.train.decoders import DECODERS, Decoder, Shape, build
from stages.train.loop import Training
from stages.train.objectives import CrossEntropy, Forward, Objective, Reward, SelfCritical, Step
from stages.vocab.vocabulary import END, SPECIALS, Vocabulary

T = TypeVar("T")
CPU = torch.device("cpu")
WORDS = ("a", "dog", "cat", "runs", "sleeps", "on", "grass")
CASES = [(decoder, kind) for decoder in DECODERS for kind in (CrossEntropy, SelfCritical)]

# Notes what every rank opens for writing, connects to and imports of mlflow; loaded by Python itself at its start.
AUDIT = """
import os, sys
if "RANK" in os.environ:
    log = open(os.environ["AUDIT"] + "/" + os.environ["RANK"], "a", buffering=1)
    print(os.getpid(), file=log)
    def note(event, args):
        if event == "open" and isinstance(args[0], str) and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            print("writes", os.path.abspath(args[0]), file=log)
        elif event in ("sqlite3.connect", "os.rename", "os.mkdir", "os.remove"):
            print("writes", os.path.abspath(args[0]), file=log)
        elif event == "import" and args[0] == "mlflow":
            print("imports mlflow", file=log)
    sys.addaudithook(note)
"""


# --- training, rank by rank ------------------------------------------------------------------------------------------


class Enough(Exception):
    """Two epochs are done and saved."""


class InMemory(Source):
    """Features that lie in memory."""

    def __init__(self, grid: Tensor | None, pooled: Tensor) -> None:
        object.__setattr__(self, "values", (pooled, grid))
        object.__setattr__(self, "mirror", False)

    def read(self, rows, mirrored=None):  # type: ignore[no-untyped-def]
        return tuple(part[list(rows)] if part is not None else None for part in self.values)  # type: ignore[attr-defined]


class Fixed(SelfCritical):
    """Its captions are a function of picture and number, so that it makes no difference which rank draws them."""

    def step(self, decoder: Decoder, batch: Batch, forward: Forward | None = None) -> Step:
        pictures = torch.tensor([picture for picture, _ in batch.groups])
        words = len(SPECIALS) + (3 * pictures[:, None] + torch.arange(self.samples)) % len(WORDS)  # (P, K)
        written = torch.stack([words, words.flip(1), torch.full_like(words, END)], -1)
        with mock.patch.object(objectives, "sample", return_value=written):
            return super().step(decoder, batch, forward)


def training(decoder: str, kind: type[Objective], ranks: Ranks, checkpoint: Path) -> Training:
    """37 pictures in batches of 9: the last batch has one picture, and leaves a second rank without any."""
    generator = np.random.default_rng(3)
    vocabulary = Vocabulary((*SPECIALS, *WORDS))
    texts = [" ".join(generator.choice(WORDS, generator.integers(2, 7))) for _ in range(3 * 37)]
    pictures = [Picture(i, f"{i}.jpg", 1, 1, tuple(texts[3 * i : 3 * i + 1 + i % 3])) for i in range(37)]
    captions = [[vocabulary.encode(text) for text in picture.captions] for picture in pictures]
    grid = torch.from_numpy(generator.normal(size=(37, 4, 12)).astype(np.float32))
    source = InMemory(grid if DECODERS[decoder].grid else None, grid.mean(1))
    examples = Examples(list(range(37)), captions)
    learned: Objective
    if kind is CrossEntropy:
        learned = CrossEntropy(examples, source, CPU, torch.float32, captions=9, label_smoothing=0.1)
    else:
        reward = Reward(pictures, vocabulary)
        learned = Fixed(examples, source, CPU, torch.float32, reward, pictures=9, samples=3, max_words=3)
    torch.manual_seed(1)
    plan = tiny.settings(epochs=3, average=0.9).plan()
    made = build(Shape(decoder, len(vocabulary.words), 12, 16, 16))
    return Training(made, learned, plan, device=CPU, checkpoint=checkpoint, ranks=ranks)


def words_of_people(learned: Training) -> CrossEntropy:
    """Cross-entropy over the same examples, whatever was learned from them."""
    return CrossEntropy(learned.objective.examples, learned.objective.source, CPU, torch.float32)


def train(learning: Training, enough: int) -> None:
    def log(row: dict[str, float], *_: object) -> None:
        if row["epoch"] == enough:
            raise Enough

    learning.train(lambda _: ({}, float(learning.progress.epoch)), log)


def two_epochs(rank: int, folder: Path) -> None:
    """One of two ranks; writes the weights that it holds after two epochs."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for decoder, kind in CASES:
        name = f"{decoder}_{kind.__name__}"
        learning = training(decoder, kind, Ranks(rank, 2), folder / f"{name}.pt")
        with contextlib.suppress(Enough):
            train(learning, 2)
        torch.save(learning.decoder.state_dict(), folder / f"{name}_{rank}.weights")
    dist.destroy_process_group()


def test_two_ranks_learn_what_one_does_and_one_goes_on_where_they_were(tmp_path: Path) -> None:
    """Losses within 1e-5 of those of one process with the same batches, for both decoders and objectives; two epochs by
    two ranks, then the third by one."""
    spawn(two_epochs, (tmp_path,), nprocs=2)
    for decoder, kind in CASES:
        alone = training(decoder, kind, Ranks(), tmp_path / "alone.pt")
        (tmp_path / "alone.pt").unlink(missing_ok=True)
        train(alone, 99)
        name = f"{decoder}_{kind.__name__}"
        weights = [torch.load(tmp_path / f"{name}_{rank}.weights", weights_only=True) for rank in range(2)]
        for key, value in weights[0].items():
            assert torch.equal(value, weights[1][key]), "both ranks hold the same weights, to the bit"
        gone_on = training(decoder, kind, Ranks(), tmp_path / f"{name}.pt")
        assert gone_on.resume()
        assert (gone_on.progress.epoch, gone_on.progress.captions) == (2, 2 * alone.progress.captions // 3)
        train(gone_on, 99)
        column = kind.column
        losses, expected = ([row[column] for row in made.rows] for made in (gone_on, alone))
        assert losses == pytest.approx(expected, rel=1e-5), name
        # Rewards of fixed captions never change; what is learned from them shows in how likely people's words become.
        fresh = training(decoder, kind, Ranks(), tmp_path / "alone.pt")
        found, wanted, before = (
            words_of_people(made).mean_loss(made.decoder.eval()) for made in (gone_on, alone, fresh)
        )
        assert found == pytest.approx(wanted, rel=1e-4), name
        assert before != pytest.approx(wanted, rel=1e-2), "there was something to learn"


# --- features --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OnlyThis(Ranks):
    """A rank whose others never came."""

    def first(self, work: Callable[[], T]) -> T:
        return work()

    def after_first(self, work: Callable[[], T]) -> T:
        return work()

    def all(self, value: T) -> list[T]:
        return [value]


def stage(name: str, root: Path, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"stages.{name}"],
        cwd=root,
        env={key: value for key, value in tiny.environment(root).items() if key != "TRACEBACK"} | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_features_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    """Also when the work was begun by the third of three ranks, which died, and where pictures cannot be read."""
    torch.set_num_threads(1)
    rim = importlib.import_module("stages.features.__main__")
    roots = {}
    for processes in (1, 2):
        small: dict[str, Any] = {"batch": 2, "workers": 0, "mirror": False, "allow_unreadable": 2}
        root = test_features.make_project(tmp_path / str(processes), **small, launch={"processes": processes})
        path = root / "data/tiny/pictures/all.zip"
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content[:100] if name.split(".")[0] in ("2", "5") else content)
        roots[processes] = root
    with contextlib.chdir(roots[1]):
        rim.main()
    with contextlib.chdir(roots[2]):
        rim.encode("tiny", params.read("features")[1], OnlyThis(2, 3))
    begun = roots[2] / "data/tiny/features.partial/journal_2.json"
    assert '"train"' in begun.read_text()
    process = stage("features", roots[2])
    told, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert told.count("unreadable: train picture 10") == 2, "told once, by rank 0"
    assert test_features.hashes(roots[2]) == test_features.hashes(roots[1])
    unreadable = Features(roots[2] / "data/tiny/features").index["unreadable"]
    assert [failure["id"] for failure in unreadable] == [102, 105]


# --- the stage -------------------------------------------------------------------------------------------------------


def until(process: subprocess.Popen[str], line: str) -> None:
    """Reads what the process says until a line begins so."""
    assert process.stdout is not None
    for said in process.stdout:
        if said.startswith(line):
            return
    raise AssertionError(f"it ended before {line!r}: {process.communicate()}")


def test_stopped_killed_and_gone_on_with_by_another_number(tmp_path: Path, template: Path) -> None:
    own = {
        "epochs": 1,
        "pictures": 8,
        "samples": 2,
        "learning_rate": 1e-3,
        "beta2": 0.99,
        "sharpen": 1.5,
        "dropout": 0.0,
    }
    more = {"epochs": 40, "checkpoint_minutes": 1e-9, "self_critical": own}
    root = tiny.make_project(tmp_path / "root", template, **more, launch={"processes": 2})
    (tmp_path / "sitecustomize.py").write_text(AUDIT)
    path = f"{tmp_path}{os.pathsep}{tiny.REPOSITORY}"
    audited = {"AUDIT": str(tmp_path), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}

    process = stage("train", root, **audited)
    until(process, "epoch  2")
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert rest.count("stopped and saved: `dvc repro` goes on from here") == 1
    assert "Traceback" not in errors

    first, second = ((tmp_path / str(rank)).read_text().splitlines() for rank in range(2))
    inside = [line for line in second if line.startswith(f"writes {root}")]
    assert inside == [], "rank 0 alone writes"
    assert "imports mlflow" not in second, "and keeps the record"
    assert any(line.startswith(f"writes {root}/models/tiny/") for line in first)
    assert any(line.startswith(f"writes {root}/mlflow.db") for line in first)

    for rank in range(2):
        (tmp_path / str(rank)).unlink()
    process = stage("train", root, **audited)
    until(process, "goes on after epoch")
    until(process, "epoch")
    os.kill(int((tmp_path / "1").read_text().split()[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert errors == "rank 1 of 2 died: Signal 9 (SIGKILL) received by PID {}. Run again: it goes on\n".format(
        (tmp_path / "1").read_text().split()[0]
    )
    assert not (root / "models/tiny/captioner.safetensors").exists()

    block = yaml.safe_load((root / "params.yaml").read_text())
    block["tiny"]["train"]["launch"]["processes"] = 1
    (root / "params.yaml").write_text(yaml.safe_dump(block))
    process = stage("train", root)
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    gone_on = re.search(r"goes on after epoch (\d+), step", said)
    assert gone_on
    assert int(gone_on[1]) >= 2
    assert (root / "models/tiny/captioner.safetensors").exists()
    assert len((root / "reports/tiny/training.csv").read_text().splitlines()) == 42, "both parts, every epoch once"


def test_what_is_wrong_on_every_rank_is_told_once(tmp_path: Path, template: Path) -> None:
    root = tiny.make_project(tmp_path, template, launch={"processes": 2})
    (root / "data/tiny/vocab.json").unlink()
    process = stage("train", root)
    _, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (1, "data/tiny/vocab.json: No such file or directory\n")


def test_workers_end_with_what_started_them(tmp_path: Path, template: Path) -> None:
    """kill -9 of the command must not leave ranks that train on, beside those of the next start."""
    root = tiny.make_project(tmp_path / "root", template, epochs=1000, patience=1000, launch={"processes": 2})
    (tmp_path / "sitecustomize.py").write_text(AUDIT)
    path = f"{tmp_path}{os.pathsep}{tiny.REPOSITORY}"
    process = stage("train", root, AUDIT=str(tmp_path), PYTHONPATH=path, PYTHONUNBUFFERED="1")
    until(process, "epoch  1")
    process.kill()
    pids = [int((tmp_path / str(rank)).read_text().split()[0]) for rank in range(2)]
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in pids)
    process.communicate()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.gpu
def test_two_gpus_learn_what_one_does(tmp_path: Path, template: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two CUDA devices, this machine has {torch.cuda.device_count()}")
    losses = []
    for processes in (1, 2):
        more = {"dropout": 0.0, "device": "cuda", "launch": {"processes": processes}}
        root = tiny.make_project(tmp_path / str(processes), template, **more)
        process = stage("train", root)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        rows = (root / "reports/tiny/training.csv").read_text().splitlines()[1:]
        losses.append([float(row.split(",")[1]) for row in rows])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
