"""The LSTM of our own against torch's: the same function and the same gradients, for any lengths and precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from stages.train.packed_lstm import Recurrence, packed_lstm

LENGTHS = [[5, 3, 3, 1], [1], [1, 1, 1], [7], [4, 4, 4, 2, 2]]


def sizes_of(lengths: list[int]) -> Tensor:
    """(T,) captions that have a t-th word."""
    return (torch.arange(max(lengths))[:, None] < torch.tensor(lengths)).sum(1)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_it_is_torchs_lstm(lengths: list[int]) -> None:
    torch.manual_seed(len(lengths))
    lstm = nn.LSTM(6, 8).double()
    sizes = sizes_of(lengths)
    x = torch.randn(sum(lengths), 6, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(sum(lengths), 8, dtype=torch.float64)
    found = []
    for run in (lambda: packed_lstm(lstm, x, sizes), lambda: lstm(PackedSequence(x, sizes))[0].data):
        h = run()
        gradients = torch.autograd.grad((h * direction).sum(), [x, *lstm.parameters()])
        found.append([h, *gradients])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_gradients_are_those_of_small_differences() -> None:
    torch.manual_seed(1)
    x = torch.randn(9, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: Recurrence.apply(x, w, [4, 3, 2]), (x, weight))


def test_in_bfloat16_it_is_as_near_as_torchs_own() -> None:
    """Both against float64: ours keeps states in float32 and may not be worse."""
    torch.manual_seed(2)
    lengths = [20, 15, 15, 8, 3]
    lstm, sizes, x = nn.LSTM(32, 32), sizes_of(lengths), torch.randn(sum(lengths), 32)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = packed_lstm(lstm, x, sizes), lstm(PackedSequence(x, sizes))[0].data
    exact = lstm.double()(PackedSequence(x.double(), sizes))[0].data
    assert (ours - exact).abs().max() <= 1.1 * (theirs - exact).abs().max() < 0.05
