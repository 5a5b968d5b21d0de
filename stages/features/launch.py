"""A stage's work done by several processes: torchrun starts them, a rank tells them apart, one error is told.

`launch: {processes: N}` in params.yaml starts N on this machine. A stage that is started by torchrun itself, on one
machine or many, finds its rank in the environment and joins. With one process, and by default on a machine without
several GPUs, there is no process group: `Ranks()` talks to nobody and costs nothing.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from stages.features.device import choose_device
from stages.files import alone
from stages.rim import MISTAKES, sentence

T = TypeVar("T")

# A process that waits for rank 0 to score, or for another to be started again, is not in trouble; one that died is
# noticed by torchrun, on this machine at once and on others by their broken connections.
TIMEOUT = timedelta(days=1)
DEATH = 3.0  # seconds in which torchrun notices a death and ends the others; then their errors are their own


@dataclass(frozen=True)
class Ranks:
    """This process among those that do a stage's work together. What it says to them is said on the CPU."""

    rank: int = 0
    size: int = 1

    def first(self, work: Callable[[], T]) -> T:
        """On every rank what `work` returns on rank 0; the others wait for it and do nothing."""
        if self.size == 1:
            return work()
        box = [work() if self.rank == 0 else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]

    def after_first(self, work: Callable[[], T]) -> T:
        """Does `work` on rank 0, then on the others: it makes or fetches what they find."""
        if self.rank == 0:
            made = work()
        self.all(None)
        if self.rank > 0:
            made = work()
        return made

    def all(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on every rank."""
        values: list[T] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def sum(self, *values: float) -> list[float]:
        """Each of `values` summed over the ranks, on every rank."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        return sums.tolist()

    def agree(self, fingerprint: str) -> None:
        """Raises ValueError where ranks would work on different things, as machines with different copies do."""
        others = [rank for rank, found in enumerate(self.all(fingerprint)) if found != fingerprint]
        if others:
            raise ValueError(
                f"rank {others[0]} has other data, settings or code than rank {self.rank}: make them equal"
            )

    def seed(self, *numbers: int) -> None:
        """Gives this rank random numbers of its own, a function of `numbers`."""
        torch.manual_seed(int(np.random.SeedSequence([*numbers, self.rank]).generate_state(1)[0]))


def launch(
    stage: str, profile: str, processes: int | Literal["auto"], device: str, work: Callable[[Ranks], None]
) -> None:
    """Has the stage's `work` done by as many processes as are asked for; by this one alone where that is one.

    `auto` is one per CUDA device, else one. In a process that torchrun started, `work` is done as its rank. Raises
    BusyError where the stage is at work on the same profile already, as it is after a kill of `dvc` alone.
    """
    if {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        join(device, work)
        return
    devices = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    count = max(1, devices) if processes == "auto" else processes
    tmp = Path(".dvc") / "tmp"  # where DVC has its own locks; without DVC nobody starts a stage again that still runs
    busy = f"stage {stage} of profile {profile} is being run"
    with alone(tmp / f"{profile}-{stage}.lock", busy) if tmp.parent.is_dir() else nullcontext():
        if count > 1:
            start(stage, count)
        else:
            work(Ranks())


def start(stage: str, processes: int) -> None:
    """Runs `python -m stages.STAGE` as `processes` ranks under torchrun; when one dies, all end, with its error.

    A user's mistake on any rank is raised as ValueError; any other error ends with that rank's traceback.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException  # here: they take a second
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // processes)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")  # seconds from Ctrl-C until all have saved
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.disable(logging.ERROR)  # torchrun's own report of what is told here
    with tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=stage,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",  # any free port
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(logs),
        )
        try:
            elastic_launch(config, sys.executable)("-m", f"stages.{stage}")
        except SignalException:
            raise KeyboardInterrupt from None
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            message: object = failure.message
            if failure.exitcode == 130:
                raise KeyboardInterrupt from None
            if not isinstance(message, dict):
                raise ValueError(f"rank {rank} of {processes} died: {message}. Run again: it goes on") from None
            told = str(message["message"])
            if told.startswith("ValueError: ") and not os.environ.get("TRACEBACK"):
                raise ValueError(told.removeprefix("ValueError: ")) from None
            sys.exit(f"rank {rank} of {processes}:\n{message['extraInfo']['py_callstack']}")


def join(device: str, work: Callable[[Ranks], None]) -> None:
    """Does `work` as the rank that the environment says, in a process that torchrun started."""
    from torch.distributed.elastic.multiprocessing.errors import record

    end_with(os.getppid())
    try:
        record(_as_rank)(device, work)
    except Exception:
        if "TORCHELASTIC_ERROR_FILE" in os.environ:
            sys.exit(1)  # it is recorded, and told once by who started this process
        raise


def _as_rank(device: str, work: Callable[[Ranks], None]) -> None:
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    try:
        chosen = choose_device(device)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        if ranks.size > 1:  # what ranks say to each other goes by gloo; nccl has the gradients
            dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo", timeout=TIMEOUT)
        work(ranks)
        ranks.all(None)  # nobody leaves while another needs it
    except MISTAKES as error:
        raise ValueError(sentence(error)) from error
    except RuntimeError:  # torch's word for a lost connection, among others
        time.sleep(DEATH)
        raise
    if ranks.size > 1:
        dist.destroy_process_group()


def end_with(parent: int) -> None:
    """Ends this process when its parent is gone: nobody would end it when another rank dies, or start it only once."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
