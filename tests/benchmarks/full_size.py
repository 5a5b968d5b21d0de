"""COCO at its full size, made up: what fetch, vocab, the archive's index and training from a grid cost on it.

    python tests/benchmarks/full_size.py            makes it in a temporary folder, measures, and removes it
    python tests/benchmarks/full_size.py FOLDER     only makes it there: annotations/ and zips/, as fetch takes them

Annotations of 2017: 118,287 pictures with 591,753 captions; val, 5,000 with 25,014. Ids, captions a picture, words a
caption and the order of entries are distributed like those of captions_val2017.json. Words follow a law of Zipf's kind
by which a part as large as val has about as many different words, and frequent ones, as val has. Archives have COCO's
names and as many members; PHOTOGRAPHS of these are as large as a photograph, the others small. Features are ResNet-50's
7x7 grid of all of them, 23.7 GB of zeros in a sparse file: read like any, and take no room on the disk.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.lib.format import write_array_header_1_0

from stages.features.store import Draft, Features
from stages.fetch.captions import read_captions, write_captions
from stages.fetch.pictures import Pictures
from stages.files import write_json
from stages.train.batches import Examples, in_rounds
from stages.vocab.vocabulary import Vocabulary

REPOSITORY = Path(__file__).resolve().parents[2]
PARTS = {"train": (118_287, 591_753), "val": (5_000, 25_014)}  # pictures and captions
PHOTOGRAPHS = 2_000  # members as large as a photograph: enough to read in no order, and 0.3 GB instead of 20
BYTES = 160_000  # of a photograph: train2017.zip's 19.3 GB over 118,287

# captions_val2017.json: how many captions have so many words (split at blanks).
WORDS = {7: 211, 8: 4073, 9: 5573, 10: 5340, 11: 3816, 12: 2470, 13: 1448, 14: 831, 15: 457, 16: 265, 17: 175, 18: 110}
WORDS |= {19: 71, 20: 47, 21: 27, 22: 25, 23: 23, 24: 11, 25: 14, 26: 5, 27: 3, 28: 3, 29: 3, 30: 2, 31: 1, 32: 1}
WORDS |= {33: 2, 34: 1, 36: 2, 38: 2, 44: 1, 50: 1}
REGIONS, CHANNELS = 49, 2048  # ResNet-50's at 224 pixels a side
SHARE = 10  # training at full size is held to its speed on a tenth of the pictures
ROUNDS = 2  # of training on both, in turns; the best counts, since other work on the machine only ever adds
STRETCH = 15.0  # seconds between two checkpoints, over which captions are counted
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
    """Runs fetch, vocab and train over what `make` made, as DVC would, and reads the archives."""
    block = yaml.safe_load((REPOSITORY / "params.yaml").read_text())["coco"]
    block["fetch"] |= {
        "year": 2017,
        "split": "official",
        "images": str(folder / "zips"),
        "annotations": str(folder / "annotations"),
        "expect": "own",
    }
    block["features"]["grid"] = True
    block["train"] |= {"decoder": "attend", "captions_per_picture": 5, "checkpoint_minutes": STRETCH / 60}
    choose(folder, "coco", block)
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
    limited(folder, block)
    features(folder / "data/coco")
    an_epoch(folder / "data/coco")
    tenth(folder / "data/coco", folder / "data/tenth")
    speeds: dict[str, list[float]] = {"tenth": [], "coco": []}
    for profile in [*speeds] * ROUNDS:
        choose(folder, profile, block)
        speed, memory = train(folder, profile)
        speeds[profile].append(speed)
        print(f"{f'train, {profile}':24}{speed:8.1f} captions/s {memory:6.2f} GiB (at most 4 GiB)")
    print(f"{'full size / a tenth':24}{max(speeds['coco']) / max(speeds['tenth']):8.2f} (at least 0.8)")


def choose(folder: Path, profile: str, block: dict[str, Any]) -> None:
    """Writes params.yaml with one profile."""
    (folder / "params.yaml").write_text(yaml.safe_dump({"profile": profile, profile: block}, sort_keys=False))


def limited(folder: Path, block: dict[str, Any]) -> None:
    """Runs fetch for 1,000 pictures a split, by Range requests to a mirror of the archives; its profile is `few`."""
    sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  zips/{path.name}\n" for path in (folder / "zips").iterdir()]
    (folder / "MD5SUMS").write_text("".join(sums))
    command = [sys.executable, str(REPOSITORY / "tests/mirror.py"), "0", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    own = {"limit": 1000, "images": None, "base_url": server.stdout.readline().split()[1]}
    choose(folder, "few", block | {"fetch": block["fetch"] | own})
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "stages.fetch"], cwd=folder, check=True)
    print(f"{'fetch, limit: 1000':24}{time.perf_counter() - began:8.1f} s")
    server.terminate()
    server.communicate()


def features(data: Path) -> None:
    """Writes data/P/features for the captions there: arrays of zeros, sparse."""
    draft = Draft(data / "features.partial", "made up")
    ids = {split: [p.id for p in read_captions(data / f"captions_{split}.json")] for split in ("train", "val", "test")}
    for split, pictures in ids.items():
        for kind, shape in {"pooled": (CHANNELS,), "grid": (REGIONS, CHANNELS)}.items():
            with (draft.folder / f"{split}_{kind}.npy").open("wb") as file:
                whole = (len(pictures), *shape)
                write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": whole})
                file.truncate(file.tell() + 2 * math.prod(whole))
    encoder = {"encoder": "resnet50", "weights": "none", "weights_sha256": "0" * 64, "precision": "float32"}
    seen = {"preprocessing": {"size": 224, "resize": "squash"}, "channels": CHANNELS, "regions": REGIONS}
    made = {"mirror": False, "splits": ids, "unreadable": [], "sha256": {}}  # of zeros nobody needs a hash
    write_json(draft.folder / "index.json", {**encoder, **seen, **made})
    draft.rename(data / "features")


def tenth(data: Path, other: Path) -> None:
    """The same data, but for all but the first of every SHARE training pictures."""
    for split in ("train", "val", "test"):
        pictures = read_captions(data / f"captions_{split}.json")
        write_captions(other / f"captions_{split}.json", pictures[:: SHARE if split == "train" else 1], {})
    shutil.copy(data / "vocab.json", other)
    features(other)


def an_epoch(data: Path) -> None:
    """Plans an epoch of all pictures; exits where it does not have every caption once."""
    pictures = read_captions(data / "captions_train.json")
    examples = Examples.of(pictures, Features(data / "features"), "train", Vocabulary.read(data / "vocab.json"))
    for together in (1, 5):
        began = time.perf_counter()
        groups = in_rounds(examples, together, np.random.default_rng([1, 0]))
        seconds = time.perf_counter() - began
        seen = Counter((picture, place) for picture, places in groups for place in places)
        if len(seen) != PARTS["train"][1] or set(seen.values()) != {1}:
            sys.exit("an epoch does not have every caption once")
        print(f"{f'order of an epoch, {together} each':24}{seconds:8.1f} s, {len(seen):,} captions, each once")


def train(folder: Path, profile: str) -> tuple[float, float]:
    """Starts train and stops it after its second checkpoint; captions a second between the two, and its peak in GiB."""
    checkpoint = folder / "models" / profile / "unfinished_CrossEntropy.pt"
    checkpoint.unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, "-m", "stages.train"], cwd=folder, stdout=subprocess.DEVNULL)
    seen: list[tuple[float, int]] = []
    while len(seen) < 2:
        if process.poll() is not None:
            sys.exit("train ended before its second checkpoint")
        time.sleep(0.05)
        if checkpoint.exists() and (now := checkpoint.stat().st_mtime) not in [at for at, _ in seen]:
            seen.append((now, torch.load(checkpoint, weights_only=True)["progress"]["captions"]))
    process.kill()
    _, _, used = os.wait4(process.pid, 0)
    (began, first), (ended, second) = seen
    return (second - first) / (ended - began), used.ru_maxrss / 2**20


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
