"""Settings of train: the decoder, how it learns, and which epoch's weights are kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from stages.params import Section


class Settings(Section):
    decoder: Literal["show_tell", "attend"]
    embedding: int = Field(ge=8, le=8192)
    hidden: int = Field(ge=8, le=8192)
    dropout: float = Field(ge=0, lt=1)
    batch: int = Field(ge=1, le=65536)
    captions_per_picture: int = Field(ge=1, le=100)
    epochs: int = Field(ge=1, le=10_000)
    patience: int = Field(ge=1)
    learning_rate: float = Field(gt=0, le=1)
    schedule: Literal["cosine", "constant"]
    warmup: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    clip: float = Field(gt=0)
    label_smoothing: float = Field(ge=0, lt=1)
    average: float = Field(ge=0, lt=1)
    beam: int = Field(ge=1, le=100)
    length_penalty: float = Field(ge=0, le=2)
    max_words: int = Field(ge=1, le=200)
    val_pictures: int = Field(ge=1)
    checkpoint_minutes: float = Field(gt=0)
    precision: Literal["auto", "float32", "bfloat16"]
    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: int | None = Field(ge=1, le=1024)
    compile: bool
    seed: int = Field(ge=0)


def conflicts(block: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (key, rule broken) for settings of train that do not fit each other."""
    if block["train"].captions_per_picture > block["train"].batch:
        yield (
            f"train.captions_per_picture = {block['train'].captions_per_picture}",
            f"must be at most train.batch = {block['train'].batch}",
        )
