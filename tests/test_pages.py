"""Pages for people, in a real browser without a network: what they show is right, nothing in a caption becomes markup,
and people who use a keyboard, a phone or a screen reader can use them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import barriers, keep, opened
from builders import run
from PIL import Image, ImageEnhance
from pipelines import REPOSITORY, dvc
from playwright.sync_api import Page
from stores import git

from stages import compare, page
from stages.evaluate import gallery, scorecard
from stages.fetch.captions import Picture, write_captions
from stages.fetch.pictures import Pictures
from stages.fetch.thumbnails import thumbnails
from stages.files import write_json
from stages.scorers.score import Judge
from stages.vocab.report import to_look_at
from stages.vocab.twins import FAR, alike, groups, look

EVIL = "<script>window.stolen = 1</script><img src=x onerror='window.stolen = 1'> a dog"
LOOKS = [(1280, 900, "light"), (390, 844, "dark")]


def photograph(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Something with large and small shapes, unlike any other seed's."""
    pixels = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def jpeg(picture: Image.Image, quality: int = 90) -> bytes:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=quality)
    return data.getvalue()


# --- duplicates -------------------------------------------------------------------------------------------------------
def test_copies_are_found_and_nothing_else(tmp_path: Path) -> None:
    """Of 60 pictures ten are saved anew: smaller, at low quality, brighter, in grey. All pairs, and no other ones."""
    copies = {f"half{n}": photograph(n).resize((160, 120)) for n in range(3)} | {
        "grey3": photograph(3).convert("L").convert("RGB"),
        "bright4": ImageEnhance.Brightness(photograph(4)).enhance(1.1),
    }
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for n in range(60):
            archive.writestr(str(n), jpeg(photograph(n)))
        for name, picture in copies.items():
            archive.writestr(name, jpeg(picture, 40))
        archive.writestr("broken", b"no picture")
        archive.writestr("blank", jpeg(Image.new("RGB", (320, 240), "red")))
        archive.writestr("blank2", jpeg(Image.new("RGB", (320, 240), "blue")))
    pictures = Pictures(tmp_path / "a.zip")
    names = list(pictures)
    looks = {name: look(pictures, name) for name in names}
    assert looks.pop("broken") == "is in none of the formats JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM"
    named = list(looks)
    found = {frozenset((named[i], named[j])) for i, j in alike(list(looks.values()))}
    assert found == {frozenset((name[-1], name)) for name in copies}


def test_near_hashes_are_those_of_a_plain_comparison_of_all() -> None:
    """Buckets of bytes against every pair one by one, on hashes that are near on purpose."""
    chance = np.random.default_rng(0)
    base = [int(each) for each in chance.integers(0, 2**63, 40)]
    hashes = [
        each ^ sum(1 << int(bit) for bit in chance.choice(64, chance.integers(0, 12), replace=False))
        for each in base * 5
    ]
    grey = bytes(range(256))  # all alike, so that hashes alone decide
    from stages.vocab.twins import Look

    looks = [Look(each, grey) for each in dict.fromkeys(hashes)]
    slow = [
        (i, j) for i in range(len(looks)) for j in range(i + 1, len(looks))
        if (looks[i].hash ^ looks[j].hash).bit_count() <= FAR
    ]  # fmt: skip
    assert len(slow) > 50
    assert alike(looks) == slow


def test_groups_hang_together() -> None:
    assert groups([("d", "c"), ("a", "b"), ("c", "e")]) == [["c", "d", "e"], ["a", "b"]]


def test_a_bounded_look_keeps_room_for_training_pictures() -> None:
    pictures = {
        split: [Picture(n, f"{split}{n}", 1, 1, ("a",)) for n in range(count)]
        for split, count in (("train", 900), ("val", 50), ("test", 50))
    }
    for look_at, wanted in ((None, (900, 50, 50)), (100, (50, 25, 25)), (400, (300, 50, 50)), (0, (0, 0, 0))):
        chosen = to_look_at(pictures, look_at)
        assert tuple(len(chosen[split]) for split in ("train", "val", "test")) == wanted
    assert to_look_at(pictures, 100) == to_look_at(pictures, 100), "the same ones every time"


# --- the dataset report -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on 40 pictures, of which one lies in train and in test, one is no picture, and one was left out."""
    home = tmp_path_factory.mktemp("dataset")
    data = home / "data/mine"
    (data / "pictures").mkdir(parents=True)
    splits: dict[str, list[Picture]] = {"train": [], "val": [], "test": []}
    with zipfile.ZipFile(data / "pictures/a.zip", "w") as archive:
        for n in range(40):
            name = f"'><script>window.stolen = 1</script>{n}.jpg" if n == 7 else f"{n}.jpg"
            archive.writestr(
                name, b"broken" if n == 9 else jpeg(photograph(0 if n == 39 else n), 50 if n == 39 else 90)
            )
            captions = (EVIL, "a dog") if n == 7 else (f"a dog runs over hill {n}", "a dog on grass")
            splits["train" if n < 30 else "val" if n < 35 else "test"].append(Picture(n, name, 320, 240, captions))
    for split, pictures in splits.items():
        write_captions(data / f"captions_{split}.json", pictures, {})
    write_json(home / "reports/mine/fetch.json", {"source": "made up", "left_out": {"x<b>y.jpg": "is <i>cut</i>"}})
    run("vocab", home, min_count=2)
    first = (home / "reports/mine/dataset.html").read_bytes()
    run("vocab", home, min_count=2)
    assert (home / "reports/mine/dataset.html").read_bytes() == first, "the same bytes every time"
    return home / "reports/mine/dataset.html"


@pytest.mark.parametrize(("width", "height", "scheme"), LOOKS)
def test_the_dataset_report(dataset: Path, width: int, height: int, scheme: str) -> None:
    with opened(width, height, scheme) as shown:
        shown.goto(dataset.as_uri())
        shown.wait_for_selector("#cards img")
        assert "40 of 40" in shown.inner_text("#count")
        leak = shown.locator(".alert", has_text="Leak")
        assert "Leak: 1 picture lies in more than one split (1 in train and test)" in leak.inner_text()
        red = leak.locator("strong").evaluate("each => getComputedStyle(each).color")
        r, g, b = map(int, red[4:-1].split(", "))
        assert r > 1.3 * max(g, b), "a leak is shown in red"
        assert sorted(shown.locator(".leak figcaption .mono").all_text_contents()) == ["0.jpg", "39.jpg"]
        assert "9.jpg" in shown.inner_text("#left-out")
        assert "x<b>y.jpg" in shown.inner_text("#left-out")
        shown.fill("#search", "dog hill 3")
        assert shown.inner_text("#count") == "11 of 40 pictures", (
            "hill 3 and hills 30 to 39, and not 7: its dog is on no hill"
        )
        assert shown.locator("#cards mark").first.text_content() == "dog"
        shown.fill("#search", "stolen")
        assert shown.locator("#cards li li").first.text_content() == EVIL, "shown as it was written"
        assert shown.evaluate("window.stolen") is None
        whole_page(shown)
        keep(shown, f"dataset-{scheme}", whole=True)


def whole_page(shown: Page) -> None:
    """No barrier, and nothing sticks out to the side."""
    assert barriers(shown) == []
    assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it fits the screen's width"


def test_a_data_set_without_pictures_at_hand_is_told(tmp_path: Path) -> None:
    data = tmp_path / "data/mine"
    for n, split in enumerate(("train", "val", "test")):
        write_captions(data / f"captions_{split}.json", [Picture(n, f"{n}.jpg", 0, 0, ("a dog",))], {})
    run("vocab", tmp_path, min_count=1)
    assert "The pictures are not on this machine" in (tmp_path / "reports/mine/dataset.html").read_text()


# --- the gallery ------------------------------------------------------------------------------------------------------
SAID = [
    "a dog runs on grass",
    "a dog of",
    "a cat <unk> sleeps",
    EVIL.lower(),
    "a man a man on a horse",
    "a bird sings a song",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Picture], Mapping[int, str], dict[str, Any]]:
    """A gallery of 120 pictures, and what it is made of. The attention of picture 0's second word is top left only."""
    folder = tmp_path_factory.mktemp("gallery")
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for n in range(120):
            archive.writestr(f"{n}.jpg", jpeg(Image.new("RGB", (200, 160), "white") if n == 0 else photograph(n)))
    people = ("a dog runs on green grass", "a brown dog is running", "a bird in a tree sings")
    pictures = [Picture(n, f"{n}.jpg", 320, 240, (people[n % 3], f"picture {n} of many <b>")) for n in range(120)]
    captions = {n: [(SAID[n % len(SAID)], -0.1 - n / 100), ("another", -2.0)] for n in range(120)}
    best = {n: own[0][0] for n, own in captions.items()}
    references = {each.id: each.captions for each in pictures}
    training = scorecard.Training([("a dog of",), ("a man",)])
    card = scorecard.build(best, references, split="test", training=training, decoding={"beam": 3}, resamples=20)
    looked = {n: np.full((len(text.split()), 16), 0.01, np.float32) for n, text in best.items()}
    looked[0][1] = 0
    looked[0][1, 0] = 1
    shown = gallery.show(pictures, captions, Judge(references).score(best, with_meteor=False), training.seen, looked)
    small = thumbnails(Pictures(folder / "a.zip"), [each.file_name for each in pictures], gallery.SIDE)
    again = thumbnails(Pictures(folder / "a.zip"), [each.file_name for each in pictures], gallery.SIDE)
    first, second = (gallery.gallery("mine", card, shown, each, "A model.", False) for each in (small, again))
    assert first == second, "the same bytes every time"
    (folder / "gallery.html").write_text(first)
    return folder / "gallery.html", pictures, best, card


@pytest.fixture
def shown(made: tuple[Path, Any, Any, Any]) -> Iterator[Page]:
    with opened() as page:
        page.goto(made[0].as_uri())
        page.wait_for_function("document.querySelector('#cards img')?.naturalWidth > 0")
        yield page


def first(shown: Page, what: str) -> str:
    return str(shown.locator(f"#cards > .card {what}").first.text_content())


def test_the_gallery_orders_and_filters(shown: Page, made: tuple[Any, Any, Mapping[int, str], Any]) -> None:
    _, pictures, best, _ = made
    judge = Judge({each.id: each.captions for each in pictures})
    ciders = judge.score(best, with_meteor=False).of_pictures()["cider"]
    assert first(shown, ".mono") == "0.jpg"
    shown.select_option("#order", "best")
    assert first(shown, ".figures b") == f"{100 * max(ciders):.1f}"
    shown.select_option("#order", "worst")
    assert first(shown, ".figures b") == f"{100 * min(ciders):.1f}"
    shown.select_option("#order", "longest")
    assert first(shown, ".caption") == max(best.values(), key=lambda text: len(text.split()))
    shown.select_option("#order", "surprising")
    assert first(shown, ".mono") == "119.jpg", "its probability per word is lowest"
    shown.select_option("#order", "split")
    shown.click("[data-failure=unknown]")
    shown.wait_for_function("document.getElementById('count').textContent === '20 of 120 pictures'")
    assert first(shown, ".caption") == "a cat <unk> sleeps"
    shown.click("[data-failure=unknown]")
    shown.fill("#search", "horse")
    shown.wait_for_function("document.getElementById('count').textContent === '20 of 120 pictures'")
    assert "stock caption (20 times)" in first(shown, ".chips")
    assert "repeats itself" in first(shown, ".chips")
    shown.select_option("#where", "people")
    shown.wait_for_function("document.getElementById('count').textContent === '0 of 120 pictures'")
    assert shown.evaluate("window.stolen") is None


def test_the_gallery_grows_while_it_is_scrolled(shown: Page) -> None:
    for _ in range(40):
        if shown.locator("#cards > .card").count() == 120:
            break
        shown.mouse.wheel(0, 20_000)
        shown.wait_for_timeout(100)
    assert shown.locator("#cards > .card").count() == 120
    assert shown.evaluate("[...document.querySelectorAll('#cards img')].every((each) => each.naturalWidth > 0)")


def test_where_the_model_looked_is_bright(shown: Page) -> None:
    """By keyboard: opened with Enter, the next word with an arrow. A white picture stays white where it looked."""
    opener = shown.locator("#cards > .card").first.locator("summary", has_text="where it looked")
    opener.focus()
    shown.keyboard.press("Enter")
    word = shown.locator("#cards .words button").first
    word.focus()
    shown.keyboard.press("ArrowRight")
    assert shown.locator("#cards .words [aria-pressed=true]").inner_text() == "dog"
    grey = shown.evaluate(
        """() => { const canvas = document.querySelector('#cards canvas'), paint = canvas.getContext('2d');
        const at = (x, y) => paint.getImageData(x * canvas.width, y * canvas.height, 1, 1).data[0];
        return [at(0.05, 0.05), at(0.9, 0.1), at(0.5, 0.5), at(0.9, 0.9)]; }"""
    )
    assert grey[0] > 200 > 90 > max(grey[1:])
    assert "“dog”" in str(shown.locator("#cards canvas").get_attribute("aria-label"))


@pytest.mark.parametrize(("width", "height", "scheme"), LOOKS)
def test_the_gallery_has_no_barriers(made: tuple[Path, Any, Any, Any], width: int, height: int, scheme: str) -> None:
    with opened(width, height, scheme) as shown:
        shown.goto(made[0].as_uri())
        shown.wait_for_selector("#cards img")
        shown.locator("#cards summary").nth(0).click()
        whole_page(shown)
        rows = shown.locator("#card table tbody tr").all_text_contents()
        assert f"{100 * made[3]['cider']:.1f}" in next(row for row in rows if row.startswith("this model"))
        assert shown.locator("svg.scores .mark.m").count() == sum(made[3][m] is not None for m in gallery.METRICS)
        keep(shown, f"gallery-{scheme}")


def test_a_picture_that_cannot_be_shown_is_told(tmp_path: Path) -> None:
    text = page.page(
        "x", "", "<ul id='cards'></ul>", script="place('cards').append(picture(0, 'a dog'))", after=page.pictures([b""])
    )
    (tmp_path / "x.html").write_text(text)
    with opened() as shown:
        shown.goto((tmp_path / "x.html").as_uri())
        shown.wait_for_selector("text=this picture cannot be shown")


def test_no_script_runs_but_the_pages_own(made: tuple[Path, Any, Any, Any], tmp_path: Path) -> None:
    """Were something not escaped, the policy in the page's head would still stop it."""
    text = made[0].read_text().replace("<main", "<script>window.stolen = 1</script><main", 1)
    (tmp_path / "x.html").write_text(text)

    def visit() -> None:
        with opened(policy=True) as shown:
            shown.goto((tmp_path / "x.html").as_uri())
            shown.wait_for_selector("#cards img")
            assert shown.evaluate("window.stolen") is None

    with pytest.raises(AssertionError, match="Content Security Policy"):
        visit()


def test_data_cannot_end_its_script() -> None:
    value = ["</script><script>alert(1)</script>", "<!--", "\u2028"]
    written = page.data("x", value)
    assert written.count("<") == 2
    assert json.loads(written[written.index(">") + 1 : written.rindex("<")]) == value


# --- two side by side -------------------------------------------------------------------------------------------------
def test_two_results_files_side_by_side(
    made: tuple[Path, list[Picture], Mapping[int, str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, pictures, best, _ = made
    data = tmp_path / "data/mine"
    write_captions(data / "captions_test.json", pictures, {})
    (data / "pictures").mkdir()
    (data / "pictures/a.zip").symlink_to(made[0].parent / "a.zip")
    other = {**best, 0: "a cat", 3: "a dog runs on green grass"}
    for name, captions in (("a", best), ("b", other)):
        write_json(tmp_path / f"{name}.json", [{"image_id": i, "caption": text} for i, text in captions.items()])
    params = (
        (REPOSITORY / "params.yaml")
        .read_text()
        .replace("profile: sample", "profile: mine")
        .replace("\nsample:", "\nmine:")
    )
    (tmp_path / "params.yaml").write_text(params)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["compare", "a.json", "b.json"])
    compare.main()
    made_first = (tmp_path / "reports/mine/compare.html").read_bytes()
    compare.main()
    assert (tmp_path / "reports/mine/compare.html").read_bytes() == made_first, "the same bytes every time"
    paired = scorecard.paired(best, other, {each.id: each.captions for each in pictures}, resamples=1000)["cider"]
    told = f"{100 * paired['value']:+.1f} ({100 * paired['low']:+.1f} to {100 * paired['high']:+.1f})"
    assert told in capsys.readouterr().out
    with opened() as shown:
        shown.goto((tmp_path / "reports/mine/compare.html").as_uri())
        shown.wait_for_function("document.querySelector('#cards img')?.naturalWidth > 0")
        assert shown.inner_text("#count") == "2 of 120 pictures"
        assert sorted(shown.locator("#cards .mono").all_text_contents()) == ["0.jpg", "3.jpg"]
        assert told in shown.inner_text("#scores")
        marks = shown.locator(".card", has_text="0.jpg").locator("mark").all_text_contents()
        assert {"dog", "runs", "cat"} <= set(marks)
        shown.uncheck("#changed")
        assert shown.inner_text("#count") == "120 of 120 pictures"
        whole_page(shown)
        keep(shown, "compare-light")
        assert shown.evaluate("window.stolen") is None


def test_what_is_neither_results_nor_captioner_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"notes.txt is no results file \(.json\), no captioner"):
        compare.captions_of("notes.txt", "test", [], tmp_path, None)


# --- curves -----------------------------------------------------------------------------------------------------------
def test_curves_are_drawn_offline_and_experiments_side_by_side(tmp_path: Path) -> None:
    """`dvc plots show` and `dvc plots diff` by the repository's own settings, on a training of two commits."""
    settings = (REPOSITORY / "dvc.yaml").read_text()
    (tmp_path / ".dvc").mkdir()
    for name in (".dvc/config", ".dvc/plots.html"):
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    (tmp_path / "dvc.yaml").write_text(settings[settings.index("\nplots:") :])
    (tmp_path / "params.yaml").write_text("profile: mine\n")
    table = tmp_path / "reports/mine/training.csv"
    table.parent.mkdir(parents=True)
    git(tmp_path, "init", "-q")
    for factor in (1.0, 1.5):
        rows = (f"{n},{3 / n},0.001,{3.2 / n},{factor * n / 10},{factor * n / 40}" for n in range(1, 7))
        head = "epoch,train_loss,learning_rate,val_loss,val_cider,val_bleu_4"
        table.write_text("\n".join([head, *rows]) + "\n")
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-qm", "x")
    for command, lines in ((("show",), 5), (("diff", "HEAD~1", "HEAD"), 10)):
        dvc(tmp_path, "plots", *command)
        with opened() as shown:
            shown.goto((tmp_path / "dvc_plots/index.html").as_uri())
            shown.wait_for_function(f"document.querySelectorAll('svg .mark-line path').length >= {lines}")
            drawn = shown.eval_on_selector_all(
                "svg .mark-line path", "all => all.map(each => each.getAttribute('d').length)"
            )
            assert len(drawn) >= lines
            assert min(drawn) > 40, "every line has its six points"
            for title in ("CIDEr-D of val", "BLEU-4 of val", "Loss", "Learning rate"):
                assert shown.locator(f"svg >> text={title}").count() >= 1
            keep(shown, f"curves-{command[0]}")
