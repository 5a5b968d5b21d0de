"""What a decoder learns from: people's words (cross-entropy), or the scores of its own captions (self-critical).

Shapes: P pictures of a batch, K samples of each, T words of the longest, N words of all captions, V vocabulary
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stages.features.device import autocast, bring
from stages.fetch.captions import Picture
from stages.scorers.cider import CiderD
from stages.scorers.ngrams import References
from stages.scorers.ptb import tokenize
from stages.train.batches import Batch, Examples, Source, in_batches, in_order, in_rounds
from stages.train.decoders import Context, Decoder, Words, pack_words
from stages.train.decoding import NEVER, sample
from stages.train.packed_lstm import rows_before
from stages.vocab.vocabulary import END, PAD, START, Vocabulary

Forward = Callable[[Tensor, Tensor | None, Words], Tensor]  # pooled (P, C), grid (P, R, C) or None, words -> (N, V)


class TeacherForcing(nn.Module):
    """A decoder's answer to features and known words in one call: what is compiled, and what DistributedDataParallel
    has to see as a whole to exchange every gradient."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, pooled: Tensor, grid: Tensor | None, words: Words) -> Tensor:
        """-> logits (N, V) for `words.predict`."""
        logits: Tensor = self.decoder(self.decoder.context(pooled, grid), words)
        return logits


class Step(NamedTuple):
    """What a batch says."""

    loss: Tensor  # what is made smaller
    words: int  # over how many words it is the mean
    value: float  # what people want to see of it
    weight: int  # over how many words or captions `value` is the mean


class Objective(ABC):
    """The batches of an epoch, and what each says. Products are in `dtype` (but an LSTM's on a GPU), sums and losses in
    float32."""

    column: ClassVar[str]  # the name of `Step.value` in reports/P/training.csv

    def __init__(self, examples: Examples, source: Source, device: torch.device, dtype: torch.dtype) -> None:
        self.examples, self.source, self.device, self.dtype = examples, source, device, dtype

    @abstractmethod
    def batches(self, generator: np.random.Generator) -> list[Batch]:
        """The batches of an epoch; the same generator gives the same ones."""

    @abstractmethod
    def step(self, decoder: Decoder, batch: Batch, forward: Forward | None = None) -> Step:
        """The batch's loss, with gradients; `forward` is the decoder's TeacherForcing where it is not the plain one."""

    def captions(self, batch: Batch) -> int:
        """How many captions are learned from in it."""
        return batch.captions

    def features(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The batch's features, brought to the device: pooled (P, C), grid (P, R, C) or None."""
        rows = [self.examples.rows[picture] for picture, _ in batch.groups]
        pooled, grid = self.source.read(rows, batch.mirrored)
        return bring(pooled, self.device).float(), bring(grid, self.device).float() if grid is not None else None

    def context(self, decoder: Decoder, batch: Batch) -> Context:
        """The batch's features as the decoder keeps them."""
        return decoder.context(*self.features(batch))


class CrossEntropy(Objective):
    """Every caption of every picture, word by word, the words before it given; with label smoothing (1512.00567, 7)."""

    column = "train_loss"

    def __init__(
        self,
        examples: Examples,
        source: Source,
        device: torch.device,
        dtype: torch.dtype,
        *,
        captions: int = 64,
        captions_per_picture: int = 1,
        label_smoothing: float = 0.0,
        own_words: float = 0.0,
    ) -> None:
        """A batch has at most `captions` captions, and at most `captions_per_picture` of a picture: where five are
        taken in twos the fifth comes alone, in batches half as large. Of the words that are read, the share `own_words`
        is what the decoder itself would have said."""
        super().__init__(examples, source, device, dtype)
        self.together, self.pictures = captions_per_picture, max(1, captions // captions_per_picture)
        self.label_smoothing, self.own_words = label_smoothing, own_words

    def batches(self, generator: np.random.Generator) -> list[Batch]:
        groups = in_rounds(self.examples, self.together, generator)
        return in_batches(groups, self.pictures, self.source.mirror, generator)

    def step(self, decoder: Decoder, batch: Batch, forward: Forward | None = None) -> Step:
        words = self.words(batch)
        if self.own_words:
            with torch.no_grad():
                words = mixed(words, self.logits(TeacherForcing(decoder), batch, words), self.own_words)
        logits = self.logits(TeacherForcing(decoder) if forward is None else forward, batch, words)
        loss = cross_entropy(logits, words.predict, label_smoothing=self.label_smoothing)
        return Step(loss, len(words.predict), loss.item(), len(words.predict))

    def words(self, batch: Batch) -> Words:
        """The batch's captions, packed, on the device."""
        captions = [self.examples.captions[picture][place] for picture, places in batch.groups for place in places]
        owner = [number for number, (_, places) in enumerate(batch.groups) for _ in places]
        return pack_words(captions, owner).to(self.device)

    def logits(self, forward: Forward, batch: Batch, words: Words) -> Tensor:
        """-> logits (N, V) float32."""
        with autocast(self.device, self.dtype):
            return forward(*self.features(batch), words).float()

    @torch.inference_mode()
    def mean_loss(self, decoder: Decoder) -> float:
        """Cross-entropy per word in nats over all captions, unsmoothed. No caption score, and never used as one."""
        loss, weight = 0.0, 0
        for batch in in_order(self.examples, self.pictures):
            words = self.words(batch)
            logits = self.logits(TeacherForcing(decoder), batch, words)
            loss += cross_entropy(logits, words.predict, reduction="sum").item()
            weight += len(words.predict)
        return loss / weight


def mixed(words: Words, logits: Tensor, share: float) -> Words:
    """Scheduled sampling (1506.03099), of all words at once (1906.04331): a share of the words that are read is drawn
    from what the decoder, given people's words, said for that place: logits (N, V). What is to be predicted stays."""
    first = int(words.batch_sizes[0])
    logits = logits[rows_before(words.batch_sizes.tolist()).to(logits.device)]  # where each was predicted
    logits[:, [*NEVER, END]] = -torch.inf
    own = torch.multinomial(logits.softmax(-1), 1)[:, 0]
    read = words.read.clone()
    read[first:] = own.where(torch.rand(len(own), device=own.device) < share, read[first:])
    return words._replace(read=read)


class SelfCritical(Objective):
    """Self-critical training (SCST, 1612.00563): the decoder samples captions; what scores well becomes likelier.

    The baseline of a caption is the mean reward of the picture's other samples (2003.09971), so none is decoded for it.
    """

    column = "train_reward"

    def __init__(
        self,
        examples: Examples,
        source: Source,
        device: torch.device,
        dtype: torch.dtype,
        reward: Reward,
        *,
        pictures: int,
        samples: int,
        max_words: int,
    ) -> None:
        """A batch has `samples` (K) captions, of at most `max_words` words, of each of `pictures` pictures."""
        super().__init__(examples, source, device, dtype)
        self.reward, self.pictures, self.samples, self.max_words = reward, pictures, samples, max_words

    def batches(self, generator: np.random.Generator) -> list[Batch]:
        groups = in_rounds(self.examples, max(map(len, self.examples.captions)), generator)  # every picture once
        return in_batches(groups, self.pictures, self.source.mirror, generator)

    def captions(self, batch: Batch) -> int:
        return len(batch.groups) * self.samples

    def step(self, decoder: Decoder, batch: Batch, forward: Forward | None = None) -> Step:
        features = self.features(batch)
        with torch.no_grad(), autocast(self.device, self.dtype):
            written = sample(decoder, decoder.context(*features), self.samples, self.max_words)  # (P, K, T)
        rewards = self.reward(written, [picture for picture, _ in batch.groups])
        advantages = (rewards - rewards.mean(1, keepdim=True)) * self.samples / (self.samples - 1)
        captions = [[START, *(word for word in text if word != PAD)] for text in written.flatten(0, 1).tolist()]
        owner = [number for number in range(len(batch.groups)) for _ in range(self.samples)]
        words = pack_words(captions, owner).to(self.device)
        # Outside the context above: autocast keeps the weights it has cast, and those would be without gradients.
        with autocast(self.device, self.dtype):
            logits = (TeacherForcing(decoder) if forward is None else forward)(*features, words).float()
        logits[:, NEVER] = -torch.inf
        each = cross_entropy(logits, words.predict, reduction="none")
        weights = advantages.flatten().float().to(self.device)[words.order][words.captions()]
        return Step((weights * each).mean(), len(each), float(rewards.mean()), rewards.numel())


class Reward:
    """CIDEr-D of sampled captions against the captions of their training pictures; document frequencies from all.

    <end> counts as a word on both sides: without it a caption that stops after "on a" loses nothing (1612.00563).
    """

    def __init__(self, pictures: Sequence[Picture], vocabulary: Vocabulary) -> None:
        """`pictures` in the order of the examples that are learned from."""
        end = vocabulary.words[END]
        references = References([[[*tokenize(text), end] for text in picture.captions] for picture in pictures])
        self.cider = CiderD(references)
        self.numbers = references.number(vocabulary.words)
        self.numbers[[PAD, START]] = -1

    def __call__(self, samples: Tensor, pictures: Sequence[int]) -> Tensor:
        """samples (P, K, T) word ids, places of their pictures among the examples -> rewards (P, K)."""
        flat = self.numbers[samples.flatten(0, 1).cpu().numpy()]
        scores = self.cider.score(flat, np.repeat(np.asarray(pictures), samples.shape[1]))
        return torch.from_numpy(scores).view(samples.shape[:2])
