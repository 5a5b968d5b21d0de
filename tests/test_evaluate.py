"""Evaluate: every picture or none, no special tokens, the same scores as coco-caption, other people's captions too."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import torch
import yaml
from browser import keep, opened
from PIL import Image
from pipelines import NO_JAVA, search
from playwright.sync_api import expect
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from stores import serving
from tiny import environment, make_project

from stages import release
from stages.evaluate import figures
from stages.evaluate.__main__ import arguments
from stages.features.preprocessing import Preprocessing
from stages.fetch.captions import read_captions
from stages.scorers.ptb import tokenize
from stages.train.artifact import Artifact, read_metadata
from stages.train.decoding import Decoding


def stage(root: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"stages.{name}", *arguments]
    where = environment(root) | {"PATH": search(NO_JAVA)}
    return subprocess.run(command, cwd=root, env=where, capture_output=True, text=True, timeout=180, check=False)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Path:
    root = make_project(tmp_path_factory.mktemp("evaluated"), template, epochs=20, neighbours=5)
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["tiny"]["evaluate"]["resamples"] = 50
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    for name in ("train", "evaluate"):
        done = stage(root, name)
        assert done.returncode == 0, done.stderr
    return root


def test_metrics_are_coco_captions_of_the_captions_that_were_written(evaluated: Path) -> None:
    metrics = json.loads((evaluated / "reports/tiny/metrics.json").read_text())
    for split in ("val", "test"):
        written = json.loads((evaluated / f"reports/tiny/captions_{split}.json").read_text())
        pictures = read_captions(evaluated / f"data/tiny/captions_{split}.json")
        assert {entry["image_id"] for entry in written} == {picture.id for picture in pictures}
        assert metrics[split]["images"] == len(pictures) == 10
        captions = {entry["image_id"]: [" ".join(tokenize(entry["caption"]))] for entry in written}
        references = {picture.id: [" ".join(tokenize(each)) for each in picture.captions] for picture in pictures}
        with contextlib.redirect_stdout(io.StringIO()):
            bleu, _ = Bleu(4).compute_score(references, captions)
            cider, _ = Cider().compute_score(references, captions)
        for n in range(4):
            assert metrics[split][f"bleu_{n + 1}"] == pytest.approx(bleu[n], abs=1e-4)
        assert metrics[split]["cider"] == pytest.approx(cider, abs=1e-4)
        assert {"rouge_l", "meteor", "intervals", "rows", "diagnostics", "split", "decoding"} <= set(metrics[split])
        assert not any("<" in entry["caption"] for entry in written), "no special token"
    assert metrics["test"]["decoding"] == {
        "beam": 3, "length_penalty": 0.7, "max_words": 20, "neighbours": 5, "consensus": 10.0,
    }  # fmt: skip
    assert "10 images" in (evaluated / "reports/tiny/scorecard.md").read_text()


def test_curves_and_captioned_pictures_go_into_the_record(evaluated: Path) -> None:
    kept = {path.name: path for path in (evaluated / "mlartifacts").rglob("*.png")}
    assert kept.keys() == {"curves.png", "captions.png"}
    for path in kept.values():
        with Image.open(path) as image:
            assert image.width >= 1000
            assert np.asarray(image.convert("L")).std() > 5, "something is drawn on it"


@pytest.mark.slow
def test_a_bare_ui_shows_the_gallery_among_the_runs_pictures(evaluated: Path) -> None:
    """In MLflow's own viewer, a sandboxed frame: the page's script runs there."""
    known = json.loads((evaluated / "models/tiny/run.json").read_text())["run_id"]
    command = ("mlflow", "ui", "--host", "127.0.0.1", "--port", "PORT", "--workers", "1")
    with serving(evaluated, *command, ready="/health") as address:
        with urlopen(f"{address}/api/2.0/mlflow/runs/get?run_id={known}") as answer:
            run = json.load(answer)["run"]
        tags = {each["key"]: each["value"] for each in run["data"]["tags"]}
        assert min(float(tags[f"seconds.{name}"]) for name in ("train", "evaluate")) > 0
        page = f"{address}/#/experiments/{run['info']['experiment_id']}/runs/{known}/artifacts"
        # Who is signed in, it asks a path that a server without users does not have.
        with opened(offline=False, forgiven="/mlflow/users/current") as shown:
            for name in ("curves.png", "captions.png"):
                shown.goto("about:blank")  # another place of the same page is not read anew
                shown.goto(f"{page}/{name}")
                with Image.open(next((evaluated / "mlartifacts").rglob(name))) as image:
                    drawn = shown.locator(f"img[alt='{name}']").first
                    expect(drawn).to_have_js_property("naturalWidth", image.width, timeout=60_000)
            shown.goto("about:blank")
            shown.goto(f"{page}/gallery.html")
            frame = shown.frame_locator("iframe")
            expect(frame.locator("#cards img").first).to_have_js_property("complete", True, timeout=60_000)
            assert frame.locator("#count").inner_text() == "10 of 10 pictures"
            written = json.loads((evaluated / "reports/tiny/captions_test.json").read_text())
            said = [entry["caption"] for entry in written]
            assert [text.strip() for text in frame.locator("#cards .caption").all_text_contents()] == said
            frame.locator("#search").fill(said[0].split()[-2])
            expect(frame.locator("#cards mark").first).to_be_visible()
            keep(shown, "gallery-mlflow")


def test_attention_is_drawn_where_the_weights_are() -> None:
    """A white picture, all weight on the upper left region: there it stays white, elsewhere it is dark."""
    weights = np.zeros((1, 16), np.float32)
    weights[0, 0] = 1
    drawn = io.BytesIO()
    figures.attention(Image.new("RGB", (64, 64), "white"), ["dog"], weights, (0, 0, 64, 64)).savefig(drawn, dpi=100)
    pixels = np.asarray(Image.open(drawn).convert("L")).astype(float)
    dark = np.argwhere(pixels < 80)
    top, left = dark.min(0)
    bottom, right = dark.max(0)
    part = pixels[top:bottom, left:right]
    corner = part[: len(part) // 6, : part.shape[1] // 6]
    assert corner.mean() > 200 > 90 > part[len(part) // 2 :, part.shape[1] // 2 :].mean()


def test_where_the_middle_is_seen_attention_is_drawn_there() -> None:
    """A white picture of 192 x 64, all weight on the upper left region of the square that is seen."""
    weights = np.zeros((1, 16), np.float32)
    weights[0, 0] = 1
    drawn = io.BytesIO()
    figure = figures.attention(
        Image.new("RGB", (192, 64), "white"), [" "], weights, Preprocessing(64, "crop").box(192, 64)
    )
    figure.savefig(drawn, dpi=100)
    pixels = np.asarray(Image.open(drawn).convert("L")).astype(float)
    dark = np.argwhere(pixels < 80)
    top, left = dark.min(0)
    bottom, right = dark.max(0)
    part = pixels[top:bottom, left:right]
    height, width = part.shape
    assert width / height == pytest.approx(3, abs=0.15)
    corner = part[: height // 6, width // 3 + 2 : width // 3 + width // 18]
    assert corner.mean() > 200, "seen, and looked at"
    assert part[:, : width // 3 - 2].mean() < 60, "not seen"
    assert part[height // 2 :, width // 2 : 2 * width // 3].mean() < 90, "seen, and not looked at"


def test_prices_in_captions_are_no_mathematics() -> None:
    said = "two $1 bills # a $5 and {0}^"
    figures.sheet([Image.new("RGB", (8, 8))], [said], [said]).savefig(io.BytesIO())
    figures.attention(Image.new("RGB", (8, 8)), said.split(), np.ones((7, 4), np.float32), (0, 0, 8, 8)).savefig(
        io.BytesIO()
    )


def test_other_peoples_captions_get_the_same_card(evaluated: Path, tmp_path: Path) -> None:
    ours = evaluated / "reports/tiny/captions_test.json"
    done = stage(evaluated, "evaluate", "--captions", str(ours))
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if "this model" in line)
    assert row in (evaluated / "reports/tiny/scorecard.md").read_text(), "the same captions, the same numbers"
    (tmp_path / "fewer.json").write_text(json.dumps(json.loads(ours.read_text())[1:]))
    done = stage(evaluated, "evaluate", "--captions", str(tmp_path / "fewer.json"))
    assert done.returncode == 1
    assert "fewer.json misses 1 (50) of the 10 pictures to score: all and no others count" in done.stderr
    assert "Traceback" not in done.stderr


def test_other_captioners_get_the_same_card_and_several_vote(evaluated: Path) -> None:
    ours = str(evaluated / "models/tiny/captioner.safetensors")
    written = (evaluated / "reports/tiny/scorecard.md").read_text()
    done = stage(evaluated, "evaluate", "--model", ours, "--model", ours)
    assert done.returncode == 0, done.stderr
    assert next(line for line in done.stdout.splitlines() if "this model" in line) in written, "with itself it agrees"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--split", "val"), "--split goes with --captions or --model: the stage scores both splits"),
        (("--captions", "a.json", "--model", "b.safetensors"), "--model: not allowed with argument --captions"),
    ],
)
def test_what_would_be_ignored_is_refused(
    words: tuple[str, ...], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate", *words])
    with pytest.raises(SystemExit, match="2"):
        arguments()
    assert sentence in capsys.readouterr().err


def test_a_captioner_is_compared_with_a_results_file(evaluated: Path) -> None:
    """Decoded from the same features by the same settings as in evaluate, it says what evaluate wrote."""
    written = evaluated / "reports/tiny/captions_test.json"
    theirs = evaluated / "theirs.json"
    theirs.write_text(json.dumps([{**entry, "caption": "a red dog"} for entry in json.loads(written.read_text())]))
    pages = []
    for other in (written, theirs):
        done = stage(evaluated, "compare", "models/tiny/captioner.safetensors", str(other))
        assert done.returncode == 0, done.stderr
        pages.append((evaluated / "reports/tiny/compare.html").read_bytes())
        if other == written:
            assert "CIDEr-D +0.0 (+0.0 to +0.0)" in done.stdout
    cider = json.loads((evaluated / "reports/tiny/metrics.json").read_text())["test"]["cider"]
    row = re.search(rb"CIDEr-D</th>(?:<td class='number'>([^<]+)</td>)", pages[1])
    assert row is not None
    assert float(row[1]) == pytest.approx(100 * cider, abs=0.05)
    theirs.write_text(theirs.read_text().replace("a red dog", "a red dog <end>", 1))
    done = stage(evaluated, "compare", str(written), str(theirs))
    assert done.returncode == 1
    assert re.search(r"theirs.json: the caption 'a red dog <end>' of picture \d+ holds the special token", done.stderr)


def test_a_release_is_half_as_large_and_measured_itself(evaluated: Path) -> None:
    trained = evaluated / "models/tiny/captioner.safetensors"
    (evaluated / "reports/tiny/fetch.json").write_text('{"source": "folder"}')
    done = stage(evaluated, "release", "tiny_one", "--terms", "made up, free")
    assert done.returncode == 0, done.stderr
    path = evaluated / "models/pretrained/tiny_one.safetensors"
    assert path.stat().st_size < 0.7 * trained.stat().st_size
    card = path.with_suffix(".md").read_text()
    assert read_metadata(path)["weights_sha256"] in card
    assert read_metadata(trained)["weights_sha256"] in card
    assert "made up, free" in card
    assert "train.decoder: show_tell" in card
    # Published again: with a memory where there is none, with the one it has where the profile decodes otherwise.
    own = Artifact.load(path)
    assert own.memory is not None
    replace(own, memory=None, decoding=Decoding()).save(path)
    params = (evaluated / "params.yaml").read_text()
    for weight in ("0.5", "0.25"):
        (evaluated / "params.yaml").write_text(re.sub(r"consensus: 10\.0", f"consensus: {weight}", params))
        done = stage(evaluated, "release", "tiny_one", "--remember")
        assert done.returncode == 0, done.stderr
        remembered, again = Artifact.load(path), path.with_suffix(".md").read_text()
        assert (remembered.decoding.neighbours, remembered.decoding.consensus) == (5, float(weight))
        assert remembered.memory is not None
        for name, value in own.memory.as_dict().items():
            assert torch.equal(value, remembered.memory.as_dict()[name]), name
        assert remembered.weights_sha256 in again
        assert "--remember`" in again
        assert "made up, free" in again
        assert again.endswith(card[card.index("Published in float16") :]), "what is said of the training stays"
    other = re.sub(r"\btiny:", "other:", params.replace("profile: tiny", "profile: other"))
    (evaluated / "params.yaml").write_text(other)
    done = stage(evaluated, "release", "tiny_one", "--remember")
    (evaluated / "params.yaml").write_text(params)
    assert done.returncode == 1
    assert "tiny_one was made by profile tiny, and params.yaml chooses other" in done.stderr


def test_what_is_published_stays_where_another_cannot_be(evaluated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too large, or with no card that says how it was made."""
    folder = evaluated / "models/pretrained"
    folder.mkdir(exist_ok=True)
    shutil.copy(evaluated / "models/tiny/captioner.safetensors", folder / "mine.safetensors")
    (folder / "mine.md").write_text("mine")
    (evaluated / "reports/tiny/fetch.json").write_text('{"source": "folder"}')
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.chdir(evaluated)
    monkeypatch.setattr("stages.release.LARGEST", 1000)
    for words, sentence in (
        (("--terms", "free"), r"mine.safetensors would have .* bytes, more than 1,000: train a smaller one"),
        (("--remember",), r"mine.md does not say how mine was made: publish it first, without --remember"),
    ):
        monkeypatch.setattr("sys.argv", ["release", "mine", *words])
        with pytest.raises(ValueError, match=sentence):
            release.main()
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_picture_without_features_is_an_error_never_left_out(evaluated: Path) -> None:
    index = evaluated / "data/tiny/features/index.json"
    before = index.read_text()
    changed = json.loads(before)
    lost = changed["splits"]["test"][3]
    changed["unreadable"] = [{"split": "test", "id": lost, "file_name": f"{lost}.png", "reason": "cut"}]
    index.write_text(json.dumps(changed))
    metrics = (evaluated / "reports/tiny/metrics.json").read_bytes()
    done = stage(evaluated, "evaluate")
    index.write_text(before)
    assert done.returncode == 1
    assert f"1 of 10 test pictures could not be read ({lost}.png): a score counts only over all pictures" in done.stderr
    assert (evaluated / "reports/tiny/metrics.json").read_bytes() == metrics, "earlier outputs are untouched"


def test_features_of_other_pictures_are_told(evaluated: Path, tmp_path: Path) -> None:
    """As where captions are checked out and features are not."""
    index = evaluated / "data/tiny/features/index.json"
    before = index.read_text()
    changed = json.loads(before)
    changed["splits"]["test"] = changed["splits"]["test"][::-1]
    index.write_text(json.dumps(changed))
    captions = "reports/tiny/captions_test.json"
    told = [stage(evaluated, "evaluate", *others) for others in ([], ["--captions", captions])]
    index.write_text(before)
    for done in told:
        assert done.returncode == 1
        assert (
            "data/tiny/features has other test pictures than captions_test.json: run `dvc repro features`"
            in done.stderr
        )


def test_only_checkpoints_older_than_the_run_are_removed(evaluated: Path) -> None:
    """A newer one is of a training that has been stopped, or goes on."""
    models = evaluated / "models/tiny"
    older, newer = (models / f"unfinished_{name}.pt" for name in ("Older", "Newer"))
    for path in (older, newer):
        path.write_bytes(b"")
    os.utime(older, (0, 0))
    done = stage(evaluated, "evaluate")
    assert done.returncode == 0, done.stderr
    assert (older.exists(), newer.exists()) == (False, True)
    newer.unlink()


def test_without_resamples_there_are_no_intervals_and_it_ends_well(evaluated: Path) -> None:
    before = (evaluated / "params.yaml").read_text()
    (evaluated / "params.yaml").write_text(before.replace("resamples: 50", "resamples: 0"))
    done = stage(evaluated, "evaluate")
    (evaluated / "params.yaml").write_text(before)
    assert done.returncode == 0, done.stderr
    assert json.loads((evaluated / "reports/tiny/metrics.json").read_text())["test"]["intervals"] == {}


def test_how_captions_were_decoded_stands_beside_their_score(evaluated: Path) -> None:
    """Every option that is set, and none that is not; and what is drawn, with a seed, is drawn again."""
    before = (evaluated / "params.yaml").read_text()
    params = yaml.safe_load(before)
    ours = str(evaluated / "models/tiny/captioner.safetensors")
    cards = []
    for changes in (
        {"block_trigrams": True, "neighbours": 7, "consensus": 0.5, "guidance": 0.3, "candidates": 6},
        {"sample": {"top_p": 0.9, "temperature": 1.5, "seed": 7}},
        {"sample": {"top_p": 0.9, "temperature": 1.5, "seed": 7}},
    ):
        rest = {"block_trigrams": None, "consensus": None, "guidance": None, "candidates": None}
        params["tiny"]["evaluate"] |= {**rest, "neighbours": 0, "sample": None, **changes}
        (evaluated / "params.yaml").write_text(yaml.safe_dump(params))
        done = stage(evaluated, "evaluate", "--model", ours)
        assert done.returncode == 0, done.stderr
        cards.append(done.stdout)
    (evaluated / "params.yaml").write_text(before)
    asked = "- decoding: beam 3, length_penalty 0.7, max_words 20, block_trigrams True, neighbours 7, consensus 0.5, "
    assert f"{asked}guidance 0.3, candidates 6\n" in cards[0]
    said = "- decoding: beam 1, length_penalty 0.7, max_words 20, top_p 0.9, temperature 1.5, seed 7\n"
    assert said in cards[1]
    assert cards[1] == cards[2] != cards[0]


def test_features_of_another_encoder_are_refused(evaluated: Path) -> None:
    index = evaluated / "data/tiny/features/index.json"
    before = index.read_text()
    index.write_text(before.replace('"made up"', '"another"'))
    done = stage(evaluated, "evaluate")
    index.write_text(before)
    assert done.returncode == 1
    assert "has encoder another, the captioner sees made up: run `dvc repro`" in done.stderr
