"""Reads  models/P/captioner.safetensors, models/P/run.json, data/P/captions_test.json, reports/P/fetch.json,
       reports/P/metrics.json, reports/P/captions_test.json.
Writes reports/P/registration.json, and in MLflow a version of the model `register.model` with its alias.
Why    a model becomes the one that is served only by a gate that anybody can recompute, never by being the newest.

    python -m stages.register                             registers; a version that was kept back is judged again
    python -m stages.register --demote --because "..."    takes `champion` away and gives it back to the one before
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stages import params, provenance, rim, tracking
from stages.evaluate.results import read_results
from stages.fetch.captions import read_captions
from stages.files import fingerprint, read_json, sha256, write_json
from stages.register.card import floors, write_card
from stages.register.gate import Candidate, Verdict, judge
from stages.register.package import build
from stages.register.registry import Registry, Version
from stages.register.settings import Settings
from stages.scorers.score import score
from stages.train.artifact import read_metadata

MAKERS = ("fetch", "vocab", "features", "train", "evaluate")  # whose code must be committed


@dataclass(frozen=True)
class Model:
    """The trained model at hand, and what was measured of it."""

    profile: str
    captioner: Path
    metadata: Mapping[str, Any]
    source: str  # of its pictures
    metrics: Mapping[str, Any]
    captions: Mapping[int, str]  # of the test pictures, by id
    references: Mapping[int, Sequence[str]]
    record: Mapping[str, Path]  # the files behind all this, by the names under which the version keeps them

    @property
    def weights(self) -> str:
        return str(self.metadata["weights_sha256"])

    @cached_property
    def file(self) -> str:
        """Hash of the captioner's bytes."""
        return sha256(self.captioner)

    @property
    def pictures(self) -> str:
        """Hash of what it was measured on."""
        return fingerprint(sorted((number, list(texts)) for number, texts in self.references.items()))


def main() -> None:
    options = parser().parse_args()
    if options.because and not options.demote:
        raise ValueError("--because says why a champion is demoted: add --demote, or leave it out")
    profile, settings = params.read("register")
    if options.demote:
        demote(settings, options.because or "no reason given")
    else:
        register(profile, settings)


def parser() -> argparse.ArgumentParser:
    """The command line; DVC uses none of it."""
    found = rim.parser("python -m stages.register", __doc__)
    found.add_argument("--demote", action="store_true", help="take `champion` from its version, for good")
    found.add_argument("--because", metavar="TEXT", help="why it is demoted, for the history")
    return found


def demote(settings: Settings, why: str) -> None:
    """Takes the alias `champion` away and says who has it now."""
    registry = Registry(settings.model)
    with registry.alone():
        demoted, former = registry.demote(why)
    now = f"champion is {former.name} again" if former else "there is no champion now"
    print(f"{settings.model} {demoted.name} is no longer champion ({why}); {now}")


def register(profile: str, settings: Settings) -> None:
    """Makes the trained model a version, once, and has the gate decide on its alias."""
    model = read(profile)
    run_file = Path("models") / profile / "run.json"
    with tracking.reopen(run_file, "register", settings.model_dump()) as record:
        record.score(model.metrics)  # where evaluate could not write them, or the run was rebuilt
        registry = Registry(settings.model)
        with registry.alone():
            version = registry.find(model.file) or add(registry, record, model)
            verdict = settle(registry, version, model)
        record.tag({"register.version": version.number, "register.verdict": verdict.sentence})
    write_json(
        Path("reports") / profile / "registration.json",
        {
            "model": settings.model,
            "weights_sha256": model.weights,
            "alias": verdict.alias,
            "verdict": verdict.sentence,
            "clauses": verdict.clauses,
        },
    )
    print(f"{verdict.sentence}\nIt is {version.name} of {settings.model} in {tracking.place()}")


def read(profile: str) -> Model:
    """Everything that register reads, but for the run. Raises ValueError where the scores are of another captioner."""
    reports = Path("reports") / profile
    captioner = Path("models") / profile / "captioner.safetensors"
    metadata = read_metadata(captioner)
    for measured in provenance.locked().get("evaluate", {}).get("deps", ()):
        if Path(measured.path) == captioner and measured.md5 != provenance.md5(captioner):
            raise ValueError(f"{reports / 'metrics.json'} is of another captioner than {captioner}: run `dvc repro`")
    record = {name: reports / name for name in ("metrics.json", "captions_test.json", "fetch.json")}
    record |= {name: Path(name) for name in ("dvc.lock", "dvc.yaml", "params.yaml") if Path(name).exists()}
    pictures = read_captions(Path("data") / profile / "captions_test.json")
    references = {picture.id: picture.captions for picture in pictures}
    return Model(
        profile,
        captioner,
        metadata,
        read_json(record["fetch.json"])["source"],
        read_json(record["metrics.json"]),
        read_results(record["captions_test.json"], references),
        references,
        record,
    )


def add(registry: Registry, record: tracking.Run, model: Model) -> Version:
    """Packs the model and makes it a version."""
    commit = provenance.commit()
    card = write_card(
        registry.model, model.profile, model.source, model.metadata, model.metrics, commit, registered=True
    )
    tags = {
        "weights_sha256": model.weights,
        "file_sha256": model.file,
        "profile": model.profile,
        "cider": f"{model.metrics['test']['cider']:.4f}",
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        build(folder, model.captioner, card)
        return registry.add(record, folder, tags, card)


def settle(registry: Registry, version: Version, model: Model) -> Verdict:
    """Has the gate judge a version, and gives it the alias that it deserves."""
    registry.keep(version, model.record)
    uncommitted = provenance.uncommitted(MAKERS, provenance.locked())
    veto = version.veto or registry.veto()
    judged = fingerprint(*(model.record[name] for name in ("metrics.json", "captions_test.json")), uncommitted, veto)
    champion = registry.aliases().get("champion")
    if champion == version.number:
        verdict = already_champion(version, judged)
    else:
        new = Candidate(
            registry.model,
            model.source,
            tuple(uncommitted),
            veto,
            model.pictures,
            model.metrics["test"]["decoding"],
            cider(model.captions, model.references),
            floors(model.metrics["test"]),
        )
        verdict = judge(new, opponent(registry, registry.get(champion), model) if champion else None)
    registry.tag(
        version,
        {
            "commit": provenance.commit() or "none",
            "code": "clean" if not uncommitted else f"dirty: {', '.join(uncommitted)}"[:5000],
            "pictures_sha256": model.pictures,
            "judged": judged,
            "verdict": verdict.sentence,
            "clauses": json.dumps(verdict.clauses),
        },
    )
    registry.name(verdict.alias, version, verdict.sentence)
    if verdict.alias == "champion" and registry.aliases().get("challenger") == version.number:
        registry.unname("challenger")
    return verdict


def already_champion(version: Version, judged: str) -> Verdict:
    """What stands for a champion that is registered again: its verdict, unless something about it is new."""
    if version.tags.get("judged") == judged:
        return Verdict("champion", version.tags["verdict"], json.loads(version.tags["clauses"]))
    return Verdict("champion", f"{version.model} stays champion: this very captioner, measured again.")


def opponent(registry: Registry, champion: Version, model: Model) -> Candidate:
    """The champion as the gate sees it: the captions that it was judged by, scored against today's references."""
    with registry.kept(champion) as folder:
        decoding = read_json(folder / "metrics.json")["test"]["decoding"]
        pictures, scores = champion.tags.get("pictures_sha256", ""), {}
        if pictures == model.pictures:
            scores = cider(read_results(folder / "captions_test.json", model.references), model.references)
    return Candidate(champion.name, "", (), "", pictures, decoding, scores)


def cider(captions: Mapping[int, str], references: Mapping[int, Sequence[str]]) -> dict[int, float]:
    """CIDEr-D of each picture's caption."""
    scores = score(captions, references, with_meteor=False)
    return dict(zip(scores.pictures, scores.cider.tolist(), strict=True))


if __name__ == "__main__":
    rim.run(main)
