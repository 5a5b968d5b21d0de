"""Where a model version comes from: `python -m stages.lineage VERSION` walks its chain and checks that each link holds.

    python -m stages.lineage 3                                    version 3 of the model that params.yaml names
    python -m stages.lineage captioner-flickr8k@champion          or NAME/3, or models:/NAME/3
    python -m stages.lineage models/flickr8k/captioner.safetensors

    file -> version -> weights -> run -> settings, score card -> commit -> dvc.lock -> data

Every link is held against bytes where they are at hand, not only against what was written down. Exits with 1 where one
is broken, and names it. Data that is not on this machine breaks nothing; its md5 says what to fetch.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from stages import params, provenance, rim, tracking
from stages.files import read_json, sha256
from stages.provenance import Lock
from stages.register.registry import FOLDER, Registry, Version
from stages.train.artifact import read_metadata

MAKERS = ("fetch", "vocab", "features", "train", "evaluate")


class Link(NamedTuple):
    """One step of the chain; `broken` says what does not hold, "" where it does."""

    name: str
    says: str
    broken: str = ""


def main() -> None:
    options = parser().parse_args()
    broken = []
    for link in walk(options.version):
        print(f"{'BROKEN' if link.broken else 'ok':8}{link.name:24}{link.broken or link.says}", flush=True)
        if link.broken:
            broken.append(f"{link.name}: {link.broken}")
    if broken:
        raise ValueError("\n".join((f"{len(broken)} of the chain's links do not hold:", *broken)))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = rim.parser("python -m stages.lineage", __doc__)
    found.add_argument("version", metavar="VERSION", help="a number, NAME/NUMBER, NAME@ALIAS or a captioner's file")
    return found


def walk(asked: str) -> Iterator[Link]:
    """The links of the chain, each as soon as it is checked. Raises ValueError where there is no such version, or no
    store."""
    if tracking.absent():
        raise ValueError(f"there is no store at {tracking.place()}: run in the repository, or set MLFLOW_TRACKING_URI")
    if Path(asked).is_file():
        version, link = _of_file(Path(asked))
        yield link
    else:
        version = _named(asked)
        yield Link("version", _about(version))
    with tempfile.TemporaryDirectory() as temporary:
        try:
            with tracking.problems():
                folder = Path(tracking.store().download_artifacts(version.run_id, FOLDER, temporary))
        except tracking.StoreError as problem:
            yield Link("version -> its files", "", str(problem))
            return
        yield _weights(version, folder / "artifacts" / "captioner.safetensors")
        record = folder / "record"
        stored = tracking.find(version.run_id)
        if stored is None:
            yield Link("version -> run", "", f"run {version.run_id} is not in {tracking.place()}")
        else:
            about = f"{version.run_id} ({stored.info.run_name}), {stored.info.status}"
            unfinished = "" if stored.info.status == "FINISHED" else f"{about}: it did not finish"
            yield Link("version -> run", about, unfinished)
            yield _settings(version, stored, record / "params.yaml")
            yield _score_card(version, stored, record / "metrics.json")
        yield _commit(version)
        lock = provenance.locked(record / "dvc.lock")
        if not lock:
            yield Link("version -> dvc.lock", "", "it was registered without a dvc.lock: use `dvc repro`")
            return
        yield _code(version, lock)
        yield from _outputs(version, lock, folder)
        yield from _data(version, lock, stored)


# --- which version ----------------------------------------------------------------------------------------------------


def _named(asked: str) -> Version:
    """The version that `3`, `name/3`, `name@alias` or `models:/...` means."""
    text = asked.removeprefix("models:/")
    if re.fullmatch(r"\d+", text):
        _, settings = params.read("register")
        text = f"{settings.model}/{text}"
    if named := re.fullmatch(r"([^/@]+)@([^/@]+)", text):
        aliases = Registry(named[1]).aliases()
        if named[2] not in aliases:
            raise ValueError(f"{named[1]} has no alias {named[2]} in {tracking.place()}: it has {aliases or 'none'}")
        return Registry(named[1]).get(aliases[named[2]])
    if named := re.fullmatch(r"([^/@]+)/(\d+)", text):
        return Registry(named[1]).get(named[2])
    raise ValueError(f"{asked} is no file and no version: write NUMBER, NAME/NUMBER, NAME@ALIAS or a captioner's path")


def _of_file(path: Path) -> tuple[Version, Link]:
    """The version that holds a captioner's weights, and the link between them."""
    weights, file = read_metadata(path)["weights_sha256"], sha256(path)
    models = [each.name for each in tracking.every(tracking.store().search_registered_models)]
    found = [version for model in models for version in Registry(model).having("weights_sha256", weights)]
    if not found:
        raise ValueError(
            f"{path}: no version in {tracking.place()} has its weights {weights[:12]}: "
            "register it (`dvc repro register`)"
        )
    version = next((each for each in found if each.tags.get("file_sha256") == file), found[0])
    changed = f"{path} has the weights of {_about(version)}, but something beside them was changed"
    same = file == version.tags.get("file_sha256")
    return version, Link("file -> version", f"{path} is {_about(version)}", "" if same else changed)


def _about(version: Version) -> str:
    aliases = [alias for alias, number in Registry(version.model).aliases().items() if number == version.number]
    return " ".join((version.model, version.name, *(f"({alias})" for alias in aliases)))


# --- links ------------------------------------------------------------------------------------------------------------


def _weights(version: Version, path: Path) -> Link:
    if not path.is_file():
        return Link("version -> weights", "", f"{path.name} is not among the version's files")
    for what, found, noted in (
        ("file", sha256(path), version.tags.get("file_sha256")),
        ("weights", read_metadata(path)["weights_sha256"], version.tags.get("weights_sha256")),
    ):
        if found != noted:
            return Link("version -> weights", "", f"the {what}'s sha256 is {found}, the version says {noted}")
    return Link("version -> weights", f"sha256 {version.tags['weights_sha256']}")


def _settings(version: Version, stored: Any, path: Path) -> Link:
    name, profile = "run -> settings", version.tags.get("profile", "")
    if not path.is_file():
        return Link(name, "", "params.yaml is not among the version's files")
    block = yaml.safe_load(path.read_text(encoding="utf-8"))[profile]
    wanted = tracking.flat({stage: block[stage] for stage in tracking.TRAINED})
    apart = [
        f"{key} {stored.data.params.get(key)} for {value}" for key, value in wanted if _differs(stored, key, value)
    ]
    return Link(name, f"{len(stored.data.params)} values of profile {profile}", ", ".join(apart))


def _differs(stored: Any, key: str, value: str) -> bool:
    """Whether a run's param is another value than `value`; 1 and 1.0 are the same."""
    noted = stored.data.params.get(key)
    if noted is None or noted == value:
        return noted is None
    try:
        return bool(json.loads(noted) != json.loads(value))
    except ValueError:  # what was text is recorded as it stands
        return True


def _score_card(version: Version, stored: Any, path: Path) -> Link:
    name = "run -> score card"
    if not path.is_file():
        return Link(name, "", "metrics.json is not among the version's files")
    cider = read_json(path)["test"]["cider"]
    with tracking.problems():
        points = tracking.store().get_metric_history(stored.info.run_id, "test.cider")
    known = {point.value for point in points}
    return Link(name, f"test CIDEr {cider:.4f}", "" if cider in known else f"the run does not know test CIDEr {cider}")


def _commit(version: Version) -> Link:
    name, commit = "version -> commit", version.tags.get("commit", "none")
    if not re.fullmatch(r"[0-9a-f]{7,64}", commit):  # anybody may have written it, and git has options that write files
        return Link(name, "", f"{commit!r} is no commit's hash: it was made outside of git, or the tag was changed")
    done = subprocess.run(
        ["git", "show", "--no-patch", "--format=%h %ad %s", "--date=short", commit],
        capture_output=True,
        text=True,
        check=False,
    )
    missing = f"commit {commit} is not in this repository: fetch it, or the model was made outside of git"
    return Link(name, f"{commit[:12]} {done.stdout.strip().partition(' ')[2]}", missing if done.returncode else "")


def _code(version: Version, lock: Lock) -> Link:
    at = version.tags.get("commit", "none")
    apart = provenance.uncommitted(MAKERS, lock, at)
    says = f"the code that dvc.lock names is that of {at[:12]}"
    return Link("commit -> dvc.lock", says, f"{at[:12]} does not hold what ran: {', '.join(apart)}" if apart else "")


def _outputs(version: Version, lock: Lock, folder: Path) -> Iterator[Link]:
    """From dvc.lock to the weights and scores of this version."""
    profile = version.tags.get("profile", "")
    for stage, path, file in (
        ("train", f"models/{profile}/captioner.safetensors", folder / "artifacts" / "captioner.safetensors"),
        ("evaluate", f"reports/{profile}/metrics.json", folder / "record" / "metrics.json"),
        ("evaluate", f"reports/{profile}/captions_test.json", folder / "record" / "captions_test.json"),
    ):
        noted = next((out.md5 for out in lock.get(stage, {}).get("outs", ()) if out.path == path), "nothing")
        found = provenance.md5(file) if file.is_file() else "absent"
        broken = f"dvc.lock says {noted} for {path}, the version's is {found}" if noted != found else ""
        yield Link(f"dvc.lock -> {stage}", f"{found}  {path}", broken)


def _data(version: Version, lock: Lock, stored: Any) -> Iterator[Link]:
    """From dvc.lock to the data: run and lock name the same md5, consumers read what producers wrote, bytes agree."""
    profile = version.tags.get("profile", "")
    made = {out.path: out for stage in MAKERS for out in lock.get(stage, {}).get("outs", ())}
    for stage in MAKERS:
        for dep in lock.get(stage, {}).get("deps", ()):
            if dep.path in made and made[dep.path].md5 != dep.md5:
                told = f"{stage} read {dep.md5}, but {dep.path} is {made[dep.path].md5}: run `dvc repro`"
                yield Link("dvc.lock -> data", "", told)
    noted = {each.dataset.name: each.dataset.digest for each in stored.inputs.dataset_inputs} if stored else {}
    now = {out.path: out.md5 for entry in provenance.locked().values() for out in entry["outs"]}
    for path, out in sorted(made.items()):
        if not path.startswith(f"data/{profile}/"):
            continue
        if noted.get(path) != out.md5:
            yield Link("run -> data", "", f"the run says {noted.get(path)} for {path}, dvc.lock {out.md5}")
        elif now.get(path) != out.md5 or not Path(path).exists():
            yield Link("dvc.lock -> data", f"{out.md5}  {path} (not on this machine, not checked)")
        else:
            found = provenance.md5(Path(path))
            broken = "" if found == out.md5 else f"{path} has md5 {found}, dvc.lock says {out.md5}: it was changed"
            yield Link("dvc.lock -> data", f"{found}  {path}", broken)


if __name__ == "__main__":
    rim.run(main)
