"""A real vLLM server in a process of its own."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

NAME = "smol"


class VllmServer:
    """`vllm serve` in a process of its own."""

    def __init__(self, model: str, log: Path, *options: str, **variables: str) -> None:
        """Start it with further options and environment variables."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        self._metrics = f"http://127.0.0.1:{port}/metrics"
        self._log = log
        # `vllm serve` by its module: the CPU build's own command does not start.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--model", model, "--served-model-name", NAME, "--dtype", "float32"]
        command += ["--max-model-len", "2048", "--enforce-eager", "--enable-prompt-tokens-details", *options]
        environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", **variables}
        environment["TORCHDYNAMO_DISABLE"] = "1"  # no part of the sampler is to be compiled for log-probabilities
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def wait_until_ready(self) -> None:
        """Return once the server says that it is up."""
        with self._log.open() as log:
            while self._process.poll() is None:
                if "Application startup complete" in log.readline():
                    return
        pytest.fail(f"the server did not start:\n{self._log.read_text()[-3000:]}")

    def metric(self, name: str) -> float:
        """The value of one of the server's counters."""
        with urllib.request.urlopen(self._metrics) as answer:
            text = answer.read().decode()
        found = re.search(rf"^vllm:{name}{{.*}} (\S+)$", text, re.MULTILINE)
        assert found, text
        return float(found[1])

    def kill(self) -> None:
        """Kill -9 the server and all its processes."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
