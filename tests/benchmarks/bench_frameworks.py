"""What a live page costs before it has a model: FastAPI, which is here, beside Gradio in an environment of its own.

    chrt -f 1 python tests/benchmarks/bench_frameworks.py [ROUNDS]

Prints, for each, the seconds from the start of Python to the first answer of an app that captions nothing, the packages
and bytes of its environment, and the addresses of other machines that its page names. Needs the package index.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OURS = ("fastapi", "uvicorn", "python-multipart", "prometheus-client")
FASTAPI = """
import sys, uvicorn
from fastapi import FastAPI
app = FastAPI()
app.get("/")(lambda: "a dog runs")
uvicorn.run(app, port=int(sys.argv[1]), log_level="error")
"""
GRADIO = """
import sys, gradio
with gradio.Blocks() as page:
    picture, beam, caption = gradio.Image(type="pil"), gradio.Slider(1, 20, 3), gradio.Textbox()
    picture.change(lambda *_: "a dog runs", [picture, beam], caption)
page.launch(server_port=int(sys.argv[1]), quiet=True)
"""


def main() -> None:
    rounds = int(sys.argv[1]) if sys.argv[1:] else 3
    with tempfile.TemporaryDirectory() as name:
        print("| | packages | bytes | until the first answer | other addresses in its page |")
        print("|---|---:|---:|---:|---|")
        for title, packages, app in (("FastAPI", OURS, FASTAPI), ("Gradio", ("gradio",), GRADIO)):
            folder = Path(name, title)
            uv = Path(sys.executable).with_name("uv")
            subprocess.run([uv, "venv", "-q", "--python", sys.executable, folder], check=True)
            python = folder / "bin/python"
            subprocess.run(
                [uv, "pip", "install", "-q", "--compile-bytecode", "--python", python, *packages], check=True
            )
            listed = subprocess.run([uv, "pip", "list", "-q", "--python", python], capture_output=True, check=True)
            size = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file() and not each.is_symlink())
            found = [answer(python, app, 8790 + number) for number in range(rounds)]
            seconds = statistics.median(spent for spent, _ in found)
            named = sorted(set(re.findall(r"https?://(?!127|localhost)([\w.-]+)", found[0][1])))
            count = len(listed.stdout.splitlines()) - 2
            print(f"| {title} | {count} | {size / 1e6:,.0f} MB | {seconds:.1f} s | {', '.join(named) or 'none'} |")


def answer(python: Path, app: str, port: int) -> tuple[float, str]:
    """Seconds until the app has answered, and its page."""
    began = time.perf_counter()
    with subprocess.Popen(
        [python, "-c", app, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            while time.perf_counter() - began < 120:
                done = subprocess.run(["curl", "-s", f"http://127.0.0.1:{port}/"], capture_output=True, check=False)
                if done.returncode == 0:
                    return time.perf_counter() - began, done.stdout.decode(errors="replace")
                time.sleep(0.02)
            raise SystemExit("no answer within 120 s")
        finally:
            server.kill()


if __name__ == "__main__":
    main()
