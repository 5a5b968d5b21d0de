"""The training loop: one object that holds everything a run is, so that it can be saved at any step and go on.

Shapes: P pictures of a batch, B captions, N words without padding, V vocabulary
"""

from __future__ import annotations

import copy
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from stages.features.device import autocast
from stages.files import whole
from stages.train.batches import Examples, Group, Source, epoch, in_order, load_batch
from stages.train.decoders import Decoder
from stages.train.settings import Settings

Row = dict[str, float]  # one epoch of reports/P/training.csv
Score = Callable[[Decoder], tuple[dict[str, float], float]]  # decoder -> columns for the row, and what selects an epoch


class Stopped(KeyboardInterrupt):
    """The user asked to stop (Ctrl-C, SIGTERM); the run is saved and goes on when it is started again."""


@dataclass
class Progress:
    """How far a run is. Plain values and tensors only, so that it is saved and loaded without pickled code."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the epoch under way
    loss: float = 0.0  # sum over words in the epoch under way
    words: int = 0
    best_score: float = -math.inf
    best_epoch: int = 0
    seconds: float = 0.0  # of training, validation included, over all starts
    captions: int = 0  # trained on, over all starts
    training_seconds: float = 0.0  # without validation


class Training:
    """A decoder, its optimiser and how far they are.

    `train` runs to the end. `checkpoint`, where given, is written every epoch and every `checkpoint_minutes`, and read
    when it is there: a killed run ends with the very weights of one that was not (to the bit on a CPU with the same
    number of threads).
    """

    def __init__(
        self,
        decoder: Decoder,
        settings: Settings,
        examples: Examples,
        source: Source,
        *,
        device: torch.device,
        dtype: torch.dtype,
        checkpoint: Path | None = None,
        fingerprint: str = "",
    ) -> None:
        self.decoder = decoder.to(device)
        self.settings, self.examples, self.source = settings, examples, source
        self.device, self.dtype = device, dtype
        self.checkpoint, self.fingerprint = checkpoint, fingerprint
        self.forward: Callable[..., Tensor] = torch.compile(self.decoder) if settings.compile else self.decoder
        self.optimizer = torch.optim.AdamW(
            self.decoder.parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )
        self.averaged = copy.deepcopy(self.decoder).requires_grad_(False) if settings.average else None
        self.best: dict[str, Tensor] = {}
        self.progress = Progress()
        self.rows: list[Row] = []
        self.notes: dict[str, Any] = {}  # of the caller, saved along (the id of the run in the record, for one)
        per_epoch = sum(
            1 for _ in epoch(examples, settings.batch, settings.captions_per_picture, generator(settings, 0))
        )
        self.total_steps = per_epoch * settings.epochs
        self.steps_per_epoch = per_epoch

    # --- going on ---------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes everything the run is to `checkpoint`, whole or not at all."""
        if self.checkpoint is None:
            return
        state = {
            "fingerprint": self.fingerprint,
            "decoder": self.decoder.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged else None,
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "progress": vars(self.progress),
            "rows": self.rows,
            "notes": self.notes,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        with whole(self.checkpoint) as partial:
            torch.save(state, partial)

    def resume(self) -> bool:
        """Goes on from `checkpoint` where it is of the same run (same data, settings and code); says whether it did."""
        if self.checkpoint is None or not self.checkpoint.is_file():
            return False
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if state["fingerprint"] != self.fingerprint:
            return False
        self.decoder.load_state_dict(state["decoder"])
        if self.averaged:
            self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.rows, self.notes = state["best"], state["rows"], state["notes"]
        self.progress = Progress(**state["progress"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self.device)
        return True

    # --- learning ---------------------------------------------------------------------------------------------------

    def train(self, score: Score, log: Callable[[int, Row, float], None]) -> Decoder:
        """Trains until the epochs are over or val has not become better for `patience` of them; returns the best.

        After each epoch `score` judges the decoder and `log` gets (epoch, row, captions per second).
        Raises Stopped when the user asks to stop, and ValueError when the loss is no longer a number.
        """
        with asked_to_stop() as stop:
            while self.progress.epoch < self.settings.epochs and not self.out_of_patience():
                started, captions = time.monotonic(), self.progress.captions
                row = self.one_epoch(stop)
                speed = (self.progress.captions - captions) / (time.monotonic() - started)
                judged = self.judged()
                columns, value = score(judged)
                row |= columns
                self.progress.epoch += 1
                self.progress.step, self.progress.loss, self.progress.words = 0, 0.0, 0
                if value > self.progress.best_score:
                    self.progress.best_score, self.progress.best_epoch = value, self.progress.epoch
                    self.best = {name: part.detach().cpu().clone() for name, part in judged.state_dict().items()}
                self.rows.append(row)
                self.progress.seconds += time.monotonic() - started
                self.save()
                log(self.progress.epoch, row, speed)
        best = copy.deepcopy(self.decoder).cpu()
        best.load_state_dict(self.best)
        return best.eval()

    def out_of_patience(self) -> bool:
        """Whether the last `patience` epochs brought nothing better."""
        return self.progress.epoch - self.progress.best_epoch >= self.settings.patience

    def judged(self) -> Decoder:
        """The decoder whose captions count: the average over steps where that is asked for, else the last."""
        return (self.averaged or self.decoder).eval()

    def one_epoch(self, stop: Callable[[], bool]) -> Row:
        """All captions once, from `progress.step` on; returns epoch, train_loss (per word) and learning rate."""
        settings, progress = self.settings, self.progress
        order = generator(settings, progress.epoch)
        batches = epoch(self.examples, settings.batch, settings.captions_per_picture, order)
        mirrored = order.random((len(batches), max(map(len, batches)))) < 0.5 if self.source.mirror else None
        self.decoder.train()
        bar = tqdm(
            total=sum(len(places) for batch in batches for _, places in batch),
            initial=sum(len(places) for batch in batches[: progress.step] for _, places in batch),
            desc=f"epoch {progress.epoch + 1}/{settings.epochs}",
            unit="captions",
            disable=None,
        )
        saved = time.monotonic()
        rate = 0.0
        for number in range(progress.step, len(batches)):
            views = None if mirrored is None else mirrored[number, : len(batches[number])].tolist()
            rate = self.rate(progress.epoch * self.steps_per_epoch + number)
            loss, words, captions = self.one_step(batches[number], views, rate)
            progress.step = number + 1
            progress.loss += loss * words
            progress.words += words
            progress.captions += captions
            bar.update(captions)
            if number % 20 == 0:
                bar.set_postfix_str(f"loss {progress.loss / progress.words:.3f}", refresh=False)
            if stop():
                self.save()
                bar.close()
                print("stopped and saved: `dvc repro` goes on from here", flush=True)
                raise Stopped
            if time.monotonic() - saved > 60 * settings.checkpoint_minutes:
                self.save()
                saved = time.monotonic()
        bar.close()
        return {
            "epoch": progress.epoch + 1,
            "train_loss": round(progress.loss / progress.words, 6),
            "learning_rate": round(rate, 9),
        }

    def one_step(self, batch: Sequence[Group], mirrored: Sequence[bool] | None, rate: float) -> tuple[float, int, int]:
        """Forward, backward, optimiser; returns the mean loss per word and the numbers of words and captions."""
        pooled, grid, words = load_batch(batch, self.examples, self.source, mirrored)
        pooled = pooled.to(self.device, non_blocking=True).float()
        grid = grid.to(self.device, non_blocking=True).float() if grid is not None else None
        words = words.to(self.device)
        with autocast(self.device, self.dtype):
            logits = self.forward(self.decoder.context(pooled, grid), words)
        loss = cross_entropy(logits.float(), words.predict, label_smoothing=self.settings.label_smoothing)
        value = loss.item()
        if not math.isfinite(value):
            raise ValueError(
                f"the loss is {value} in epoch {self.progress.epoch + 1}, step {self.progress.step + 1}: "
                f"lower train.learning_rate = {self.settings.learning_rate}, or set train.precision to float32"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), self.settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if self.averaged:
            torch._foreach_lerp_(
                list(self.averaged.parameters()), list(self.decoder.parameters()), 1 - self.settings.average
            )
        return value, len(words.predict), len(words.owner)

    def rate(self, step: int) -> float:
        """The learning rate of a step: linear warm-up, then constant or a cosine to 0 over all steps."""
        warmup = self.settings.warmup * self.total_steps
        if step < warmup:
            return self.settings.learning_rate * (step + 1) / warmup
        if self.settings.schedule == "constant":
            return self.settings.learning_rate
        done = (step - warmup) / max(1.0, self.total_steps - warmup)
        return self.settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@torch.inference_mode()
def mean_loss(
    decoder: Decoder, examples: Examples, source: Source, *, batch: int, device: torch.device, dtype: torch.dtype
) -> float:
    """Teacher-forced cross-entropy per word in nats, without smoothing. Not a caption score, and never used as one."""
    loss, words_seen = 0.0, 0
    for groups in in_order(examples, batch):
        pooled, grid, words = load_batch(groups, examples, source, None)
        words = words.to(device)
        with autocast(device, dtype):
            context = decoder.context(pooled.to(device).float(), grid.to(device).float() if grid is not None else None)
            logits = decoder(context, words)
        loss += cross_entropy(logits.float(), words.predict, reduction="sum").item()
        words_seen += len(words.predict)
    return loss / words_seen


def generator(settings: Settings, number: int) -> np.random.Generator:
    """The source of an epoch's order and views: a function of seed and epoch, so that a resumed epoch has the same."""
    return np.random.default_rng([settings.seed, number])


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
