"""The score card of one split: what captions score, how sure that is, and what they are to be held against.

The card is a nested dict that JSON can hold. BLEU-1..4, ROUGE-L, CIDEr-D, METEOR and the number of images lie on top,
so that `test.cider` in reports/P/metrics.json is what it says:

    {"bleu_1": 0.63, ..., "bleu_4": 0.21, "rouge_l": 0.46, "cider": 0.51, "meteor": 0.20, "images": 500,
     "intervals": {"cider": {"low": 0.47, "high": 0.55}, ...},
     "rows": {"human": {...}, "neighbours": {...}, "constant": {...}, "word_salad": {...}},
     "over_neighbours": {"cider": {"value": 0.12, "low": 0.09, "high": 0.15, "better": 1.0}, ...},
     "diagnostics": {...}, "split": {...}, "decoding": {...}, "method": {...}}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stages.fetch.captions import ids_sha256
from stages.scorers.floors import WORD_SALAD, Floors
from stages.scorers.ptb import tokenize
from stages.scorers.score import METRICS, Judge, Scores, add_meteor, score
from stages.vocab.vocabulary import BAD_ENDINGS

TOKENIZER = "PTB as in coco-caption: lower case, 18 punctuation marks dropped"
SEED = 2002  # of the bootstrap: the same for every card, so that two cards' resamples pair
UNKNOWN = "<unk>"
LONGEST_PHRASE = 4  # words of a phrase that may be said twice


class Training:
    """What a card needs of the training captions: `captions[i]` are picture i's, raw text. Made once for all splits."""

    def __init__(self, captions: Sequence[Sequence[str]]) -> None:
        self.captions = captions

    @cached_property
    def floors(self) -> Floors:
        return Floors(self.captions)

    @cached_property
    def seen(self) -> frozenset[tuple[str, ...]]:
        """Every training caption as its tokens."""
        return frozenset(tuple(tokenize(text)) for own in self.captions for text in own)


@dataclass(frozen=True)
class Sheet:
    """What is to be scored of one split."""

    captions: Mapping[int, str]  # one raw text a picture, by its id
    references: Mapping[int, Sequence[str]]  # that picture's, raw as people wrote them
    neighbours: Mapping[int, str] | None = None  # by Floors.neighbours, or None where there are no features


def build_all(
    sheets: Mapping[str, Sheet], *, training: Training, decoding: Mapping[str, Any], resamples: int
) -> dict[str, dict[str, Any]]:
    """The card of every split, by its name. METEOR of all of them is asked for at once, since Java starts slowly.

    Raises scorers.score.ScoreError where captions and references do not fit each other.
    """
    judges = {split: Judge(sheet.references) for split, sheet in sheets.items()}
    people = {split: human_row(sheet.references) for split, sheet in sheets.items()}
    # METEOR goes with what is compared by it: the captions and people's.
    models = {split: judges[split].score(sheet.captions, with_meteor=False) for split, sheet in sheets.items()}
    known = {split: human for split, (human, _) in people.items() if human}
    scored = iter(add_meteor(*models.values(), *known.values()))
    models, known = {split: next(scored) for split in models}, {split: next(scored) for split in known}
    return {
        split: _card(
            split, sheet, models[split], known.get(split), people[split][1], judges[split], training, resamples
        )
        | {"decoding": dict(decoding)}
        for split, sheet in sheets.items()
    }


def build(
    captions: Mapping[int, str],
    references: Mapping[int, Sequence[str]],
    *,
    split: str,
    training: Training,
    decoding: Mapping[str, Any],
    resamples: int,
    neighbours: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """The card of one split, as `build_all` makes it."""
    sheet = Sheet(captions, references, neighbours)
    return build_all({split: sheet}, training=training, decoding=decoding, resamples=resamples)[split]


def _card(
    split: str,
    sheet: Sheet,
    scores: Scores,
    human: Scores | None,
    no_human: str | None,
    judge: Judge,
    training: Training,
    resamples: int,
) -> dict[str, Any]:
    constant = training.floors.constant
    rows = {
        "human": human,
        "neighbours": None if sheet.neighbours is None else judge.score(sheet.neighbours, with_meteor=False),
        "constant": judge.score(dict.fromkeys(sheet.references, constant), with_meteor=False),
        "word_salad": judge.score(dict.fromkeys(sheet.references, WORD_SALAD), with_meteor=False),
    }
    neighbours = rows["neighbours"]
    counts = Counter(map(len, sheet.references.values()))
    return {
        **_rounded(scores.metrics()),
        "images": len(scores.pictures),
        "intervals": _intervals(scores, resamples),
        "rows": {name: row and _rounded(row.metrics()) for name, row in rows.items()},
        "over_neighbours": _differences(scores, neighbours, resamples) if neighbours and resamples else None,
        "diagnostics": diagnostics(scores, training.seen),
        "split": {
            "name": split,
            "sha256": ids_sha256(scores.pictures),
            "references_per_image": {str(count): images for count, images in sorted(counts.items())},
        },
        "method": {
            "tokenizer": TOKENIZER,
            "no_meteor": scores.no_meteor,
            "no_human": no_human,
            "intervals": f"95%, percentiles of {resamples:,} resamples of the images, seed {SEED}"
            if resamples
            else None,
            "constant": constant,
            "word_salad": WORD_SALAD,
            "human": "image i's caption number i modulo its count (images by id), against its other captions",
            "neighbours": "consensus caption of the 60 nearest training images (1505.04467)",
        },
    }


def human_row(references: Mapping[int, Sequence[str]]) -> tuple[Scores | None, str | None]:
    """How one person scores against the others, or None and the reason.

    Of the i-th picture by id the caption number i modulo its number of captions is taken out and scored against the
    rest, so every place in the list has its turn: the first captions of COCO alone score 2 CIDEr points more. People
    have one reference fewer than the captions of the card, which costs them: with n references BLEU and ROUGE-L rise
    with n.
    """
    if alone := sum(len(own) < 2 for own in references.values()):
        return None, f"no other caption to hold it against in {alone:,} of {len(references):,} images"
    taken = {picture: i % len(references[picture]) for i, picture in enumerate(sorted(references))}
    captions = {picture: references[picture][place] for picture, place in taken.items()}
    others = {picture: [*own[: taken[picture]], *own[taken[picture] + 1 :]] for picture, own in references.items()}
    return score(captions, others, with_meteor=False), None


def paired(
    captions: Mapping[int, str],
    other: Mapping[int, str],
    references: Mapping[int, Sequence[str]],
    *,
    resamples: int,
    with_meteor: bool = False,
) -> dict[str, Any]:
    """How much better `captions` are than `other` of the same pictures, per metric:
    {"cider": {"value": difference, "low": ..., "high": ..., "better": share of resamples in which they are better}}."""
    judge = Judge(references)
    first, second = (judge.score(each, with_meteor=with_meteor) for each in (captions, other))
    return _differences(first, second, resamples)


def diagnostics(scores: Scores, seen: frozenset[tuple[str, ...]]) -> dict[str, float]:
    """What a score does not show; shares are percent of the captions. `seen` are the training captions' tokens."""
    captions = scores.tokens
    words, reference_words = scores.bleu_statistics[:, :2].sum(axis=0)
    return {
        "length_ratio": round(float(words / max(reference_words, 1)), 4),  # to the references closest in length
        "mean_words": round(float(words) / len(captions), 2),
        "distinct_captions": len({tuple(caption) for caption in captions}),
        "distinct_words": len({word for caption in captions for word in caption}),
        "seen_percent": _percent(tuple(caption) in seen for caption in captions),  # the rest is novel
        "unknown_percent": _percent(UNKNOWN in caption for caption in captions),
        "bad_ending_percent": _percent(not caption or caption[-1] in BAD_ENDINGS for caption in captions),
        "repeat_percent": _percent(map(repeats, captions)),
    }


def repeats(caption: Sequence[str]) -> bool:
    """Whether a word, or a phrase of up to four, is said twice in a row, or three words come back later."""
    for length in range(1, LONGEST_PHRASE + 1):
        for start in range(len(caption) - 2 * length + 1):
            if caption[start : start + length] == caption[start + length : start + 2 * length]:
                return True
    threes = [tuple(caption[start : start + 3]) for start in range(len(caption) - 2)]
    return len(set(threes)) < len(threes)


def markdown(cards: Mapping[str, Mapping[str, Any]]) -> str:
    """The cards of a profile, by split, for people: metrics with intervals, the rows beside them, diagnostics."""
    return "\n".join(line for split, card in cards.items() for line in _page(split, card)) + "\n"


TITLES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D", "METEOR")
ROWS = {
    "human": "one person against the others",
    "neighbours": "caption of the nearest training pictures",
    "constant": "best constant caption",
    "word_salad": "word salad",
}


def _page(split: str, card: Mapping[str, Any]) -> Iterable[str]:
    method, about = card["method"], card["split"]
    references = ", ".join(f"{images:,} with {count}" for count, images in about["references_per_image"].items())
    yield f"## {split}: {card['images']:,} images\n"
    yield "| captions | " + " | ".join(TITLES) + " |"
    yield "|---|" + "---:|" * len(TITLES)
    yield _row("**this model**", card)
    if card["intervals"]:
        ends = [card["intervals"].get(name) for name in METRICS]
        yield "| 95% interval | " + " | ".join(_span(each) for each in ends) + " |"
    for name, title in ROWS.items():
        if card["rows"][name]:
            yield _row(title, card["rows"][name])
    yield ""
    if over := card["over_neighbours"]:
        better = f"CIDEr-D {_signed(over['cider'])}, BLEU-4 {_signed(over['bleu_4'])}"
        yield f"Better than the nearest pictures' captions by {better}.\n"
    yield "| of the captions | |"
    yield "|---|---:|"
    for name, value in card["diagnostics"].items():
        yield f"| {DIAGNOSTICS[name]} | {value:,}{' %' if name.endswith('_percent') else ''} |"
    yield ""
    yield f"- images: {about['name']}, sha256 of their ids `{about['sha256']}`; references: {references}"
    yield f"- decoding: {', '.join(f'{key} {value}' for key, value in card['decoding'].items()) or 'not known'}"
    yield f"- tokens: {method['tokenizer']}"
    if method["intervals"]:
        yield f"- intervals: {method['intervals']}"
    yield f"- human row: {method['no_human'] or method['human']}"
    yield f"- constant caption: “{method['constant']}”; word salad: “{method['word_salad']}”"
    if method["no_meteor"]:
        yield f"- METEOR is missing: {method['no_meteor']}"
    yield ""


DIAGNOSTICS = {
    "length_ratio": "words, to those of the closest reference",
    "mean_words": "words a caption",
    "distinct_captions": "different captions",
    "distinct_words": "different words",
    "seen_percent": "word for word a training caption",
    "unknown_percent": "with `<unk>`",
    "bad_ending_percent": "with a bad ending (a, the, of, with, and ...)",
    "repeat_percent": "that repeat a word or phrase",
}


def _row(title: str, metrics: Mapping[str, Any]) -> str:
    cells = ("-" if metrics[name] is None else f"{100 * metrics[name]:.1f}" for name in METRICS)
    return f"| {title} | {' | '.join(cells)} |"


def _span(ends: Mapping[str, float] | None) -> str:
    return "-" if ends is None else f"{100 * ends['low']:.1f} - {100 * ends['high']:.1f}"


def _signed(difference: Mapping[str, float]) -> str:
    low, high = 100 * difference["low"], 100 * difference["high"]
    return f"{100 * difference['value']:+.1f} ({low:+.1f} to {high:+.1f})"


def _intervals(scores: Scores, resamples: int) -> dict[str, dict[str, float]]:
    if not resamples:
        return {}
    ends = scores.intervals(resamples, SEED)
    return {name: {"low": round(low, 6), "high": round(high, 6)} for name, (low, high) in ends.items()}


def _differences(scores: Scores, other: Scores, resamples: int) -> dict[str, dict[str, float]]:
    found = scores.difference(other, resamples, SEED)
    return {name: {key: round(value, 6) for key, value in asdict(each).items()} for name, each in found.items()}


def _rounded(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 6) for name, value in metrics.items()}


def _percent(flags: Iterable[bool]) -> float:
    return round(100 * float(np.mean([*flags])), 2)
