"""The captioners that a server offers: a list fixed when it starts. A client names one of the list, never a file."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages import tracking
from stages.evaluate.captioner import Captioner
from stages.features.preprocessing import Preprocessing
from stages.register.registry import FOLDER, Registry
from stages.train.artifact import ArtifactError, read_metadata
from stages.train.decoders import DECODERS

URI = "models:/"  # how MLflow spells a version: models:/NAME@ALIAS or models:/NAME/NUMBER


@dataclass(frozen=True)
class Choice:
    """One captioner that may be chosen."""

    name: str  # what clients call it
    path: Path
    version: str  # where it comes from: a file, or a version of the registry
    card: str  # Markdown, "" where there is none
    metadata: dict[str, Any]  # of the artifact

    @classmethod
    def of(cls, name: str, path: Path, version: str = "", card: str = "") -> Choice:
        """Reads the artifact's metadata. Raises ArtifactError where it is no captioner."""
        here = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name  # not where home lies
        return cls(name, path, version or str(here), card, read_metadata(path))

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(**self.metadata["encoder"]["preprocessing"])

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of a picture that the captioner sees: left, top, right, bottom, as shares of its sides."""
        left, top, right, bottom = self.preprocessing.box(width, height)
        return (left / width, top / height, right / width, bottom / height)

    @property
    def attends(self) -> bool:
        """Whether it can say where it looked."""
        return DECODERS[self.metadata["shape"]["decoder"]].grid


class Shelf:
    """The choices by name, the first being the default. A captioner is loaded when it is first asked for, and stays."""

    def __init__(self, choices: Sequence[Choice], device: str = "auto") -> None:
        if not choices:
            raise ValueError(
                "no model below models/: `dvc pull` brings trained ones, `dvc repro` trains one, --model FILE names one"
            )
        self.choices: dict[str, Choice] = {}
        for choice in choices:
            name, number = choice.name, 2
            while name in self.choices:
                name, number = f"{choice.name}-{number}", number + 1
            self.choices[name] = choice
        self.default = next(iter(self.choices))
        self._device = device
        self._loaded: dict[str, Captioner] = {}
        self._turn = threading.Lock()

    def load(self, name: str) -> Captioner:
        """The captioner of this name. Raises ArtifactError where its file has gone or changed since the start."""
        with self._turn:
            if name not in self._loaded:
                captioner = Captioner.load(self.choices[name].path, device=self._device)
                if captioner.artifacts[0].weights_sha256 != self.choices[name].metadata["weights_sha256"]:
                    raise ArtifactError(f"{self.choices[name].path} has changed since the server started: restart it")
                self._loaded[name] = captioner
            return self._loaded[name]


def named(models: Sequence[str], folder: Path) -> list[Choice]:
    """The choices for what a command line names: files, and versions of the registry as `models:/NAME@champion` or
    `models:/NAME/3`, whose files are copied into `folder`. Raises ArtifactError or StoreError."""
    return [fetched(model, folder) if model.startswith(URI) else beside(Path(model)) for model in models]


def around(files: Sequence[Path], folder: Path) -> list[Choice]:
    """What there is to choose from when nothing is named: `files` and the registry's champions, copied into `folder`.
    What cannot be read is told on stderr and left out."""
    found: list[Choice] = []
    for path in files:
        try:
            found.append(beside(path))
        except ArtifactError as error:
            print(f"left out: {error}", file=sys.stderr)
    try:
        uris = champions()
    except tracking.StoreError as error:
        print(f"the registry's champions are left out: {error}", file=sys.stderr)
        return found
    for uri in uris:
        try:
            found.append(fetched(uri, folder))
        except ValueError as error:  # a shared registry has models of others, too
            print(f"{uri} is left out: {error}", file=sys.stderr)
    return found


def beside(path: Path) -> Choice:
    """A file as a choice: called like its profile, or like itself where it is a published one; its card lies beside it
    or, for a trained one, is the score card of its profile."""
    trained = path.name == "captioner.safetensors"
    name = path.resolve().parent.name if trained else path.stem
    card = path.parent.parent.parent / "reports" / name / "scorecard.md" if trained else path.with_suffix(".md")
    return Choice.of(name, path, card=card.read_text(encoding="utf-8") if card.is_file() else "")


def champions() -> list[str]:
    """All champions of the registry, as models:/NAME@champion; none where there is no store. Raises StoreError."""
    if tracking.absent():
        return []
    models = tracking.every(tracking.store().search_registered_models)
    return [f"{URI}{model.name}@champion" for model in models if "champion" in model.aliases]


def fetched(uri: str, folder: Path) -> Choice:
    """A version of the registry as a choice, its captioner copied into `folder`. Raises StoreError where there is no
    such version, ArtifactError where it holds no captioner, ValueError where there is no store or no such alias."""
    if tracking.absent():
        raise ValueError(
            f"{uri}: there is no store at {tracking.place()}: run in the repository, or set MLFLOW_TRACKING_URI"
        )
    model, at, alias = uri.removeprefix(URI).partition("@")
    if not at:
        model, _, alias = model.rpartition("/")
    registry = Registry(model)
    aliases = registry.aliases()
    number = str(aliases.get(alias, alias))
    if not number.isdecimal():
        known = " and ".join(aliases) or "no alias"
        raise ValueError(
            f"{uri}: the registry in {tracking.place()} knows {known} of {model or 'it'}: name one of its versions"
        )
    version = registry.get(number)
    with tracking.problems():
        client = tracking.store()
        path = client.download_artifacts(version.run_id, f"{FOLDER}/artifacts/captioner.safetensors", str(folder))
        card = client.get_model_version(model, number).description or ""
    found = Path(path).rename(folder / f"{model}-{number}.safetensors")
    return Choice.of(f"{model}{at or '/'}{alias}", found, f"{version.name} of {model}", card)
