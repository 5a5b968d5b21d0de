"""COCO at its full size, made up: what fetch, vocab and the archive's index cost on it.

    python tests/benchmarks/full_size.py            makes it in a temporary folder, measures, and removes it
    python tests/benchmarks/full_size.py FOLDER     only makes it there: annotations/ and zips/, as fetch takes them

Annotations of 2017: 118,287 pictures with 591,753 captions; val, 5,000 with 25,014. Ids, captions a picture, words a
caption and the order of entries are distributed like those of captions_val2017.json. Words follow a law of Zipf's kind
by which a part as large as val has about as many different words, and frequent ones, as val has. Archives have COCO's
names and as many members; PHOTOGRAPHS of these are as large as a photograph, the others small.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import yaml

from stages.fetch.pictures import Pictures

REPOSITORY = Path(__file__).resolve().parents[2]
PARTS = {"train": (118_287, 591_753), "val": (5_000, 25_014)}  # pictures and captions
PHOTOGRAPHS = 2_000  # members as large as a photograph: enough to read in no order, and 0.3 GB instead of 20
BYTES = 160_000  # of a photograph: train2017.zip's 19.3 GB over 118,287

# captions_val2017.json: how many captions have so many words (split at blanks).
WORDS = {7: 211, 8: 4073, 9: 5573, 10: 5340, 11: 3816, 12: 2470, 13: 1448, 14: 831, 15: 457, 16: 265, 17: 175, 18: 110}
WORDS |= {19: 71, 20: 47, 21: 27, 22: 25, 23: 23, 24: 11, 25: 14, 26: 5, 27: 3, 28: 3, 29: 3, 30: 2, 31: 1, 32: 1}
WORDS |= {33: 2, 34: 1, 36: 2, 38: 2, 44: 1, 50: 1}
LARGEST_ID = {"picture": 581_929, "caption": 829_718}


def make(folder: Path) -> None:
    """Writes annotations/captions_{train,val}2017.json and zips/{train,val}2017.zip; the same bytes every time."""
    chance = np.random.default_rng(2017)
    ids = chance.choice(LARGEST_ID["picture"], sum(pictures for pictures, _ in PARTS.values()), replace=False) + 1
    numbers = chance.choice(LARGEST_ID["caption"], sum(captions for _, captions in PARTS.values()), replace=False) + 1
    texts = sentences(chance, len(numbers))
    (folder / "annotations").mkdir(parents=True)
    (folder / "zips").mkdir()
    for part, (pictures, captions) in PARTS.items():
        mine, ids = [int(i) for i in ids[:pictures]], ids[pictures:]
        owners = chance.permutation([*mine * 5, *chance.choice(mine, captions - 5 * pictures).tolist()])
        images = [
            {
                "license": 3,
                "file_name": f"{i:012d}.jpg",
                "coco_url": f"http://images.cocodataset.org/{part}2017/{i:012d}.jpg",
                "height": 480,
                "width": 640,
                "date_captured": "2013-11-14 17:02:52",
                "flickr_url": "http://farm7.staticflickr.com/6116/6255196340_da26cf2c9e_z.jpg",
                "id": i,
            }
            for i in mine
        ]
        entries = [
            {"image_id": int(owner), "id": int(number), "caption": text}
            for owner, number, text in zip(owners, numbers[:captions], islice(texts, captions), strict=True)
        ]
        numbers = numbers[captions:]
        document = {"info": {"year": 2017}, "licenses": [], "images": images, "annotations": entries}
        (folder / f"annotations/captions_{part}2017.json").write_text(json.dumps(document))
        archive(folder / f"zips/{part}2017.zip", [f"{part}2017/{i:012d}.jpg" for i in mine], part)


def sentences(chance: np.random.Generator, count: int) -> Iterator[str]:
    """Captions of made-up words, as many of them as in real captions."""
    ranks = np.arange(40_000)
    words = np.array([f"w{rank:04}" for rank in ranks], dtype=object)
    lengths = chance.choice(list(WORDS), count, p=np.array(list(WORDS.values())) / sum(WORDS.values()))
    frequency = 1 / (ranks + 30) ** 1.8
    drawn = iter(words[chance.choice(ranks, lengths.sum(), p=frequency / frequency.sum())])
    return (" ".join(islice(drawn, int(length))).capitalize() + "." for length in lengths)


def archive(path: Path, names: list[str], part: str) -> None:
    """A zip of all names, stored like COCO's; a share of the members as large as a photograph."""
    block = random.Random(0).randbytes(BYTES)
    large = len(names) // PHOTOGRAPHS if part == "train" else len(names)
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr(f"{part}2017/", b"")
        for place, name in enumerate(names):
            opened.writestr(zipfile.ZipInfo(name), block if place % large == 0 else block[:100])


def measure(folder: Path) -> None:
    """Runs fetch and vocab over what `make` made, as DVC would, and reads the archives."""
    block = yaml.safe_load((REPOSITORY / "params.yaml").read_text())["coco"]
    block["fetch"] |= {
        "year": 2017,
        "split": "official",
        "images": str(folder / "zips"),
        "annotations": str(folder / "annotations"),
        "expect": "own",
    }
    (folder / "params.yaml").write_text(yaml.safe_dump({"profile": "coco", "coco": block}, sort_keys=False))
    total = 0.0
    for stage in ("fetch", "vocab"):
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", f"stages.{stage}"], cwd=folder)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        total += seconds
        if status:
            sys.exit(f"{stage} failed")
        print(f"{stage:24}{seconds:8.1f} s {used.ru_maxrss / 2**20:6.2f} GiB")
    print(f"{'together':24}{total:8.1f} s (at most 60 s and 2 GiB)")
    began = time.perf_counter()
    pictures = Pictures(folder / "data/coco/pictures")
    print(f"index of {len(pictures):,} members{time.perf_counter() - began:7.2f} s (at most 2 s)")
    photographs = [name for name in pictures if len(pictures.read(name)) == BYTES]
    random.Random(1).shuffle(photographs)
    began = time.perf_counter()
    for name in photographs:
        pictures.read(name)
    milliseconds = (time.perf_counter() - began) / len(photographs) * 1000
    print(f"{'a member of 160 KB':24}{milliseconds:8.3f} ms (at most 0.5 ms)")


def main() -> None:
    if len(sys.argv) > 1:
        make(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        began = time.perf_counter()
        make(Path(name))
        print(
            f"made in {time.perf_counter() - began:.0f} s; {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}"
        )
        measure(Path(name))


if __name__ == "__main__":
    main()
