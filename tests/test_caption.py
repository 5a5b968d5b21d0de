"""The command `caption`, as people run it: pictures, folders, globs, lists, bad pictures, no model."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import torch
from captioners import coarse_pictures, save_captioner
from PIL import Image
from torch.nn.functional import cross_entropy

from stages.caption import PRETRAINED, find_model
from stages.evaluate.captioner import Captioner
from stages.features.encoders import EfficientNetLite0, EfficientNetLite2
from stages.features.preprocessing import Preprocessing
from stages.train.artifact import Artifact, ArtifactError, load_encoder
from stages.train.decoders import pack_words
from stages.vocab.vocabulary import END, SPECIALS, START, Vocabulary

REPOSITORY = Path(__file__).resolve().parent.parent
CAPTION = Path(sys.executable).with_name("caption")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and pictures: two good ones, a third below, a text and a cut picture."""
    root = tmp_path_factory.mktemp("place")
    save_captioner(root / "models/mine/captioner.safetensors")
    (root / "pictures/below").mkdir(parents=True)
    for picture, name in zip(coarse_pictures(3), ("a.png", "b.jpg", "below/c.PNG"), strict=True):
        picture.save(root / "pictures" / name)
    (root / "pictures/notes.txt").write_text("no picture")
    (root / "bad").mkdir()
    (root / "bad/cut.png").write_bytes((root / "pictures/a.png").read_bytes()[:60])
    return root


def caption(place: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CAPTION, *arguments],
        cwd=place,
        input=stdin,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_one_picture_is_one_caption(place: Path) -> None:
    done = caption(place, "pictures/a.png")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert set(line.split()) <= {f"word{n}" for n in range(40)}
    assert "model: " in done.stderr
    assert "models/mine/captioner.safetensors" in done.stderr, "without --model it says which it took"


def test_folders_globs_and_lists_and_a_bad_picture_in_between(place: Path) -> None:
    done = caption(place, "pictures", "bad/cut.png", "pictures/*.jpg", "nowhere.png", "-", stdin="pictures/a.png\n\n")
    assert done.returncode == 1
    named = [line.split(": ")[0] for line in done.stdout.splitlines()]
    assert named == ["pictures/a.png", "pictures/b.jpg", "pictures/below/c.PNG", "pictures/b.jpg", "pictures/a.png"]
    texts = [line.split(": ", 1)[1] for line in done.stdout.splitlines()]
    assert texts[1] == texts[3], "the same picture, the same caption"
    assert texts[0] == texts[4]
    assert "bad/cut.png: cannot be decoded" in done.stderr
    assert "nowhere.png: No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_glob_may_match_folders_and_none_is_dropped_silently(place: Path) -> None:
    done = caption(place, "pict*")
    assert [line.split(": ")[0] for line in done.stdout.splitlines()] == [
        "pictures/a.png",
        "pictures/b.jpg",
        "pictures/below/c.PNG",
    ]
    (place / "empty").mkdir(exist_ok=True)
    for nothing in ("none*.png", "empty"):
        done = caption(place, "pictures/a.png", nothing)
        assert done.returncode == 1
        assert f"no picture in {nothing}: name files, globs" in done.stderr
    done = caption(place, "-", stdin="pictures/a.png\0pictures/b.jpg\0")
    assert done.returncode == 1
    assert "- takes one name a line: use `find` without -print0" in done.stderr


def test_who_has_read_enough_ends_it_without_a_word(place: Path) -> None:
    with subprocess.Popen(
        [CAPTION, "--batch", "1", *["pictures"] * 9], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"pictures/a.png: ")
        process.stdout.close()
        told = process.stderr.read().decode()
    assert "roken pipe" not in told
    assert process.returncode == 141


def test_json_has_the_n_best_with_scores_and_batches_change_nothing(place: Path) -> None:
    every = []
    for batch in ("1", "16"):
        done = caption(place, "--json", "--n", "3", "--beam", "5", "--batch", batch, "pictures")
        assert done.returncode == 0, done.stderr
        every.append([json.loads(line) for line in done.stdout.splitlines()])
    for alone, together in zip(*every, strict=True):
        assert [each["caption"] for each in alone["captions"]] == [each["caption"] for each in together["captions"]]
        assert len(alone["captions"]) == 3
        scores = [each["score"] for each in alone["captions"]]
        assert scores == sorted(scores, reverse=True)
        assert alone["caption"] == alone["captions"][0]["caption"]


def test_what_is_drawn_depends_on_picture_and_seed_only(place: Path) -> None:
    """Alone and in another batch a picture gets the same captions; with another seed, others."""

    def drawn(*arguments: str) -> dict[str, list[str]]:
        done = caption(place, "--json", "--n", "3", "--sample", *arguments)
        assert done.returncode == 0, done.stderr
        records = [json.loads(line) for line in done.stdout.splitlines()]
        return {record["picture"]: [each["caption"] for each in record["captions"]] for record in records}

    whole = drawn("--seed", "5", "pictures")
    assert {len(captions) for captions in whole.values()} == {3}
    assert drawn("--seed", "5", "--batch", "1", "pictures/b.jpg")["pictures/b.jpg"] == whole["pictures/b.jpg"]
    assert drawn("--seed", "6", "pictures") != whole
    assert drawn("--seed", "5", "--top-p", "0.01", "pictures") != whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sample", "--top-p", "1.5", "pictures/a.png"), "1.5 must be above 0 and at most 1"),
        (("--sample", "--seed", "-1", "pictures/a.png"), "-1 must not be negative"),
        (("--sample", "--temperature", "0", "pictures/a.png"), "0 must be above 0 and at most 100"),
        (("notes",), "notes: No such file or directory"),
        (("--model", "gone.safetensors", "pictures/a.png"), r"gone.safetensors is not there: pull it again"),
        (("--beam", "0", "pictures/a.png"), "0 must be between 1 and 1000"),
        (("empty*.png",), "no picture in empty"),
        (("pictures/notes.txt",), "pictures/notes.txt: is in none of the formats JPEG, PNG"),
        (("--top-p", "0.5", "pictures/a.png"), "--top-p goes with --sample"),
        (("--seed", "1", "pictures/a.png"), "--seed goes with --sample"),
        (("--port", "0", "pictures/a.png"), "--port goes with --serve"),
        (("--json", "--show", "pictures/a.png"), "--show does not go with --json"),
        (("--serve", "--n", "3", "--beam", "2"), "--beam does not go with --serve: its page asks for what is wanted"),
    ],
)
def test_mistakes_are_told(place: Path, arguments: tuple[str, ...], message: str) -> None:
    done = caption(place, *arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_captioners_of_different_encoders_vote_by_the_mean_of_their_log_probabilities(tmp_path: Path) -> None:
    kinds = {"one": (EfficientNetLite0, "attend", 64), "other": (EfficientNetLite2, "attend", 96)}
    paths = [
        save_captioner(tmp_path / f"{name}.safetensors", encoder=encoder, decoder=decoder, size=size)
        for name, (encoder, decoder, size) in kinds.items()
    ]
    both = Captioner.load(*paths, device="cpu")
    pictures = coarse_pictures(3)
    for picture, best in zip(pictures, both.caption(pictures), strict=True):
        words = [both.vocabulary.words.index(word) for word in best[0].text.split()]
        told = pack_words([[START, *words, END]], [0])
        alone = []
        for path in paths:
            artifact = Artifact.load(path)
            pixels = Preprocessing(**artifact.encoder["preprocessing"])(picture)
            with torch.no_grad():
                grid = load_encoder(artifact.encoder, {}, torch.device("cpu"))(pixels[None]).half().float()
                logits = artifact.decoder(artifact.decoder.context(grid.mean(1), grid), told)
            alone.append(-cross_entropy(logits, told.predict, reduction="sum").item())
        assert best[0].score == pytest.approx(mean(alone) / (len(words) + 1) ** 0.7, rel=1e-3)
    # They look at 2x2 and at 3x3 regions; what is shown is where the first looked.
    views = [torch.stack([view(picture) for picture in pictures]) for view in both.preprocessings]
    for one, two in zip(both.describe(views, attention=True), both.caption(pictures), strict=True):
        assert one[0].text == two[0].text
        assert one[0].attention is not None
        assert one[0].attention.shape == (len(one[0].text.split()), 4)


def test_several_models_vote_and_must_fit(tmp_path: Path) -> None:
    one = save_captioner(tmp_path / "one.safetensors")
    other = save_captioner(tmp_path / "other.safetensors", seed=1)
    picture = Image.new("RGB", (64, 64), "red")
    alone = Captioner.load(one, device="cpu").caption([picture])[0][0]
    twice = Captioner.load(one, one, device="cpu").caption([picture])[0][0]
    assert twice.text == alone.text
    assert twice.score == pytest.approx(alone.score, abs=1e-4)
    both = Captioner.load(one, other, device="cpu").caption([picture])[0][0]
    assert both.score < max(alone.score, Captioner.load(other, device="cpu").caption([picture])[0][0].score)
    with pytest.raises(ArtifactError, match=r"have hash 9386950811f5, the captioner was trained on 000000000000"):
        Captioner.load(save_captioner(tmp_path / "third.safetensors", encoder_hash="0" * 64), device="cpu")
    artifact = Artifact.load(one)
    others = replace(artifact, vocabulary=Vocabulary((*SPECIALS, *(f"other{n}" for n in range(40)))))
    with pytest.raises(ArtifactError, match="captioners that vote must share their vocabulary"):
        Captioner([artifact, others], device="cpu")


def test_a_name_that_is_no_utf_8_is_captioned_like_any_other(place: Path) -> None:
    """Where stdout takes UTF-8 only, as in most terminals; in a folder and from a list."""
    odd = b"odd/caf\xe9.png"
    (place / "odd").mkdir()
    shutil.copy(place / "pictures/a.png", place / os.fsdecode(odd))
    strict = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([CAPTION, "odd", "-"], cwd=place, input=odd, env=strict, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.partition(b": ")[0] for line in done.stdout.splitlines()] == [odd, odd]
    as_json = subprocess.run([CAPTION, "--json", "odd"], cwd=place, env=strict, capture_output=True, check=True)
    assert os.fsencode(json.loads(as_json.stdout.decode("utf-8"))["picture"]) == odd


def test_without_model_it_takes_the_best_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Drawn scenes last, one's own photographs first, what `dvc pull` brought between them."""
    monkeypatch.chdir(tmp_path)
    names = ("models/sample/captioner.safetensors", str(PRETRAINED), "models/mine/captioner.safetensors")
    for name in names:
        Path(name).parent.mkdir(parents=True)
        Path(name).touch()
        assert find_model() == tmp_path / name
        assert f"model: {tmp_path / name}" in capsys.readouterr().err


def in_terminal(place: Path, *arguments: str, **environment: str) -> str:
    """What `caption` writes to a terminal that knows colours, and nothing of kitty or sixels."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    kept = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    told = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.Popen(
        [CAPTION, *arguments], cwd=place, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, env={**kept, **told}
    )
    os.close(theirs)
    written = b""
    with suppress(OSError):  # Linux's way to say that the terminal's other side is closed
        while piece := os.read(ours, 65_536):
            written += piece
    os.close(ours)
    assert process.wait(timeout=60) == 0
    return written.decode()


def test_pictures_are_shown_in_a_terminal_and_only_there(place: Path) -> None:
    piped = caption(place, "--show", "pictures/a.png")
    (said,) = piped.stdout.splitlines()
    shown = in_terminal(place, "--show", "pictures/a.png")
    assert shown.count("\u2580") + shown.count("\u2584") > 200, "half blocks"
    assert "\x1b[38;2;" in shown
    assert shown.rstrip().endswith(said)
    assert in_terminal(place, "--show", "pictures/a.png", NO_COLOR="1").strip() == said


def test_a_picture_or_the_page_must_be_named(place: Path) -> None:
    done = caption(place)
    assert done.returncode == 1
    assert "no picture is named: caption photo.jpg" in done.stderr
