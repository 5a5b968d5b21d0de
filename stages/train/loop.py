"""The training loop: one object that holds everything a run is, so that it can be saved at any step and go on.

Several ranks hold the same weights and take the same steps, each with its share of a batch; rank 0 scores and saves.
What is learned from is an objective (objectives.py); how far and how fast the weights move is a plan (settings.py).
"""

from __future__ import annotations

import copy
import inspect
import io
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from stages.features.launch import Ranks
from stages.files import whole
from stages.train.batches import Batch
from stages.train.decoders import Decoder
from stages.train.objectives import Objective, TeacherForcing
from stages.train.settings import Plan

Row = dict[str, float]  # one epoch of reports/P/training.csv
Score = Callable[[Decoder], tuple[dict[str, float], float]]  # decoder -> columns for the row, and what selects an epoch


class Stopped(KeyboardInterrupt):
    """The user asked to stop (Ctrl-C, SIGTERM); the run is saved and goes on when it is started again."""


@dataclass
class Progress:
    """How far a run is. Plain values and tensors only, so that it is saved and loaded without pickled code."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the epoch under way
    total: float = 0.0  # of what the objective reports, in the epoch under way
    weight: int = 0  # what it is divided by
    best_score: float = -math.inf
    best_epoch: int = 0
    captions: int = 0  # trained on, over all starts


class Training:
    """A decoder, its optimiser and how far they are.

    `train` runs to the end. `checkpoint`, where given, is written every epoch and every `checkpoint_minutes`, and read
    when it is there: a killed run ends with the very weights of one that was not (to the bit on a CPU with the same
    number of threads and ranks; other ranks go on from the same step, with other random numbers).
    """

    def __init__(
        self,
        decoder: Decoder,
        objective: Objective,
        plan: Plan,
        *,
        device: torch.device,
        compiled: bool = False,
        checkpoint: Path | None = None,
        fingerprint: str = "",
        ranks: Ranks | None = None,
        noted: Callable[[], dict[str, Any]] = dict,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.ranks = ranks or Ranks()
        self.decoder = decoder.to(device)
        self.objective, self.plan, self.device = objective, plan, device
        self.checkpoint, self.fingerprint = checkpoint, fingerprint
        self.forward: Any = TeacherForcing(self.decoder)
        if compiled:
            self.forward = torch.compile(self.forward)
        if self.ranks.size > 1:
            self.forward = DistributedDataParallel(self.forward)
        self.optimizer = Uncompiled(
            self.decoder.parameter_groups(),
            lr=plan.learning_rate,
            betas=(0.9, plan.beta2),
            weight_decay=plan.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )
        self.averaged = copy.deepcopy(self.decoder).requires_grad_(False) if plan.average else None
        self.best: dict[str, Tensor] = {}
        self.progress = Progress()
        self.rows: list[Row] = []
        self.noted = noted  # what the caller has saved along (the id of the run in the record, for one)
        self.check = check  # called before each step; what it raises ends the training there, unsaved
        self.notes: dict[str, Any] = {}  # what was saved along in the checkpoint that this goes on from
        self.steps_per_epoch = len(objective.batches(generator(plan, 0)))

    def follow(self, earlier: Training) -> None:
        """Begins where `earlier` ended: with its best weights, which stay the best until an epoch here is better."""
        self.best, self.rows = dict(earlier.best), list(earlier.rows)
        self.progress.best_score = earlier.progress.best_score
        self.progress.captions = earlier.progress.captions

    # --- going on ---------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes everything the run is to `checkpoint`, whole or not at all. Every rank calls it at the same step."""
        cuda = self.device.type == "cuda"
        random = [torch.get_rng_state(), *([torch.cuda.get_rng_state(self.device)] if cuda else [])]
        every_random = self.ranks.all(random)
        if self.checkpoint is None or self.ranks.rank > 0:
            return
        state = {
            "fingerprint": self.fingerprint,
            "decoder": self.decoder.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged else None,
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "progress": vars(self.progress),
            "rows": self.rows,
            "notes": self.noted(),
            "random": every_random,
        }
        buffer = io.BytesIO()  # written from here: of a full disk torch says only that a position was not expected
        torch.save(state, buffer)
        with whole(self.checkpoint) as partial:
            partial.write_bytes(buffer.getbuffer())

    def resume(self) -> bool:
        """Goes on from `checkpoint` where it is of the same run (same data, settings and code); says whether it did."""
        state = self.ranks.first(self.saved)
        if state is None:
            return False
        self.decoder.load_state_dict(state["decoder"])
        if self.averaged:
            self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.rows, self.notes = state["best"], state["rows"], state["notes"]
        self.progress = Progress(**state["progress"])
        if len(state["random"]) != self.ranks.size:
            self.ranks.seed(self.plan.seed, self.progress.epoch, self.progress.step)
            return True
        on_cpu, *on_cuda = state["random"][self.ranks.rank]
        torch.set_rng_state(on_cpu)
        for each in on_cuda:
            torch.cuda.set_rng_state(each, self.device)
        return True

    def saved(self) -> dict[str, Any] | None:
        """What `checkpoint` holds of this very run."""
        if self.checkpoint is None or not self.checkpoint.is_file():
            return None
        state: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if state["fingerprint"] == self.fingerprint:
            return state
        print(f"{self.checkpoint} is of other data, settings or code: training begins anew", flush=True)
        return None

    # --- learning ---------------------------------------------------------------------------------------------------

    def train(self, score: Score, log: Callable[[Row, float, bool], None]) -> Decoder:
        """Trains until the epochs are over or val has not become better for `patience` of them, and returns the best;
        if the plan keeps the last, trains all epochs and returns that.

        After each epoch `score` judges the decoder, on rank 0 alone; `log` gets (row, captions per second, whether it
        is the best yet).
        Raises Stopped when the user asks to stop, and ValueError when the loss is no longer a number.
        """
        with asked_to_stop() as stop:
            while self.progress.epoch < self.plan.epochs and not self.out_of_patience():
                started, captions = time.monotonic(), self.progress.captions
                row = self.one_epoch(stop)
                speed = (self.progress.captions - captions) / (time.monotonic() - started)
                judged = self.judged()
                columns, value = self.ranks.first(partial(score, judged))
                row |= columns
                self.progress.epoch += 1
                self.progress.step, self.progress.total, self.progress.weight = 0, 0.0, 0
                if kept := value > self.progress.best_score or self.plan.keep == "last":
                    self.progress.best_score, self.progress.best_epoch = value, self.progress.epoch
                    self.best = {name: part.detach().cpu().clone() for name, part in judged.state_dict().items()}
                self.rows.append(row)
                self.save()
                log(row, speed, kept)
                if self.ranks.sum(stop())[0]:
                    self.stopped()
        best = copy.deepcopy(self.decoder).cpu()
        best.load_state_dict(self.best)
        return best.eval()

    def out_of_patience(self) -> bool:
        """Whether the last `patience` epochs brought nothing better."""
        return self.progress.epoch - self.progress.best_epoch >= self.plan.patience

    def judged(self) -> Decoder:
        """The decoder whose captions count: the average over steps where that is asked for, else the last."""
        return (self.averaged or self.decoder).eval()

    def one_epoch(self, stop: Callable[[], bool]) -> Row:
        """One pass, from `progress.step` on; returns epoch, what the objective reports, and learning rate."""
        plan, progress = self.plan, self.progress
        batches = self.objective.batches(generator(plan, progress.epoch))
        self.decoder.train()
        bar = tqdm(
            total=sum(self.objective.captions(batch) for batch in batches),
            initial=sum(self.objective.captions(batch) for batch in batches[: progress.step]),
            desc=f"epoch {progress.epoch + 1}/{plan.epochs}",
            unit="captions",
            disable=None if self.ranks.rank == 0 else True,
        )
        saved = time.monotonic()
        # Of the last step that was taken: none may be left where a run goes on that was killed while it was scored.
        rate = self.rate(progress.epoch * self.steps_per_epoch + progress.step - 1) if progress.step else 0.0
        for number in range(progress.step, len(batches)):
            if self.check:
                self.check()
            rate = self.rate(progress.epoch * self.steps_per_epoch + number)
            value, weight = self.one_step(batches[number], rate)
            late = time.monotonic() - saved > 60 * plan.checkpoint_minutes
            # What one rank is told or finds, all do at the same step.
            total, count, stopping, due = self.ranks.sum(value * weight, weight, stop(), late)
            progress.step = number + 1
            progress.total += total
            progress.weight += int(count)
            progress.captions += self.objective.captions(batches[number])
            bar.update(self.objective.captions(batches[number]))
            if number % 20 == 0:
                bar.set_postfix_str(f"{self.objective.column} {progress.total / progress.weight:.3f}", refresh=False)
            if stopping:
                self.save()
                bar.close()
                self.stopped()
            if due:
                self.save()
                saved = time.monotonic()
        bar.close()
        return {
            "epoch": len(self.rows) + 1,
            self.objective.column: round(progress.total / progress.weight, 6),
            "learning_rate": round(rate, 9),
        }

    def stopped(self) -> NoReturn:
        """Ends the run, which is saved, because the user asked."""
        if self.ranks.rank == 0:
            print("stopped and saved: `dvc repro` goes on from here", flush=True)
        raise Stopped

    def one_step(self, batch: Batch, rate: float) -> tuple[float, int]:
        """Forward, backward, optimiser; returns the mean of what the objective reports, and its weight.

        Gradients are means over the words of all ranks: DistributedDataParallel weights every rank alike, so each
        weights its loss by its words.
        """
        ranks = self.ranks
        share = batch.share(ranks.rank, ranks.size)
        idle = not share.groups  # takes part with a picture of another's share, which counts for nothing
        step = self.objective.step(self.decoder, batch.share(0, ranks.size) if idle else share, self.forward)
        if not math.isfinite(step.loss.item()):
            raise ValueError(
                f"the loss is {step.loss.item()} in epoch {len(self.rows) + 1}, step {self.progress.step + 1}: "
                f"lower the learning rate, {self.plan.learning_rate}, or set train.precision to float32"
            )
        words = 0 if idle else step.words
        self.optimizer.zero_grad(set_to_none=True)
        (step.loss * (words * ranks.size / ranks.sum(words)[0])).backward()
        torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), self.plan.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("share", 1.0)
        self.optimizer.step()
        if self.averaged:
            torch._foreach_lerp_(
                list(self.averaged.parameters()), list(self.decoder.parameters()), 1 - self.plan.average
            )
        return step.value, 0 if idle else step.weight

    def rate(self, step: int) -> float:
        """The learning rate of a step: linear warm-up, then constant or a cosine to 0 over all steps."""
        plan, total = self.plan, self.steps_per_epoch * self.plan.epochs
        warmup = plan.warmup * total
        if step < warmup:
            return plan.learning_rate * (step + 1) / warmup
        if plan.schedule == "constant":
            return plan.learning_rate
        done = (step - warmup) / max(1.0, total - warmup)
        return plan.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


class Uncompiled(torch.optim.AdamW):
    """AdamW without what torch puts around its methods to keep torch.compile out of them: that loads the compiler, four
    seconds at every start, and no optimiser is compiled here."""

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def generator(plan: Plan, number: int) -> np.random.Generator:
    """The source of an epoch's order and views: a function of seed and epoch, so that a resumed epoch has the same."""
    return np.random.default_rng([plan.seed, number])


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGINT or SIGTERM came; the second SIGINT interrupts at once."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
