"""BLEU, ROUGE-L, CIDEr-D and METEOR equal pycocoevalcap's, and BLEU nltk's, on the same tokens."""

from __future__ import annotations

import json
import random
import shutil
import stat
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nltk.translate.bleu_score import corpus_bleu
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from stages.scorers import meteor
from stages.scorers.bleu import bleu
from stages.scorers.cider import CiderD, cider
from stages.scorers.ngrams import References
from stages.scorers.ptb import tokenize
from stages.scorers.rouge import rouge_l
from stages.scorers.score import METRICS, score

java = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java, which runs METEOR's jar")
Tokens = list[str]
NLTK_WEIGHTS = [(1.0,), (0.5, 0.5), (1 / 3, 1 / 3, 1 / 3), (0.25, 0.25, 0.25, 0.25)]


def corpus(seed: int, pictures: int = 60, shortest: int = 1) -> tuple[list[Tokens], list[list[Tokens]]]:
    """Captions and references from few words, so that n-grams of all orders match, repeat and miss; 1 to 6 of each."""
    draw = random.Random(seed)
    words = ["a", "a", "the", "dog", "man", "on", "in", "runs", "red", "ball", "of", "it", "'s", "t-shirt"]

    def sentence(topic: Sequence[str], least: int) -> Tokens:
        return [draw.choice(topic if draw.random() < 0.6 else words) for _ in range(draw.randint(least, 14))]

    captions, references = [], []
    for _ in range(pictures):
        topic = draw.sample(words, 4)
        references.append([sentence(topic, 1) for _ in range(draw.randint(1, 6))])
        own = draw.choice(references[-1])
        caption = sentence(topic, shortest) if draw.random() < 0.5 else [*own, *sentence(topic, 1)]
        caption = [*caption[: max(shortest, 9)], *draw.choice([[], ["unseen"], ["unseen", "unseen"]])]
        captions.append(caption + ["a"] * (shortest - len(caption)))
    return captions, references


def lines(captions: list[Tokens], references: list[list[Tokens]]) -> tuple[dict[int, Any], dict[int, Any]]:
    """As pycocoevalcap takes them: references first."""
    return (
        {i: [" ".join(each) for each in own] for i, own in enumerate(references)},
        {i: [" ".join(caption)] for i, caption in enumerate(captions)},
    )


def rouge(captions: list[Tokens], references: list[list[Tokens]]) -> np.ndarray:
    table = References(references)
    owner = np.repeat(np.arange(len(references)), table.per_picture)
    return rouge_l(table.encode(captions), table.encode([each for own in references for each in own]), owner)


@pytest.mark.parametrize("seed", range(8))
def test_bleu_is_cocos(seed: int) -> None:
    captions, references = corpus(seed)
    theirs, _ = Bleu(4).compute_score(*lines(captions, references), verbose=0)
    assert bleu(captions, references) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_bleu_is_nltks(seed: int) -> None:
    """From four words a caption on; nltk counts one n-gram in a caption that is too short to have any."""
    captions, references = corpus(seed, shortest=4)
    assert bleu(captions, references) == pytest.approx(corpus_bleu(references, captions, NLTK_WEIGHTS), abs=1e-12)


def test_bleu_where_coco_and_nltk_differ() -> None:
    """No 4-gram in common: 0 as nltk means it; coco-caption leaves a trace of what it adds against division by 0."""
    captions, references = [["a", "dog", "runs", "on", "grass"]], [[["a", "dog", "runs", "in", "snow"]]]
    ours = bleu(captions, references)
    coco, _ = Bleu(4).compute_score(*lines(captions, references), verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nltk = corpus_bleu(references, captions, NLTK_WEIGHTS)
    assert ours[3] == 0
    assert 0 < coco[3] < 1e-3
    assert nltk[3] < 1e-70
    assert ours[:3] == pytest.approx(coco[:3], abs=1e-9)
    assert ours[:3] == pytest.approx(nltk[:3], abs=1e-12)


def test_bleu_of_captions_without_words() -> None:
    """They count with no words, as in coco-caption: the others' precision stands and brevity is punished."""
    captions, references = corpus(3)
    captions[:5] = [[] for _ in range(5)]
    theirs, _ = Bleu(4).compute_score(*lines(captions, references), verbose=0)
    assert bleu(captions, references) == pytest.approx(theirs, abs=1e-9)
    assert bleu([[] for _ in captions], references).tolist() == [0, 0, 0, 0]


def test_bleu_is_the_corpus_and_not_the_mean_of_sentences() -> None:
    captions, references = corpus(5)
    alone = np.mean([bleu([caption], [own])[3] for caption, own in zip(captions, references, strict=True)])
    assert abs(bleu(captions, references)[3] - alone) > 0.02


def test_bleu_punishes_brevity() -> None:
    references = [[["a", "dog", "runs", "on", "green", "grass"]]] * 3
    assert bleu([["a", "dog", "runs", "on"]] * 3, references)[0] == pytest.approx(np.exp(1 - 6 / 4))


@pytest.mark.parametrize("seed", range(8))
def test_rouge_is_cocos(seed: int) -> None:
    captions, references = corpus(seed)
    _, theirs = Rouge().compute_score(*lines(captions, references))
    assert rouge(captions, references) == pytest.approx(theirs, abs=1e-12)


def test_rouge_of_long_and_of_no_words() -> None:
    captions, references = corpus(9, pictures=20)
    captions[0] = captions[0] * 12
    references[1] = [each * 11 for each in references[1]]
    _, theirs = Rouge().compute_score(*lines(captions, references))
    captions[2] = []
    ours = rouge(captions, references)
    assert ours[2] == 0
    assert np.delete(ours, 2) == pytest.approx(np.delete(theirs, 2), abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_cider_is_cocos(seed: int) -> None:
    captions, references = corpus(seed)
    _, theirs = Cider().compute_score(*lines(captions, references))
    assert cider(captions, references) == pytest.approx(theirs, abs=1e-9)


class Longer(list[Any]):
    """A list that claims another length: how pycocoevalcap is told how many pictures the frequencies come from."""

    length = 0

    def __len__(self) -> int:
        return self.length


@pytest.mark.parametrize("seed", range(4))
def test_cider_with_frequencies_of_other_documents(seed: int) -> None:
    """As the reward of val captions with the training captions' frequencies."""
    captions, references = corpus(seed)
    _, documents = corpus(seed + 100, pictures=90)
    scorer = CiderScorer()
    for caption, own in zip(captions, references, strict=True):
        scorer += (" ".join(caption), [" ".join(each) for each in own])
    counts: Counter[tuple[str, ...]] = Counter()
    for own in documents:
        counts.update({tuple(each[i : i + n]) for each in own for n in range(1, 5) for i in range(len(each) - n + 1)})
    scorer.document_frequency.update(counts)
    scorer.crefs = Longer(scorer.crefs)
    scorer.crefs.length = len(documents)
    theirs = scorer.compute_cider()

    training = References(documents)
    own_table = References(references, numbered_like=training)
    ours = CiderD(own_table, training).of(own_table.match_each(captions))
    assert ours == pytest.approx(theirs, abs=1e-9)


def test_reward_of_sampled_ids() -> None:
    """Ids of a model's vocabulary, in any order of pictures and with several samples of one, score as their words."""
    captions, references = corpus(11)
    table = References(references)
    reward = CiderD(table)
    vocabulary = ["<pad>", "<start>", "<end>", "<unk>", *sorted({word for caption in captions for word in caption})]
    lookup = table.number(vocabulary)
    lookup[:3] = -1
    draw = np.random.default_rng(0)
    pictures = np.repeat(draw.integers(len(references), size=40), 5)
    sampled = draw.integers(3, len(vocabulary), size=(200, 16))
    ends = draw.integers(1, 16, size=200)
    sampled[np.arange(200), ends] = 2  # <end>; what is sampled after it must not count
    scores = reward.score(lookup[sampled], pictures)

    said = [[vocabulary[word] for word in row[:end]] for row, end in zip(sampled, ends, strict=True)]
    alone = CiderScorer()
    for caption, picture in zip(said, pictures, strict=True):
        alone += (" ".join(caption), [" ".join(each) for each in references[picture]])
    for own in references:  # the frequencies of all pictures, once each
        alone.document_frequency.update(
            Counter({tuple(each[i : i + n]) for each in own for n in range(1, 5) for i in range(len(each) - n + 1)})
            + Counter(alone.document_frequency)
        )
    alone.crefs = Longer(alone.crefs)
    alone.crefs.length = len(references)
    assert scores == pytest.approx(alone.compute_cider(), abs=1e-9)
    assert scores.max() > 0.1


def test_reward_of_a_batch_is_that_of_its_rows() -> None:
    captions, references = corpus(12)
    table = References(references)
    reward = CiderD(table)
    ids, pictures = table.encode(captions), np.arange(len(captions))
    together = reward.score(ids, pictures)
    assert together.tolist() == [reward.score(ids[i : i + 1], pictures[i : i + 1])[0] for i in range(len(ids))]


def test_references_are_needed() -> None:
    with pytest.raises(ValueError, match="1 of 2 have none"):
        References([[["a"]], []])
    with pytest.raises(ValueError, match="1 captions for 2 pictures"):
        cider([["a"]], [[["a"]], [["b"]]])


def test_meteor_without_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(meteor.MeteorUnavailable, match="no Java on PATH; install one"):
        meteor.statistics([["a"]], [[["a"]]])
    with pytest.warns(UserWarning, match="METEOR is left out: there is no Java"):
        scores = score({1: "a dog"}, {1: ["a dog runs"]})
    assert scores.metrics()["meteor"] is None
    assert "no Java" in (scores.no_meteor or "")
    assert "meteor" not in scores.intervals(10, seed=0)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo broken >&2; exit 3", "answered 0 of 1 captions and ended with 3: broken"),
        ("echo 1 2 3", "answered 0 of 1 captions and ended with 0: 1 2 3"),
        ("exit 0", "answered 0 of 1 captions and ended with 0: no message"),
    ],
)
def test_meteor_with_a_java_that_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, reason: str
) -> None:
    fake = tmp_path / "java"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(meteor.MeteorUnavailable, match=reason):
        meteor.statistics([["a"]], [[["a"]]])


def test_meteor_with_a_java_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "java"
    fake.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(meteor, "START_SECONDS", 0.4)
    with pytest.raises(meteor.MeteorUnavailable, match="did not answer within 0 s"):
        meteor.statistics([["a"]], [[["a"]]])


# From raw text: what pycocoevalcap 1.2 with Java 17 prints of these captions; the test asks it again where Java is.
OWN = {
    1: ("a man rides a horse on the beach", ["A man is riding a brown horse.", "A person rides a horse on a beach ."]),
    2: ("two dogs play in the snow", ["Two dogs, one black and one white, play in the snow .", "Dogs in snow"]),
    3: ("a red bus", ["A double-decker bus drives down the street.", "The bus is red.", "It's a red bus."]),
    4: ("a woman holding an umbrella in the rain", ["A woman's umbrella keeps her dry.", "A woman holds an umbrella"]),
}
RECORDED = {
    "bleu_1": 0.799999999968,
    "bleu_2": 0.6761234037531927,
    "bleu_3": 0.5122999817438058,
    "bleu_4": 0.3792406795733566,
    "rouge_l": 0.777438080495356,
    "cider": 2.398077529150687,
    "meteor": 0.44399692430453364,
}


def published(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "coco" / "metrics_golden.json").read_text(encoding="utf-8"))


def test_recorded_scores() -> None:
    captions, references = {i: own[0] for i, own in OWN.items()}, {i: own[1] for i, own in OWN.items()}
    ours = score(captions, references, with_meteor=False).metrics()
    assert ours == pytest.approx(RECORDED | {"meteor": None}, abs=1e-8)


@java
def test_recorded_scores_are_cocos() -> None:
    """All of pycocoevalcap but METEOR, from raw text on."""
    references = PTBTokenizer().tokenize({i: [{"caption": text} for text in own[1]] for i, own in OWN.items()})
    captions = PTBTokenizer().tokenize({i: [{"caption": own[0]}] for i, own in OWN.items()})
    bleus, _ = Bleu(4).compute_score(references, captions, verbose=0)
    rest = [each.compute_score(references, captions)[0] for each in (Rouge(), Cider())]
    printed = dict(zip(METRICS, [*bleus, *map(float, rest)], strict=False))
    assert printed == {name: pytest.approx(RECORDED[name], abs=1e-8) for name in printed}


@pytest.mark.shared
def test_published_scores(shared: Path) -> None:
    """What other projects print in their own READMEs and tests, to the printed digits."""
    for name, example in published(shared).items():
        split = str.split if example["tokenizer"].startswith("none") else tokenize
        captions = [split(text) for text in example["hyps"]]
        references = [[split(text) for text in own] for own in example["refs"]]
        ours = dict(zip(("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"), bleu(captions, references), strict=True))
        ours |= {"ROUGE_L": rouge(captions, references).mean(), "CIDEr": cider(captions, references).mean()}
        for metric, value in ours.items():
            assert value == pytest.approx(example["published"][metric], abs=5.1e-5), (name, metric)


@java
def test_meteor_is_cocos() -> None:
    """Two starts of the jar, six seconds each: ours once, with everything that METEOR is tested on, and coco's once."""
    captions, references = corpus(1, pictures=40, shortest=2)
    captions[0] = list(references[0][0])  # word for word a reference: the jar sums its chunks in its own way
    # The jar's own separator in a caption, and captions without words.
    captions += [["a", "|||", "dog"], [], *(tokenize(own[0]) for own in OWN.values())]
    references += [[["a", "dog"]], [["a", "dog"], ["a", "cat"]]]
    references += [[tokenize(text) for text in own[1]] for own in OWN.values()]
    shared = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    examples = list(published(shared).values()) if shared.is_dir() else []
    for example in examples:
        split = str.split if example["tokenizer"].startswith("none") else tokenize
        captions += [split(text) for text in example["hyps"]]
        references += [[split(text) for text in own] for own in example["refs"]]

    ours = meteor.statistics(captions, references)
    asked = Meteor()
    whole, theirs = asked.compute_score(*lines(captions[:40], references[:40]))
    recorded, _ = asked.compute_score(*lines(captions[42:46], references[42:46]))
    assert ours.shape == (len(captions), meteor.COLUMNS)
    assert meteor.meteor(ours[:40]) == pytest.approx(theirs, abs=1e-12)
    assert meteor.meteor(ours[:40].sum(axis=0)) == pytest.approx(whole, abs=1e-12)
    assert meteor.meteor(ours[40:42]).tolist() == [1, 0]
    assert meteor.meteor(ours[42:46].sum(axis=0)) == pytest.approx(recorded, abs=1e-12)
    assert recorded == pytest.approx(RECORDED["meteor"], abs=1e-12)
    for example, rows in zip(examples, ours[46:].reshape(-1, 2, meteor.COLUMNS), strict=True):
        assert meteor.meteor(rows.sum(axis=0)) == pytest.approx(example["published"]["METEOR"], abs=5.1e-5)


@pytest.mark.shared
def test_coco_val_is_scored_as_by_coco(shared: Path) -> None:
    """Real captions: the first of each picture against the rest, the first thousand pictures."""
    annotations = json.loads((shared / "coco" / "captions_val2017.json").read_text(encoding="utf-8"))["annotations"]
    texts: dict[int, list[str]] = {}
    for annotation in annotations:
        texts.setdefault(annotation["image_id"], []).append(annotation["caption"])
    some = dict(list(texts.items())[:1000])
    ours = score({i: own[0] for i, own in some.items()}, {i: own[1:] for i, own in some.items()}, with_meteor=False)
    references = {i: [" ".join(tokenize(text)) for text in some[i][1:]] for i in sorted(some)}
    captions = {i: [" ".join(tokenize(some[i][0]))] for i in sorted(some)}
    bleus, _ = Bleu(4).compute_score(references, captions, verbose=0)
    _, rouges = Rouge().compute_score(references, captions)
    _, ciders = Cider().compute_score(references, captions)
    metrics = ours.metrics()
    assert [metrics[f"bleu_{n}"] for n in range(1, 5)] == pytest.approx(bleus, abs=1e-9)
    assert ours.rouge_l == pytest.approx(rouges, abs=1e-12)
    assert ours.cider == pytest.approx(ciders, abs=1e-9)
