"""Settings of features: which frozen encoder looks at the pictures, and how it gets to see them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.params import Launch, Section


class Settings(Section):
    encoder: Literal["efficientnet_lite0", "efficientnet_lite2", "resnet50"]
    weights: str = Field(min_length=1)
    size: int = Field(ge=32, le=1024, multiple_of=32)
    resize: Literal["squash", "crop"]
    grid: bool
    mirror: bool
    batch: int = Field(ge=1, le=4096)
    workers: int = Field(ge=0, le=64)
    precision: Literal["auto", "float32", "bfloat16"]
    device: Literal["auto", "cpu", "cuda", "mps"]
    allow_unreadable: int = Field(ge=0)
    launch: Launch
