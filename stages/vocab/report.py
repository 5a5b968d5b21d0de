"""The dataset report, reports/P/dataset.html: what a data set looks like, what is said in it, what is wrong with it.

Bounded, whatever the size of the data: SHOWN pictures and at most GROUPS groups of duplicates are in the page, words
are counted over all captions, and `vocab.look_at` says how many pictures are decoded to find duplicates. The page says
what of this was done.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tqdm import tqdm

from stages import page
from stages.fetch.captions import SPLITS, Picture
from stages.fetch.pictures import Pictures
from stages.fetch.thumbnails import thumbnails
from stages.fetch.usable import over
from stages.page import text
from stages.vocab.twins import Look, alike, groups, look, same_bytes
from stages.vocab.vocabulary import SPECIALS, Vocabulary, tokenize

SEED = 1409  # of the choice of pictures: the same data make the same page
SHOWN = {"train": 180, "val": 60, "test": 60}  # pictures with their captions
SIDE = 192  # pixels of a thumbnail's longer side
GROUPS = 24  # groups of duplicates shown, leaks first
COPIES = 6  # pictures shown of a group
WORDS, PAIRS = 120, 400  # most frequent words, and pairs of words, in the page; most pairs have a small word in them
LONGEST = 24  # words; longer captions share the last column
HASHED = "same size and CRC-32"


@dataclass(frozen=True)
class Said:
    """What the captions of a split say: how often each word, each pair of neighbours, and each number of words."""

    words: Counter[str] = field(default_factory=Counter)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)

    @classmethod
    def of(cls, captions: Iterable[str]) -> Said:
        """Counts the words of all captions."""
        said = cls()
        for caption in tqdm(captions, desc="counting words", unit="captions", disable=None, leave=False):
            words = tokenize(caption)
            said.words.update(words)
            said.pairs.update(pairwise(words))
            said.lengths[len(words)] += 1
        return said


@dataclass(frozen=True)
class Found:
    """What looking at the pictures themselves has found."""

    duplicates: list[list[str]]  # groups of names, the largest first
    looked_at: Mapping[str, int]  # pictures decoded, by split
    unreadable: Mapping[str, str]  # of those looked at: name -> why
    everywhere: bool  # whether equal bytes were looked for among all pictures
    thumbnails: Mapping[str, bytes]  # name -> JPEG, of those that the page shows


def find(pictures: Mapping[str, Sequence[Picture]], archives: Pictures, look_at: int | None) -> Found:
    """Looks for duplicates among all pictures by their bytes, and by their look among `look_at` (None is all)."""
    chosen = to_look_at(pictures, look_at)
    names = [picture.file_name for split in SPLITS for picture in chosen[split]]
    looks = dict(zip(names, over(archives, names, look, "comparing"), strict=True))
    seen = {name: found for name, found in looks.items() if isinstance(found, Look)}
    everywhere = not any(archive.is_dir() for archive in archives.archives)  # unpacked: no index, all must be read
    every = [picture.file_name for split in SPLITS for picture in pictures[split]] if everywhere else names
    named = list(seen)
    near = ((named[i], named[j]) for i, j in (alike(list(seen.values())) if seen else ()))
    duplicates = groups([*same_bytes(archives, every), *near])
    split_of = splits_of(pictures)
    shown = [picture.file_name for own in sample(pictures).values() for picture in own]
    shown += [name for group in leaks_first(duplicates, split_of)[:GROUPS] for name in shown_of(group, split_of)]
    shown = list(dict.fromkeys(shown))
    return Found(
        duplicates,
        {split: len(chosen[split]) for split in SPLITS},
        {name: found for name, found in looks.items() if isinstance(found, str)},
        everywhere,
        dict(zip(shown, thumbnails(archives, shown, SIDE), strict=True)),
    )


def to_look_at(pictures: Mapping[str, Sequence[Picture]], look_at: int | None) -> dict[str, list[Picture]]:
    """The pictures to decode: all, or of each split its share, but of train at most half, drawn by SEED: what is to be
    found is a picture of val or test that was trained on."""
    total = sum(map(len, pictures.values()))
    if look_at is None or look_at >= total:
        return {split: list(own) for split, own in pictures.items()}
    rest = len(pictures["val"]) + len(pictures["test"])
    others = min(rest, max(look_at - len(pictures["train"]), look_at // 2))
    val = min(len(pictures["val"]), round(others * len(pictures["val"]) / rest))
    counts = {"train": look_at - others, "val": val, "test": others - val}
    return {split: _some(own, counts[split], f"look at {split}") for split, own in pictures.items()}


def sample(pictures: Mapping[str, Sequence[Picture]]) -> dict[str, list[Picture]]:
    """The pictures that the page shows, in their order."""
    return {split: _some(own, SHOWN[split], f"show {split}") for split, own in pictures.items()}


def _some(pictures: Sequence[Picture], count: int, purpose: str) -> list[Picture]:
    """`count` of the pictures, drawn by SEED, in their order."""
    drawn = random.Random(f"{SEED} {purpose}").sample(range(len(pictures)), min(count, len(pictures)))  # noqa: S311
    return [pictures[place] for place in sorted(drawn)]


def splits_of(pictures: Mapping[str, Sequence[Picture]]) -> dict[str, str]:
    """Name -> split."""
    return {picture.file_name: split for split, own in pictures.items() for picture in own}


def leaks_first(duplicates: Sequence[list[str]], split_of: Mapping[str, str]) -> list[list[str]]:
    """Groups that lie in more than one split before the others."""
    return sorted(duplicates, key=lambda group: len({split_of[name] for name in group}) < 2)


def shown_of(group: Sequence[str], split_of: Mapping[str, str]) -> list[str]:
    """At most COPIES pictures of a group, at least one of every split that it lies in."""
    one_each = list({split_of[name]: name for name in reversed(group)}.values())
    return sorted(list(dict.fromkeys([*one_each, *group]))[:COPIES], key=lambda name: (split_of[name], name))


# --- the page ---------------------------------------------------------------------------------------------------------
def dataset(
    profile: str,
    pictures: Mapping[str, Sequence[Picture]],
    said: Mapping[str, Said],
    vocabulary: Vocabulary,
    min_count: int,
    fetched: Mapping[str, Any],
    found: Found | None,
) -> str:
    """The page. `fetched` is fetch's report; `found` is None where the pictures are not at hand."""
    script = Path(__file__).with_name("dataset.js").read_text(encoding="utf-8")
    captions = sum(each.lengths.total() for each in said.values())
    total = sum(map(len, pictures.values()))
    lead = (
        f"{total:,} pictures and {captions:,} captions from <b>{text(fetched.get('source', 'an unknown source'))}</b>, "
        f"as the profile <b>{text(profile)}</b> trains on them. Made by the pipeline's stage <code>vocab</code>."
    )
    parts = [
        ("pictures", "Pictures and captions", _sample(pictures, vocabulary, found)),
        ("splits", "Splits", _splits(pictures, said, vocabulary)),
        ("words", "Words", _words(said, vocabulary)),
        ("vocabulary", "Vocabulary", _vocabulary(said, vocabulary, min_count)),
        ("sizes", "Sizes and shapes", _sizes(pictures)),
        ("duplicates", "Duplicates", _duplicates(pictures, found)),
        ("left-out", "Left out", _left_out(fetched, found)),
    ]
    sections = "\n".join(
        f"<section id='{name}' aria-labelledby='{name}-title'><h2 id='{name}-title'>{title}</h2>{body}</section>"
        for name, title, body in parts
    )
    summary = _summary(pictures, said, vocabulary, fetched, found)
    links = [(f"#{name}", title) for name, title, _ in parts]
    shown = [picture.file_name for own in sample(pictures).values() for picture in own]
    small = page.pictures([found.thumbnails.get(name, b"") if found else b"" for name in shown])
    return page.page(f"Data set {profile}", lead, summary + sections, script=script, links=links, after=small)


def _summary(
    pictures: Mapping[str, Sequence[Picture]],
    said: Mapping[str, Said],
    vocabulary: Vocabulary,
    fetched: Mapping[str, Any],
    found: Found | None,
) -> str:
    numbers = [
        (split, f"{len(pictures[split]):,}", f"pictures, {said[split].lengths.total():,} captions") for split in SPLITS
    ]
    coverage = 100 * (1 - unknown_share(vocabulary.ids, said["train"]))
    numbers.append(("vocabulary", f"{len(vocabulary.words):,}", f"words, {coverage:.2f} % of what is said in train"))
    words = sum(length * count for each in said.values() for length, count in each.lengths.items())
    numbers.append(
        ("words a caption", f"{words / sum(each.lengths.total() for each in said.values()):.1f}", "on average")
    )
    if found:
        leaks = _leaks(pictures, found)
        more = "pictures of one split that are in another, too" if leaks else "no picture was found in two splits"
        numbers.append(("leaks", f"{len(leaks):,}", more))
    numbers.append(("left out", f"{len(fetched.get('left_out', {})):,}", "pictures"))
    return f"<section aria-label='In numbers'>{page.tiles(numbers)}</section>"


def unknown_share(known: Container[str], said: Said) -> float:
    """The share of what is said that is none of the words `known`; 0 where captions have no word, as `...` has none."""
    return sum(count for word, count in said.words.items() if word not in known) / max(1, said.words.total())


def _leaks(pictures: Mapping[str, Sequence[Picture]], found: Found) -> list[list[str]]:
    split_of = splits_of(pictures)
    return [group for group in found.duplicates if len({split_of[name] for name in group}) > 1]


def _sample(pictures: Mapping[str, Sequence[Picture]], vocabulary: Vocabulary, found: Found | None) -> str:
    cards = []
    for split, own in sample(pictures).items():
        for picture in own:
            words = {word for caption in picture.captions for word in tokenize(caption)}
            cards.append(
                {
                    "name": picture.file_name,
                    "split": split,
                    "size": [picture.width, picture.height],
                    "captions": picture.captions,
                    "unknown": sorted(words - vocabulary.ids.keys()),
                }
            )
    total = sum(map(len, pictures.values()))
    many = "All" if len(cards) == total else f"{len(cards):,} of the {total:,}"
    options = "".join(f"<option>{split}</option>" for split in SPLITS)
    return (
        f"<p>{many} pictures, chosen by nobody (a draw with a fixed seed). Words that the vocabulary does not know are "
        f"<u>underlined</u>.</p><div class='tools stays'><label>Captions with the words "
        f"<input type='search' id='search' autocomplete='off' placeholder='dog running'></label>"
        f"<label>Split <select id='split'><option value=''>all</option>{options}</select></label>"
        f"<output id='count' for='search split'></output></div><ul class='cards' id='cards'></ul>"
        f"<button id='more'>Show more</button>{page.data('sample', cards)}"
    )


def _splits(pictures: Mapping[str, Sequence[Picture]], said: Mapping[str, Said], vocabulary: Vocabulary) -> str:
    rows = []
    for split in SPLITS:
        per_picture = sorted({len(picture.captions) for picture in pictures[split]})
        span = str(per_picture[0]) if len(per_picture) == 1 else f"{per_picture[0]} to {per_picture[-1]}"
        own = said[split]
        rows.append(
            (
                split,
                f"{len(pictures[split]):,}",
                f"{own.lengths.total():,}",
                span,
                f"{own.words.total() / own.lengths.total():.2f}",
                f"{len(own.words):,}",
                f"{100 * unknown_share(vocabulary.ids, own):.2f} %",
            )
        )
    head = ("split", "pictures", "captions", "captions a picture", "words a caption", "different words", "unknown")
    lengths = list(range(min(min(each.lengths) for each in said.values()), LONGEST + 1))
    series = {
        split: [
            sum(count for length, count in each.lengths.items() if length == at or (at == LONGEST and length > at))
            / each.lengths.total()
            for at in lengths
        ]
        for split, each in said.items()
    }
    names = [f"{at}+" if at == LONGEST else str(at) for at in lengths]
    chart = page.columns("How many words captions have", names, series, "words of a caption")
    return page.table(head, rows) + f"<figure class='panel'><h3>Caption lengths, share of a split</h3>{chart}</figure>"


def _words(said: Mapping[str, Said], vocabulary: Vocabulary) -> str:
    train = said["train"]
    words = [[word, count, word in vocabulary.ids] for word, count in _most(train.words, WORDS)]
    pairs = [[" ".join(pair), count, True] for pair, count in _most(train.pairs, PAIRS)]
    return (
        f"<p>Of the training captions: {train.words.total():,} words, {len(train.words):,} different ones, "
        f"{len(train.pairs):,} different pairs of neighbours. A word looks for it among the pictures above.</p>"
        "<div class='tools'><label><span><input type='checkbox' id='plain' checked> leave out a, the, in, of, is and "
        "their like</span></label></div>"
        "<div class='columns'><div><h3>Most frequent words</h3><div class='bars' id='words-list'></div></div>"
        "<div><h3>Most frequent pairs</h3><div class='bars' id='pairs-list'></div></div></div>"
        f"{page.data('words-data', words)}{page.data('pairs-data', pairs)}"
    )


def _most(counts: Counter[Any], number: int) -> list[tuple[Any, int]]:
    """The most frequent, equals in alphabetical order. Most are rare: those are never put in order."""
    least = min(heapq.nlargest(number, counts.values()), default=0)
    often = ((each, count) for each, count in counts.items() if count >= least)
    return heapq.nsmallest(number, often, key=lambda item: (-item[1], item[0]))


def _vocabulary(said: Mapping[str, Said], vocabulary: Vocabulary, min_count: int) -> str:
    train = said["train"]
    rows = []
    for least in sorted({1, 2, 3, 4, 5, 8, 10, 20, min_count}):
        kept = {word for word, count in train.words.items() if count >= least}
        shares = (unknown_share(kept, said[split]) for split in SPLITS)
        name = f"{least}, as chosen" if least == min_count else str(least)
        rows.append((name, f"{len(kept) + len(SPECIALS):,}", *(f"{100 * share:.2f} %" for share in shares)))
    strange = Counter[str]()
    for split in ("val", "test"):
        strange.update({w: count for w, count in said[split].words.items() if w not in vocabulary.ids})
    listed = [(word, float(count), f"{count:,}") for word, count in _most(strange, 20)]
    unknown = (
        f"<h3>Most frequent unknown words of val and test</h3>{page.bars(listed)}"
        if listed
        else "<h3>Unknown words of val and test</h3><p>There are none.</p>"
    )
    head = ("min_count", "words", *SPLITS)
    return (
        "<p>A word said less often than <code>vocab.min_count</code> times in train becomes <code>&lt;unk&gt;</code>. "
        "Words of val and test have no say in it: they are only measured. The table has what other counts would give: "
        "words known, and the share of what is said in a split that is not.</p>"
        f"<div class='columns'><div>{page.table(head, rows)}</div><div>{unknown}</div></div>"
    )


SHAPES = (
    ("tall, under 2:3", 0.0, 0.66),
    ("upright, 2:3 to 9:10", 0.66, 0.9),
    ("about square", 0.9, 1.11),
    ("wide, 10:9 to 3:2", 1.11, 1.51),
    ("very wide, over 3:2", 1.51, float("inf")),
)


def _sizes(pictures: Mapping[str, Sequence[Picture]]) -> str:
    sizes = Counter((picture.width, picture.height) for own in pictures.values() for picture in own)
    unknown = sum(count for (width, height), count in sizes.items() if not (width and height))
    known = Counter({size: count for size, count in sizes.items() if all(size)})
    if not known:
        return "<p>The source does not say how large its pictures are.</p>"
    total = known.total()
    common = [
        (f"{width} x {height}", float(count), f"{100 * count / total:.1f} %")
        for (width, height), count in _most(known, 10)
    ]
    if rest := total - sum(int(count) for _, count, _ in common):
        common.append((f"{len(known) - 10:,} others", float(rest), f"{100 * rest / total:.1f} %"))
    shapes = []
    for name, low, high in SHAPES:
        count = sum(n for (width, height), n in known.items() if low <= width / height < high)
        shapes.append((name, float(count), f"{100 * count / total:.1f} %"))
    sides = sorted(min(size) for size in known.elements())
    told = f"The shorter side has {sides[0]:,} to {sides[-1]:,} pixels, {sides[len(sides) // 2]:,} in the middle."
    if unknown:
        told += f" Of {unknown:,} pictures the source does not say how large they are."
    return (
        f"<p>{told}</p><div class='columns'><div><h3>Most frequent sizes, in pixels</h3>{page.bars(common)}</div>"
        f"<div><h3>Shapes</h3>{page.bars(shapes)}</div></div>"
    )


def _duplicates(pictures: Mapping[str, Sequence[Picture]], found: Found | None) -> str:
    if found is None:
        return "<p>The pictures are not on this machine: nothing was compared.</p>"
    total, looked_at = sum(map(len, pictures.values())), sum(found.looked_at.values())
    among = ", ".join(f"{found.looked_at[split]:,} of {len(pictures[split]):,} {split}" for split in SPLITS)
    scope = (
        f"Compared by their bytes ({HASHED}): all {total:,} pictures. "
        if found.everywhere
        else f"Compared by their bytes ({HASHED}): the {looked_at:,} pictures that were decoded. "
    )
    scope += (
        f"Compared by their look (64-bit difference hash, then 16 x 16 grey pixels): {among}. A mirrored or cropped "
        "copy is not found."
    )
    if looked_at < total:
        scope += " More take longer, some milliseconds each: <code>vocab.look_at: null</code> in params.yaml is all."
    split_of = splits_of(pictures)
    leaks = _leaks(pictures, found)
    spare = sum(len(group) - 1 for group in found.duplicates)
    if leaks:
        crossing = Counter(
            " and ".join(sorted({split_of[name] for name in group}, key=SPLITS.index)) for group in leaks
        )
        where = ", ".join(f"{count:,} in {name}" for name, count in sorted(crossing.items()))
        verdict = (
            f"<p class='alert' role='note'><strong>Leak: {len(leaks):,} "
            f"{'picture lies' if len(leaks) == 1 else 'pictures lie'} in more than one split</strong> ({where}). What "
            "is trained on is not to be tested on: take one side out where the data come from.</p>"
        )
    else:
        verdict = "<p class='note'>No picture was found in more than one split.</p>"
    verdict += f"<p>{spare:,} {'picture is' if spare == 1 else 'pictures are'} a copy of another one.</p>"
    captions = {picture.file_name: picture.captions[0] for own in pictures.values() for picture in own}
    shown = "".join(
        _group(group, split_of, captions, found) for group in leaks_first(found.duplicates, split_of)[:GROUPS]
    )
    more = len(found.duplicates) - GROUPS
    rest = f"<p class='soft'>and {more:,} more groups</p>" if more > 0 else ""
    return f"<p>{scope}</p>{verdict}{f'<ul class=cards>{shown}</ul>' if shown else ''}{rest}"


def _splits_of_group(group: Sequence[str], split_of: Mapping[str, str]) -> list[str]:
    return sorted({split_of[name] for name in group}, key=SPLITS.index)


def _group(group: Sequence[str], split_of: Mapping[str, str], captions: Mapping[str, str], found: Found) -> str:
    splits = _splits_of_group(group, split_of)
    leak = len(splits) > 1
    shown = shown_of(group, split_of)
    images = "".join(
        f"<figure><img alt='{text(captions[name])}' src='data:image/jpeg;base64,"
        f"{page.base64_of(found.thumbnails.get(name, b''))}'><figcaption><small>{split_of[name]}: "
        f"<span class='mono'>{text(name)}</span></small></figcaption></figure>"
        for name in shown
    )
    title = f"<b class='bad'>in {' and '.join(splits)}</b>" if leak else f"twice in {splits[0]}"
    more = f" <small>{len(group):,} pictures, {len(shown)} shown</small>" if len(group) > len(shown) else ""
    return (
        f"<li class='card{' leak' if leak else ''}'><div class='pair'>{images}</div>"
        f"<p class='said'><span>{title}{more}</span></p></li>"
    )


def _left_out(fetched: Mapping[str, Any], found: Found | None) -> str:
    left_out = dict(fetched.get("left_out", {}))
    parts = []
    if left_out:
        parts.append(f"<p>{len(left_out):,} named by the source and left out by fetch:</p>{_reasons(left_out)}")
    unmatched = fetched.get("unmatched") or {}
    if any(unmatched.values()):
        told = ", ".join(f"{count:,} {text(name.replace('_', ' '))}" for name, count in unmatched.items())
        parts.append(f"<p>Known to only one of annotations and split: {told}.</p>")
    if limit := fetched.get("limit"):
        parts.append(f"<p>The profile asks for a part only: <code>{text(limit)}</code>.</p>")
    if found and found.unreadable:
        parts.append(
            f"<p class='alert'><strong>{len(found.unreadable):,} of those looked at do not decode:</strong></p>"
        )
        parts.append(_reasons(found.unreadable))
    return "".join(parts) or "<p>No picture was left out.</p>"


def _reasons(reasons: Mapping[str, str]) -> str:
    """At most fifty pictures and why."""
    rows = "".join(
        f"<tr><th scope='row' class='mono'>{text(name)}</th><td>{text(why)}</td></tr>"
        for name, why in sorted(reasons.items())[:50]
    )
    more = f"<p class='soft'>and {len(reasons) - 50:,} more</p>" if len(reasons) > 50 else ""
    return (
        "<div class='scroll' tabindex='0' role='region' aria-label='Pictures and reasons'><table><thead><tr>"
        f"<th scope='col'>picture</th><th scope='col'>why</th></tr></thead><tbody>{rows}</tbody></table></div>{more}"
    )
