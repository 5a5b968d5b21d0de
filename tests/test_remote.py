"""What a clone gets by `dvc pull`: from the remote inside the repository, and from one that speaks S3."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer
from pipelines import REPOSITORY, commit, copy, dvc, environment, git, locked
from stores import serving

from stages.caption import PRETRAINED

CARDS = sorted((REPOSITORY / PRETRAINED).parent.glob("*.md"))
WORTH_PULLING = {
    "data/tiny/captions_test.json",
    "data/tiny/captions_train.json",
    "data/tiny/captions_val.json",
    "data/tiny/vocab.json",
    "models/tiny/captioner.safetensors",
    "models/tiny/run.json",
    "reports/tiny/captions_test.json",
    "reports/tiny/captions_val.json",
    "reports/tiny/dataset.html",
    "reports/tiny/fetch.json",
    "reports/tiny/gallery.html",
    "reports/tiny/metrics.json",
    "reports/tiny/registration.json",
    "reports/tiny/scorecard.md",
    "reports/tiny/training.csv",
    "reports/tiny/vocab.json",
}


def there(root: Path) -> set[str]:
    """Files of the profile that lie in the workspace."""
    tops = (root / top / "tiny" for top in ("data", "models", "reports"))
    return {str(path.relative_to(root)) for top in tops for path in top.rglob("*") if path.is_file()}


def clone_of(root: Path, target: Path) -> Path:
    """A fresh clone: what is committed, and nothing else."""
    git(root, "clone", "-q", str(root), str(target))
    return target


def test_a_fresh_clone_pulls_captions_and_trains_nothing(straight: Path, tmp_path: Path) -> None:
    """The remote is a folder of the repository itself: no server, no account."""
    root = copy(straight, tmp_path / "repository")
    dvc(root, "push")
    commit(root, "what is worth pulling")
    clone = clone_of(root, tmp_path / "clone")
    dvc(clone, "pull")
    assert there(clone) == WORTH_PULLING, "not pictures, not features: they are made again"

    picture = tmp_path / "picture.png"
    subprocess.run(
        [sys.executable, "-c", f"from PIL import Image; Image.new('RGB', (99, 77), 'red').save('{picture}')"],
        check=True,
    )
    done = subprocess.run(
        [Path(sys.executable).with_name("caption"), str(picture)],
        cwd=clone,
        env=environment(clone),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "models/tiny/captioner.safetensors" in done.stderr, "it says which model it took"

    before = (clone / "dvc.lock").read_bytes()
    said = dvc(clone, "repro")
    assert [line for line in said.splitlines() if line.startswith("Running stage")] == [
        "Running stage 'fetch':",
        "Running stage 'features':",
    ]
    assert (clone / "dvc.lock").read_bytes() == before
    assert git(clone, "status", "--porcelain") == ""


def test_a_web_server_over_the_store_is_a_remote(straight: Path, tmp_path: Path) -> None:
    """Read only, without a program of ours: what `python -m http.server` or any other one serves of dvcstore."""
    root = copy(straight, tmp_path / "repository")
    dvc(root, "push")
    clone = clone_of(root, tmp_path / "clone")
    assert not (clone / "dvcstore").exists(), "it was not committed"
    command = (sys.executable, "-m", "http.server", "PORT", "--bind", "127.0.0.1")
    with serving(tmp_path, *command, "--directory", str(root / "dvcstore"), ready="/") as address:
        dvc(clone, "remote", "add", "--local", "-d", "web", address)
        dvc(clone, "pull")
    assert there(clone) == WORTH_PULLING
    assert git(clone, "status", "--porcelain") == ""


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an S3 server on loopback with an empty bucket `lab`."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket="lab")
        yield address
    finally:
        server.stop()


def use(root: Path, address: str) -> None:
    """As a writer adds an own remote: in .dvc/config.local, which git does not see."""
    dvc(root, "remote", "add", "--local", "-d", "lab", "s3://lab/captioner")
    dvc(root, "remote", "modify", "--local", "lab", "endpointurl", address)
    assert git(root, "status", "--porcelain") == ""


def test_s3_brings_models_and_what_was_run_elsewhere(straight: Path, tmp_path: Path, bucket: str) -> None:
    root = copy(straight, tmp_path / "repository")
    use(root, bucket)
    dvc(root, "push", "--run-cache")
    assert not (root / "dvcstore").exists()
    clone = clone_of(root, tmp_path / "clone")
    use(clone, bucket)
    dvc(clone, "pull")
    assert there(clone) == WORTH_PULLING

    # Another clone, at a commit without dvc.lock: what was run elsewhere is not run again.
    other = clone_of(root, tmp_path / "other")
    use(other, bucket)
    git(other, "rm", "-q", "dvc.lock")
    dvc(other, "pull", "--run-cache", "--allow-missing")
    said = dvc(other, "repro", "--pull")
    assert said.count("is cached - skipping run") == 4, "vocab, train, evaluate and register"
    assert said.count("Running stage") == 2, "fetch and features keep large files out of every cache"
    assert locked(other) == locked(root)


def named(root: Path) -> dict[str, int]:
    """md5 of every file that dvc.lock or a .dvc file names and that is worth pulling -> its bytes."""
    outs = [
        out for stage in yaml.safe_load((root / "dvc.lock").read_text())["stages"].values() for out in stage["outs"]
    ]
    for pointer in (root / "models").rglob("*.dvc"):
        outs += yaml.safe_load(pointer.read_text())["outs"]
    uncached = {"pictures", "features"}
    return {out["md5"]: out["size"] for out in outs if Path(out["path"]).name not in uncached}


def test_the_release_is_whole() -> None:
    """Of this repository: all that dvc.lock and models/pretrained name is in the committed remote, and nothing else."""
    store = REPOSITORY / "dvcstore" / "files" / "md5"
    held = {path.parent.name + path.name: path for path in store.glob("*/*")}
    wanted = named(REPOSITORY)
    assert held.keys() == wanted.keys()
    for md5, path in held.items():
        assert hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == md5
        assert path.stat().st_size == wanted[md5]
    tracked = git(REPOSITORY, "ls-files", "dvcstore").split()
    assert {path.relative_to(REPOSITORY).as_posix() for path in held.values()} == set(tracked), "committed"
    sizes = [path.stat().st_size for path in held.values()]
    assert sum(sizes) <= 150e6
    assert max(sizes) <= 40e6


def test_the_number_that_readme_follows_is_the_committed_one() -> None:
    """Each md5 of that page is of the file in dvc.lock that it says, and the number is in the released metrics."""
    readme = (REPOSITORY / "README.md").read_text()
    page = readme[readme.index("## Where a number comes from") :]
    page = page[: page.index("\n## ", 5)]
    lock = yaml.safe_load((REPOSITORY / "dvc.lock").read_text())["stages"]
    every = {out["md5"][:8]: out for stage in lock.values() for out in stage["outs"]}
    named_here = r"`((?:data|models|reports)/[\w/.]+)`"
    told = re.findall(rf"{named_here}(?:(?!{named_here})[^|])*?\(md5 (\w{{8}})\)", page)
    assert len(told) >= 6
    for path, _, md5 in told:
        assert every[md5]["path"] == path
    metrics = next(out for out in lock["evaluate"]["outs"] if out["path"].endswith("metrics.json"))["md5"]
    card = json.loads((REPOSITORY / "dvcstore/files/md5" / metrics[:2] / metrics[2:]).read_text())
    assert f"`test.cider` = {card['test']['cider']:.4f} " in page


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_the_numbers_of_pretrained_captioners_in_readme_are_those_of_their_cards(card: Path) -> None:
    lines = [[cell.strip() for cell in line.split("|")] for line in card.read_text().splitlines()]
    means, intervals = (next(row for row in lines if row[1:2] == [name]) for name in ("**this model**", "95% interval"))
    bleu_4, cider = (f"{means[place]} ({intervals[place]})" for place in (5, 7))
    said = [next(row[2] for row in lines if row[1:2] == [name]) for name in ("words a caption", "different words")]
    readme = (REPOSITORY / "README.md").read_text().splitlines()
    rows = [
        [cell.strip() for cell in line.split("|")] for line in readme if f"({card.relative_to(REPOSITORY)})" in line
    ]
    assert [row[2:7] for row in rows] == [[cider, bleu_4, means[8], *said]]
    short = [line for line in readme if line.startswith(f"| {card.stem}, what `caption` takes by itself |")]
    assert len(short) == (card.stem == PRETRAINED.stem)
    assert all(f"| {cider} | {bleu_4} |" in line for line in short)


def test_a_clone_of_this_repository_pulls_the_pretrained_captioners(tmp_path: Path) -> None:
    clone = clone_of(REPOSITORY, tmp_path / "clone")
    dvc(clone, "pull")
    pointers = list((clone / "models/pretrained").glob("*.dvc"))
    assert len(pointers) >= 2
    assert all(pointer.with_suffix("").is_file() for pointer in pointers)
    assert git(clone, "status", "--porcelain") == ""
