"""What a captioner remembers: the nearest pictures are those of plain linear algebra, agreement is pycocoevalcap's."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocoevalcap.cider.cider_scorer import CiderScorer

from stages.train.artifact import Artifact, ArtifactError, remembered
from stages.train.decoders import Context, Decoder, Shape, State, build
from stages.train.decoding import Decoding, Hypothesis, by_value, decode
from stages.train.memory import FADING, SELDOM, Consensus, Memory
from stages.vocab.vocabulary import END, SPECIALS, START, Vocabulary

VOCABULARY = Vocabulary((*SPECIALS, *(f"word{i}" for i in range(12))))
PICTURES, CHANNELS = 40, 10
TRAINED = np.random.default_rng(1)
CAPTIONS = [
    [[START, *TRAINED.integers(4, 16, TRAINED.integers(3, 9)).tolist(), END] for _ in range(TRAINED.integers(2, 6))]
    for _ in range(PICTURES)
]
POOLED = torch.from_numpy(TRAINED.gamma(1.0, size=(PICTURES, CHANNELS)) @ TRAINED.random((CHANNELS, CHANNELS))).float()


@pytest.fixture(scope="module")
def consensus() -> Consensus:
    return Consensus(Memory.of(POOLED, CAPTIONS), VOCABULARY)


def test_the_nearest_pictures_are_those_by_a_singular_value_decomposition(consensus: Consensus) -> None:
    new = torch.from_numpy(np.random.default_rng(2).gamma(1.0, size=(6, CHANNELS))).float()
    mean, deviation = POOLED.double().mean(0), POOLED.double().std(0)
    own, others = ((each.double() - mean) / deviation for each in (new, POOLED))
    _, singular, directions = torch.linalg.svd(others, full_matrices=False)
    roots = (singular**2 / PICTURES) ** 0.25
    own, others = (each @ directions.T / roots for each in (own, others))
    cosine = torch.nn.functional.cosine_similarity(own[:, None], others[None], dim=-1)
    near, weights = consensus.memory.near(new, 5)
    assert near.tolist() == cosine.topk(5).indices.tolist()
    expected = torch.softmax(cosine.topk(5).values / FADING, -1)
    np.testing.assert_allclose(weights, expected, rtol=0.02)  # directions are kept in float16
    assert consensus.memory.near(POOLED, 1)[0][:, 0].tolist() == [*range(PICTURES)], "each is nearest to itself"
    assert consensus.memory.near(new, 1000)[0].shape == (6, PICTURES)


def test_agreement_is_the_weighted_mean_of_pycocoevalcaps_cider_d_over_the_neighbours(consensus: Consensus) -> None:
    generator = np.random.default_rng(3)
    new = POOLED[[3, 17]] + 0.1
    captions = [[tuple(generator.integers(4, 16, length).tolist()) for length in (4, 7)] for _ in range(2)]
    captions[1].append(tuple(CAPTIONS[17][0][1:-1]))
    near, weights = consensus.memory.near(new, 6)
    found = consensus.agreement(near, weights, captions)
    said = [[VOCABULARY.decode(caption) for caption in own] for own in CAPTIONS]
    for picture, own in enumerate(captions):
        for place, caption in enumerate(own):
            scorer = CiderScorer()
            for references in said:  # every training picture, so that document frequencies are those of all
                scorer += (VOCABULARY.decode(caption), references)
            scorer.compute_cider()
            _, each = scorer.compute_score()
            assert found[picture][place] == pytest.approx(each[near[picture]] @ weights[picture], abs=1e-6)
    assert found[1].argmax() == 2, "what was said of the picture itself agrees most"


def test_the_caption_that_agrees_most_is_taken_where_the_weight_is_large() -> None:
    own = [Hypothesis((4,), -1.0), Hypothesis((5,), -1.5), Hypothesis((6,), -1.5)]
    agreement = np.array([0.1, 0.3, 0.3])
    assert [each.words for each in by_value(own, agreement, 0.0)] == [(4,), (5,), (6,)]
    assert [each.words for each in by_value(own, agreement, 10.0)] == [(5,), (6,), (4,)], "equals stay in order"
    assert [each.score for each in by_value(own, agreement, 10.0)] == [-1.5, -1.5, -1.0], "a score stays a probability"


def test_a_beam_is_put_in_order_by_its_neighbours_in_any_batch(consensus: Consensus) -> None:
    decoder = build(Shape("show_tell", len(VOCABULARY.words), CHANNELS, 8, 8)).eval()
    decoder.standardise(POOLED)

    def said(rows: slice, decoding: Decoding) -> list[list[Hypothesis]]:
        context = decoder.context(POOLED[rows])
        memories = [(consensus, POOLED[rows])]
        return decode([decoder], [context], decoding, bad_endings=(), numbers=range(PICTURES)[rows], memories=memories)

    plain, ordered = (said(slice(8), Decoding(5, max_words=7, neighbours=count)) for count in (0, 9))
    assert [{each.words for each in own} for own in plain] == [{each.words for each in own} for own in ordered]
    assert plain != ordered
    near = consensus.memory.near(POOLED[:8], 9)
    agreed = consensus.agreement(*near, [[each.words for each in own] for own in ordered])
    for own, values in zip(ordered, agreed, strict=True):
        worth = [each.score + 10 * value for each, value in zip(own, values, strict=True)]
        assert worth == sorted(worth, reverse=True)
    for row, own in enumerate(ordered):
        alone = said(slice(row, row + 1), Decoding(5, max_words=7, neighbours=9))[0]
        assert [each.words for each in alone] == [each.words for each in own]


def test_the_guide_is_how_much_oftener_neighbours_say_a_word(consensus: Consensus) -> None:
    near, weights = consensus.memory.near(POOLED[:4] + 0.1, 6)
    found = consensus.guide(near, weights)
    shares = [Counter(word for caption in own for word in {*caption}) for own in CAPTIONS]
    for row, guide in enumerate(found):
        assert guide[: len(SPECIALS)].tolist() == [0.0] * len(SPECIALS)
        for word in range(len(SPECIALS), len(VOCABULARY.words)):
            of = [counts[word] / len(own) for counts, own in zip(shares, CAPTIONS, strict=True)]
            here = sum(of[place] * weight for place, weight in zip(near[row], weights[row], strict=True))
            ratio = (here + SELDOM) / (sum(of) / PICTURES + SELDOM)
            assert float(guide[word]) == pytest.approx(np.log(ratio), abs=1e-5)


class Leaning(torch.nn.Module):
    """A decoder that holds some words likelier than another one does; which, stands at the end of its context."""

    def __init__(self, other: Decoder) -> None:
        super().__init__()
        self.other = other

    def start(self, context: Context) -> State:
        return self.other.start(context[:-1])

    def step(
        self, words: torch.Tensor, state: State, before: torch.Tensor, context: Context
    ) -> tuple[torch.Tensor, State]:
        logits, state = self.other.step(words, state, before, context[:-1])
        return logits + context[-1][:, None], state


@pytest.mark.parametrize(("drawn", "memories"), [({}, 1), ({"top_p": 0.9}, 1), ({}, 2)])
def test_guided_it_says_what_a_decoder_would_that_leans_that_way(
    consensus: Consensus, drawn: dict[str, float], memories: int
) -> None:
    """Of two memories the mean counts."""
    torch.manual_seed(2)
    seen = torch.from_numpy(np.random.default_rng(5).gamma(1.0, size=(PICTURES, CHANNELS))).float()
    known = [(consensus, POOLED), (Consensus(Memory.of(seen, CAPTIONS), VOCABULARY), seen)][:memories]
    decoder = build(Shape("show_tell", len(VOCABULARY.words), CHANNELS, 8, 8)).eval()
    rows = slice(0, 12)
    context = decoder.context(POOLED[rows])
    guides = [own.guide(*own.memory.near(pooled[rows], 9)) for own, pooled in known]
    asked = {"bad_endings": (), "numbers": range(12), "memories": [(own, pooled[rows]) for own, pooled in known]}

    def said(decoder: torch.nn.Module, context: Context, **options: float) -> list[list[Hypothesis]]:
        decoding = Decoding(5, max_words=7, neighbours=9, consensus=0.0).but(beam=5, **drawn, **options)
        return decode([decoder], [context], decoding, **asked)  # type: ignore[list-item, arg-type]

    plain, guided = (said(decoder, context, guidance=power) for power in (0.0, 0.7))
    leaning = said(Leaning(decoder), (*context, 0.7 * sum(guides) / memories))
    assert [[each.words for each in own] for own in guided] == [[each.words for each in own] for own in leaning]
    for own, other in zip(guided, leaning, strict=True):
        assert [each.score for each in own] == pytest.approx([each.score for each in other], abs=1e-5)
    assert [[each.words for each in own] for own in guided] != [[each.words for each in own] for own in plain]


def test_of_two_memories_the_mean_counts(consensus: Consensus) -> None:
    seen = torch.from_numpy(np.random.default_rng(5).gamma(1.0, size=(PICTURES, CHANNELS))).float()
    other = Consensus(Memory.of(seen, CAPTIONS), VOCABULARY)  # another encoder's, of the same pictures
    torch.manual_seed(1)
    decoder = build(Shape("show_tell", len(VOCABULARY.words), CHANNELS, 8, 8)).eval()
    memories = [(consensus, POOLED), (other, seen)]
    found = decode(
        [decoder],
        [decoder.context(POOLED)],
        Decoding(5, max_words=7, neighbours=9),
        bad_endings=(),
        numbers=range(PICTURES),
        memories=memories,
    )
    words = [[each.words for each in own] for own in found]
    one, two = (each.agreement(*each.memory.near(pooled, 9), words) for each, pooled in memories)
    for own, first, second in zip(found, one, two, strict=True):
        worth = [each.score + 10 * (a + b) / 2 for each, a, b in zip(own, first, second, strict=True)]
        assert worth == sorted(worth, reverse=True)
    assert any((np.argsort(first) != np.argsort(second)).any() for first, second in zip(one, two, strict=True))


def test_of_captioners_with_one_encoder_the_first_that_remembers_is_asked() -> None:
    decoder = build(Shape("show_tell", len(VOCABULARY.words), CHANNELS, 8, 8))
    memory = Memory.of(POOLED, CAPTIONS)
    forgetful, one, same, other = (
        Artifact(decoder, VOCABULARY, {"encoder": name}, Decoding(), memory=known)
        for name, known in (("X", None), ("X", memory), ("X", memory), ("Y", memory))
    )
    found = remembered([forgetful, one, same, other])
    assert [each is not None for each in found] == [False, True, False, True]


def test_an_artifact_keeps_what_is_remembered_and_refuses_another_memory(tmp_path: Path) -> None:
    decoder = build(Shape("show_tell", len(VOCABULARY.words), CHANNELS, 8, 8))
    encoder: dict[str, Any] = {"encoder": "made up", "weights": "none", "weights_sha256": "0", "precision": "float32"}
    encoder["preprocessing"] = {"size": 224, "resize": "squash"}
    memory = Memory.of(POOLED, CAPTIONS)
    made = Artifact(decoder, VOCABULARY, encoder, Decoding(neighbours=4), memory=memory)
    for dtype in (torch.float32, torch.float16):
        made.save(tmp_path / "captioner.safetensors", dtype)
        read = Artifact.load(tmp_path / "captioner.safetensors")
        assert read.memory is not None
        for name, value in memory.as_dict().items():
            assert torch.equal(value, read.memory.as_dict()[name]), name
        assert read.decoding == made.decoding
    data = bytearray((tmp_path / "captioner.safetensors").read_bytes())
    place = data.index(memory.words.numpy().tobytes())
    data[place] ^= 1
    (tmp_path / "captioner.safetensors").write_bytes(data)
    with pytest.raises(ArtifactError, match="not those that its metadata names"):
        Artifact.load(tmp_path / "captioner.safetensors")


def test_without_a_memory_neighbours_cannot_be_asked() -> None:
    decoder = build(Shape("show_tell", len(VOCABULARY.words), CHANNELS, 8, 8)).eval()
    context = decoder.context(POOLED[:1])
    with pytest.raises(ValueError, match=r"neighbours = 3.*remembers no training pictures.*train.neighbours"):
        decode([decoder], [context], Decoding(neighbours=3), bad_endings=(), numbers=[0])
