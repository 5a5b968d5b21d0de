"""What the record costs a training: the same training with it and without, in turns, by the clock on the wall.

    python tests/benchmarks/bench_tracking.py [ROUNDS] [PROFILE]

From a repository in which `dvc repro features` of the profile (sample) was run; nothing is written there. Every
training is a process of its own, from its start to its end, in a store that is there already. Beside both times stands
how long the training waited for its record in all, which other jobs of the machine blur least.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

WITHOUT = """
import stages.train.__main__ as train
class Nothing:
    id = ""
    def start(self, *arguments): return self
    def log(self, *arguments, **named): pass
    def check(self): pass
    def record(self): return {}
    def __enter__(self): return self
    def __exit__(self, *arguments): pass
train.Recorder = Nothing
train.main()
"""
WITH = """
import time
import stages.train.__main__ as train
from stages.recorder import Recorder
waited = 0.0
def timed(method):
    def call(*arguments, **named):
        global waited
        began = time.perf_counter()
        try:
            return method(*arguments, **named)
        finally:
            waited += time.perf_counter() - began
    return call
for name in ("__init__", "start", "check", "log", "finish"):
    setattr(Recorder, name, timed(getattr(Recorder, name)))
Recorder.id = property(timed(Recorder.id.fget))
train.main()
print(f"waited {waited:.2f}")
"""
WAYS = {"with": WITH, "without": WITHOUT}


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    profile = sys.argv[2] if len(sys.argv) > 2 else "sample"
    repository = Path.cwd()
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    waited: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in ("stages", "params.yaml", "dvc.yaml", "dvc.lock", "pyproject.toml", ".git"):
            (folder / name).symlink_to(repository / name)
        (folder / "data").mkdir()
        (folder / "data" / profile).symlink_to(repository / "data" / profile)
        store = f"from mlflow import MlflowClient as C; C('sqlite:///{folder}/mlflow.db').search_experiments()"
        subprocess.run([sys.executable, "-c", store], check=True, capture_output=True)
        for number in range(2 * rounds):
            way = ("with", "without", "without", "with")[number % 4]
            shutil.rmtree(folder / "models", ignore_errors=True)
            began = time.perf_counter()
            command = [sys.executable, "-c", WAYS[way]]
            said = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
            seconds[way].append(time.perf_counter() - began)
            told = said.splitlines()[-1] if way == "with" else ""
            waited += [float(told.removeprefix("waited "))] if told else []
            print(f"{way:8}{seconds[way][-1]:7.2f} s  {told}", flush=True)
    plain, recorded = median(seconds["without"]), median(seconds["with"])
    cores = len(os.sched_getaffinity(0))
    print(f"without {plain:.2f} s, with {recorded:.2f} s on {cores} cores: {100 * (recorded / plain - 1):+.1f}%")
    print(f"of it waited for the record {median(waited):.2f} s: {100 * median(waited) / recorded:.1f}%")


if __name__ == "__main__":
    main()
