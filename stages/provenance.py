"""Where a result comes from: the commit, the code that differs from it, dvc.lock's md5 sums, the machine.

Read from git, dvc.lock and the operating system; nothing here knows how it is recorded.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

# What decides, beside settings and data, what a stage does. params.yaml and dvc.lock are not here: an experiment
# changes both before anything is committed, and their contents are recorded value by value with the run.
CODE = ("stages", "dvc.yaml", "pyproject.toml", "requirements.lock")
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "nltk", "pycocoevalcap", "safetensors", "dvc", "mlflow")


@dataclass(frozen=True, slots=True)
class Tracked:
    """A file or folder as dvc.lock names it: path from the repository's root, md5 (ends in `.dir`: a folder), bytes."""

    path: str
    md5: str
    bytes: int


Lock = dict[str, dict[str, list[Tracked]]]  # stage -> "deps" or "outs" -> what dvc.lock says of them


def commit() -> str:
    """The commit that is checked out, 40 hex digits; "" where there is no git or no commit."""
    return _git("rev-parse", "HEAD").strip()


def changed_code() -> list[str]:
    """Files of CODE, from the root, that differ from the commit; new files that git does not know count too."""
    status = _git("status", "--porcelain", "-z", "--untracked-files=all", "--no-renames", "--", *CODE)
    return [entry[3:] for entry in status.split("\0") if entry]


def locked(path: str | Path = "dvc.lock") -> Lock:
    """dvc.lock as {stage: {"deps": [...], "outs": [...]}}; {} where there is none.

    While a stage runs under `dvc repro`, the stages before it are already in there with what they have just made.
    """
    try:
        document: dict[str, Any] = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        return {}
    return {
        stage: {
            kind: [
                Tracked(each["path"], each["md5"], each.get("size", 0)) for each in entry.get(kind, ()) if "md5" in each
            ]
            for kind in ("deps", "outs")
        }
        for stage, entry in document.get("stages", {}).items()
    }


def uncommitted(stages: Sequence[str], lock: Lock, at: str = "HEAD") -> list[str]:
    """What of the code that `lock` says `stages` ran is not, byte for byte, in the commit `at`; [] is what one wants.

    Code that was changed, run and then committed as it was run is committed: nothing has to run again for it.
    """
    if not commit():
        return ["there is no git commit"]
    if absent := [stage for stage in stages if stage not in lock]:
        return [f"dvc.lock does not know {', '.join(absent)}"]
    code = {dep.path: dep.md5 for stage in stages for dep in lock[stage]["deps"] if dep.path.startswith("stages/")}
    return [path for path, md5 in sorted(code.items()) if committed_md5(path, at) != md5]


def committed_md5(path: str, at: str) -> str:
    """md5 of a file's bytes in the commit `at`; "" where it is not in there."""
    # What `at` is may be a stranger's word, and git has options that write files.
    shown = subprocess.run(["git", "show", "--end-of-options", f"{at}:./{path}"], capture_output=True, check=False)
    return hashlib.md5(shown.stdout, usedforsecurity=False).hexdigest() if shown.returncode == 0 else ""


def md5(path: Path) -> str:
    """md5 as DVC counts it: of a file's bytes; of a folder, of the JSON list of its files, with `.dir` at the end."""
    if path.is_dir():
        files = sorted((each.relative_to(path).as_posix(), each) for each in path.rglob("*") if each.is_file())
        listed = [{"md5": md5(each), "relpath": name} for name, each in files]
        return f"{hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest()}.dir"
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def inputs(profile: str) -> list[Tracked]:
    """The data that a model of `profile` is trained on: what the stages before train have written below data/."""
    lock = locked()
    outs = [out for stage in ("fetch", "vocab", "features") for out in lock.get(stage, {}).get("outs", ())]
    return [out for out in outs if out.path.startswith(f"data/{profile}/")]


def packages() -> str:
    """Versions of what moves numbers: `python 3.11.2, torch 2.14.1, ...`."""
    names = [("python", platform.python_version())]
    for name in PACKAGES:
        try:
            names.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(f"{name} {version}" for name, version in names)


def hardware() -> str:
    """Processor, cores that this process may use, memory: `AMD EPYC 7B13, 2 cores, 7.8 GiB, Linux x86_64`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{_processor()}, {cores} cores, {memory:.1f} GiB, {platform.system()} {platform.machine()}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def _git(*arguments: str) -> str:
    """What git prints of the code that runs; "" where git is missing or refuses, since a model may be trained outside a
    repository."""
    root = Path() if Path("stages").is_dir() else Path(__file__).resolve().parents[1]  # a stage may run in any folder
    try:
        return subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
