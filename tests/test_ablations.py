"""The ablation script: a row is the profile with its changes, and the table says what coco-caption says of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from ablations import ROWS, changes, done, table, train
from pipelines import NO_JAVA, search
from pycocoevalcap.cider.cider import Cider
from stores import fresh
from tiny import make_project, settings

from stages.fetch.captions import read_captions
from stages.files import read_json
from stages.provenance import changed_code, commit
from stages.scorers.ptb import tokenize
from stages.train.artifact import Artifact

CAPTIONER = "models/tiny/captioner.safetensors"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Path:
    """A repository after `train` of a row that brings another along, and of that one by itself."""
    harsh = settings().self_critical.model_dump() | {"learning_rate": 0.02}  # so that captions change
    root = make_project(tmp_path_factory.mktemp("ablations"), template, epochs=4, keep="last", self_critical=harsh)
    with fresh(root):
        train(Path("work"), "tiny", "self-critical", 2)
        train(Path("alone"), "tiny", "attend", 2)
    return root


def test_every_row_changes_settings_that_there_are() -> None:
    block = yaml.safe_load((Path(__file__).resolve().parent.parent / "params.yaml").read_text())["flickr8k"]
    for row in ROWS:
        assert changes(row), row
        for key in changes(row):
            section = block if key.startswith("features.") else block["train"]
            for name in key.split("."):
                assert name in section, f"{row}: {key}"
                section = section[name]


def test_a_row_is_the_profile_with_its_seed_and_its_changes(root: Path) -> None:
    own = yaml.safe_load((root / "params.yaml").read_text())["tiny"]["train"]
    trained = yaml.safe_load((root / "work/self-critical-2/params.yaml").read_text())["tiny"]["train"]
    critical = own["self_critical"] | {"epochs": 3}
    assert own | {"threads": 1, "seed": 2, "self_critical": critical} == trained


def test_what_self_critical_training_began_with_is_cross_entropy_alone(root: Path) -> None:
    begun, alone = (Artifact.load(root / work / "attend-2" / CAPTIONER) for work in ("work", "alone"))
    assert begun.weights_sha256 == alone.weights_sha256
    ended = Artifact.load(root / "work/self-critical-2" / CAPTIONER)
    assert ended.weights_sha256 != begun.weights_sha256


def test_its_record_names_the_code_that_ran(root: Path) -> None:
    """Not that of the folder in which the stage runs, which has none."""
    told = read_json(root / "work/self-critical-2/models/tiny/run.json")["tags"]
    changed = ", ".join(changed_code())
    assert (told["commit"], told["code"]) == (commit(), f"dirty: {changed}" if changed else "clean")


def test_what_is_done_is_not_done_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablations.subprocess.run", lambda *command, **how: pytest.fail(f"{command} was started"))
    with fresh(root):
        train(Path("work"), "tiny", "self-critical", 2)
        train(Path("work"), "tiny", "attend", 2)


def test_rows_of_other_settings_are_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "root")
    document = yaml.safe_load((root / "params.yaml").read_text())
    with fresh(tmp_path / "root"):
        document["tiny"]["evaluate"]["resamples"] = 7  # no setting of training
        document["tiny"]["features"]["workers"] = 7  # what it is on another machine
        Path("params.yaml").write_text(yaml.safe_dump(document))
        train(Path("work"), "tiny", "attend", 2)
        document["tiny"]["train"]["hidden"] = 24
        Path("params.yaml").write_text(yaml.safe_dump(document))
        for row in ("attend", "self-critical"):
            with pytest.raises(ValueError, match=rf"{row}-2 was trained with other settings .*: take another WORK"):
                train(Path("work"), "tiny", row, 2)
            with pytest.raises(ValueError, match=r"-2 was trained with other settings .*: take another WORK"):
                table(Path("work"), "tiny", [row], "val")


def test_captions_and_minutes_of_another_machine_are_enough(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", search(NO_JAVA))
    shutil.copytree(root, tmp_path / "root")
    with fresh(tmp_path / "root"):
        table(Path("work"), "tiny", ["self-critical"], "val")
        first = capsys.readouterr().out
        shutil.rmtree("data/tiny/features")
        for left in ("models", "data"):
            for folder in Path("work").glob(f"*/{left}"):
                shutil.rmtree(folder)
        table(Path("work"), "tiny", ["self-critical"], "val")
        assert capsys.readouterr().out == first
        with pytest.raises(
            ValueError, match=r"attend-2 holds neither a captioner nor captions_val_\w{8}\.json: bring one"
        ):
            table(Path("work"), "tiny", ["self-critical"], "val", beam=2)
    assert first.count("\n| ") == 2, "the head and the row that was asked for"


def test_what_an_earlier_captioner_said_is_gone(root: Path, tmp_path: Path) -> None:
    said = tmp_path / "captions_val_0123abcd.json"
    said.write_text("[]")
    done(tmp_path, 90.0)
    assert not said.exists()
    assert (tmp_path / "minutes").read_text() == "1.5\n"


def test_the_table_says_what_coco_caption_says(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", search(NO_JAVA))
    with fresh(root):
        table(Path("work"), "tiny", ["attend", "self-critical"], "test")
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    written = {cells[0]: cells for cells in rows[1:]}
    assert written.keys() == {"attend", "self-critical"}, "only what was trained and asked for"
    references = {
        picture.id: [" ".join(tokenize(text)) for text in picture.captions]
        for picture in read_captions(root / "data/tiny/captions_test.json")
    }
    cider = {}
    for row, cells in written.items():
        (path,) = (root / "work" / f"{row}-2").glob("captions_test_*.json")
        said = {entry["image_id"]: [entry["caption"]] for entry in json.loads(path.read_text())}
        cider[row] = 100 * Cider().compute_score(references, said)[0]
        assert cells[1] == "1"
        assert float(cells[2]) == pytest.approx(cider[row], abs=0.051)
    assert cider["attend"] != cider["self-critical"]
    gain, _, interval = written["self-critical"][7].partition(" ")
    assert float(gain) == pytest.approx(cider["self-critical"] - cider["attend"], abs=0.051)
    low, high = map(float, interval.strip("()").split(" to "))
    assert low <= float(gain) <= high
    assert written["self-critical"][8] == "attend"
