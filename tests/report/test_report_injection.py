"""Text of models, data and files is text on the page, whatever it says, and the page loads nothing."""

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest
from chain_samples import chain, round_
from labels import both, label
from report_pages import Node, parse, read
from report_runs import chain_run, evaluation, evaluation_run, label_run, ranking_run, write_manifest

from cai.compare.page import sentences
from cai.report.report import write_report
from cai.report.transcribing import MOST_CHARACTERS

ODD = {
    "script": "<script>window.ran = 1</script>",
    "end of script": "</script><script>window.ran = 1</script></style></title></textarea>",
    "image": "<img src=x onerror='window.ran = 1'><svg onload=window.ran=1>",
    "attribute": "\"' onmouseover=window.ran=1 autofocus onfocus='window.ran = 1' x=\"",
    "template": "{{ 7 * 7 }}{% for x in y %}{# gone #}${7 * 7}",
    "link": "javascript:window.ran=1 [x](javascript:window.ran=1) <a href=javascript:window.ran=1>x</a>",
    "document": "</details></main></body></html><!doctype html><base href='https://x.example/'><meta name=x>",
    "comment": "<!-- <![CDATA[ ]]> --!> <!ENTITY x SYSTEM 'file:///'>",
    "entity": "&lt;b&gt; &amp;amp; &#60;script&#62; &nbsp",
    "remote": "<link rel=stylesheet href=https://x.example/a.css><style>@import 'https://x.example/b.css'</style>",
}
_LOADING = (
    "src",
    "srcset",
    "href",
    "action",
    "formaction",
    "data",
    "poster",
    "background",
    "cite",
    "ping",
    "xlink:href",
)


def odd_runs(folder: Path, text: str) -> list[Path]:
    """Runs that have the text wherever somebody else writes it."""
    step = f"{text} and more"
    chains = [chain(f"c {text}", round_(text, step, f"{step}!"), prompt=(text,), draft=step, topic=text, model=text)]
    labels = [label(text, *both(0.7, 0.6), prompt=(text,), a=step, b=text, topic=text)]
    found = evaluation()
    metric = found.figures[0].metric.model_copy(update={"name": text, "meaning": text})
    figure = found.figures[0].model_copy(update={"model": text, "metric": metric})
    found = found.model_copy(
        update={"models": {text: text}, "figures": (figure,), "judge": text, "failures": {text: 1}}
    )
    return [
        chain_run(folder / "chains", chains, command=(text,), config={text: text}, failures={text: 1}),
        label_run(folder / "labels", labels, engine={"model": text, text: text}, versions={text: text}),
        evaluation_run(folder / "eval", found, [text]),
        ranking_run(folder / "rank"),
        write_manifest(
            folder / "sft", "train-sft", config={"model": text, "data": [{"path": text}]}, inputs={text: text}
        ),
    ]


def check_inert(page: Node) -> None:
    """Nothing on the page can act or load but its own style and script, which the policy knows by their hashes."""
    (script,) = page.all("script")
    (style,) = page.all("style")
    (policy,) = page.all("meta", http_equiv_="") or [
        one for one in page.all("meta") if one.attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    hashes = {
        f"{node.tag}-src 'sha256-{base64.b64encode(hashlib.sha256(node.text.encode()).digest()).decode()}'"
        for node in (script, style)
    }
    rules = {rule.strip() for rule in (policy.attributes["content"] or "").split(";")}
    assert rules == {"default-src 'none'", "img-src data:", "base-uri 'none'", "form-action 'none'", *hashes}
    assert not script.attributes
    for node in page.nodes:
        assert node.tag not in ("iframe", "object", "embed", "base", "video", "audio", "source", "image", "use", "math")
        for name, value in node.attributes.items():
            assert not name.startswith("on"), f"{name} of {node.tag}"
            assert name != "style"
            if name in _LOADING:
                allowed = r"#[a-z-]+" if node.tag == "a" else r"data:(,|image/svg\+xml;base64,[A-Za-z0-9+/=]+)"
                assert re.fullmatch(allowed, value or ""), f"{name} of {node.tag}: {value}"
    assert "url(" not in style.text
    assert "@import" not in style.text


@pytest.mark.parametrize("text", ODD.values(), ids=ODD.keys())
def test_odd_text_is_text(tmp_path: Path, text: str) -> None:
    runs = odd_runs(tmp_path, text)
    write_report(runs, tmp_path / "out.html", title=text)
    page = read(tmp_path / "out.html")
    check_inert(page)
    assert page.all("title")[0].text == page.all("h1")[0].text == text
    transcripts = {one.attributes["data-run"]: one for one in page.all("details", class_="transcript")}
    assert transcripts.keys() == {"chains", "labels", "eval"}
    said = [one.text for one in transcripts["chains"].all("div", class_="text")]
    assert said[:3] == [text, f"{text} and more", f"{text} and more"]
    assert transcripts["chains"].attributes["data-topic"] == text
    assert transcripts["chains"].attributes["data-principles"] == text
    assert [one.text for one in transcripts["labels"].all("div", class_="text")][:3] == [text, f"{text} and more", text]
    assert [one.text for one in page.all("option")].count(text) == 2, "a topic and a principle"
    tables = [cell for table in page.tables for row in table for cell in row]
    assert tables.count(text) >= 10
    assert tables.count(f"version of {text}") == 1
    configuration = [json.loads(one.text) for one in page.chapter("provenance").all("dd")]
    assert configuration[0] == {text: text}


def test_names_of_folders_are_text(tmp_path: Path) -> None:
    run = chain_run(tmp_path / "<img src=x onerror=1>&amp;")
    write_report([run], tmp_path / "out.html")
    page = read(tmp_path / "out.html")
    check_inert(page)
    assert page.chapter("summary").row("<img src=x onerror=1>&amp;")[1] == "critique-revise"


def test_what_is_not_seen_or_turns_the_text_around_is_made_visible(tmp_path: Path) -> None:
    text = "safe \u202egnp.exe\u202c \u200bzero \x1b[31mred\x07 \u2028 end\r\n\ttab مرحبا"
    write_report(odd_runs(tmp_path, text), tmp_path / "out.html")
    raw = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]", raw) is None
    shown = read(tmp_path / "out.html").all("div", class_="text")[0].text
    assert shown == "safe ⟨U+202E⟩gnp.exe⟨U+202C⟩ ⟨U+200B⟩zero ␛[31mred␇ ⟨U+2028⟩ end␍\n\ttab مرحبا"


def test_long_texts_are_shortened_and_said_so(tmp_path: Path) -> None:
    chains = [
        chain("long", round_("honesty", "x" * 50_000, "<b>" * 20_000), prompt=("word " * 10_000,), draft="y" * 50_000)
    ]
    write_report([chain_run(tmp_path / "chains", chains)], tmp_path / "out.html")
    assert (tmp_path / "out.html").stat().st_size < 200_000
    page = read(tmp_path / "out.html")
    check_inert(page)
    texts = [one.text for one in page.all("details", class_="transcript")[0].all("div", class_="text")]
    assert [len(one) for one in texts] == [MOST_CHARACTERS] * 3 + [2 * MOST_CHARACTERS]
    remarks = [one.text for one in page.all("span", class_="remark")]
    assert remarks[:3] == [f"(the first {MOST_CHARACTERS:,} of 50,000 characters)"] * 3
    assert remarks[3] == f"(new text throughout; the first {MOST_CHARACTERS:,} of 60,000 characters)"


def test_plots_are_images_whatever_they_hold(tmp_path: Path) -> None:
    run = evaluation_run(tmp_path / "eval")
    (run / "plane.svg").write_text("<svg onload='window.ran = 1'><script>window.ran = 1</script></svg>\"><script>")
    write_report([run], tmp_path / "out.html")
    page = read(tmp_path / "out.html")
    check_inert(page)
    assert len(page.all("img")) == 1


def test_plots_outside_of_the_run_are_not_taken_in(tmp_path: Path) -> None:
    run = evaluation_run(tmp_path / "eval")
    (tmp_path / "other.svg").write_text("<svg>secret</svg>")
    write_manifest(run, "evaluate", other_files=("../other.svg", "/etc/x.svg"))
    write_report([run], tmp_path / "out.html")
    assert read(tmp_path / "out.html").all("img") == []


def test_the_checks_of_this_module_find_what_they_look_for() -> None:
    good = "<meta http-equiv='Content-Security-Policy' content='x'><script></script><style></style>"
    for bad in (
        "<b onclick=1></b>",
        "<a href='https://x.example'></a>",
        "<p style='x'></p>",
        "<script src=x></script>",
    ):
        with pytest.raises((AssertionError, ValueError)):
            check_inert(parse(good + bad))


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("run `cai show` and `cai rank` & read", "run <code>cai show</code> and <code>cai rank</code> &amp; read"),
        ('`<b>` "x"', "<code>&lt;b&gt;</code> &quot;x&quot;"),
        ("one ` alone", "one ` alone"),
        ("`\u202egnp.x`", "<code>⟨U+202E⟩gnp.x</code>"),
    ],
)
def test_what_stands_in_backticks_is_code_and_text_all_the_same(text: str, html: str) -> None:
    assert sentences(text) == html
