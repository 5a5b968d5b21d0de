"""The score card: what it holds, that it is JSON, what it is for people, and files of captions it is made from."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.evaluate import scorecard
from stages.evaluate.results import ResultsError, read_results, write_results
from stages.scorers.floors import WORD_SALAD
from stages.scorers.score import ScoreError, score

REFERENCES = {
    20: ["A man rides a horse.", "A man on a brown horse", "A person is riding a horse ."],
    3: ["Two dogs play in the snow.", "Dogs in the snow", "A pair of dogs playing in snow"],
    11: ["A red bus on a street.", "The bus is red", "A bus drives down the street .", "A bus"],
}
CAPTIONS = {3: "two dogs in the snow", 11: "a bus on the street", 20: "a man is riding a horse"}
TRAINING = scorecard.Training([["A dog runs.", "two dogs in the snow ."], ["A bus on a road.", "A red bus"]])


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without Java a card is made in milliseconds."""
    monkeypatch.setenv("PATH", str(tmp_path))


def build(
    captions: dict[int, str] = CAPTIONS, references: dict[int, list[str]] = REFERENCES, **more: Any
) -> dict[str, Any]:
    given: dict[str, Any] = {"split": "test", "training": TRAINING, "decoding": {"beam": 3}, "resamples": 100} | more
    with pytest.warns(UserWarning, match="METEOR is left out"):
        return scorecard.build(captions, references, **given)


@pytest.mark.usefixtures("no_java")
def test_headline_is_on_top() -> None:
    card = build()
    metrics = score(CAPTIONS, REFERENCES, with_meteor=False).metrics()
    for name, value in metrics.items():
        assert card[name] == (None if value is None else pytest.approx(value, abs=1e-6))
    assert card["images"] == 3
    assert card["meteor"] is None
    assert "no Java" in card["method"]["no_meteor"]
    assert json.loads(json.dumps(card, allow_nan=False)) == card


@pytest.mark.usefixtures("no_java")
def test_split_is_named() -> None:
    """Anyone can recompute the hash: `printf '3\\n11\\n20\\n' | sha256sum`."""
    assert build()["split"] == {
        "name": "test",
        "sha256": hashlib.sha256(b"3\n11\n20\n").hexdigest(),
        "references_per_image": {"3": 2, "4": 1},
    }
    assert build()["decoding"] == {"beam": 3}


@pytest.mark.usefixtures("no_java")
def test_intervals_hold_the_scores() -> None:
    card = build()
    assert set(card["intervals"]) == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"}
    for name, ends in card["intervals"].items():
        assert ends["low"] <= card[name] <= ends["high"]
    assert build() == card
    assert build(resamples=0)["intervals"] == {}


@pytest.mark.usefixtures("no_java")
def test_human_row_leaves_one_out() -> None:
    """The i-th picture by id gives its i-th caption, and is scored against its others."""
    taken = {3: "Two dogs play in the snow.", 11: "The bus is red", 20: "A person is riding a horse ."}
    others = {i: [text for text in own if text != taken[i]] for i, own in REFERENCES.items()}
    assert [len(others[i]) for i in (3, 11, 20)] == [2, 3, 2]
    expected = score(taken, others, with_meteor=False).metrics()
    assert build()["rows"]["human"] == {name: value and round(value, 6) for name, value in expected.items()}


@pytest.mark.usefixtures("no_java")
def test_one_reference_leaves_no_human_row() -> None:
    card = build(references=REFERENCES | {3: ["Two dogs"]})
    assert card["rows"]["human"] is None
    assert "no other caption to hold it against in 1 of 3 images" in card["method"]["no_human"]
    assert "no other caption to hold it against in 1 of 3 images" in scorecard.markdown({"test": card})


@pytest.mark.usefixtures("no_java")
def test_floors_come_from_training_captions() -> None:
    card = build(neighbours=dict.fromkeys(CAPTIONS, "a bus on the street"))
    said = card["method"]["constant"]
    assert any(said in own for own in TRAINING.captions)
    constant = score(dict.fromkeys(REFERENCES, said), REFERENCES, with_meteor=False)
    assert card["rows"]["constant"]["cider"] == pytest.approx(constant.metrics()["cider"], abs=1e-6)
    salad = score(dict.fromkeys(REFERENCES, WORD_SALAD), REFERENCES, with_meteor=False)
    assert card["rows"]["word_salad"]["bleu_1"] == pytest.approx(salad.metrics()["bleu_1"], abs=1e-6)
    over = card["over_neighbours"]["cider"]
    assert over["value"] == pytest.approx(card["cider"] - card["rows"]["neighbours"]["cider"], abs=2e-6)
    assert over["low"] <= over["value"] <= over["high"]


@pytest.mark.usefixtures("no_java")
def test_without_features_no_neighbours() -> None:
    card = build()
    assert card["rows"]["neighbours"] is None
    assert card["over_neighbours"] is None


@pytest.mark.usefixtures("no_java")
def test_missing_captions_are_an_error() -> None:
    with pytest.raises(ScoreError, match=r"captions are missing for 1 of 3 pictures \(3\)"):
        scorecard.build(
            {11: "a bus", 20: "a man"}, REFERENCES, split="val", training=TRAINING, decoding={}, resamples=0
        )


@pytest.mark.usefixtures("no_java")
def test_diagnostics() -> None:
    captions = {3: "two dogs in the snow", 11: "a <unk> on the", 20: "a man and a man and a man"}
    found = build(captions)["diagnostics"]
    assert found == {
        "length_ratio": round((5 + 4 + 8) / (4 + 4 + 6), 4),
        "mean_words": 5.67,
        "distinct_captions": 3,
        "distinct_words": 10,
        "seen_percent": 33.33,
        "unknown_percent": 33.33,
        "bad_ending_percent": 33.33,
        "repeat_percent": 33.33,
    }


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("a a dog", True),
        ("a man on a man on a horse", True),
        ("a man with a hat and a man with a bag", True),
        ("a man and a woman", False),
        ("", False),
        ("a dog on a dog bed", False),
        ("red ball red ball", True),
    ],
)
def test_repeats(caption: str, found: bool) -> None:
    assert scorecard.repeats(caption.split()) is found


@pytest.mark.usefixtures("no_java")
def test_page_for_people() -> None:
    card = build(neighbours=dict.fromkeys(CAPTIONS, "a bus on the street"))
    page = scorecard.markdown({"val": card, "test": card})
    assert page.count("## ") == 2
    for said in (
        f"{100 * card['cider']:.1f}",
        card["split"]["sha256"],
        "one person against the others",
        "beam 3",
        "no Java",
    ):
        assert said in page
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {3, 9}  # every row as wide as its head


@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java, which runs METEOR's jar")
def test_meteor_of_all_splits_at_once() -> None:
    """One start of the jar gives each split and its human row what each would get alone."""
    sheets = {
        "val": scorecard.Sheet(CAPTIONS, REFERENCES),
        "test": scorecard.Sheet({3: "dogs", 20: "a horse"}, {i: REFERENCES[i] for i in (3, 20)}),
    }
    cards = scorecard.build_all(sheets, training=TRAINING, decoding={}, resamples=50)
    assert cards["val"]["method"]["no_meteor"] is None
    assert cards["val"]["rows"]["human"]["meteor"] > 0
    assert 0 < cards["test"]["meteor"] < cards["val"]["meteor"] < 1
    assert cards["val"]["intervals"]["meteor"]["low"] <= cards["val"]["meteor"]
    assert cards["test"]["rows"]["constant"]["meteor"] is None


def test_paired() -> None:
    worse = CAPTIONS | {3: "a cat"}
    found = scorecard.paired(CAPTIONS, worse, REFERENCES, resamples=200)
    assert found["cider"]["value"] > 0
    assert found["cider"]["low"] == 0  # resamples without the one picture see no difference
    assert set(found["bleu_4"]) == {"value", "low", "high", "better"}


def test_results_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results(path, {11: "a “bus”", 3: ""})
    assert json.loads(path.read_text(encoding="utf-8"))[0] == {"image_id": 11, "caption": "a “bus”"}
    assert read_results(path, [3, 11]) == {3: "", 11: "a “bus”"}
    assert list(read_results(path, [3, 11])) == [3, 11]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is not whole JSON"),
        ('{"annotations": []}', "holds an object, not a list"),
        ("3", "holds a number, not a list"),
        ('[{"image_id": 3}]', "entry 0 is"),
        ('[{"image_id": 3, "caption": "a"}, {"image_id": "11", "caption": "b"}]', "entry 1 is"),
        ('[{"image_id": true, "caption": "a"}]', "image_id.*whole number"),
        ('[{"image_id": 3, "caption": null}]', "entry 0 is"),
        ('["a"]', "entry 0 is 'a'"),
        (
            '[{"image_id": 3, "caption": "a"}, {"image_id": 3, "caption": "b"}]',
            "picture 3 is captioned twice, again in entry 1",
        ),
        ('[{"image_id": 3, "caption": "a"}]', r"misses 1 \(11\) of the 2 pictures to score"),
        (
            '[{"image_id": 3, "caption": "a"}, {"image_id": 4, "caption": "a"}]',
            r"misses 1 \(11\) and has .* other pictures: 1 \(4\)",
        ),
    ],
)
def test_results_that_cannot_be_scored(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        read_results(path, [3, 11])
    assert str(path) in str(error.value)


def test_results_that_are_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ResultsError, match="is not a file: give a JSON file in COCO's results format"):
        read_results(tmp_path, [1])
    path = tmp_path / "results.json"
    write_results(path, {1: "a"})
    monkeypatch.setattr("stages.evaluate.results.LARGEST", 10)
    with pytest.raises(ResultsError, match="more than the 10 that a results file may have"):
        read_results(path, [1])


def test_training_pictures_of_other_features() -> None:
    with pytest.raises(ValueError, match="do not fit 2 training pictures"):
        TRAINING.floors.neighbours(np.zeros((3, 4)), np.zeros((3, 4)))
