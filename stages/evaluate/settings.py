"""Settings of evaluate: how captions are decoded and how sure the scores are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from stages.params import Section


class Sample(Section):
    top_p: float = Field(gt=0, le=1)
    temperature: float = Field(gt=0, le=100)
    seed: int = Field(ge=0)


class Settings(Section):
    beam: int | None = Field(ge=1, le=100)
    length_penalty: float | None = Field(ge=0, le=2)
    max_words: int | None = Field(ge=1, le=200)
    block_trigrams: bool | None
    block_endings: bool | None
    neighbours: int | None = Field(ge=0, le=1000)
    consensus: float | None = Field(ge=0)
    guidance: float | None = Field(ge=0, le=10)
    candidates: int | None = Field(ge=0, le=1000)
    sample: Sample | None
    batch: int = Field(ge=1, le=65536)
    device: Literal["auto", "cpu", "cuda", "mps"]
    resamples: int = Field(ge=0, le=100_000)

    def decoding(self) -> dict[str, Any]:
        """What is to be decoded otherwise than the artifact says; None is as it says."""
        of_other_things = {"sample", "batch", "device", "resamples"}
        return self.model_dump(exclude=of_other_things) | (self.sample.model_dump() if self.sample else {})


def conflicts(block: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (key, rule broken) for settings of evaluate that what was trained cannot serve."""
    if block["evaluate"].neighbours and not block["train"].neighbours:
        yield (
            f"evaluate.neighbours = {block['evaluate'].neighbours}",
            "asks a captioner that remembers nothing: set train.neighbours above 0, or this to null",
        )
    neighbours = block["train"].neighbours if block["evaluate"].neighbours is None else block["evaluate"].neighbours
    for name in ("guidance", "consensus") if not neighbours else ():
        if value := getattr(block["evaluate"], name):
            yield f"evaluate.{name} = {value}", "needs neighbours: set evaluate.neighbours above 0, or this to null"
    if block["evaluate"].candidates and block["evaluate"].sample:
        yield (
            f"evaluate.candidates = {block['evaluate'].candidates}",
            "are searched for, and evaluate.sample has captions drawn: set one of them to null",
        )
