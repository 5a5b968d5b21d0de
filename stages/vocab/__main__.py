"""Reads  data/P/captions_{train,val,test}.json, data/P/pictures, reports/P/fetch.json.
Writes data/P/vocab.json (words in the order of their ids), reports/P/vocab.json, reports/P/dataset.html.
Why    which words can be said is decided by the training captions alone; val and test are only measured against them.
       Here pictures and words come together for the first time, so that here both can be shown to people.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages import params, rim
from stages.fetch.captions import SPLITS, read_captions
from stages.fetch.pictures import Pictures
from stages.files import read_json, whole, write_json
from stages.vocab.report import Said, dataset, find, unknown_share
from stages.vocab.vocabulary import Vocabulary


def main() -> None:
    profile, settings = params.read("vocab")
    data, reports = Path("data") / profile, Path("reports") / profile
    pictures = {split: read_captions(data / f"captions_{split}.json") for split in SPLITS}
    said = {split: Said.of(text for picture in own for text in picture.captions) for split, own in pictures.items()}
    vocabulary = Vocabulary.of(said["train"].words, settings.min_count)
    vocabulary.write(data / "vocab.json")
    report = {
        "size": len(vocabulary.words),  # with the four specials
        "min_count": settings.min_count,
        "coverage": 1 - unknown_share(vocabulary.ids, said["train"]),  # of the words said in train
        "splits": {split: unknown(vocabulary, said[split]) for split in SPLITS},
    }
    write_json(reports / "vocab.json", report)
    print(f"vocab: {len(vocabulary.words):,} words, {100 * report['coverage']:.2f} % of what is said in train")
    # Words can be counted where pictures are not, as in a clone that has only pulled: the page then says so.
    found = find(pictures, Pictures(data / "pictures"), settings.look_at) if (data / "pictures").is_dir() else None
    fetched = read_json(reports / "fetch.json") if (reports / "fetch.json").is_file() else {}
    with whole(reports / "dataset.html") as partial:
        shown = dataset(profile, pictures, said, vocabulary, settings.min_count, fetched, found)
        partial.write_text(shown, encoding="utf-8")
    print(f"what the data look like: {reports}/dataset.html")


def unknown(vocabulary: Vocabulary, said: Said) -> dict[str, Any]:
    """How much of what is said in a split the vocabulary does not know."""
    return {
        "words_said": said.words.total(),
        "different_words": len(said.words),
        "unknown_different_words": sum(word not in vocabulary.ids for word in said.words),
        "unknown_share": unknown_share(vocabulary.ids, said),
    }


if __name__ == "__main__":
    rim.stage("vocab", __doc__, main)
