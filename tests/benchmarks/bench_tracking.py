"""What the record costs a training run: seconds to open the store, and of every epoch.

    python tests/benchmarks/bench_tracking.py [EPOCHS]

Measured as train meets it, with torch and pandas imported before, in a store that is there already. The fixed part is
almost all `import mlflow`. Prints the share of a run of one minute and of ten.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from typing import Any

import pandas  # noqa: F401 - train has it in memory
import torch  # noqa: F401 - as well

from stages import tracking

PARAMS: dict[str, dict[str, Any]] = {stage: {f"setting_{i}": i for i in range(10)} for stage in tracking.TRAINED}


def run(epochs: int) -> tuple[float, float]:
    """Seconds of all that is not an epoch, and of one epoch."""
    began = time.perf_counter()
    record = tracking.start("bench", PARAMS, "cpu")
    opened = time.perf_counter()
    for epoch in range(1, epochs + 1):
        record.log({f"curve_{i}": i / epoch for i in range(6)}, step=epoch)
    logged = time.perf_counter()
    record.finish()
    return opened - began + time.perf_counter() - logged, (logged - opened) / epochs


def main() -> None:
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        if not os.fork():  # the database is made by another process, so that nothing of it is warm in this one
            run(1)
            os._exit(0)
        os.wait()
        fixed, epoch = run(epochs)
        os.chdir("/")
    print(f"open and finish {fixed:.2f} s, of that mlflow's import most; an epoch {1000 * epoch:.1f} ms")
    for minutes in (1, 10):
        print(f"{100 * (fixed + epochs * epoch) / (60 * minutes):.1f}% of {minutes} min with {epochs} epochs")


if __name__ == "__main__":
    main()
