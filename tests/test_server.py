"""What people look at and what teams share: a bare `mlflow ui` in the repository, in a real browser, and the same
server as a tracking server for another repository, artifacts through it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow.pyfunc
import pytest
from browser import Browser, chromium
from stores import fresh, serving
from trained import Trained, stage

from stages import tracking
from stages.register.package import example
from stages.register.registry import Registry


@dataclass
class Shown:
    """A repository with a registered model, and the `mlflow ui` that shows it."""

    folder: Path
    address: str


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("shown")
    with fresh(folder, template):
        trained = Trained(folder)
        trained.commit()
        trained.train(1)
        trained.measure(0.5)
        stage("stages.register")
    command = ("mlflow", "ui", "--host", "127.0.0.1", "--port", "PORT", "--workers", "1")
    with serving(folder, *command, ready="/health") as address:
        yield Shown(folder, address)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


def says(text: str) -> str:
    """JavaScript: whether the page shows a text."""
    return f"document.body.innerText.includes({text!r})"


@pytest.mark.slow
def test_a_bare_ui_shows_run_curve_and_version(browser: Browser, shown: Shown) -> None:
    with fresh(shown.folder):
        version = Registry("captioner-flickr8k").get(1)
        run = tracking.find(version.run_id)
    assert run is not None
    page = f"{shown.address}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    parts = ("train.learning_rate", "test.cider", "test.cider_low", run.data.tags["commit"][:12], "hardware",
             "data/flickr8k/captions_train.json", "captioner-flickr8k")  # fmt: skip
    browser.see(page, *map(says, parts))
    curve = browser.see(
        f"{page}/model-metrics",
        says("learning_rate"),
        "document.querySelector('path.js-line') !== null",
        "Math.max(...[...document.querySelectorAll('path.js-line')].map(line => line.getAttribute('d').length))",
    )
    assert curve > 10, "a curve has more than one point"
    verdict = version.tags["verdict"]
    browser.see(f"{shown.address}/#/models/captioner-flickr8k/versions/1", *map(says, ("champion", "Not meant for")))
    browser.see(f"{shown.address}/#/models/captioner-flickr8k", *map(says, ("Version 1", "history.0001", verdict[:40])))


@pytest.mark.slow
def test_a_tracking_server_works_like_the_file(
    shown: Shown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with fresh(tmp_path):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", shown.address)
        trained = Trained(tmp_path, profile="coco", source="coco")
        trained.commit()
        run = trained.train(7)
        trained.measure(0.8)
        stage("stages.register")
        stored = tracking.find(run.id)
        assert stored is not None
        assert stored.info.artifact_uri.startswith("mlflow-artifacts:/"), "the server keeps the artifacts"
        assert stored.data.metrics["train_loss"] == 1.0
        assert stored.data.metrics["test.cider"] > 0
        assert Registry("captioner-coco").aliases() == {"champion": 1}
        stage("stages.register")
        assert len(tracking.store().search_model_versions("name = 'captioner-coco'")) == 1
        stage("stages.lineage", "captioner-coco@champion")
        assert "BROKEN" not in capsys.readouterr().out
        mlflow.set_tracking_uri(shown.address)
        try:
            served = mlflow.pyfunc.load_model("models:/captioner-coco@champion")
        finally:
            mlflow.set_tracking_uri(None)
        assert len(served.predict([example()])) == 1
        here = {path.name for path in tmp_path.iterdir()}
        assert not here & {"mlflow.db", "mlartifacts", "mlruns"}
