"""Pictures of the live page for the README, from drawn scenes, which are free to show.

    python tests/screenshots.py [MODEL]        (models/sample/captioner.safetensors)

Writes reports/screenshots/readme-live.png, or below $CI_OUTPUT.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from random import Random

from browser import keep, opened
from playwright.sync_api import expect
from stores import serving

from stages.fetch.drawn import scene
from stages.fetch.scenes import paint

CAPTION = str(Path(sys.executable).with_name("caption"))


def main() -> None:
    model = Path(sys.argv[1] if sys.argv[1:] else "models/sample/captioner.safetensors").resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = (CAPTION, "--serve", "--port", "PORT", "--model", str(model))
        with serving(folder, *command, ready="/health") as address, opened(1280, 820, offline=False) as page:
            page.goto(address)
            for number in range(4):
                path = folder / f"scene-{number}.png"
                paint(scene(7, number), 480, Random(number)).save(path)
                page.set_input_files("#file", path)
                expect(page.locator("#past li")).to_have_count(number + 1)
            if (words := page.locator("#sentence button")).count():
                words.nth(1).click()
                page.wait_for_timeout(300)
            keep(page, "readme-live")


if __name__ == "__main__":
    main()
