"""Words as numbers: which words a captioner knows, and captions to ids and back.

>>> vocabulary = Vocabulary((*SPECIALS, "a", "girl", "going", "into", "building"))
>>> tokenize("A girl going into a wooden building .")
['a', 'girl', 'going', 'into', 'a', 'wooden', 'building']
>>> vocabulary.encode("A girl going into a wooden building .")
[1, 4, 5, 6, 7, 4, 3, 8, 2]
>>> vocabulary.decode([1, 4, 5, 6, 7, 4, 3, 8, 2])
'a girl going into a <unk> building'
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from stages.files import read_json, write_json

if TYPE_CHECKING:
    from nltk.tokenize import NLTKWordTokenizer

SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")
PAD, START, END, UNK = range(len(SPECIALS))

# Words that no caption ends with; people end one in 200 captions on `on` ("with its lights on"), so that is not here.
BAD_ENDINGS = frozenset(
    ["a", "an", "the", "this", "his", "its", "their", "and", "or", "but", "as", "is", "are", "while",
     "of", "in", "at", "to", "for", "from", "with", "into", "onto"]
)  # fmt: skip

# Lower-case captions of plain words, commas and a last full stop: 97 of 100 on COCO. On them nltk's thirty regular
# expressions do nothing but split at blanks, drop the stops, and cut these six words in two.
_PLAIN = re.compile(r"(?:[a-z0-9 ]|,(?= ))*\.?\s*\Z")
_CUT = frozenset(("cannot", "gimme", "gonna", "gotta", "lemme", "wanna"))


def tokenize(caption: str) -> list[str]:
    """Lower-case words by nltk's word tokeniser (rules only, nothing is downloaded); tokens without a letter or digit
    are dropped, since the scorers drop punctuation and a captioner should not spend words on it."""
    text = caption.lower()
    if _PLAIN.match(text):  # the same words 40 times faster: 600,000 captions in seconds
        words = text.replace(",", " ").replace(".", " ").split()
        if _CUT.isdisjoint(words):
            return words
    return [token for token in _tokenizer().tokenize(text) if any(map(str.isalnum, token))]


@cache
def _tokenizer() -> NLTKWordTokenizer:
    from nltk.tokenize import NLTKWordTokenizer  # here: it takes seconds, and few captions ask for it

    return NLTKWordTokenizer()


@dataclass(frozen=True)
class Vocabulary:
    """The words in order; a word's id is its place. The first four are SPECIALS."""

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.words[: len(SPECIALS)] != SPECIALS:
            raise ValueError(f"a vocabulary begins with {' '.join(SPECIALS)}, this one with {' '.join(self.words[:4])}")
        if len(set(self.words)) != len(self.words):
            twice = next(word for word, count in Counter(self.words).items() if count > 1)
            raise ValueError(f"the word {twice!r} is in the vocabulary twice: make it again (`dvc repro vocab`)")

    @classmethod
    def of(cls, counts: Counter[str], min_count: int) -> Self:
        """The words that were counted at least `min_count` times, most frequent first, equals in alphabetical order.

        Raises ValueError where there are none.
        """
        kept = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
        if not kept:
            raise ValueError(f"vocab.min_count = {min_count}: no word of the captions occurs so often; set it lower")
        return cls((*SPECIALS, *kept))

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Reads data/P/vocab.json."""
        words = read_json(path)
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{path} is not a list of words: delete it and run `dvc repro vocab`")
        return cls(tuple(words))

    def write(self, path: str | Path) -> None:
        """Writes data/P/vocab.json."""
        write_json(path, list(self.words))

    @cached_property
    def ids(self) -> dict[str, int]:
        """Word -> id."""
        return {word: number for number, word in enumerate(self.words)}

    @cached_property
    def bad_endings(self) -> tuple[int, ...]:
        """The ids of the words that no caption should end with."""
        return tuple(sorted(self.ids[word] for word in BAD_ENDINGS & self.ids.keys()))

    def encode(self, caption: str) -> list[int]:
        """Ids of a caption's words between <start> and <end>; words that are not known are <unk>."""
        return [START, *(self.ids.get(word, UNK) for word in tokenize(caption)), END]

    def decode(self, ids: Iterable[int]) -> str:
        """Words up to the first <end>, with blanks between; <pad> and <start> are left out."""
        words: list[str] = []
        for number in ids:
            if number == END:
                break
            if number not in (PAD, START):
                words.append(self.words[number])
        return " ".join(words)
