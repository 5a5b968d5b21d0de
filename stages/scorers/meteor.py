"""METEOR 1.5 (Denkowski and Lavie 2014) by its authors' jar, which comes with pycocoevalcap and needs Java.

The jar is asked for what it found in each picture (words, matches, chunks); the score is then a formula over sums of
these, so that a resample of pictures can be scored without asking again.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
COLUMNS = 23
START_SECONDS = 120.0  # given to the jar before its first caption; a busy machine takes half a minute
# English, tuned for ranking, in the order of the paper's table: the jar's defaults for `-l en`.
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.20, 0.60, 0.75
WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # of matches: exact, stem, synonym, paraphrase


class MeteorUnavailable(RuntimeError):
    """METEOR cannot be had here; the message is the reason and the cure."""


def statistics(captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Floats:
    """What METEOR needs of each picture, (N, 23), from tokens of captions and of their references.

    One Java process of up to 2 GB: six seconds to start, then about 2 ms a picture. Raises MeteorUnavailable with the
    reason: no Java, no jar, or what went wrong in it.
    """
    java, spec = shutil.which("java"), find_spec("pycocoevalcap")
    if java is None:
        raise MeteorUnavailable("there is no Java on PATH; install one (apt-get install default-jre-headless)")
    if spec is None or not spec.submodule_search_locations:
        raise MeteorUnavailable("pycocoevalcap, which brings its jar, is not installed")
    jar = Path(spec.submodule_search_locations[0]) / "meteor" / "meteor-1.5.jar"
    if not jar.is_file():
        raise MeteorUnavailable(f"{jar} is missing; install pycocoevalcap again")
    command = [java, "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    lines = "".join(f"SCORE ||| {_line(caption, own)}\n" for caption, own in zip(captions, references, strict=True))
    try:
        # The whole conversation at once: nothing to dead-lock, and the process is gone whatever happens.
        seconds = START_SECONDS + 0.1 * len(captions)
        done = subprocess.run(command, input=lines.encode(), capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise MeteorUnavailable(f"its jar did not answer within {error.timeout:.0f} s") from None
    except OSError as error:
        raise MeteorUnavailable(f"{java} did not start: {error}") from None
    answers = done.stdout.decode(errors="replace").splitlines()
    try:
        numbers = np.array([answer.split() for answer in answers], np.float64).reshape(-1, COLUMNS)
    except ValueError:
        numbers = np.empty((0, COLUMNS))
    if done.returncode or len(numbers) != len(captions):
        said = (done.stderr.decode(errors="replace").strip() or "\n".join(answers[-1:])).splitlines()
        raise MeteorUnavailable(
            f"its jar answered {len(numbers)} of {len(captions)} captions and ended with {done.returncode}: "
            f"{said[-1] if said else 'no message'}"
        )
    # As the jar does when it sums: a caption that is a reference word for word counts as unbroken.
    same = (numbers[:, 20] == 1) & (numbers[:, 21:23] == numbers[:, 0:2]).all(axis=1)
    numbers[same, 20] = 0
    return numbers


def meteor(totals: Floats) -> Floats:
    """METEOR, (...), of summed statistics (..., 23)."""
    totals = np.asarray(totals, np.float64)
    lengths, functions = totals[..., 0:2], totals[..., 2:4]  # of caption and reference
    matches = totals[..., 4:20].reshape(*totals.shape[:-1], 4, 2, 2)  # kind of match, content or function, side
    content, function = np.moveaxis((WEIGHTS[:, None, None] * matches).sum(axis=-3), -2, 0)
    share = _ratio(DELTA * content + (1 - DELTA) * function, DELTA * (lengths - functions) + (1 - DELTA) * functions)
    precision, recall = share[..., 0], share[..., 1]
    mean = _ratio(precision * recall, ALPHA * precision + (1 - ALPHA) * recall)
    chunks, matched = totals[..., 20], totals[..., 21:23].mean(axis=-1)
    return mean * (1 - GAMMA * _ratio(chunks, matched) ** BETA)


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.zeros_like(below), where=below > 0)


def _line(caption: Sequence[str], references: Sequence[Sequence[str]]) -> str:
    """References, then the caption, between the bars that separate them; bars of their own are taken out."""
    return " ||| ".join(" ".join(tokens).replace("|||", "") for tokens in [*references, caption])
