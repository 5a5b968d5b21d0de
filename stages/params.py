"""Settings: params.yaml read and checked as a whole, before any stage works.

params.yaml is `profile: NAME` and below it a block per profile; a block has a section per stage. What a section may
hold is said by the class (or union of classes) `Settings` in that stage's `settings.py`, beside what it sets. A
`settings.py` may also define `conflicts(block)`: sentences about sections that do not fit each other.

Every mistake of every block is told in one message, with its full key, its value and the rule:

    params.yaml: sample.train.learning_rate = -1 (must be greater than 0)
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

STAGES = ("fetch", "vocab", "features", "train", "evaluate", "register")


class Section(BaseModel):
    """What every stage's settings have in common: unknown keys are mistakes, types are exact, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SettingsError(ValueError):
    """params.yaml says something that cannot be; the message lists every mistake in it."""


def read(stage: str, path: str | Path = "params.yaml") -> tuple[str, Any]:
    """Checks the whole file, then returns the name of the chosen profile and its settings for `stage`.

    Raises SettingsError with all mistakes of the file, one a line.
    """
    profile, blocks = check(path)
    return profile, blocks[profile][stage]


def check(path: str | Path = "params.yaml") -> tuple[str, dict[str, dict[str, Any]]]:
    """Returns the chosen profile's name and, for every profile, its settings by stage. Raises SettingsError."""
    path = Path(path)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path} is not here: run from the repository's root, where it lies") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not YAML: {error}") from error
    if not isinstance(document, dict):
        raise SettingsError(f"{path} must begin with `profile: NAME`, followed by a block of settings per profile")
    profile = document.pop("profile", None)
    blocks: dict[str, dict[str, Any]] = {}
    mistakes: list[str] = []
    for name, block in document.items():
        blocks[name] = {}
        mistakes += _check_block(str(name), block, blocks[name])
    if profile is None:
        mistakes.insert(0, f"profile (is missing; name one of {', '.join(map(str, document)) or 'the blocks below it'})")
    elif profile not in document:
        mistakes.insert(0, f"profile = {profile!r} (must name a block of this file: {', '.join(map(str, document))})")
    if mistakes:
        raise SettingsError("\n".join(f"{path}: {mistake}" for mistake in mistakes))
    return str(profile), blocks


def _check_block(name: str, block: Any, checked: dict[str, Any]) -> Iterator[str]:
    if not isinstance(block, dict):
        yield f"{name} = {block!r} (must be a block with the sections {', '.join(STAGES)})"
        return
    for key in block:
        if key not in STAGES:
            yield f"{name}.{key} (is not known; the sections are {', '.join(STAGES)})"
    for stage in STAGES:
        if stage not in block:
            yield f"{name}.{stage} (is missing)"
            continue
        try:
            checked[stage] = _adapter(stage).validate_python(block[stage])
        except ValidationError as error:
            for mistake in error.errors(include_url=False):
                yield _sentence(f"{name}.{stage}", mistake)
    if len(checked) == len(STAGES):
        for stage in STAGES:
            for key, sentence in getattr(_module(stage), "conflicts", lambda _: ())(checked):
                yield f"{name}.{key} ({sentence})"


def _module(stage: str) -> ModuleType:
    return importlib.import_module(f"stages.{stage}.settings")


@cache
def _adapter(stage: str) -> TypeAdapter[Any]:
    return TypeAdapter(_module(stage).Settings)


def _sentence(prefix: str, mistake: Any) -> str:
    """One pydantic error as `key = value (rule)`. In a union the tag of the chosen class is left out of the key."""
    tags = {"drawn", "flickr8k", "folder", "coco"}
    key = ".".join([prefix, *(str(part) for i, part in enumerate(mistake["loc"]) if i > 0 or part not in tags)])
    rules = {"extra_forbidden": "is not known here", "missing": "is missing"}
    rule = rules.get(mistake["type"], mistake["msg"].replace("Input should be", "must be").removeprefix("Value error, "))
    shown = "" if mistake["type"] in rules else f" = {mistake['input']!r}"
    return f"{key}{shown} ({rule})"
