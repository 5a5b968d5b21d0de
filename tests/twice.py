"""Two clones of the last commit, `dvc repro` in each, and what is not the same in both:

    python tests/twice.py > reports/twice.md

The profile of params.yaml with all its pictures and epochs; a test does it with few (test_pipeline.py).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from kills import differences
from pipelines import REPOSITORY, dvc, locked, search
from stores import git


def made(root: Path) -> tuple[float, float]:
    """Clones the repository and has everything made; seconds that this took, and that it took to find nothing to do."""
    git(REPOSITORY, "clone", "--quiet", str(REPOSITORY), str(root))
    seconds = []
    for stages in (6, 0):
        began = time.monotonic()
        said = dvc(root, "repro", OMP_NUM_THREADS=str(torch.get_num_threads()), PATH=search())
        assert said.count("Running stage") == stages
        seconds.append(time.monotonic() - began)
        print(f"{root.name}: {seconds[-1]:.1f} s", file=sys.stderr, flush=True)
    return seconds[0], seconds[1]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    profile = yaml.safe_load((REPOSITORY / "params.yaml").read_text())["profile"]
    committed = locked(REPOSITORY)
    with tempfile.TemporaryDirectory() as folder:
        roots = [Path(folder) / name for name in ("one", "other")]
        seconds = [made(root) for root in roots]
        one, other = map(locked, roots)
        wrong = [*differences(roots[1], roots[0], profile)]
    (first, idle), (second, again) = seconds
    print(f"# `dvc repro` in two clones of {git(REPOSITORY, 'rev-parse', '--short', 'HEAD').strip()}\n")
    print(f"`python tests/twice.py`: profile {profile}, {torch.get_num_threads()} of {os.cpu_count()} processors.")
    print(f"{first:.0f} s and {second:.0f} s; with nothing to do, {idle:.1f} s and {again:.1f} s.\n")
    print("| output | one | other | in the committed dvc.lock |\n|---|---|---|---|")
    for path in one:
        print(f"| `{path}` | {one[path][:8]} | {other[path][:8]} | {committed.get(path, '')[:8]} |")
    print(
        "\nmd5 from dvc.lock; the files themselves and what MLflow holds were compared, too. run.json, which holds the"
    )
    print("run's id and times, differs.\n")
    print("\n".join(f"- {sentence}" for sentence in wrong) or "No other difference.")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
