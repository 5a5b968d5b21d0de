"""COCO as fetch delivers it, against what the mirror serves: annotations read by pycocotools, archives by zipfile."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from mirror import Fault, Mirror, annotations, build, drawn, karpathy, pack
from moto.server import ThreadedMotoServer
from pycocotools.coco import COCO

from stages.fetch import coco, coco_files, download
from stages.fetch.captions import CaptionsError
from stages.fetch.coco import CocoError, Splits, by_halves, fetch_coco, limited, read_karpathy
from stages.fetch.download import DownloadError
from stages.fetch.pictures import PictureError, Pictures
from stages.fetch.remote import RemoteError
from stages.fetch.settings import Coco

REPOSITORY = Path(__file__).resolve().parent.parent
Fetch = Callable[..., tuple[Splits, dict[str, Any]]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("mirror"))


@pytest.fixture
def mirror(served: Path) -> Iterator[Mirror]:
    with Mirror(served) as mirror:
        yield mirror


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data" / "coco"


def settings(mirror: Mirror | None = None, **changes: Any) -> Coco:
    url = mirror.url if mirror else "http://no.server.is.asked"
    given: dict[str, Any] = {
        "source": "coco",
        "year": 2014,
        "split": "karpathy",
        "limit": None,
        "seed": 1,
        "base_url": url,
        "karpathy": f"{url}/caption_datasets.zip",
        "images": None,
        "annotations": None,
        "connections": 3,
        "expect": "own",
    }
    return Coco(**given | changes)


def authority(served: Path, year: int) -> dict[str, dict[int, tuple[str, list[str]]]]:
    """Member name and captions by part and picture id, read from the mirror's files by pycocotools."""
    parts = {}
    with zipfile.ZipFile(served / f"annotations/annotations_trainval{year}.zip") as archive:
        for part in ("train", "val"):
            index = COCO()
            index.dataset = json.loads(archive.read(f"annotations/captions_{part}{year}.json"))
            with contextlib.redirect_stdout(io.StringIO()):
                index.createIndex()
            parts[part] = {
                i: (f"{part}{year}/{index.imgs[i]['file_name']}", [a["caption"] for a in index.imgToAnns[i]])
                for i in index.imgs
            }
    return parts


def of_split(served: Path, split: str, year: int) -> dict[str, dict[int, tuple[str, list[str]]]]:
    parts = authority(served, year)
    if split == "official":
        half = len(parts["val"]) // 2
        ids = {"train": list(parts["train"]), "val": sorted(parts["val"])[:half], "test": sorted(parts["val"])[half:]}
    else:
        with zipfile.ZipFile(served / "caption_datasets.zip") as archive:
            images = json.loads(archive.read("dataset_coco.json"))["images"]
        wanted = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}
        ids = {name: [i["cocoid"] for i in images if i["split"] in splits] for name, splits in wanted.items()}
    both = parts["train"] | parts["val"]
    return {name: {i: both[i] for i in sorted(ids[name])} for name in ids}


def found(splits: Splits) -> dict[str, dict[int, tuple[str, list[str]]]]:
    return {split: {p.id: (p.file_name, list(p.captions)) for p in pictures} for split, pictures in splits.items()}


def original(served: Path, name: str) -> bytes:
    with zipfile.ZipFile(served / f"zips/{name.split('/')[0]}.zip") as archive:
        return archive.read(name)


# --- whole and limited, both years, both splits ---


@pytest.mark.parametrize("year", [2014, 2017])
@pytest.mark.parametrize("split", ["official", "karpathy"])
def test_whole(mirror: Mirror, data: Path, year: int, split: str, capsys: pytest.CaptureFixture[str]) -> None:
    splits, report = fetch_coco(settings(mirror, year=year, split=split), data)
    said = "COCO's own test pictures have no captions: val and test are the halves of its val, in the order of ids"
    assert report.get("test") == (said if split == "official" else None)
    assert (said in capsys.readouterr().err) == (split == "official")
    assert found(splits) == of_split(mirror.folder, split, year)
    assert [list(pictures) for pictures in found(splits).values()] == [sorted(ids) for ids in found(splits).values()]
    pictures = Pictures(data / "pictures")
    for split_pictures in splits.values():
        for picture in split_pictures:
            assert pictures.read(picture.file_name) == original(mirror.folder, picture.file_name)
    for part in ("train", "val"):
        archive = data / "pictures" / f"{part}{year}.zip"
        assert archive.is_symlink()
        assert archive.read_bytes() == (mirror.folder / f"zips/{part}{year}.zip").read_bytes()
    listed = dict(line.split("  ")[::-1] for line in (mirror.folder / "MD5SUMS").read_text().splitlines())
    assert {name: file["md5"] for name, file in report["files"].items()}.items() <= listed.items()


@pytest.mark.parametrize("year", [2014, 2017])
@pytest.mark.parametrize("split", ["official", "karpathy"])
def test_limited(mirror: Mirror, data: Path, year: int, split: str) -> None:
    splits, report = fetch_coco(settings(mirror, year=year, split=split, limit=5), data)
    expected = of_split(mirror.folder, split, year)
    for name, pictures in found(splits).items():
        ranked = sorted(expected[name], key=lambda i: hashlib.sha256(f"1/{i}".encode()).hexdigest())[:5]
        assert pictures == {i: expected[name][i] for i in sorted(ranked)}
    assert [path.name for path in (data / "pictures").iterdir()] == [f"coco{year}_5.zip"]
    archive = Pictures(data / "pictures")
    assert sorted(archive) == sorted(p.file_name for pictures in splits.values() for p in pictures)
    for name in archive:
        assert archive.read(name) == original(mirror.folder, name)
    lines = "".join(f"{i}\n" for i in sorted(expected["test"]))
    of_test = {"pictures": len(expected["test"]), "ids_sha256": hashlib.sha256(lines.encode()).hexdigest()}
    assert report["limit"] | {"of": None} == {"pictures": 5, "seed": 1, "of": None}
    assert report["limit"]["of"]["test"] == of_test
    whole = (mirror.folder / f"zips/train{year}.zip").stat().st_size
    ranges = [r.range[6:].split("-") for r in mirror.requests if r.path == f"/zips/train{year}.zip" and r.range]
    assert sum(int(last) + 1 - int(first) for first, last in ranges) < whole, (
        "as much as the whole archive was asked for"
    )


def test_a_larger_limit_keeps_the_pictures_of_a_smaller() -> None:
    pictures, captions = drawn()
    part = [coco.Picture(i, f"train2014/{i}.jpg", 64, 48, tuple(captions[i])) for i in pictures]
    splits = by_halves({"train": part[:60], "val": part[60:]})
    few, more = limited(splits, 7, 3), limited(splits, 15, 3)
    assert all(set(few[split]) < set(more[split]) for split in few)
    assert limited(splits, 7, 4) != few
    assert [len(more[split]) for split in more] == [15, 10, 10]


def test_the_same_settings_give_the_same_bytes_from_the_server_and_from_here(
    mirror: Mirror, data: Path, tmp_path: Path
) -> None:
    """`limit` picks out of archives that were downloaded whole, or that the user has, just as out of the server's."""
    limit = settings(mirror, limit=4)
    splits, report = fetch_coco(limit, data)
    picked = (data / "pictures" / "coco2014_4.zip").read_bytes()
    fetch_coco(settings(mirror), data)
    mirror.requests.clear()
    assert fetch_coco(limit, data) == (splits, report)
    assert (data / "pictures" / "coco2014_4.zip").read_bytes() == picked
    assert not [request for request in mirror.requests if request.path.startswith("/zips")]
    unpacked = tmp_path / "unpacked"
    for part in ("train2014", "val2014"):
        with zipfile.ZipFile(mirror.folder / f"zips/{part}.zip") as archive:
            archive.extractall(unpacked)
    for images in (unpacked, mirror.folder / "zips"):
        (data / "pictures" / "coco2014_4.zip").unlink()
        assert fetch_coco(settings(mirror, limit=4, images=str(images)), data)[0] == splits
        assert (data / "pictures" / "coco2014_4.zip").read_bytes() == picked


def test_nothing_of_a_limited_choice_gets_into_the_whole(
    mirror: Mirror, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch_coco(settings(mirror, limit=4), data)
    fetch_coco(settings(mirror), data)
    assert "coco2014_4.zip is from other settings: removed, nothing of it is used" in capsys.readouterr().err
    assert sorted(path.name for path in (data / "pictures").iterdir()) == ["train2014.zip", "val2014.zip"]


def test_a_second_fetch_asks_for_no_archive_again(mirror: Mirror, data: Path, tmp_path: Path) -> None:
    fetch_coco(settings(mirror), data)
    fetch_coco(settings(mirror, limit=3), data)
    mirror.requests.clear()
    fetch_coco(settings(mirror, limit=3), data)
    fetch_coco(settings(mirror), tmp_path / "data" / "another_profile")
    assert {request.path for request in mirror.requests} == {"/MD5SUMS"}


def test_a_copy_of_the_repository_uses_the_archives_of_the_repository(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under `dvc exp run --temp`, which says in DVC_ROOT where the repository is."""
    parent, copy = tmp_path / "repository", tmp_path / "copy"
    copy.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(parent))
    monkeypatch.chdir(copy)
    fetch_coco(settings(mirror), Path("data/coco"))
    for part in ("train2014", "val2014"):
        assert (copy / f"data/coco/pictures/{part}.zip").resolve() == parent / f"data/downloads/{part}.zip"


def test_another_address_is_another_split_file(mirror: Mirror, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Karpathy's split has no md5: the same file name elsewhere is fetched anew, the same address is not, killed or
    not; a file of which nobody noted from where it came counts as from the address that asks first."""
    with zipfile.ZipFile(mirror.folder / "caption_datasets.zip") as archive:
        document = json.loads(archive.read("dataset_coco.json"))
    for image in document["images"]:
        image["split"] = {"val": "test", "test": "val"}.get(image["split"], image["split"])
    pack(mirror.folder / "swapped/caption_datasets.zip", {"dataset_coco.json": json.dumps(document).encode()})
    here = settings(mirror, limit=3)
    there = settings(mirror, limit=3, karpathy=f"{mirror.url}/swapped/caption_datasets.zip")
    splits, _ = fetch_coco(here, data)

    def asked(chosen: Coco) -> set[str]:
        """Fetches; which split files the mirror was asked for."""
        mirror.requests.clear()
        found, _ = fetch_coco(chosen, data)
        order = ("train", "val", "test") if chosen is here else ("train", "test", "val")
        assert [found[split] for split in order] == [splits[split] for split in ("train", "val", "test")]
        return {request.path for request in mirror.requests if request.path.endswith("caption_datasets.zip")}

    (data.parent / "downloads/.caption_datasets.zip.from").unlink()
    assert asked(here) == set()
    mirror.faults["/swapped/caption_datasets.zip"] = [Fault("status", 404)]
    with pytest.raises(CocoError, match="answered 404"):
        fetch_coco(there, data)
    assert asked(here) == set(), "what was there stays until the other has come"
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed_at(Path.replace, "caption_datasets.zip"))
        with pytest.raises(KeyboardInterrupt):
            fetch_coco(there, data)
    assert asked(here) == {"/caption_datasets.zip"}
    assert asked(there) == {"/swapped/caption_datasets.zip"}
    assert asked(there) == set()


# --- killed ---


def killed_at(replace: Callable[[Path, Path], Path], name: str) -> Callable[[Path, Path], Path]:
    """`replace`, but nothing is done where `target` has the name: KeyboardInterrupt stands for a kill."""

    def instead(path: Path, target: Path) -> Path:
        if target.name == name:
            raise KeyboardInterrupt
        return replace(path, target)

    return instead


RUN = """
import json, sys
from pathlib import Path
from stages.fetch.coco import fetch_coco
from stages.fetch.settings import Coco
fetch_coco(Coco(**json.loads(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("annotations/annotations_trainval2014.zip", None),
        ("caption_datasets.zip", None),
        ("zips/train2014.zip", None),
        ("zips/val2014.zip", None),
        ("zips/train2014.zip", 20),
    ],
)
def test_killed_in_each_download_and_run_again(
    mirror: Mirror, data: Path, tmp_path: Path, name: str, limit: int
) -> None:
    chosen = settings(mirror, limit=limit, connections=1)
    size = (mirror.folder / name).stat().st_size
    asked_for_size = 2 if name.startswith("zips") else 1  # for the room needed, and when the download begins
    mirror.faults[f"/{name}"] = [None] * (15 if limit else asked_for_size) + [Fault("stall", 9 if limit else size // 2)]
    mirror.silence = 30
    command = [sys.executable, "-c", RUN, chosen.model_dump_json(), str(data)]
    process = subprocess.Popen(command, cwd=REPOSITORY)
    partial = f"{'coco2014_20.zip' if limit else Path(name).name}.*.partial"
    until = time.monotonic() + 60
    partials: list[Path] = []
    while mirror.faults[f"/{name}"] or not partials:
        assert process.poll() is None, "it was through too early"
        assert time.monotonic() < until
        partials = [path for path in (data.parent / "downloads").glob(partial) if path.stat().st_size]
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list((data / "pictures").glob("*.zip"))
    reached = partials[0].stat().st_size
    mirror.requests.clear()
    fetch_coco(chosen, data)
    first = next(r.range for r in mirror.requests if r.path == f"/{name}" and r.range != "bytes=0-0")
    if limit is None:
        assert first.startswith(f"bytes={reached}-"), "it did not go on where it stopped"
    again = len(mirror.requests)
    straight = tmp_path / "straight" / "coco"
    fetch_coco(chosen, straight)
    assert limit is None or again < len(mirror.requests) - again, "nothing of the killed run was used"
    for path in (straight / "pictures").iterdir():
        assert (data / "pictures" / path.name).read_bytes() == path.read_bytes()
    assert not list((data.parent / "downloads").glob("*.partial"))


# --- what the user has already ---


def test_own_archives_are_verified_and_used_where_they_lie(
    mirror: Mirror, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With COCO's own sums expected; here the mirror's stand for them."""
    lines = [line.split("  ")[::-1] for line in (mirror.folder / "MD5SUMS").read_text().splitlines()]
    monkeypatch.setattr(
        coco_files, "OFFICIAL", {name: ((mirror.folder / name).stat().st_size, md5) for name, md5 in lines}
    )
    monkeypatch.setitem(coco.COUNTS, ("karpathy", 2014), (64, 8, 8))
    own = {
        "expect": "official",
        "images": str(mirror.folder / "zips"),
        "annotations": str(mirror.folder / "annotations/annotations_trainval2014.zip"),
        "karpathy": str(mirror.folder / "caption_datasets.zip"),
    }
    splits, _ = fetch_coco(settings(**own), data)
    assert found(splits) == of_split(mirror.folder, "karpathy", 2014)
    assert (data / "pictures/train2014.zip").resolve() == mirror.folder / "zips/train2014.zip"
    monkeypatch.setattr(download, "_hash", None)  # a second time, nothing is read again
    assert fetch_coco(settings(**own), data)[0] == splits
    monkeypatch.undo()
    size = f"{(mirror.folder / 'annotations/annotations_trainval2014.zip').stat().st_size:,}"
    with pytest.raises(
        DownloadError, match=rf"annotations_trainval2014.zip has md5 \w+, expected 0a379cfc|{size} bytes"
    ):
        fetch_coco(settings(**own), data)
    own |= {"year": 2017, "annotations": str(mirror.folder / "annotations/annotations_trainval2017.zip")}
    with pytest.raises(DownloadError, match=r"_trainval2017.zip has [\d,]+ bytes, expected 252,907,541: delete it"):
        fetch_coco(settings(**own), data)


def test_unpacked_annotations_and_split(mirror: Mirror, data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(mirror.folder / "annotations/annotations_trainval2014.zip") as archive:
        archive.extractall(tmp_path)
    with zipfile.ZipFile(mirror.folder / "caption_datasets.zip") as archive:
        archive.extract("dataset_coco.json", tmp_path)
    own = {"annotations": str(tmp_path / "annotations"), "karpathy": str(tmp_path / "dataset_coco.json")}
    splits, report = fetch_coco(settings(images=str(mirror.folder / "zips"), **own), data)
    assert found(splits) == of_split(mirror.folder, "karpathy", 2014)
    assert len(report["files"]) == 5


def test_unpacked_pictures_are_used_where_they_lie(mirror: Mirror, data: Path, tmp_path: Path) -> None:
    for part in ("train2017", "val2017"):
        with zipfile.ZipFile(mirror.folder / f"zips/{part}.zip") as archive:
            archive.extractall(tmp_path / "unpacked")
    splits, _ = fetch_coco(settings(mirror, year=2017, images=str(tmp_path / "unpacked")), data)
    assert found(splits) == of_split(mirror.folder, "karpathy", 2017)
    pictures = pickle.loads(pickle.dumps(Pictures(data / "pictures")))
    packed = Pictures(mirror.folder / "zips")
    for picture in splits["train"]:
        assert pictures.read(picture.file_name) == packed.read(picture.file_name)
        assert pictures.checksum(picture.file_name) == packed.checksum(picture.file_name)
    here = sorted(path.name for path in (data / "pictures").iterdir())
    assert here == ["train2017", "train2017.txt", "val2017", "val2017.txt"]
    gone = splits["val"][0].file_name
    (tmp_path / "unpacked" / gone).unlink()
    with pytest.raises(PictureError, match=f"{gone} was in .* before"):
        pictures.read(gone)


def test_a_mirror_can_be_a_folder(served: Path, data: Path) -> None:
    splits, _ = fetch_coco(settings(base_url=str(served), karpathy=f"file://{served}/caption_datasets.zip"), data)
    assert found(splits) == of_split(served, "karpathy", 2014)


def test_a_mirror_can_be_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """s3:// through fsspec, from an S3 server on loopback: members of the archives, and whole ones."""
    served = build(tmp_path / "served", tmp_path / "nothing", (2014,))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        address = "http://{}:{}".format(*server.get_host_and_port())
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        client = boto3.client("s3", endpoint_url=address)
        client.create_bucket(Bucket="coco")
        for path in (path for path in served.rglob("*") if path.is_file()):
            client.upload_file(str(path), "coco", f"mirror/{path.relative_to(served)}")
        bucket = {"base_url": "s3://coco/mirror", "karpathy": "s3://coco/mirror/caption_datasets.zip"}
        folder = {"base_url": str(served), "karpathy": str(served / "caption_datasets.zip")}
        for limit in (4, None):
            found, wanted = tmp_path / f"found{limit}" / "coco", tmp_path / f"wanted{limit}" / "coco"
            assert (
                fetch_coco(settings(**bucket, limit=limit), found)[0]
                == fetch_coco(settings(**folder, limit=limit), wanted)[0]
            )
            for path in (wanted / "pictures").iterdir():
                assert (found / "pictures" / path.name).read_bytes() == path.read_bytes()
        with pytest.raises(CocoError, match=r"s3://coco/gone/MD5SUMS: FileNotFoundError"):
            fetch_coco(settings(**bucket | {"base_url": "s3://coco/gone"}), tmp_path / "gone" / "coco")
    finally:
        server.stop()


# --- what is wrong ---


def refused(message: str, chosen: Coco, data: Path) -> None:
    """The message comes as a clear error, and no picture is there."""
    with pytest.raises((CocoError, CaptionsError, RemoteError, DownloadError, ValueError), match=message) as caught:
        fetch_coco(chosen, data)
    assert type(caught.value) is not KeyError
    assert not list(data.glob("pictures/*"))


def given(tmp_path: Path, **documents: bytes) -> Path:
    """A folder of annotations: the mirror's stand-in, with some files replaced."""
    pictures, captions = drawn()
    ids = list(pictures)
    names = {i: f"COCO_train2014_{i:012d}.jpg" for i in ids}
    folder = tmp_path / "annotations"
    folder.mkdir(exist_ok=True)
    for part, chosen in {"train": ids[:60], "val": ids[60:]}.items():
        default = annotations({i: captions[i] for i in chosen}, names)
        (folder / f"captions_{part}2014.json").write_bytes(documents.get(part, default))
    (tmp_path / "dataset_coco.json").write_bytes(karpathy(dict.fromkeys(ids, "train")))
    return folder


def edited(tmp_path: Path, edit: Callable[[dict[str, Any]], Any]) -> str:
    """The folder with train's document changed by `edit`."""
    document = json.loads((given(tmp_path) / "captions_train2014.json").read_text())
    edit(document)
    return str(given(tmp_path, train=json.dumps(document).encode()))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda d: d["annotations"][3].update(image_id=1),
            r"captions_train2014.json: caption \d+ belongs to picture 1,",
        ),
        (lambda d: d["images"].append({"id": 1, "file_name": "a.jpg"}), r"picture 1 \(a.jpg\) has no caption"),
        (lambda d: d["images"].append(d["images"][0]), r"images\[60\] has id \d+, which an earlier entry has"),
        (lambda d: d["annotations"].append(d["annotations"][0]), r"annotations\[300\] has id \d+, which an earlier"),
        (lambda d: d["images"][0].update(file_name="../../a.jpg"), r"'../../a.jpg' climbs out of its folder"),
        (lambda d: d["images"][0].update(file_name="/etc/passwd"), r"'/etc/passwd' must be relative"),
        (
            lambda d: d["images"][0].update(file_name="C:\\a.jpg"),
            r"must be relative: no leading slash, no drive letter",
        ),
        (lambda d: d["annotations"][0].update(caption=" "), r"has an empty caption"),
        (lambda d: d.pop("images"), r"is not in COCO's captions format"),
    ],
)
def test_annotations_that_are_wrong(tmp_path: Path, data: Path, edit: Any, message: str) -> None:
    refused(message, settings(annotations=edited(tmp_path, edit), split="official"), data)


def test_annotations_that_are_cut_or_of_another_year(mirror: Mirror, tmp_path: Path, data: Path) -> None:
    folder = given(tmp_path, train=annotations({1: ["a"]}, {1: "a.jpg"})[:-9])
    refused(r"captions_train2014.json \(\d+ bytes\) is not whole JSON", settings(annotations=str(folder)), data)
    refused("captions_train2017.json is not there", settings(annotations=str(folder), year=2017), data)
    other = str(mirror.folder / "annotations/annotations_trainval2017.zip")
    refused("does not hold captions_train2014.json, but .*: is it of another year", settings(annotations=other), data)
    cut = tmp_path / "cut.zip"
    cut.write_bytes(Path(other).read_bytes()[:900])
    refused(r"cut.zip \(900 bytes\) is damaged", settings(annotations=str(cut)), data)
    bomb = bytearray(Path(other).read_bytes())
    for entry in re.finditer(b"PK\1\2", bytes(bomb)):
        bomb[entry.start() + 24 : entry.start() + 28] = (3 << 30).to_bytes(4, "little")
    cut.write_bytes(bomb)
    refused("declares 3,221,225,472 bytes, over", settings(annotations=str(cut), year=2017), data)
    for entry in re.finditer(b"PK\1\2", bytes(bomb)):  # declares 100 bytes, and would unpack to more
        bomb[entry.start() + 24 : entry.start() + 28] = (100).to_bytes(4, "little")
    cut.write_bytes(bomb)
    refused("cut.zip .* is damaged: Bad CRC-32", settings(annotations=str(cut), year=2017), data)


def test_wrong_counts_stop_before_a_picture_is_asked_for(mirror: Mirror, tmp_path: Path, data: Path) -> None:
    folder = str(given(tmp_path))
    own = settings(mirror, annotations=folder, expect="official", split="official")
    refused(
        "official split of 2014 has 60 / 10 / 10 pictures in train, val, test, expected 82,783 / 20,252 / 20,252",
        own,
        data,
    )
    split = str(tmp_path / "dataset_coco.json")
    own = settings(mirror, annotations=folder, expect="official", karpathy=split)
    refused(
        "karpathy split of 2014 has 80 / 0 / 0 pictures in train, val, test, expected 113,287 / 5,000 / 5,000",
        own,
        data,
    )
    assert mirror.requests == []


def test_ids_that_only_one_side_knows_are_counted_or_refused(
    mirror: Mirror, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = tmp_path / "dataset_coco.json"
    with zipfile.ZipFile(mirror.folder / "caption_datasets.zip") as archive:
        document = json.loads(archive.read("dataset_coco.json"))
    lost = next(image for image in document["images"] if image["split"] == "train")
    lost["cocoid"] = 0
    split.write_text(json.dumps(document))
    splits, report = fetch_coco(settings(mirror, karpathy=str(split)), data)
    assert report["unmatched"] == {"without_split": 1, "without_captions": 1}
    assert [len(pictures) for pictures in splits.values()] == [63, 8, 8]
    monkeypatch.setitem(coco.COUNTS, ("karpathy", 2014), (63, 8, 8))
    with pytest.raises(
        CocoError, match=r"and {'without_split': 1, 'without_captions': 1}: the annotations or the split are"
    ):
        coco.check_counts(splits, "karpathy", 2014, report["unmatched"])


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"images": [], "dataset": "flickr8k"}, "is not Karpathy's dataset_coco.json"),
        ([], "is not Karpathy's dataset_coco.json"),
        ({"images": [{"cocoid": 1, "split": "dev"}]}, r"images\[0\] must have a `cocoid` and a `split` of train"),
        ({"images": [{"cocoid": 1, "split": "val"}] * 2}, r"images\[1\] has cocoid 1, which an earlier one has"),
    ],
)
def test_a_split_file_that_is_wrong(tmp_path: Path, document: Any, message: str) -> None:
    (tmp_path / "split.json").write_text(json.dumps(document))
    with pytest.raises(CocoError, match=message):
        read_karpathy(tmp_path / "split.json")


def test_a_dead_link_names_the_way_out(mirror: Mirror, data: Path) -> None:
    dead = settings(mirror, karpathy=f"{mirror.url}/gone.zip")
    refused("gone.zip answered 404 Not Found. Set `karpathy` to a mirror, or to a file that you have", dead, data)
    mirror.faults["/annotations/annotations_trainval2017.zip"] = [Fault("status", 403)]
    refused(
        "answered 403 Forbidden. `base_url` can name a mirror, `images` and `annotations` files that",
        settings(mirror, year=2017),
        data,
    )
    refused("is not there: `karpathy` must be an address", settings(mirror, karpathy="nowhere.json"), data)
    refused("With `expect: own`, base_url must hold MD5SUMS", settings(mirror, base_url=f"{mirror.url}/zips"), data)


def test_archives_of_another_year_or_without_some_pictures(mirror: Mirror, tmp_path: Path, data: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    refused("holds neither train2014.zip nor the folder train2014", settings(mirror, images=str(own)), data)
    (own / "train2014.zip").symlink_to(mirror.folder / "zips/train2017.zip")
    refused(
        r"lacks 56 of 56 pictures, .*; it holds train2017/.*: is it cut, or of another year",
        settings(mirror, images=str(own)),
        data,
    )
    (own / "train2014.zip").unlink()
    with zipfile.ZipFile(mirror.folder / "zips/train2014.zip") as archive:
        archive.extractall(own)
    next((own / "train2014").iterdir()).unlink()
    refused(r"own lacks 1 of 56 pictures of train2014, train2014/", settings(mirror, images=str(own)), data)


def test_a_full_disk_is_told_with_all_that_is_needed(
    mirror: Mirror, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = sum((mirror.folder / f"zips/{part}2014.zip").stat().st_size for part in ("train", "val"))
    usage = download.shutil.disk_usage(data.parent.parent)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    refused(
        f"has {needed - 1:,} bytes free and train2014.zip, val2014.zip needs {needed:,} more", settings(mirror), data
    )
    assert not [r for r in mirror.requests if r.path.startswith("/zips") and r.range != "bytes=0-0"]


@pytest.mark.parametrize("setting", ["base_url", "karpathy", "images", "annotations"])
def test_what_lies_where_fetch_deletes_is_refused_and_stays(served: Path, data: Path, setting: str) -> None:
    places = {
        "base_url": ".",
        "karpathy": "caption_datasets.zip",
        "images": "zips",
        "annotations": "annotations/annotations_trainval2014.zip",
    }
    shutil.copytree(served, data / "pictures")
    own = {name: str((data / "pictures" if name == setting else served) / place) for name, place in places.items()}
    with pytest.raises(ValueError, match=rf"fetch\.{setting}: .* must lie outside .*coco/pictures, where fetch"):
        fetch_coco(settings(**own), data)
    assert {path.name for path in (data / "pictures").rglob("*.zip")} == {path.name for path in served.rglob("*.zip")}


def test_what_changed_on_the_way_is_never_kept(mirror: Mirror, data: Path) -> None:
    for name in ("annotations/annotations_trainval2014.zip", "zips/val2014.zip"):
        mirror.faults[f"/{name}"] = [
            None,
            *[Fault("wrong", 99)] * 3,
        ]  # one may meet a question for the size
        refused(f"{name} came with md5 .*, expected .*, twice", settings(mirror, connections=1), data)
    fetch_coco(settings(mirror), data)


def test_a_picture_that_changed_on_the_way_is_refused(mirror: Mirror, data: Path) -> None:
    mirror.faults["/zips/train2014.zip"] = [*[None] * 8, *[Fault("wrong", 300)] * 99]
    refused(
        r"train2014/\S+ (has other bytes than the directory declares|has no header)", settings(mirror, limit=30), data
    )
