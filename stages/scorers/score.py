"""All metrics of one set of captions: BLEU-1..4, ROUGE-L, CIDEr-D and METEOR, for the whole and for every picture."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stages.scorers import bleu, bootstrap, meteor
from stages.scorers.cider import CiderD
from stages.scorers.ngrams import Ints, References
from stages.scorers.ptb import tokenize
from stages.scorers.rouge import rouge_l

Floats = NDArray[np.float64]
METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "meteor")
# Words of a decoder that mark the edge of a caption. Left in, they match each other and raise BLEU by up to 8 points.
SPECIAL = re.compile(r"<(?:start|end|pad|bos|eos|s|/s)>|\[(?:CLS|SEP|PAD)\]", re.IGNORECASE)


class ScoreError(ValueError):
    """These captions cannot be scored against these references; the message says which and why."""


@dataclass(frozen=True)
class Scores:
    """What a set of captions scores. Metrics are fractions (0.25, not 25), CIDEr-D as coco-caption prints it (0 to 10).

    `pictures` are ids in the order of the rows of everything else.
    """

    pictures: tuple[int, ...]
    tokens: list[list[str]] = field(repr=False)  # of each caption
    references: References = field(repr=False)
    bleu_statistics: Ints = field(repr=False)  # (N, 10), see bleu.statistics
    rouge_l: Floats = field(repr=False)  # (N,)
    cider: Floats = field(repr=False)  # (N,), document frequencies from these references
    meteor_statistics: Floats | None = field(repr=False)  # (N, 23), see meteor.statistics; None: no_meteor says why
    no_meteor: str | None = None

    def columns(self) -> Floats:
        """One row a picture, (N, C): what sums to the metrics."""
        parts = [self.bleu_statistics, self.rouge_l[:, None], self.cider[:, None]]
        return np.hstack(parts if self.meteor_statistics is None else [*parts, self.meteor_statistics])

    def metrics(self) -> dict[str, float | None]:
        """Every metric of METRICS over all pictures; meteor is None where it could not be had."""
        values = metrics_of(self.columns().sum(axis=0), len(self.pictures))
        return {name: float(values[name]) if name in values else None for name in METRICS}

    def of_pictures(self) -> dict[str, Floats]:
        """Every metric of each picture on its own, (N,); BLEU of one caption is coarse, 0 where no 4-gram matches."""
        return metrics_of(self.columns(), 1)

    def intervals(self, resamples: int, seed: int) -> dict[str, tuple[float, float]]:
        """The 95% bootstrap interval over pictures of every metric that there is."""
        values = metrics_of(bootstrap.resampled_sums(self.columns(), resamples, seed), len(self.pictures))
        return {name: bootstrap.interval(each) for name, each in values.items()}


def metrics_of(sums: Floats, pictures: int) -> dict[str, Floats]:
    """Metrics of summed columns (..., C) of `pictures` pictures each; each (...)."""
    values = {f"bleu_{n + 1}": column for n, column in enumerate(np.moveaxis(bleu.bleu_of(sums[..., :10]), -1, 0))}
    values |= {"rouge_l": sums[..., 10] / pictures, "cider": sums[..., 11] / pictures}
    return values | ({"meteor": meteor.meteor(sums[..., 12:])} if sums.shape[-1] > 12 else {})


def score(captions: Mapping[int, str], references: Mapping[int, Sequence[str]], *, with_meteor: bool = True) -> Scores:
    """Scores one caption a picture against that picture's references; both are raw text and are tokenised here.

    Raises ScoreError where the pictures of both sides differ, a picture has no reference, or a special token is left
    in a text. `<unk>` in a caption is scored as the word it is, which no reference has. Warns once where METEOR cannot
    be had (`with_meteor=False` leaves it out without asking; it takes 2 ms a picture).
    """
    check(captions, references)
    pictures = tuple(sorted(captions))
    # A fraction such as `1 1/2` is one token with a hard blank in it; coco-caption's BLEU and CIDEr see two words.
    tokens = [tokenize(captions[picture]) for picture in pictures]
    reference_tokens = [[tokenize(text) for text in references[picture]] for picture in pictures]
    table = References([[_words(each) for each in own] for own in reference_tokens])
    matched = table.match(table.encode([_words(each) for each in tokens]), np.arange(len(pictures)))
    owner = np.repeat(np.arange(len(pictures)), table.per_picture)
    flat = [each for own in reference_tokens for each in own]
    meteor_statistics, no_meteor = None, None if with_meteor else "it was not asked for"
    if with_meteor:
        try:
            meteor_statistics = meteor.statistics(tokens, reference_tokens)
        except meteor.MeteorUnavailable as error:
            no_meteor = str(error)
            warnings.warn(f"METEOR is left out: {no_meteor}", stacklevel=2)  # Python shows the same warning once
    return Scores(
        pictures,
        tokens,
        table,
        bleu.statistics(matched, table),
        rouge_l(table.encode(tokens), table.encode(flat), owner),
        CiderD(table).of(matched),
        meteor_statistics,
        no_meteor,
    )


def check(captions: Mapping[int, str], references: Mapping[int, Sequence[str]]) -> None:
    """Raises ScoreError unless both hold the same pictures, each has references, and no special token is left."""
    if not references:
        raise ScoreError("there are no references to score against")
    missing, extra = sorted(references.keys() - captions.keys()), sorted(captions.keys() - references.keys())
    if missing or extra:
        told = [
            f"{len(ids):,} pictures have {what} ({', '.join(map(str, ids[:5]))}{', ...' if len(ids) > 5 else ''})"
            for ids, what in ((missing, "references and no caption"), (extra, "a caption and no references"))
            if ids
        ]
        raise ScoreError(
            f"{' and '.join(told)}: a score counts only over all {len(references):,} pictures of its split; caption the"
            " missing ones and take out the others"
        )
    if bare := sorted(picture for picture, texts in references.items() if not texts):
        raise ScoreError(f"{len(bare):,} pictures have no references ({', '.join(map(str, bare[:5]))})")
    for what, texts in (
        ("caption", captions.items()),
        ("reference", ((picture, text) for picture, own in references.items() for text in own)),
    ):
        for picture, text in texts:
            if found := SPECIAL.search(text):
                raise ScoreError(
                    f"the {what} {text!r} of picture {picture} holds the special token {found[0]}: it would be counted"
                    " as a word; take such tokens out before scoring"
                )


def _words(tokens: Sequence[str]) -> list[str]:
    return [word for token in tokens for word in token.split()]
