"""Settings of features: which frozen encoder looks at the pictures, and how it gets to see them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from stages.params import Launch, Section

# What `weights` may name, beside an address and a file: encoders.py has the networks, whose import takes seconds.
PUBLISHED = {
    "efficientnet_lite0": ("package",),
    "efficientnet_lite2": ("package",),
    "resnet50": ("IMAGENET1K_V1", "IMAGENET1K_V2"),
}


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


def conflicts(block: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (key, rule broken) for weights that the encoder cannot have, or that would tell a secret."""
    encoder, weights = block["features"].encoder, block["features"].weights
    of_others = {name for names in PUBLISHED.values() for name in names} - {*PUBLISHED[encoder]}
    if weights in of_others:
        yield f"features.weights = {weights}", f"is not of {encoder}: {' or '.join(PUBLISHED[encoder])}, or a file"
    address = weights.partition("://")[2]
    if "@" in address.partition("/")[0] or "?" in address:
        yield (
            "features.weights",
            "must hold no password, key or query: it is published with the captioner; download the file and name that",
        )
