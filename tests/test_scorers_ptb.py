"""Tokens are those of coco-caption's Java tokenizer: recorded, on real captions, and on strings made to be odd."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from stages.scorers.ptb import tokenize

GOLDEN = [
    tuple(pair) for pair in json.loads((Path(__file__).parent / "golden_tokens.json").read_text(encoding="utf-8"))
]
java = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java, which runs the tokenizer to compare with")


def by_java(captions: Sequence[str]) -> list[str]:
    """Each caption's tokens as coco-caption gives them, a blank between two. Each is followed by another that begins
    with A, since the Java program reads on past a caption's end."""
    asked = {i: [{"caption": text}, {"caption": "A x"}] for i, text in enumerate(captions)}
    answered = PTBTokenizer().tokenize(asked)
    assert all(answered[i][1] == "a x" for i in range(len(captions))), "a caption broke the lines of the others"
    return [answered[i][0] for i in range(len(captions))]


def differences(captions: Sequence[str], theirs: Sequence[str]) -> list[tuple[str, str, str]]:
    assert len(captions) == len(theirs)
    ours = (" ".join(tokenize(caption)) for caption in captions)
    return [each for each in zip(captions, ours, theirs, strict=True) if each[1] != each[2]]


def test_recorded() -> None:
    """What Java said of captions with one odd thing each; the recording is checked below."""
    assert differences(*zip(*GOLDEN, strict=True)) == []


@java
def test_recording_is_javas() -> None:
    captions, recorded = zip(*GOLDEN, strict=True)
    assert by_java(captions) == list(recorded)


@java
@pytest.mark.shared
def test_coco_val2017(shared: Path) -> None:
    annotations = json.loads((shared / "coco" / "captions_val2017.json").read_text(encoding="utf-8"))["annotations"]
    captions = [annotation["caption"] for annotation in annotations]
    assert len(captions) == 25_014
    # As coco-caption asks it: all captions in one text, in the file's order.
    answered = PTBTokenizer().tokenize({0: annotations})[0]
    assert differences(captions, answered) == []


@java
@pytest.mark.shared
def test_flickr8k(shared: Path) -> None:
    lines = (shared / "flickr8k" / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()
    captions = [line.split("\t", 1)[1] for line in lines]
    assert len(captions) >= 35_000
    assert differences(captions, PTBTokenizer().tokenize({0: [{"caption": text} for text in captions]})[0]) == []


ALPHABETS = (
    "a.5 ", "ab's", "An't", "a5-.", "a5/-", "5/ -", "5.,:", "a5_-", "aA&b", "$5.A", "a'\"`", "a.A ", "#a5@", "<a/>",
    "< a>", "a\u2019s'", "d\u2019'a", "a!? ", "*a:)", "K.A ", "½5a-", "—a5-", "a,5 ", "$€5a", "%5a.", "°½5 ", "a…. ",
    "é5-.", "no. 5", "é.'a", "a+A ", "a\"5'", "(a) ", "[a]-", "5'0s", "n' ,", "£¢5 ", "😀a. ", "&;a ", "a5,;",
)  # fmt: skip


@java
def test_every_short_string() -> None:
    """All strings of up to four characters over alphabets that belong together."""
    strings = {
        "".join(characters)
        for alphabet in ALPHABETS
        for length in range(1, 5)
        for characters in itertools.product(alphabet, repeat=length)
    }
    captions = sorted(text for text in strings if text.strip())
    assert differences(captions, by_java(captions)) == []


@java
def test_odd_things_in_captions() -> None:
    """Odd words at random places of captions: one caption in a thousand may differ; ptb.py says which."""
    draw = random.Random(1)
    plain = [caption.split(" ") for caption, _ in GOLDEN]
    odd = [word for caption, _ in GOLDEN for word in caption.split() if not word.isalpha()]
    captions = []
    for _ in range(10_000):
        words = list(draw.choice(plain))
        for _ in range(draw.randint(1, 3)):
            words.insert(draw.randint(0, len(words)), draw.choice(odd))
        captions.append(" ".join(" ".join(words).split()))
    found = differences(captions, by_java(captions))
    assert len(found) <= 10, found[:20]


def test_end_of_a_caption_ends_a_sentence() -> None:
    """`K.` keeps its point inside a caption and loses it at the end, whatever caption comes next."""
    assert tokenize("a sign with a K. on it") == ["a", "sign", "with", "a", "k.", "on", "it"]
    assert tokenize("a sign that reads K.") == ["a", "sign", "that", "reads", "k"]


def test_unknown_word_is_one_token() -> None:
    assert tokenize("a <unk> on a <UNK>.") == ["a", "<unk>", "on", "a", "<unk>"]


def test_breaks_are_blanks() -> None:
    assert tokenize("a dog\r\nruns\tfast\n") == tokenize("a dog runs fast")
    assert tokenize("") == tokenize(" \n ") == tokenize(".") == []


@pytest.mark.parametrize(
    "piece", ["a.", "a-", "a@", "a/", "1,", "a_", "'", ". ", "<a b=c ", "&", "A&", "www.a.", "http://"]
)
def test_long_strings_end(piece: str) -> None:
    """A hostile caption costs no more than its length squared; patterns that backtrack without end would not end."""
    code = "import sys; from stages.scorers.ptb import tokenize; print(len(tokenize(sys.argv[1])))"
    command = [sys.executable, "-c", code, piece * 2000 + "!"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert 0 <= int(said) <= 2000 * len(piece)
