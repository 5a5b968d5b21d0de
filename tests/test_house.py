"""The rules of the house, read from the sources: who may import whom, what dvc.yaml must list, what nobody may do.

Each rule is a function from a repository to sentences about what breaks it. It is held against this repository, where
it must find nothing, and against small repositories with one planted mistake each, where it must find exactly that.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from closure import REPOSITORY, STAGES, closure, imports, reached, tree, with_deps
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TRUNK = ("params.py", "files.py", "tracking.py")  # and whatever else outside the stages that a stage reaches
LATE = {"torch", "torchvision", "efficientnet_lite_pytorch"}  # from features on


# --- imports ---------------------------------------------------------------------------------------------------------
def sources(root: Path) -> list[Path]:
    return sorted((root / "stages").rglob("*.py"))


def stage_of(root: Path, file: Path) -> str | None:
    """The stage whose folder `file` lies in; None for what stands beside the stages."""
    folder = file.relative_to(root / "stages").parts[0]
    return folder if folder in STAGES else None


def imports_only_upstream(root: Path) -> Iterator[str]:
    """fetch < vocab < features < train < evaluate < register; below all of them the trunk, below the trunk the scorers.

    What stands beside the stages and is reached by none (the verb `caption`) may import everything.
    """
    trunk = {file for stage in STAGES for file in reached(root, root / "stages" / stage / "__main__.py")}
    trunk |= {root / "stages" / name for name in TRUNK}
    for file in sources(root):
        here = stage_of(root, file)
        for found in imports(root, file):
            at = f"{file.relative_to(root)}:{found.line} names {found.name}"
            if "__main__" in found.name.split("."):
                yield f"{at}: a rim is run, never imported"
            for target in found.files:
                there = stage_of(root, target)
                if here and there and STAGES.index(there) > STAGES.index(here):
                    yield f"{at}: {there} is downstream of {here}"
                elif there and not here and file in trunk:
                    yield f"{at}: the trunk (what stages import) must not know a stage"
                elif "scorers" in file.parts and target.name != "__init__.py" and "scorers" not in target.parts:
                    yield f"{at}: scorers know nothing of the project"


def settings_stand_alone(root: Path) -> Iterator[str]:
    """What makes it right that a stage does not depend on the settings.py of others: params.py loads them all, but
    they import nothing and a stage asks for its own section only."""
    for stage in STAGES:
        for file in sorted((root / "stages" / stage).rglob("*.py")):
            for found in imports(root, file):
                at = f"{file.relative_to(root)}:{found.line}"
                names = {target.relative_to(root).as_posix() for target in found.files} - {"stages/__init__.py"}
                if file.name == "settings.py" and names - {"stages/params.py"}:
                    yield f"{at} names {found.name}: settings import nothing of the project but stages.params"
                if found.name == "stages.params.check":
                    yield f"{at} takes the settings of all stages: use stages.params.read({stage!r})"
            for node in ast.walk(tree(file)):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in {"read", "params.read"} and node.args:
                    asked = ast.unparse(node.args[0])
                    if asked.strip("'\"") in set(STAGES) - {stage}:
                        yield f"{file.relative_to(root)}:{node.lineno} reads the settings of {asked}, not its own"


def foreign_packages_in_their_place(root: Path) -> Iterator[str]:
    """mlflow in tracking.py alone (and in a file of register that MLflow itself loads); torch from features on."""
    imported = {file for source in sources(root) for found in imports(root, source) for file in found.files[-1:]
                if not found.quoted}  # fmt: skip
    for file in sources(root):
        served = stage_of(root, file) == "register" and file.name != "__main__.py" and file not in imported
        if file != root / "stages/tracking.py" and not served:
            for found in imports(root, file):
                if found.name.split(".")[0] == "mlflow" and not found.quoted:
                    yield f"{file.relative_to(root)}:{found.line} imports mlflow: only stages/tracking.py does"
    for stage in STAGES[: STAGES.index("features")]:
        for file in (root / name for name in closure(stage, root) if name.endswith(".py")):
            for found in imports(root, file):
                if {found.name.split(".")[0]} & LATE or found.name.startswith("safetensors.torch"):
                    yield f"{file.relative_to(root)}:{found.line} imports {found.name}: {stage} must do without torch"


def no_hidden_imports(root: Path) -> Iterator[str]:
    """Nothing is loaded by a computed name (stages/params.py excepted) and nobody edits sys.path."""
    hidden = {"importlib.import_module", "import_module", "__import__", "spec_from_file_location"}
    hidden |= {"importlib.util.spec_from_file_location", "runpy.run_path", "runpy.run_module", "site.addsitedir"}
    for file in [*sources(root), *sorted((root / "tests").rglob("*.py"))]:
        for node in ast.walk(tree(file)):
            at = f"{file.relative_to(root)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path":
                yield f"{at} touches sys.path"
            seen = file.is_relative_to(root / "stages") and file.name != "params.py"
            if seen and isinstance(node, ast.Call) and ast.unparse(node.func) in hidden:
                yield f"{at} calls {ast.unparse(node.func)}: what it loads cannot be seen"


def no_work_at_import(root: Path) -> Iterator[str]:
    """A module defines; it opens, prints and starts nothing. A stage may set defaults of the environment, which
    packages of others read when they load, in `__init__.py` or `__main__.py`."""
    quiet = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    busy = {"open", "read_text", "read_bytes", "read_json", "run", "check_output", "urlopen", "mkdir"}
    for file in sources(root):
        for node in tree(file).body:
            at = f"{file.relative_to(root)}:{node.lineno}"
            text = ast.unparse(node)
            if isinstance(node, ast.Assign | ast.AnnAssign):
                inner = list(ast.walk(node))
                called = {ast.unparse(call.func).split(".")[-1] for call in inner if isinstance(call, ast.Call)}
                if called & busy and not any(isinstance(part, ast.Lambda) for part in inner):
                    yield f"{at} does work at import: {text}"
            elif isinstance(node, ast.If):
                if "__name__" not in ast.unparse(node.test) and "TYPE_CHECKING" not in ast.unparse(node.test):
                    yield f"{at} decides at import: if {ast.unparse(node.test)}"
            elif isinstance(node, ast.Expr):
                allowed = file.name in {"__init__.py", "__main__.py"} and text.startswith("os.environ.setdefault(")
                allowed |= stage_of(root, file) == "register" and "set_model(" in text
                if not isinstance(node.value, ast.Constant) and not allowed:
                    yield f"{at} does work at import: {text}"
            elif isinstance(node, ast.With) and ast.unparse(node.items[0]) == "warnings.catch_warnings()":
                continue  # only mutes what a definition below it sets off
            elif not isinstance(node, quiet):
                yield f"{at} does work at import: {text.splitlines()[0]}"


def only_rims_know_paths(root: Path) -> Iterator[str]:
    """`__main__.py` is the only file of a stage that opens what dvc.yaml names, so no other spells such a path."""
    for file in sources(root):
        if stage_of(root, file) is None or file.name == "__main__.py":
            continue
        docstrings = {id(node.value) for node in ast.walk(tree(file)) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree(file)):
            text = node.value if isinstance(node, ast.Constant) and id(node) not in docstrings else None
            if isinstance(text, str) and re.match(r"(data|models|reports)/", text):
                yield f"{file.relative_to(root)}:{node.lineno} spells the path {text!r}: its rim hands it over"


def names_that_say_something(root: Path) -> Iterator[str]:
    for file in [*(root / "stages").rglob("*"), *(root / "tests").rglob("*")]:
        if file.stem in {"utils", "util", "helpers", "helper", "common", "misc"}:
            yield f"{file.relative_to(root)}: a thing lives where it is first made meaningful"


def every_file_is_reached(root: Path) -> Iterator[str]:
    """No code that nobody runs: each file serves a stage or a verb (a script of pyproject.toml, `python -m`)."""
    scripts = tomllib.loads((root / "pyproject.toml").read_text())["project"].get("scripts", {}).values()
    starts = [root / (script.split(":")[0].replace(".", "/") + ".py") for script in scripts]
    starts += [root / "stages" / stage / name for stage in STAGES for name in ("__main__.py", "settings.py")]
    runnable = (
        file for file in sources(root) for node in tree(file).body if ast.unparse(node).startswith("if __name__")
    )
    starts += runnable
    living = {file for start in starts if start.is_file() for file in reached(root, start)}
    for file in sorted((root / "stages").rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts and file not in living:
            yield f"{file.relative_to(root)} is reached by no stage and no verb"


def bars_are_silent_where_nobody_looks(root: Path) -> Iterator[str]:
    """tqdm's `disable=None` draws a progress bar in a terminal only: no log of CI, no pipe gets one. Of several ranks
    one may draw."""
    for file in sources(root):
        for node in ast.walk(tree(file)):
            if not isinstance(node, ast.Call):
                continue
            called = [node.func, *node.args[:1]] if ast.unparse(node.func).endswith("partial") else [node.func]
            made = {ast.unparse(each) for each in called} & {"tqdm", "tqdm.tqdm", "trange"}
            silent = any(
                each.arg == "disable" and re.fullmatch(r"None( if .* else True)?", ast.unparse(each.value))
                for each in node.keywords
            )
            if made and not silent:
                yield f"{file.relative_to(root)}:{node.lineno} draws a bar that CI would show: add disable=None"


# --- dvc.yaml --------------------------------------------------------------------------------------------------------
def pipeline(root: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"])


def paths(stage: dict[str, Any], *keys: str) -> list[str]:
    """The paths under `deps`, `outs`, ..., with or without options."""
    listed = [entry for key in keys for entry in stage.get(key, [])]
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in listed]


def dvc_lists_what_the_code_needs(root: Path) -> Iterator[str]:
    """`deps:` names exactly the files that the stage can run: an edit reruns what it may change, and no more."""
    for name, stage in pipeline(root).items():
        listed = [path for path in paths(stage, "deps") if path.startswith("stages")]
        needed = closure(name, root)
        for path in needed:
            if path not in listed:
                yield f"dvc.yaml: {name}: deps: add `- {path}` (the stage runs it)"
        for path in listed:
            if path not in needed:
                yield f"dvc.yaml: {name}: deps: remove `- {path}` (the stage does not reach it)"


def dvc_keeps_profiles_apart(root: Path) -> Iterator[str]:
    """Six stages in order, a command and a section of the profile for each, every path in the profile's folder."""
    stages = pipeline(root)
    if tuple(stages) != STAGES:
        yield f"dvc.yaml: stages are {', '.join(stages)}, not {', '.join(STAGES)}"
    made: list[str] = []
    for name, stage in stages.items():
        if stage.get("cmd") != f"python -m stages.{name}":
            yield f"dvc.yaml: {name}: cmd is {stage.get('cmd')!r}, not 'python -m stages.{name}'"
        if stage.get("params") != [f"${{profile}}.{name}"]:
            yield f"dvc.yaml: {name}: params is {stage.get('params')}, not ['${{profile}}.{name}']"
        data = [path for path in paths(stage, "deps") if not path.startswith("stages/")]
        written = paths(stage, "outs", "metrics", "plots")
        for path in [*data, *written]:
            if "${profile}" not in Path(path).parts:
                yield f"dvc.yaml: {name}: {path} has no folder ${{profile}}: profiles would overwrite each other"
        for path in data:
            if not any(Path(path).is_relative_to(out) for out in made):
                yield f"dvc.yaml: {name}: no stage before it makes {path}"
        made += written


def unfold(text: str) -> str:
    """`a_{x,y}.b` written out as `a_x.b a_y.b`."""

    def spell(match: re.Match[str]) -> str:
        parts = [part.split(",") for part in re.split(r"[{}]", match[0])]
        return " ".join("".join(choice) for choice in product(*parts))

    return re.sub(r"[\w./*-]*(?:\{[\w.,]+\}[\w./*-]*)+", spell, text)


def rims_open_with_their_contract(root: Path) -> Iterator[str]:
    """`__main__.py` begins with reads / writes / why; reads and writes name the files of dvc.yaml, P for profile."""
    for name, stage in pipeline(root).items():
        rim = root / "stages" / name / "__main__.py"
        contract = re.search(
            r"^\W*reads\b(?P<reads>.*)^\W*writes\b(?P<writes>.*)^\W*why\b(?P<why>.*)",
            ast.get_docstring(tree(rim)) or "",
            flags=re.DOTALL | re.MULTILINE | re.IGNORECASE,
        )
        if contract is None or not contract["why"].strip(" :\n"):
            yield f"{rim.relative_to(root)} does not open with the three lines reads, writes, why"
            continue
        wanted = {
            "reads": [path for path in paths(stage, "deps") if not path.startswith("stages/")],
            "writes": paths(stage, "outs", "metrics", "plots"),
        }
        for verb, listed in wanted.items():
            told = re.findall(r"\b(?:data|models|reports)/P/[\w./*-]*[\w*/]", unfold(contract[verb]))
            meant = [path.replace("${profile}", "P") for path in listed]
            for path in meant:
                if not any(Path(said).is_relative_to(path) for said in told):
                    yield f"{rim.relative_to(root)}: {verb} does not name {path}, dvc.yaml does"
            for said in told:
                if not any(Path(said).is_relative_to(path) for path in meant):
                    yield f"{rim.relative_to(root)}: {verb} names {said}, dvc.yaml does not"


RULES: list[Callable[[Path], Iterator[str]]] = [
    imports_only_upstream,
    settings_stand_alone,
    foreign_packages_in_their_place,
    no_hidden_imports,
    no_work_at_import,
    only_rims_know_paths,
    names_that_say_something,
    every_file_is_reached,
    bars_are_silent_where_nobody_looks,
    dvc_lists_what_the_code_needs,
    dvc_keeps_profiles_apart,
    rims_open_with_their_contract,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_this_repository_keeps(rule: Callable[[Path], Iterator[str]]) -> None:
    broken = dict.fromkeys(rule(REPOSITORY))  # each once, in order
    assert not broken, "\n" + "\n".join(broken)


# --- the rules themselves --------------------------------------------------------------------------------------------
def small(root: Path) -> Path:
    """A house that keeps all rules: every stage has a rim, settings and one output, which the next one reads."""
    root.mkdir()
    (root / "tests").mkdir()
    (root / "pyproject.toml").write_text('[project]\nscripts = {caption = "stages.caption:main"}\n')
    house = {"__init__.py": "", "params.py": "def read(stage): ...\ndef check(): ...\n", "files.py": ""}
    house |= {"tracking.py": "import mlflow\n", "scorers/__init__.py": "", "scorers/bleu.py": "import numpy\n"}
    house |= {"caption.py": "from stages.train.model import Model\ndef main(): ...\n"}
    stages: dict[str, Any] = {}
    for i, name in enumerate(STAGES):
        read = f"data/P/{STAGES[i - 1]}.json" if i else "nothing"
        told = f"reads: {read}\nwrites: data/P/{name}.json\nwhy: so it is."
        house[f"{name}/__init__.py"] = ""
        house[f"{name}/settings.py"] = "from stages.params import read\n"
        house[f"{name}/__main__.py"] = f'"""{told}"""\nfrom stages import files\nfrom stages.params import read\n'
        stages[name] = {
            "cmd": f"python -m stages.{name}",
            "params": [f"${{profile}}.{name}"],
            "deps": [f"data/${{profile}}/{STAGES[i - 1]}.json"] if i else [],
            "outs": [{f"data/${{profile}}/{name}.json": {"cache": True}}],
        }
    house["train/model.py"] = "import torch\n"
    house["train/__main__.py"] += "from stages.tracking import x\ndef f():\n    from .model import Model\n"
    house["evaluate/__main__.py"] += "import stages.scorers.bleu\n"
    house["register/served.py"] = "import mlflow\nmlflow.models.set_model(1)\n"
    house["register/__main__.py"] += 'CODE = "served.py"\n'
    for file, text in house.items():
        (root / "stages" / file).parent.mkdir(parents=True, exist_ok=True)
        (root / "stages" / file).write_text(text)
    forget()
    for name in STAGES:
        stages[name]["deps"] += closure(name, root)
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    return root


def forget() -> None:
    """What was parsed before a file of a small house changed."""
    tree.cache_clear()
    imports.cache_clear()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Path]:
    yield small(tmp_path / "house")
    forget()


def test_a_house_in_order_breaks_no_rule(house: Path) -> None:
    assert [sentence for rule in RULES for sentence in rule(house)] == []


PLANTED = [
    (imports_only_upstream, "stages/vocab/__main__.py", "\nimport stages.train.model", "train is downstream of vocab"),
    (imports_only_upstream, "stages/fetch/__main__.py", "\ndef f():\n    from ..vocab import settings", "downstream"),
    (imports_only_upstream, "stages/features/__main__.py", '\nx = ["-m", "stages.train"]', "train is downstream"),
    (imports_only_upstream, "stages/files.py", "from stages.fetch import settings", "the trunk"),
    (imports_only_upstream, "stages/vocab/__main__.py", "\nfrom stages.caption import main", "the trunk"),
    (imports_only_upstream, "stages/scorers/bleu.py", "from stages.files import whole", "scorers know nothing"),
    (imports_only_upstream, "stages/caption.py", "from stages.train.__main__ import main", "never imported"),
    (settings_stand_alone, "stages/train/settings.py", "from stages.files import whole", "import nothing of"),
    (settings_stand_alone, "stages/train/__main__.py", "\nfrom stages.params import check", "of all stages"),
    (settings_stand_alone, "stages/train/__main__.py", "\ndef f(): read('features')", "not its own"),
    (foreign_packages_in_their_place, "stages/train/model.py", "import mlflow.pyfunc", "only stages/tracking.py"),
    (foreign_packages_in_their_place, "stages/register/__main__.py", "\nimport mlflow", "only stages/tracking.py"),
    (foreign_packages_in_their_place, "stages/files.py", "def f():\n    import torch.nn", "must do without torch"),
    (no_hidden_imports, "stages/train/model.py", "import importlib\nimportlib.import_module('x')", "cannot be seen"),
    (no_hidden_imports, "stages/train/model.py", "import sys\nsys.path.insert(0, '.')", "touches sys.path"),
    (no_work_at_import, "stages/train/model.py", "print('hello')", "does work at import"),
    (no_work_at_import, "stages/train/model.py", "x = open('params.yaml')", "does work at import"),
    (no_work_at_import, "stages/train/model.py", "for i in range(3):\n    pass", "does work at import"),
    (no_work_at_import, "stages/train/model.py", "if torch.cuda.is_available():\n    x = 1", "decides at import"),
    (only_rims_know_paths, "stages/train/model.py", "def f(p):\n    return f'data/{p}/a.json'", "spells the path"),
    (names_that_say_something, "stages/train/utils.py", "", "first made meaningful"),
    (names_that_say_something, "stages/common/__init__.py", "", "first made meaningful"),
    (every_file_is_reached, "stages/train/old_model.py", "", "reached by no stage"),
    (bars_are_silent_where_nobody_looks, "stages/files.py", "def f(x):\n    return tqdm(x, desc='a')", "disable=None"),
    (bars_are_silent_where_nobody_looks, "stages/files.py", "def f(x):\n    return partial(tqdm, x)", "disable=None"),
    (bars_are_silent_where_nobody_looks, "stages/files.py", "def f(x):\n    return tqdm(x, disable=None)", None),
    (bars_are_silent_where_nobody_looks, "stages/files.py", "def f():\n    tqdm.write('again')", None),
    (dvc_lists_what_the_code_needs, "stages/vocab/new.py", "", None),
    (dvc_lists_what_the_code_needs, "stages/vocab/__main__.py", "\nfrom ..fetch import settings",
     "vocab: deps: add `- stages/fetch/settings.py`"),
    (dvc_lists_what_the_code_needs, "stages/evaluate/__main__.py", None,
     "evaluate: deps: remove `- stages/scorers/bleu.py`"),
    (dvc_lists_what_the_code_needs, "stages/register/__main__.py", None,
     "register: deps: remove `- stages/register/served.py`"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "file", "text", "sentence"), PLANTED)
def test_a_planted_mistake_is_found(
    house: Path, rule: Callable[[Path], Iterator[str]], file: str, text: str | None, sentence: str | None
) -> None:
    """`text` is added to the file (None empties it to its first two lines); no sentence: nothing must be said."""
    path = house / file
    path.parent.mkdir(exist_ok=True)
    old = path.read_text() if path.exists() else ""
    path.write_text("\n".join(old.splitlines()[:3]) if text is None else old + text + "\n")
    forget()
    found = list(rule(house))
    assert any(sentence in told for told in found) if sentence else not found, found


def test_what_make_deps_writes_is_what_the_rule_asks_for(house: Path) -> None:
    """Out of a dvc.yaml with no code, too much code and wrong code; comments, data and outputs stay as they were."""
    good = (house / "dvc.yaml").read_text().replace("    deps:\n    - ", "    deps:\n      - ")
    good = re.sub(r"^    - ", "      - ", good, flags=re.MULTILINE).replace("  vocab:", "  # words\n  vocab:")
    bare = re.sub(r" +- stages/.*\n", "", good).replace("    deps:\n    outs", "    deps: []\n    outs")
    wrong = good.replace("      - stages/params.py\n", "      - stages/gone.py\n      - stages/scorers\n")
    assert bare != good != wrong
    for text in (good, bare, wrong):
        (house / "dvc.yaml").write_text(with_deps(text, house))
        assert list(dvc_lists_what_the_code_needs(house)) == []
        assert (house / "dvc.yaml").read_text() == good


PLANTED_IN_DVC = [
    (dvc_keeps_profiles_apart, "data/${profile}/fetch.json", "data/fetch.json", "has no folder ${profile}"),
    (dvc_keeps_profiles_apart, "- data/${profile}/fetch.json\n", "- data/${profile}/a.json\n", "no stage before it"),
    (dvc_keeps_profiles_apart, "python -m stages.vocab", "python stages/vocab", "cmd is 'python stages/vocab'"),
    (dvc_keeps_profiles_apart, "- ${profile}.vocab", "- ${profile}", "params is ['${profile}']"),
    (dvc_keeps_profiles_apart, "  vocab:", "  words:", "stages are fetch, words, features"),
    (rims_open_with_their_contract, "vocab.json:", "words.json:", "writes does not name data/P/words.json"),
    (rims_open_with_their_contract, "vocab.json:", "words.json:", "writes names data/P/vocab.json, dvc.yaml does not"),
    (rims_open_with_their_contract, "- data/${profile}/vocab.json", "- data/${profile}/v.json", "reads does not name"),
]


@pytest.mark.parametrize(("rule", "old", "new", "sentence"), PLANTED_IN_DVC)
def test_a_mistake_in_dvc_yaml_is_found(
    house: Path, rule: Callable[[Path], Iterator[str]], old: str, new: str, sentence: str
) -> None:
    text = (house / "dvc.yaml").read_text()
    assert old in text
    (house / "dvc.yaml").write_text(text.replace(old, new))
    assert any(sentence in found for found in rule(house)), list(rule(house))


@pytest.mark.parametrize("told", ["", "Reads: a. Writes: b.", "reads: x\nwrites: y\nwhy:"])
def test_a_rim_without_its_contract_is_found(house: Path, told: str) -> None:
    (house / "stages/fetch/__main__.py").write_text(f'"""{told}"""\n')
    forget()
    assert list(rims_open_with_their_contract(house)) == [
        "stages/fetch/__main__.py does not open with the three lines reads, writes, why"
    ]


def test_braces_in_a_contract_are_written_out() -> None:
    assert unfold("data/P/captions_{val,test}.json, reports/P/x.json") == (
        "data/P/captions_val.json data/P/captions_test.json, reports/P/x.json"
    )


def test_the_closure_is_what_python_really_loads(house: Path) -> None:
    """Against the authority: the interpreter's own list of modules after everything in a closure was imported."""
    for name in ("stages/tracking.py", "stages/train/model.py"):
        (house / name).write_text("import json\nModel = x = 1\n")
    (house / "stages/train/__main__.py").write_text("from stages.tracking import x\nfrom .model import Model\n")
    forget()
    script = "import sys, stages.train.__main__, stages.train.settings\n"
    script += "print(*(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'stages'), sep='\\n')"
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=house, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert sorted(Path(file).relative_to(house).as_posix() for file in loaded) == closure("train", house)


# --- this repository's stages, loaded for real -----------------------------------------------------------------------
def test_fetch_and_vocab_load_without_torch() -> None:
    """The rule above reads our sources; the packages of others could bring torch in as well."""
    script = "import sys, stages.fetch.__main__, stages.vocab.__main__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr[-2000:]


# --- the furniture ---------------------------------------------------------------------------------------------------
def test_the_lock_fits_pyproject() -> None:
    """Every requirement, of each platform, is pinned in requirements.lock to a version that it allows."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    pins: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==(\S+)", (REPOSITORY / "requirements.lock").read_text(), re.MULTILINE):
        pins.setdefault(canonicalize_name(name), []).append(version)
    optional = project["optional-dependencies"]
    for line in [*project["dependencies"], *optional["s3"], *optional["dev"]]:
        wanted = Requirement(line)
        if wanted.name == project["name"]:
            continue
        found = pins.get(canonicalize_name(wanted.name), [])
        assert any(wanted.specifier.contains(version) for version in found), f"{line}: locked {found}; `make lock`"


def test_one_version_one_licence() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert {key: citation[key] for key in ("title", "version", "license")} == {
        "title": project["name"], "version": project["version"], "license": project["license"],
    }  # fmt: skip
    licence = (REPOSITORY / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in licence
    assert licence.rstrip().endswith("limitations under the License.")


def test_people_and_ci_use_the_same_commands() -> None:
    """What CONTRIBUTING, workflows and .ci/run ask of make, make knows; the hooks are the tools of `make test`."""
    makefile = (REPOSITORY / "Makefile").read_text()
    known = set(re.findall(r"^(\w+):.*##", makefile, re.MULTILINE))
    for file in ("CONTRIBUTING.md", ".ci/run", ".github/workflows/test.yml", ".github/workflows/nightly.yml"):
        text = (REPOSITORY / file).read_text()
        asked = set(re.findall(r"(?:^ *|run: |`)make (\w+)", text, re.MULTILINE))
        assert asked <= known, file
        assert asked or ".ci/run" in text, file
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    for hook in hooks:
        assert " ".join(hook["entry"].split()[:2]) in makefile, hook["entry"]
