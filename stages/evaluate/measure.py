"""Captions of every picture of a split by one captioner or several that vote, and their score cards: all or nothing.

Shapes: T words of a caption, R regions
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.evaluate import scorecard
from stages.features.preprocessing import Preprocessing
from stages.features.store import Features
from stages.fetch.captions import Picture
from stages.fetch.pictures import Pictures
from stages.train.artifact import Artifact, check_vote, load_encoder, remembered
from stages.train.batches import Source
from stages.train.decoders import Decoder, pack_words
from stages.train.decoding import Decoding, Hypothesis
from stages.train.describe import describe
from stages.train.finetune import keep
from stages.vocab.vocabulary import END, START


def caption(
    artifacts: Sequence[Artifact],
    pictures: Mapping[str, Sequence[Picture]],
    features: Features,
    archives: Pictures | None,
    decoding: Decoding,
    *,
    batch: int,
    device: torch.device,
) -> dict[str, dict[int, str]]:
    """The best caption of every picture, by split and id. ValueError as `hypotheses`."""
    found = hypotheses(artifacts, pictures, features, archives, decoding, batch=batch, device=device)
    return {split: texts(artifacts[0], best) for split, best in found.items()}


def texts(artifact: Artifact, found: Mapping[int, Sequence[Hypothesis]]) -> dict[int, str]:
    """The best of each picture's hypotheses, in words."""
    return {picture: artifact.vocabulary.decode(best[0].words) for picture, best in found.items()}


def hypotheses(
    artifacts: Sequence[Artifact],
    pictures: Mapping[str, Sequence[Picture]],
    features: Features,
    archives: Pictures | None,
    decoding: Decoding,
    *,
    batch: int,
    device: torch.device,
) -> dict[str, dict[int, list[Hypothesis]]]:
    """Captions of every picture, best first, by split and id.

    A captioner sees the features on disk, or, where its encoder is another one, what that says of the pictures in
    `archives`. Raises ValueError where there are none, or where captioners do not fit each other.
    """
    check_vote(artifacts)
    first = artifacts[0]
    decoders = [artifact.decoder.to(device) for artifact in artifacts]
    found = {}
    for split, own in pictures.items():
        rows = rows_of_all(own, features, split)
        sources: list[Source] = []
        for place, artifact in enumerate(artifacts):
            earlier = (sources[other] for other in range(place) if sees_alike(artifacts[other], artifact))
            sources.append(next(earlier, None) or seen(artifact, own, features, split, archives, device))
        best = describe(
            decoders,
            sources,
            rows,
            decoding,
            bad_endings=first.vocabulary.bad_endings,
            remembered=remembered(artifacts),
            batch=batch,
            device=device,
        )
        found[split] = dict(zip((picture.id for picture in own), best, strict=True))
    return found


def sees_alike(one: Artifact, other: Artifact) -> bool:
    """Whether what one captioner sees of a picture serves the other: then the pictures are encoded once for both."""
    return (one.encoder, one.decoder.grid) == (other.encoder, other.decoder.grid)


def per_word(found: Hypothesis, decoding: Decoding) -> float:
    """The natural logarithm of a caption's probability, guided where it was, per word; <end> counts as one."""
    length = len(found.words) + 1
    return found.score * length**decoding.length_penalty / length


@torch.inference_mode()
def attention(
    decoder: Decoder, source: Source, rows: Sequence[int], captions: Sequence[Sequence[int]], *, batch: int
) -> list[NDArray[np.float32]]:
    """Where the decoder looked for each word of a caption (ids, without <start> and <end>) of each row: (T, R) each."""
    device = decoder.mean.device
    found: list[NDArray[np.float32]] = []
    for first in range(0, len(rows), batch):
        pooled, grid = source.read(rows[first : first + batch])
        assert grid is not None
        own = [[START, *words, END] for words in captions[first : first + batch]]
        words = pack_words(own, range(len(own)))
        context = decoder.context(pooled.to(device).float(), grid.to(device).float())
        weights = decoder.attention(context, words.to(device))
        assert weights is not None
        order = words.order[words.captions()]  # the caption of each row of weights, time after time
        sorted_by_caption = weights.cpu()[order.argsort(stable=True)].numpy()
        ends = np.cumsum([len(each) - 1 for each in own])[:-1]
        found += [each[:-1] for each in np.split(sorted_by_caption, ends)]  # without <end>
    return found


def seen(
    artifact: Artifact,
    pictures: Sequence[Picture],
    features: Features,
    split: str,
    archives: Pictures | None,
    device: torch.device,
) -> Source:
    """What the artifact's encoder says of these pictures of a split, in the rows of the features on disk."""
    source = Source(features, split, artifact.decoder.grid, mirror=False)
    other = unlike(artifact, features)
    if not other:
        return source
    if archives is None:
        raise ValueError(f"{other}: run `dvc repro`")
    encoder = load_encoder(artifact.encoder, artifact.tuned, device)

    def see(pixels: Tensor) -> list[Tensor]:
        grid = encoder(pixels)
        return [grid.mean(1), grid] if source.grid else [grid.mean(1)]

    preprocessing = Preprocessing(**artifact.encoder["preprocessing"])
    return keep(see, source, archives, pictures, preprocessing, workers=torch.get_num_threads(), device=device)


def unlike(artifact: Artifact, features: Features) -> str | None:
    """In what features on disk are not those that the captioner sees; None where they are."""
    for key in ("encoder", "weights_sha256", "preprocessing"):
        if artifact.encoder[key] != features.index[key]:
            return f"{features.folder} has {key} {features.index[key]}, the captioner sees {artifact.encoder[key]}"
    return "the captioner's encoder was tuned, features are of the untuned one" if artifact.tuned else None


def rows_of_all(pictures: Sequence[Picture], features: Features, split: str) -> list[int]:
    """The feature row of every picture of a split; ValueError where one has none: a score is of all or nothing."""
    same_pictures(pictures, features, split)
    rows = features.rows(split)
    if missing := [picture.file_name for picture in pictures if picture.id not in rows]:
        raise ValueError(
            f"{len(missing)} of {len(pictures)} {split} pictures could not be read ({', '.join(missing[:5])}): a score "
            "counts only over all pictures of its split; mend them, or take them out where they come from"
        )
    return [rows[picture.id] for picture in pictures]


def same_pictures(pictures: Sequence[Picture], features: Features, split: str) -> None:
    """Raises ValueError where the features on disk are of other pictures, as after a checkout of other captions."""
    if features.index["splits"][split] != [picture.id for picture in pictures]:
        raise ValueError(
            f"{features.folder} has other {split} pictures than captions_{split}.json: run `dvc repro features`"
        )


def judge(
    captions: Mapping[str, Mapping[int, str]],
    pictures: Mapping[str, Sequence[Picture]],
    features: Features | None,
    decoding: Mapping[str, Any],
    resamples: int,
) -> dict[str, dict[str, Any]]:
    """The score card of every split in `captions`; without features the row of the nearest neighbours is left out."""
    sheets = {}
    training = scorecard.Training([picture.captions for picture in pictures["train"]])
    for split, found in captions.items():
        neighbours = None
        if features is not None:
            for each in (split, "train"):
                same_pictures(pictures[each], features, each)
            # Rows are in the order of the captions file. A picture that could not be read is all zeros, near to none.
            nearest = training.floors.neighbours(features.array(split, "pooled"), features.array("train", "pooled"))
            neighbours = {picture.id: caption for picture, caption in zip(pictures[split], nearest, strict=True)}
        references = {picture.id: picture.captions for picture in pictures[split]}
        sheets[split] = scorecard.Sheet(found, references, neighbours)
    return scorecard.build_all(sheets, training=training, decoding=decoding, resamples=resamples)
