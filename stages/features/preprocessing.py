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
        width, height = picture.size
        if self.resize == "crop":
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            box = (left, top, left + side, top + side)
        else:
            box = (0, 0, width, height)
        if (box[2] - box[0], box[3] - box[1]) != (self.size, self.size):
            picture = picture.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
        elif box != (0, 0, width, height):
            picture = picture.crop(box)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
