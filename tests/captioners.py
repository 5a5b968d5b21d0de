"""Captioners with drawn weights: they say nonsense, but other nonsense of every picture, within milliseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stages.features.encoders import EfficientNetLite0, Encoder
from stages.train.artifact import Artifact
from stages.train.decoders import Shape, build
from stages.train.decoding import Decoding
from stages.vocab.vocabulary import SPECIALS, Vocabulary


def save_captioner(
    path: Path,
    seed: int = 0,
    encoder_hash: str | None = None,
    decoder: str = "show_tell",
    resize: str = "squash",
    encoder: type[Encoder] = EfficientNetLite0,
    size: int = 64,
) -> Path:
    """An artifact with drawn weights, whose captions differ from picture to picture."""
    torch.manual_seed(seed)
    vocabulary = Vocabulary((*SPECIALS, *(f"word{n}" for n in range(40))))
    drawn = build(Shape(decoder, len(vocabulary.words), encoder.channels, 16, 16)).eval()
    with torch.no_grad():
        for parameter in drawn.parameters():
            parameter.mul_(4)
    named = {
        "encoder": encoder.name,
        "weights": "package",
        "weights_sha256": encoder_hash or encoder("package").weights_sha256,
        "precision": "float32",
        "preprocessing": {"size": size, "resize": resize},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    Artifact(drawn, vocabulary, named, Decoding(beam=3, max_words=6)).save(path)
    return path


def coarse_pictures(count: int, seed: int = 0) -> list[Image.Image]:
    """Pictures of nine coloured fields, each of another size."""
    generator = np.random.default_rng(seed)
    drawn = (Image.fromarray(generator.integers(0, 256, (3, 3, 3), dtype=np.uint8)) for _ in range(count))
    return [picture.resize((80 + number, 70)) for number, picture in enumerate(drawn)]
