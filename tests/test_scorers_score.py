"""One call from text to scores: what it refuses, what it does not let pass for quality, and how sure it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stages.scorers import bootstrap
from stages.scorers.floors import CONSENSUS, WORD_SALAD, Floors
from stages.scorers.ptb import tokenize
from stages.scorers.score import METRICS, Judge, ScoreError, Scores, metrics_of, score

REFERENCES = {
    7: ["A man rides a horse.", "A man on a brown horse", "A person is riding a horse ."],
    3: ["Two dogs play in the snow.", "Dogs in the snow", "A pair of dogs playing in snow"],
    5: ["A red bus on a street.", "The bus is red", "A bus drives down the street ."],
    1: ["A child eats an apple.", "A girl is eating a green apple", "The girl has an apple"],
}
CAPTIONS = {
    1: "a girl eats an apple",
    3: "two dogs in the snow",
    5: "a bus on the street",
    7: "a man is riding a horse",
}


def scored(captions: dict[int, str], references: dict[int, list[str]] = REFERENCES) -> Scores:
    return score(captions, references, with_meteor=False)


def test_rows_are_pictures_by_id() -> None:
    scores = scored(CAPTIONS)
    assert scores.pictures == (1, 3, 5, 7)
    alone = [scored({i: CAPTIONS[i]}, {i: REFERENCES[i]}) for i in (1, 3, 5, 7)]
    assert scores.of_pictures()["bleu_2"].tolist() == [each.metrics()["bleu_2"] for each in alone]
    assert scores.rouge_l.tolist() == [each.metrics()["rouge_l"] for each in alone]
    assert scores.metrics()["cider"] == pytest.approx(scores.cider.mean())
    assert set(scores.metrics()) == set(METRICS)


def test_order_of_pictures_does_not_matter() -> None:
    again = scored(dict(reversed(CAPTIONS.items())), dict(reversed(REFERENCES.items())))
    assert again.metrics() == scored(CAPTIONS).metrics()


def test_other_pictures_are_refused() -> None:
    with pytest.raises(ScoreError, match=r"captions are missing for 1 of 4 pictures \(3\): a score counts over all"):
        scored({i: text for i, text in CAPTIONS.items() if i != 3})
    with pytest.raises(ScoreError, match=r"2 are of pictures without references \(8, 9\)"):
        scored(CAPTIONS | {9: "a cat", 8: "a cat"})
    many = dict.fromkeys(range(100, 130), "a cat")
    with pytest.raises(ScoreError, match=r"\(1, 3, 5, 7\) and 30 are .* \(100, 101, 102, 103, 104, \.\.\.\)"):
        scored(many)


def test_nothing_to_score_against() -> None:
    with pytest.raises(ScoreError, match="no references to score against"):
        scored({}, {})
    with pytest.raises(ScoreError, match=r"pictures without references: 1 of 4 \(3\)"):
        scored(CAPTIONS, REFERENCES | {3: []})


@pytest.mark.parametrize("token", ["<start>", "<end>", "<pad>", "<END>", "</s>", "<bos>", "[SEP]"])
def test_special_tokens_are_refused(token: str) -> None:
    """Left in on both sides they would match each other: up to 8 points of BLEU-1."""
    with pytest.raises(ScoreError, match=r"caption 'a girl .*' of picture 1 holds the special token"):
        scored(CAPTIONS | {1: f"a girl {token}"})
    with pytest.raises(ScoreError, match=r"reference 'a girl .*' of picture 1 holds the special token"):
        scored(CAPTIONS, REFERENCES | {1: [f"a girl {token}"]})


def test_unknown_words_match_nothing() -> None:
    """`<unk>` is a word that no person wrote: it counts as a miss, and says so where it is."""
    with_unknown = scored(CAPTIONS | {1: "a <unk> eats an apple"})
    without = scored(CAPTIONS | {1: "a zzz eats an apple"})
    assert with_unknown.metrics() == without.metrics()
    assert with_unknown.tokens[0] == ["a", "<unk>", "eats", "an", "apple"]


def test_punctuation_earns_nothing() -> None:
    assert scored({i: text + " ." for i, text in CAPTIONS.items()}).metrics() == scored(CAPTIONS).metrics()
    shouted = {i: f'"{text.upper()}!"'.replace("!", ".") for i, text in CAPTIONS.items()}
    assert scored(shouted).metrics() == scored(CAPTIONS).metrics()


def test_more_references_score_higher() -> None:
    """One reference instead of five halves a score: the count of references belongs on the card."""
    assert scored(CAPTIONS, {i: own[:1] for i, own in REFERENCES.items()}).metrics()["bleu_1"] < 0.8
    assert scored(CAPTIONS).metrics()["bleu_1"] > 0.9


def test_captions_without_words_score_nothing() -> None:
    empty = scored(dict.fromkeys(CAPTIONS, ""))
    assert set(empty.metrics().values()) == {0.0, None}


def coco(shared: Path) -> dict[int, list[str]]:
    texts: dict[int, list[str]] = {}
    for each in json.loads((shared / "coco" / "captions_val2017.json").read_text(encoding="utf-8"))["annotations"]:
        texts.setdefault(each["image_id"], []).append(each["caption"])
    return texts


@pytest.mark.shared
def test_word_salad_wins_bleu_1(shared: Path) -> None:
    """Measured with coco-caption: 0.731 BLEU-1, 0 BLEU-4 and 0.067 CIDEr for ten words without sense."""
    references = coco(shared)
    judge = Judge(references)
    salad = judge.score(dict.fromkeys(references, WORD_SALAD), with_meteor=False)
    metrics = salad.metrics()
    assert metrics["bleu_1"] == pytest.approx(0.731, abs=5e-4)
    assert metrics["bleu_4"] == 0
    assert metrics["cider"] == pytest.approx(0.067, abs=5e-4)
    # Standard error at 5,000 pictures: about 0.29 points of BLEU-1 and 0.21 of BLEU-4, here of people's captions.
    human = score(
        {i: own[0] for i, own in references.items()}, {i: own[1:] for i, own in references.items()}, with_meteor=False
    )
    ends = human.intervals(1000, seed=0)
    assert (ends["bleu_1"][1] - ends["bleu_1"][0]) / 3.92 == pytest.approx(0.0029, abs=0.0006)
    assert (ends["bleu_4"][1] - ends["bleu_4"][0]) / 3.92 == pytest.approx(0.0021, abs=0.0008)


def test_resamples_are_pictures_drawn_again() -> None:
    """Every resample's score is that of the multiset of pictures, scored anew (CIDEr with its document frequencies)."""
    scores = scored(CAPTIONS)
    columns = scores.columns()
    sums = bootstrap.resampled_sums(columns, resamples=250, seed=4)
    draws = np.random.default_rng(4)
    drawn = np.concatenate([draws.integers(4, size=(rows, 4)) for rows in (100, 100, 50)])
    assert sums == pytest.approx(columns[drawn].sum(axis=1))
    metrics = metrics_of(sums, 4)
    for resample in (0, 120, 249):
        pictures = [scores.pictures[i] for i in drawn[resample]]
        again = scored(
            {i: CAPTIONS[picture] for i, picture in enumerate(pictures)},
            {i: REFERENCES[picture] for i, picture in enumerate(pictures)},
        )
        for name in ("bleu_1", "bleu_4", "rouge_l"):
            assert metrics[name][resample] == pytest.approx(again.metrics()[name], abs=1e-12)
    assert metrics["cider"] == pytest.approx(scores.cider[drawn].mean(axis=1))


def test_intervals() -> None:
    scores = scored(CAPTIONS)
    ends = scores.intervals(500, seed=1)
    assert ends == scores.intervals(500, seed=1)
    assert ends != scores.intervals(500, seed=2)
    for name, (low, high) in ends.items():
        assert low <= scores.metrics()[name] <= high, name
    assert bootstrap.interval(np.arange(1001.0)) == pytest.approx((25, 975))


def test_a_pair_sees_what_two_intervals_do_not() -> None:
    """Pictures differ more than systems: the same small gain on every picture is sure only when it is paired."""
    draw = np.random.default_rng(0)
    words = [f"w{i}" for i in range(12)]
    references, plain, better = {}, {}, {}
    for i in range(200):
        own = [words[w] for w in draw.integers(12, size=8)]
        kept = int(draw.integers(1, 7))
        references[i] = [" ".join(own)]
        plain[i] = " ".join([*own[:kept], *["x"] * (8 - kept)])
        better[i] = " ".join([*own[: kept + (i % 4 == 0)], *["x"] * (8 - kept - (i % 4 == 0))])
    judge = Judge(references)
    first, second = (judge.score(each, with_meteor=False) for each in (better, plain))
    alone = [each.intervals(500, seed=0)["bleu_1"] for each in (first, second)]
    assert alone[0][0] < alone[1][1]  # the intervals overlap
    found = first.difference(second, 500, seed=0)["bleu_1"]
    assert 0 < found.low < found.value < found.high
    assert found.better == 1
    back = second.difference(first, 500, seed=0)["bleu_1"]
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))
    none = first.difference(first, 500, seed=0)["cider"]
    assert (none.value, none.low, none.high, none.better) == (0, 0, 0, 0)


def test_a_pair_has_the_same_pictures() -> None:
    others = {i: [*own, "one more"] for i, own in REFERENCES.items()}
    with pytest.raises(ScoreError, match="are not the same"):
        scored(CAPTIONS).difference(scored(CAPTIONS, others), 10, seed=0)


TRAINING = [
    ["A dog runs on grass.", "A brown dog runs.", "The dog is running on the grass ."],
    ["A dog plays with a ball.", "The dog has a red ball", "A dog on the grass with a ball"],
    ["A dog runs after a ball.", "A dog is on the grass .", "A dog chases a ball on grass"],
    ["A plane in the sky.", "An airplane flies high", "The plane is in the blue sky ."],
    ["A plane lands.", "A large airplane in the sky", "A plane over the runway"],
    ["A bowl of soup.", "Soup and bread on a table", "A bowl on the table ."],
]


def test_constant_is_the_best_training_caption_on_training_pictures() -> None:
    floors = Floors(TRAINING)
    references = dict(enumerate(TRAINING))
    judge = Judge(references)
    every = {
        text: judge.score(dict.fromkeys(references, text), with_meteor=False).cider.mean()
        for own in TRAINING
        for text in own
    }
    assert every[floors.constant] == max(every.values())


def test_neighbours_speak_of_what_is_near() -> None:
    """Two kinds of pictures, told apart by their features: each gets a caption of its own kind, close to the others."""
    kinds = {"dog": TRAINING[:3], "plane": TRAINING[3:5]}
    training = [own for kind in kinds.values() for own in kind for _ in range(40)]  # more than 60 of each kind
    draw = np.random.default_rng(0)
    centres = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    features = np.repeat(centres, [120, 80], axis=0) + 0.01 * draw.standard_normal((200, 3))
    said = Floors(training).neighbours(
        np.array([[2.0, 0.1, 0], [0.1, 5.0, 0]], np.float16), features.astype(np.float16)
    )
    assert "dog" in said[0]
    assert "plane" in said[1]


def test_consensus_is_the_definitions() -> None:
    """The definition, pair by pair: cosine of tf-idf per order, penalty on length, sum of the most similar others."""
    training = [own for own in TRAINING for _ in range(2)]
    floors = Floors(training)
    features = np.eye(len(training), 16)
    near = np.zeros((1, 16))
    near[0, :12] = np.linspace(1, 2, 12)
    flat = [tokenize(text) for own in training for text in own]  # all twelve are among the sixty nearest

    def vectors(tokens: list[str]) -> list[dict[tuple[str, ...], float]]:
        found: list[dict[tuple[str, ...], float]] = []
        for n in range(1, 5):
            grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
            counts = {gram: grams.count(gram) * idf(gram) for gram in grams}
            length = sum(weight**2 for weight in counts.values()) ** 0.5
            found.append({gram: weight / length for gram, weight in counts.items()} if length else {})
        return found

    def idf(gram: tuple[str, ...]) -> float:
        having = sum(
            any(gram == tuple(tokenize(text)[i : i + len(gram)]) for text in own for i in range(len(tokenize(text))))
            for own in training
        )
        return float(np.log(len(training) / having))

    every = [vectors(tokens) for tokens in flat]

    def alike(i: int, j: int) -> float:
        cosines = [
            sum(weight * b.get(gram, 0) for gram, weight in a.items()) for a, b in zip(every[i], every[j], strict=True)
        ]
        return float(np.mean(cosines) * np.exp(-((len(flat[i]) - len(flat[j])) ** 2) / 72))

    agreement = [
        sum(sorted((alike(i, j) for j in range(len(flat)) if j != i), reverse=True)[:CONSENSUS])
        for i in range(len(flat))
    ]
    (said,) = floors.neighbours(near, features)
    assert agreement[floors.captions.index(said)] == pytest.approx(max(agreement), abs=1e-5)


def test_features_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(5, 3\) do not fit 6 training pictures"):
        Floors(TRAINING).neighbours(np.zeros((2, 3)), np.zeros((5, 3)))
