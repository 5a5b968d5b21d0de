"""Decoders: the step agrees with the full forward, batches with single pictures, beam search with an exhaustive one."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from stages.train.decoders import DECODERS, Context, Decoder, Shape, build, pack_words
from stages.train.decoding import Decoding, Hypothesis, beam_search
from stages.train.settings import SEE_REGIONS, Settings
from stages.vocab.vocabulary import END, START, UNK

WORDS, CHANNELS, REGIONS = 30, 24, 9


def decoder(name: str, words: int = WORDS, seed: int = 0, dropout: float = 0.0) -> Decoder:
    torch.manual_seed(seed)
    made = build(Shape(name, words, CHANNELS, 16, 16, dropout)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4)  # sharper than fresh weights, so that orders differ by more than rounding
        made.output.bias[END] += 2  # type: ignore[union-attr, operator]
    return made


def context(made: Decoder, pictures: int, seed: int = 1) -> Context:
    generator = torch.Generator().manual_seed(seed)
    grid = 3 * torch.randn(pictures, REGIONS, CHANNELS, generator=generator)
    with torch.no_grad():
        return made.context(grid.mean(1), grid if made.grid else None)


CAPTIONS = [[1, 5, 6, 2], [1, 9, 2], [1, 4, 4, 7, 8, 2], [1, 5, 2], [1, 10, 11, 12, 13, 14, 2]]
OWNER = [0, 1, 1, 2, 0]


def test_packing_holds_every_word_once() -> None:
    words = pack_words(CAPTIONS, OWNER)
    assert words.batch_sizes.tolist() == [5, 5, 3, 2, 2, 1]
    assert len(words.read) == len(words.predict) == sum(len(caption) - 1 for caption in CAPTIONS)
    assert sorted(words.read.tolist()) == sorted(word for caption in CAPTIONS for word in caption[:-1])
    assert sorted(words.predict.tolist()) == sorted(word for caption in CAPTIONS for word in caption[1:])
    assert words.owner.tolist() == [0, 1, 0, 1, 2], "longest first, equals in their order"


@pytest.mark.parametrize("name", DECODERS)
def test_stepwise_equals_the_full_forward(name: str) -> None:
    made = decoder(name)
    seen = context(made, 3)
    with torch.no_grad():
        logits = made(seen, pack_words(CAPTIONS, OWNER))
    words = pack_words(CAPTIONS, OWNER)
    order = sorted(range(len(CAPTIONS)), key=lambda i: -len(CAPTIONS[i]))
    place = 0
    full: dict[tuple[int, int], Tensor] = {}
    for time, count in enumerate(words.batch_sizes.tolist()):
        for row in range(count):
            full[order[row], time] = logits[place]
            place += 1
    for i, caption in enumerate(CAPTIONS):
        alone = tuple(part[OWNER[i] : OWNER[i] + 1] for part in seen)
        with torch.no_grad():
            state = made.start(alone, 1)
            for time, word in enumerate(caption[:-1]):
                step, state = made.step(torch.tensor([[word]]), state, alone)
                torch.testing.assert_close(step[0, 0], full[i, time], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_a_caption_does_not_depend_on_its_batch(name: str) -> None:
    made = decoder(name)
    with torch.no_grad():
        together = made(context(made, 3), pack_words(CAPTIONS, OWNER)).log_softmax(-1)
        alone = made(tuple(part[2:3] for part in context(made, 3)), pack_words([CAPTIONS[3]], [0])).log_softmax(-1)
    # The shortest caption of two equals is the last row of each of its two times.
    torch.testing.assert_close(together[[4, 9]], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name, kind in DECODERS.items() if kind.grid])
def test_attention_says_where_a_word_was_seen(name: str) -> None:
    """Rows sum to 1; and what lies in regions without weight does not matter, by hand and one word at a time."""
    made = decoder(name)
    grid = torch.randn(1, REGIONS, CHANNELS, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        seen = made.context(grid.mean(1), grid)
        weights = made.attention(seen, pack_words(CAPTIONS[:1], [0]))
        assert weights is not None
        assert weights.shape == (3, REGIONS)
        torch.testing.assert_close(weights.sum(1), torch.ones(3))
        state = made.start(seen, 1)
        for time, word in enumerate(CAPTIONS[0][:-1]):
            _, state = made.step(torch.tensor([[word]]), state, seen)
            by_hand = torch.zeros(REGIONS)
            heads = made.heads  # type: ignore[attr-defined]
            for query, keys in zip(made.query(state[0][0, 0]).chunk(heads), seen[1][0], strict=True):  # type: ignore[operator]
                by_hand += (keys @ query / len(query) ** 0.5).softmax(0) / heads
            torch.testing.assert_close(weights[time], by_hand, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("beam", [1, 2, 5])
def test_batched_beam_equals_one_by_one(name: str, beam: int) -> None:
    made = decoder(name)
    seen = context(made, 23)
    decoding = Decoding(beam=beam, length_penalty=0.7, max_words=9)
    together = beam_search([made], [seen], decoding)
    for i, found in enumerate(together):
        alone = beam_search([made], [tuple(part[i : i + 1] for part in seen)], decoding)[0]
        assert [hypothesis.words for hypothesis in alone] == [hypothesis.words for hypothesis in found]
        assert [hypothesis.score for hypothesis in alone] == pytest.approx([h.score for h in found], abs=1e-5)
    assert len({found[0].words for found in together}) > 5, "pictures differ, so captions do"


def greedy(made: Decoder, seen: Context, max_words: int) -> tuple[int, ...]:
    """The likeliest word, again and again, written as plainly as can be."""
    state, word, written = made.start(seen, 1), START, []
    while len(written) < max_words:
        logits, state = made.step(torch.tensor([[word]]), state, seen)
        scores = logits[0, 0].clone()
        scores[[0, START, UNK]] = -math.inf
        if not written:
            scores[END] = -math.inf
        word = int(scores.argmax())
        if word == END:
            break
        written.append(word)
    return tuple(written)


@pytest.mark.parametrize("name", DECODERS)
def test_beam_1_is_greedy(name: str) -> None:
    made = decoder(name)
    seen = context(made, 20)
    found = beam_search([made], [seen], Decoding(beam=1, length_penalty=0.7, max_words=8))
    with torch.no_grad():
        wanted = [greedy(made, tuple(part[i : i + 1] for part in seen), 8) for i in range(20)]
    assert [best[0].words for best in found] == wanted
    assert len({len(words) for words in wanted}) > 1, "some end early, some at max_words"


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all_captions(name: str, length_penalty: float) -> None:
    """Against every caption there is of up to 3 words of 4, scored one word at a time."""
    made = decoder(name, words=8)
    seen = context(made, 4)
    found = beam_search([made], [seen], Decoding(beam=100, length_penalty=length_penalty, max_words=3))
    every = [words for n in (1, 2, 3) for words in itertools.product(range(4, 8), repeat=n)]
    for i, best in enumerate(found):
        alone = tuple(part[i : i + 1] for part in seen)
        scored = sorted((score(made, alone, words, length_penalty) for words in every), key=lambda h: -h.score)
        assert len(best) == len(every)
        assert best[0].words == scored[0].words
        assert [h.score for h in best] == pytest.approx([h.score for h in scored], abs=1e-4)


def score(made: Decoder, seen: Context, words: tuple[int, ...], length_penalty: float) -> Hypothesis:
    total = 0.0
    with torch.no_grad():
        state = made.start(seen, 1)
        for read, predict in itertools.pairwise((START, *words, END)):
            logits, state = made.step(torch.tensor([[read]]), state, seen)
            total += float(logits[0, 0].log_softmax(-1)[predict])
    return Hypothesis(words, total / (len(words) + 1) ** length_penalty)


def test_several_decoders_vote_by_mean_log_probability() -> None:
    """Two copies vote as one; of two that differ, each scores its own captions higher than the pair does."""
    one, other = decoder("show_tell"), decoder("show_tell", seed=9)
    seen, seen_by_other = context(one, 6), context(other, 6)
    decoding = Decoding(beam=3, length_penalty=0.0, max_words=6)
    assert beam_search([one, one], [seen, seen], decoding) == [
        [Hypothesis(h.words, pytest.approx(h.score, abs=1e-5)) for h in best]
        for best in beam_search([one], [seen], decoding)
    ]
    for i, best in enumerate(beam_search([one, other], [seen, seen_by_other], decoding)):
        mean = (
            sum(
                score(made, tuple(part[i : i + 1] for part in its), best[0].words, 0.0).score
                for made, its in ((one, seen), (other, seen_by_other))
            )
            / 2
        )
        assert best[0].score == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize("name", DECODERS)
def test_no_special_word_is_written(name: str) -> None:
    made = decoder(name)
    for best in beam_search([made], [context(made, 20)], Decoding(beam=4, max_words=7)):
        for hypothesis in best:
            assert not {0, START, END, UNK} & set(hypothesis.words)
            assert 1 <= len(hypothesis.words) <= 7


@pytest.mark.parametrize("name", DECODERS)
def test_it_can_learn_two_pictures_by_heart(name: str) -> None:
    """The whole of training on the smallest data: after some steps each picture gets its own caption, word by word."""
    torch.manual_seed(3)
    made = build(Shape(name, WORDS, CHANNELS, 32, 32, 0.0))
    grid = torch.rand(2, REGIONS, CHANNELS)
    features = (grid.mean(1), grid if made.grid else None)
    captions = [[START, 5, 6, 7, END], [START, 8, 9, END]]
    optimizer = torch.optim.Adam(made.parameters(), lr=0.02)
    words = pack_words(captions, [0, 1])
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(made(made.context(*features), words), words.predict)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = beam_search([made.eval()], [made.context(*features)], Decoding(beam=2, max_words=6))
    assert [best[0].words for best in found] == [(5, 6, 7), (8, 9)]


def test_settings_name_exactly_the_decoders() -> None:
    assert get_args(Settings.model_fields["decoder"].annotation) == tuple(DECODERS)


def test_an_unknown_decoder_is_told() -> None:
    with pytest.raises(ValueError, match=r"decoder 'transformer' is not known: this version has show_tell"):
        build(Shape("transformer", 5, 5, 5, 5))
    assert {name for name, kind in DECODERS.items() if kind.grid} == SEE_REGIONS
