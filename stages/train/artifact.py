"""The artifact: one safetensors file that holds everything a captioner needs, so that nothing can mismatch.

    tensors     decoder.*, float32 (float16 in published ones); encoder.*, the layers of the encoder that were tuned;
                memory.*, the training pictures and their captions, if they are to be remembered
    metadata    key `captioner`, JSON: shape of the decoder, vocabulary, encoder (name, weights, hash, hash of what was
                tuned), preprocessing, default decoding, hash of the weights

No pickle, and no address is asked that only it names: a captioner from a stranger can be opened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stages.features.device import choose_dtype
from stages.features.encoders import ENCODERS, Encoder, hash_weights, kept
from stages.files import shown, whole
from stages.train.decoders import Decoder, Shape, build
from stages.train.decoding import Decoding
from stages.train.memory import Consensus, Memory
from stages.vocab.vocabulary import Vocabulary

FORMAT = 1  # changes when an older reader would misunderstand a newer file


class ArtifactError(ValueError):
    """A file that is not a whole captioner of this version; the message says what to do."""


@dataclass(frozen=True)
class Artifact:
    """A trained captioner: decoder, vocabulary, how pictures are seen and how captions are decoded."""

    decoder: Decoder
    vocabulary: Vocabulary
    encoder: dict[str, Any]  # name, weights, weights_sha256, precision, preprocessing {size, resize}
    decoding: Decoding
    weights_sha256: str = ""
    tuned: dict[str, Tensor] = field(default_factory=dict)  # weights of the encoder's last layers, if they were trained
    memory: Memory | None = None  # of its training pictures, by which it chooses among captions

    @cached_property
    def consensus(self) -> Consensus | None:
        """What its memory says of captions."""
        return Consensus(self.memory, self.vocabulary) if self.memory else None

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> str:
        """Writes the file whole or not at all; the same captioner gives the same bytes. Returns the weights' hash.

        In float16 a file has half the size; what it says is then to be measured again (stages/release.py)."""
        state = {
            f"{part}.{name}": value.detach().cpu().to(dtype).contiguous()
            for part, weights in (("decoder", self.decoder.state_dict()), ("encoder", self.tuned))
            for name, value in weights.items()
        }
        if self.memory:
            state |= {f"memory.{name}": value for name, value in self.memory.as_dict().items()}
        weights_sha256 = hash_weights(state)
        tuned = {name: value for name, value in state.items() if name.startswith("encoder.")}
        metadata = {
            "format": FORMAT,
            "shape": self.decoder.shape.as_dict(),
            "vocabulary": list(self.vocabulary.words),
            "encoder": self.encoder | ({"tuned_sha256": hash_weights(tuned)} if tuned else {}),
            "decoding": self.decoding.as_dict(),
            "weights_sha256": weights_sha256,
        }
        # One key: safetensors writes several in an order that changes.
        data = save(state, {"captioner": json.dumps(metadata, ensure_ascii=False, allow_nan=False)})
        with whole(path) as partial:
            partial.write_bytes(data)
        return weights_sha256

    @classmethod
    def load(cls, path: str | Path) -> Artifact:
        """Reads a captioner onto the CPU, ready for decoding. Raises ArtifactError: what is wrong, what to do."""
        metadata = read_metadata(path)
        try:
            decoder = build(Shape(**metadata["shape"]))
            with safe_open(path, framework="pt") as file:
                # Copied: it would change with the file, which somebody may write anew.
                state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
            if hash_weights(state) != metadata["weights_sha256"]:
                raise ArtifactError(f"{path}: its weights are not those that its metadata names: {CURE}")
            parts: dict[str, dict[str, Tensor]] = {"decoder": {}, "encoder": {}, "memory": {}}
            for name, value in state.items():
                part, _, own = name.partition(".")
                parts[part][own] = value if part == "memory" else value.float()
            decoder.load_state_dict(parts["decoder"])
            memory = Memory(**parts["memory"]) if parts["memory"] else None
            vocabulary = Vocabulary(tuple(metadata["vocabulary"]))
            if len(vocabulary.words) != decoder.shape.words:
                raise ArtifactError(f"{path}: {len(vocabulary.words)} words for {decoder.shape.words} outputs: {CURE}")
            decoding = Decoding(**metadata["decoding"])
        except ArtifactError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise ArtifactError(f"{path} is not a captioner of this version ({error}): {CURE}") from error
        hashed = metadata["weights_sha256"]
        return cls(decoder.eval(), vocabulary, metadata["encoder"], decoding, hashed, parts["encoder"], memory)


def check_vote(artifacts: Sequence[Artifact]) -> None:
    """Raises ArtifactError where captioners cannot vote."""
    if any(other.vocabulary != artifacts[0].vocabulary for other in artifacts[1:]):
        raise ArtifactError("captioners that vote must share their vocabulary: train them on the same captions")


def remembered(artifacts: Sequence[Artifact]) -> list[Consensus | None]:
    """What each of several captioners remembers; None where it is nothing, or where an earlier one with the same
    encoder remembers, which is the same."""
    return [
        None
        if any(earlier.memory and earlier.encoder == artifact.encoder for earlier in artifacts[:place])
        else artifact.consensus
        for place, artifact in enumerate(artifacts)
    ]


KINDS = {"shape": dict, "vocabulary": list, "encoder": dict, "decoding": dict, "weights_sha256": str}
ENCODER_KINDS = {"encoder": str, "weights": str, "weights_sha256": str, "precision": str, "preprocessing": dict}
CURE = "pull it again (`dvc pull`) or train it (`dvc repro`)"


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata of a captioner without its weights: milliseconds. Raises ArtifactError."""
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path} is not there: {CURE}")
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get("captioner")
    except SafetensorError as error:
        size = path.stat().st_size
        raise ArtifactError(f"{path} ({size:,} bytes) is cut or no safetensors file ({error}): {CURE}") from error
    if text is None:
        raise ArtifactError(f"{path} is a safetensors file, but no captioner: it lacks the metadata `captioner`")
    try:
        metadata = json.loads(text)
    except ValueError as error:
        raise ArtifactError(f"{path}: its metadata is no JSON ({error}): {CURE}") from None
    written = metadata.get("format") if isinstance(metadata, dict) else None
    if written != FORMAT:
        raise ArtifactError(
            f"{path} has format {written!r}, this version reads {FORMAT}: use the version that wrote it"
        )
    for what, kinds in ((metadata, KINDS), (metadata.get("encoder"), ENCODER_KINDS)):
        for key, kind in kinds.items():
            if not isinstance(found := what.get(key), kind):
                raise ArtifactError(f"{path}: {key} must be {kind.__name__} in its metadata, not {found!r:.80}: {CURE}")
    return dict(metadata)


def load_encoder(named: Mapping[str, Any], tuned: Mapping[str, Tensor], device: torch.device) -> Encoder:
    """The encoder that an artifact or features name, with the very weights that they were made with, and those tuned
    since. An address that only they know is not asked: it may be a stranger's. Raises ArtifactError where this version
    or this machine has other weights, or none."""
    if named["encoder"] not in ENCODERS:
        raise ArtifactError(f"encoder {named['encoder']!r} is not known: this version has {', '.join(ENCODERS)}")
    kind, weights = ENCODERS[named["encoder"]], named["weights"]
    if "://" in weights and weights not in kind.published().values() and not kept(weights).is_file():
        raise ArtifactError(
            f"the weights of {kind.name} are not here, and {shown(weights)}, where they are said to be, is no address "
            f"that this version knows: if you trust it, download the file to {kept(weights)}"
        )
    dtype = choose_dtype("auto" if named["precision"] == "bfloat16" else "float32", device)
    encoder = kind(weights, dtype).to(device)
    if encoder.weights_sha256 != named["weights_sha256"]:
        raise ArtifactError(
            f"the weights {shown(weights)} of {named['encoder']} here have hash {encoder.weights_sha256[:12]}, the "
            f"captioner was trained on {named['weights_sha256'][:12]}: get the same file, or train again (`dvc repro`)"
        )
    try:
        encoder.tune(tuned)
    except ValueError as error:
        raise ArtifactError(f"the tuned weights do not fit the encoder ({error}): {CURE}") from error
    return encoder
