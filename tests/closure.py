"""The code that a stage's result depends on, read from the sources without running them.

    python tests/closure.py STAGE ...      prints them
    make deps                              writes them into dvc.yaml, as the code lines of `deps:`

DVC reruns a stage when a listed dependency changes and never looks at what the code imports; a module left out of
`deps:` can change without anything being rerun (treeverse/dvc#9195), one too many retrains a model for nothing. So the
list is computed: from stages/STAGE/__main__.py along every import (those inside functions too), with the `__init__.py`
of each package on the way, to files rather than folders: an edit of the downloader does not retrain a model that only
reads captions with its neighbour.

Also followed, because code reaches code by name: a module after "-m" in the words of a command, and a string that is
a file beside the module (`Path(__file__).with_name("page.html")`, the model-from-code file of register).

One import is not followed: stages/params.py loads the settings.py of all stages by name, since params.yaml is checked
as a whole. Those of other stages can refuse to run but hand nothing over (test_house.py holds them to that); the
stage's own settings.py is counted.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
STAGES = ("fetch", "vocab", "features", "train", "evaluate", "register")


@dataclass(frozen=True, slots=True)
class Import:
    """One import statement, or one string that names code: where it stands and what it names."""

    line: int
    name: str  # dotted, absolute; a path for strings that name files
    files: tuple[Path, ...]  # of this repository that it brings in, packages first; empty for foreign packages
    quoted: bool = False  # a string, not a statement


@cache
def tree(path: Path) -> ast.Module:
    """The parsed source of a file."""
    return ast.parse(path.read_bytes(), filename=str(path))


def module_files(root: Path, name: str) -> tuple[Path, ...]:
    """Files that importing the dotted `name` runs, packages first; () where `name` is no module of this repository."""
    parts = name.split(".")
    if parts[0] != "stages":
        return ()
    files = []
    for i in range(1, len(parts) + 1):
        place = root.joinpath(*parts[:i])
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if not file.is_file():
            return ()
        files.append(file)
    return tuple(files)


@cache
def imports(root: Path, path: Path) -> tuple[Import, ...]:
    """Everything that the Python file `path` imports or names, in the order of its lines."""
    return tuple(sorted(_imports(root, path), key=lambda found: (found.line, found.name)))


def _imports(root: Path, path: Path) -> Iterator[Import]:
    package = ".".join(path.relative_to(root).parent.parts)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, module_files(root, alias.name))
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], node.module or ""])
            source = base.rstrip(".") if node.level else str(node.module)
            for alias in node.names:
                name = f"{source}.{alias.name}"
                yield Import(node.lineno, name, module_files(root, name) or module_files(root, source))
        elif isinstance(node, ast.List | ast.Tuple | ast.Call):
            words = [ast.unparse(word) for word in (node.args if isinstance(node, ast.Call) else node.elts)]
            for before, word in pairwise(words):
                if before == "'-m'" and (files := module_files(root, word.strip("'"))):
                    main = files[-1].with_name("__main__.py")  # what `-m` runs of a package
                    ran = (main,) if files[-1].name == "__init__.py" and main.is_file() else ()
                    yield Import(node.lineno, word.strip("'"), files + ran, quoted=True)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w./-]+", node.value):
            for file in (path.parent / node.value, root / node.value):
                if file.is_file() and file.resolve().is_relative_to(root / "stages"):
                    yield Import(node.lineno, node.value, (file.resolve(),), quoted=True)


def reached(root: Path, start: Path) -> list[Path]:
    """All files of the repository that running `start` can run or read as code, itself included, sorted."""
    found: set[Path] = set()
    waiting = [start, *module_files(root, ".".join(start.relative_to(root).parent.parts))]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        if path.suffix == ".py":
            waiting += (file for statement in imports(root, path) for file in statement.files)
    return sorted(found)


def closure(stage: str, root: Path = REPOSITORY) -> list[str]:
    """The code lines of `deps:` of a stage: paths from the root, sorted. Its own settings.py is among them."""
    folder = root / "stages" / stage
    files = {*reached(root, folder / "__main__.py"), *reached(root, folder / "settings.py")}
    return sorted(file.relative_to(root).as_posix() for file in files)


def with_deps(text: str, root: Path = REPOSITORY) -> str:
    """The text of dvc.yaml with the code lines of every `deps:` made new, after its data; all else as it was."""
    lines: list[str] = []
    stage, code = "", []
    for line in [*text.splitlines(), ""]:
        if code and not line.startswith("      "):
            lines, code = lines + code, []
        if named := re.match(r"  (\w+):", line):
            stage = named[1]
        if re.match(r"    deps:", line):
            line, code = "    deps:", [f"      - {file}" for file in closure(stage, root)]
        if not line.startswith("      - stages/"):
            lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        print(f"  {wanted}:\n    deps:", *(f"      - {file}" for file in closure(wanted)), sep="\n")
    if not sys.argv[1:]:
        (REPOSITORY / "dvc.yaml").write_text(with_deps((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8")))
