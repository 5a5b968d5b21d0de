"""The artifact: everything in one file, the same bytes for the same captioner, and a wrong file is told."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.features.encoders import EfficientNetLite0
from stages.files import sha256
from stages.train.artifact import Artifact, ArtifactError, load_encoder, read_metadata
from stages.train.decoders import Shape, build
from stages.train.decoding import Decoding
from stages.train.memory import Memory
from stages.vocab.vocabulary import END, SPECIALS, START, Vocabulary

ENCODER = {
    "encoder": "efficientnet_lite0",
    "weights": "package",
    "weights_sha256": "f" * 64,
    "precision": "float32",
    "preprocessing": {"size": 224, "resize": "squash"},
}


@pytest.fixture
def artifact() -> Artifact:
    torch.manual_seed(0)
    vocabulary = Vocabulary((*SPECIALS, "a", "dog", "naïve"))
    decoder = build(Shape("show_tell", len(vocabulary.words), 12, 8, 8, 0.3)).eval()
    return Artifact(decoder, vocabulary, ENCODER, Decoding(beam=4, length_penalty=0.5, max_words=11))


def test_what_is_saved_comes_back(artifact: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "captioner.safetensors"
    hashed = artifact.save(path)
    loaded = Artifact.load(path)
    assert loaded.weights_sha256 == hashed == read_metadata(path)["weights_sha256"]
    assert loaded.vocabulary == artifact.vocabulary
    assert loaded.encoder == ENCODER
    assert loaded.decoding == Decoding(4, 0.5, 11)
    assert loaded.decoder.shape == artifact.decoder.shape
    assert not loaded.decoder.training
    for name, value in artifact.decoder.state_dict().items():
        assert torch.equal(loaded.decoder.state_dict()[name], value)


def test_the_same_captioner_gives_the_same_bytes(artifact: Artifact, tmp_path: Path) -> None:
    hashes = set()
    for number in range(5):
        artifact.save(tmp_path / f"{number}.safetensors")
        hashes.add(sha256(tmp_path / f"{number}.safetensors"))
    assert len(hashes) == 1


def rewrite(path: Path, **changes: object) -> None:
    """The same tensors under changed metadata."""
    metadata = {**read_metadata(path), **changes}
    save_file(load_file(path), path, {"captioner": json.dumps(metadata)})


def test_a_cut_file_is_told_with_its_size(artifact: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "captioner.safetensors"
    artifact.save(path)
    whole = path.read_bytes()
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=rf"\({length:,} bytes\) is cut or no safetensors.*dvc pull"):
            Artifact.load(path)


def test_no_pickle_is_ever_loaded(tmp_path: Path) -> None:
    path = tmp_path / "captioner.safetensors"
    path.write_bytes(pickle.dumps({"decoder": 1}))
    with pytest.raises(ArtifactError, match="is cut or no safetensors file"):
        Artifact.load(path)


def test_other_wrong_files_are_told(artifact: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "captioner.safetensors"
    with pytest.raises(ArtifactError, match=r"is not there: pull it again \(`dvc pull`\) or train it"):
        Artifact.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ArtifactError, match="is a safetensors file, but no captioner"):
        Artifact.load(path)
    for changes, message in (
        ({"format": 99}, "has format 99, this version reads 1: use the version that wrote it"),
        ({"weights_sha256": "0" * 64}, "its weights are not those that its metadata names"),
        ({"vocabulary": [*SPECIALS, "a"]}, "5 words for 7 outputs"),
        ({"shape": {"decoder": "show_tell"}}, "is not a captioner of this version"),
        ({"decoding": {"beem": 3}}, "is not a captioner of this version"),
        ({"decoding": {"beam": 0}}, "decoding: beam = 0 .must be int, at least 1"),
        ({"decoding": {"beam": "5"}}, "decoding: beam = '5' .must be int"),
        ({"decoding": {"length_penalty": math.nan}}, "decoding: length_penalty = nan .must be float"),
        ({"decoding": []}, "decoding must be dict in its metadata, not"),
        ({"vocabulary": "words"}, "vocabulary must be list in its metadata, not 'words'"),
        ({"vocabulary": [*SPECIALS, "a", "dog", "dog"]}, "is not a captioner of this version"),
        ({"shape": artifact.decoder.shape.as_dict() | {"decoder": "other"}}, "is not a captioner of .*'other'"),
        ({"shape": artifact.decoder.shape.as_dict() | {"dropout": 3}}, "is not a captioner of this version"),
        ({"encoder": ENCODER | {"weights": 7}}, "weights must be str in its metadata, not 7"),
        ({"encoder": {}}, "encoder must be str in its metadata, not None"),
        ({"weights_sha256": None}, "weights_sha256 must be str in its metadata, not None"),
    ):
        artifact.save(path)
        rewrite(path, **changes)
        with pytest.raises(ArtifactError, match=rf"{path.name}.*{message}"):
            Artifact.load(path)
    for text in ("[]", "null", "3", "{", "hello"):
        save_file(load_file(path), path, {"captioner": text})
        with pytest.raises(ArtifactError, match=r"captioner.safetensors(: its metadata is no JSON| has format None)"):
            read_metadata(path)


def test_what_is_loaded_does_not_change_with_the_file(artifact: Artifact, tmp_path: Path) -> None:
    """Somebody copies another captioner over the file, which keeps its place on the disk."""
    path, other = tmp_path / "captioner.safetensors", tmp_path / "other.safetensors"
    for place, seed in ((path, 1), (other, 2)):
        torch.manual_seed(seed)
        memory = Memory.of(torch.rand(6, 12), [[[START, 4, END]]] * 5 + [[[START, 3 + seed, END]]])
        replace(artifact, memory=memory).save(place)
    loaded = Artifact.load(path)
    assert loaded.memory is not None
    before = {name: value.clone() for name, value in loaded.memory.as_dict().items()}
    with path.open("r+b") as file:
        file.write(other.read_bytes())
    for name, value in loaded.memory.as_dict().items():
        assert torch.equal(value, before[name]), name


def test_only_addresses_that_the_code_knows_are_asked_for_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A captioner of a stranger names what it likes; one of our own may name a mirror whose file is here already."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda address, *_, **__: pytest.fail(f"asked {address}"))
    package = EfficientNetLite0.published()["package"]
    named = {**ENCODER, "weights": f"http://me:secret@mirror.example/lite-{sha256(package)[:8]}.pth"}
    place = tmp_path / "hub" / "checkpoints" / f"lite-{sha256(package)[:8]}.pth"
    with pytest.raises(ArtifactError, match=r"and http://mirror\.example/lite-\w+\.pth, .* this version knows") as told:
        load_encoder(named, {}, torch.device("cpu"))
    assert str(told.value).endswith(f"download the file to {place}")
    place.parent.mkdir(parents=True)
    shutil.copy(package, place)
    with pytest.raises(ArtifactError, match="get the same file"):
        load_encoder(named, {}, torch.device("cpu"))
    encoder = load_encoder(
        {**named, "weights_sha256": EfficientNetLite0(package).weights_sha256}, {}, torch.device("cpu")
    )
    assert encoder.name == "efficientnet_lite0"
    with pytest.raises(ValueError, match="/etc/passwd is not a whole, safe state dict"):
        load_encoder({**ENCODER, "weights": "/etc/passwd"}, {}, torch.device("cpu"))
