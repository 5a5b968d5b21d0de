"""Self-critical training: rewards are pycocoevalcap's, gradients are the policy's, captions come to score better."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pycocoevalcap.cider.cider import Cider
from tiny import make_project, settings, train

from stages.fetch.captions import Picture
from stages.train.batches import Batch, Examples, Source
from stages.train.decoders import DECODERS, Shape, build
from stages.train.decoding import sample
from stages.train.loop import Training
from stages.train.objectives import Reward, SelfCritical
from stages.vocab.vocabulary import END, PAD, START, UNK, Vocabulary

CPU = torch.device("cpu")
WORDS = ("<pad>", "<start>", "<end>", "<unk>", "a", "dog", "cat", "runs", "sleeps", "on", "grass")
VOCABULARY = Vocabulary(WORDS)
PICTURES = [
    Picture(1, "1.jpg", 1, 1, ("A dog runs on grass.", "a dog runs")),
    Picture(2, "2.jpg", 1, 1, ("A cat sleeps.", "the cat sleeps on a rug")),
    Picture(3, "3.jpg", 1, 1, ("a dog sleeps", "a dog on grass")),
]


class InMemory(Source):
    """Features that lie in memory."""

    def __init__(self, pooled: torch.Tensor, grid: torch.Tensor | None) -> None:
        object.__setattr__(self, "values", (pooled, grid))
        object.__setattr__(self, "mirror", False)

    def read(self, rows, mirrored=None):  # type: ignore[no-untyped-def]
        return tuple(part[list(rows)] if part is not None else None for part in self.values)  # type: ignore[attr-defined]


def objective(name: str, samples: int = 5) -> SelfCritical:
    grid = torch.randn(3, 4, 12, generator=torch.Generator().manual_seed(0))
    source = InMemory(grid.mean(1), grid if DECODERS[name].grid else None)
    examples = Examples([0, 1, 2], [[VOCABULARY.encode(text) for text in picture.captions] for picture in PICTURES])
    reward = Reward(PICTURES, VOCABULARY)
    return SelfCritical(examples, source, CPU, torch.float32, reward, pictures=3, samples=samples, max_words=6)


def test_the_reward_is_coco_captions_cider_d_with_end_as_a_word() -> None:
    captions = [[["dog", "runs"], ["a", "dog", "runs", "on"]], [["cat"], ["a", "cat", "sleeps"]], [["a"], ["on", "on"]]]
    ids = [[[*(WORDS.index(word) for word in words), END] for words in two] for two in captions]
    width = max(len(words) for two in ids for words in two)
    samples = torch.tensor([[words + [PAD] * (width - len(words)) for words in two] for two in ids])
    found = Reward(PICTURES, VOCABULARY)(samples, [0, 1, 2])
    references = {
        picture.id: [text.lower().replace(".", "").strip() + " <end>" for text in picture.captions]
        for picture in PICTURES
    }
    for k in range(2):
        results = {picture.id: [" ".join([*captions[i][k], "<end>"])] for i, picture in enumerate(PICTURES)}
        _, wanted = Cider().compute_score(references, results)
        np.testing.assert_allclose(found[:, k].numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("name", DECODERS)
def test_samples_are_drawn_by_their_probability(name: str) -> None:
    """Frequencies of 20,000 samples against the product of the words' probabilities, for every caption of one word."""
    torch.manual_seed(1)
    made = build(Shape(name, len(WORDS), 12, 16, 16)).eval()
    grid = torch.randn(1, 4, 12)
    context = made.context(grid.mean(1), grid)
    drawn = sample(made, context, 20_000, 2)[0]
    assert not torch.isin(drawn, torch.tensor([START, UNK])).any()
    state = made.start(context)
    logits, state = made.step(torch.tensor([[START]]), state, torch.tensor([[0]]), context)
    logits = logits.detach()
    logits[..., [PAD, START, UNK]] = -torch.inf
    first = logits[0, 0].softmax(-1)
    for word in range(4, len(WORDS)):
        after = made.step(torch.tensor([[word]]), state, torch.tensor([[0]]), context)[0].detach()
        after[..., [PAD, START, UNK]] = -torch.inf
        probability = float(first[word] * after[0, 0].softmax(-1)[END])
        share = float(((drawn[:, 0] == word) & (drawn[:, 1] == END)).float().mean())
        assert share == pytest.approx(probability, abs=4 * (probability / 20_000) ** 0.5)
    ended = drawn[drawn[:, 0] == END]
    assert len(ended)
    assert (ended[:, 1] == PAD).all(), "nothing is written after <end>"


@pytest.mark.parametrize("name", DECODERS)
def test_the_gradient_is_that_of_the_expected_reward(name: str) -> None:
    """Mean over many steps against the exact gradient: the sum over every caption of up to two words."""
    torch.manual_seed(2)
    made = build(Shape(name, len(WORDS), 12, 8, 8)).train()
    learned = objective(name, samples=2000)
    learned.max_words = 2
    batch = Batch([(0, [])], None)
    made.zero_grad()
    assert learned.captions(batch) == 2000, "what was sampled, not what people said"
    step = learned.step(made, batch)
    step.loss.backward()
    found = made.output.weight.grad.clone()  # type: ignore[union-attr]

    made.zero_grad()
    words = [END, *range(4, len(WORDS))]
    every = [(END,)] + [(first, second) for first, second in itertools.product(words[1:], words)]
    context = learned.context(made, batch)
    rewards = learned.reward(torch.tensor([[[*text, PAD][:2] for text in every]]), [0])[0]
    expected, length = torch.zeros(()), torch.zeros(())
    for text, reward in zip(every, rewards.tolist(), strict=True):
        state, word, log_probability = made.start(context), START, torch.zeros(())
        for following in text:
            logits, state = made.step(torch.tensor([[word]]), state, torch.tensor([[0]]), context)
            mask = torch.zeros_like(logits)
            mask[..., [PAD, START, UNK]] = -torch.inf
            log_probability = log_probability + (logits + mask)[0, 0].log_softmax(-1)[following]
            word = following
        expected = expected + log_probability.exp() * reward
        length = length + log_probability.exp().detach() * len(text)
    (-expected / length).backward()
    wanted = made.output.weight.grad
    cosine = torch.nn.functional.cosine_similarity(found.flatten(), wanted.flatten(), dim=0)  # type: ignore[union-attr]
    assert cosine > 0.97
    assert float(found.norm() / wanted.norm()) == pytest.approx(1, abs=0.15)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", DECODERS)
def test_captions_come_to_score_better(name: str) -> None:
    torch.manual_seed(3)
    made = build(Shape(name, len(WORDS), 12, 32, 32))
    learned = objective(name, samples=16)
    plan = settings(epochs=250, patience=250, learning_rate=0.01, warmup=0.0, average=0.0).plan()
    training = Training(made, learned, plan, device=CPU)
    before = learned.step(made, learned.batches(np.random.default_rng(0))[0]).value
    training.train(lambda _: ({}, float(training.progress.epoch)), lambda *_: None)
    own = [[*VOCABULARY.encode(picture.captions[0])[1:], *[PAD] * 3][:6] for picture in PICTURES]
    people = float(learned.reward(torch.tensor([own]).transpose(0, 1), [0, 1, 2]).mean())
    assert before < 0.2 * people
    assert training.rows[-1]["train_reward"] > 0.6 * people


def test_the_stage_does_both_parts_and_goes_on_with_the_better(tmp_path: Path, template: Path) -> None:
    """Through the stage itself: rows of both parts, and the second begins with the best weights of the first."""

    own = {
        "epochs": 2,
        "pictures": 8,
        "samples": 3,
        "learning_rate": 1e-3,
        "beta2": 0.99,
        "sharpen": 1.5,
        "dropout": 0.0,
    }
    root = make_project(tmp_path, template, epochs=3, self_critical=own)
    done = train(root)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(root / "reports/tiny/training.csv")
    assert table.epoch.tolist() == [1, 2, 3, 4, 5]
    assert table.train_loss.notna().tolist() == [True] * 3 + [False] * 2
    assert table.train_reward.notna().tolist() == [False] * 3 + [True] * 2
