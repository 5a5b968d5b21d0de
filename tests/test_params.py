"""stages/params.py: every mistake in params.yaml is told with its full key, its value and the rule, all at once."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.params import STAGES, SettingsError, check, read

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
GOOD: dict[str, Any] = yaml.safe_load(SHIPPED)


WHOLE = ("../elsewhere", "my.data", 2014)  # names of profiles that cannot be, not keys below one


def with_changes(changes: dict[Any, Any], document: dict[str, Any] = GOOD) -> dict[str, Any]:
    """The document with some keys (`profile.stage.key`) set, or taken out where the new value is `...`."""
    document = copy.deepcopy(document)
    for key, value in changes.items():
        *above, last = [key] if key in WHOLE else key.split(".")
        block = document
        for name in above:
            block = block[name]
        block[last] = value
        if value is ...:
            del block[last]
    return document


def mistakes(text: str, folder: Path) -> list[str]:
    """What is said about params.yaml with this text, without the file's name that begins each line."""
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as told:
        check(path)
    lines = str(told.value).split("\n")
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


# --- what is right ---------------------------------------------------------------------------------------------------
def test_the_shipped_settings_are_right() -> None:
    profile, blocks = check(REPOSITORY / "params.yaml")
    assert profile == "sample"
    assert list(blocks) == ["sample", "flickr8k", "coco"]
    assert all(tuple(block) == STAGES for block in blocks.values())
    name, train = read("train", REPOSITORY / "params.yaml")
    assert (name, train.learning_rate) == ("sample", GOOD["sample"]["train"]["learning_rate"])


def test_every_number_has_its_unit_or_reason_beside_it() -> None:
    for line in SHIPPED.splitlines():
        if line.startswith("    ") and not line.startswith("    source:"):
            assert re.match(r" {4,6}\w+:( \S+)? +# \S+", line), f"{line!r} does not say what it is"
    for block in (value for value in GOOD.values() if isinstance(value, dict)):
        assert tuple(block) == STAGES


def test_own_pictures_are_one_block_of_settings(tmp_path: Path) -> None:
    mine = copy.deepcopy(GOOD["flickr8k"])
    mine["fetch"] = {
        "source": "folder",
        "pictures": "~/pictures",
        "captions": "captions.csv",
        "val_percent": 10,
        "test_percent": 10,
        "allow_missing": 0,
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**GOOD, "profile": "my-own_2", "my-own_2": mine}))
    profile, fetch = read("fetch", tmp_path / "params.yaml")
    assert (profile, fetch.source, fetch.picture_column, fetch.test_percent) == ("my-own_2", "folder", "picture", 10)


def test_settings_never_change() -> None:
    _, train = read("train", REPOSITORY / "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        train.batch = 1


def test_a_whole_number_is_a_number(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(with_changes({"sample.train.clip": 5})))
    clip = read("train", tmp_path / "params.yaml")[1].clip
    assert (clip, type(clip)) == (5.0, float)


def test_anchors_of_yaml_may_be_used(tmp_path: Path) -> None:
    """A key that is given beside a merged one replaces it, as YAML says; it does not stand there twice."""
    text = SHIPPED.replace("sample:\n", "sample: &sample\n", 1) + "\nsmall:\n  <<: *sample\n  vocab: {min_count: 7}\n"
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    blocks = check(tmp_path / "params.yaml")[1]
    assert blocks["small"]["vocab"].min_count == 7
    assert blocks["small"]["train"] == blocks["sample"]["train"]


# --- mistakes of values ----------------------------------------------------------------------------------------------
MISTAKES = [
    ({"sample.train.learning_rate": -1}, "sample.train.learning_rate = -1 (must be greater than 0)"),
    ({"sample.train.dropout": 1}, "sample.train.dropout = 1 (must be less than 1)"),
    ({"coco.train.batch": 0}, "coco.train.batch = 0 (must be greater than or equal to 1)"),
    ({"coco.features.size": 225}, "coco.features.size = 225 (must be a multiple of 32)"),
    ({"sample.train.batch": 64.5}, "sample.train.batch = 64.5 (must be a whole number)"),
    ({"sample.train.batch": True}, "sample.train.batch = true (must be a whole number)"),
    ({"sample.train.batch": None}, "sample.train.batch = null (must be a whole number)"),
    ({"sample.train.batch": [64]}, "sample.train.batch = [64] (must be a whole number)"),
    ({"sample.train.batch": "many"}, 'sample.train.batch = "many" (must be a whole number)'),
    (
        {"sample.train.batch": "64"},
        'sample.train.batch = "64" (must be a whole number; YAML reads this as text, write 64)',
    ),
    (
        {"sample.train.learning_rate": "1e-3"},
        'sample.train.learning_rate = "1e-3" (must be a number; YAML reads this as text, write 0.001)',
    ),
    ({"sample.train.clip": float("inf")}, "sample.train.clip = inf (must be a finite number)"),
    ({"sample.train.clip": float("nan")}, "sample.train.clip = nan (must be a finite number)"),
    ({"sample.train.clip": "nan"}, 'sample.train.clip = "nan" (must be a number)'),
    ({"sample.train.clip": "1e999999999"}, 'sample.train.clip = "1e999999999" (must be a number)'),
    ({"sample.train.compile": "no way"}, 'sample.train.compile = "no way" (must be true or false)'),
    ({"sample.train.compile": 1}, "sample.train.compile = 1 (must be true or false)"),
    ({"sample.train.schedule": "linear"}, "sample.train.schedule = \"linear\" (must be 'cosine' or 'constant')"),
    ({"coco.fetch.year": "2014"}, 'coco.fetch.year = "2014" (must be 2014 or 2017)'),
    ({"flickr8k.fetch.root": 8000}, "flickr8k.fetch.root = 8000 (must be text; a number or date needs quotes)"),
    ({"flickr8k.fetch.root": ""}, 'flickr8k.fetch.root = "" (must have at least 1 character)'),
    ({"coco.fetch.limit": 0}, "coco.fetch.limit = 0 (must be greater than or equal to 1)"),
    ({"sample.register.model": "a/b"}, 'sample.register.model = "a/b" (must match pattern'),
    ({"sample.train.batch": ...}, "sample.train.batch (is missing)"),
    (
        {"sample.train.launch": {"processes": "all"}},
        'sample.train.launch.processes = "all" (must be `auto` or a whole number from 1 to 4096)',
    ),
    ({"sample.features.launch": {"processes": 0}}, "sample.features.launch.processes = 0 (must be `auto` or"),
    ({"sample.train.lr": 0.1}, "sample.train.lr = 0.1 (is not known here)"),
    ({"sample.fetch.root": "x" * 100}, f'sample.fetch.root = "{"x" * 56}... (is not known here)'),
    ({"sample.fetch.size": ...}, "sample.fetch.size (is missing)"),
    ({"sample.fetch.source": ...}, "sample.fetch.source (is missing)"),
    (
        {"sample.fetch.source": "imagenet"},
        "sample.fetch.source = \"imagenet\" (must be one of 'drawn', 'flickr8k', 'folder', 'coco')",
    ),
    ({"sample.fetch.source": ["drawn"]}, "sample.fetch.source = ['drawn'] (must be one of 'drawn'"),
    ({"sample.fetch": "drawn"}, 'sample.fetch = "drawn" (must be a section of settings)'),
    ({"sample.fetch": None}, "sample.fetch = null (must be a section of settings)"),
    ({"sample.vocab": 4}, "sample.vocab = 4 (must be a section of settings)"),
    ({"sample.vocab": ...}, "sample.vocab (is missing)"),
    (
        {"sample.translate": {"to": "fr"}},
        "sample.translate = {'to': 'fr'} (is not known; the sections are fetch, vocab,",
    ),
    ({"sample": None}, "sample = null (must be a block with the sections fetch, vocab, features, train, evaluate"),
    ({"profile": ...}, "profile (is missing; must name a block of this file: sample, flickr8k, coco)"),
    ({"profile": "flickr30k"}, 'profile = "flickr30k" (must name a block of this file: sample, flickr8k, coco)'),
    ({"profile": 8}, "profile = 8 (must name a block"),
    ({"profile": ["sample"]}, "profile = ['sample'] (must name a block"),
    ({"../elsewhere": GOOD["sample"]}, '"../elsewhere" (must be letters, digits, `_`, `-`: folders and DVC'),
    ({"my.data": GOOD["sample"]}, '"my.data" (must be letters, digits, `_`, `-`: folders and DVC'),
    (
        {2014: GOOD["sample"]},
        "2014 (must be letters, digits, `_`, `-`: folders and DVC's keys are named after it; a number",
    ),
    (
        {"sample.features.weights": "IMAGENET1K_V2"},
        "sample.features.weights = IMAGENET1K_V2 (is not of efficientnet_lite0",
    ),
    ({"coco.features.weights": "package"}, "coco.features.weights = package (is not of resnet50: IMAGENET1K_V1 or"),
    (
        {"coco.features.weights": "https://me:secret@mirror/resnet50-11ad3fa6.pth?key=secret"},
        "coco.features.weights (must hold no password",
    ),
    ({"coco.features.weights": "s3://mirror/resnet50-11ad3fa6.pth?key=[1"}, "coco.features.weights (must hold no pas"),
    ({"sample.train.guidance": 0.4}, "sample.train.guidance = 0.4 (leans towards what neighbours say: set train.neigh"),
    ({"sample.evaluate.guidance": 0.4}, "sample.evaluate.guidance = 0.4 (needs neighbours: set evaluate.neighbours"),
    (
        {"flickr8k.evaluate.neighbours": 0, "flickr8k.evaluate.consensus": 5.0},
        "flickr8k.evaluate.consensus = 5.0 (needs neighbours",
    ),
    (
        {"sample.evaluate.sample": {"top_p": 0.9, "temperature": 1.0, "seed": 1}, "sample.evaluate.candidates": 9},
        "sample.evaluate.candidates = 9 (are searched for",
    ),
    ({"sample.train.seed": 2**63}, f"sample.train.seed = {2**63} (must be less than {2**63})"),
]


@pytest.mark.parametrize(("changes", "sentence"), MISTAKES)
def test_a_mistake_is_told(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    told = mistakes(yaml.safe_dump(with_changes(changes), sort_keys=False), tmp_path)
    assert len(told) == 1
    assert told[0].startswith(sentence)


def test_a_mistake_in_a_profile_that_is_not_chosen_is_told_too(tmp_path: Path) -> None:
    assert mistakes(yaml.safe_dump(with_changes({"profile": "sample", "coco.vocab.min_count": 0})), tmp_path)


def test_sections_that_do_not_fit_each_other_are_told(tmp_path: Path) -> None:
    changes = {"coco.train.batch": 4, "coco.train.captions_per_picture": 5, "coco.train.tied": True}
    changes |= {"coco.train.embedding": 64, "coco.evaluate.neighbours": 60}
    assert [line.split(" (")[0] for line in mistakes(yaml.safe_dump(with_changes(changes)), tmp_path)] == [
        "coco.train.tied = true",
        "coco.train.captions_per_picture = 5",
        "coco.evaluate.neighbours = 60",
    ]


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """One of each kind, spread over stages and profiles, and nothing else."""
    changes = {
        "profile": "flickr9k",
        "sample.fetch.pictures": 3,
        "sample.vocab.min_count": "2",
        "sample.train.lr": 0.1,
        "sample.train.learning_rate": ...,
        "flickr8k.features.encoder": "vgg",
        "flickr8k.evaluate": ...,
        "coco.serve": {},
        "coco.register.model": "",
    }
    told = mistakes(yaml.safe_dump(with_changes(changes), sort_keys=False), tmp_path)
    assert sorted(re.split(r" [=(]", line)[0] for line in told) == sorted(key for key in changes)


# --- mistakes of the file --------------------------------------------------------------------------------------------
def test_a_key_that_stands_there_twice_is_told(tmp_path: Path) -> None:
    """YAML's readers keep the last one and say nothing; where it stands is said, at every level."""
    text = "\n".join(
        [
            "profile: sample",
            "profile: coco",
            SHIPPED.split("profile: sample\n", 1)[1]
            .replace("    seed: 2015 ", "    size: 64\n    seed: 2015 ", 1)
            .replace("      epochs: 0  ", "      epochs: 7\n      epochs: 0  ", 1),
            "coco: 1",
        ]
    )
    told = mistakes(text, tmp_path)
    assert [line for line in told if "keep one" in line] == [
        "profile (stands in line 1 and in line 2: keep one)",
        next(line for line in told if line.startswith("sample.fetch.size (stands in line ")),
        next(line for line in told if line.startswith("sample.train.finetune.epochs (stands in line ")),
        next(line for line in told if line.startswith("coco (stands in line ")),
    ]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"profile: sample\n  train: [1\n", "is not YAML: "),
        (b"profile: sample\n\tx: 1\n", "is not YAML: "),
        (b"profile: s\xe4mple\n", "is not YAML: 'utf-8' codec can't decode"),
        (b"profile: sample\nsample: 2015-13-45\n", "is not YAML: month must be in 1..12"),
        (b"profile: sample\n---\nprofile: coco\n", "is not YAML: expected a single document"),
        (b"profile: !!python/object/apply:os.system [exit 1]\n", "is not YAML: could not determine a constructor"),
        (b"", "must begin with `profile: NAME`"),
        (b"- sample\n", "must begin with `profile: NAME`"),
        (b"sample\n", "must begin with `profile: NAME`"),
    ],
)
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, data: bytes, sentence: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(data)
    with pytest.raises(SettingsError) as told:
        check(path)
    assert str(told.value).startswith(f"{path} {sentence}")


def test_a_file_that_is_not_here_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=r"^params.yaml is not here: run from the repository's root"):
        read("train")


def test_a_profile_without_blocks_is_told(tmp_path: Path) -> None:
    assert mistakes("profile: sample\n", tmp_path) == [
        'profile = "sample" (must name a block of this file: there is none yet)'
    ]


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
NESTED = {"max_leaves": 5}
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(SCALARS, v, max_size=3), **NESTED)
ONE = {"profile": "sample", "sample": GOOD["sample"]}
KEYS = [*ONE, *(f"sample.{stage}.{key}" for stage in STAGES for key in ONE["sample"][stage])]


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(KEYS), VALUES)
def test_whatever_stands_there_is_right_or_told_with_its_key(tmp_path: Path, key: str, value: Any) -> None:
    """Any value under any key: the settings are read, or a SettingsError names the key; there is no other error."""
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(with_changes({key: value}, ONE), allow_unicode=True), encoding="utf-8")
    _, *below = key.split(".")
    section = key in ONE or isinstance(ONE["sample"][below[0]][below[1]], dict)  # what is wrong in it has a longer key
    said = key + ("" if section else " = ")
    try:
        profile, blocks = check(path)
    except SettingsError as error:
        assert said in str(error)  # noqa: PT017
    else:
        assert blocks[profile].keys() == set(STAGES)


def test_the_settings_of_all_stages_load_without_torch_and_mlflow() -> None:
    """They are read first by every stage, and by DVC's shortest ones."""
    script = (
        "import sys; from stages.params import check; check(); print({'torch', 'mlflow', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
