"""The reliability diagram: the same figures give the same bytes, and what is drawn is what was measured."""

import sys
import xml.etree.ElementTree as ET

from labels import certificate, right_and_wrong

from cai.feedback.certificate_files import draw_reliability


def test_the_same_certificate_gives_the_same_bytes() -> None:
    found = certificate([*right_and_wrong(30, 10), *right_and_wrong(20, 2, p=0.95)])
    again = certificate([*right_and_wrong(30, 10), *right_and_wrong(20, 2, p=0.95)])
    png, svg = draw_reliability(found, "png"), draw_reliability(found, "svg")
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert ET.fromstring(svg).tag.endswith("svg")
    assert draw_reliability(again, "png") == png
    assert draw_reliability(again, "svg") == svg
    other = certificate([*right_and_wrong(30, 10), *right_and_wrong(19, 3, p=0.95)])
    assert draw_reliability(other, "svg") != svg


def test_the_title_names_judge_set_accuracy_and_calibration() -> None:
    # Text is drawn as outlines; matplotlib keeps what it says in comments.
    found = certificate(right_and_wrong(75, 25), model="/models/a/very/long/path/to/$\\frac$-judge", name="a--b")
    svg = draw_reliability(found, "svg").decode()
    low, high = found.figures.accuracy.low, found.figures.accuracy.high
    assert "<!-- …ry/long/path/to/$\\frac$-judge on a- -b -->" in svg
    assert f"accuracy 75.0% ({low:.1%} to {high:.1%}), ECE 0.050" in svg
    assert ET.fromstring(svg).tag.endswith("svg")
    assert "<!-- 100 -->" in svg  # the count over the only bar


def test_no_figure_is_left_to_pyplot() -> None:
    draw_reliability(certificate(right_and_wrong(3, 1)), "png")
    pyplot = sys.modules.get("matplotlib.pyplot")  # another library may have loaded it
    assert pyplot is None or pyplot.get_fignums() == []
