"""The data set of sampled comparisons: its table, its counts and its card."""

from collections.abc import Mapping

from cai.data.card_parts import RunFacts, by_reason, card_text, escaped, how_made, markdown_table, table_list
from cai.data.dataset import DatasetCounts, Row, Table, conversation_chars
from cai.records import Comparison, Message, Record, Sampling

_WARNINGS = """\
- **Nobody has compared these responses yet.** Which of two is `response_a` was drawn by chance. `cai label` has a judge
  compare them.
- **The text may be offensive or harmful.** Many prompts ask for harmful things, and the responses are those of language
  models as they came; they may comply, be wrong, or be nonsense.
"""
_SPLITS = """\
Each prompt falls on the test side with probability {share:g}, by a hash of its text and the seed; no conversation \
stands on both sides. `comparisons.jsonl` holds the comparisons of all splits, in the order of the prompts."""


class ComparisonRow(Row):
    """Two responses to one prompt, in no order of merit."""

    prompt: tuple[Message, ...]
    """The conversation up to the last user turn."""
    response_a: str
    """One response."""
    response_b: str
    """Another response to the same prompt."""
    origin_a: str
    """Name of the policy that wrote `response_a`."""
    origin_b: str
    """Name of the policy that wrote `response_b`."""
    id: str
    """`<prompt id>/<i>-<j>`, with the positions of the two among all responses to the prompt."""
    prompt_id: str
    """Id of the prompt; all comparisons of a prompt share it."""
    kind: str
    """`red_team` or `helpful`."""
    topic: str | None
    """Topic of the prompt, where the prompt set names one."""
    seed: int
    """Seed of the run."""

    @property
    def chars(self) -> int:
        return conversation_chars(self.prompt) + len(self.response_a) + len(self.response_b)


COMPARISONS = Table("comparisons", ComparisonRow, ("train", "test"))


class SampleCounts(DatasetCounts):
    """What the export of sampled responses wrote and what it left out."""

    prompts: int
    """Prompts with responses."""
    responses: int
    cut: int
    """Those of `responses` that were cut at the token limit; they are compared all the same."""
    dropped: Mapping[str, int]
    """Responses left out before pairing, by reason."""
    unpaired: Mapping[str, int]
    """Prompts without a comparison, by reason."""


class SampleFacts(Record):
    """What the card says of the run beside the counts of the export."""

    run: RunFacts
    models: Mapping[str, str]
    """Model of each policy."""
    responses: int
    """Replies to each prompt from each policy."""
    pairing: str
    rated_by: str | None
    """Who rated the responses, and by what; None where the pairing needs no ratings."""
    sampling: Sampling
    prompt_source: str


def comparison_row(comparison: Comparison, seed: int) -> ComparisonRow:
    """The row of a comparison; `seed` is that of the run."""
    prompt = comparison.prompt
    return ComparisonRow(
        prompt=prompt.messages,
        response_a=comparison.a.text,
        response_b=comparison.b.text,
        origin_a=comparison.a.origin,
        origin_b=comparison.b.origin,
        id=comparison.id,
        prompt_id=prompt.id,
        kind=prompt.kind,
        topic=prompt.topic,
        seed=seed,
    )


def render_sample_card(facts: SampleFacts, counts: SampleCounts, *, test_share: float, seed: int) -> str:
    """Write the card. All figures come from `counts` and `facts`; text from outside is escaped."""
    made = {
        **{f"model of the policy {escaped(name)}": model for name, model in facts.models.items()},
        "responses": f"{facts.responses} to each prompt from each policy, paired: {facts.pairing}",
        **({} if facts.rated_by is None else {"rated by": facts.rated_by}),
        "sampling": facts.sampling.in_words,
        "seed": str(seed),
        "prompts": facts.prompt_source,
    }
    return card_text(
        facts.run,
        (COMPARISONS,),
        counts,
        tags=("comparisons",),
        about="Responses sampled from language models and put into pairs, made with `cai sample`.",
        sections={
            "Read this first": _WARNINGS,
            "How it was made": how_made(facts.run, made, "`manifest.json` beside this file holds the configuration."),
            "Counts": _counts(facts.run, counts),
            "Tables": table_list((COMPARISONS,), counts, _SPLITS.format(share=test_share)),
        },
    )


def _counts(run: RunFacts, counts: SampleCounts) -> str:
    rows = [
        ("prompts with responses", counts.prompts),
        ("responses", counts.responses),
        ("of them cut at the token limit", counts.cut),
        *by_reason("left out", counts.dropped),
        *by_reason("prompts without a comparison", counts.unpaired),
        ("comparisons", counts.rows(COMPARISONS.name)),
        ("input rows rejected before the run", sum(run.rejects.values())),
        *by_reason("failed", run.failures),
    ]
    return markdown_table(("", "number"), rows)
