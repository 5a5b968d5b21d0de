"""Settings of train: the decoder, how it learns, and which epoch's weights are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import Field

from stages.params import Launch, Section


@dataclass(frozen=True)
class Plan:
    """How far and how fast the weights move."""

    epochs: int
    patience: int
    keep: str
    learning_rate: float
    schedule: str
    warmup: float
    weight_decay: float
    clip: float
    average: float
    beta2: float
    checkpoint_minutes: float
    seed: int


class SelfCritical(Section):
    epochs: int = Field(ge=0, le=10_000)
    pictures: int = Field(ge=1, le=65536)
    samples: int = Field(ge=2, le=1000)
    learning_rate: float = Field(gt=0, le=1)
    beta2: float = Field(ge=0, lt=1)
    sharpen: float = Field(gt=0, le=100)
    dropout: float = Field(ge=0, lt=1)


class Finetune(Section):
    epochs: int = Field(ge=0, le=10_000)
    blocks: int = Field(ge=1, le=100)
    learning_rate: float = Field(gt=0, le=1)
    encoder_share: float = Field(gt=0, le=1)


class Settings(Section):
    decoder: Literal["show_tell", "attend"]
    embedding: int = Field(ge=8, le=8192)
    hidden: int = Field(ge=8, le=8192)
    dropout: float = Field(ge=0, lt=1)
    batch: int = Field(ge=1, le=65536)
    captions_per_picture: int = Field(ge=1, le=100)
    epochs: int = Field(ge=1, le=10_000)
    patience: int = Field(ge=1)
    keep: Literal["best", "last"]
    learning_rate: float = Field(gt=0, le=1)
    schedule: Literal["cosine", "constant"]
    warmup: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    clip: float = Field(gt=0)
    label_smoothing: float = Field(ge=0, lt=1)
    own_words: float = Field(ge=0, le=1)
    tied: bool
    average: float = Field(ge=0, lt=1)
    finetune: Finetune
    self_critical: SelfCritical
    beam: int = Field(ge=1, le=100)
    length_penalty: float = Field(ge=0, le=2)
    max_words: int = Field(ge=1, le=200)
    block_trigrams: bool
    block_endings: bool
    neighbours: int = Field(ge=0, le=1000)
    consensus: float = Field(ge=0)
    guidance: float = Field(ge=0, le=10)
    candidates: int = Field(ge=0, le=1000)
    val_pictures: int = Field(ge=1)
    checkpoint_minutes: float = Field(gt=0)
    precision: Literal["auto", "float32", "bfloat16"]
    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: int | None = Field(ge=1, le=1024)
    compile: bool
    seed: int = Field(ge=0, lt=2**63)
    launch: Launch

    def decoding(self) -> dict[str, Any]:
        """How captions are decoded, by val after each epoch and by default afterwards."""
        first = ("beam", "length_penalty", "max_words", "block_trigrams", "block_endings")
        return {name: getattr(self, name) for name in (*first, "neighbours", "consensus", "guidance", "candidates")}

    def plan(self) -> Plan:
        """Of learning from people's words."""
        names = Plan.__dataclass_fields__.keys() - {"beta2"}
        return Plan(beta2=0.999, **{name: getattr(self, name) for name in names})

    def finetune_plan(self) -> Plan:
        """Of learning from people's words together with the encoder: the same but for what its section says."""
        return replace(self.plan(), epochs=self.finetune.epochs, learning_rate=self.finetune.learning_rate)

    def self_critical_plan(self) -> Plan:
        """Of learning from scores: the same but for what its section says."""
        own = self.self_critical
        return replace(self.plan(), epochs=own.epochs, learning_rate=own.learning_rate, beta2=own.beta2)


SEE_REGIONS = {"attend"}  # decoders that look at the grid of features, not only at its mean


def conflicts(block: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (key, rule broken) for settings of train that do not fit each other, or those of features."""
    if block["train"].decoder in SEE_REGIONS and not block["features"].grid:
        yield f"train.decoder = {block['train'].decoder}", "looks at regions: set features.grid to true"
    if block["train"].tied and block["train"].embedding != block["train"].hidden:
        yield (
            "train.tied = true",
            f"the same vectors read and predict words: set train.embedding to train.hidden = {block['train'].hidden}",
        )
    if block["train"].captions_per_picture > block["train"].batch:
        yield (
            f"train.captions_per_picture = {block['train'].captions_per_picture}",
            f"must be at most train.batch = {block['train'].batch}",
        )
    if block["train"].guidance and not block["train"].neighbours:
        yield (
            f"train.guidance = {block['train'].guidance}",
            "leans towards what neighbours say: set train.neighbours above 0, or this to 0",
        )
