"""The baselines of benchmarks/linear_probe.py on pairs whose rule is known."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import save_tiny_model

ROOT = Path(__file__).parents[1]
PAIRS = 150


def words(draw: random.Random) -> str:
    return " ".join(draw.choice(["ash", "bay", "cow", "day", "elm"]) for _ in range(6))


def accuracies(output: str) -> dict[str, float]:
    """Accuracy on new pairs by the name of the baseline, in percent."""
    lines = [line.split(": ", 1) for line in output.splitlines() if "by cross-validation" in line]
    return {name: float(rest.split("cross-validation, ")[1].split("%")[0]) for name, rest in lines}


@pytest.mark.parametrize(
    ("rule", "bag", "probe"),
    [("and kind", (99.0, 100.0), (75.0, 100.0)), ("", (25.0, 75.0), (25.0, 75.0))],
)
def test_a_rule_is_learned_and_no_rule_is_not(
    tmp_path: Path, rule: str, bag: tuple[float, float], probe: tuple[float, float]
) -> None:
    """On 50 new pairs; the probed model has random weights."""
    draw = random.Random(0)
    rows = [
        {"prompt": f"question {number}", "chosen": f"{words(draw)} {rule}".strip(), "rejected": words(draw)}
        for number in range(PAIRS)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, ROOT / "benchmarks/linear_probe.py", "--data", tmp_path / "pairs.jsonl"]
    done = subprocess.run(
        [*map(str, command), "--train", "100", "--model", str(save_tiny_model(tmp_path / "tiny"))],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = accuracies(done.stdout)
    assert len(found) == 5
    for name, (least, most) in (("bag of words", bag), ("linear probe, layer 2, mean of the tokens", probe)):
        assert least <= found[name] <= most
