"""Where requests wait for the captioner: one thread, which captions together what waits together.

Shapes: S pixels a side

torch uses every core for one batch, so that a second thread would only be in its way; a batch of eight takes much less
than eight times one picture. A picture's captions do not depend on its batch (features/encoders.py, train/decoding.py).
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from stages.evaluate.captioner import Caption, Captioner


@dataclass(frozen=True)
class Wish:
    """How a picture is to be captioned; equal wishes can be granted together."""

    model: str
    beam: int
    n: int
    attention: bool = False
    top_p: float | None = None  # above 0: words are drawn, see train/decoding.py
    temperature: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Answer:
    """Captions of one picture, and how it came to them."""

    captions: list[Caption]
    waited: float  # seconds until its batch began
    took: float  # seconds that its batch took
    together: int  # pictures of the batch


@dataclass(frozen=True)
class Order:
    """One picture that waits."""

    pixels: Tensor  # (3, S, S) uint8
    wish: Wish
    answer: Future[Answer] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Desk:
    """Takes orders and answers them in turn, at most `together` at once: the oldest and those with the same wish.

    How many may wait is for the caller to bound: an order holds a small picture and a promise.
    """

    def __init__(
        self,
        load: Callable[[str], Captioner],
        together: int = 8,
        watch: Callable[[Sequence[Order], float, float], None] = lambda orders, took, since: None,
    ) -> None:
        self._load, self._together, self._watch = load, together, watch
        self._waiting: deque[Order] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="captioner", daemon=True)
        self._thread.start()

    def ask(self, pixels: Tensor, wish: Wish) -> Future[Answer]:
        """Queues one picture. Whoever does not want the answer any more cancels it."""
        order = Order(pixels, wish)
        with self._changed:
            if self._closed:
                raise RuntimeError("the desk is closed")
            self._waiting.append(order)
            self._changed.notify()
        return order.answer

    @property
    def waiting(self) -> int:
        """Orders that nobody works at yet."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        """Ends the thread after the batch that it works at; orders that wait are cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        for order in self._waiting:
            order.answer.cancel()

    def _work(self) -> None:
        while orders := self._take():
            began = time.monotonic()
            try:
                wish = orders[0].wish
                pixels = torch.stack([order.pixels for order in orders])
                captioner = self._load(wish.model)
                found = captioner.describe(
                    [pixels], **{key: value for key, value in asdict(wish).items() if key != "model"}
                )
            except Exception as error:  # whatever it was, these orders fail with it and the next ones are answered
                if not isinstance(error, ValueError):
                    traceback.print_exc()
                print(f"{orders[0].wish}: {error}", file=sys.stderr)
                for order in orders:
                    order.answer.set_exception(error)
                continue
            took = time.monotonic() - began
            self._watch(orders, took, began)
            for order, captions in zip(orders, found, strict=True):
                order.answer.set_result(Answer(captions, began - order.since, took, len(orders)))

    def _take(self) -> list[Order]:
        """Waits for the next batch; [] when the desk is closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._closed or self._waiting)
                if self._closed:
                    return []
                wish = self._waiting[0].wish
                taken: list[Order] = []
                left: deque[Order] = deque()
                for order in self._waiting:
                    if order.wish != wish or len(taken) == self._together:
                        left.append(order)
                    elif order.answer.set_running_or_notify_cancel():
                        taken.append(order)
                self._waiting = left
                if taken:
                    return taken
