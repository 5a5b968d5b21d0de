"""From pictures to captions: encoder, decoder and beam search of one artifact or of several that vote.

Shapes: B pictures of a batch, S pixels a side, T words of a caption, R regions; S and R are each encoder's own
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
from stages.train.artifact import Artifact, check_vote, load_encoder, remembered
from stages.train.decoders import Context, pack_words
from stages.train.decoding import decode
from stages.vocab.vocabulary import END, START


class Caption(NamedTuple):
    """A caption, how sure the model is of it and, if asked for, where it looked."""

    text: str
    # Hypothesis.score; a memory, where there is one, has its word in the order too, so that scores need not fall.
    score: float
    attention: NDArray[np.float32] | None = None  # (T, R), rows sum to 1; regions of the grid row by row


class Captioner:
    """Captions pictures as its artifacts were trained to see them; several of one vocabulary vote, each with the
    encoder of its own, and are decoded as the first says."""

    def __init__(self, artifacts: Sequence[Artifact], device: str = "auto") -> None:
        """Raises ArtifactError when the artifacts do not fit each other, or an encoder's weights are other ones."""
        check_vote(artifacts)
        first = artifacts[0]
        self.artifacts = artifacts
        self.vocabulary, self.decoding = first.vocabulary, first.decoding
        self.device = choose_device(device)
        self.decoders = [artifact.decoder.to(self.device) for artifact in artifacts]
        known = [artifact.encoder for artifact in artifacts]
        firsts = sorted({known.index(encoder) for encoder in known})  # those that see alike look once
        own = [artifacts[place] for place in firsts]
        self.encoders = [load_encoder(artifact.encoder, artifact.tuned, self.device) for artifact in own]
        self.preprocessings = [Preprocessing(**artifact.encoder["preprocessing"]) for artifact in own]
        self.sees = [firsts.index(known.index(encoder)) for encoder in known]  # of each decoder, its encoder

    @property
    def at_least(self) -> int:
        """Pixels a side that a picture must keep when it is decoded small: once, for the largest view of it. Evaluation
        decodes for each encoder, so that last bits can differ where several sizes vote."""
        return max(preprocessing.size for preprocessing in self.preprocessings)

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
        views = [torch.stack([view(picture) for picture in pictures]) for view in self.preprocessings]
        return self.describe(views, beam, n, **options)

    @torch.inference_mode()
    def describe(
        self, views: Sequence[Tensor], beam: int | None = None, n: int = 1, *, attention: bool = False, **options: Any
    ) -> list[list[Caption]]:
        """The same for preprocessed pictures (B, 3, S, S) uint8, once for each of `preprocessings`. With `attention`,
        captions say where each of their words was looked for, if a decoder looks anywhere; of several, the mean of
        those that see the picture as the first of them."""
        decoding = self.decoding.but(beam=beam, **options)
        decoding = decoding.but(beam=max(n, decoding.beam))
        numbers = [crc32(picture.numpy()) for picture in views[0]]
        grids = [encoder(pixels.to(self.device)) for encoder, pixels in zip(self.encoders, views, strict=True)]
        # Rounded as features on disk are, so that a picture gets the caption that was scored.
        pooled = [grid.mean(1).half().float() for grid in grids]
        contexts = [
            decoder.context(pooled[place], grids[place].half().float() if decoder.grid else None)
            for decoder, place in zip(self.decoders, self.sees, strict=True)
        ]
        decoded = decode(
            self.decoders,
            contexts,
            decoding,
            bad_endings=self.vocabulary.bad_endings,
            numbers=numbers,
            memories=[
                (own, pooled[place])
                for own, place in zip(remembered(self.artifacts), self.sees, strict=True)
                if own is not None
            ],
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
        every = zip(self.decoders, contexts, self.sees, strict=True)
        looking = [(decoder, context, self.preprocessings[sees]) for decoder, context, sees in every if decoder.grid]
        if not looking:
            return None
        owners = [picture for picture, own in enumerate(captions) for _ in own]
        words = pack_words([[START, *caption, END] for own in captions for caption in own], owners).to(self.device)
        alike = [(decoder, context) for decoder, context, view in looking if view == looking[0][2]]
        weights = torch.stack([seen for d, c in alike if (seen := d.attention(c, words)) is not None]).mean(0)
        lengths = [len(caption) for own in captions for caption in own]
        which, flat = words.captions(), [np.empty(0, np.float32)] * len(owners)
        for place, number in enumerate(words.order.tolist()):
            flat[number] = weights[which == place][: lengths[number]].cpu().numpy()  # without that of <end>
        rest = iter(flat)
        return [[next(rest) for _ in own] for own in captions]
