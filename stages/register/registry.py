"""Versions of one registered model in MLflow: found by their weights, never made twice, named by two aliases.

`champion` is what gets served, `challenger` the newest version that the gate kept back. Every move of an alias leaves a
line in the registered model's tags `history.0001`, `history.0002`, ...: when, which version, whereto, why.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stages import tracking
from stages.files import repository

FOLDER = "model"  # of a run's artifacts, in which the version lies
RECORD = "record"  # below it: what the version was judged by


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    model: str
    number: int
    run_id: str
    tags: Mapping[str, str]

    @property
    def name(self) -> str:
        return f"version {self.number}"

    @property
    def veto(self) -> str:
        """Why a person does not want it as champion; "" where nobody said so."""
        return self.tags.get("veto") or self.tags.get("demoted") or ""


class Registry:
    """The versions of the registered model `model` in the store. Every method may raise StoreError."""

    def __init__(self, model: str) -> None:
        self.model = model
        self._client = tracking.store()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lets one process of this machine at a time in: what it reads of the registry stays so until it writes."""
        folder = repository() / ".dvc" / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        with tracking.locked(folder / f"register-{self.model}"):
            yield

    def having(self, tag: str, value: str) -> list[Version]:
        """The versions whose `tag` is `value`, oldest first."""
        found = tracking.every(partial(self._client.search_model_versions, f"name = '{self.model}'"))
        same = [self._version(each) for each in found if each.tags.get(tag) == value]
        return sorted(same, key=lambda version: version.number)

    def find(self, file_sha256: str) -> Version | None:
        """The version that is this very captioner, the oldest where there are several. Its weights alone do not make
        it: with other words or decoding it says something else."""
        return next(iter(self.having("file_sha256", file_sha256)), None)

    def get(self, number: int | str) -> Version:
        """The version of this number. Raises StoreError where there is none."""
        with tracking.problems():
            return self._version(self._client.get_model_version(self.model, str(number)))

    def aliases(self) -> dict[str, int]:
        """Version numbers by alias; {} where the model is not known."""
        registered = self._registered()
        return {alias: int(number) for alias, number in registered.aliases.items()} if registered else {}

    def veto(self) -> str:
        """Why a person wants no new champion of this model at all; "" where nobody said so."""
        registered = self._registered()
        return str(registered.tags.get("veto", "")) if registered else ""

    def add(self, run: tracking.Run, folder: Path, tags: Mapping[str, str], card: str) -> Version:
        """Copies `folder` into the run and makes it a version, in this order: a version is whole from its first moment.
        tags must name `file_sha256`."""
        with tracking.problems():
            if self._registered() is None:
                self._client.create_registered_model(self.model)
            self._client.log_artifacts(run.id, str(folder), FOLDER)
            source = f"{self._client.get_run(run.id).info.artifact_uri}/{FOLDER}"
            made = self._client.create_model_version(self.model, source, run.id, dict(tags), description=card)
            found = self.find(tags["file_sha256"])
            assert found is not None
            if found.number != int(made.version):  # another machine was quicker
                self._client.delete_model_version(self.model, made.version)
        return found

    def keep(self, version: Version, files: Mapping[str, Path]) -> None:
        """Copies what the version is judged by into it, under the names given."""
        with tracking.problems(), tempfile.TemporaryDirectory() as folder:
            for name, path in files.items():
                Path(folder, name).write_bytes(path.read_bytes())
            self._client.log_artifacts(version.run_id, folder, f"{FOLDER}/{RECORD}")

    @contextmanager
    def kept(self, version: Version) -> Iterator[Path]:
        """A folder with what `keep` copied, as long as the block lasts."""
        with tempfile.TemporaryDirectory() as folder:
            with tracking.problems():
                path = self._client.download_artifacts(version.run_id, f"{FOLDER}/{RECORD}", folder)
            yield Path(path)

    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Writes tags of a version."""
        with tracking.problems():
            for key, value in tags.items():
                if version.tags.get(key) != value:
                    self._client.set_model_version_tag(self.model, str(version.number), key, value)

    def name(self, alias: str, version: Version, why: str) -> None:
        """Gives an alias to a version and notes it in the history; idle where the version has it."""
        if self.aliases().get(alias) == version.number:
            return
        self._note(version, alias, why)
        with tracking.problems():
            self._client.set_registered_model_alias(self.model, alias, str(version.number))

    def unname(self, alias: str) -> None:
        """Takes an alias away from whichever version has it."""
        with tracking.problems():
            self._client.delete_registered_model_alias(self.model, alias)

    def demote(self, why: str) -> tuple[Version, Version | None]:
        """Takes `champion` from its version for good and gives it back to the one before that nobody objects to.

        Returns both; None where there is no such version. Raises ValueError where there is no champion.
        """
        number = self.aliases().get("champion")
        if number is None:
            raise ValueError(f"{self.model} has no champion: there is nothing to demote")
        demoted = self.get(number)
        self.tag(demoted, {"demoted": why})
        self._note(demoted, "demoted", why)
        for former in self._former_champions():
            if former != number and (found := self._usable(former)):
                self.name("champion", found, f"{demoted.name} was demoted")
                return demoted, found
        self.unname("champion")
        return demoted, None

    def history(self) -> list[str]:
        """All moves of aliases, oldest first: `2026-02-03 04:05:06 UTC | version 3 | champion | why`."""
        registered = self._registered()
        tags = registered.tags if registered else {}
        return [str(value) for key, value in sorted(tags.items()) if key.startswith("history.")]

    def _former_champions(self) -> Iterator[int]:
        for line in reversed(self.history()):
            if moved := re.match(r"[^|]+ \| version (\d+) \| champion \|", line):
                yield int(moved[1])

    def _usable(self, number: int) -> Version | None:
        """The version of this number, unless somebody deleted it or does not want it."""
        with tracking.problems():
            found = self._client.search_model_versions(f"name = '{self.model}' and version_number = '{number}'")
        versions = [version for each in found if not (version := self._version(each)).veto]
        return versions[0] if versions else None

    def _note(self, version: Version, alias: str, why: str) -> None:
        lines = self.history()
        line = f"{version.name} | {alias} | {why}"
        if lines and lines[-1].endswith(f" | {line}"):
            return  # a process that was killed between the note and the move
        now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        with tracking.problems():
            self._client.set_registered_model_tag(self.model, f"history.{len(lines) + 1:04d}", f"{now} | {line}")

    def _registered(self) -> Any:
        with tracking.problems():
            found = self._client.search_registered_models(f"name = '{self.model}'")
            return found[0] if found else None

    def _version(self, stored: Any) -> Version:
        return Version(self.model, int(stored.version), stored.run_id, dict(stored.tags))
