"""The certificate: its figures by hand, its grades, identities, and files."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from labels import certificate, judge, judgement, label, right_and_wrong
from rich.console import Console

from cai.errors import DataError, RunDirError, StageError
from cai.feedback import certificate as rules
from cai.feedback.certificate import Certificate, Figures, grade
from cai.feedback.certificate_files import find_certificates, read_certificate, render_table, write_certificate
from cai.records import Usage
from cai.statistics import Mean, clustered_mean

# Figures


def test_figures_by_hand() -> None:
    # c0: p 0.8, gold a, right; a is longer.    c1: p 0.4, gold a, wrong; b is longer, same prompt as c0.
    # c2: p 0.5, gold b, tie, flipped; equal.   c3: p 0.1, gold b, right; a is longer.
    labels = [
        label(
            0,
            judgement(0.9, "ab", off_mass=0.1, usage=Usage(prompt_tokens=100, completion_tokens=3)),
            judgement(0.7, "ba", off_mass=0.3, usage=Usage(prompt_tokens=100, cached_tokens=60)),
            prompt=("Same?",),
            a="longer text",
            topic="tea",
        ),
        label(1, judgement(0.4), prompt=("Same?",), b="longer text", topic="tea"),
        label(2, judgement(0.9, "ab"), judgement(0.1, "ba"), gold="b", topic="milk"),
        label(3, judgement(0.1), gold="b", a="longer text"),
    ]
    figures = certificate(labels, failures={"off_option": 2, "timeout": 1}, seconds=8.0).figures
    assert (figures.comparisons, figures.prompts, figures.failed) == (4, 3, 3)
    assert figures.accuracy.value == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert figures.ties == 1
    assert figures.longer_wins.value == pytest.approx((1 + 0 + 0.5 + 0) / 4)
    assert figures.gain.value == pytest.approx(0.25)
    assert figures.position_flip == 0.5  # one of the two verdicts with two orders
    assert figures.brier == pytest.approx((0.2**2 + 0.6**2 + 0.5**2 + 0.1**2) / 4)
    # Confidences 0.8, 0.6, 0.5, 0.9, each in a bin of its own.
    assert figures.ece == pytest.approx((0.2 + 0.6 + 0.0 + 0.1) / 4)
    assert sum(bin_.count for bin_ in figures.reliability) == 4
    # Ranks of p: 4, 2, 3, 1; of the length differences 4, -4, 0, 4: 3.5, 1, 2, 3.5. Sums of products of the deviations
    # from 2.5: 1.5 + 0.75 - 0.25 - 1.5 = 0.5, of their squares 5 and 4.5.
    assert figures.length_correlation == pytest.approx(0.5 / (5 * 4.5) ** 0.5)
    assert figures.off_mass_mean == pytest.approx(0.4 / 6)
    # Sorted 0 0 0 0 0.1 0.3: the 95th percentile stands at place 4.75 of 0 … 5.
    assert figures.off_mass_p95 == pytest.approx(0.1 + 0.75 * 0.2)
    assert figures.labels_per_second == 0.5
    assert figures.prompt_tokens_per_label == (200 - 60) / 4
    assert figures.written_tokens_per_label == 3 / 4
    assert [(topic.topic, topic.comparisons, topic.accuracy.value) for topic in figures.topics] == [
        ("milk", 1, 0.5),
        ("tea", 2, 0.5),
    ]


def test_comparisons_of_one_conversation_are_one_cluster_whatever_their_ids() -> None:
    labels = [
        label(number, judgement(0.9 if number // 4 % 3 else 0.2), prompt=(f"Question {number // 4}?",))
        for number in range(80)
    ]
    figures = certificate(labels).figures
    assert figures.prompts == 20
    values = [1.0 if number // 4 % 3 else 0.0 for number in range(80)]
    assert figures.accuracy == clustered_mean(np.array(values), np.arange(80) // 4, seed=1)


def test_a_judge_that_sees_one_response_at_a_time_has_no_position_to_follow() -> None:
    assert certificate(right_and_wrong(30, 10)).figures.position_flip is None


def test_a_judge_that_always_says_the_first_position_is_all_ties_and_flips() -> None:
    labels = [
        label(number, judgement(p, "ab"), judgement(1 - p, "ba"))
        for number, p in enumerate(0.6 + number / 1000 for number in range(40))
    ]
    found = certificate(labels)
    assert (found.figures.ties, found.figures.position_flip, found.figures.accuracy.value) == (40, 1.0, 0.5)
    assert found.grade == "fail"


def test_the_pairing_of_the_difference_counts() -> None:
    # Judge and length are wrong on the same comparisons but one: the paired difference hardly varies.
    labels = [label(n, judgement(0.9 if n % 3 else 0.1), a="longer text" if n % 3 else "Text A.") for n in range(60)]
    labels[0] = label(0, judgement(0.9), b="the longest text")
    gain = certificate(labels).figures.gain
    # 19 comparisons with equal lengths and a wrong answer: -0.5 each; one where only the length is wrong: +1.
    assert gain.value == pytest.approx((19 * -0.5 + 1) / 60)
    assert gain.high - gain.low < 0.16


def test_without_verdicts_there_is_no_certificate() -> None:
    with pytest.raises(StageError, match=r"no comparison got a verdict.*off_option 12"):
        certificate([], failures={"off_option": 12})


def test_a_label_without_gold_is_not_guessed() -> None:
    with pytest.raises(ValueError, match="the comparison 1 has no gold"):
        certificate([label(0, judgement(0.9)), label(1, judgement(0.9), gold=None)])


def test_no_time_no_speed() -> None:
    assert certificate(right_and_wrong(3, 1), seconds=0.0).figures.labels_per_second is None


# Grades


def figures(**changes: object) -> Figures:
    """The figures of a judge that passes."""
    known = certificate(right_and_wrong(80, 20, p=0.8)).figures
    known = known.model_copy(
        update={
            "accuracy": Mean(value=0.8, low=0.72, high=0.88),
            "gain": Mean(value=0.3, low=0.2, high=0.4),
            "position_flip": 0.1,
            "ece": 0.05,
        }
    )
    return known.model_copy(update=changes)


def mean(value: float, low: float, high: float = 1.0) -> Mean:
    return Mean(value=value, low=low, high=high)


def test_a_good_judge_passes() -> None:
    found, reasons = grade(figures())
    assert found == "pass"
    assert "80.0% (72.0% to 88.0%) is clearly above chance" in reasons[0]
    assert grade(figures(position_flip=None))[0] == "pass"


@pytest.mark.parametrize(
    ("changes", "expected", "words"),
    [
        ({"accuracy": mean(0.7, 0.5)}, "fail", "cannot be told from chance"),
        ({"accuracy": mean(0.7, 0.501)}, "pass", "above chance"),
        ({"accuracy": mean(0.3, 0.2, 0.4)}, "fail", "below chance"),
        ({"failures": {"off_option": 26}}, "fail", "26 of 126 verdicts failed"),
        ({"failures": {"off_option": 20, "timeout": 5}}, "pass", "above chance"),
        ({"comparisons": 29}, "fail", "Only 29 comparisons"),
        ({"comparisons": 30}, "pass", "above chance"),
        ({"prompts": 9}, "fail", "only 9 different prompts"),
        ({"prompts": 10}, "pass", "above chance"),
        ({"accuracy": mean(0.649, 0.6)}, "weak", "below 65%"),
        ({"accuracy": mean(0.65, 0.6)}, "pass", "above chance"),
        ({"gain": mean(0.04, 0.0)}, "weak", "not clearly better than taking the longer response"),
        ({"gain": mean(0.04, 0.001)}, "pass", "above chance"),
        ({"position_flip": 0.31}, "weak", "31% of cases the answer follows the position"),
        ({"position_flip": 0.3}, "pass", "above chance"),
        ({"ece": 0.151}, "weak", "calibration error of 0.151"),
        ({"ece": 0.15}, "pass", "above chance"),
    ],
)
def test_each_rule_of_the_grade(changes: dict[str, object], expected: str, words: str) -> None:
    found, reasons = grade(figures(**changes))
    assert (found, len(reasons)) == (expected, 1)
    assert words in reasons[0]


def test_all_reasons_are_given_and_those_to_fail_alone_where_there_are_any() -> None:
    weak = {"position_flip": 0.9, "ece": 0.4, "accuracy": mean(0.6, 0.55), "gain": mean(0.0, -0.1)}
    assert [len(grade(figures(**weak))[1]), grade(figures(**weak))[0]] == [4, "weak"]
    found, reasons = grade(figures(**weak, comparisons=10, prompts=3))
    assert found == "fail"
    assert len(reasons) == 2


def test_a_coin_fails_and_a_good_judge_passes_from_end_to_end() -> None:
    coin = [label(n, judgement(0.9 if n % 2 else 0.1)) for n in range(200)]
    assert certificate(coin).grade == "fail"
    # 8 of 10 right at p = 0.8, lengths equal.
    good = certificate(right_and_wrong(80, 20, p=0.8))
    assert (good.grade, good.figures.ece) == ("pass", pytest.approx(0.0, abs=1e-9))
    assert certificate(right_and_wrong(80, 20, p=0.999)).grade == "weak"
    assert certificate(right_and_wrong(12, 0, p=0.9)).grade == "fail"


def test_one_prompt_proves_nothing() -> None:
    labels = [label(number, judgement(0.9), prompt=("The only one?",)) for number in range(50)]
    found = certificate(labels)
    assert found.grade == "fail"
    assert found.figures.accuracy == Mean(value=1.0, low=0.0, high=1.0)


# Identity


def test_an_identity_is_known_by_its_content() -> None:
    same = judge(settings={"scale": 1.0, "cot": False, "layout": "principle-last", "protocol": ["pairwise"]})
    assert same.sha256 == judge().sha256
    assert same.differences(judge()) == []
    for changes in ({"dtype": "bfloat16"}, {"format": "transcript"}, {"adapter": "lora"}, {"principle_ids": ("harm",)}):
        assert judge(**changes).sha256 != judge().sha256


def test_differences_name_what_changed() -> None:
    other = judge(
        dtype="bfloat16",
        adapter="lora",
        constitution_sha256="d" * 64,
        settings={"protocol": ["pairwise"], "layout": "paper", "cot": False},
    )
    assert judge().differences(other) == [
        'adapter not set against "lora"',
        "another constitution",
        'dtype "float32" against "bfloat16"',
        'layout "principle-last" against "paper"',
        "scale 1.0 against not set",
    ]


# Files


def test_a_certificate_survives_its_file(tmp_path: Path) -> None:
    written = certificate(right_and_wrong(30, 10), failures={"timeout": 1})
    write_certificate(tmp_path, written)
    assert read_certificate(tmp_path / "certificate.json") == written
    assert {path.name for path in tmp_path.iterdir()} == {"certificate.json", "reliability.png", "reliability.svg"}
    data = json.loads((tmp_path / "certificate.json").read_text(encoding="utf-8"))
    assert (data["grade"], data["chance"], data["figures"]["comparisons"]) == (written.grade, 0.5, 40)


def test_a_certificate_from_before_formats_were_noted_is_one_of_auto(tmp_path: Path) -> None:
    old = certificate(right_and_wrong(30, 10)).model_dump(mode="json")
    del old["judge"]["format"]
    (tmp_path / "certificate.json").write_text(json.dumps(old), encoding="utf-8")
    found = read_certificate(tmp_path / "certificate.json").judge
    assert found.differences(judge(format="auto")) == []
    assert found.differences(judge(format="chat")) == ['format "auto" against "chat"']


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "certificate.json").mkdir()
    with pytest.raises(RunDirError, match=r"certificate\.json cannot be written"):
        write_certificate(tmp_path, certificate(right_and_wrong(30, 10)))


def put(folder: Path, written: Certificate) -> None:
    folder.mkdir()
    (folder / "certificate.json").write_text(written.model_dump_json(), encoding="utf-8")


def test_certificates_are_found_by_the_judge_and_its_relatives(tmp_path: Path) -> None:
    labels = right_and_wrong(30, 10)
    put(tmp_path / "old", certificate(labels, created="2026-01-01T00:00:00+00:00"))
    put(tmp_path / "new", certificate(labels, created="2026-02-01T00:00:00+00:00"))
    put(tmp_path / "near", certificate(labels, dtype="bfloat16", created="2026-03-01T00:00:00+00:00"))
    put(tmp_path / "other", certificate(labels, model="large"))
    put(tmp_path / "tuned", certificate(labels, adapter="lora"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "certificate.json").write_text("{", encoding="utf-8")
    put(tmp_path / "broken" / "deeper", certificate(labels))
    search = find_certificates(tmp_path, judge())
    assert [(found.path.parent.name, found.differences) for found in search.found] == [
        ("new", ()),
        ("old", ()),
        ("near", ('dtype "float32" against "bfloat16"',)),
    ]
    assert len(search.unreadable) == 1
    assert "broken/certificate.json is not what a run of `cai judge-check` writes" in search.unreadable[0]
    assert find_certificates(tmp_path / "missing", judge()).found == ()


def test_a_missing_certificate_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"certificate\.json cannot be read"):
        read_certificate(tmp_path / "certificate.json")


def test_the_table_says_grade_reasons_and_figures() -> None:
    labels = [*right_and_wrong(80, 20, p=0.8), label(100, judgement(0.9), topic="tea")]
    console = Console(width=160, file=io.StringIO())
    with console.capture() as capture:
        console.print(render_table(certificate(labels, failures={"timeout": 2}, model="org/[bold]model\x1b")))
    text = capture.get()
    for words in ("pass", "clearly above chance", "org/[bold]model␛", "2, 2 timeout", "the longer one wins", "tea"):
        assert words in text, words


def test_constants_are_the_documented_ones() -> None:
    assert (rules.MIN_COMPARISONS, rules.MAX_FAILED, rules.MIN_ACCURACY) == (30, 0.2, 0.65)
    assert (rules.MAX_FLIP, rules.MAX_CALIBRATION_ERROR) == (0.3, 0.15)
