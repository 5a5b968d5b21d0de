"""Flickr8k as it is distributed: every layout gives the same pictures, every doubt is reported or an error."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from builders import picture, run

from stages.fetch.captions import SPLITS, read_captions
from stages.fetch.flickr8k import LISTS, TOKENS
from stages.fetch.pictures import Pictures
from stages.files import sha256

TRAIN = [*(f"{number}_aa.jpg" for number in range(100, 104)), "104_aa.JPG", "105_aa.jpeg"]
DEV = [f"{number}_bb.jpg" for number in (205, 201, 203, 202, 204)]  # the list's order, not the alphabet's
TEST = ["301_cc.jpg", "300_cc.jpg"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small Flickr8k in the layout of ../shared: a zip, tokens, and lists of train and dev."""
    root = tmp_path / "flickr8k"
    root.mkdir()
    with zipfile.ZipFile(root / "Flickr8k_Dataset.zip", "w") as archive:
        for place, name in enumerate(TRAIN + DEV):
            archive.writestr(f"Flicker8k_Dataset/{name}", picture(size=(20 + place, 30)))
    lines = [f"{name}#{k}\tA dog {name[:3]} {k} .\n" for name in TRAIN + DEV for k in range(5)]
    (root / TOKENS).write_text("".join(lines))
    (root / LISTS["train"]).write_text("\n".join(TRAIN) + "\n")
    (root / LISTS["dev"]).write_text("\n".join(DEV))  # the distributed lists end with or without a line's end
    return root


def unpack(root: Path, name: str) -> None:
    with zipfile.ZipFile(root / "Flickr8k_Dataset.zip") as archive:
        archive.extractall(root)
    (root / "Flicker8k_Dataset").rename(root / name)
    (root / "Flickr8k_Dataset.zip").unlink()


def fetch(root: Path, allow_missing: int = 0) -> tuple[Path, dict[str, list[str]], dict[str, Any]]:
    """Runs the stage; returns data/mine, the picture names of each split, and the report."""
    data = run("fetch", root.parent, source="flickr8k", root=str(root), allow_missing=allow_missing)
    splits = {split: read_captions(data / f"captions_{split}.json") for split in SPLITS}
    names = {split: [Path(entry.file_name).name for entry in splits[split]] for split in SPLITS}
    return data, names, json.loads((root.parent / "reports/mine/fetch.json").read_text())


def add(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


# --- what is fetched --------------------------------------------------------------------------------------------------


def test_without_a_test_list_dev_is_halved_in_its_order(root: Path) -> None:
    data, names, report = fetch(root)
    assert names == {"train": TRAIN, "val": DEV[:2], "test": DEV[2:]}
    first = read_captions(data / "captions_val.json")[0]
    assert (first.id, first.width, first.height) == (205, 26, 30)
    assert first.captions == tuple(f"A dog 205 {k} ." for k in range(5))
    assert report["splits"]["train"]["captions"] == 30


def test_a_test_list_is_used_where_there_is_one(root: Path) -> None:
    (root / LISTS["test"]).write_text("\n".join(TEST))
    add(root / TOKENS, "".join(f"{name}#0\tA cat .\n" for name in TEST))
    with zipfile.ZipFile(root / "Flickr8k_Dataset.zip", "a") as archive:
        for name in TEST:
            archive.writestr(f"Flicker8k_Dataset/{name}", picture())
    assert fetch(root)[1] == {"train": TRAIN, "val": DEV, "test": TEST}


def test_the_zip_is_linked_and_not_copied(root: Path) -> None:
    data, _, _ = fetch(root)
    linked = data / "pictures" / "Flickr8k_Dataset.zip"
    assert linked.readlink() == root / "Flickr8k_Dataset.zip"


def test_a_second_run_writes_the_same_bytes(root: Path) -> None:
    data, _, _ = fetch(root)
    files = [*data.glob("*.json"), root.parent / "reports/mine/fetch.json"]
    before = [sha256(path) for path in files]
    fetch(root)
    assert [sha256(path) for path in files] == before


@pytest.mark.parametrize("name", ["Flicker8k_Dataset", "Flickr8k_Dataset", "Images"])
def test_unpacked_pictures_give_the_same_as_the_zip(root: Path, name: str) -> None:
    packed, _, _ = fetch(root)
    expected = {split: read_captions(packed / f"captions_{split}.json") for split in SPLITS}
    unpack(root, name)
    zipfile.ZipFile(root / "Flickr8k_text.zip", "w").close()  # lies beside it where the set was downloaded
    data, _, _ = fetch(root)
    assert [path.name for path in (data / "pictures").iterdir()] == [f"{name}.zip"]  # the link is gone
    pictures = Pictures(data / "pictures")
    for split in SPLITS:
        for entry, other in zip(read_captions(data / f"captions_{split}.json"), expected[split], strict=True):
            assert (entry.id, entry.captions, entry.width) == (other.id, other.captions, other.width)
            assert pictures.read(entry.file_name) == (root / name / Path(entry.file_name).name).read_bytes()


def test_any_folder_in_the_zip_and_the_macs_shadows_of_files(root: Path) -> None:
    with zipfile.ZipFile(root / "Flickr8k_Dataset.zip") as archive:
        members = {Path(name).name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(root / "Flickr8k_Dataset.zip", "w") as archive:
        for name, data in members.items():
            archive.writestr(f"any/where/{name}", data)
            archive.writestr(f"__MACOSX/any/where/{name}", b"shadow")
    zipfile.ZipFile(root / "Flickr8k_text.zip", "w").close()  # lies beside it where the set was downloaded
    assert fetch(root)[1]["train"] == TRAIN


@pytest.mark.shared
def test_the_real_set(shared: Path, tmp_path: Path) -> None:
    root = tmp_path / "flickr8k"
    shutil.copytree(shared / "flickr8k", root, copy_function=lambda source, target: Path(target).symlink_to(source))
    data, names, report = fetch(root)
    lists = {kind: (root / LISTS[kind]).read_text().split() for kind in ("train", "dev")}
    assert names == {"train": lists["train"], "val": lists["dev"][:500], "test": lists["dev"][500:]}
    assert {split: report["splits"][split]["captions"] for split in SPLITS} == {
        "train": 30_000,
        "val": 2_500,
        "test": 2_500,
    }
    assert report["captions_without_picture"]["count"] == report["pictures_without_captions"]["count"] == 0
    first = read_captions(data / "captions_train.json")[0]
    lines = [line for line in (root / TOKENS).read_text().splitlines() if line.startswith(f"{first.id}_")]
    assert list(first.captions) == [line.split("\t")[1] for line in lines]


# --- what is reported -------------------------------------------------------------------------------------------------


def test_captions_without_a_picture_are_counted_and_named(root: Path) -> None:
    odd = "2258277193_586949ec62.jpg.1"  # in the distributed set
    add(root / TOKENS, "".join(f"{odd}#{k}\tA man .\n" for k in range(5)))
    assert fetch(root)[2]["captions_without_picture"] == {"count": 1, "names": [odd]}


def test_pictures_without_captions_are_counted_named_and_left_out(root: Path) -> None:
    with zipfile.ZipFile(root / "Flickr8k_Dataset.zip", "a") as archive:
        archive.writestr("Flicker8k_Dataset/900_x.jpg", picture())
    (root / TOKENS).write_text("".join(f"{n}#0\tA dog .\n" for n in TRAIN[1:] + DEV))
    _, names, report = fetch(root)
    assert report["pictures_without_captions"] == {"count": 2, "names": [TRAIN[0], "900_x.jpg"]}
    assert names["train"] == TRAIN[1:]


def test_missing_pictures_that_are_allowed_are_left_out_and_named(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unpack(root, "Images")
    (root / "Images" / TRAIN[0]).unlink()
    (root / "Images" / DEV[4]).write_bytes(picture()[:-100])
    _, names, report = fetch(root, allow_missing=2)
    assert names == {"train": TRAIN[1:], "val": DEV[:2], "test": DEV[2:4]}
    assert report["left_out"].keys() == {TRAIN[0], DEV[4]}
    assert f"fetch: left out {TRAIN[0]}: is not there" in capsys.readouterr().err


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_missing_picture_of_a_split_is_an_error(root: Path) -> None:
    unpack(root, "Images")
    (root / "Images" / TRAIN[0]).unlink()
    message = rf"1 picture is missing or damaged, and fetch.allow_missing is 0: .* set it to 1 .*\n  {TRAIN[0]} is not"
    with pytest.raises(ValueError, match=message):
        fetch(root)
    assert not (root.parent / "data/mine/captions_train.json").exists()


def test_a_picture_missing_from_the_zip_is_an_error(root: Path) -> None:
    add(root / LISTS["train"], "107_aa.jpg\n")
    add(root / TOKENS, "107_aa.jpg#0\tA dog .\n")
    with pytest.raises(ValueError, match=r"1 picture is missing or damaged.*\n  107_aa.jpg is not there"):
        fetch(root)


@pytest.mark.parametrize("count", [1, 250])  # one process, and two
def test_a_picture_that_does_not_decode_is_an_error(root: Path, count: int) -> None:
    names = [f"{number}_dd.jpg" for number in range(1000, 1000 + count)]
    add(root / LISTS["train"], "\n".join(names))
    add(root / TOKENS, "".join(f"{name}#0\tA dog .\n" for name in names))
    with zipfile.ZipFile(root / "Flickr8k_Dataset.zip", "a") as archive:
        for name in names:
            archive.writestr(f"Flicker8k_Dataset/{name}", picture()[: -100 if name == names[-1] else None])
    with pytest.raises(
        ValueError, match=rf"1 picture is .*\n  \S*{names[-1]} cannot be decoded \(OSError: .*[Tt]runcated"
    ):
        fetch(root)


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        (TOKENS, "100_aa.jpg A dog", "line 56: '100_aa.jpg A dog' is not `NAME.jpg#K<tab>caption`"),
        (TOKENS, "100_aa.jpg#x\tA dog", "line 56: .* is not `NAME.jpg#K<tab>caption`"),
        (TOKENS, "100_aa.jpg#5\t ", "line 56: the caption of 100_aa.jpg#5 is empty"),
        (TOKENS, "100_aa.jpg#4\tA dog .", "line 56: 100_aa.jpg#4 has a caption already"),
        (TOKENS, "../x.jpg#0\tA dog .", "'../x.jpg' climbs out of its folder"),
        (LISTS["train"], DEV[0], rf"devImages.txt, line 1: {DEV[0]} is in Flickr_8k.trainImages.txt already"),
        (LISTS["train"], TRAIN[2], rf"trainImages.txt, line 7: {TRAIN[2]} is in Flickr_8k.trainImages.txt already"),
        (LISTS["train"], "/etc/passwd", "'/etc/passwd' must be relative"),
    ],
)
def test_a_line_that_breaks_a_rule_is_told(root: Path, file: str, line: str, message: str) -> None:
    add(root / file, line + "\n")
    with pytest.raises(ValueError, match=message):
        fetch(root)


def test_text_that_is_not_utf8_is_told_with_its_line(root: Path) -> None:
    (root / TOKENS).write_bytes((root / TOKENS).read_bytes() + b"100_aa.jpg#5\tA caf\xe9 .\n")
    with pytest.raises(ValueError, match=r"token.txt, line 56: byte 0xe9 is not UTF-8; save the file as UTF-8"):
        fetch(root)


def test_two_pictures_with_one_number_of_flickrs_are_told(root: Path) -> None:
    unpack(root, "Images")
    shutil.copy(root / "Images" / TRAIN[0], root / "Images" / "100_zz.jpg")
    add(root / LISTS["train"], "100_zz.jpg\n")
    add(root / TOKENS, "100_zz.jpg#0\tA dog .\n")
    with pytest.raises(ValueError, match=r"picture 100 \(Images/100_zz.jpg\) is in train and in train"):
        fetch(root)


def test_a_name_without_flickrs_number_is_told(root: Path) -> None:
    unpack(root, "Images")
    shutil.copy(root / "Images" / TRAIN[0], root / "Images" / "dog.jpg")
    add(root / LISTS["train"], "dog.jpg\n")
    add(root / TOKENS, "dog.jpg#0\tA dog .\n")
    with pytest.raises(ValueError, match=r"dog\.jpg does not begin with Flickr's number"):
        fetch(root)


@pytest.mark.parametrize("file", [TOKENS, LISTS["train"], LISTS["dev"]])
def test_a_missing_text_is_named_with_where_it_comes_from(root: Path, file: str) -> None:
    (root / file).unlink()
    with pytest.raises(ValueError, match=rf"{file} is not there: it belongs to Flickr8k_text.zip, unpack that into"):
        fetch(root)


def test_no_pictures_no_root_or_two_archives_are_told(root: Path) -> None:
    shutil.copy(root / "Flickr8k_Dataset.zip", root / "Flicker8k_Dataset.zip")
    with pytest.raises(
        ValueError, match=r"several zip archives \(Flicker8k_Dataset.zip, Flickr8k_Dataset.zip\): leave the pictures'"
    ):
        fetch(root)
    for path in root.glob("*.zip"):
        path.unlink()
    with pytest.raises(
        ValueError, match=r"flickr8k holds no pictures: give it Flickr8k_Dataset.zip, or a folder Flicker8k_Dataset or"
    ):
        fetch(root)
    shutil.rmtree(root)
    with pytest.raises(ValueError, match="flickr8k is not a folder; it must hold Flickr8k's files"):
        fetch(root)


@pytest.mark.parametrize("linked", [False, True])
def test_a_root_where_fetch_deletes_is_refused(root: Path, linked: bool) -> None:
    """It lies there, or what it holds is a link to what lies there: neither is touched."""
    folder = root.parent / "data/mine/pictures"
    folder.mkdir(parents=True)
    (root / "Flickr8k_Dataset.zip").rename(folder / "Flickr8k_Dataset.zip")
    (root / "Flickr8k_Dataset.zip").symlink_to(folder / "Flickr8k_Dataset.zip")
    for name in (TOKENS, *list(LISTS.values())[:2]):
        shutil.copy(root / name, folder)
    before = {path: sha256(path) for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"must lie outside data/mine/pictures, where fetch deletes what it has not"):
        run("fetch", root.parent, source="flickr8k", root=str(root if linked else folder), allow_missing=0)
    assert {path: sha256(path) for path in folder.iterdir()} == before


def test_a_picture_that_is_twice_in_the_zip_is_told(root: Path) -> None:
    with zipfile.ZipFile(root / "Flickr8k_Dataset.zip", "a") as archive:
        archive.writestr(f"other/{TRAIN[0]}", picture())
    with pytest.raises(ValueError, match=rf"holds {TRAIN[0]} twice: as Flicker8k_Dataset/{TRAIN[0]} and as other/"):
        fetch(root)
