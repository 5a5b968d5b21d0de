"""On a CUDA device what the CPU says: features, losses and gradients, captions, and whole trainings."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from captioners import coarse_pictures, save_captioner
from tiny import REPOSITORY, environment, make_project, settings, stop_after_two_epochs, train
from torch import Tensor, nn

from stages.evaluate.captioner import Captioner
from stages.features.encoders import EfficientNetLite0
from stages.features.preprocessing import Preprocessing
from stages.features.store import Features
from stages.fetch.captions import Picture, read_captions
from stages.files import read_json
from stages.train import objectives
from stages.train.artifact import Artifact
from stages.train.batches import Examples, Source
from stages.train.decoders import DECODERS, Decoder, Shape, build
from stages.train.decoding import Decoding, decode, sample
from stages.train.finetune import Kept
from stages.train.memory import Consensus, Memory
from stages.train.objectives import CrossEntropy, Objective, Reward, SelfCritical, mixed
from stages.train.packed_lstm import packed_lstm
from stages.vocab.vocabulary import END, PAD, SPECIALS, START, UNK, Vocabulary

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
VOCABULARY = Vocabulary((*SPECIALS, *(f"word{number}" for number in range(36))))
PICTURES, REGIONS, CHANNELS = 24, 9, 12
DRAWN = np.random.default_rng(1)
TEXTS = [
    [[START, *DRAWN.integers(4, 40, DRAWN.integers(3, 9)).tolist(), END] for _ in range(5)] for _ in range(PICTURES)
]
GRID = DRAWN.random((PICTURES, REGIONS, CHANNELS), np.float32).astype(np.float16)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, this machine has none"),
]


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Without the shortened products (TF32) that torch allows itself in convolutions and LSTMs."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


def drawn(name: str, seed: int = 1) -> Decoder:
    """A decoder with drawn weights, surer than a new one, so that no two captions are as good."""
    torch.manual_seed(seed)
    made = build(Shape(name, len(VOCABULARY.words), CHANNELS, 64, 64))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2)
    return made


def source(name: str) -> Source:
    """Features in memory."""
    pooled = GRID.mean(1)
    views = [{False: pooled}, {False: GRID}] if DECODERS[name].grid else [{False: pooled}]
    return Kept(None, "made up", DECODERS[name].grid, False, views)  # type: ignore[arg-type] - all is in memory


def learned(objective: Objective, decoder: Decoder) -> tuple[float, dict[str, Tensor]]:
    """The loss of an epoch's first batch, and its gradients."""
    step = objective.step(decoder, objective.batches(np.random.default_rng(0))[0])
    step.loss.backward()
    return step.loss.item(), {
        name: parameter.grad.cpu() for name, parameter in decoder.named_parameters() if parameter.grad is not None
    }


def check(own: tuple[float, dict[str, Tensor]], other: tuple[float, dict[str, Tensor]], share: float) -> None:
    """Losses and gradients may differ by a share: of the loss, and of each gradient's largest number, or a thousandth
    of the largest of all (the gradient of the bias of keys is nothing but rounding)."""
    assert own[0] == pytest.approx(other[0], rel=share)
    assert own[1].keys() == other[1].keys()
    least = 1e-3 * max(gradient.abs().max() for gradient in other[1].values())
    for name, gradient in own[1].items():
        wanted = other[1][name]
        assert (gradient - wanted).abs().max() <= share * max(least, wanted.abs().max()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", DECODERS)
def test_cross_entropy_and_its_gradients_are_those_of_the_cpu(name: str, dtype: torch.dtype) -> None:
    """Two LSTMs: the CPU's is our own, the GPU's cuDNN's."""
    examples = Examples(list(range(PICTURES)), TEXTS)
    more: dict[str, Any] = {"captions_per_picture": 2, "label_smoothing": 0.1}
    made = drawn(name).train()
    wanted = learned(CrossEntropy(examples, source(name), CPU, torch.float32, **more), made)
    own = copy.deepcopy(made).to(CUDA)
    own.zero_grad()
    found = learned(CrossEntropy(examples, source(name), CUDA, dtype, **more), own)
    check(found, wanted, 1e-4 if dtype == torch.float32 else 0.05)


def test_small_gradients_go_through_the_lstm_under_autocast() -> None:
    """Such as float16, which autocast has for cuDNN's LSTM, has no numbers for."""
    torch.manual_seed(1)
    lstm, x, sizes = nn.LSTM(8, 8), torch.randn(12, 8), torch.tensor([4, 4, 3, 1])
    found = []
    for device in (CPU, CUDA):
        own, read = copy.deepcopy(lstm).to(device), x.clone().to(device).requires_grad_()
        with torch.autocast("cuda", torch.bfloat16):
            h = packed_lstm(own, read, sizes)
        found.append([part.cpu() for part in torch.autograd.grad((1e-8 * h).sum(), [read, *own.parameters()])])
    for wanted, there in zip(*found, strict=True):
        assert wanted.abs().max() > 0
        assert (there - wanted).abs().max() <= 1e-3 * wanted.abs().max()


@pytest.mark.parametrize("name", DECODERS)
def test_a_self_critical_step_is_that_of_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same samples."""
    pictures = [Picture(n, "", 1, 1, tuple(map(VOCABULARY.decode, texts))) for n, texts in enumerate(TEXTS)]
    examples, reward = Examples(list(range(PICTURES)), TEXTS), Reward(pictures, VOCABULARY)
    more = {"pictures": 8, "samples": 5, "max_words": 8}
    made = drawn(name).train()
    said: list[Tensor] = []

    def noted(*asked: Any) -> Tensor:
        said.append(sample(*asked))
        return said[-1]

    monkeypatch.setattr(objectives, "sample", noted)
    torch.manual_seed(2)
    wanted = learned(SelfCritical(examples, source(name), CPU, torch.float32, reward, **more), made)
    monkeypatch.setattr(objectives, "sample", lambda *asked: said[0].to(CUDA))
    own = copy.deepcopy(made).to(CUDA)
    own.zero_grad()
    check(learned(SelfCritical(examples, source(name), CUDA, torch.float32, reward, **more), own), wanted, 1e-3)


@pytest.mark.parametrize("name", DECODERS)
def test_samples_are_drawn_as_on_the_cpu(name: str) -> None:
    """How often a word is the first of 20,000 samples, by both."""
    made = drawn(name).eval()
    often = []
    for device in (CPU, CUDA):
        own = copy.deepcopy(made).to(device)
        pooled, grid = (torch.from_numpy(each).float().to(device) for each in (GRID[:1].mean(1), GRID[:1]))
        words = sample(own, own.context(pooled, grid), 20_000, 4)[0].cpu()
        assert not torch.isin(words, torch.tensor([START, UNK])).any()
        ends = (words == END).cumsum(1)
        assert ((words == PAD) == (ends - (words == END).long() > 0)).all(), "<pad> follows <end>, and nothing else"
        often.append(words[:, 0].bincount(minlength=len(VOCABULARY.words)) / len(words))
    assert (often[0] - often[1]).abs().max() < 0.015


def test_the_share_of_own_words_is_read() -> None:
    examples = Examples(list(range(PICTURES)), TEXTS)
    objective = CrossEntropy(examples, source("attend"), CUDA, torch.float32)
    words = objective.words(objective.batches(np.random.default_rng(0))[0])
    logits = torch.zeros(len(words.read), len(VOCABULARY.words), device=CUDA)
    logits[:, 7] = 100.0
    first = int(words.batch_sizes[0])
    read = mixed(words, logits, 0.5).read
    own = read[first:] != words.read[first:]
    assert (read[:first] == START).all()
    assert (read[first:][own] == 7).all()
    assert 0.3 < own.float().mean() < 0.7


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(beam=1),
        Decoding(beam=5, length_penalty=0.4),
        Decoding(beam=3, block_trigrams=True, block_endings=True),
        Decoding(beam=5, neighbours=6, consensus=5.0, guidance=0.4, candidates=10),
        Decoding(beam=4, top_p=0.9),
    ],
    ids=lambda decoding: "-".join(f"{key}={value}" for key, value in decoding.as_dict().items()),
)
@pytest.mark.parametrize("names", [("show_tell",), ("attend",), ("show_tell", "attend")], ids="+".join)
def test_captions_are_those_of_the_cpu(names: tuple[str, ...], decoding: Decoding) -> None:
    memory = Consensus(Memory.of(torch.from_numpy(GRID.mean(1)).float(), TEXTS), VOCABULARY)
    pooled, grid = torch.from_numpy(GRID.mean(1)).float(), torch.from_numpy(GRID).float()
    found = []
    for device in (CPU, CUDA):
        decoders = [drawn(name, seed).to(device).eval() for seed, name in enumerate(names)]
        with torch.inference_mode():
            contexts = [own.context(pooled.to(device), grid.to(device)) for own in decoders]
        more: dict[str, Any] = {"bad_endings": [5, 6, 7], "numbers": range(PICTURES), "memories": [(memory, pooled)]}
        found.append(decode(decoders, contexts, decoding, **more))
    for ours, theirs in zip(*found, strict=True):
        assert [each.words for each in ours] == [each.words for each in theirs]
        np.testing.assert_allclose([each.score for each in ours], [each.score for each in theirs], rtol=1e-4)


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1e-4), (torch.bfloat16, 0.25)])
def test_the_encoder_sees_what_it_sees_on_the_cpu(dtype: torch.dtype, share: float) -> None:
    """How far apart, as a share of the length of a picture's features; of these, which are no photographs, the CPU's
    own bfloat16 says 0.16."""
    see = Preprocessing(224, "squash")
    pixels = torch.stack([see(picture) for picture in coarse_pictures(8)])
    wanted = EfficientNetLite0("package", torch.float32)(pixels)
    found = EfficientNetLite0("package", dtype).to(CUDA)(pixels.to(CUDA)).cpu()
    assert ((found - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)).max() < share


def test_a_picture_is_captioned_as_on_the_cpu(tmp_path: Path) -> None:
    model = Artifact.load(save_captioner(tmp_path / "captioner.safetensors", decoder="attend"))
    pictures = coarse_pictures(5)
    on_cpu, there = (
        [best[0].text for best in Captioner([model], device).caption(pictures)] for device in ("cpu", "cuda")
    )
    assert there == on_cpu
    assert len(set(there)) > 1, "nonsense, but other nonsense of every picture"


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_what_is_trained_there_is_what_is_said_of_it(precision: str, tmp_path: Path, template: Path) -> None:
    """All parts of training, with averaged weights; the CPU finds the val loss of the epoch that is kept."""
    own = {"epochs": 1, "pictures": 4, "samples": 3, "learning_rate": 1e-4, "beta2": 0.99, "sharpen": 1.0}
    more: dict[str, Any] = {"epochs": 12, "keep": "last", "average": 0.5, "own_words": 0.1}
    root = make_project(
        tmp_path, template, device="auto", precision=precision, self_critical={**own, "dropout": 0.0}, **more
    )
    done = train(root)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(root / "reports/tiny/training.csv")
    assert table.train_loss[11] < 0.7 * table.train_loss[0]
    assert table.val_cider.max() > 2 * table.val_cider[0]
    record = read_json(root / "models/tiny/run.json")
    assert record["tags"]["device"].startswith("cuda: "), record["tags"]
    artifact = Artifact.load(root / "models/tiny/captioner.safetensors")
    features = Features(root / "data/tiny/features")
    examples = Examples.of(read_captions(root / "data/tiny/captions_val.json"), features, "val", artifact.vocabulary)
    found = CrossEntropy(examples, Source(features, "val", grid=False, mirror=False), CPU, torch.float32)
    assert found.mean_loss(artifact.decoder) == pytest.approx(
        table.val_loss.iloc[-1], rel=1e-3 if precision == "float32" else 0.05
    )


def test_stopped_and_gone_on_with_it_learns_the_same(tmp_path: Path, template: Path) -> None:
    """Not to the bit, as on a CPU: a GPU adds up in an order of its own. Dropout is drawn from where it was."""
    more: dict[str, Any] = {"device": "cuda", "epochs": 6, "dropout": 0.5}
    straight, root = (make_project(tmp_path / name, template, **more) for name in ("straight", "stopped"))
    done = train(straight)
    assert done.returncode == 0, done.stderr
    _, errors, status = stop_after_two_epochs(root)
    assert status == 130, errors
    done = train(root)
    assert done.returncode == 0, done.stderr
    assert "goes on after epoch" in done.stdout
    one, other = (pd.read_csv(each / "reports/tiny/training.csv").train_loss for each in (straight, root))
    np.testing.assert_allclose(one, other, rtol=5e-3)


def test_finetuned_there_it_says_the_same_on_the_cpu(tmp_path: Path, template: Path) -> None:
    """Features, training with the encoder's last blocks, and evaluation on the GPU; then evaluation on the CPU."""
    shutil.copy(template, tmp_path / "mlflow.db")
    block = yaml.safe_load((REPOSITORY / "params.yaml").read_text())["sample"]
    block["fetch"] |= {"pictures": 300, "size": 64}
    block["vocab"] |= {"min_count": 1}
    block["features"] |= {"size": 64, "precision": "float32", "workers": 0, "grid": True, "mirror": True}
    block["evaluate"] |= {"resamples": 0}
    finetune = {"epochs": 1, "blocks": 2, "learning_rate": 0.005, "encoder_share": 0.1}
    tuning: dict[str, Any] = {"decoder": "attend", "epochs": 8, "keep": "last", "captions_per_picture": 5}
    tuning |= {"embedding": 64, "hidden": 64, "batch": 20, "learning_rate": 0.005}
    block["train"] = settings(device="auto", threads=1, finetune=finetune, **tuning).model_dump()

    def run(*stages: str) -> None:
        (tmp_path / "params.yaml").write_text(yaml.safe_dump({"profile": "tiny", "tiny": block}))
        for stage in stages:
            command = [sys.executable, "-m", f"stages.{stage}"]
            path = f"{REPOSITORY / 'tests' / 'no_java'}{os.pathsep}{os.environ['PATH']}"
            subprocess.run(command, cwd=tmp_path, env={**environment(tmp_path), "PATH": path}, check=True, timeout=120)

    run("fetch", "vocab", "features", "train", "evaluate")
    captions = tmp_path / "reports/tiny/captions_test.json"
    found = read_json(captions)
    assert len({each["caption"] for each in found}) > 2
    assert read_json(tmp_path / "models/tiny/run.json")["tags"]["device"].startswith("cuda: ")
    assert Artifact.load(tmp_path / "models/tiny/captioner.safetensors").tuned
    block["evaluate"]["device"] = "cpu"
    run("evaluate")
    alike = [one == other for one, other in zip(found, read_json(captions), strict=True)]
    assert np.mean(alike) >= 0.9, "the encoder's convolutions are rounded elsewhere (TF32)"
