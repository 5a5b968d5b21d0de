"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastapi import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector
from starlette.types import Scope

from stages.live.desk import Order

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)  # upper bounds of a histogram


class Metrics:
    """The counters of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, processor time, open files
        self.requests = Counter(
            "captioner_requests", "Answers by path and status.", ("path", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "captioner_request_seconds", "From a request's headers to its answer's.", ("path",), buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.pictures = Counter("captioner_pictures", "Pictures captioned.", ("model",), registry=self.registry)
        self.decoding = Histogram(
            "captioner_decode_seconds", "A picture's decoding, with its turn.", buckets=SECONDS, registry=self.registry
        )
        self.waited = Histogram(
            "captioner_wait_seconds", "A picture's wait for its batch.", buckets=SECONDS, registry=self.registry
        )
        self.captioning = Histogram(
            "captioner_batch_seconds", "Captioning of a batch.", buckets=SECONDS, registry=self.registry
        )
        self.together = Histogram(
            "captioner_batch_pictures", "Pictures captioned together.", buckets=(1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )  # fmt: skip
        self.pace = 0.1  # seconds a picture, of late

    def watch(self, waiting: Callable[[], int]) -> None:
        """Has the queue's length looked up whenever somebody asks."""
        gauge = Gauge("captioner_waiting", "Pictures that wait for the captioner.", registry=self.registry)
        gauge.set_function(waiting)

    def request(self, scope: Scope, status: int, seconds: float) -> None:
        """An answer begins. Paths that are not known count as one: a client cannot fill the memory with them."""
        path = getattr(scope.get("route"), "path", "other")
        self.requests.labels(path, status).inc()
        self.seconds.labels(path).observe(seconds)

    def batch(self, orders: Sequence[Order], took: float, since: float) -> None:
        """A batch was captioned, begun at `since`."""
        self.pictures.labels(orders[0].wish.model).inc(len(orders))
        self.captioning.observe(took)
        self.together.observe(len(orders))
        for order in orders:
            self.waited.observe(since - order.since)
        self.pace += (took / len(orders) - self.pace) / 8

    def response(self) -> Response:
        """All of it, in the text format."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)
