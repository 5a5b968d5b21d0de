"""The command `caption PICTURE...`: a caption for every picture, by a trained model.

caption photo.jpg                    one picture
caption holiday/ '*.png'             folders (with what lies below) and globs
find . -name '*.jpg' | caption -     a list of files, one a line
caption --json --n 3 photo.jpg       one JSON object a picture, with the three best captions and their scores
caption --sample --n 3 photo.jpg     three captions drawn by chance; --seed draws others
caption --show holiday/              the pictures too, in a terminal that can show them
caption --serve                      a page to try it in the browser, http://127.0.0.1:8347, and its API
"""

from __future__ import annotations

import argparse
import glob
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import rim
from stages.fetch.pictures import MAX_BYTES, PictureError, decode

if TYPE_CHECKING:
    from PIL import Image

HOST, PORT = "127.0.0.1", 8347  # of the live page
DRAWING = {"top_p", "temperature", "seed"}  # options that mean something with --sample only
PAGE = {"host", "port", "name"}  # with --serve only
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"}


def main() -> None:
    """Entry point of the console script."""
    rim.run(command)


def command() -> None:
    """Parses the command line, captions, and exits with 1 when a picture could not be captioned."""
    for stream in (sys.stdin, sys.stdout):  # a file's name need not be UTF-8: it is shown as it came
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="surrogateescape")
    options = arguments()
    if options.serve:
        serve(options)
        return
    if not options.pictures:
        raise ValueError("no picture is named: caption photo.jpg (`caption --help` says more)")
    paths = list(expand(options.pictures, sys.stdin))
    if not paths:
        raise ValueError(
            f"no picture in {', '.join(options.pictures)}: name files ({', '.join(sorted(SUFFIXES))}) or folders"
        )
    models = options.model or [find_model()]

    from stages.evaluate.captioner import Captioner  # seconds of imports, after the command line is known to be right

    shows = options.show and can_show()
    with tempfile.TemporaryDirectory() as folder:
        captioner = Captioner.load(*files(models, Path(folder)), device=options.device)
    failed = 0
    waiting = iter(paths)
    while batch := list(islice(waiting, options.batch or 16)):
        read: list[tuple[Path, Image.Image]] = []
        for path in batch:
            try:
                read.append((path, open_picture(path, captioner.at_least)))
            except (PictureError, OSError) as error:
                failed += 1
                reason = error.strerror if isinstance(error, OSError) and error.strerror else error
                print(f"{path}: {reason}", file=sys.stderr)
        captions = captioner.caption(
            [picture for _, picture in read], options.beam, options.n or 1, **decoding(options)
        )
        for (path, picture), best in zip(read, captions, strict=True):
            if shows:
                show(picture)
            if options.json:
                shown = [{"caption": caption.text, "score": round(caption.score, 4)} for caption in best]
                record = {
                    "picture": str(path),
                    **shown[0],
                    "captions": shown,
                    "models": [str(model) for model in models],
                }
                plain = str(path).isprintable()  # and so UTF-8
                print(json.dumps(record, ensure_ascii=not plain), flush=True)
            else:
                for caption in best:
                    print(f"{path}: {caption.text}" if len(paths) > 1 else caption.text, flush=True)
    if failed:
        sys.exit(1)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, or these words. What would be ignored is refused."""
    known = parser()
    found = known.parse_args(words)
    given = {name for name, value in vars(found).items() if not (value is None or value is False or value == [])}
    for wanted, fit in (("sample", given & DRAWING), ("serve", given & PAGE)):
        if fit and wanted not in given:
            known.error(f"--{min(fit).replace('_', '-')} goes with --{wanted}")
    if found.serve and (left := given - PAGE - {"serve", "model", "device", "pictures"}):
        known.error(f"--{min(left).replace('_', '-')} does not go with --serve: its page asks for what is wanted")
    if found.json and found.show:
        known.error("--show does not go with --json, which is for programs")
    return found


def files(models: Sequence[str | Path], folder: Path) -> list[Path]:
    """Where the captioners lie that are named: files, and versions of the registry (models:/NAME@champion), which are
    copied into `folder`."""
    if not any(str(model).startswith("models:/") for model in models):
        return [Path(model) for model in models]
    from stages.live.models import named  # MLflow, seconds of imports

    return [choice.path for choice in named([str(model) for model in models], folder)]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = rim.parser("caption", __doc__)
    found.add_argument("pictures", nargs="*", metavar="PICTURE", help="file, folder, glob, or - for a list on stdin")
    found.add_argument(
        "--model",
        action="append",
        metavar="FILE",
        help="a captioner.safetensors, or models:/NAME@champion; several vote, decoded as the first says",
    )
    found.add_argument("--beam", type=positive, metavar="N", help="captions kept while decoding (default: the model's)")
    found.add_argument("--n", type=positive, metavar="N", help="captions shown of each picture (default: 1)")
    found.add_argument("--sample", action="store_true", help="draw words by chance instead of searching the likeliest")
    found.add_argument(
        "--top-p", type=share, metavar="P", help="... from the likeliest that hold P of it (default: 0.9)"
    )
    found.add_argument(
        "--temperature", type=above_0, metavar="T", help="... above 1 more daring, below less (default: 1)"
    )
    found.add_argument("--seed", type=whole, metavar="N", help="... another one draws others (default: 1)")
    found.add_argument("--block-trigrams", action="store_true", default=None, help="no three words twice in a caption")
    found.add_argument("--block-endings", action="store_true", default=None, help="no caption ends with a, the, of ...")
    found.add_argument("--batch", type=positive, metavar="N", help="pictures captioned together (default: 16)")
    found.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    found.add_argument("--json", action="store_true", help="one JSON object a picture")
    found.add_argument("--show", action="store_true", help="show pictures where the terminal can")
    page = found.add_argument_group("the live page")
    page.add_argument("--serve", action="store_true", help="serve a page and an API; every --model is one to choose")
    page.add_argument("--host", metavar="ADDRESS", help=f"default: this machine only, {HOST}")
    page.add_argument("--port", type=int, metavar="N", help=f"default: {PORT}; 0 is any free one")
    page.add_argument("--name", action="append", default=[], metavar="HOST", help="a host name to be asked under")
    return found


def decoding(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line says about decoding otherwise than the model; None is as the model says."""
    drawn = {"top_p": options.top_p or 0.9, "temperature": options.temperature, "seed": options.seed}
    kept = {"block_trigrams": options.block_trigrams, "block_endings": options.block_endings}
    return kept | (drawn if options.sample else {})


def share(text: str) -> float:
    """A number above 0, at most 1."""
    if not 0 < (number := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and at most 1")
    return number


def above_0(text: str) -> float:
    """A number above 0, at most 100."""
    if not 0 < (number := float(text)) <= 100:
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and at most 100")
    return number


def whole(text: str) -> int:
    """A whole number that is not negative."""
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} must not be negative")
    return number


def can_show() -> bool:
    """Whether stdout is a terminal that may be coloured (https://no-color.org); what is piped or kept stays text."""
    colourless = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    return sys.stdin.isatty() and sys.stdout.isatty() and not colourless


def show(picture: Image.Image) -> None:
    """Draws a picture, at most 60 columns wide: by kitty's protocol or sixels where the terminal says that it knows
    them, else in blocks of two colours."""
    from rich.console import Console
    from textual_image.renderable import Image as Shown  # asks the terminal what it can do

    console = Console(force_terminal=True)
    console.print(Shown(picture, width=min(60, console.width), height="auto"))


def serve(options: argparse.Namespace) -> None:
    """The live page, until Ctrl-C."""
    if options.pictures:
        raise ValueError(f"--serve takes pictures from its page, not {options.pictures[0]!r}: leave it out")
    from stages.live import models, server

    port = PORT if options.port is None else options.port
    with tempfile.TemporaryDirectory() as folder:
        if options.model:
            found = models.named(options.model, Path(folder))
        else:
            found = models.around(find_models(), Path(folder))
        server.serve(models.Shelf(found, options.device), options.host or HOST, port, options.name)


def positive(text: str) -> int:
    """A whole number of at least 1, at most 1,000: argparse turns the error into its message."""
    number = int(text)
    if not 1 <= number <= 1000:
        raise argparse.ArgumentTypeError(f"{text} must be between 1 and 1000")
    return number


def expand(arguments: Sequence[str], stdin: Iterable[str]) -> Iterator[Path]:
    """Files as named, folders as the pictures below them, globs as what they match, - as the lines of stdin.

    Raises ValueError for a folder or a glob without a picture, and for lines that are none."""
    for argument in arguments:
        if argument == "-":
            for line in stdin:
                if "\0" in line:
                    raise ValueError("- takes one name a line: use `find` without -print0")
                if line.strip():
                    yield Path(line.rstrip("\n"))
            continue
        found = [Path(argument)]
        if not found[0].exists() and glob.has_magic(argument):
            matched = glob.glob(argument, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
            found = [Path(path) for path in sorted(matched)]
        pictures = [
            picture
            for path in found
            for picture in (sorted(path.rglob("*")) if path.is_dir() else [path])
            if picture == path or picture.suffix.lower() in SUFFIXES
        ]
        if not pictures:
            raise ValueError(
                f"no picture in {argument}: name files, globs of files ({', '.join(sorted(SUFFIXES))}) or folders"
            )
        yield from pictures


def open_picture(path: Path, at_least: int) -> Image.Image:
    """A picture file as RGB; sizes are checked before anything is decoded. Raises PictureError or OSError."""
    if path.stat().st_size > MAX_BYTES:
        raise PictureError(f"has {path.stat().st_size:,} bytes, more than the {MAX_BYTES:,} allowed")
    return decode(path.read_bytes(), at_least=at_least)


PRETRAINED = Path("models/pretrained/flickr8k_lite2.safetensors")  # the best of those that `dvc pull` brings


def find_model() -> Path:
    """The model to use when none is named: the first of `find_models`, said on stderr."""
    if found := find_models():
        print(f"model: {found[0]}", file=sys.stderr)
        return found[0]
    raise ValueError(
        "no model below models/: `dvc pull` brings trained ones, `dvc repro` trains one, --model FILE names one"
    )


def find_models() -> list[Path]:
    """The models that are there: what was trained here on photographs, newest first, the pretrained ones, best first,
    then what knows drawn scenes only (models/sample). Below the current folder or where this project is installed."""
    for root in (Path.cwd(), Path(__file__).resolve().parent.parent):
        trained = sorted((root / "models").glob("*/captioner.safetensors"), key=lambda path: -path.stat().st_mtime)
        photographs = [path for path in trained if path.parent.name != "sample"]
        pretrained = [root / PRETRAINED, *sorted((root / PRETRAINED).parent.glob("*.safetensors"))]
        if found := [path for path in dict.fromkeys((*photographs, *pretrained, *trained)) if path.is_file()]:
            return found
    return []
