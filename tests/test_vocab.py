"""Words: the same tokens as nltk's own tokeniser, words of train alone, captions to ids and back."""

from __future__ import annotations

import doctest
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from builders import run
from hypothesis import example, given
from hypothesis import strategies as st
from nltk.tokenize import NLTKWordTokenizer

from stages.fetch.captions import SPLITS, Picture, read_captions, write_captions
from stages.vocab import vocabulary as module
from stages.vocab.report import Said
from stages.vocab.vocabulary import SPECIALS, UNK, Vocabulary, tokenize

TRAIN = ["A dog runs.", "A dog sleeps.", "The cat, a small one, sleeps."]
VAL = ["A zebra runs."]
TEST = ["A dog and a dog.", "A cat."]


def by_nltk(caption: str) -> list[str]:
    """What tokenize must return, without its short cut."""
    return [t for t in NLTKWordTokenizer().tokenize(caption.lower()) if any(map(str.isalnum, t))]


ODD = "a dog cannot gonna wanna gotta it's dogs' 3.5 u.s. -- ... ( , . ! 'n more'n d'ye 'tis 1,000 3 # - \u2019s \u0130"
WORD = st.sampled_from([*ODD.split(), "\t", "\n"])


@given(
    st.lists(WORD, max_size=8),
    st.sampled_from(["", " ", "  ", ", "]),
    st.sampled_from(["", ".", " .", ". ", ".\n", "?"]),
)
@example(["I", "cannot", "wait"], " ", ".")
def test_words_are_nltks_for_odd_captions(words: list[str], between: str, end: str) -> None:
    caption = between.join(words) + end
    assert tokenize(caption) == by_nltk(caption)


@given(st.text(alphabet="ab,. '\"1-\n\tC", max_size=30))
def test_words_are_nltks_for_any_plain_text(caption: str) -> None:
    assert tokenize(caption) == by_nltk(caption)


@pytest.mark.shared
def test_words_are_nltks_for_real_captions(shared: Path) -> None:
    captions = [c for p in read_captions(shared / "coco/captions_val2017.json") for c in p.captions][::5]
    captions += [line.split("\t")[1] for line in (shared / "flickr8k/Flickr8k.token.txt").read_text().splitlines()][::7]
    assert [tokenize(caption) for caption in captions] == [by_nltk(caption) for caption in captions]
    assert sum(module._PLAIN.match(caption.lower()) is not None for caption in captions) > 0.9 * len(captions)


def test_the_example_in_the_docstring_is_true() -> None:
    result = doctest.testmod(module)
    assert (result.attempted, result.failed) == (4, 0)


def test_most_frequent_words_first_then_the_alphabet() -> None:
    assert Vocabulary.of(Said.of(TRAIN).words, 1).words == (
        *SPECIALS,
        "a",
        "dog",
        "sleeps",
        "cat",
        "one",
        "runs",
        "small",
        "the",
    )
    assert Vocabulary.of(Said.of(TRAIN).words, 2).words == (*SPECIALS, "a", "dog", "sleeps")


def test_no_word_is_frequent_enough() -> None:
    with pytest.raises(ValueError, match=r"vocab.min_count = 9: no word of the captions occurs so often; set it lower"):
        Vocabulary.of(Said.of(TRAIN).words, 9)


@given(st.lists(st.sampled_from(["a", "dog", "runs", "zebra", "on"]), max_size=12))
def test_captions_come_back_with_what_is_unknown_marked(words: list[str]) -> None:
    vocabulary = Vocabulary((*SPECIALS, "a", "dog", "runs"))
    ids = vocabulary.encode(" ".join(words))
    assert vocabulary.decode(ids) == " ".join(w if w in vocabulary.ids else "<unk>" for w in words)
    assert ids.count(UNK) == sum(w not in vocabulary.ids for w in words)


def test_nothing_is_read_behind_the_end() -> None:
    vocabulary = Vocabulary((*SPECIALS, "a", "dog"))
    assert vocabulary.decode([1, 4, 5, 2, 4, 0, 0]) == "a dog"
    assert vocabulary.decode([4, 5, 0, 0]) == "a dog"


# --- the stage --------------------------------------------------------------------------------------------------------


def vocab(home: Path, min_count: int = 1, test: Sequence[str] = TEST) -> dict:
    data = home / "data/mine"
    for start, (split, said) in enumerate(zip(SPLITS, (TRAIN, VAL, test), strict=True)):
        pictures = [Picture(10 * start + n, f"{start}{n}.jpg", 0, 0, (caption,)) for n, caption in enumerate(said)]
        write_captions(data / f"captions_{split}.json", pictures, {})
    run("vocab", home, min_count=min_count)
    return json.loads((home / "reports/mine/vocab.json").read_text())


def test_words_of_val_and_test_are_never_in_it(tmp_path: Path) -> None:
    vocab(tmp_path)
    words = json.loads((tmp_path / "data/mine/vocab.json").read_text())
    assert words == [*SPECIALS, "a", "dog", "sleeps", "cat", "one", "runs", "small", "the"]
    assert Vocabulary.read(tmp_path / "data/mine/vocab.json").words == tuple(words)


def test_the_report_is_right_by_hand(tmp_path: Path) -> None:
    report = vocab(tmp_path, min_count=2)  # a 3, dog 2, sleeps 2 of 12 words
    assert report == {
        "size": 7,
        "min_count": 2,
        "coverage": pytest.approx(7 / 12),
        "splits": {
            "train": {
                "words_said": 12,
                "different_words": 8,
                "unknown_different_words": 5,
                "unknown_share": pytest.approx(5 / 12),
            },
            "val": {
                "words_said": 3,
                "different_words": 3,
                "unknown_different_words": 2,
                "unknown_share": pytest.approx(2 / 3),
            },
            "test": {
                "words_said": 7,
                "different_words": 4,
                "unknown_different_words": 2,
                "unknown_share": pytest.approx(2 / 7),
            },
        },
    }


def test_a_split_in_which_no_word_is_said(tmp_path: Path) -> None:
    none = {"words_said": 0, "different_words": 0, "unknown_different_words": 0, "unknown_share": 0}
    assert vocab(tmp_path, test=["...", "!"])["splits"]["test"] == none
    assert (tmp_path / "reports/mine/dataset.html").is_file()


def test_counts_are_those_of_a_plain_count(tmp_path: Path) -> None:
    assert Said.of(TRAIN).words == Counter(word for caption in TRAIN for word in by_nltk(caption))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "dog"], "a vocabulary begins with <pad> <start> <end> <unk>, this one with a dog"),
        ([*SPECIALS, "a", "a"], "the word 'a' is in the vocabulary twice"),
        ({"a": 1}, r"vocab.json is not a list of words: delete it and run `dvc repro vocab`"),
        ([*SPECIALS, 7], "is not a list of words"),
    ],
)
def test_a_broken_vocabulary_is_told(tmp_path: Path, words: object, message: str) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    with pytest.raises(ValueError, match=message):
        Vocabulary.read(tmp_path / "vocab.json")


def test_a_cut_vocabulary_is_told(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('["<pad>", "<sta')
    with pytest.raises(ValueError, match=r"vocab.json \(15 bytes\) is not whole JSON"):
        Vocabulary.read(tmp_path / "vocab.json")
