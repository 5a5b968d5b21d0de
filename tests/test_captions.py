"""Captions files: read as COCO's own reader does, every broken rule told, the same pictures the same bytes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO

from stages.fetch.captions import CaptionsError, Picture, check_name, ids_sha256, read_captions, write_captions

PICTURES = [
    Picture(7, "a/seven.jpg", 640, 480, ("A dog runs.", "Ein Hund läuft … schnell.")),
    Picture(3, "a/three.jpg", 0, 0, ('Two "cats" sleep\n',)),
]


def document() -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "one.jpg"}, {"id": 2, "file_name": "two.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "caption": "One."}, {"id": 2, "image_id": 2, "caption": "Two."}],
    }


def test_what_is_written_is_read_again_in_the_same_order(tmp_path: Path) -> None:
    write_captions(tmp_path / "c.json", PICTURES, {"description": "two"})
    assert read_captions(tmp_path / "c.json") == PICTURES


def test_cocos_own_reader_agrees(tmp_path: Path) -> None:
    write_captions(tmp_path / "c.json", PICTURES, {"description": "two"})
    coco = COCO(str(tmp_path / "c.json"))
    assert coco.getImgIds() == [7, 3]
    assert [entry["caption"] for entry in coco.imgToAnns[7]] == list(PICTURES[0].captions)
    assert coco.getAnnIds() == [1, 2, 3]


@pytest.mark.shared
def test_cocos_official_file_survives_the_round_trip(shared: Path, tmp_path: Path) -> None:
    official = shared / "coco" / "captions_val2017.json"
    pictures = read_captions(official)
    entries = json.loads(official.read_text())["annotations"]
    assert len(pictures) == 5_000
    assert sorted(c for p in pictures for c in p.captions) == sorted(entry["caption"] for entry in entries)
    write_captions(tmp_path / "c.json", pictures, {})
    assert read_captions(tmp_path / "c.json") == pictures


@given(
    st.lists(
        st.builds(
            Picture,
            id=st.integers(-(2**53), 2**53),
            file_name=st.uuids().map(lambda name: f"{name}.jpg"),
            width=st.integers(0, 10**6),
            height=st.integers(0, 10**6),
            captions=st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=3).map(tuple),
        ),
        unique_by=lambda picture: picture.id,
    )
)
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, pictures: list[Picture]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    write_captions(path, pictures, {})
    assert read_captions(path) == pictures


def test_reading_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_captions(tmp_path / "c.json", PICTURES, {})
    read_captions(tmp_path / "c.json")
    assert capsys.readouterr() == ("", "")


def change(**changes: Any) -> Callable[[dict[str, Any]], None]:
    """A mistake: `images_1_id=1` sets document["images"][1]["id"]."""

    def make(broken: dict[str, Any]) -> None:
        for path, value in changes.items():
            kind, place, key = path.split("_", 2)
            broken[kind][int(place)][key] = value

    return make


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda d: d.pop("images"), "must hold the lists `images` and `annotations`"),
        (lambda d: d["images"][0].pop("id"), r"images\[0\] = .* must have `id` of type int"),
        (change(images_0_id=True), r"images\[0\] = .* must have `id` of type int"),
        (change(images_1_file_name=5), r"images\[1\] = .* must have `file_name` of type str"),
        (change(annotations_1_caption=None), r"annotations\[1\] = .* must have `caption` of type str"),
        (lambda d: d["annotations"].append("x"), r"annotations\[2\] = 'x' must have `id`"),
        (change(images_1_id=1), r"images\[1\] has id 1, which an earlier entry has already"),
        (change(annotations_1_id=1), r"annotations\[1\] has id 1, which an earlier entry has already"),
        (change(images_1_file_name="one.jpg"), "picture 2 has the name one.jpg, which another picture has already"),
        (change(annotations_1_image_id=9), "caption 2 belongs to picture 9, which `images` lacks"),
        (change(annotations_1_image_id=1), r"picture 2 \(two.jpg\) has no caption"),
        (change(annotations_0_caption=" \n"), r"picture 1 \(one.jpg\) has an empty caption"),
        (change(images_0_width=-4), r"picture 1 has size \(-4, 0\)"),
        (change(images_0_file_name="../one.jpg"), "'../one.jpg' climbs out of its folder"),
    ],
)
def test_every_broken_rule_is_told_with_its_place(
    tmp_path: Path, mistake: Callable[[dict[str, Any]], None], message: str
) -> None:
    broken = document()
    mistake(broken)
    (tmp_path / "c.json").write_text(json.dumps(broken))
    with pytest.raises(CaptionsError, match=r"c\.json: .*" + message):
        read_captions(tmp_path / "c.json")


def test_pictures_without_captions_come_back_where_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({**document(), "annotations": []}))
    assert [picture.captions for picture in read_captions(tmp_path / "c.json", uncaptioned=True)] == [(), ()]


def test_cut_json_names_the_file_its_size_and_the_place(tmp_path: Path) -> None:
    write_captions(tmp_path / "c.json", PICTURES, {})
    whole = (tmp_path / "c.json").read_bytes()
    (tmp_path / "c.json").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=rf"c\.json \({len(whole) - 20} bytes\) is not whole JSON: .* line \d+"):
        read_captions(tmp_path / "c.json")


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "\\x.jpg", "C:x.jpg", "c:\\x.jpg", "a/../b", "..", "a\\..\\b", "a\0"]
)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(CaptionsError, match="picture name"):
        check_name(name)


@pytest.mark.parametrize("name", ["a.jpg", "a/b c.jpg", "..a.jpg", "a..b/c...jpg", "日本.png"])
def test_names_that_only_look_odd_are_kept(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ([PICTURES[0], PICTURES[0]], "has the name a/seven.jpg, which another"),
        ([PICTURES[0], Picture(7, "b.jpg", 1, 1, ("x",))], r"picture id 7 \(b.jpg\) is taken"),
        ([Picture(7, "b.jpg", 1, 1, ())], r"picture 7 \(b.jpg\) has no caption"),
    ],
)
def test_nothing_is_written_when_a_rule_is_broken(tmp_path: Path, pictures: list[Picture], message: str) -> None:
    with pytest.raises(CaptionsError, match=message):
        write_captions(tmp_path / "c.json", pictures, {})
    assert list(tmp_path.iterdir()) == []


def test_the_hash_of_a_split_is_that_of_its_ids_sorted_one_a_line() -> None:
    expected = subprocess.run(["sha256sum"], input=b"-1\n9\n10\n", capture_output=True, check=True).stdout.split()[0]
    assert ids_sha256([10, 9, -1]) == ids_sha256(iter([9, -1, 10])) == expected.decode()
