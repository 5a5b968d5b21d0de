"""Training: every caption once, the same weights after kill -9 as without, Ctrl-C that saves, mistakes told."""

from __future__ import annotations

import copy
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from tiny import REPOSITORY, environment, make_project, settings, stop_after_two_epochs, train

from stages.features.store import Features
from stages.fetch.captions import Picture, read_captions
from stages.files import read_json, sha256
from stages.train.__main__ import code
from stages.train.artifact import Artifact
from stages.train.batches import Examples, Source, in_batches, in_order, in_rounds
from stages.train.decoders import Decoder, Shape, build, pack_words
from stages.train.finetune import Kept
from stages.train.loop import Stopped, Training, Uncompiled
from stages.train.objectives import CrossEntropy, Objective, Reward, SelfCritical, mixed
from stages.vocab.vocabulary import SPECIALS, Vocabulary

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Path:
    """A run that nobody disturbed."""
    root = make_project(tmp_path_factory.mktemp("straight"), template, epochs=30)
    done = train(root)
    assert done.returncode == 0, done.stderr
    return root


def val_examples(root: Path, artifact: Artifact) -> Examples:
    pictures = read_captions(root / "data/tiny/captions_val.json")
    return Examples.of(pictures, Features(root / "data/tiny/features"), "val", artifact.vocabulary)


def outputs(root: Path) -> dict[str, str]:
    names = ("models/tiny/captioner.safetensors", "reports/tiny/training.csv")
    return {name: sha256(root / name) for name in names}


def test_it_learns_and_keeps_the_epoch_with_the_best_captions(straight: Path) -> None:
    table = pd.read_csv(straight / "reports/tiny/training.csv")
    assert list(table.columns) == ["epoch", "train_loss", "learning_rate", "val_loss", "val_cider", "val_bleu_4"]
    assert table.epoch.tolist() == list(range(1, len(table) + 1))
    assert table.train_loss.iloc[-1] < 0.5 * table.train_loss.iloc[0]
    assert table.val_cider.max() > 3 * table.val_cider.iloc[0]
    assert read_json(straight / "models/tiny/run.json")["run_id"]
    # The artifact holds the weights of the best epoch: their val loss is that of its row.
    artifact = Artifact.load(straight / "models/tiny/captioner.safetensors")
    features = Features(straight / "data/tiny/features")
    examples = val_examples(straight, artifact)
    source = Source(features, "val", grid=False, mirror=False)
    loss = CrossEntropy(examples, source, CPU, torch.float32).mean_loss(artifact.decoder)
    assert loss == pytest.approx(table.val_loss[table.val_cider.idxmax()], abs=1e-4)


def test_killed_anywhere_it_ends_with_the_same_bytes(tmp_path: Path, template: Path) -> None:
    """kill -9 three times, each time some steps further, in both parts of training; then left alone."""
    own = {"epochs": 12, "pictures": 4, "samples": 3, "learning_rate": 1e-3, "beta2": 0.99, "sharpen": 1.5}
    changes = {"epochs": 5, "self_critical": {**own, "dropout": 0.1}, "average": 0.9}
    straight = make_project(tmp_path / "straight", template, **changes)
    done = train(straight)
    assert done.returncode == 0, done.stderr
    root = make_project(tmp_path / "killed", template, **changes, checkpoint_minutes=1e-9)  # one after every step
    models = root / "models/tiny"
    for kill in range(3):
        process = subprocess.Popen(
            [sys.executable, "-m", "stages.train"], cwd=root, env=environment(root), stdout=subprocess.PIPE
        )
        seen, count, deadline = None, 0, time.monotonic() + 90
        while count < 40 and process.poll() is None and time.monotonic() < deadline:
            now = max((path.stat().st_mtime_ns for path in models.glob("unfinished_*.pt")), default=None)
            count, seen = count + (now != seen), now
            time.sleep(0.001)
        assert process.poll() is None, f"it was over before kill {kill}: {process.communicate()}"
        process.kill()
        process.communicate()
        assert not (models / "captioner.safetensors").exists(), "nothing half-done under a final name"
        assert (models / "unfinished_CrossEntropy.pt").exists()
    assert (models / "unfinished_SelfCritical.pt").exists(), "the last kill came in the second part"
    (models / ".unfinished_SelfCritical.pt.17.partial").write_bytes(b"killed while it saved")
    done = train(root)
    assert done.returncode == 0, done.stderr
    assert not list(models.glob(".*.partial"))
    assert done.stdout.count("goes on after epoch") == 2
    assert outputs(root) == outputs(straight)
    curves = {row["step"] for row in read_json(models / "run.json")["metrics"]}
    assert curves == set(range(1, 18)), "the record of the run has every epoch, those before the kills too"


def test_killed_after_its_end_it_ends_again_as_the_same_run(tmp_path: Path, template: Path) -> None:
    """DVC takes note of a stage a moment after it has ended; killed in between, it removes the outputs and runs it
    again. Nothing is trained twice then, and evaluate clears up."""
    root = make_project(tmp_path, template, epochs=2)
    assert train(root).returncode == 0
    first, run_file = outputs(root), root / "models/tiny/run.json"
    run_id = read_json(run_file)["run_id"]
    for path in (run_file, *(root / name for name in first)):
        path.unlink()
    done = train(root)
    assert done.returncode == 0, done.stderr
    assert "goes on after epoch 2, step 0" in done.stdout
    assert outputs(root) == first
    assert read_json(run_file)["run_id"] == run_id
    assert list((root / "models/tiny").glob("unfinished*"))
    command = [sys.executable, "-m", "stages.evaluate"]
    subprocess.run(command, cwd=root, env=environment(root), check=True, capture_output=True, timeout=120)
    assert not list((root / "models/tiny").glob("unfinished*"))


def test_ctrl_c_saves_and_the_next_start_goes_on(straight: Path, tmp_path: Path, template: Path) -> None:
    root = make_project(tmp_path, template, epochs=30)
    rest, errors, status = stop_after_two_epochs(root)
    assert status == 130, errors
    assert "stopped and saved: `dvc repro` goes on from here" in rest
    assert "Traceback" not in errors
    done = train(root)
    assert "goes on after epoch" in done.stdout
    assert outputs(root) == outputs(straight)


def test_a_checkpoint_of_other_settings_is_not_gone_on_with(tmp_path: Path, template: Path) -> None:
    root = make_project(tmp_path, template, epochs=2)
    (root / "models/tiny").mkdir(parents=True)
    source = Source(Features(root / "data/tiny/features"), "train", grid=False, mirror=False)
    examples = Examples([0], [[[1, 5, 2]]])
    other = Training(
        build(Shape("show_tell", 24, 12, 16, 16)),
        CrossEntropy(examples, source, CPU, torch.float32),
        settings().plan(),
        device=CPU,
        checkpoint=root / "models/tiny/unfinished_CrossEntropy.pt",
        fingerprint="other",
    )
    other.save()
    done = train(root)
    assert done.returncode == 0, done.stderr
    assert "goes on" not in done.stdout
    assert "unfinished_CrossEntropy.pt is of other data, settings or code: training begins anew" in done.stdout


@pytest.mark.parametrize("captions_per_picture", [1, 2, 5])
def test_an_epoch_has_every_caption_once(captions_per_picture: int) -> None:
    examples = Examples(list(range(50)), [[[1, 2]] * (1 + picture % 6) for picture in range(50)])
    groups = in_rounds(examples, captions_per_picture, np.random.default_rng(1))
    batches = in_batches(groups, 7, True, np.random.default_rng(1))
    assert [group for batch in batches for group in batch.groups] == groups
    assert {len(batch.groups) for batch in batches[:-1]} == {7}
    mirrored = [flip for batch in batches for flip in batch.mirrored or []]
    assert 0.3 < np.mean(mirrored) < 0.7
    assert len(mirrored) == len(groups)
    seen = Counter((picture, place) for picture, places in groups for place in places)
    assert seen == Counter((p, c) for p in range(50) for c in range(1 + p % 6))
    assert max(len(places) for _, places in groups) <= captions_per_picture
    order = [picture for picture, _ in groups]
    again, other = (
        [picture for picture, _ in in_rounds(examples, captions_per_picture, np.random.default_rng(seed))]
        for seed in (1, 2)
    )
    assert order == again != other
    first_round = order[:50]
    assert sorted(first_round) == list(range(50)), "shuffled over the whole split: one round has every picture"
    assert np.abs(np.argsort(first_round) - np.arange(50)).mean() > 8, "and far from its place in the file"


def test_mean_loss_is_cross_entropy_over_all_words(straight: Path) -> None:
    """Against torch's own, one caption at a time and unpacked."""
    features = Features(straight / "data/tiny/features")
    artifact = Artifact.load(straight / "models/tiny/captioner.safetensors")
    examples = val_examples(straight, artifact)
    source = Source(features, "val", grid=False, mirror=False)
    made, total, count = artifact.decoder, 0.0, 0
    for batch in in_order(examples, 1):
        pooled, _ = source.read([examples.rows[batch.groups[0][0]]])
        with torch.no_grad():
            picture = made.context(pooled.float())
            for places in batch.groups[0][1]:
                caption = examples.captions[batch.groups[0][0]][places]
                state = made.start(picture)
                for read, predict in itertools.pairwise(caption):
                    logits, state = made.step(torch.tensor([[read]]), state, torch.tensor([[0]]), picture)
                    total += float(torch.nn.functional.cross_entropy(logits[0], torch.tensor([predict])))
                    count += 1
    found = CrossEntropy(examples, source, CPU, torch.float32, captions=7).mean_loss(made)
    assert found == pytest.approx(total / count, abs=1e-5)


def test_its_optimiser_is_torchs() -> None:
    """Step by step the same bits, gone on with from what was saved, too."""
    torch.manual_seed(1)
    drawn, gradients = torch.randn(3, 5), torch.randn(6, 3, 5)
    found = []
    for kind in (torch.optim.AdamW, Uncompiled):
        weights = torch.nn.Parameter(drawn.clone())
        optimizer = kind([{"params": [weights], "share": 0.5}], lr=0.1, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
        for gradient in gradients[:3]:
            optimizer.zero_grad()
            assert weights.grad is None
            weights.grad = gradient.clone()
            optimizer.step()
        saved = copy.deepcopy(optimizer.state_dict())
        optimizer = kind([{"params": [weights], "share": 0.5}], fused=True)
        optimizer.load_state_dict(saved)
        for gradient in gradients[3:]:
            weights.grad = gradient.clone()
            optimizer.step()
        found.append((weights.detach(), optimizer.state_dict()["state"][0]["exp_avg_sq"]))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(found[0][0], drawn)


def test_a_start_does_not_load_the_compiler(tmp_path: Path, template: Path) -> None:
    """Four seconds of a training whose first epoch takes less, on a laptop."""
    root = make_project(tmp_path / "root", template, epochs=1)
    code = "import sys, stages.train.__main__ as stage; stage.main(); sys.exit('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment(root), timeout=120, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("kind", [CrossEntropy, SelfCritical])
def test_compiled_it_learns_the_same(kind: type[Objective], monkeypatch: pytest.MonkeyPatch) -> None:
    """Through all of torch.compile but the making of machine code, which takes minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    generator = np.random.default_rng(0)
    vocabulary = Vocabulary((*SPECIALS, *(f"word{number}" for number in range(16))))
    texts = [[[1, *generator.integers(4, 20, generator.integers(2, 6)).tolist(), 2] for _ in "ab"] for _ in range(8)]
    grid = generator.random((8, 4, 12), np.float32).astype(np.float16)
    source = Kept(None, "made up", True, False, [{False: grid.mean(1)}, {False: grid}])  # type: ignore[arg-type]
    pictures = [Picture(number, "", 1, 1, tuple(map(vocabulary.decode, own))) for number, own in enumerate(texts)]
    more = {
        CrossEntropy: {"captions": 8},
        SelfCritical: {"reward": Reward(pictures, vocabulary), "pictures": 4, "samples": 3, "max_words": 5},
    }[kind]
    found = []
    for compiled in (False, True):
        torch.manual_seed(1)
        objective = kind(Examples(list(range(8)), texts), source, CPU, torch.float32, **more)
        decoder = build(Shape("attend", 20, 12, 16, 16))
        made = Training(decoder, objective, settings(warmup=0.0).plan(), device=CPU, compiled=compiled)
        for batch in objective.batches(np.random.default_rng(0)):
            made.one_step(batch, 0.01)
        found.append(torch.cat([part.flatten() for part in decoder.state_dict().values()]))
    torch.testing.assert_close(found[1], found[0])


def test_the_learning_rate_rises_and_falls_as_set() -> None:
    examples = Examples(list(range(80)), [[[1, 2]]] * 80)
    source = Source(None, "train", grid=False, mirror=False)  # type: ignore[arg-type] - nothing is read
    objective = CrossEntropy(examples, source, CPU, torch.float32, captions=8)
    plan = settings(epochs=10, warmup=0.1, learning_rate=1.0).plan()
    made = Training(build(Shape("show_tell", 5, 5, 5, 5)), objective, plan, device=CPU)
    assert made.steps_per_epoch == 10
    rates = [made.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == pytest.approx(1)
    assert rates[55] == pytest.approx(0.5, abs=0.01)
    assert rates[-1] < 0.001
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("rm data/tiny/features/index.json", r"holds no whole features: run `dvc repro features`"),
        ("rm data/tiny/vocab.json", r"vocab.json: No such file"),
        ("echo '[\"a\"]' > data/tiny/vocab.json", r"a vocabulary begins with <pad> <start> <end> <unk>"),
        ("head -c 50 data/tiny/captions_val.json > x && mv x data/tiny/captions_val.json", r"is not whole JSON"),
        (
            "sed -i 's/learning_rate: .*/learning_rate: -1/' params.yaml",
            r"tiny.train.learning_rate = -1 \(must be greater",
        ),
        ("sed -i 's/device: cpu/device: cuda/' params.yaml", r"device: cuda is not here \(this machine has"),
    ],
)
def test_wrong_input_is_told(damage: str, message: str, tmp_path: Path, template: Path) -> None:
    if "cuda" in damage and torch.cuda.is_available():
        pytest.skip("this machine has a GPU, so asking for one is no mistake")
    root = make_project(tmp_path, template)
    subprocess.run(["bash", "-c", damage], cwd=root, check=True)
    done = train(root)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(message, done.stderr)


def test_some_of_the_words_read_are_what_the_decoder_would_have_said() -> None:
    """Against captions one by one: with share 1 each word but <start> is what was likeliest after the word before."""
    captions = [[1, 5, 6, 2], [1, 7, 2], [1, 8, 9, 10, 11, 2]]
    words = pack_words(captions, [0, 1, 2])
    said = torch.full((len(words.read), 30), -50.0)
    said[torch.arange(len(words.read)), words.read + 10] = 50.0  # after each word, the one ten places further
    said[:, [0, 1, 2, 3]] = 90.0  # special words are likelier yet, and never read

    def read(share: float) -> list[list[int]]:
        rows: list[list[int]] = [[] for _ in captions]
        place = 0
        found = mixed(words, said.clone(), share)
        assert torch.equal(found.predict, words.predict)
        for count in words.batch_sizes.tolist():
            for row in range(count):
                rows[int(words.order[row])].append(int(found.read[place]))
                place += 1
        return rows

    assert read(0.0) == [caption[:-1] for caption in captions]
    assert read(1.0) == [[1, *(word + 10 for word in caption[:-2])] for caption in captions]
    torch.manual_seed(0)
    counts = Counter(word for _ in range(300) for word in read(0.25)[2][1:])
    assert counts[18] / 300 == pytest.approx(0.25, abs=0.08)
    assert counts[8] / 300 == pytest.approx(0.75, abs=0.08)
    wordless = pack_words([[1, 2], [1, 2]], [0, 1])
    assert torch.equal(mixed(wordless, torch.zeros(2, 30), 0.5).read, wordless.read), "nothing to draw"


def test_a_step_with_own_words_differs_and_learns() -> None:
    examples = Examples([0, 1], [[[1, 5, 6, 7, 8, 2]], [[1, 9, 10, 2]]])
    source = Given(torch.randn(2, 12, generator=torch.Generator().manual_seed(0)))
    losses = []
    for share in (0.0, 1.0):
        torch.manual_seed(0)
        made = build(Shape("show_tell", 24, 12, 16, 16))
        objective = CrossEntropy(examples, source, CPU, torch.float32, captions=2, own_words=share)
        step = objective.step(made, objective.batches(np.random.default_rng(0))[0])
        step.loss.backward()
        assert all(part.grad is not None for part in made.parameters())
        losses.append(step.value)
    assert losses[0] != losses[1]


class Given(Source):
    """Features that lie in memory."""

    def __init__(self, pooled: torch.Tensor) -> None:
        object.__setattr__(self, "pooled", pooled)
        object.__setattr__(self, "mirror", False)

    def read(self, rows, mirrored=None):  # type: ignore[no-untyped-def]
        return self.pooled[list(rows)], None  # type: ignore[attr-defined]


def test_the_average_over_steps_is_what_is_scored_kept_and_saved(tmp_path: Path) -> None:
    """By hand: after each step a tenth of the way to the new weights; a checkpoint brings it back."""
    examples = Examples(list(range(6)), [[[1, 5 + i, 2]] for i in range(6)])
    source = Given(torch.randn(6, 12, generator=torch.Generator().manual_seed(0)))
    objective = CrossEntropy(examples, source, CPU, torch.float32, captions=2)
    plan = settings(epochs=2, average=0.9).plan()
    torch.manual_seed(0)
    made = build(Shape("show_tell", 24, 12, 16, 16))
    training = Training(made, objective, plan, device=CPU, checkpoint=tmp_path / "unfinished.pt")
    by_hand = made.output.weight.detach().clone()
    after, step = [], training.one_step

    def watched(*arguments: Any) -> tuple[float, int]:
        found = step(*arguments)
        by_hand.lerp_(made.output.weight.detach(), 0.1)
        return found

    training.one_step = watched  # type: ignore[method-assign]

    def score(decoder: Decoder) -> tuple[dict[str, float], float]:
        after.append(decoder.output.weight.clone())
        torch.testing.assert_close(after[-1], by_hand)
        assert (after[-1] - made.output.weight).abs().max() > 1e-3, "the last weights are others"
        return {}, float(len(after))

    best = training.train(score, lambda *_: None)
    assert len(after) == 2
    assert torch.equal(best.output.weight, after[1])
    again = Training(build(Shape("show_tell", 24, 12, 16, 16)), objective, plan, device=CPU,
                     checkpoint=tmp_path / "unfinished.pt")  # fmt: skip
    assert again.resume()
    assert again.averaged is not None
    assert torch.equal(again.averaged.output.weight, after[1])


@pytest.mark.parametrize(("keep", "kept"), [("best", 1), ("last", 3)])
def test_which_epoch_is_kept_is_a_setting(keep: str, kept: int) -> None:
    """The second of four epochs scores best."""
    source = Given(torch.randn(6, 12, generator=torch.Generator().manual_seed(0)))
    examples = Examples(list(range(6)), [[[1, 5 + i, 2]] for i in range(6)])
    objective = CrossEntropy(examples, source, CPU, torch.float32, captions=2)
    plan = settings(epochs=4, keep=keep, patience=2).plan()
    training = Training(build(Shape("show_tell", 24, 12, 16, 16)), objective, plan, device=CPU)
    after: list[torch.Tensor] = []

    def score(decoder: Decoder) -> tuple[dict[str, float], float]:
        after.append(decoder.output.bias.detach().clone())
        return {}, (0.1, 0.4, 0.2, 0.3)[len(after) - 1]

    best = training.train(score, lambda *_: None)
    assert len(after) == 4
    assert torch.equal(best.output.bias, after[kept])


@pytest.mark.parametrize("when", ["in the last step of an epoch", "while val is scored", "while the last epoch is"])
def test_asked_to_stop_at_an_epochs_end_it_stops_and_goes_on_as_if_nothing_had_been(tmp_path: Path, when: str) -> None:
    source = Given(torch.randn(6, 12, generator=torch.Generator().manual_seed(0)))
    examples = Examples(list(range(6)), [[[1, 5 + i, 2]] for i in range(6)])
    objective = CrossEntropy(examples, source, CPU, torch.float32, captions=2)

    def training(checkpoint: Path | None) -> Training:
        torch.manual_seed(0)
        made = build(Shape("show_tell", 24, 12, 16, 16))
        return Training(made, objective, settings(epochs=3).plan(), device=CPU, checkpoint=checkpoint)

    def score(decoder: Decoder) -> tuple[dict[str, float], float]:
        return {}, float(decoder.output.weight.detach().norm())

    straight = training(None)
    straight.train(score, lambda *_: None)
    stopped = training(tmp_path / "unfinished.pt")
    step = stopped.one_step

    def last_step(*arguments: Any) -> tuple[float, int]:
        if when == "in the last step of an epoch" and stopped.progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    def asked(decoder: Decoder) -> tuple[dict[str, float], float]:
        if when != "in the last step of an epoch" and stopped.progress.epoch == (2 if "last" in when else 0):
            os.kill(os.getpid(), signal.SIGTERM)
        return score(decoder)

    stopped.one_step = last_step  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        stopped.train(asked, lambda *_: None)
    assert len(stopped.rows) == {"in the last step of an epoch": 0, "while val is scored": 1}.get(when, 3)
    again = training(tmp_path / "unfinished.pt")
    assert again.resume()
    again.train(score, lambda *_: None)
    assert again.rows == straight.rows


def test_a_saved_run_is_of_all_the_code_that_learns() -> None:
    """What dvc.yaml names for train, but for the trunk, which keeps the record."""
    deps = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]["train"]["deps"]
    learns = {REPOSITORY / path for path in deps if path.count("/") > 1 and not path.endswith("__init__.py")}
    learns = {path for path in learns if path.suffix == ".py"}
    assert REPOSITORY / "stages/fetch/pictures.py" in learns
    assert learns <= set(code())


def test_a_loss_that_is_no_number_is_told(straight: Path) -> None:
    features = Features(straight / "data/tiny/features")
    source = Source(features, "train", grid=False, mirror=False)
    made = build(Shape("show_tell", 24, 12, 16, 16))
    with torch.no_grad():
        made.lstm.weight_hh_l0.fill_(torch.nan)  # type: ignore[operator, union-attr]
    objective = CrossEntropy(Examples([0], [[[1, 5, 2]]]), source, CPU, torch.float32)
    training = Training(made, objective, settings().plan(), device=CPU)
    with pytest.raises(ValueError, match=r"loss is nan in epoch 1, step 1: lower the learning rate, "):
        training.train(lambda _: ({}, 0.0), lambda *_: None)
