"""Settings of register: under which name the model is known."""

from __future__ import annotations

from pydantic import Field

from stages.params import Section


class Settings(Section):
    model: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
