"""Small pictures, and the stages fetch and vocab run with any settings in a folder of their own."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from PIL import Image

SHIPPED = Path(__file__).resolve().parent.parent / "params.yaml"


def run(stage: str, folder: Path, **settings: Any) -> Path:
    """Runs a stage on profile `mine` in `folder`, in this process; returns data/mine. Errors are raised as they are."""
    block = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))["sample"]
    block[stage] = settings
    (folder / "params.yaml").write_text(yaml.safe_dump({"profile": "mine", "mine": block}), encoding="utf-8")
    with contextlib.chdir(folder), patch.dict("os.environ"):
        os.environ.pop("DVC_ROOT", None)
        importlib.import_module(f"stages.{stage}.__main__").main()
    return folder / "data" / "mine"


def picture(kind: str = "JPEG", size: tuple[int, int] = (40, 30), colour: str = "red") -> bytes:
    """A small picture of one colour."""
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, kind)
    return data.getvalue()
