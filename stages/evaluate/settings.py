"""Settings of evaluate: how captions are decoded and how sure the scores are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.params import Section


class Settings(Section):
    beam: int | None = Field(ge=1, le=100)
    length_penalty: float | None = Field(ge=0, le=2)
    max_words: int | None = Field(ge=1, le=200)
    batch: int = Field(ge=1, le=65536)
    device: Literal["auto", "cpu", "cuda", "mps"]
    resamples: int = Field(ge=0, le=100_000)
