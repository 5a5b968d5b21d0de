"""One's own pictures: three kinds of captions file, folder or zip, splits that stay, and every mistake told."""

from __future__ import annotations

import csv
import json
import os
import shutil
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from builders import picture, run

from stages.fetch.captions import SPLITS, Picture, read_captions
from stages.fetch.folder import split_of
from stages.fetch.pictures import MAX_BYTES, Pictures

NAMES = [f"walk/{number}.jpg" for number in range(20)] + [f"{number}.png" for number in range(20)]
ROWS = [(name, f"A {kind} dog in {name} .") for name in NAMES for kind in ("small", "brown")]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Pictures in two folders, and the captions of all in captions.csv."""
    for name in NAMES:
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture("PNG" if name.endswith("png") else "JPEG"))
    write_csv(tmp_path, ROWS)
    return tmp_path


def write_csv(home: Path, rows: list[tuple[str, str]], header: tuple[str, ...] = ("picture", "caption")) -> None:
    with (home / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def fetch(
    home: Path, captions: str = "captions.csv", pictures: str = "pictures", **settings: Any
) -> dict[str, Picture]:
    """Runs the stage; returns the pictures of all splits by name."""
    chosen = {"val_percent": 20, "test_percent": 20, "allow_missing": 0, **settings}
    places = {"captions": str(home / captions), "pictures": str(home / pictures)}
    data = run("fetch", home, source="folder", **places, **chosen)
    return {entry.file_name: entry for split in SPLITS for entry in read_captions(data / f"captions_{split}.json")}


def splits(home: Path) -> dict[str, str]:
    data = home / "data" / "mine"
    return {e.file_name: split for split in SPLITS for e in read_captions(data / f"captions_{split}.json")}


def report(home: Path) -> dict[str, Any]:
    return json.loads((home / "reports/mine/fetch.json").read_text())


# --- what is fetched --------------------------------------------------------------------------------------------------


def test_every_picture_with_all_its_captions(home: Path) -> None:
    fetched = fetch(home)
    assert fetched.keys() == set(NAMES)
    for name, entry in fetched.items():
        assert entry.captions == (f"A small dog in {name} .", f"A brown dog in {name} .")
        assert (entry.width, entry.height) == (40, 30)
    pictures = Pictures(home / "data/mine/pictures")
    assert all(pictures.read(name) == (home / "pictures" / name).read_bytes() for name in NAMES)


def test_the_three_kinds_of_file_say_the_same(home: Path) -> None:
    from_csv = fetch(home)
    (home / "captions.jsonl").write_text("".join(json.dumps({"picture": n, "caption": c}) + "\n\n" for n, c in ROWS))
    assert fetch(home, "captions.jsonl") == from_csv
    images = [{"id": from_csv[name].id, "file_name": name} for name in NAMES]
    entries = [{"id": n, "image_id": from_csv[name].id, "caption": said} for n, (name, said) in enumerate(ROWS)]
    (home / "captions.json").write_text(json.dumps({"images": images, "annotations": entries}))
    assert fetch(home, "captions.json") == from_csv


def test_columns_may_have_other_names(home: Path) -> None:
    expected = fetch(home)
    write_csv(home, ROWS, ("file", "said"))
    assert fetch(home, picture_column="file", caption_column="said") == expected


def test_quotes_line_ends_and_marks_of_other_programs(home: Path) -> None:
    text = '\ufeffpicture,caption,note\r\n./walk/0.jpg,"A ""big"" dog,\nrunning",x\r\n'
    rest = "".join(f"{name},A dog,\r\n" for name in NAMES[1:])
    (home / "captions.csv").write_bytes((text + rest).encode())
    assert fetch(home)["walk/0.jpg"].captions == ('A "big" dog,\nrunning',)


def test_a_zip_is_linked_and_its_one_top_folder_may_be_left_out(home: Path) -> None:
    with zipfile.ZipFile(home / "mine.zip", "w") as archive:
        for name in NAMES:
            archive.write(home / "pictures" / name, f"my pictures/{name}")
    fetched = fetch(home, pictures="mine.zip")
    assert fetched.keys() == {f"my pictures/{name}" for name in NAMES}
    assert (home / "data/mine/pictures/mine.zip").readlink() == home / "mine.zip"
    by_short_name = splits(home)
    write_csv(home, [(f"my pictures/{name}", said) for name, said in ROWS])
    (home / "mine.zip").rename(home / "mine.ZIP")
    assert fetch(home, pictures="mine.ZIP").keys() == by_short_name.keys()


@pytest.mark.shared
def test_real_coco_pictures(shared: Path, home: Path) -> None:
    coco = shared / "coco"
    fetched = fetch(home, str(coco / "captions_train2017_80images.json"), str(coco / "train2017_80images.zip"))
    expected = read_captions(coco / "captions_train2017_80images.json")
    assert {e.id: (e.captions, e.width, e.height) for e in fetched.values()} == {
        e.id: (e.captions, e.width, e.height) for e in expected
    }


# --- splits -----------------------------------------------------------------------------------------------------------


def test_a_picture_stays_in_its_split_when_others_are_added_or_removed(home: Path) -> None:
    fetch(home)
    before = splits(home)
    for name in NAMES[:5]:
        (home / "pictures" / name).unlink()
    (home / "pictures" / "new.jpg").write_bytes(picture())
    write_csv(home, [("new.jpg", "A cat ."), *ROWS[:9:-1]])
    fetch(home)
    after = splits(home)
    assert {name: after[name] for name in NAMES[5:]} == {name: before[name] for name in NAMES[5:]}
    assert after.keys() == {*NAMES[5:], "new.jpg"}


def test_splits_have_the_share_that_was_asked_for() -> None:
    counts = Counter(split_of(number, 10, 20) for number in range(100_000))
    assert [round(counts[split] / 1_000) for split in SPLITS] == [70, 10, 20]


def test_an_empty_split_is_an_error(home: Path) -> None:
    write_csv(home, ROWS[:2])
    with pytest.raises(ValueError, match=r"split (train|val) has no pictures: give more, or change how they are split"):
        fetch(home)


# --- what is reported -------------------------------------------------------------------------------------------------


def test_pictures_without_captions_are_counted_and_named(home: Path) -> None:
    (home / "pictures" / "alone.webp").write_bytes(picture("WEBP"))
    (home / "pictures" / "notes.txt").write_text("no picture")
    with (home / "pictures" / "huge.tif").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    fetch(home)
    assert report(home)["pictures_without_captions"] == {"count": 2, "names": ["alone.webp", "huge.tif"]}


def test_what_is_missing_or_damaged_is_named_where_it_is_allowed(home: Path) -> None:
    (home / "pictures" / NAMES[0]).unlink()
    (home / "pictures" / NAMES[1]).write_bytes(b"GIF89a")
    assert len(fetch(home, allow_missing=2)) == len(NAMES) - 2
    assert list(report(home)["left_out"]) == NAMES[:2]


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_captioned_picture_that_is_too_large_is_an_error(home: Path) -> None:
    os.truncate(home / "pictures" / NAMES[3], MAX_BYTES + 1)
    with pytest.raises(ValueError, match=rf"{NAMES[3]} has 268,435,457 bytes, more than the 268,435,456 allowed"):
        fetch(home)


@pytest.mark.parametrize(
    ("setting", "place"),
    [
        ("pictures", "data/mine/pictures"),
        ("pictures", "data/mine/pictures/walk"),
        ("pictures", "data/mine/pictures/all.zip"),
        ("pictures", "link"),
        ("captions", "data/mine/pictures/captions.csv"),
    ],
)
def test_what_lies_where_fetch_deletes_is_refused_and_stays(home: Path, setting: str, place: str) -> None:
    folder = home / "data/mine/pictures"
    shutil.copytree(home / "pictures", folder)
    shutil.copy(home / "captions.csv", folder)
    (home / "link").symlink_to(folder)
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        for name in NAMES:
            archive.write(home / "pictures" / name, name)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    message = rf"fetch\.{setting}: .* must lie outside data/mine/pictures, where fetch deletes .*: move it elsewhere"
    with pytest.raises(ValueError, match=message):
        fetch(home, **{setting: place})
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("place", ["data/mine", "links", "pictures"])
def test_fetch_deletes_nothing_that_it_has_not_made(home: Path, place: str) -> None:
    """Pictures in a folder above, linked to from elsewhere, or of no concern at all."""
    folder = home / "data/mine/pictures"
    shutil.copytree(home / "pictures", folder)
    (home / "links").mkdir()
    for name in NAMES:
        (home / "links" / name).parent.mkdir(exist_ok=True)
        (home / "links" / name).symlink_to(folder / name)
    if place == "data/mine":
        write_csv(home, [(f"pictures/{name}", caption) for name, caption in ROWS])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"data/mine/pictures/\S+ is nothing that fetch has made.*: move it"):
        fetch(home, pictures=place)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("name", ["mine.zip", "notes.txt", ".ipynb_checkpoints/notes.ipynb", "old.zip/a.jpg"])
def test_fetch_deletes_no_archive_and_no_folder_that_it_has_not_made(home: Path, name: str) -> None:
    folder = home / "data/mine/pictures"
    own = folder / name
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    (folder / ".old.zip.17.partial").write_bytes(b"of a fetch that was killed")
    with pytest.raises(ValueError, match=rf"{name.partition('/')[0]} is nothing that fetch has made.*: move it"):
        fetch(home)
    assert own.read_bytes() == b"mine"
    (folder / name.partition("/")[0]).rename(home / "elsewhere")
    fetch(home)
    assert [path.name for path in folder.iterdir()] == ["pictures.zip"]


def test_whatever_a_caption_names_counts_by_whatever_link_or_ending(home: Path) -> None:
    linked = home / "elsewhere"
    linked.mkdir()
    for name in ("a.jpg", "b.jfif"):
        (linked / name).write_bytes(picture())
    (home / "pictures" / "linked").symlink_to(linked)
    write_csv(home, [*ROWS, ("linked/a.jpg", "A dog ."), ("linked/b.jfif", "A dog .")])
    assert fetch(home).keys() == {*NAMES, "linked/a.jpg", "linked/b.jfif"}


def test_why_a_picture_was_left_out_is_reported(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "pictures" / NAMES[0]).unlink()
    (home / "pictures" / NAMES[1]).write_bytes(b"GIF89a")
    monkeypatch.setattr("stages.fetch.folder.MAX_BYTES", 2000)
    large = picture() + bytes(2000)
    (home / "pictures" / NAMES[2]).write_bytes(large)
    fetch(home, allow_missing=3)
    found = report(home)["left_out"]
    assert found.keys() == {*NAMES[:3]}
    assert found[NAMES[0]] == "is not there"
    assert found[NAMES[1]].startswith("is in none of the formats JPEG, PNG")
    assert found[NAMES[2]] == f"has {len(large):,} bytes, more than the 2,000 allowed"


def test_a_caption_with_a_comma_is_never_cut(home: Path) -> None:
    rows = (home / "captions.csv").read_text().splitlines()
    (home / "captions.csv").write_text("\n".join([*rows[:4], f"{NAMES[2]},A dog, running on grass", *rows[4:]]))
    with pytest.raises(
        ValueError, match=r"captions.csv, line 5: has more fields .*' running on grass'.* double quotes"
    ):
        fetch(home)


def test_half_a_character_is_told_with_its_picture(home: Path) -> None:
    lines = [json.dumps({"picture": name, "caption": said}) for name, said in ROWS]
    lines[3] = json.dumps({"picture": ROWS[3][0], "caption": "A dog \ud83d"})
    (home / "captions.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=rf"{ROWS[3][0]}\) has half a character, .*'A dog \\ud83d': mend it"):
        fetch(home, "captions.jsonl")


@pytest.mark.parametrize("damage", [None, b"", b"GIF89a"])
def test_a_missing_or_damaged_picture_is_an_error(home: Path, damage: bytes | None) -> None:
    path = home / "pictures" / NAMES[3]
    path.unlink() if damage is None else path.write_bytes(damage)
    with pytest.raises(ValueError, match=rf"1 picture is missing or damaged, .*\n  {NAMES[3]} is (not there|in none)"):
        fetch(home)


def test_more_than_ten_are_counted(home: Path) -> None:
    write_csv(home, ROWS + [(f"gone{number:02}.jpg", "A dog .") for number in range(13)])
    with pytest.raises(ValueError, match=r"13 pictures are missing (?s:.*)gone09.jpg is not there\n  and 3 more"):
        fetch(home)


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "C:\\secret.jpg", "walk/../../secret.jpg"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
def test_names_that_climb_out_are_refused(home: Path, name: str, kind: str) -> None:
    (home / "secret.jpg").write_bytes(picture())
    write_csv(home, [*ROWS[:3], (name, "A dog .")])
    (home / "captions.jsonl").write_text("\n\n\n\n" + json.dumps({"picture": name, "caption": "A dog ."}))
    images = [{"id": 1, "file_name": name}]
    captions = [{"id": 1, "image_id": 1, "caption": "A dog ."}]
    (home / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    line = "" if kind == "json" else ", line 5"
    with pytest.raises(ValueError, match=rf"captions\.{kind}{line}: picture name .* (must be relative|climbs out)"):
        fetch(home, f"captions.{kind}")


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("csv", b"picture,caption\n1.png,A dog\n2.png\n", r"line 3: column 'caption' must hold text; the line has"),
        ("csv", b"image;caption\n1.png;A dog\n", r"line 2: column 'picture' must hold .*fetch.picture_column"),
        ("csv", b"picture,caption\n1.png,  \n", r"line 2: the caption of 1.png is empty"),
        ("csv", b'picture,caption\n1.png,"A dog\n', r"line 2: is not CSV: unexpected end of data"),
        ("csv", b"picture,caption\n1.png,A caf\xe9\n", r"line 2: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        ("csv", "picture,caption\n".encode("utf-16"), r"line 1: byte 0xff is not UTF-8"),
        ("jsonl", b'{"picture": "1.png", "caption": "A dog"}\n{"picture": "2.p', r"line 2: is not whole JSON: Untermi"),
        ("jsonl", b'["1.png", "A dog"]\n', r"line 1: must be an object, is \['1.png', 'A dog'\]"),
        ("jsonl", b'{"picture": "1.png"}\n', r"line 1: column 'caption' must hold text"),
        ("jsonl", b'{"picture": 1, "caption": "A dog"}\n', r"line 1: column 'picture' must hold text"),
        ("jsonl", b'\n{"picture": "1.png", "caption": ""}\n', r"line 2: the caption of 1.png is empty"),
        ("json", b'{"images": [{"id": 1, "file', r"is not whole JSON: .*line 1"),
        ("json", b'{"images": []}', r"must hold the lists `images` and `annotations`"),
        ("txt", b"", r"must end with .json \(COCO's captions format\), .csv or .jsonl"),
    ],
)
def test_a_captions_file_that_breaks_a_rule_is_told(home: Path, kind: str, text: bytes, message: str) -> None:
    (home / f"captions.{kind}").write_bytes(text)
    with pytest.raises(ValueError, match=rf"captions\.{kind}.*{message}"):
        fetch(home, f"captions.{kind}")


def test_pictures_that_are_no_folder_are_told(home: Path) -> None:
    with pytest.raises(ValueError, match=r"fetch\.pictures: .*nowhere is neither a folder nor a zip archive"):
        fetch(home, pictures="nowhere")
    (home / "broken.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"broken\.zip \(2 bytes\) is not a whole zip"):
        fetch(home, pictures="broken.zip")


def test_no_captions_file_is_told(home: Path) -> None:
    (home / "captions.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"captions\.csv"):
        fetch(home)
