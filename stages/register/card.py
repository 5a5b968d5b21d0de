"""The model card: what a version is, where it comes from, how good it is and what it is not for, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.evaluate.scorecard import ROWS, markdown
from stages.files import shown


def write_card(
    model: str,
    profile: str,
    source: str,
    metadata: Mapping[str, Any],
    metrics: Mapping[str, Any],
    commit: str,
    *,
    registered: bool,
) -> str:
    """The card of the captioner with `metadata` (its artifact's) and the score cards `metrics`, by split; `registered`
    says whether it is a version of the registry, whose chain can be checked."""
    encoder, shape = metadata["encoder"], metadata["shape"]
    weights = shown(encoder["weights"])
    tuned = "its last layers tuned" if "tuned_sha256" in encoder else "frozen"
    chain = f"\n`python -m stages.lineage {model}/VERSION` checks the chain back to the data." if registered else ""
    served = ""
    if metadata["decoding"] != metrics["test"]["decoding"]:
        served = f"By itself it decodes with {listed(metadata['decoding'])}; its scores are of another decoding.\n\n"
    return f"""# {model}

Describes photographs in one English sentence. Encoder {encoder["encoder"]} ({tuned}, weights {weights}); \
{listed(shape)}; {len(metadata["vocabulary"]):,} words.

Made by profile `{profile}` (pictures: {source}) from commit `{commit or "none"}`; sha256 of the weights:
`{metadata["weights_sha256"]}`.{chain}

Meant for drafts of descriptions, search, research. Not meant for descriptions that somebody relies on without seeing
the picture, or that judge or identify people. It names only what its training captions name, and repeats their habits
and prejudices.

{served}{markdown({"test": metrics["test"]})}"""


def listed(settings: Mapping[str, Any]) -> str:
    """Settings in a line."""
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def floors(card: Mapping[str, Any]) -> dict[str, float]:
    """CIDEr of captions that need no trained model, from a split's score card, by what they are."""
    rows = {title: card["rows"].get(name) for name, title in ROWS.items() if name != "human"}
    return {title: row["cider"] for title, row in rows.items() if row}
