"""The gate: each clause alone, their order, and its interval against scipy's bootstrap."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.stats import bootstrap

from stages.register.gate import Candidate, interval, judge

PICTURES = 400
GENERATOR = np.random.default_rng(7)
HARD = GENERATOR.gamma(1.0, 0.5, PICTURES)  # how hard a picture is: what two models share, and why they are paired


def candidate(better: float = 0.0, name: str = "captioner", noise: int = 0) -> Candidate:
    """A model whose CIDEr is by `better` above that of others, with noise of its own."""
    cider = HARD + better + np.random.default_rng(noise).normal(0, 0.2, PICTURES)
    return Candidate(
        name=name,
        source="flickr8k",
        uncommitted=(),
        veto="",
        pictures="the same",
        decoding={"beam": 3, "length_penalty": 0.7},
        cider=dict(enumerate(cider.tolist())),
        floors={"word salad": 0.05, "best constant caption": 0.1},
    )


CHAMPION = candidate(0.0, "version 1", noise=1)


def test_first_model_above_every_floor_is_champion() -> None:
    verdict = judge(candidate(), None)
    assert verdict.alias == "champion"
    assert "there is none yet" in verdict.sentence
    assert "above 0.100 (best constant caption)" in verdict.sentence
    assert list(verdict.clauses) == ["real", "committed", "veto", "floor"]


def test_better_model_takes_over_and_says_by_how_much() -> None:
    verdict = judge(candidate(0.1, noise=2), CHAMPION)
    assert verdict.alias == "champion"
    assert list(verdict.clauses) == ["real", "committed", "veto", "pictures", "decoding", "better"]
    assert all(verdict.clauses.values())
    assert "of version 1, better by more than noise (+0.1" in verdict.sentence


@pytest.mark.parametrize(
    ("change", "clause", "said"),
    [
        ({"source": "drawn"}, "real", "it knows drawn scenes only"),
        ({"uncommitted": ("stages/train/loop.py",)}, "committed", "not committed (stages/train/loop.py)"),
        ({"veto": "says dog to every cat"}, "veto", "a person said no (says dog to every cat)"),
        ({"pictures": "others"}, "pictures", "on other pictures than version 1"),
        ({"pictures": "others", "cider": {1: 2.0}}, "pictures", "on other pictures than version 1"),
        ({"decoding": {"beam": 5, "length_penalty": 0.7}}, "decoding", "with beam 5, version 1 with beam 3"),
        ({"decoding": {"beam": 3}}, "decoding", "with length_penalty None, version 1 with length_penalty 0.7"),
        ({"cider": CHAMPION.cider}, "better", "not better by more than noise (+0.000"),
    ],
)
def test_one_broken_clause_keeps_a_better_model_back(change: dict[str, object], clause: str, said: str) -> None:
    verdict = judge(replace(candidate(0.3, noise=2), **change), CHAMPION)  # type: ignore[arg-type]
    assert verdict.alias == "challenger"
    assert [name for name, holds in verdict.clauses.items() if not holds] == [clause]
    assert list(verdict.clauses)[-1] == clause, "the clause that decides is the last one that is told"
    assert said in verdict.sentence


@pytest.mark.parametrize(
    ("floors", "said"),
    [({}, "no floor"), ({"caption of the nearest training pictures": 0.55}, "not above 0.550 (caption of the nearest")],
)
def test_first_model_must_be_above_its_floors_by_more_than_noise(floors: dict[str, float], said: str) -> None:
    verdict = judge(replace(candidate(), floors=floors), None)
    assert verdict.alias == "challenger"
    assert said in verdict.sentence


def test_a_champion_needs_no_floor_to_be_beaten() -> None:
    assert judge(replace(candidate(0.1, noise=2), floors={}), CHAMPION).alias == "champion"


def test_the_first_broken_clause_speaks() -> None:
    changes = {"source": "drawn", "uncommitted": ("a.py",), "veto": "no", "pictures": "others", "decoding": {}}
    for kept in product((False, True), repeat=len(changes)):
        broken = {key: value for (key, value), keep in zip(changes.items(), kept, strict=True) if keep}
        verdict = judge(replace(candidate(0.3, noise=2), **broken), CHAMPION)  # type: ignore[arg-type]
        order = ("source", "uncommitted", "veto", "pictures", "decoding")
        names = dict(zip(order, ("real", "committed", "veto", "pictures", "decoding"), strict=True))
        first = next((names[key] for key in order if key in broken), None)
        assert next((name for name, holds in verdict.clauses.items() if not holds), None) == first


def test_pairs_see_what_means_do_not() -> None:
    """0.05 is far within each model's own interval; on the same pictures it is sure."""
    new = candidate(0.05, noise=2)
    _, low, high = interval(np.array(list(new.cider.values())))
    assert high - low > 0.08
    assert judge(new, CHAMPION).alias == "champion"


def test_order_of_pictures_does_not_matter() -> None:
    new = candidate(0.1, noise=2)
    shuffled = replace(CHAMPION, cider=dict(reversed(CHAMPION.cider.items())))
    assert judge(new, shuffled) == judge(new, CHAMPION)


def test_same_candidates_same_verdict_to_the_letter() -> None:
    assert judge(candidate(0.02, noise=2), CHAMPION) == judge(candidate(0.02, noise=2), CHAMPION)


def test_noise_alone_rarely_wins() -> None:
    """Of 200 models that are no better at most 1 in 20 may pass; the interval is two-sided, so 1 in 40 is expected."""
    pairs = ((candidate(noise=10 + i), candidate(name="version 1", noise=1000 + i)) for i in range(200))
    passed = sum(judge(new, champion).alias == "champion" for new, champion in pairs)
    assert passed <= 10


def test_interval_is_the_percentile_bootstrap() -> None:
    values = HARD - HARD.mean() / 2
    theirs = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(3))
    mean, low, high = interval(values)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert mean == pytest.approx(values.mean())
    assert low == pytest.approx(theirs.confidence_interval.low, abs=0.06 * width)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=0.06 * width)
