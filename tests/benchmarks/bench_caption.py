"""How long `caption` takes for one picture: cold, a process of its own, and warm, the next ones of the same process.

    python tests/benchmarks/bench_caption.py [MODEL] [ROUNDS]

MODEL is a captioner, or the one that `caption` takes by itself after `dvc pull`. Pictures are drawn, as large as
photographs, 640 x 480 in JPEG; warm is from the file to the text, one picture at a time, beam as the model says.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from stages.caption import PRETRAINED, open_picture
from stages.evaluate.captioner import Captioner


def photograph(path: Path, seed: int) -> Path:
    """Coloured patches with noise: a file as large and as slow to decode as a photograph's."""
    drawn = np.random.default_rng(seed)
    patches = Image.fromarray(drawn.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
        (640, 480), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(patches, dtype=np.int16) + drawn.integers(-12, 13, (480, 640, 3))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return path


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else str(PRETRAINED)
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with tempfile.TemporaryDirectory() as folder:
        paths = [photograph(Path(folder) / f"{i}.jpg", i) for i in range(20)]
        command = [str(Path(sys.executable).with_name("caption")), "--model", model]
        cold = []
        for path in paths[:rounds]:
            began = time.perf_counter()
            subprocess.run([*command, str(path)], check=True, capture_output=True)
            cold.append(time.perf_counter() - began)
        captioner = Captioner.load(model)
        size, warm = captioner.at_least, []
        for path in paths:
            began = time.perf_counter()
            captioner.caption([open_picture(path, size)])
            warm.append(time.perf_counter() - began)
    told = ", ".join(f"{seconds:.2f}" for seconds in cold)
    print(f"cold: {median(cold):.2f} s ({told})")
    print(f"warm: first picture {warm[0]:.3f} s, then {median(warm[1:]):.3f} s (slowest {max(warm[1:]):.3f} s)")


if __name__ == "__main__":
    main()
