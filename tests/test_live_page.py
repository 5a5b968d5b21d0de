"""The live page in a real browser: a picture in, its caption out, by mouse, keyboard, clipboard and on a phone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from browser import barriers, executable, keep, opened
from captioners import coarse_pictures, save_captioner
from playwright.sync_api import Page, TimeoutError, expect
from stores import serving

from stages.evaluate.captioner import Captioner

CAPTION = str(Path(sys.executable).with_name("caption"))
SIZES: list[tuple[str, int, int, Any]] = [
    ("desktop-light", 1280, 900, "light"),
    ("desktop-dark", 1280, 900, "dark"),
    ("phone-light", 390, 844, "light"),
    ("phone-dark", 390, 844, "dark"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    executable()
    folder = tmp_path_factory.mktemp("page")
    save_captioner(folder / "attending.safetensors", decoder="attend")
    save_captioner(folder / "plain.safetensors", seed=1)
    (folder / "plain.md").write_text("# plain\n\n| scores | CIDEr-D |\n|---|---:|\n| this model | 1.0 |\n")
    for number, picture in enumerate(coarse_pictures(3)):
        picture.resize((640, 480)).save(folder / f"{number}.jpg")
    (folder / "broken.jpg").write_bytes((folder / "0.jpg").read_bytes()[:900])
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    models = ("--model", "attending.safetensors", "--model", "plain.safetensors")
    with serving(
        folder, CAPTION, "--serve", "--port", "PORT", *models, ready="/health", OMP_NUM_THREADS="1"
    ) as address:
        yield address


@pytest.fixture
def page(address: str) -> Iterator[Page]:
    with opened(offline=False) as page:
        page.goto(address)
        expect(page.locator("#name option")).to_have_count(2)
        yield page


def says(folder: Path, model: str, picture: str, n: int = 1) -> list[str]:
    """What the captioner itself says."""
    from stages.caption import open_picture

    captioner = Captioner.load(folder / model, device="cpu")
    best = captioner.caption([open_picture(folder / picture, captioner.at_least)], n=n)[0]
    return [caption.text for caption in best]


def inked(page: Page) -> float:
    """The share of the heat's pixels that show."""
    return page.evaluate("""() => {
        const heat = document.getElementById("heat"), stage = document.getElementById("stage");
        if (!stage.classList.contains("looking") || !heat.width) return 0;
        const pixels = heat.getContext("2d").getImageData(0, 0, heat.width, heat.height).data;
        let seen = 0;
        for (let i = 3; i < pixels.length; i += 4) seen += pixels[i] > 40;
        return seen / (pixels.length / 4);
    }""")


def test_a_picture_gets_its_captions_heat_and_place_in_the_history(page: Page, folder: Path) -> None:
    page.set_input_files("#file", folder / "0.jpg")
    best = says(folder, "attending.safetensors", "0.jpg", 3)
    expect(page.locator("#sentence")).to_have_text(best[0])
    expect(page.locator("#aloud")).to_have_text(f"Caption: {best[0]}")
    assert page.locator("#best .caption").all_inner_texts() == best
    assert page.locator("#picture").get_attribute("alt") == best[0]
    assert inked(page) == 0
    word = page.locator("#sentence button").nth(1)
    word.click()
    expect(word).to_have_attribute("aria-pressed", "true")
    assert 0.05 < inked(page) <= 1
    word.click()
    page.mouse.move(0, 0)
    assert inked(page) == 0, "a second click takes it away"
    page.locator("#best button").nth(1).click()
    expect(page.locator("#sentence")).to_have_text(best[1])
    page.set_input_files("#file", folder / "1.jpg")
    expect(page.locator("#past li")).to_have_count(2)
    page.locator("#past button").nth(1).click()
    expect(page.locator("#sentence")).to_have_text(best[0])
    page.locator("#clear").click()
    expect(page.locator("#past li")).to_have_count(0)


def test_heat_lies_where_the_decoder_looked(page: Page, folder: Path) -> None:
    """The brightest place of the drawn heat is in the region of the largest weight."""
    page.set_input_files("#file", folder / "2.jpg")
    expect(page.locator("#sentence button").first).to_be_visible()
    answer = page.evaluate("now.answer")
    for number, weights in enumerate(answer["captions"][0]["attention"]):
        page.evaluate("number => look(number)", number)
        x, y = page.evaluate("""() => {
            const heat = document.getElementById("heat");
            const pixels = heat.getContext("2d").getImageData(0, 0, heat.width, heat.height).data;
            let best = 0;
            for (let i = 3; i < pixels.length; i += 4) if (pixels[i] > pixels[4 * best + 3]) best = (i - 3) / 4;
            return [(best % heat.width) / heat.width, Math.floor(best / heat.width) / heat.height];
        }""")
        side = answer["grid"]
        seen = weights[int(y * side) * side + int(x * side)]
        assert seen > 0.9 * max(weights), (number, seen, max(weights))


def test_it_can_be_used_by_keyboard_alone(page: Page, folder: Path) -> None:
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    for _ in range(4):
        page.keyboard.press("Tab")
    expect(page.locator("#file")).to_be_focused()
    for _ in range(3):  # on a busy machine the key may be quicker than Playwright's own wish to hear of the dialog
        with suppress(TimeoutError), page.expect_file_chooser(timeout=10_000) as chosen:
            page.keyboard.press("Space")
        if chosen.is_done():
            break
    chosen.value.set_files(folder / "0.jpg")
    first = page.locator("#sentence button").first
    expect(first).to_be_visible()
    for _ in range(3):  # another picture, play, then the words
        page.keyboard.press("Tab")
    expect(first).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#sentence button").nth(1)).to_be_focused()
    assert inked(page) > 0.05
    page.keyboard.press("Escape")
    assert inked(page) == 0
    page.keyboard.press("Tab")
    expect(page.locator("#best button").first).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#best button").nth(1)).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#best button").nth(1)).to_be_focused()
    for _ in range(2):
        page.keyboard.press("Tab")
    expect(page.locator("#name")).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#sentence")).to_have_text(says(folder, "plain.safetensors", "0.jpg")[0])
    expect(page.locator("#legend")).to_have_text("plain does not look at parts of a picture.")


def drop(page: Page, path: Path | None, how: str) -> None:
    """Drops or pastes a file, as the browser tells the page of it; None is text."""
    page.evaluate(
        """async ([bytes, how]) => {
            const transfer = new DataTransfer();
            if (bytes) transfer.items.add(new File([new Uint8Array(bytes)], "photo.jpg", { type: "image/jpeg" }));
            else transfer.setData("text/plain", "http://example.org/photo.jpg");
            const event = how === "drop" ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true })
                                         : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true });
            document.body.dispatchEvent(event);
        }""",
        [[*path.read_bytes()] if path else None, how],
    )


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_a_picture_is_dropped_or_pasted_and_an_address_is_not_fetched(page: Page, folder: Path, how: str) -> None:
    drop(page, None, how)
    expect(page.locator("#trouble")).to_contain_text("not its address")
    drop(page, folder / "1.jpg", how)
    expect(page.locator("#sentence")).to_have_text(says(folder, "attending.safetensors", "1.jpg")[0])
    expect(page.locator("#trouble")).to_be_hidden()


def test_a_busy_server_is_asked_again_and_a_refusal_is_told(address: str, folder: Path) -> None:
    answers = iter([(429, '{"error": "full"}'), (200, None)])

    def answer(route: Any) -> None:
        status, body = next(answers, (200, None))
        if body is None:
            route.continue_()
        else:
            route.fulfill(status=status, body=body, headers={"Retry-After": "1", "Content-Type": "application/json"})

    done = []
    with pytest.raises(AssertionError), opened(offline=False) as page:  # noqa: PT012 - the console complains of 429
        page.goto(address)
        page.route("**/api/caption*", answer)
        page.set_input_files("#file", folder / "0.jpg")
        expect(page.locator("#hint")).to_have_text("The server is busy; asking again in 1 s.")
        expect(page.locator("#sentence button").first).to_be_visible()
        done.append(429)
    with pytest.raises(AssertionError), opened(offline=False) as page:  # noqa: PT012
        page.goto(address)
        page.set_input_files("#file", folder / "broken.jpg")
        expect(page.locator("#trouble")).to_contain_text("the picture cannot be decoded")
        assert page.locator("#trouble").get_attribute("role") == "alert"
        done.append(400)
    assert done == [429, 400]


@pytest.mark.parametrize(("name", "width", "height", "scheme"), SIZES)
def test_it_is_readable_for_all_at_any_width(
    address: str, folder: Path, name: str, width: int, height: int, scheme: Any
) -> None:
    with opened(width, height, scheme, offline=False) as page:
        page.goto(address)
        expect(page.locator("#name option")).to_have_count(2)
        assert barriers(page) == []
        keep(page, f"live-{name}-empty")
        for number in range(3):
            page.set_input_files("#file", folder / f"{number}.jpg")
            expect(page.locator("#past li")).to_have_count(number + 1)
        page.locator("#sentence button").nth(1).click()
        page.wait_for_timeout(300)  # until the heat has faded in
        assert barriers(page) == []
        keep(page, f"live-{name}", whole=True)
        page.select_option("#name", "plain")
        page.locator("#card summary").click()
        expect(page.locator("#about table")).to_be_visible()
        expect(page.locator("#sentence button")).to_have_count(0)  # faded until the other has answered
        assert barriers(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.goto(f"{address}/docs")
        expect(page.locator("main section")).to_have_count(5)
        expect(page.locator("main")).to_contain_text("/api/caption")
        assert barriers(page) == []
        keep(page, f"api-{name}", whole=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
