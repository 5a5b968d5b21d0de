"""The gate before `champion`: a pure function of what was measured of a new model and of the champion.

Its clauses, in this order; the first that does not hold decides, and its sentence is the verdict:

    real      it was not trained on drawn scenes, which stand for no photograph
    committed the code that made it is that of the commit
    veto      nobody has said no
    floor     (no champion yet) its CIDEr, at the low end of its interval, is above what needs no trained model
    pictures  (a champion) both were measured on the same pictures, against the same references
    decoding  (a champion) both were decoded with the same settings
    better    (a champion) CIDEr is higher by more than noise: the 95% interval of the difference, over resamples of
              the pictures in pairs (Koehn 2004, section 4), lies above 0
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from stages.scorers import bootstrap
from stages.scorers.bootstrap import Floats

RESAMPLES = 2000  # of the pictures: the ends of a 95% interval then rest on 50 each
SEED = 2004


@dataclass(frozen=True)
class Candidate:
    """What the gate knows of a model. `name` is for sentences: `captioner-flickr8k version 3`."""

    name: str
    source: str  # of the pictures it was trained on: drawn, flickr8k, folder, coco
    uncommitted: tuple[str, ...]  # what of its code the commit does not hold
    veto: str  # a person's reason against it; "" where there is none
    pictures: str  # hash of the test pictures' ids and references
    decoding: Mapping[str, Any]
    cider: Mapping[int, float]  # CIDEr of each test picture, by the picture's id
    floors: Mapping[str, float] = field(default_factory=dict)  # CIDEr of captions that need no model, by what they are


@dataclass(frozen=True)
class Clause:
    """One condition, whether it holds, and the half sentences for either case."""

    name: str
    holds: bool
    yes: str
    no: str


@dataclass(frozen=True)
class Verdict:
    """Where the new model goes and why: all clauses up to the one that decided."""

    alias: Literal["champion", "challenger"]
    sentence: str
    clauses: Mapping[str, bool] = field(default_factory=dict)  # by name, whether it holds


def judge(new: Candidate, champion: Candidate | None) -> Verdict:
    """Holds `new` against the clauses; the same candidates always get the same verdict."""
    clauses: dict[str, bool] = {}
    for clause in (*_alone(new), *(_first(new) if champion is None else _against(new, champion))):
        clauses[clause.name] = clause.holds
        if not clause.holds:
            return Verdict("challenger", f"{new.name} is challenger: {clause.no}.", clauses)
    return Verdict("champion", f"{new.name} is champion: {clause.yes}.", clauses)


def _alone(new: Candidate) -> Iterator[Clause]:
    known = "photographs"
    yield Clause("real", new.source != "drawn", f"it knows {known}", f"it knows drawn scenes only, no {known}")
    missing = ", ".join(new.uncommitted[:5]) + (", ..." if len(new.uncommitted) > 5 else "")
    yield Clause("committed", not missing, "its code is committed", f"its code is not committed ({missing})")
    yield Clause("veto", not new.veto, "nobody said no", f"a person said no ({new.veto})")


def _first(new: Candidate) -> Iterator[Clause]:
    mean, low, high = interval(_scores(new, new))
    scored = f"CIDEr {mean:.3f} (95% interval {low:.3f} to {high:.3f})"
    what, floor = max(new.floors.items(), key=lambda each: each[1], default=("", float("inf")))
    yield Clause(
        "floor",
        low > floor,
        f"there is none yet, and its {scored} is above {floor:.3f} ({what})",
        f"its {scored} is not above {floor:.3f} ({what})" if what else "its score card has no floor to be above of",
    )


def _against(new: Candidate, champion: Candidate) -> Iterator[Clause]:
    same = new.pictures == champion.pictures
    yield Clause(
        "pictures",
        same,
        f"it was measured on the same pictures as {champion.name}",
        f"it was measured on other pictures than {champion.name}; if they are the right ones, demote that first",
    )
    keys = sorted({*new.decoding, *champion.decoding})
    apart = [key for key in keys if new.decoding.get(key) != champion.decoding.get(key)]
    yield Clause(
        "decoding",
        not apart,
        f"it was decoded like {champion.name}",
        f"it was decoded with {_named(new, apart)}, {champion.name} with {_named(champion, apart)}",
    )
    if not same:  # nothing to pair; the verdict has fallen above
        return
    mine, other = _scores(new, new), _scores(champion, new)
    mean, low, high = interval(mine - other)
    compared = f"CIDEr {mine.mean():.3f} against {other.mean():.3f} of {champion.name}"
    noise = f"by more than noise ({mean:+.3f}, 95% interval {low:+.3f} to {high:+.3f})"
    yield Clause("better", low > 0, f"{compared}, better {noise}", f"{compared}, not better {noise}")


def _scores(of: Candidate, order: Candidate) -> Floats:
    """CIDEr of `of` on each picture (N,), in the order of the other's."""
    return np.array([of.cider[picture] for picture in order.cider])


def _named(candidate: Candidate, keys: list[str]) -> str:
    return ", ".join(f"{key} {candidate.decoding.get(key)}" for key in keys)


def interval(values: Floats) -> tuple[float, float, float]:
    """Mean of `values` (N,), one a picture, and the ends of its 95% bootstrap interval over pictures.

    Of differences between two models on the same pictures it is the paired bootstrap.
    """
    sums = bootstrap.resampled_sums(values[:, None], RESAMPLES, SEED)[:, 0]
    return float(values.mean()), *bootstrap.interval(sums / len(values))
