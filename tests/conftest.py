"""What several tests need: real pictures where they are, and small builders."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipelines import straight
from stores import repository, template

__all__ = ["repository", "shared", "straight", "template"]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real pictures and captions beside the repository; the test is skipped where they are absent."""
    data = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    if not data.is_dir():
        pytest.skip(f"needs real pictures in {data}, which are no part of this repository")
    return data


SLOWEST = ("test_pipeline.py", "test_training.py", "test_experiments.py", "test_evaluate.py", "test_remote.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first, so that no worker is left alone with one at the end; not two first that wait
    for the same repository to be made."""
    order = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
