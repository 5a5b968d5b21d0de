"""kill -9 at random moments of `dvc repro`, and what must be true afterwards. Tests use a few; this is for all of them:

    python tests/kills.py 50 --seed 1 > reports/kills.md

A chain kills `dvc repro` with all its children several times in a row, each time at a moment drawn from the seed, lets
the last one run to its end, and compares everything with a run that nobody disturbed. DVC itself writes its
.dvc/tmp/rwlock in place: killed in that moment it leaves the file cut, refuses it from then on, and must be helped by
deleting it, as README says. How often that was so is counted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipelines import DVC, dvc, environment, make_repository, outputs_apart, runs, tiny, versions

STAGES = ("fetch", "vocab", "features", "train", "evaluate", "register")


def kill(root: Path, after: float) -> str | None:
    """Starts `dvc repro`, kills it with its children after some seconds; the stage that was at work, None if over."""
    process = subprocess.Popen(
        [DVC, "repro"],
        cwd=root,
        env=environment(root),
        stdin=subprocess.DEVNULL,
        stdout=(root / ".dvc" / "repro.log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        assert process.wait(timeout=after) == 0, (root / ".dvc" / "repro.log").read_text()
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        said = (root / ".dvc" / "repro.log").read_text()
        begun = [stage for stage in STAGES if f"Running stage '{stage}'" in said]
        return begun[-1] if begun else "dvc"
    return None


def helped(root: Path) -> int:
    """Deletes DVC's own note of who reads and writes what, where a kill has cut it; returns 1 if it had to."""
    try:
        json.loads((root / ".dvc" / "tmp" / "rwlock").read_text())
    except FileNotFoundError:
        return 0
    except json.JSONDecodeError:
        (root / ".dvc" / "tmp" / "rwlock").unlink()
        return 1
    return 0


def undisturbed(root: Path, template: Path) -> float:
    """A repository in which `dvc repro` ran to its end; returns how many seconds that took."""
    make_repository(root, template, tiny=tiny(), other=tiny(seed=7))
    started = time.monotonic()
    dvc(root, "repro")
    return time.monotonic() - started


def differences(root: Path, straight: Path, profile: str = "tiny") -> Iterator[str]:
    """What is not as after an undisturbed run."""
    yield from outputs_apart(root, straight, profile)
    finished = [run["id"] for run in runs(root) if run["status"] == "FINISHED"]
    if len(finished) != 1:
        yield f"{len(finished)} finished runs"
    if running := [run["id"] for run in runs(root) if run["status"] == "RUNNING"]:
        yield f"{len(running)} runs that nobody runs are RUNNING"
    if [(each["version"], each["run"], each["status"]) for each in versions(root)] != [(1, *finished, "READY")]:
        yield f"versions are {versions(root)}"


def chain(root: Path, template: Path, seconds: float, kills: int, chance: random.Random) -> tuple[Counter[str], int]:
    """Kills a fresh pipeline `kills` times, then lets it end; returns how often each stage was at work, and how often
    DVC had to be helped."""
    make_repository(root, template, tiny=tiny(), other=tiny(seed=7))
    hit: Counter[str] = Counter()
    cut = 0
    while hit.total() < kills:
        # Each kill leaves about half of what was left, so moments are drawn from what is left of the whole.
        left = seconds * (1 - hit.total() / kills)
        stage = kill(root, after=chance.uniform(0.5, max(left, 0.2 * seconds)))
        if stage is None:  # it was quicker: from the beginning, so that every kill is one
            return hit, cut
        hit[stage] += 1
        cut += helped(root)
    dvc(root, "repro")
    return hit, cut


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int, help="how many moments, in chains of five")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    hit: Counter[str] = Counter()
    wrong: list[str] = []
    cut = 0
    with tempfile.TemporaryDirectory() as folder:
        template = Path(folder) / "template.db"
        code = f"from mlflow import MlflowClient as C; C('sqlite:///{template}').search_experiments()"
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        straight = Path(folder) / "straight"
        seconds = undisturbed(straight, template)
        number = 0
        while hit.total() < options.kills:
            root = Path(folder) / f"chain{number}"
            try:
                those, helps = chain(root, template, seconds, min(5, options.kills - hit.total()), chance)
            except AssertionError as error:  # a `dvc repro` that did not end well though nobody killed it
                wrong.append(f"chain {number} failed: {error}")
                break
            hit, cut = hit + those, cut + helps
            found = [f"chain {number}: {sentence}" for sentence in differences(root, straight)]
            wrong += found
            print(f"chain {number}: {hit.total()} kills, {found or 'as undisturbed'}", file=sys.stderr, flush=True)
            number += 1
    print(f"# kill -9 at {hit.total()} random moments of `dvc repro`\n")
    print(f"`python tests/kills.py {options.kills} --seed {options.seed}`; an undisturbed run took {seconds:.0f} s.\n")
    print("| at work when killed | times |\n|---|---:|")
    for stage, times in (("dvc, before its first stage", hit["dvc"]), *((stage, hit[stage]) for stage in STAGES)):
        print(f"| {stage} | {times} |")
    print(
        f"\nAfter each of {number} chains `dvc repro` ran to its end, and everything was compared with the undisturbed"
        " run: every file's bytes but those of run.json, dvc.lock, one finished run, one version.\n"
    )
    print(f"DVC's own .dvc/tmp/rwlock was cut by {cut} of the kills, and deleted.\n")
    print("\n".join(f"- {sentence}" for sentence in wrong) or "No difference.")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
