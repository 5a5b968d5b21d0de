"""Decoders: from a picture's features to the next word, again and again.

Shapes: P pictures, K captions of each (beam or samples), S states that captions continue, B captions (each knows its
        picture by `owner`), N words of all captions without padding, T words of the longest, V vocabulary, E embedding,
        H hidden, C channels, R regions

A decoder answers in two ways that must agree to rounding (tests hold them to it):
    forward   all words of known captions at once, for training: logits (N, V)
    step      one word further for K captions of each of P pictures, for decoding: logits (P, K, V)

Captions travel packed, as torch's pack_padded_sequence packs them: sorted by length, all first words, then all second
words ... so that no product is ever computed for padding, and the output layer, most of the work, sees N rows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from stages.train.packed_lstm import packed_lstm

State = tuple[Tensor, ...]  # what a decoder remembers between words, each (S, ...)
Context = tuple[Tensor, ...]  # what it knows of the pictures, each (P, ...), computed once and shared by their captions


@dataclass(frozen=True)
class Shape:
    """Everything needed to build a decoder; kept in the artifact."""

    decoder: str
    words: int  # V
    channels: int  # C
    embedding: int  # E
    hidden: int  # H
    dropout: float = 0.0  # share of units, in training only
    tied: bool = False  # whether words are predicted by the vectors they are read as; E = H then

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Words(NamedTuple):
    """B captions as the decoder reads and predicts them, sorted by length, longest first.

    A caption <start> a dog <end> is read as <start> a dog and predicted as a dog <end>: 3 words of N.
    """

    read: Tensor  # (N,) word ids, packed
    predict: Tensor  # (N,) the word that follows each
    batch_sizes: Tensor  # (T,) captions that have a t-th word; on the CPU, as torch wants it
    owner: Tensor  # (B,) the picture of each caption, 0..P-1
    order: Tensor  # (B,) the place of each caption in the list that was packed

    def to(self, device: torch.device) -> Words:
        """Copies to the device; the sizes stay where they are."""
        moved = {
            name: part.to(device, non_blocking=True) for name, part in self._asdict().items() if name != "batch_sizes"
        }
        return self._replace(**moved)

    def captions(self) -> Tensor:
        """The caption of each word, 0..B-1 (N,)."""
        every = torch.arange(len(self.owner), device=self.owner.device)
        return torch.cat([every[:count] for count in self.batch_sizes.tolist()])

    @staticmethod
    def places(owners: Tensor, pictures: int) -> Tensor:
        """Numbers the words of each picture: owners (N,) -> (N,), each pair of owner and place occurring once."""
        order = owners.argsort(stable=True)
        counts = owners.bincount(minlength=pictures)
        places = torch.empty_like(owners)
        places[order] = torch.arange(len(owners), device=owners.device) - (counts.cumsum(0) - counts)[owners[order]]
        return places


def pack_words(captions: Sequence[Sequence[int]], owner: Sequence[int]) -> Words:
    """Packs captions that begin with <start>: each word but the last is read, each but the first predicted, <end> too
    where a caption has come to it. `owner[i]` is the picture of captions[i]."""
    order = sorted(range(len(captions)), key=lambda i: -len(captions[i]))  # stable, so that the order is defined
    lengths = torch.tensor([len(captions[i]) - 1 for i in order])
    padded = nn.utils.rnn.pad_sequence([torch.tensor(captions[i]) for i in order])  # (T + 1, B)
    there = torch.arange(int(lengths[0]))[:, None] < lengths  # (T, B)
    owners = torch.tensor([owner[i] for i in order])
    return Words(padded[:-1][there], padded[1:][there], there.sum(1), owners, torch.tensor(order))


class Tied(nn.Module):
    """The output layer whose vectors are those that words are read as (1608.05859): h W_e^T / sqrt(H) + b.

    Divided because those have deviation 1 (see `initialise`): logits begin as small as those of a layer of its own.
    """

    scale: Tensor  # (), 1 / sqrt(H) until it is sharpened

    def __init__(self, embed: nn.Embedding) -> None:
        super().__init__()
        self.embed = (embed,)  # in a tuple: the decoder's own, no second copy among the weights
        self.bias = nn.Parameter(torch.zeros(embed.num_embeddings))
        self.register_buffer("scale", torch.tensor(embed.embedding_dim**-0.5))

    def forward(self, h: Tensor) -> Tensor:
        return linear(h * self.scale.to(h.dtype), self.embed[0].weight, self.bias)


def output_layer(shape: Shape, embed: nn.Embedding) -> nn.Linear | Tied:
    """From h (..., H) to logits (..., V)."""
    return Tied(embed) if shape.tied else nn.Linear(shape.hidden, shape.words)


class Decoder(nn.Module, ABC):
    """What training and decoding ask of every decoder."""

    name: ClassVar[str]
    grid: ClassVar[bool]  # whether it looks at regions, or only at their mean

    output: nn.Linear | Tied  # (V, H), the last layer
    mean: Tensor  # (C,) of the training pictures' pooled features
    deviation: Tensor  # (C,)

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.dropout = nn.Dropout(shape.dropout)
        self.register_buffer("mean", torch.zeros(shape.channels))
        self.register_buffer("deviation", torch.ones(shape.channels))

    def standardise(self, pooled: Tensor) -> None:
        """Learns from all training pictures (M, C) how to bring features to mean 0 and deviation 1.

        After its ReLU a CNN's features are positive and mostly alike: without this a picture differs from the next by
        a tenth of its length, and the decoder learns a language model long before it looks (measured on drawn scenes).
        """
        self.mean.copy_(pooled.mean(0))
        self.deviation.copy_(pooled.std(0).clamp_min(1e-2))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained, for an optimiser; `share` of a group is its part of the learning rate, where not all."""
        return [{"params": [*self.parameters()]}]

    def sharpen(self, factor: float) -> None:
        """Multiplies all logits from now on: above 1, the decoder is surer of what it would say."""
        with torch.no_grad():
            (self.output.scale if isinstance(self.output, Tied) else self.output.weight).mul_(factor)
            self.output.bias.mul_(factor)

    def standard(self, features: Tensor) -> Tensor:
        """features (..., C) as the encoder gives them -> what the decoder works with."""
        return (features - self.mean) / self.deviation

    def drop(self, x: Tensor, captions: Tensor, words: Words) -> Tensor:
        """Dropout of x (N, D): in training, the same units for all words of a caption (1512.05287)."""
        if not self.training or not self.dropout.p:
            return x
        return x * self.dropout(x.new_ones(len(words.owner), x.shape[-1]))[captions]

    @abstractmethod
    def context(self, pooled: Tensor, grid: Tensor | None = None) -> Context:
        """pooled (P, C), grid (P, R, C) if `self.grid` -> what later calls need of the pictures."""

    @abstractmethod
    def forward(self, context: Context, words: Words) -> Tensor:
        """-> logits (N, V) for `words.predict`."""

    def attention(self, context: Context, words: Words) -> Tensor | None:
        """Where each word of `words.predict` was looked for: (N, R), rows sum to 1; None without regions."""
        return None

    @abstractmethod
    def start(self, context: Context) -> State:
        """-> the state of each picture before <start> (S = P)."""

    @abstractmethod
    def step(self, words: Tensor, state: State, before: Tensor, context: Context) -> tuple[Tensor, State]:
        """One word further: words (P, K) just written, each after what row `before` (P, K) of the state says.

        -> logits (P, K, V) and the state after them (S = P * K, in their order). Captions that continue the same one
        share its row, and what is computed of it.
        """


def distinct(values: Tensor) -> tuple[Tensor, Tensor]:
    """values (P, K) -> each once (S,), and which of those each value is (P, K).

    What is the same for many captions is multiplied once: of a hundred pictures' beams nine in ten words are written
    elsewhere too, and nearly half of the captions continue the same one as another. A GPU would rather compute than
    count: there all are taken as they are.
    """
    if values.device.type != "cpu":
        return values.flatten(), torch.arange(values.numel(), device=values.device).view_as(values)
    once, places = values.unique(return_inverse=True)
    return once, places


def from_input(lstm: nn.LSTM, x: Tensor) -> Tensor:
    """What an input x (..., I) adds to the sums in the gates of a single-layer LSTM (..., 4 H)."""
    weight, _, bias, _ = lstm.parameters()
    return linear(x, weight, bias)


def one_step(lstm: nn.LSTM, sums: Tensor, before: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step: sums `from_input` (P, K, 4 H), h and c (S, H), continued at rows `before` (P, K) -> h and c (P * K, H)
    after it."""
    _, weight, _, bias = lstm.parameters()
    sums, before = sums.flatten(0, 1), before.flatten()
    i, f, g, o = (sums + linear(h, weight, bias).index_select(0, before)).chunk(4, -1)
    c = torch.addcmul(f.sigmoid() * c.index_select(0, before), i.sigmoid(), g.tanh())
    return o.sigmoid() * c.tanh(), c


class ShowTell(Decoder):
    """Show and Tell (1411.4555, section 3.1): the picture is the LSTM's first input, words follow.

    x_-1 = W_image CNN(I);  x_t = W_e S_t;  p_{t+1} = softmax(W h_t)
    """

    name = "show_tell"
    grid = False

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.image = nn.Linear(shape.channels, shape.embedding)
        self.embed = nn.Embedding(shape.words, shape.embedding)
        self.lstm = nn.LSTM(shape.embedding, shape.hidden)
        self.output = output_layer(shape, self.embed)
        initialise(self)

    def context(self, pooled: Tensor, grid: Tensor | None = None) -> Context:
        """-> the image as the LSTM's first input (P, E)."""
        return (self.image(self.standard(pooled)),)

    def forward(self, context: Context, words: Words) -> Tensor:
        captions = words.captions()
        every = torch.cat([captions[: len(words.owner)], captions])  # the picture comes before the words
        x = torch.cat([context[0][words.owner], self.embed(words.read)])
        sizes = torch.cat([words.batch_sizes[:1], words.batch_sizes])
        h = packed_lstm(self.lstm, self.drop(x, every, words), sizes)
        h = h[len(words.owner) :]  # what follows the picture alone predicts nothing
        logits: Tensor = self.output(self.drop(h, captions, words))
        return logits

    def start(self, context: Context) -> State:
        (image,) = context
        zero = image.new_zeros(len(image), self.shape.hidden)
        each = torch.arange(len(image), device=image.device)[:, None]
        return one_step(self.lstm, from_input(self.lstm, image)[:, None], each, zero, zero)

    def step(self, words: Tensor, state: State, before: Tensor, context: Context) -> tuple[Tensor, State]:
        once, places = distinct(words)
        h, c = one_step(self.lstm, from_input(self.lstm, self.embed(once))[places], before, *state)
        return self.output(h).view(*words.shape, -1), (h, c)


class Attend(Decoder):
    """Two LSTMs with attention between them, after the top-down captioner of 1707.07998, section 3.2.

        x_t = W_e S_t + W_image CNN(I);  h1_t = LSTM1(x_t);  a_t = attention(h1_t, regions);  h2_t = LSTM2([h1_t, a_t])
    p_{t+1} = softmax(W (h1_t + h2_t))

    The sum is a residual connection (1609.08144, section 3.1): without it words are learned through two LSTMs, and
    after 200 steps on Flickr8k the loss is 0.3 higher. The first LSTM there also reads h2_{t-1}; without that no step
    of one LSTM waits for the other, and attention runs once over all words of a batch instead of inside the time loop.
    It has several heads (1706.03762, section 3.2.2), one per 64 dimensions, or as many fewer as divide them. Keys and
    values are made once per picture and shared by its captions.
    """

    name = "attend"
    grid = True

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        most = max(1, shape.hidden // 64)
        self.heads = next(heads for heads in range(most, 0, -1) if shape.hidden % heads == 0)
        self.image = nn.Linear(shape.channels, shape.embedding)
        self.regions = nn.Linear(shape.channels, shape.hidden)
        self.keys = nn.Linear(shape.hidden, shape.hidden)
        self.values = nn.Linear(shape.hidden, shape.hidden)
        self.embed = nn.Embedding(shape.words, shape.embedding)
        self.lstm = nn.LSTM(shape.embedding, shape.hidden)
        self.query = nn.Linear(shape.hidden, shape.hidden)
        self.language = nn.LSTM(2 * shape.hidden, shape.hidden)
        self.output = output_layer(shape, self.embed)
        initialise(self)

    def context(self, pooled: Tensor, grid: Tensor | None = None) -> Context:
        """-> image (P, E), keys (P, heads, R, D), values (P, heads, R, D) with D = H / heads."""
        assert grid is not None
        regions = self.regions(self.standard(grid)).relu()
        regions = regions * self.dropout(torch.ones_like(regions[:, :1]))
        # Laid out as a head's product reads them, once instead of for every word.
        keys, values = (self.split(layer(regions)).contiguous() for layer in (self.keys, self.values))
        return self.image(self.standard(pooled)), keys, values

    def split(self, vectors: Tensor) -> Tensor:
        """(P, Q, H) -> (P, heads, Q, D)."""
        return vectors.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def weights(self, h: Tensor, context: Context) -> Tensor:
        """h (P, Q, H), what Q words of each picture look for -> how much each looks where (P, heads, Q, R)."""
        scores = self.split(self.query(h)) @ context[1].transpose(-1, -2)
        return (scores.float() / math.sqrt(context[1].shape[-1])).softmax(-1)

    def attend(self, h: Tensor, context: Context) -> Tensor:
        """h (P, Q, H) -> what is seen there (P, Q, H)."""
        return (self.weights(h, context).to(h.dtype) @ context[2].to(h.dtype)).transpose(1, 2).flatten(2)

    def ask(self, context: Context, words: Words) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """-> h of the first LSTM (N, H), the same sorted by picture (P, Q, H), and where each word stands in that."""
        captions = words.captions()
        owner = words.owner[captions]
        x = self.drop(self.embed(words.read) + context[0][owner], captions, words)
        h = packed_lstm(self.lstm, x, words.batch_sizes)
        place = (owner, words.places(owner, len(context[0])))
        return h, h.new_zeros(len(context[0]), int(place[1].max()) + 1, h.shape[-1]).index_put(place, h), place

    def forward(self, context: Context, words: Words) -> Tensor:
        h, asked, place = self.ask(context, words)
        captions = words.captions()
        x = self.drop(torch.cat([h, self.attend(asked, context)[place]], -1), captions, words)
        h = h + packed_lstm(self.language, x, words.batch_sizes)
        logits: Tensor = self.output(self.drop(h, captions, words))
        return logits

    def attention(self, context: Context, words: Words) -> Tensor:
        _, asked, place = self.ask(context, words)
        return self.weights(asked, context).mean(1)[place]

    def start(self, context: Context) -> State:
        zero = context[0].new_zeros(len(context[0]), self.shape.hidden)
        return (zero, zero, zero, zero)

    def step(self, words: Tensor, state: State, before: Tensor, context: Context) -> tuple[Tensor, State]:
        once, places = distinct(words)
        weight, *_ = self.lstm.parameters()
        read = from_input(self.lstm, self.embed(once))[places] + linear(context[0], weight)[:, None]
        h, c = one_step(self.lstm, read, before, *state[:2])
        asked = h.view(*words.shape, -1)
        seen = torch.cat([asked, self.attend(asked, context)], -1)
        spoken, cell = one_step(self.language, from_input(self.language, seen), before, *state[2:])
        return self.output(h + spoken).view(*words.shape, -1), (h, c, spoken, cell)


DECODERS: dict[str, type[Decoder]] = {cls.name: cls for cls in (ShowTell, Attend)}


def build(shape: Shape) -> Decoder:
    """A decoder with fresh weights. Raises ValueError for a name that is not known."""
    if shape.decoder not in DECODERS:
        raise ValueError(f"decoder {shape.decoder!r} is not known: this version has {', '.join(DECODERS)}")
    return DECODERS[shape.decoder](shape)


def initialise(decoder: Decoder) -> None:
    """LSTMs whose forget gates begin open (Jozefowicz et al. 2015, section 2.2).

    Words stay as torch draws them, of deviation 1 like standardised features: with the customary 0.1 a decoder is
    hundreds of steps behind, and where picture and word are added the picture drowns the words (measured on Flickr8k).
    """
    for module in decoder.modules():
        if isinstance(module, nn.LSTM):
            with torch.no_grad():
                for name, bias in module.named_parameters():
                    if name.startswith("bias"):
                        bias.zero_()
                    if name.startswith("bias_ih"):
                        bias[module.hidden_size : 2 * module.hidden_size] = 1
