"""A single-layer LSTM over packed captions: cuDNN's on a GPU, on a processor our own, faster than torch's.

torch's processor path adds up the gradient of the recurrent weights word by word and works out every gate's derivative
inside the time loop. Here both are done once, over all words; the loop keeps one product and a few sums per word.

Shapes: N words of all captions without padding, T words of the longest caption, I input, H hidden
        (i, f, g, o) input, forget, cell and output gate, in torch's order
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.rnn import PackedSequence


def packed_lstm(lstm: nn.LSTM, x: Tensor, sizes: Tensor) -> Tensor:
    """x (N, I), packed as `sizes` (T,) says -> h (N, H), both states beginning at zero (Hochreiter, Schmidhuber 1997).

    The same function as `lstm(PackedSequence(x, sizes))[0].data`.
    """
    if x.device.type == "cuda":
        # Under autocast it would work in float16, whatever format that is told, and small gradients would vanish.
        with torch.autocast("cuda", enabled=False):
            return lstm(PackedSequence(x.float(), sizes))[0].data
    from_input, from_before, *biases = lstm.parameters()
    gates = linear(x, from_input, biases[0] + biases[1])
    h: Tensor = Recurrence.apply(gates, from_before.to(gates.dtype), sizes.tolist())
    return h


def rows_before(sizes: list[int]) -> Tensor:
    """For every word but the captions' first ones, packed as `sizes` says, the row of its caption's word before it."""
    earlier = zip([0, *accumulate(sizes)], sizes[1:], strict=False)
    return torch.cat([torch.arange(0), *(torch.arange(start, start + count) for start, count in earlier)])


class Recurrence(torch.autograd.Function):
    """From the gates' sums over the input to h. Products in the input's precision, states at least in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, sizes: list[int]) -> Tensor:
        """x (N, 4 H), weight (4 H, H), captions that have a t-th word -> h (N, H)."""
        hidden = weight.shape[1]
        exact = torch.promote_types(x.dtype, torch.float32)
        gates = x.new_empty(len(x), 4 * hidden, dtype=exact)
        cells, tanh_cells = (x.new_empty(len(x), hidden, dtype=exact) for _ in range(2))
        h = x.new_empty(len(x), hidden)
        start, before = 0, 0
        for count in sizes:
            rows, rows_before = slice(start, start + count), slice(before, before + count)
            gate, cell = gates[rows], cells[rows]
            gate.copy_(torch.addmm(x[rows], h[rows_before], weight.t()) if start else x[rows])
            gate[:, : 2 * hidden].sigmoid_()
            gate[:, 2 * hidden : 3 * hidden].tanh_()
            gate[:, 3 * hidden :].sigmoid_()
            i, f, g, o = gate.chunk(4, 1)
            torch.mul(i, g, out=cell)
            if start:
                cell.addcmul_(f, cells[rows_before])
            torch.tanh(cell, out=tanh_cells[rows])
            torch.mul(o, tanh_cells[rows], out=h[rows])
            start, before = start + count, start
        ctx.sizes = sizes
        ctx.save_for_backward(weight, gates, cells, tanh_cells, h)
        return h

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradient of h (N, H) -> gradients of x (N, 4 H) and weight (4 H, H)."""
        weight, gates, cells, tanh_cells, h = ctx.saved_tensors
        sizes = ctx.sizes
        starts, previous = [0, *accumulate(sizes)], rows_before(sizes)
        i, f, g, o = gates.chunk(4, 1)
        first = sizes[0]
        # What a change of the cell, and of h for the output gate, does to each gate's sum.
        slopes = torch.empty_like(gates)
        di, df, dg, do = slopes.chunk(4, 1)
        torch.mul(g, i * (1 - i), out=di)
        df[:first] = 0
        torch.mul(cells[previous], (f * (1 - f))[first:], out=df[first:])
        torch.mul(i, 1 - g * g, out=dg)
        torch.mul(tanh_cells, o * (1 - o), out=do)
        through = o * (1 - tanh_cells * tanh_cells)  # what a change of h does to the cell

        dx = torch.empty_like(gates, dtype=h.dtype)
        dh = gradients[0].to(gates.dtype, copy=True)
        dcell = torch.empty_like(cells)
        hidden = weight.shape[1]
        later = 0
        for step in range(len(sizes) - 1, -1, -1):
            count, rows = sizes[step], slice(starts[step], starts[step + 1])
            if later:
                following = slice(starts[step + 1], starts[step + 1] + later)
                dh[rows][:later] += dx[following] @ weight
            torch.mul(dh[rows], through[rows], out=dcell[rows])
            if later:
                dcell[rows][:later].addcmul_(dcell[following], f[following])
            slope = slopes[rows].view(count, 4, hidden)
            into = dx[rows].view(count, 4, hidden)
            torch.mul(slope[:, :3], dcell[rows, None], out=into[:, :3])
            torch.mul(slope[:, 3], dh[rows], out=into[:, 3])
            later = count
        dweight = dx[first:].t() @ h[previous]
        return dx, dweight, None
