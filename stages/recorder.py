"""The record of a training, kept by a process of its own: train neither waits for MLflow nor shares its interpreter.

`import mlflow` and opening its store take seconds of one core; here they pass while train loads its features and learns
its first batches. `tracking` says what becomes of a store that cannot be opened or fails later; a recorder that dies is
to train as a store that fails.

The two speak JSON, a line each: `start`'s arguments, rows and the end go to this process' stdin, what came of them
comes back on its stdout. It ends with the process that started it, which may be killed: its stdin is then at its end.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from stages import tracking
from stages.tracking import Status, StoreError

SIGNALS = {signal.SIGINT, signal.SIGTERM}  # meant for the training, which decides how it and its record end


class Recorder:
    """Train's side: the run of the model that is being trained, with `tracking.Run`'s methods as far as train needs
    them. To be made as early as possible, since its process then loads MLflow."""

    def __init__(self) -> None:
        self._began = time.time()
        self._opened: dict[str, Any] | None = None
        self._rows: list[dict[str, Any]] = []
        self._ended = self._lost = False
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # which a child inherits
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "stages.recorder"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def start(self, profile: str, params: Mapping[str, Any], device: str, run_id: str | None = None) -> Self:
        """Has the run opened, as `tracking.start` does; returns at once where the store looks as if it can be.

        Raises StoreError when the store cannot be opened.
        """
        self._say("start", os.getpid(), profile, params, device, run_id, self._began)
        if not tracking.looks_whole():
            self._open()
        return self

    def check(self) -> None:
        """Raises StoreError where MLflow has said by now that the store cannot be opened. Waits for nothing."""
        assert self._process.stdout
        if self._opened is None and select.select([self._process.stdout], [], [], 0)[0]:
            self._open()

    @property
    def id(self) -> str:
        """The run's id; waits until it is open. Raises StoreError when it could not be opened."""
        return str(self._open()["run_id"])

    def log(self, metrics: Mapping[str, float | None], step: int) -> None:
        """Writes one point of each curve, as `Run.log`, without waiting for it."""
        self._rows.append({"step": step, "at": time.time(), **{k: v for k, v in metrics.items() if v is not None}})
        self._say("log", metrics, step)

    def finish(self, status: Status = "FINISHED") -> None:
        """Ends the run and waits until that is written; a second call is idle."""
        if self._ended:
            return
        self._ended = True
        self._say("finish", status)
        answers = self._process.communicate()[0].splitlines()
        if answers:
            self._opened = dict(json.loads(answers[-1]))

    def record(self) -> dict[str, Any]:
        """All that the run holds, for models/P/run.json; as `Run.record`. Complete after `finish`."""
        opened = self._open()
        if "ended" in opened:
            return opened
        there = {row["step"] for row in opened["metrics"]}
        rows = [row for row in self._rows if row["step"] not in there]
        return {**opened, "metrics": [*opened["metrics"], *rows], "ended": time.time()}

    def _open(self) -> dict[str, Any]:
        if self._opened is None:
            self._opened = self._hear()
        if self._opened is None:
            raise StoreError(f"the process that records the run has ended with {self._process.wait()}: run again")
        if "error" in self._opened:
            raise StoreError(self._opened["error"])
        return self._opened

    def _hear(self) -> dict[str, Any] | None:
        """The next answer; None where the recorder is gone."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        return dict(json.loads(line)) if line else None

    def _say(self, *what: Any) -> None:
        if self._lost:
            return
        assert self._process.stdin
        try:
            print(json.dumps(what), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            self._lost = True
            if self._opened and "error" not in self._opened:
                tracking.complain("the process that records it is gone")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.finish(tracking.status_after(kind))


def main() -> None:
    """The recorder's side."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what anybody prints is for people, not for train

    def answer(what: Mapping[str, Any]) -> None:
        print(json.dumps(what), file=answers, flush=True)

    try:
        tracking.store()
        begin = sys.stdin.readline()
        if not begin:
            return
        _, parent, *arguments = json.loads(begin)
        if parent != os.getppid():  # it was killed while MLflow was loaded: nobody works at such a run
            return
        run = tracking.start(*arguments)
    except StoreError as error:
        answer({"error": str(error)})
        return
    answer(run.record())
    for line in sys.stdin:
        verb, *arguments = json.loads(line)
        if verb == "log":
            run.log(*arguments)
        else:
            run.finish(*arguments)
            answer(run.record())
            os._exit(0)  # what Python tidies up at its end takes longer than all this, and train waits


if __name__ == "__main__":
    main()
