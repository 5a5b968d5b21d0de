"""Beam search over whole batches of pictures, by one decoder or by the mean of several.

Shapes: P pictures still at work, K = beam, V vocabulary, T words written so far

Every operation is over (P, K); a picture whose captions are found leaves the batch. Decoded in float32: in bfloat16
equal scores are common and their order depends on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from stages.train.decoders import Context, Decoder
from stages.vocab.vocabulary import END, PAD, START, UNK

NEVER = [PAD, START, UNK]  # what no caption says


@dataclass(frozen=True)
class Decoding:
    """How captions are decoded; written beside every score."""

    beam: int = 3  # captions kept at every word; 1 is greedy
    length_penalty: float = 0.7  # scores are log-probability / words ** length_penalty; 0 is the plain sum
    max_words: int = 20  # words of a caption, at most

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def but(self, **changes: Any) -> Self:
        """The same with the changes that are not None."""
        return replace(self, **{key: value for key, value in changes.items() if value is not None})


class Hypothesis(NamedTuple):
    """One decoded caption."""

    words: tuple[int, ...]  # ids, without <start> and <end>
    score: float  # log-probability / (words and <end>) ** length_penalty


@torch.inference_mode()
def beam_search(decoders: Sequence[Decoder], contexts: Sequence[Context], decoding: Decoding) -> list[list[Hypothesis]]:
    """For each picture its finished captions, best first, at most `beam` of them.

    At every word the `beam` best continuations live on; one that writes <end> while it is among the `beam` best is
    finished, and a picture is done when `beam` captions are: so beam 1 is greedy decoding. At max_words every living
    caption is closed with the probability of <end>. <unk> is never written and no caption is empty. Several decoders
    vote by the mean of their log-probabilities.
    """
    beam, device = decoding.beam, contexts[0][0].device
    pictures = len(contexts[0][0])
    found: list[list[Hypothesis]] = [[] for _ in range(pictures)]
    at_work = torch.arange(pictures, device=device)
    states = [decoder.start(context, beam) for decoder, context in zip(decoders, contexts, strict=True)]
    written = torch.full((pictures, beam, 1), START, device=device)
    # Before the first word all captions of a picture are the same; only the first may be continued.
    scores = torch.full((pictures, beam), -torch.inf, device=device)
    scores[:, 0] = 0
    best_scores = torch.full((pictures, beam), -torch.inf, device=device)
    best_words = torch.full((pictures, beam, decoding.max_words), PAD, device=device)

    for length in range(1, decoding.max_words + 2):  # the length counts <end>
        totals = torch.zeros((), device=device)
        for i, (decoder, context) in enumerate(zip(decoders, contexts, strict=True)):
            logits, states[i] = decoder.step(written[:, :, -1], states[i], context)
            totals = totals + logits.float().log_softmax(-1)
        log_probabilities = totals / len(decoders)  # (P, K, V)
        log_probabilities[:, :, NEVER] = -torch.inf
        if length == 1:
            log_probabilities[:, :, END] = -torch.inf
        if length > decoding.max_words:
            ends = log_probabilities[:, :, END].clone()
            log_probabilities.fill_(-torch.inf)
            log_probabilities[:, :, END] = ends
        continued = (scores[:, :, None] + log_probabilities).flatten(1)  # (P, K * V)
        # 2 K candidates: even when K of them end, K live on.
        candidates, places = continued.topk(min(2 * beam, continued.shape[1]), sorted=True)
        parents, words = places // log_probabilities.shape[-1], places % log_probabilities.shape[-1]
        ended = words == END

        # Finished: candidates that end, among the K best.
        normalised = (candidates / length**decoding.length_penalty).masked_fill(~ended, -torch.inf)[:, :beam]
        texts = take(written[:, :, 1:], parents[:, :beam])
        texts = torch.nn.functional.pad(texts, (0, decoding.max_words - texts.shape[-1]), value=PAD)
        best_scores, order = torch.cat([best_scores, normalised], 1).topk(beam, sorted=True)
        best_words = take(torch.cat([best_words, texts], 1), order)

        # Living: the K best that do not end.
        scores, order = candidates.masked_fill(ended, -torch.inf).topk(beam, sorted=True)
        parents, words = parents.gather(1, order), words.gather(1, order)
        written = torch.cat([take(written, parents), words[:, :, None]], -1)

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
            contexts = [tuple(part[keep] for part in context) for context in contexts]
            states = [tuple(part[keep] for part in state) for state in states]
            if len(keep) == 0:
                break
        states = [tuple(take(part, parents) for part in state) for state in states]
    return found


@torch.no_grad()
def sample(decoder: Decoder, context: Context, captions: int, max_words: int) -> Tensor:
    """`captions` (K) captions of each picture, each word drawn by its probability -> ids (P, K, T).

    A caption ends with <end>, filled up with <pad>, or after `max_words` words. <unk> is never drawn.
    """
    state = decoder.start(context, captions)
    words = torch.full((len(context[0]), captions), START, device=context[0].device)
    ended = torch.zeros_like(words, dtype=torch.bool)
    written: list[Tensor] = []
    while len(written) < max_words and not ended.all():
        logits, state = decoder.step(words, state, context)
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
