"""Finetuning: what is kept is what the encoder gives, only the last blocks move, what is scored is what was tuned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from stores import fresh
from tiny import settings
from trained import stage

from stages.evaluate import measure
from stages.evaluate.captioner import Captioner
from stages.evaluate.measure import caption
from stages.features.encoders import ENCODERS, EfficientNetLite0
from stages.features.preprocessing import Preprocessing
from stages.features.store import Features
from stages.fetch.captions import read_captions
from stages.fetch.pictures import Pictures, decode
from stages.files import sha256
from stages.train.artifact import Artifact, ArtifactError, load_encoder
from stages.train.batches import Source
from stages.train.decoders import Shape, build, pack_words
from stages.train.decoding import Decoding
from stages.train.finetune import Tuned, keep
from stages.train.loop import Training

REPOSITORY = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
FINETUNE = {"epochs": 2, "blocks": 2, "learning_rate": 0.005, "encoder_share": 0.1}
# The last epoch is kept: whether one of finetuning is the best hangs on a processor's last bits.
TUNING: dict[str, Any] = {
    "decoder": "attend",
    "epochs": 4,
    "keep": "last",
    "finetune": FINETUNE,
    "captions_per_picture": 2,
}


def work(root: Path, *stages: str) -> None:
    """Runs stages there, in this process."""
    threads = torch.get_num_threads()
    with fresh(root):
        for name in stages:
            stage(f"stages.{name}")
    torch.set_num_threads(threads)


def set_train(root: Path, **changes: object) -> None:
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["tiny"]["train"] = settings(threads=1, **changes).model_dump()
    (root / "params.yaml").write_text(yaml.safe_dump(params))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Path:
    """Drawn scenes of 64 x 64 and what the real encoder says of them, in float32."""
    root = tmp_path_factory.mktemp("drawn")
    shutil.copy(template, root / "mlflow.db")
    block = yaml.safe_load((REPOSITORY / "params.yaml").read_text())["sample"]
    block["fetch"] |= {"pictures": 60, "size": 64}
    block["vocab"] |= {"min_count": 1}
    block["features"] |= {
        "size": 64,
        "precision": "float32",
        "device": "cpu",
        "workers": 0,
        "grid": True,
        "mirror": True,
    }
    block["evaluate"] |= {"resamples": 0, "device": "cpu"}
    (root / "params.yaml").write_text(yaml.safe_dump({"profile": "tiny", "tiny": block}))
    work(root, "fetch", "vocab", "features")
    return root


@pytest.fixture(scope="module")
def tuned(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after train with finetuning and evaluate."""
    root = tmp_path_factory.mktemp("tuned") / "root"
    shutil.copytree(drawn, root)
    set_train(root, **TUNING)
    work(root, "train", "evaluate")
    return root


@pytest.mark.parametrize("name", ENCODERS)
def test_below_and_above_make_the_whole_encoder(name: str, tmp_path: Path) -> None:
    kind = ENCODERS[name]
    torch.manual_seed(0)
    torch.save(kind.network().state_dict(), tmp_path / "weights.pt")
    encoder = kind("package" if kind is EfficientNetLite0 else str(tmp_path / "weights.pt"))
    pictures = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)

    def apart(upper: torch.nn.ModuleDict, blocks: int) -> float:
        """How far the two ways to the grid lie apart, as a share of its largest value."""
        x = encoder.lower(pictures, blocks).clone()
        for layer in upper.values():
            x = layer(x)
        grid = encoder(pictures)
        return float((x.flatten(2).transpose(1, 2) - grid).abs().max() / grid.abs().max())

    for blocks in (1, 3):
        upper = encoder.upper(blocks)
        assert apart(upper, blocks) < 1e-5
        assert all(parameter.requires_grad for parameter in upper.parameters())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    # What was trained is taken over, and changes what the encoder says.
    with torch.no_grad():
        for parameter in upper.parameters():
            parameter.mul_(1.1)
    assert apart(upper, 3) > 0.01
    encoder.tune(upper.state_dict())
    assert apart(upper, 3) < 1e-5
    with pytest.raises(ValueError, match=r"train\.finetune\.blocks = 40: of \w+ 1 to \d+ layers can be tuned"):
        encoder.upper(40)
    with pytest.raises(ValueError, match=r"nothing \(1,\) is not among the weights of"):
        encoder.tune({"nothing": torch.zeros(1)})


def test_before_it_learns_a_tuned_decoder_sees_what_lies_on_disk(drawn: Path) -> None:
    """Contexts from the kept lower part are those from features, of the picture and of its mirrored view."""
    features = Features(drawn / "data/tiny/features")
    pictures = read_captions(drawn / "data/tiny/captions_train.json")
    frozen = load_encoder(features.index, {}, CPU)
    torch.manual_seed(1)
    made = build(Shape("attend", 20, 1280, 16, 16)).eval()
    own = Tuned(made, frozen.upper(2), torch.float32, 0.1).eval()
    disk = Source(features, "train", grid=True, mirror=True)
    kept = keep(
        lambda pixels: [frozen.lower(pixels, 2)],
        disk, Pictures(drawn / "data/tiny/pictures"), pictures, Preprocessing(**disk.features.index["preprocessing"]),
        workers=0, device=CPU, batch=7,
    )  # fmt: skip
    rows, flips = [3, 0, 17], [False, True, False]
    lower, none = kept.read(rows, flips)
    assert none is None
    assert lower.shape == (3, 192, 2, 2)
    pooled, grid = disk.read(rows, flips)
    assert grid is not None
    with torch.no_grad():
        wanted = made.context(pooled.float(), grid.float())
        for found, part in zip(own.context(lower.float()), wanted, strict=True):
            torch.testing.assert_close(found, part, atol=2e-2, rtol=2e-2)  # both are float16 on the way
    assert not torch.equal(lower, kept.read(rows)[0])


def test_the_encoder_learns_and_at_its_own_rate() -> None:
    """A step moves only the last blocks, by `share` of what it moves the decoder: Adam's first step is its rate."""
    encoder = EfficientNetLite0("package")
    own = Tuned(build(Shape("show_tell", 12, 1280, 8, 8)), encoder.upper(1), torch.float32, 0.1).train()
    before = {name: value.clone() for name, value in own.state_dict().items()}
    groups = own.parameter_groups()
    assert {id(each) for group in groups for each in group["params"]} == {id(each) for each in own.parameters()}
    lower = encoder.lower(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), 1).clone()
    words = pack_words([[1, 5, 6, 2], [1, 7, 2]], [0, 1])
    optimizer = torch.optim.Adam(groups, lr=0.01)
    for group in optimizer.param_groups:
        group["lr"] *= group.get("share", 1.0)
    torch.nn.functional.cross_entropy(own(own.context(lower), words), words.predict).backward()
    optimizer.step()
    moved = {name: float((value - before[name]).abs().max()) for name, value in own.state_dict().items()}
    assert moved["upper.17.0.weight"] == pytest.approx(0.001, rel=0.1)
    assert moved["decoder.output.weight"] == pytest.approx(0.01, rel=0.1)


def test_the_artifact_carries_what_was_tuned_and_evaluate_and_caption_use_it(tuned: Path) -> None:
    path = tuned / "models/tiny/captioner.safetensors"
    artifact = Artifact.load(path)
    table = pd.read_csv(tuned / "reports/tiny/training.csv")
    assert table.epoch.tolist() == [1, 2, 3, 4, 5, 6]
    assert artifact.tuned.keys() >= {"16._expand_conv.weight", "17.0.weight"}
    assert {name.split(".")[0] for name in artifact.tuned} == {"16", "17"}
    assert len(artifact.encoder["tuned_sha256"]) == 64
    frozen = load_encoder(artifact.encoder, {}, CPU)
    state = frozen.upper(2).state_dict()
    assert not any(torch.equal(value, state[name]) for name, value in artifact.tuned.items() if "weight" in name)
    # What evaluate wrote is what the captioner says, picture by picture; with the untuned encoder it says others.
    written = {
        entry["image_id"]: entry["caption"]
        for entry in json.loads((tuned / "reports/tiny/captions_test.json").read_text())
    }
    archives = Pictures(tuned / "data/tiny/pictures")
    pictures = read_captions(tuned / "data/tiny/captions_test.json")
    images = [decode(archives.read(picture.file_name)) for picture in pictures]
    captioner = Captioner.load(path, device="cpu")
    said = [best[0].text for best in captioner.caption(images)]
    assert said == [written[picture.id] for picture in pictures]
    scores = [best[0].score for best in captioner.caption(images)]
    captioner.encoders = [frozen]
    assert np.abs(np.subtract(scores, [best[0].score for best in captioner.caption(images)])).max() > 1e-3
    # Twice the same captioner votes as one.
    both = Captioner.load(path, path, device="cpu")
    assert [best[0].text for best in both.caption(images)] == said


def test_tuned_and_untuned_vote_together(tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuned_path = tuned / "models/tiny/captioner.safetensors"
    artifact = Artifact.load(tuned_path)
    named = {key: value for key, value in artifact.encoder.items() if key != "tuned_sha256"}
    torch.manual_seed(2)
    other = build(Shape("show_tell", len(artifact.vocabulary.words), 1280, 16, 16)).eval()
    Artifact(other, artifact.vocabulary, named, artifact.decoding).save(tmp_path / "other.safetensors")
    both = [argument for path in (tuned_path, tmp_path / "other.safetensors") for argument in ("--model", str(path))]
    with fresh(tuned):
        stage("stages.evaluate", *both)
    assert "**this model**" in capsys.readouterr().out
    archives = Pictures(tuned / "data/tiny/pictures")
    image = decode(archives.read(read_captions(tuned / "data/tiny/captions_test.json")[0].file_name))
    together = Captioner.load(tuned_path, tmp_path / "other.safetensors", device="cpu").caption([image])
    assert together[0][0].score < Captioner.load(tuned_path, device="cpu").caption([image])[0][0].score
    # Weights that do not fit are told.
    wrong = {"17.0.weight": torch.zeros(3)}
    Artifact(other, artifact.vocabulary, named, artifact.decoding, tuned=wrong).save(tmp_path / "wrong.safetensors")
    with pytest.raises(ArtifactError, match=r"tuned weights do not fit the encoder \(17.0.weight \(3,\) is not among"):
        Captioner.load(tmp_path / "wrong.safetensors", device="cpu").caption([Image.new("RGB", (64, 64))])


def test_a_captioner_of_another_size_is_shown_the_pictures_themselves(
    tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = Artifact.load(tuned / "models/tiny/captioner.safetensors")
    named = {key: value for key, value in trained.encoder.items() if key != "tuned_sha256"}
    torch.manual_seed(3)
    decoder = build(Shape("attend", len(trained.vocabulary.words), 1280, 16, 16)).eval()
    other = Artifact(
        decoder, trained.vocabulary, named | {"preprocessing": {"size": 96, "resize": "crop"}}, Decoding(max_words=6)
    )
    features, archives = Features(tuned / "data/tiny/features"), Pictures(tuned / "data/tiny/pictures")
    pictures = read_captions(tuned / "data/tiny/captions_test.json")
    asked: dict[str, Any] = {"decoding": other.decoding, "batch": 4, "device": CPU}
    found = caption([other], {"test": pictures}, features, archives, **asked)["test"]
    images = [decode(archives.read(picture.file_name), at_least=96) for picture in pictures]
    assert [*found.values()] == [best[0].text for best in Captioner([other], device="cpu").caption(images)]
    # Two of one encoder: the pictures are encoded once, and a captioner that votes with itself says the same.
    encoded: list[str] = []
    monkeypatch.setattr(measure, "load_encoder", lambda *named: encoded.append("once") or load_encoder(*named))
    assert caption([other, other], {"test": pictures}, features, archives, **asked)["test"] == found
    assert encoded == ["once"]
    with pytest.raises(ValueError, match=r"has preprocessing .*, the captioner sees .*96.*: run `dvc repro`"):
        caption([other], {"test": pictures}, features, None, **asked)


def test_before_finetuning_begins_it_learns_as_it_would_without(drawn: Path, tuned: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(drawn, root)
    set_train(root, **TUNING | {"finetune": FINETUNE | {"epochs": 0}})
    work(root, "train")
    rows = [(path / "reports/tiny/training.csv").read_text().splitlines() for path in (root, tuned)]
    assert len(rows[0]) == 5
    assert rows[1][:5] == rows[0]


def test_what_cannot_be_tuned_is_told_before_anything_is_trained(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    shutil.copytree(drawn, root)
    set_train(root, **TUNING | {"finetune": FINETUNE | {"blocks": 50}})
    with pytest.raises(SystemExit, match=r"train.finetune.blocks = 50: of efficientnet_lite0 1 to 17 layers can be"):
        work(root, "train")
    assert "epoch" not in capsys.readouterr().out


def test_pictures_that_do_not_fit_into_memory_are_told_before_they_are_encoded(
    drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.train.finetune.psutil.virtual_memory", lambda: SimpleNamespace(available=20_000))
    features, archives = Features(drawn / "data/tiny/features"), Pictures(drawn / "data/tiny/pictures")
    pictures = read_captions(drawn / "data/tiny/captions_train.json")
    source = Source(features, "train", grid=True, mirror=True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    sentence = f"train: {len(pictures)} pictures of 96 numbers need 0.0 GB of memory in 3 processes, 0.0 GB are free"
    with pytest.raises(ValueError, match=sentence):
        keep(
            lambda pixels: [pixels[:, :, :4, :4].float()],
            source,
            archives,
            pictures,
            Preprocessing(64, "squash"),
            workers=0,
            device=CPU,
        )


def test_interrupted_while_finetuning_it_ends_with_the_same_bytes(
    drawn: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the third save of that part; that a save outlives kill -9 is proven in test_training.py."""
    root = tmp_path / "killed"
    shutil.copytree(drawn, root)
    set_train(root, **TUNING, checkpoint_minutes=1e-9)
    saved: list[str] = []
    save = Training.save

    def until_the_third(self: Training) -> None:
        save(self)
        saved.append(str(self.checkpoint))
        if len([name for name in saved if "Finetune" in name]) == 3:
            raise InterruptedError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(Training, "save", until_the_third)
        with pytest.raises((InterruptedError, SystemExit)):
            work(root, "train")
    assert not (root / "models/tiny/captioner.safetensors").exists()
    capsys.readouterr()
    work(root, "train")
    assert capsys.readouterr().out.count("goes on after epoch") == 2
    name = "models/tiny/captioner.safetensors"
    assert sha256(root / name) == sha256(tuned / name)
