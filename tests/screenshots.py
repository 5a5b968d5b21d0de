"""The picture at the head of the README, from the gallery that the pipeline has made of drawn scenes, free to show.

dvc repro && python tests/screenshots.py        writes reports/gallery.png
"""

from __future__ import annotations

from pathlib import Path

from browser import opened
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
LARGEST = 300_000  # bytes; a clone carries it


def main() -> None:
    path = REPOSITORY / "reports/gallery.png"
    with opened(1200, 760) as page:
        page.goto((REPOSITORY / "reports/sample/gallery.html").as_uri())
        page.wait_for_function("document.querySelector('#cards img')?.naturalWidth > 0")
        page.evaluate("document.querySelector('.stays').scrollIntoView({ behavior: 'instant' })")
        page.wait_for_timeout(500)
        page.screenshot(path=path)
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    if (size := path.stat().st_size) > LARGEST:
        raise SystemExit(f"{path} has {size:,} bytes, more than {LARGEST:,}")
    print(f"{path}: {size:,} bytes")


if __name__ == "__main__":
    main()
