"""A user with a laptop: `dvc exp run -S profile=coco -S coco.fetch.limit=N`, killed while pictures come, and again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from coco_walk import LIMIT, Way, profiles, walk, weights
from mirror import Mirror, build
from pipelines import make_repository

from stages.fetch.captions import read_captions
from stages.files import read_json


@pytest.mark.slow
def test_a_limited_choice_goes_through_all_six_stages(tmp_path: Path, template: Path) -> None:
    """One way of eight; `python tests/coco_walk.py` goes all of them."""
    root = make_repository(tmp_path / "repository", template, **profiles())
    with Mirror(build(tmp_path / "mirror", tmp_path / "nothing", (2014,))) as mirror:
        mirror.silence = 600
        found = walk(root, Way(2014, "karpathy", LIMIT), mirror, weights(tmp_path), kills=1)
    assert {key: found[key] for key in ("kills", "stages", "pictures", "scored")} == {
        "kills": 1, "stages": 6, "pictures": f"{LIMIT} / 8 / 8", "scored": 8,
    }  # fmt: skip
    report = read_json(root / "reports/coco/fetch.json")
    for split in ("train", "val", "test"):
        ids = sorted(picture.id for picture in read_captions(root / f"data/coco/captions_{split}.json"))
        lines = "".join(f"{number}\n" for number in ids)
        assert report["splits"][split]["ids_sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    assert read_json(root / "data/coco/features/index.json")["encoder"] == "resnet50"
    assert (root / "models/coco/captioner.safetensors").exists()
