"""Settings: params.yaml read and checked as a whole, before any stage works.

params.yaml is `profile: NAME` and below it a block per profile; a block has a section per stage. What a section may
hold is said by the class (or union of classes) `Settings` in that stage's `settings.py`, beside what it sets. A
`settings.py` may also define `conflicts(block)`: sentences about sections that do not fit each other.

Every mistake of every block is told in one message, with its full key, its value and the rule:

    params.yaml: sample.train.learning_rate = -1 (must be greater than 0)
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, field_validator
from pydantic_core import PydanticCustomError

STAGES = ("fetch", "vocab", "features", "train", "evaluate", "register")


class Section(BaseModel):
    """What every stage's settings have in common: unknown keys are mistakes, types are exact, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Launch(Section):
    """How many processes do a stage's work together."""

    processes: int | Literal["auto"]

    @field_validator("processes", mode="plain")
    @classmethod
    def check(cls, value: object) -> object:
        if value == "auto" or (type(value) is int and 1 <= value <= 4096):
            return value
        raise PydanticCustomError("processes", "must be `auto` or a whole number from 1 to 4096")


class SettingsError(ValueError):
    """params.yaml says something that cannot be; the message lists every mistake in it."""


def read(stage: str, path: str | Path = "params.yaml") -> tuple[str, Any]:
    """Checks the whole file, then returns the name of the chosen profile and its settings for `stage`.

    Raises SettingsError with all mistakes of the file, one a line.
    """
    profile, blocks = check(path)
    return profile, blocks[profile][stage]


def recorded(path: str | Path = "params.yaml") -> dict[str, dict[str, Any]]:
    """The chosen profile's settings of all stages as plain values, for the record of a run; no stage works by them."""
    profile, blocks = check(path)
    return {stage: settings.model_dump() for stage, settings in blocks[profile].items()}


def check(path: str | Path = "params.yaml") -> tuple[str, dict[str, dict[str, Any]]]:
    """Returns the chosen profile's name and, for every profile, its settings by stage. Raises SettingsError."""
    path = Path(path)
    mistakes: list[str] = []
    document = _load(path, mistakes)
    profile = document.pop("profile", None)
    blocks: dict[str, dict[str, Any]] = {}
    for name, block in document.items():
        if isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            blocks[name] = {}
            mistakes += _check_block(name, block, blocks[name])
        else:
            quotes = "" if isinstance(name, str) else "; a number or date needs quotes"
            mistakes.append(
                f"{_shown(name)} (must be letters, digits, `_`, `-`: folders and DVC's keys are named after it{quotes})"
            )
    names = ", ".join(map(str, document)) or "there is none yet"
    if profile is None:
        mistakes.insert(0, f"profile (is missing; must name a block of this file: {names})")
    elif not isinstance(profile, str) or profile not in document:  # 2014 is no text, and no key "2014"
        mistakes.insert(0, f"profile = {_shown(profile)} (must name a block of this file: {names})")
    if mistakes:
        raise SettingsError("\n".join(f"{path}: {mistake}" for mistake in mistakes))
    return profile, blocks


def _load(path: Path, mistakes: list[str]) -> dict[Any, Any]:
    """The file as a dictionary. A key that stands there twice is added to `mistakes`: YAML would drop the first."""
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        mistakes += _twice(node)  # before it is constructed: that folds merged keys (`<<`) in
        document = loader.construct_document(node) if node else None
    except FileNotFoundError:
        raise SettingsError(f"{path} is not here: run from the repository's root, where it lies") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date such as 2015-13-45
        raise SettingsError(f"{path} is not YAML: {error}") from error
    if not isinstance(document, dict):
        raise SettingsError(f"{path} must begin with `profile: NAME`, followed by a block of settings per profile")
    return document


def _twice(node: yaml.Node | None, *above: str) -> Iterator[str]:
    """Keys that were given before in the same mapping, of all mappings."""
    lines: dict[str, int] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name, line = str(key.value), key.start_mark.line + 1
        if name in lines:
            yield f"{'.'.join([*above, name])} (stands in line {lines[name]} and in line {line}: keep one)"
        lines[name] = line
        yield from _twice(value, *above, name)


def _check_block(name: str, block: Any, checked: dict[str, Any]) -> Iterator[str]:
    """Fills `checked` with the settings of each stage whose section is right; yields what is wrong with the others."""
    if not isinstance(block, dict):
        yield f"{name} = {_shown(block)} (must be a block with the sections {', '.join(STAGES)})"
        return
    for key in block:
        if key not in STAGES:
            yield f"{name}.{key} = {_shown(block[key])} (is not known; the sections are {', '.join(STAGES)})"
    for stage in STAGES:
        if stage not in block:
            yield f"{name}.{stage} (is missing)"
            continue
        try:
            checked[stage] = _adapter(stage).validate_python(block[stage])
        except ValidationError as error:
            for mistake in error.errors(include_url=False):
                yield _sentence(f"{name}.{stage}", block[stage], mistake)
    if len(checked) == len(STAGES):
        for stage in STAGES:
            for key, sentence in getattr(_module(stage), "conflicts", lambda _: ())(checked):
                yield f"{name}.{key} ({sentence})"


def _module(stage: str) -> ModuleType:
    return importlib.import_module(f"stages.{stage}.settings")


@cache
def _adapter(stage: str) -> TypeAdapter[Any]:
    return TypeAdapter(_module(stage).Settings)


RULES = {
    "missing": "is missing",
    "union_tag_not_found": "is missing",
    "extra_forbidden": "is not known here",
    "model_attributes_type": "must be a section of settings",
    "model_type": "must be a section of settings",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text; a number or date needs quotes",
}


def _sentence(prefix: str, section: Any, mistake: Any) -> str:
    """One pydantic error about `section` as `key = value (rule)`."""
    kind, value, parts = mistake["type"], mistake["input"], [str(part) for part in mistake["loc"]]
    rule = RULES.get(kind) or re.sub(r"^(Input|String|Value) should", "must", mistake["msg"])
    if kind.startswith("union_tag"):  # a union of classes, chosen by what one key says
        parts = [mistake["ctx"]["discriminator"].strip("'")]
        value = section.get(parts[0])
        if kind == "union_tag_invalid":
            rule = f"must be one of {mistake['ctx']['expected_tags']}"
    elif len(parts) > 1 and parts[0] not in section and parts[0] in section.values():
        parts = parts[1:]  # pydantic begins with the chosen class
    key = ".".join([prefix, *parts])
    if rule == "is missing":
        return f"{key} (is missing)"
    if kind in {"int_type", "float_type"} and isinstance(value, str) and (number := _number(value)):
        rule += f"; YAML reads this as text, write {number}"
    return f"{key} = {_shown(value)} ({rule})"


def _number(text: str) -> str:
    """The number that was meant by `1e-3` or a quoted "64", in plain digits; empty where none was meant."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        return ""
    return f"{number:f}" if number.is_finite() and abs(number.adjusted()) < 20 else ""


def _shown(value: Any) -> str:
    """A value much as YAML spells it, cut to fit a line."""
    text = json.dumps(value, ensure_ascii=False) if value is None or isinstance(value, bool | str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
