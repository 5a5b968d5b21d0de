"""What every option of decoding is worth to a captioner, on val, by which defaults are chosen:

    python tests/decodings.py models/pretrained/flickr8k_self_critical.safetensors > reports/decodings.md

From a repository in which `dvc repro features` of its profile was run. Several captioners make several tables. Each row
is held against the one that it changes, over the same pictures (paired bootstrap of their scores).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from stages import params
from stages.evaluate.measure import caption
from stages.evaluate.scorecard import diagnostics, paired
from stages.features.device import choose_device, set_threads
from stages.features.store import Features
from stages.fetch.captions import read_captions
from stages.fetch.pictures import Pictures
from stages.scorers.score import Judge
from stages.train.artifact import Artifact
from stages.train.decoding import Decoding

START = Decoding(beam=1, length_penalty=0.7, max_words=20)
GUIDED = "memory, candidates 10, guidance 0.4"
DEFAULT = f"{GUIDED}, consensus 15"  # of profile flickr8k; the rows after it change one thing of it
ROWS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> (the row that it changes, its changes)
    "greedy": ("", {}),
    "beam 3": ("greedy", {"beam": 3}),
    "beam 5": ("beam 3", {"beam": 5}),
    "beam 5, length_penalty 0": ("beam 5", {"length_penalty": 0.0}),
    "beam 5, length_penalty 0.4": ("beam 5", {"length_penalty": 0.4}),
    "beam 5, length_penalty 1": ("beam 5", {"length_penalty": 1.0}),
    "beam 5, block_trigrams": ("beam 5", {"block_trigrams": True}),
    "beam 5, block_endings": ("beam 5", {"block_endings": True}),
    "beam 5, candidates 10": ("beam 5", {"candidates": 10}),
    "memory": ("beam 5, length_penalty 0.4", {"neighbours": 60, "consensus": 10.0}),
    "memory, candidates 10": ("memory", {"candidates": 10}),
    "memory, candidates 20": ("memory, candidates 10", {"candidates": 20}),
    "memory, candidates 10, guidance 0.2": ("memory, candidates 10", {"guidance": 0.2}),
    GUIDED: ("memory, candidates 10", {"guidance": 0.4}),
    DEFAULT: (GUIDED, {"consensus": 15.0}),
    "... guidance 0.6": (DEFAULT, {"guidance": 0.6}),
    "... length_penalty 0": (DEFAULT, {"length_penalty": 0.0}),
    "... length_penalty 0.7": (DEFAULT, {"length_penalty": 0.7}),
    "... 30 neighbours": (DEFAULT, {"neighbours": 30}),
    "... 100 neighbours": (DEFAULT, {"neighbours": 100}),
    "... consensus 5": (DEFAULT, {"consensus": 5.0}),
    "... consensus 20": (DEFAULT, {"consensus": 20.0}),
    "... beam 10": (DEFAULT, {"beam": 10}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captioners", metavar="FILE", nargs="+", type=Path)
    options = parser.parse_args()
    profile, _ = params.read("evaluate")
    set_threads(1)
    data, device = Path("data") / profile, choose_device("cpu")
    pictures = read_captions(data / "captions_val.json")
    features, archives = Features(data / "features"), Pictures(data / "pictures")
    references = {picture.id: picture.captions for picture in pictures}
    judge = Judge(references)
    print("# Decoding, option by option\n")
    print(f"`python tests/decodings.py {' '.join(map(str, options.captioners))}`, profile {profile}: the", end=" ")
    print(f"{len(pictures)} pictures of val. CIDEr-D and BLEU-4 in percent; the difference in CIDEr-D, with its 95%")
    print("interval, is to the row that is named; seconds are of one thread, with everything that is read.")
    print("`memory`: beam 5, length_penalty 0.4, and 60 neighbours put the captions in order, with consensus 10.")
    for path in options.captioners:
        artifact = Artifact.load(path)
        decodings: dict[str, Decoding] = {}
        captions: dict[str, dict[int, str]] = {}
        print(f"\n## {path.stem}, weights {artifact.weights_sha256[:8]}\n")
        print("| decoding | CIDEr-D | BLEU-4 | words | different words | CIDEr-D over | of | seconds |")
        print("|---|---:|---:|---:|---:|---:|---|---:|")
        for name, (before, changes) in ROWS.items():
            began = time.monotonic()
            decodings[name] = decodings.get(before, START).but(**changes)
            one = {"val": pictures}
            said = caption([artifact], one, features, archives, decodings[name], batch=128, device=device)
            captions[name] = said["val"]
            seconds = time.monotonic() - began
            scores = judge.score(captions[name], with_meteor=False)
            found, shown = scores.metrics(), diagnostics(scores, frozenset())
            cells = [
                name,
                percent(found["cider"]),
                percent(found["bleu_4"]),
                f"{shown['mean_words']:.1f}",
                f"{shown['distinct_words']:.0f}",
                over(captions[name], captions[before], references) if before else "",
                before,
                f"{seconds:.0f}",
            ]
            print(f"| {' | '.join(cells)} |", flush=True)
            print(f"{path.stem}: {name}", file=sys.stderr)


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def over(captions: dict[int, str], others: dict[int, str], references: dict[int, tuple[str, ...]]) -> str:
    """By how much captions score better than others of the same pictures, in points of CIDEr-D."""
    better = paired(captions, others, references, resamples=1000)["cider"]
    return f"{100 * better['value']:+.1f} ({100 * better['low']:+.1f} to {100 * better['high']:+.1f})"


if __name__ == "__main__":
    main()
