"""From pictures to captions, whole batches at a time, by one decoder or by the mean of several.

Shapes: P pictures still at work, K captions of each that are written (one, before the beam has its first words),
        V vocabulary, T words written so far; states of decoders have rows of their own, see decoders.py

Every choice is made for all (P, K) at once; a picture whose captions are found leaves the beam search. Decoded in
float32: in bfloat16 equal scores are common and their order depends on the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.train.decoders import Context, Decoder, State, distinct
from stages.train.memory import Consensus
from stages.vocab.vocabulary import END, PAD, START, UNK

NEVER = [PAD, START, UNK]  # what no caption says


@dataclass(frozen=True)
class Decoding:
    """How captions are decoded; written beside every score. All but the first three are off unless asked for."""

    beam: int = 3  # captions kept at every word, 1 is greedy; with top_p: captions drawn
    length_penalty: float = 0.7  # scores are log-probability / words ** length_penalty; 0 is the plain sum
    max_words: int = 20  # words of a caption, at most
    block_trigrams: bool = False  # whether three words that a caption has said may not come again
    block_endings: bool = False  # whether no caption ends with a word of vocabulary.BAD_ENDINGS
    neighbours: int = 0  # nearest training pictures, by what people said of which the best of the beam is chosen
    consensus: float = 10.0  # weight of agreeing with them, beside the score
    guidance: float = 0.0  # power of how much oftener they say a word than people do elsewhere, on its probability
    candidates: int = 0  # captions that are found before one is chosen; 0: as many as `beam`
    top_p: float = 0.0  # above 0, words are drawn from the likeliest that hold this share of probability; no beam
    temperature: float = 1.0  # divides log-probabilities before words are drawn
    seed: int = 1  # of what is drawn

    def __post_init__(self) -> None:
        """Raises ValueError where a file says what cannot be."""
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            least = 1 if field.name in ("beam", "max_words") else 0
            fits = type(value) in ((int, float) if kind is float else (kind,))
            if not (fits and least <= value < math.inf):
                raise ValueError(f"decoding: {field.name} = {value!r} (must be {kind.__name__}, at least {least})")

    def as_dict(self) -> dict[str, Any]:
        """What a score card and an artifact say: what is off is left out, so that older cards compare."""
        switches = ("block_trigrams", "block_endings", "neighbours", "guidance", "candidates", "top_p")
        off = {name for name in switches if not getattr(self, name)}
        off |= {"candidates"} if self.candidates <= self.beam else set()
        off |= {"temperature", "seed"} if "top_p" in off else {"candidates"}  # what is drawn is not searched for
        off |= {"consensus", "guidance"} if "neighbours" in off else set()
        return {name: value for name, value in asdict(self).items() if name not in off}

    def but(self, **changes: Any) -> Self:
        """The same with the changes that are not None. Where captions are to be drawn it is one, if no more is said."""
        asked = {key: value for key, value in changes.items() if value is not None}
        return replace(self, **({"beam": 1} if asked.get("top_p") else {}) | asked)


class Hypothesis(NamedTuple):
    """One decoded caption."""

    words: tuple[int, ...]  # ids, without <start> and <end>
    score: float  # log-probability, guided where that is asked for, / (words and <end>) ** length_penalty


def decode(
    decoders: Sequence[Decoder],
    contexts: Sequence[Context],
    decoding: Decoding,
    *,
    bad_endings: Sequence[int],
    numbers: Sequence[int],
    memories: Sequence[tuple[Consensus, Tensor]] = (),
) -> list[list[Hypothesis]]:
    """For each picture its captions as `decoding` says, best first, at most `beam`.

    `bad_endings` are the ids that `block_endings` means. `numbers` tell pictures apart when captions are drawn: the
    same number and seed draw the same, in whatever batch. `memories` are what `neighbours` asks, each about pictures as
    its encoder sees them (P, C); of several the mean counts. Raises ValueError where it asks and there is none.
    """
    if decoding.neighbours and not memories:
        raise ValueError(
            f"decoding: neighbours = {decoding.neighbours}, and this captioner remembers no training pictures: set "
            "it to 0, or train with train.neighbours above 0"
        )
    asked = [(own, own.memory.near(pooled, decoding.neighbours)) for own, pooled in memories if decoding.neighbours]
    guide = None
    if asked and decoding.guidance:
        guide = decoding.guidance * torch.stack([own.guide(*near) for own, near in asked]).mean(0)
        guide = guide.to(contexts[0][0].device)
    if decoding.top_p:
        found = nucleus(decoders, contexts, decoding, bad_endings, numbers, guide)
    else:
        found = beam_search(decoders, contexts, decoding, bad_endings, guide)
    if asked:
        words = [[each.words for each in own] for own in found]
        agreed = [own.agreement(*near, words) for own, near in asked]
        means = [np.mean(own, axis=0) for own in zip(*agreed, strict=True)]
        found = [by_value(own, mean, decoding.consensus) for own, mean in zip(found, means, strict=True)]
    return [own[: decoding.beam] for own in found]


def by_value(hypotheses: list[Hypothesis], agreement: NDArray[np.float64], weight: float) -> list[Hypothesis]:
    """The hypotheses in the order of score + weight x agreement, equals as they were."""
    values = np.array([each.score for each in hypotheses]) + weight * agreement
    return [hypotheses[place] for place in np.argsort(-values, kind="stable")]


@torch.inference_mode()
def beam_search(
    decoders: Sequence[Decoder],
    contexts: Sequence[Context],
    decoding: Decoding,
    bad_endings: Sequence[int] = (),
    guide: Tensor | None = None,
) -> list[list[Hypothesis]]:
    """For each picture its finished captions, best first, as many as `beam` or `candidates`, whichever is more.

    At every word the `beam` best continuations live on; one that writes <end> while it is among the `beam` best is
    finished, and a picture is done when `beam` captions are: so beam 1 is greedy decoding. With `candidates` it is done
    when those are, later than it would be (2204.05424 calls candidates / beam the patience): alone that changes little,
    but more to choose from is worth more than a wider beam. At max_words every living caption is closed with the
    probability of <end>. <unk> is never written and no caption is empty. Several decoders vote by the mean of their
    log-probabilities. `guide` (P, V), where given, is added to them.
    """
    beam, wanted, device = decoding.beam, max(decoding.beam, decoding.candidates), contexts[0][0].device
    pictures = len(contexts[0][0])
    found: list[list[Hypothesis]] = [[] for _ in range(pictures)]
    at_work = torch.arange(pictures, device=device)
    states = [decoder.start(context) for decoder, context in zip(decoders, contexts, strict=True)]
    before = at_work[:, None]  # the rows of the states that captions continue
    written = torch.full((pictures, 1, 1), START, device=device)  # all captions begin alike: one each, at first
    scores = torch.zeros(pictures, 1, device=device)
    best_scores = torch.full((pictures, wanted), -torch.inf, device=device)
    best_words = torch.full((pictures, wanted, decoding.max_words), PAD, device=device)

    for length in range(1, decoding.max_words + 2):  # the length counts <end>
        log_probabilities = vote(decoders, written[:, :, -1], states, before, contexts, guide)
        forbid(log_probabilities, written, decoding, bad_endings)
        captions = written.shape[1]
        continued = (scores[:, :, None] + log_probabilities).flatten(1)  # (P, K * V)
        # 2 K candidates: even when K of them end, K live on.
        candidates, places = continued.topk(min(2 * beam, continued.shape[1]), sorted=True)
        parents, words = places // log_probabilities.shape[-1], places % log_probabilities.shape[-1]
        ended = words == END

        # Finished: candidates that end, among the K best.
        normalised = (candidates / length**decoding.length_penalty).masked_fill(~ended, -torch.inf)[:, :beam]
        texts = take(written[:, :, 1:], parents[:, :beam])
        texts = torch.nn.functional.pad(texts, (0, decoding.max_words - texts.shape[-1]), value=PAD)
        best_scores, order = torch.cat([best_scores, normalised], 1).topk(wanted, sorted=True)
        best_words = take(torch.cat([best_words, texts], 1), order)

        # Living: the K best that do not end.
        scores, order = candidates.masked_fill(ended, -torch.inf).topk(min(beam, candidates.shape[1]), sorted=True)
        parents, words = parents.gather(1, order), words.gather(1, order)
        written = torch.cat([take(written, parents), words[:, :, None]], -1)
        parents = parents + captions * torch.arange(len(parents), device=device)[:, None]  # rows of the states

        done = (best_scores[:, -1] > -torch.inf) | (length > decoding.max_words)
        if done.any():
            for row in done.nonzero()[:, 0].tolist():
                found[int(at_work[row])] = [
                    Hypothesis(tuple(word for word in text if word != PAD), score)
                    for text, score in zip(best_words[row].tolist(), best_scores[row].tolist(), strict=True)
                    if score > -torch.inf
                ]
            keep = (~done).nonzero()[:, 0]
            at_work, scores, written, parents = at_work[keep], scores[keep], written[keep], parents[keep]
            best_scores, best_words = best_scores[keep], best_words[keep]
            contexts = [tuple(part.index_select(0, keep) for part in context) for context in contexts]
            guide = None if guide is None else guide[keep]
            if len(keep) == 0:
                break
        rows, before = distinct(parents)
        states = [tuple(part.index_select(0, rows) for part in state) for state in states]
    return found


@torch.inference_mode()
def nucleus(
    decoders: Sequence[Decoder],
    contexts: Sequence[Context],
    decoding: Decoding,
    bad_endings: Sequence[int],
    numbers: Sequence[int],
    guide: Tensor | None = None,
) -> list[list[Hypothesis]]:
    """For each picture `beam` captions, likeliest first, drawn from the nucleus (1904.09751, section 3.1): of each
    word's probabilities the fewest largest that add up to `top_p`. Scores are those of the decoder itself, with `guide`
    (P, V) added where it is given."""
    captions, device = decoding.beam, contexts[0][0].device
    drawn = [np.random.default_rng([decoding.seed, n]).random((captions, decoding.max_words + 1)) for n in numbers]
    chances = torch.tensor(np.stack(drawn))  # drawn on the CPU: not every device has float64
    states = [decoder.start(context) for decoder, context in zip(decoders, contexts, strict=True)]
    before = torch.arange(len(numbers), device=device)[:, None].expand(-1, captions)
    written = torch.full((len(numbers), captions, 1), START)
    scores = torch.zeros(len(numbers), captions)
    ended = torch.zeros_like(scores, dtype=torch.bool)
    while not ended.all():
        chance = chances[:, :, written.shape[-1] - 1, None]
        log_probabilities = vote(decoders, written[:, :, -1].to(device), states, before, contexts, guide).cpu()
        before = torch.arange(scores.numel(), device=device).view_as(scores)
        forbid(log_probabilities, written, decoding, bad_endings)
        likely = (log_probabilities.double() / decoding.temperature).softmax(-1)
        likely, words = likely.sort(dim=-1, descending=True, stable=True)
        likelier = likely.cumsum(-1) - likely  # what those hold together that come before
        upto = (likely * (likelier < decoding.top_p)).cumsum(-1)
        place = (upto <= chance * upto[:, :, -1:]).sum(-1, keepdim=True)
        word = words.gather(-1, place)
        scores += log_probabilities.gather(-1, word)[:, :, 0].masked_fill(ended, 0)
        written = torch.cat([written, word.masked_fill(ended[:, :, None], PAD)], -1)
        ended |= written[:, :, -1] == END
    lengths = (written != PAD).sum(-1) - 1  # <end> counts, <start> does not
    scores = scores / lengths**decoding.length_penalty
    found = [
        [
            Hypothesis(tuple(word for word in text if word not in (PAD, START, END)), score)
            for text, score in zip(texts, own, strict=True)
        ]
        for texts, own in zip(written.tolist(), scores.tolist(), strict=True)
    ]
    return [sorted(each, key=lambda hypothesis: -hypothesis.score) for each in found]


def vote(
    decoders: Sequence[Decoder],
    words: Tensor,
    states: list[State],
    before: Tensor,
    contexts: Sequence[Context],
    guide: Tensor | None = None,
) -> Tensor:
    """words (P, K) just written after rows `before` (P, K) of `states` -> mean log-probabilities of the next (P, K, V).
    `states` go one word further.

    With `guide` (P, V) each probability is multiplied by its exponential, and all are brought to a sum of 1 again."""
    votes = []
    for i, (decoder, context) in enumerate(zip(decoders, contexts, strict=True)):
        logits, states[i] = decoder.step(words, states[i], before, context)
        votes.append(logits.float().log_softmax(-1))
    mean = votes[0] if len(votes) == 1 else torch.stack(votes).mean(0)
    return mean if guide is None else mean.add_(guide[:, None]).log_softmax(-1)


def forbid(log_probabilities: Tensor, written: Tensor, decoding: Decoding, bad_endings: Sequence[int]) -> None:
    """Sets to minus infinity in log-probabilities (P, K, V) what must not follow <start> and T words (P, K, 1 + T)."""
    length = written.shape[-1]  # of the caption when the next word, or <end>, is written
    log_probabilities[:, :, NEVER] = -torch.inf
    if length == 1:
        log_probabilities[:, :, END] = -torch.inf
    if decoding.block_trigrams and length > 3:
        again = (written[:, :, 1:-2] == written[:, :, -2:-1]) & (written[:, :, 2:-1] == written[:, :, -1:])
        log_probabilities.scatter_(-1, written[:, :, 3:].masked_fill(~again, PAD), -torch.inf)
    if decoding.block_endings:
        bad = torch.tensor(bad_endings, device=written.device, dtype=written.dtype)
        log_probabilities[:, :, END].masked_fill_(torch.isin(written[:, :, -1], bad), -torch.inf)
        if length == decoding.max_words:  # after this word only <end> can come
            log_probabilities[:, :, bad] = -torch.inf
    if length > decoding.max_words:
        ends = log_probabilities[:, :, END].clone()
        log_probabilities.fill_(-torch.inf)
        log_probabilities[:, :, END] = ends


@torch.no_grad()
def sample(decoder: Decoder, context: Context, captions: int, max_words: int) -> Tensor:
    """`captions` (K) captions of each picture, each word drawn by its probability -> ids (P, K, T).

    A caption ends with <end>, filled up with <pad>, or after `max_words` words. <unk> is never drawn.
    """
    state = decoder.start(context)
    words = torch.full((len(context[0]), captions), START, device=context[0].device)
    before = torch.arange(len(words), device=words.device)[:, None].expand_as(words)
    ended = torch.zeros_like(words, dtype=torch.bool)
    written: list[Tensor] = []
    while len(written) < max_words and not ended.all():
        logits, state = decoder.step(words, state, before, context)
        before = torch.arange(words.numel(), device=words.device).view_as(words)
        logits[:, :, NEVER] = -torch.inf
        words = torch.multinomial(logits.float().softmax(-1).flatten(0, 1), 1).view_as(words)
        words = words.masked_fill(ended, PAD)
        ended |= words == END
        written.append(words)
    return torch.stack(written, -1)


def take(values: Tensor, places: Tensor) -> Tensor:
    """values (P, K, ...) at places (P, J) along the second dimension -> (P, J, ...)."""
    index = places.view(*places.shape, *([1] * (values.dim() - 2))).expand(*places.shape, *values.shape[2:])
    return values.gather(1, index)
