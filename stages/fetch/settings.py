"""Settings of fetch: where captioned pictures come from. One class per source, chosen by `source`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stages.params import Section


class Drawn(Section):
    """Scenes drawn and captioned by a seeded generator: no download, no network."""

    source: Literal["drawn"]
    pictures: int = Field(ge=20, le=1_000_000)
    size: int = Field(ge=64, le=1024)
    seed: int = Field(ge=0)


class Flickr8k(Section):
    """Flickr8k as it is distributed: pictures (zip or folder), token file, split lists."""

    source: Literal["flickr8k"]
    root: str = Field(min_length=1)
    allow_missing: int = Field(ge=0)


class Folder(Section):
    """A user's own pictures and a captions file (COCO JSON, CSV or JSONL)."""

    source: Literal["folder"]
    pictures: str = Field(min_length=1)
    captions: str = Field(min_length=1)
    picture_column: str = "picture"
    caption_column: str = "caption"
    val_percent: int = Field(ge=1, le=40)
    test_percent: int = Field(ge=1, le=40)
    allow_missing: int = Field(ge=0)


class Coco(Section):
    """Microsoft COCO, downloaded and verified, or used where it already lies."""

    source: Literal["coco"]
    year: Literal[2014, 2017]
    split: Literal["official", "karpathy"]
    limit: int | None = Field(ge=1)
    seed: int = Field(ge=0)
    base_url: str = Field(min_length=1)
    karpathy: str = Field(min_length=1)
    images: str | None = Field(min_length=1)
    annotations: str | None = Field(min_length=1)
    connections: int = Field(ge=1, le=32)
    expect: Literal["official", "own"]


Settings = Annotated[Drawn | Flickr8k | Folder | Coco, Field(discriminator="source")]
