"""From a picture to the pixels an encoder sees: one function for training and captioning, its settings in the artifact.

Shapes: S = size, pixels a side; picture (3, S, S) uint8 RGB
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Preprocessing:
    """How a picture is brought to `size` x `size` pixels.

    squash: the whole picture, its aspect ratio lost; nothing that a caption may speak of is cut away.
    crop:   the short side to `size`, then the centre; shapes stay true, but a 3:2 photograph loses a third of itself.
    """

    size: int
    resize: str

    def __call__(self, picture: Image.Image) -> Tensor:
        """An RGB picture of any size -> (3, S, S) uint8. Bicubic, antialiased; nothing happens at the right size."""
        box = self.box(*picture.size)
        if (box[2] - box[0], box[3] - box[1]) != (self.size, self.size):
            picture = picture.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
        elif box != (0, 0, *picture.size):
            picture = picture.crop(box)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """The part of a picture that is seen, in its pixels: left, top, right, bottom."""
        if self.resize != "crop":
            return (0, 0, width, height)
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return (left, top, left + side, top + side)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
