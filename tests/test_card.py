import re
from html.parser import HTMLParser
from typing import Any

import pytest
import yaml
from chain_samples import TWO, facts
from markdown_it import MarkdownIt

from cai.data.card import ExportCounts, render_card
from cai.data.dataset import SplitFile
from cai.data.tables import TABLES
from cai.records import Sampling

COUNTS = ExportCounts(
    chains=1234,
    helpful=30,
    unrevised=4,
    identical_pairs=5,
    empty_pairs=6,
    empty_replies=7,
    cut_replies=8,
    principles={"harm": 2, "honesty": 2400},
    files=(
        SplitFile(table="sft", split="train", path="data/sft-train-0.parquet", rows=2000),
        SplitFile(table="sft", split="test", path="data/sft-test-0.parquet", rows=400),
        SplitFile(table="pairs", split="train", path="data/pairs-train-0.parquet", rows=1189),
    ),
)


class Tables(HTMLParser):
    """The cells of all tables of a page, and the tags that stand on it."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self._cell = False

    def handle_starttag(self, tag: str, _attrs: Any) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data


def page(card: str) -> Tables:
    """The card as a Markdown renderer with tables and raw HTML shows it."""
    parser = Tables()
    parser.feed(MarkdownIt("commonmark", {"html": True}).enable("table").render(card.split("---\n", 2)[2]))
    return parser


def card(**changes: object) -> str:
    return render_card(facts(**changes), COUNTS, test_share=0.05, seed=7)


def header(text: str) -> dict[str, Any]:
    # The pattern by which the hub's library cuts the header out.
    found = re.search(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\r|\n|$))", text)
    assert found
    loaded: dict[str, Any] = yaml.safe_load(found[2])
    return loaded


def test_the_header_names_every_file_and_sft_is_the_default() -> None:
    found = header(card())
    assert found["configs"] == [
        {
            "config_name": "sft",
            "default": True,
            "data_files": [
                {"split": "train", "path": "data/sft-train-0.parquet"},
                {"split": "test", "path": "data/sft-test-0.parquet"},
            ],
        },
        {"config_name": "pairs", "data_files": [{"split": "train", "path": "data/pairs-train-0.parquet"}]},
    ]
    assert (found["pretty_name"], found["license"], found["size_categories"]) == ("locks", "other", ["1K<n<10K"])
    assert "constitutional-ai" in found["tags"]


def test_the_card_shows_the_figures_of_the_export() -> None:
    shown = [
        tuple(row)
        for row in page(card(failures={"timeout": 2, "context_overflow": 9}, rejects={"bad_id": 4, "not_text": 7})).rows
    ]
    for row in (
        ("chains exported", "1,234"),
        ("of them answers to helpful prompts, which are not revised", "30"),
        ("of them left as drafted, since the critique found nothing to change", "4"),
        ("revised chains without a pair: last revision equal to the draft", "5"),
        ("revised chains without a pair: draft or last revision without text", "6"),
        ("revisions and helpful answers without text, left out of sft", "7"),
        ("rows of sft cut at the token limit", "8"),
        ("input rows rejected before the run", "11"),
        ("prompts that failed", "11"),
        ("failed: context_overflow", "9"),
        ("failed: timeout", "2"),
        ("sft", "train", "2,000"),
        ("pairs", "test", "0"),
        ("constitution", "two, version 1"),
        ("sha256 of the constitution", "c" * 64),
        ("seed", "7"),
        ("rounds", "2"),
        ("sampling", "temperature 1, top-p 1, at most 256 tokens"),
    ):
        assert row in shown
    assert shown.index(("honesty", "2,400")) < shown.index(("harm", "2"))


def test_the_card_describes_every_column_of_every_table() -> None:
    shown = page(card()).rows
    for table in TABLES:
        for name in table.row.model_fields:
            assert any(row[0] == name and len(row) == 2 and len(row[1]) > 8 for row in shown), (table.name, name)


def test_the_card_does_not_pass_the_pairs_off_as_labels() -> None:
    text = card()
    assert "No judge has labelled these data" in text
    assert "The text may be offensive or harmful" in text
    assert not re.search(r"AI[- ]label", text, re.IGNORECASE)


@pytest.mark.parametrize(
    "text",
    [
        "a | b || c",
        "<script>alert(1)</script> & <b>x</b> &lt;",
        "`code` ``x` *bold* __x__ ~~x~~ [link](http://x.example) ![i](x) # head",
        "trailing backslash \\",
        "\\| {x} $y$ !",
        "---",
        "null",
        "a: b #c\t'\"",
    ],
)
def test_text_from_outside_is_shown_as_it_is(text: str) -> None:
    plain = page(card())
    text_shown = " ".join(text.split())
    two = TWO.model_dump() | {"description": text}
    marked = card(title=text, model=text, constitution=two, failures={text: 1}, prompt_sources=(text,))
    shown = page(marked)
    for name in ("model", "description", "prompts"):
        assert [name, text_shown] in shown.rows
    assert [f"failed: {text_shown}", "1"] in shown.rows
    assert shown.tags == plain.tags
    assert len(shown.rows) == len(plain.rows) + 1
    assert header(marked)["pretty_name"] == text_shown
    assert header(marked)["configs"] == header(card())["configs"]


def test_a_title_cannot_end_the_header() -> None:
    found = header(card(title="x\n---\nconfigs: []\n---\n", model="y\n---\n# z"))
    assert found["pretty_name"] == "x --- configs: [] ---"
    assert len(found["configs"]) == 2


@pytest.mark.parametrize("command", ["cai critique-revise --out 'a```b' ````\n```\n# head", "````"])
def test_the_command_cannot_leave_its_code_block(command: str) -> None:
    tokens = MarkdownIt().parse(card(command=command).split("---\n", 2)[2])
    blocks = [token.content for token in tokens if token.type == "fence"]
    assert blocks[0] == " ".join(command.split()) + "\n"


def test_control_and_direction_characters_are_shown() -> None:
    assert "evil␛[31m ⟨U+202E⟩gpj" in card(command="evil\x1b[31m \u202egpj")


def test_runs_without_critiques_and_with_stop_texts_are_described() -> None:
    shown = page(card(critiques=False, sampling=Sampling(temperature=0.7, stop=("###",)).model_dump())).rows
    assert ["rounds", "2, without critiques"] in shown
    assert ["sampling", "temperature 0.7, top-p 1, at most 256 tokens, stop at '###'"] in shown
