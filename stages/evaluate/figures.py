"""What people look at in the record of a run: its curves, pictures with their captions, where attention went.

Shapes: T words of a caption and <end>, R regions, S pixels a side
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

WIDTH = 12.0  # inches


def curves(table: pd.DataFrame) -> Figure:
    """Every column of reports/P/training.csv over its epochs, one small chart each; the best val CIDEr is marked."""
    names = [name for name in table.columns if name != "epoch"]
    figure = Figure(figsize=(WIDTH, 3 * math.ceil(len(names) / 3)), layout="constrained")
    for axes, name in zip(figure.subplots(math.ceil(len(names) / 3), 3, squeeze=False).flat, names, strict=False):
        axes.plot(table["epoch"], table[name], marker="o", markersize=3)
        axes.set(title=name, xlabel="epoch")
        axes.grid(alpha=0.3)
        if name == "val_cider":
            best = int(table[name].argmax())
            axes.plot(table["epoch"].iloc[best], table[name].iloc[best], marker="*", markersize=14)
    for axes in figure.axes[len(names) :]:
        axes.remove()
    return figure


def sheet(pictures: Sequence[Image.Image], captions: Sequence[str], people: Sequence[str]) -> Figure:
    """Pictures with the model's caption above and one of people's below."""
    columns = 4
    rows = math.ceil(len(pictures) / columns)
    figure = Figure(figsize=(WIDTH, 4 * rows), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set(xticks=[], yticks=[], frame_on=False)
    for axes, picture, caption, said in zip(figure.axes, pictures, captions, people, strict=False):
        axes.imshow(np.asarray(picture))
        # As it was said: between two dollars matplotlib would read mathematics.
        axes.set_title(fill(caption, 34), fontsize=10, parse_math=False)
        axes.set_xlabel(fill(said, 40), fontsize=8, color="grey", parse_math=False)
    return figure


def attention(
    picture: Image.Image, words: Sequence[str], weights: NDArray[np.float32], box: tuple[int, int, int, int]
) -> Figure:
    """The picture once per word, brighter where the decoder looked; weights (T, R), R = side x side regions in rows, of
    the part that it sees: left, top, right, bottom of `box` in pixels."""
    columns = 6
    rows = math.ceil(len(words) / columns)
    side = math.isqrt(weights.shape[1])
    figure = Figure(figsize=(WIDTH, 2.2 * rows), layout="constrained")
    pixels = np.asarray(picture)
    height, width = pixels.shape[:2]
    left, top, right, bottom = box
    seen = (left, right, bottom, top)
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set(xticks=[], yticks=[], frame_on=False)
    for axes, word, weight in zip(figure.axes, words, weights, strict=False):
        axes.imshow(pixels // 5, extent=(0, width, height, 0))  # what is not seen at all stays dark
        axes.imshow(pixels[top:bottom, left:right], extent=seen)
        shade = 1 - weight.reshape(side, side) / weight.max()  # of regions, laid over what is seen
        axes.imshow(np.zeros((side, side)), cmap="gray", alpha=0.8 * shade, extent=seen, interpolation="bilinear")
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_title(word, fontsize=10, parse_math=False)
    return figure
