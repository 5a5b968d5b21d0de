"""From pictures to captions: encoder, decoder and beam search of one artifact or of several that vote.

Shapes: B pictures of a batch, S pixels a side, T words of a caption, R regions
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stages.features.device import choose_device
from stages.features.preprocessing import Preprocessing
from stages.train.artifact import Artifact, ArtifactError, load_encoder
from stages.train.decoders import Context, pack_words
from stages.train.decoding import decode
from stages.vocab.vocabulary import END, START


class Caption(NamedTuple):
    """A caption, how sure the model is of it and, if asked for, where it looked."""

    text: str
    score: float  # log-probability / (words and <end>) ** length_penalty
    attention: NDArray[np.float32] | None = None  # (T, R), rows sum to 1; regions of the grid row by row


class Captioner:
    """Captions pictures as its artifacts were trained to see them; several of one encoder and vocabulary vote."""

    def __init__(self, artifacts: Sequence[Artifact], device: str = "auto") -> None:
        """Raises ArtifactError when the artifacts do not fit each other, or the encoder's weights are other ones."""
        first = artifacts[0]
        for other in artifacts[1:]:
            if untuned(other) != untuned(first) or other.vocabulary != first.vocabulary:
                raise ArtifactError(
                    "captioners that vote must share encoder and vocabulary: train them on the same data"
                )
        self.artifacts = artifacts
        self.vocabulary, self.decoding, self.consensus = first.vocabulary, first.decoding, first.consensus
        self.device = choose_device(device)
        self.decoders = [artifact.decoder.to(self.device) for artifact in artifacts]
        self.preprocessing = Preprocessing(**first.encoder["preprocessing"])
        kinds = {artifact.encoder.get("tuned_sha256", ""): artifact for artifact in artifacts}
        loaded = {kind: load_encoder(own.encoder, own.tuned, self.device) for kind, own in kinds.items()}
        self.encoders = [loaded[artifact.encoder.get("tuned_sha256", "")] for artifact in artifacts]

    @classmethod
    def load(cls, *paths: str | Path, device: str = "auto") -> Self:
        """Reads one artifact or several."""
        return cls([Artifact.load(path) for path in paths], device)

    def caption(
        self, pictures: Sequence[Image.Image], beam: int | None = None, n: int = 1, **options: Any
    ) -> list[list[Caption]]:
        """RGB pictures of any sizes -> for each its `n` best captions, best first. All pictures form one batch.

        `options` are fields of Decoding other than the artifact's. What is drawn depends on the picture and the seed.
        """
        if not pictures:
            return []
        return self.describe(torch.stack([self.preprocessing(picture) for picture in pictures]), beam, n, **options)

    @torch.inference_mode()
    def describe(
        self, pixels: Tensor, beam: int | None = None, n: int = 1, *, attention: bool = False, **options: Any
    ) -> list[list[Caption]]:
        """The same for preprocessed pictures (B, 3, S, S) uint8. With `attention`, captions say where each of their
        words was looked for, if a decoder looks anywhere; of several that do, the mean."""
        decoding = self.decoding.but(beam=beam, **options)
        decoding = decoding.but(beam=max(n, decoding.beam))
        numbers = [crc32(picture.numpy()) for picture in pixels]
        pixels = pixels.to(self.device)
        # Rounded as features on disk are, so that a picture gets the caption that was scored.
        grids = {encoder: encoder(pixels) for encoder in dict.fromkeys(self.encoders)}
        pooled = {encoder: grid.mean(1).half().float() for encoder, grid in grids.items()}
        contexts = [
            decoder.context(pooled[encoder], grids[encoder].half().float() if decoder.grid else None)
            for decoder, encoder in zip(self.decoders, self.encoders, strict=True)
        ]
        decoded = decode(
            self.decoders,
            contexts,
            decoding,
            bad_endings=self.vocabulary.bad_endings,
            numbers=numbers,
            consensus=self.consensus,
            pooled=pooled[self.encoders[0]],
        )
        found = [best[:n] for best in decoded]
        looks = self.look(contexts, [[h.words for h in best] for best in found]) if attention else None
        return [
            [
                Caption(self.vocabulary.decode(h.words), h.score, looks[i][j] if looks else None)
                for j, h in enumerate(best)
            ]
            for i, best in enumerate(found)
        ]

    def look(
        self, contexts: Sequence[Context], captions: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[NDArray[np.float32]]] | None:
        """For every picture and each of its captions (word ids) where its words were looked for (T, R); None where no
        decoder looks anywhere."""
        looking = [(decoder, context) for decoder, context in zip(self.decoders, contexts, strict=True) if decoder.grid]
        if not looking:
            return None
        owners = [picture for picture, own in enumerate(captions) for _ in own]
        words = pack_words([[START, *caption, END] for own in captions for caption in own], owners).to(self.device)
        weights = torch.stack([seen for d, c in looking if (seen := d.attention(c, words)) is not None]).mean(0)
        lengths = [len(caption) for own in captions for caption in own]
        which, flat = words.captions(), [np.empty(0, np.float32)] * len(owners)
        for place, number in enumerate(words.order.tolist()):
            flat[number] = weights[which == place][: lengths[number]].cpu().numpy()  # without that of <end>
        rest = iter(flat)
        return [[next(rest) for _ in own] for own in captions]


def untuned(artifact: Artifact) -> dict[str, Any]:
    """The encoder that an artifact's was tuned from, or is."""
    return {key: value for key, value in artifact.encoder.items() if key != "tuned_sha256"}
