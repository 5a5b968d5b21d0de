"""Drawn scenes: the same bytes for a seed, captions as different as people's, and pairs that train never shows."""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from builders import run
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider

from stages.fetch import grammar
from stages.fetch.captions import SPLITS, Picture, read_captions
from stages.fetch.drawn import HELD_OUT, scene, split_of
from stages.fetch.grammar import NOUNS, WORDS, describe
from stages.fetch.pictures import Pictures, decode
from stages.fetch.scenes import BACKGROUNDS, COLOURS, SHAPES, Group, Scene, paint
from stages.files import sha256

REPOSITORY = Path(__file__).resolve().parent.parent
SCENES = [scene(2015, number) for number in range(1_600)]
CAPTIONS = [
    [caption.lower().rstrip(".") for caption in describe(drawn, random.Random(number))]
    for number, drawn in enumerate(SCENES)
]
TEST = [number for number in range(len(SCENES)) if split_of(number) == "test"]


def draw(folder: Path, pictures: int, seed: int = 1, size: int = 64) -> dict[str, list[Picture]]:
    folder.mkdir(exist_ok=True)
    data = run("fetch", folder, source="drawn", pictures=pictures, seed=seed, size=size)
    return {split: read_captions(data / f"captions_{split}.json") for split in SPLITS}


def test_the_same_seed_gives_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    draw(tmp_path / "0", 40)
    for hash_seed in ("1", "2"):
        folder = tmp_path / hash_seed
        folder.mkdir()
        (folder / "params.yaml").write_bytes((tmp_path / "0" / "params.yaml").read_bytes())
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-m", "stages.fetch"]
        ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        assert ran.stdout == "fetch: 32 pictures for train, 4 pictures for val, 4 pictures for test\n"
        assert ran.stderr == ""  # no progress bar where nobody watches
    written = [path.relative_to(tmp_path / "0") for path in (tmp_path / "0").rglob("*") if path.is_file()]
    assert len(written) == 6
    for path in written:
        assert len({sha256(tmp_path / name / path) for name in "012"}) == 1, path


def test_a_picture_depends_on_the_seed_and_its_number_alone(tmp_path: Path) -> None:
    few, many, other = draw(tmp_path / "few", 20), draw(tmp_path / "many", 40), draw(tmp_path / "other", 20, seed=2)
    shown = {name: Pictures(tmp_path / name / "data/mine/pictures") for name in ("few", "many", "other")}
    for split in SPLITS:
        assert few[split] == many[split][: len(few[split])]
        for a, b in zip(few[split], other[split], strict=True):
            assert shown["few"].read(a.file_name) == shown["many"].read(a.file_name)
            assert shown["few"].read(a.file_name) != shown["other"].read(b.file_name)
            assert a.captions != b.captions


def test_size_changes_pixels_and_nothing_that_is_said(tmp_path: Path) -> None:
    small, large = draw(tmp_path / "small", 20), draw(tmp_path / "large", 20, size=96)
    assert [p.captions for p in small["train"]] == [p.captions for p in large["train"]]
    first = large["train"][0]
    shown = decode(Pictures(tmp_path / "large/data/mine/pictures").read(first.file_name))
    assert shown.size == (first.width, first.height) == (96, 96)


def test_an_archive_of_an_earlier_source_is_removed(tmp_path: Path) -> None:
    stray = tmp_path / "data/mine/pictures/Flickr8k_Dataset.zip"
    stray.parent.mkdir(parents=True)
    stray.symlink_to(tmp_path / "gone.zip")
    draw(tmp_path, 20)
    assert [path.name for path in stray.parent.iterdir()] == ["drawn.zip"]


def test_train_shows_every_colour_and_shape_but_never_a_held_out_pair(tmp_path: Path) -> None:
    shown = {split: Counter[tuple[str, str]]() for split in SPLITS}
    for number, drawn in enumerate(SCENES):
        shown[split_of(number)].update((group.colour, group.kind) for group in drawn.groups)
    assert HELD_OUT.isdisjoint(shown["train"])
    assert len(shown["val"].keys() & HELD_OUT) > len(HELD_OUT) / 2 < len(shown["test"].keys() & HELD_OUT)
    assert {kind for _, kind in HELD_OUT} == set(SHAPES) == {kind for _, kind in shown["train"]}
    assert {colour for colour, _ in HELD_OUT} == set(COLOURS) == {colour for colour, _ in shown["train"]}
    assert len(shown["train"]) > 0.95 * (len(COLOURS) * len(SHAPES) - len(HELD_OUT))


def test_the_report_names_what_is_held_out(tmp_path: Path) -> None:
    draw(tmp_path, 200)
    report = json.loads((tmp_path / "reports/mine/fetch.json").read_text())
    assert report["held_out_of_train"] == sorted(f"{colour} {kind}" for colour, kind in HELD_OUT)
    named = report["pictures_with_held_out"]
    assert named["train"] == []
    assert named["test"] == [
        number + 1
        for number in range(9, 200, 10)
        if HELD_OUT & {(group.colour, group.kind) for group in scene(1, number).groups}
    ]


def test_the_example_in_the_docstring_is_true() -> None:
    assert doctest.testmod(grammar).attempted == 2
    assert doctest.testmod(grammar).failed == 0


def test_five_captions_in_five_forms() -> None:
    for said in CAPTIONS:
        assert len(set(said)) == 5
        assert all(len(caption.split()) in WORDS for caption in said)
    openings = [len({" ".join(caption.split()[:2]) for caption in said}) for said in CAPTIONS]
    assert np.mean(openings) > 3.5  # of five, so many begin in a different way
    distinct = {caption for said in CAPTIONS for caption in said}
    assert len(distinct) > 0.75 * 5 * len(CAPTIONS)


def test_the_vocabulary_is_small_and_every_word_can_be_learned() -> None:
    counts = Counter(w for number, said in enumerate(CAPTIONS) if number not in TEST for c in said for w in c.split())
    assert 80 <= len(counts) <= 150
    assert min(counts.values()) >= 10


def test_captions_say_what_is_there() -> None:
    for drawn, said in zip(SCENES, CAPTIONS, strict=True):
        colours = {group.colour for group in drawn.groups}
        nouns = {noun for group in drawn.groups for forms in NOUNS[group.kind] for noun in forms}
        every_noun = {noun for forms in NOUNS.values() for form in forms for noun in form}
        for caption in said:
            words = set(caption.split())
            for phrase in ("green grass", "green field", "blue sky", "blue sea", "white snow"):
                words = words if phrase not in caption else set(caption.replace(phrase, "").split())
            assert words & set(COLOURS) <= colours, caption
            assert words & nouns, caption
            assert words & every_noun <= nouns, caption


@pytest.mark.parametrize("colour", COLOURS)
def test_a_picture_shows_the_colour_that_is_said(colour: str) -> None:
    background = next(name for name, what in BACKGROUNDS.items() if name in ("wall", "sand") and what.hides != colour)
    for kind in SHAPES:
        shown = paint(Scene(background, (Group(1, "big", colour, kind),), None), 64, random.Random(kind))
        off = np.abs(np.asarray(shown, int) - COLOURS[colour]).max(axis=2)
        assert (off < 40).mean() > 0.04, kind


def scores(given: dict[int, str], references: dict[int, list[str]]) -> tuple[float, float]:
    """BLEU-4 and CIDEr by pycocoevalcap."""
    hypotheses = {number: [caption] for number, caption in given.items()}
    with contextlib.redirect_stdout(io.StringIO()):
        return Bleu(4).compute_score(references, hypotheses)[0][3], float(
            Cider().compute_score(references, hypotheses)[0]
        )


def test_people_agree_and_a_constant_caption_does_not() -> None:
    human = scores({n: CAPTIONS[n][0] for n in TEST}, {n: CAPTIONS[n][1:] for n in TEST})
    said = [caption for number in range(0, 1_600, 40) for caption in CAPTIONS[number]]
    constant = [scores(dict.fromkeys(TEST, caption), {n: CAPTIONS[n] for n in TEST}) for caption in said[::25]]
    assert human[0] > 0.4
    assert human[1] > 8 * max(cider for _, cider in constant)
    assert max(bleu for bleu, _ in constant) < 0.25
