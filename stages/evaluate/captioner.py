"""From pictures to captions: encoder, decoder and beam search of one artifact or of several that vote.

Shapes: B pictures of a batch, S pixels a side
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self
from zlib import crc32

import torch
from PIL import Image

from stages.features.device import choose_device, choose_dtype
from stages.features.encoders import ENCODERS, Encoder
from stages.features.preprocessing import Preprocessing
from stages.train.artifact import Artifact, ArtifactError
from stages.train.decoding import decode


class Caption(NamedTuple):
    """A caption and how sure the model is of it."""

    text: str
    score: float  # log-probability / (words and <end>) ** length_penalty


class Captioner:
    """Captions pictures as its artifacts were trained to see them; several of one encoder and vocabulary vote."""

    def __init__(self, artifacts: Sequence[Artifact], device: str = "auto") -> None:
        """Raises ArtifactError when the artifacts do not fit each other, or the encoder's weights are other ones."""
        first = artifacts[0]
        for other in artifacts[1:]:
            if other.encoder != first.encoder or other.vocabulary != first.vocabulary:
                raise ArtifactError(
                    "captioners that vote must share encoder and vocabulary: train them on the same data"
                )
        self.artifacts = artifacts
        self.vocabulary, self.decoding = first.vocabulary, first.decoding
        self.device = choose_device(device)
        self.decoders = [artifact.decoder.to(self.device) for artifact in artifacts]
        self.preprocessing = Preprocessing(**first.encoder["preprocessing"])
        self.encoder = load_encoder(first, self.device)

    @classmethod
    def load(cls, *paths: str | Path, device: str = "auto") -> Self:
        """Reads one artifact or several."""
        return cls([Artifact.load(path) for path in paths], device)

    @torch.inference_mode()
    def caption(
        self, pictures: Sequence[Image.Image], beam: int | None = None, n: int = 1, **options: Any
    ) -> list[list[Caption]]:
        """RGB pictures of any sizes -> for each its `n` best captions, best first. All pictures form one batch.

        `options` are fields of Decoding other than the artifact's. What is drawn depends on the picture and the seed.
        """
        if not pictures:
            return []
        decoding = self.decoding.but(beam=beam, **options)
        decoding = decoding.but(beam=max(n, decoding.beam))
        pixels = torch.stack([self.preprocessing(picture) for picture in pictures])
        numbers = [crc32(picture.numpy()) for picture in pixels]
        pixels = pixels.to(self.device)
        # Rounded as features on disk are, so that a picture gets the caption that was scored.
        grid = self.encoder(pixels)
        pooled, grid = grid.mean(1).half().float(), grid.half().float()
        contexts = [decoder.context(pooled, grid if decoder.grid else None) for decoder in self.decoders]
        endings = self.vocabulary.bad_endings
        found = decode(self.decoders, contexts, decoding, bad_endings=endings, numbers=numbers)
        return [[Caption(self.vocabulary.decode(h.words), h.score) for h in best[:n]] for best in found]


def load_encoder(artifact: Artifact, device: torch.device) -> Encoder:
    """The encoder that an artifact names, with the very weights that it was trained on."""
    named = artifact.encoder
    if named["encoder"] not in ENCODERS:
        raise ArtifactError(f"encoder {named['encoder']!r} is not known: this version has {', '.join(ENCODERS)}")
    dtype = choose_dtype("auto" if named["precision"] == "bfloat16" else "float32", device)
    encoder = ENCODERS[named["encoder"]](named["weights"], dtype).to(device)
    if encoder.weights_sha256 != named["weights_sha256"]:
        raise ArtifactError(
            f"the weights {named['weights']} of {named['encoder']} here have hash {encoder.weights_sha256[:12]}, the "
            f"captioner was trained on {named['weights_sha256'][:12]}: get the same file, or train again (`dvc repro`)"
        )
    return encoder
