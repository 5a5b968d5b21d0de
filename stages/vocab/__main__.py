"""Reads  data/P/captions_{train,val,test}.json.
Writes data/P/vocab.json (words in the order of their ids), reports/P/vocab.json.
Why    which words can be said is decided by the training captions alone; val and test are only measured against them.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from stages import params, rim
from stages.fetch.captions import SPLITS, read_captions
from stages.files import write_json
from stages.vocab.vocabulary import Vocabulary, count_words


def main() -> None:
    profile, settings = params.read("vocab")
    data = Path("data") / profile
    counts = {
        split: count_words(
            said for picture in read_captions(data / f"captions_{split}.json") for said in picture.captions
        )
        for split in SPLITS
    }
    vocabulary = Vocabulary.of(counts["train"], settings.min_count)
    vocabulary.write(data / "vocab.json")
    report = {
        "size": len(vocabulary.words),  # with the four specials
        "min_count": settings.min_count,
        "coverage": 1 - unknown(vocabulary, counts["train"])["unknown_share"],  # of the words said in train
        "splits": {split: unknown(vocabulary, counts[split]) for split in SPLITS},
    }
    write_json(Path("reports") / profile / "vocab.json", report)
    print(f"vocab: {len(vocabulary.words):,} words, {100 * report['coverage']:.2f} % of what is said in train")


def unknown(vocabulary: Vocabulary, counts: Counter[str]) -> dict[str, Any]:
    """How much of what is said in a split the vocabulary does not know."""
    said = counts.total()
    strange = {word: count for word, count in counts.items() if word not in vocabulary.ids}
    return {
        "words_said": said,
        "different_words": len(counts),
        "unknown_different_words": len(strange),
        "unknown_share": sum(strange.values()) / said,
    }


if __name__ == "__main__":
    rim.run(main)
