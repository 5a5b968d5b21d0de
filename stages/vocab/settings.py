"""Settings of vocab: which words of the training captions the captioner may use, and what its report looks at."""

from __future__ import annotations

from pydantic import Field

from stages.params import Section


class Settings(Section):
    min_count: int = Field(ge=1)
    look_at: int | None = Field(default=None, ge=0)
