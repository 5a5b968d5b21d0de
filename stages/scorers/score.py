"""All metrics of one set of captions: BLEU-1..4, ROUGE-L, CIDEr-D and METEOR, for the whole and for every picture."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

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


@dataclass(frozen=True, slots=True)
class Difference:
    """How much one set of captions is better than another in a metric."""

    value: float
    low: float  # ends of the 95% interval; noise explains a difference whose interval holds 0
    high: float
    better: float  # share of resamples in which it is better


@dataclass(frozen=True)
class Scores:
    """What a set of captions scores. Metrics are fractions (0.25, not 25), CIDEr-D as coco-caption prints it (0 to 10).

    `pictures` are ids in the order of the rows of everything else.
    """

    pictures: tuple[int, ...]
    tokens: list[list[str]] = field(repr=False)  # of each caption
    reference_tokens: list[list[list[str]]] = field(repr=False)
    references: References = field(repr=False)
    bleu_statistics: Ints = field(repr=False)  # (N, 10), see bleu.statistics
    rouge_l: Floats = field(repr=False)  # (N,)
    cider: Floats = field(repr=False)  # (N,), document frequencies from these references
    meteor_statistics: Floats | None = field(default=None, repr=False)  # (N, 23), see meteor.statistics
    no_meteor: str | None = "it was not asked for"  # why there are none

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

    def difference(self, other: Scores, resamples: int, seed: int) -> dict[str, Difference]:
        """How much better these captions are than `other`'s of the same pictures: self - other, paired over pictures.

        Raises ScoreError where pictures or references are not the same.
        """
        mine, theirs = self.references, other.references
        same = np.array_equal(mine.lengths, theirs.lengths) and np.array_equal(mine.frequency, theirs.frequency)
        if self.pictures != other.pictures or not same:
            raise ScoreError(
                f"{len(self.pictures):,} and {len(other.pictures):,} pictures, or their references, are not the same:"
                " a difference is paired over pictures that both have captioned"
            )
        count = len(self.pictures)
        ours, others = (metrics_of(each.columns().sum(axis=0), count) for each in (self, other))
        resampled, against = (
            metrics_of(bootstrap.resampled_sums(each.columns(), resamples, seed), count) for each in (self, other)
        )
        return {
            name: Difference(
                float(ours[name] - others[name]),
                *bootstrap.interval(resampled[name] - against[name]),
                float(np.mean(resampled[name] > against[name])),
            )
            for name in METRICS
            if name in ours and name in others
        }

    def intervals(self, resamples: int, seed: int) -> dict[str, tuple[float, float]]:
        """The 95% bootstrap interval over pictures of every metric that there is."""
        values = metrics_of(bootstrap.resampled_sums(self.columns(), resamples, seed), len(self.pictures))
        return {name: bootstrap.interval(each) for name, each in values.items()}


def add_meteor(*scored: Scores) -> list[Scores]:
    """The same scores with METEOR, for all in one Java process, whose start alone costs six seconds of a core.

    Where METEOR cannot be had they come back with the reason, which is also a warning (Python shows the same one once).
    """
    tokens = [caption for scores in scored for caption in scores.tokens]
    references = [own for scores in scored for own in scores.reference_tokens]
    try:
        rows = meteor.statistics(tokens, references)
    except meteor.MeteorUnavailable as error:
        warnings.warn(f"METEOR is left out: {error}", stacklevel=2)
        return [replace(scores, no_meteor=str(error)) for scores in scored]
    ends = np.cumsum([len(scores.tokens) for scores in scored])[:-1]
    return [
        replace(scores, meteor_statistics=own, no_meteor=None)
        for scores, own in zip(scored, np.split(rows, ends), strict=True)
    ]


def metrics_of(sums: Floats, pictures: int) -> dict[str, Floats]:
    """Metrics of summed columns (..., C) of `pictures` pictures each; each (...)."""
    values = {f"bleu_{n + 1}": column for n, column in enumerate(np.moveaxis(bleu.bleu_of(sums[..., :10]), -1, 0))}
    values |= {"rouge_l": sums[..., 10] / pictures, "cider": sums[..., 11] / pictures}
    return values | ({"meteor": meteor.meteor(sums[..., 12:])} if sums.shape[-1] > 12 else {})


def score(captions: Mapping[int, str], references: Mapping[int, Sequence[str]], *, with_meteor: bool = True) -> Scores:
    """Scores one caption a picture against that picture's references; both are raw text and are tokenised here.

    Raises ScoreError where the pictures of both sides differ, a picture has no reference, or a special token is left
    in a text. `<unk>` in a caption is scored as the word it is, which no reference has. Warns once where METEOR cannot
    be had (`with_meteor=False` leaves it out without asking: it takes six seconds and 2 ms a picture).
    """
    return Judge(references).score(captions, with_meteor=with_meteor)


class Judge:
    """The references of a split, made ready once to score several sets of captions."""

    def __init__(self, references: Mapping[int, Sequence[str]]) -> None:
        """`references`: the raw texts of each picture, by its id. Raises ScoreError as `score` does."""
        if not references:
            raise ScoreError("there are no references to score against")
        if bare := sorted(picture for picture, texts in references.items() if not texts):
            raise ScoreError(f"pictures without references: {len(bare):,} of {len(references):,} ({_some(bare)})")
        for picture, own in references.items():
            for text in own:
                _no_special("reference", picture, text)
        self.pictures = tuple(sorted(references))
        self._tokens = [[tokenize(text) for text in references[picture]] for picture in self.pictures]
        self._table = References([[_words(tokens) for tokens in own] for own in self._tokens])
        self._cider = CiderD(self._table)
        self._flat = self._table.encode([tokens for own in self._tokens for tokens in own])
        self._owner = np.repeat(np.arange(len(self.pictures)), self._table.per_picture)

    def score(self, captions: Mapping[int, str], *, with_meteor: bool = True) -> Scores:
        """Scores one raw caption for each of the pictures. Raises and warns as `score` does."""
        self._check(captions)
        tokens = [tokenize(captions[picture]) for picture in self.pictures]
        matched = self._table.match_each([_words(each) for each in tokens])
        scores = Scores(
            self.pictures,
            tokens,
            self._tokens,
            self._table,
            bleu.statistics(matched, self._table),
            rouge_l(self._table.encode(tokens), self._flat, self._owner),
            self._cider.of(matched),
        )
        return add_meteor(scores)[0] if with_meteor else scores

    def _check(self, captions: Mapping[int, str]) -> None:
        missing = [picture for picture in self.pictures if picture not in captions]
        extra = sorted(captions.keys() - set(self.pictures))
        if missing or extra:
            told = []
            if missing:
                told.append(
                    f"captions are missing for {len(missing):,} of {len(self.pictures):,} pictures ({_some(missing)})"
                )
            if extra:
                told.append(f"{len(extra):,} are of pictures without references ({_some(extra)})")
            raise ScoreError(f"{' and '.join(told)}: a score counts over all pictures of its split and no others")
        for picture in self.pictures:
            _no_special("caption", picture, captions[picture])


def _no_special(what: str, picture: int, text: str) -> None:
    if found := SPECIAL.search(text):
        raise ScoreError(
            f"the {what} {text!r} of picture {picture} holds the special token {found[0]}: it would be counted as a"
            " word; take such tokens out before scoring"
        )


def _some(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")


def _words(tokens: Sequence[str]) -> list[str]:
    """A fraction such as `1 1/2` is one token with a hard blank in it; coco-caption's BLEU and CIDEr see two words."""
    return [word for token in tokens for word in token.split()]
