"""The curves of a training: what of the trainer's log becomes a curve, and a drawing with the same bytes each time."""

import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from cai.errors import RunDirError
from cai.train.curves import Curve, Panel, panels, write_curves

LOG: list[dict[str, float]] = [
    {
        "loss": 0.9,
        "grad_norm": 3.0,
        "learning_rate": 1e-6,
        "rewards/margins": 0.1,
        "num_tokens": 9,
        "epoch": 1,
        "step": 2,
    },
    {
        "loss": 0.7,
        "grad_norm": 2.0,
        "learning_rate": 5e-7,
        "rewards/margins": 0.3,
        "num_tokens": 18,
        "epoch": 2,
        "step": 4,
    },
    {
        "eval_loss": 0.8,
        "eval_accuracy": 0.6,
        "eval_runtime": 3.5,
        "eval_samples_per_second": 7.0,
        "eval_steps_per_second": 1.0,
        "eval_num_tokens": 18,
        "epoch": 2,
        "step": 4,
    },
    {
        "train_runtime": 12.0,
        "train_samples_per_second": 5.0,
        "train_steps_per_second": 1.0,
        "total_flos": 1e9,
        "train_loss": 0.75,
        "loss": 0.75,
        "epoch": 2,
        "step": 4,
    },
]


def drawn(log: Sequence[Mapping[str, float]], folder: Path) -> str:
    write_curves(log, folder / "curves.svg")
    return (folder / "curves.svg").read_text(encoding="utf-8")


def texts(svg: str) -> list[str]:
    """Text is drawn as outlines; matplotlib keeps what it says in comments."""
    return re.findall(r"<!-- (.*?) -->", svg)


def strokes(svg: str, colour: str) -> int:
    """Lines of a colour; that of the legend is one of them."""
    return sum(colour in element.get("style", "") for element in ET.fromstring(svg).iter() if element.get("clip-path"))


def test_quantities_are_sorted_with_their_steps_and_nothing_else_is_a_curve() -> None:
    empty = Curve([], [])
    assert panels(LOG) == [
        Panel("loss", Curve([2, 4], [0.9, 0.7]), Curve([4], [0.8])),
        Panel("rewards/margins", Curve([2, 4], [0.1, 0.3]), empty),
        Panel("accuracy", empty, Curve([4], [0.6])),
        Panel("learning_rate", Curve([2, 4], [1e-6, 5e-7]), empty),
        Panel("grad_norm", Curve([2, 4], [3.0, 2.0]), empty),
    ]


def test_each_panel_is_named_and_both_sides_are_told_apart(tmp_path: Path) -> None:
    svg = drawn(LOG, tmp_path)
    shown = texts(svg)
    names = {"loss", "rewards/margins", "accuracy", "learning_rate", "grad_norm", "training", "held out", "step"}
    assert names <= set(shown)
    assert not any(word in svg for word in ("runtime", "per_second", "flos", "num_tokens", "train_loss", "epoch"))
    assert svg.count('<g id="axes_') == 5
    assert strokes(svg, "#2b6cb0") >= 4
    assert strokes(svg, "#c05621") >= 1
    no_eval = drawn(LOG[:2], tmp_path)
    assert strokes(no_eval, "#c05621") < strokes(svg, "#c05621")


def test_the_drawing_is_900_pixels_wide_whatever_the_number_of_panels(tmp_path: Path) -> None:
    for log in (LOG, LOG[:1], [{"loss": 1.0, "step": 1}], []):
        assert ET.fromstring(drawn(log, tmp_path)).get("width") == "675pt"  # of which 72 are 96 pixels


def test_the_same_log_gives_the_same_bytes(tmp_path: Path) -> None:
    svg = drawn(LOG, tmp_path)
    assert drawn([dict(entry) for entry in LOG], tmp_path) == svg
    assert drawn([*LOG[:1], LOG[1] | {"loss": 0.71}, *LOG[2:]], tmp_path) != svg


def test_a_curve_of_one_point_is_seen(tmp_path: Path) -> None:
    one = drawn([{"loss": 1.0, "step": 5}], tmp_path)
    assert len(re.findall(r"<use [^>]*#2b6cb0", one)) == 1
    many = drawn([{"loss": 1.0 + step, "step": step} for step in range(100)], tmp_path)
    assert re.findall(r"<use [^>]*#2b6cb0", many) == []


def test_values_that_are_not_finite_leave_a_gap_and_are_counted(tmp_path: Path) -> None:
    log = [{"grad_norm": value, "step": step} for step, value in enumerate([1.0, math.nan, 2.0, math.inf, 1.5, 1.0])]
    svg = drawn(log, tmp_path)
    assert "grad_norm (2 not finite)" in texts(svg)
    assert len(re.findall(r"<use [^>]*#2b6cb0", svg)) == 4


def test_an_empty_log_is_said_to_be_empty(tmp_path: Path) -> None:
    assert "nothing was logged" in texts(drawn(LOG[-1:], tmp_path))


def test_a_folder_that_is_not_there_is_an_error_of_the_run_directory(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=r"curves\.svg cannot be written"):
        write_curves(LOG, tmp_path / "no" / "curves.svg")


def test_neither_settings_nor_figures_of_pyplot_are_touched(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    drawn(LOG, tmp_path)
    assert dict(matplotlib.rcParams) == before
    code = "import sys, cai.train.curves; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
