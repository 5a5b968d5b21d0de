"""Decoders: the step agrees with the full forward, batches with single pictures, beam search with an exhaustive one."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections import Counter
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.train.decoders import DECODERS, Context, Decoder, Shape, build, pack_words
from stages.train.decoding import Decoding, Hypothesis, beam_search, decode
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
            state = made.start(alone)
            for time, word in enumerate(caption[:-1]):
                step, state = made.step(torch.tensor([[word]]), state, torch.tensor([[0]]), alone)
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
        state = made.start(seen)
        for time, word in enumerate(CAPTIONS[0][:-1]):
            _, state = made.step(torch.tensor([[word]]), state, torch.tensor([[0]]), seen)
            by_hand = torch.zeros(REGIONS)
            heads = made.heads  # type: ignore[attr-defined]
            for query, keys in zip(made.query(state[0][0]).chunk(heads), seen[1][0], strict=True):  # type: ignore[operator]
                by_hand += (keys @ query / len(query) ** 0.5).softmax(0) / heads
            torch.testing.assert_close(weights[time], by_hand, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("hidden", "heads"), [(32, 1), (512, 8), (500, 5), (1000, 10), (523, 1)])
def test_of_any_hidden_size_heads_are_equal_parts_of_at_least_64(hidden: int, heads: int) -> None:
    made = build(Shape("attend", 20, 8, 16, hidden))
    grid = torch.randn(2, 4, 8)
    assert made.heads == heads
    assert made.context(grid.mean(1), grid)[1].shape == (2, heads, 4, hidden // heads)


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


@pytest.mark.parametrize("name", DECODERS)
def test_a_search_goes_on_until_the_candidates_are_found(name: str) -> None:
    made = decoder(name)
    seen = context(made, 12)
    fewer, more = (beam_search([made], [seen], Decoding(3, 0.7, 9, candidates=count)) for count in (0, 8))
    assert {len(own) for own in fewer} == {3}
    assert max(len(own) for own in more) == 8
    for i, (first, own) in enumerate(zip(fewer, more, strict=True)):
        alone = tuple(part[i : i + 1] for part in seen)
        assert {each.words for each in first} <= {each.words for each in own} or len(own) == 8
        assert len({each.words for each in own}) == len(own) >= 3
        assert [each.score for each in own] == sorted((each.score for each in own), reverse=True)
        for each in own:
            assert each.score == pytest.approx(score(made, alone, each.words, 0.7).score, abs=1e-4)
    shown = decode([made], [seen], Decoding(3, 0.7, 9, candidates=8), bad_endings=(), numbers=range(12))
    assert shown == [own[:3] for own in more], "only the best of them are shown, as many as the beam"


def greedy(made: Decoder, seen: Context, max_words: int) -> tuple[int, ...]:
    """The likeliest word, again and again, written as plainly as can be."""
    state, word, written = made.start(seen), START, []
    while len(written) < max_words:
        logits, state = made.step(torch.tensor([[word]]), state, torch.tensor([[0]]), seen)
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
        state = made.start(seen)
        for read, predict in itertools.pairwise((START, *words, END)):
            logits, state = made.step(torch.tensor([[read]]), state, torch.tensor([[0]]), seen)
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


ENDINGS = (4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)  # of 30 words, so that the rule has work to do


def allowed(words: tuple[int, ...], decoding: Decoding) -> set[int]:
    """What may follow these words, by the rules as people would say them."""
    if len(words) == decoding.max_words:
        return {END} - ({END} if decoding.block_endings and words[-1] in ENDINGS else set())
    may = set(range(WORDS)) - {0, START, UNK}
    if not words or (decoding.block_endings and words[-1] in ENDINGS):
        may -= {END}
    if decoding.block_endings and len(words) == decoding.max_words - 1:
        may -= set(ENDINGS)
    if decoding.block_trigrams:
        said = set(zip(words, words[1:], words[2:], strict=False))
        may = {word for word in may if (*words[-2:], word) not in said}
    return may


def following(made: Decoder, seen: Context, words: tuple[int, ...]) -> Tensor:
    """Log-probabilities of what follows, all words read anew."""
    state = made.start(seen)
    for word in (START, *words):
        logits, state = made.step(torch.tensor([[word]]), state, torch.tensor([[0]]), seen)
    return logits[0, 0].log_softmax(-1)


def search(made: Decoder, seen: Context, decoding: Decoding) -> list[Hypothesis]:
    """Beam search for one picture, as plainly as can be: lists of captions, every rule read off the words."""
    living: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished: list[Hypothesis] = []
    for length in range(1, decoding.max_words + 2):
        every = []
        for total, words in living:
            found = following(made, seen, words)
            every += [(total + float(found[word]), words, word) for word in allowed(words, decoding)]
        every.sort(key=lambda each: -each[0])
        norm = length**decoding.length_penalty
        finished += [Hypothesis(words, total / norm) for total, words, word in every[: decoding.beam] if word == END]
        finished = sorted(finished, key=lambda each: -each.score)[: decoding.beam]
        if len(finished) == decoding.beam:
            break
        living = [(total, (*words, word)) for total, words, word in every if word != END][: decoding.beam]
    return finished


def draw(made: Decoder, seen: Context, decoding: Decoding, number: int) -> list[Hypothesis]:
    """Nucleus sampling for one picture, word by word."""
    drawn = []
    for chances in np.random.default_rng([decoding.seed, number]).random((decoding.beam, decoding.max_words + 1)):
        words: tuple[int, ...] = ()
        total = 0.0
        for chance in chances:
            found = following(made, seen, words).double()
            may = allowed(words, decoding)
            weights = {word: math.exp(float(found[word]) / decoding.temperature) for word in may}
            order = sorted(may, key=lambda word: -weights[word])
            nucleus, share = [], 0.0
            while share < decoding.top_p * sum(weights.values()) and len(nucleus) < len(order):
                nucleus.append(order[len(nucleus)])
                share += weights[nucleus[-1]]
            reached = np.cumsum([weights[word] for word in nucleus])
            word = nucleus[int((reached <= chance * reached[-1]).sum())]
            total += float(found[word])
            if word == END:
                break
            words += (word,)
        drawn.append(Hypothesis(words, total / (len(words) + 1) ** decoding.length_penalty))
    return sorted(drawn, key=lambda each: -each.score)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"block_trigrams": True},
    {"block_endings": True},
    {"block_trigrams": True, "block_endings": True, "beam": 1},
    {"top_p": 0.8, "beam": 4},
    {"top_p": 1.0, "temperature": 0.5, "seed": 3, "beam": 1},
    {"top_p": 0.9, "temperature": 2.0, "block_trigrams": True, "block_endings": True, "beam": 6},
]


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_every_option_does_what_a_plain_search_does_and_batches_change_nothing(
    name: str, options: dict[str, Any]
) -> None:
    made = decoder(name)
    with torch.no_grad():
        made.output.bias[END] -= 3  # long captions, which repeat themselves
    seen = context(made, 8)
    decoding = Decoding(**{"beam": 3, "length_penalty": 0.7, "max_words": 9, **options})
    numbers = [7 * i for i in range(8)]
    together = decode([made], [seen], decoding, bad_endings=ENDINGS, numbers=numbers)
    for i, best in enumerate(together):
        own = tuple(part[i : i + 1] for part in seen)
        alone = decode([made], [own], decoding, bad_endings=ENDINGS, numbers=numbers[i : i + 1])[0]
        with torch.no_grad():
            plain = draw(made, own, decoding, numbers[i]) if decoding.top_p else search(made, own, decoding)
        assert [each.words for each in alone] == [each.words for each in best] == [each.words for each in plain]
        assert [each.score for each in best] == pytest.approx([each.score for each in plain], abs=1e-4)
    said = [words for best in together for words, _ in best]
    repeats = [words for words in said if len(set(zip(words, words[1:], words[2:], strict=False))) < len(words) - 2]
    assert bool(repeats) != decoding.block_trigrams, "without the rule some repeat themselves, with it none"
    assert any(words[-1] in ENDINGS for words in said) != decoding.block_endings
    if options:
        without = decode([made], [seen], Decoding(3, 0.7, 9), bad_endings=ENDINGS, numbers=numbers)
        assert [best[0].words for best in without] != [best[0].words for best in together]


def test_what_is_drawn_follows_the_probabilities() -> None:
    """Of 4,000 captions the share of each first word is its probability within the nucleus, and no other is drawn."""
    made = decoder("show_tell")
    seen = context(made, 1)
    decoding = Decoding(beam=4000, top_p=0.7, max_words=2)
    found = decode([made], [seen], decoding, bad_endings=(), numbers=[5])[0]
    with torch.no_grad():
        likely = following(made, seen, ())
        likely[[0, START, END, UNK]] = -torch.inf
        likely, order = likely.softmax(-1).sort(descending=True)
    size = int((likely.cumsum(0) < 0.7).sum()) + 1
    counts = Counter(each.words[0] for each in found)
    assert set(counts) <= set(order[:size].tolist())
    for word, chance in zip(order[:size].tolist(), (likely[:size] / likely[:size].sum()).tolist(), strict=True):
        assert counts[word] / 4000 == pytest.approx(chance, abs=4 * (chance / 4000) ** 0.5)


def test_what_is_off_is_not_written_on_a_card() -> None:
    """So that cards and artifacts of before compare; what was written is read again."""
    assert Decoding().as_dict() == {"beam": 3, "length_penalty": 0.7, "max_words": 20}
    for options in OPTIONS:
        found = Decoding(**options)
        assert Decoding(**found.as_dict()) == found
        assert found.as_dict().keys() >= options.keys()
    assert Decoding(beam=5).but(top_p=0.9).beam == 1
    assert Decoding(beam=5).but(top_p=0.9, beam=4).as_dict() == {
        "beam": 4, "length_penalty": 0.7, "max_words": 20, "top_p": 0.9, "temperature": 1.0, "seed": 1,
    }  # fmt: skip


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


@pytest.mark.parametrize("name", DECODERS)
def test_tied_words_are_predicted_by_the_vectors_they_are_read_as(name: str) -> None:
    """Fewer weights by one layer; steps, copies and sharpening work as with a layer of its own; both uses teach it."""
    torch.manual_seed(0)
    shape = Shape(name, WORDS, CHANNELS, 16, 16)
    own, tied = build(shape), build(dataclasses.replace(shape, tied=True))
    count = [sum(part.numel() for part in made.parameters()) for made in (own, tied)]
    assert count[0] - count[1] == WORDS * 16
    assert not [
        key for key in tied.state_dict() if key.startswith("output.") and key not in ("output.bias", "output.scale")
    ]
    with torch.no_grad():
        tied.output.bias.normal_()
    seen, words = context(tied, 3), pack_words(CAPTIONS, OWNER)
    logits = tied(seen, words)
    h: list[Tensor] = []
    tied.output.register_forward_pre_hook(lambda _, given: h.append(given[0]))
    tied(seen, words)
    torch.testing.assert_close(logits, h[0] @ tied.embed.weight.T / 4 + tied.output.bias)  # type: ignore[union-attr, operator]
    twin = copy.deepcopy(tied)
    with torch.no_grad():
        twin.embed.weight.mul_(2)  # type: ignore[union-attr, operator]
    torch.testing.assert_close(tied(seen, words), logits)
    assert (twin(seen, words) - logits).abs().max() > 0.1, "the copy has tied vectors of its own"
    before = tied.embed.weight.detach().clone()  # type: ignore[union-attr, operator]
    tied.sharpen(1.5)
    torch.testing.assert_close(tied(seen, words), 1.5 * logits)
    assert torch.equal(before, tied.embed.weight)  # type: ignore[arg-type]
    torch.nn.functional.cross_entropy(tied(seen, words), words.predict).backward()
    gradient = tied.embed.weight.grad  # type: ignore[union-attr]
    assert isinstance(gradient, Tensor)
    assert gradient[29].abs().sum() > 0, "a word that nobody reads learns from not being said"


def test_settings_name_exactly_the_decoders() -> None:
    assert get_args(Settings.model_fields["decoder"].annotation) == tuple(DECODERS)


def test_an_unknown_decoder_is_told() -> None:
    with pytest.raises(ValueError, match=r"decoder 'transformer' is not known: this version has show_tell"):
        build(Shape("transformer", 5, 5, 5, 5))
    assert {name for name, kind in DECODERS.items() if kind.grid} == SEE_REGIONS
