"""Labels, samples and contrasts as people read them: the conversation, its replies, and what a judge made of them."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cai.records import TIE, ContrastSample, Judgement, Label, Response, ResponseSample, Side, Verdict
from cai.transcript_parts import Reply, block, conversation, pair, title
from cai.visible import visible


def format_label(label: Label, width: int) -> RenderableType:
    """Lay out a label for a console of `width` columns: both responses, the verdict, a line for each judgement."""
    comparison = label.comparison
    return Group(
        title(label.id, comparison.prompt.topic, f"judge {label.model}"),
        *conversation(comparison.prompt.messages),
        *pair(_response("A", comparison.a), _response("B", comparison.b), width),
        *block("Verdict", _conclusion(label.verdict, comparison.gold)),
        _judgements(label.verdict.judgements),
        Text(),
        *_reasoning(label.verdict.judgements),
    )


def format_sample(sample: ResponseSample) -> RenderableType:
    """Lay out the replies of a policy to one prompt, each with its rating where there are ratings."""
    parts: list[RenderableType] = [
        title(sample.id, sample.prompt.topic, sample.model),
        *conversation(sample.prompt.messages),
    ]
    for number, reply in enumerate(sample.replies, 1):
        rating = f" · rating {sample.ratings[number - 1]:.3f}" if sample.ratings else ""
        parts += Reply.of(f"Reply {number}{rating}", reply).lines()
    return Group(*parts)


def format_contrast(sample: ContrastSample, principle: str, width: int) -> RenderableType:
    """Lay out the replies that were asked to keep to `principle` and to oppose it."""
    return Group(
        title(sample.id, sample.prompt.topic, sample.model),
        *conversation(sample.prompt.messages),
        *block(f"Principle · {visible(sample.principle_id)}", Text(visible(principle), style="italic")),
        *pair(Reply.of("Asked to keep to it", sample.follow), Reply.of("Asked for the opposite", sample.oppose), width),
    )


def is_wrong(label: Label) -> bool:
    """Whether the judge prefers another response than the gold label does; a tie is not wrong."""
    gold, preferred = label.comparison.gold, _preferred(label.verdict)
    return gold is not None and preferred is not None and preferred != gold


def _preferred(verdict: Verdict) -> Side | None:
    if abs(verdict.p_a - 0.5) <= TIE:
        return None
    return "a" if verdict.p_a > 0.5 else "b"


def _response(side: str, response: Response) -> Reply:
    origin = f" · {response.origin}" if response.origin else ""
    return Reply.plain(f"Response {side}{origin}", response.text)


def _conclusion(verdict: Verdict, gold: Side | None) -> Text:
    """Which response the judge prefers, whether that is the gold one, and how often the position decides."""
    preferred = _preferred(verdict)
    if preferred is None:
        text = Text("The judge finds them equally good")
    else:
        probability = verdict.p_a if preferred == "a" else 1 - verdict.p_a
        text = Text(f"The judge prefers {preferred.upper()} (p = {probability:.3f})")
    if gold is not None:
        text.append(f" · gold label {gold.upper()}: ")
        if preferred is None:
            text.append("a tie", style="yellow")
        elif preferred == gold:
            text.append("right", style="green")
        else:
            text.append("wrong", style="red")
    if verdict.position_flip is not None:
        text.append(f" · position flip {verdict.position_flip:.0%}")
    return text


def _judgements(judgements: Sequence[Judgement]) -> Table:
    """One line for each judgement. Values are there only where the judge saw one response at a time."""
    with_values = any(one.value_a is not None for one in judgements)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("principle", overflow="fold")
    for name in ("protocol", "order"):
        table.add_column(name, no_wrap=True)
    for name in ("p_a", "off mass", *(("value_a", "value_b") if with_values else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for one in judgements:
        values = (_figure(one.value_a), _figure(one.value_b)) if with_values else ()
        cells = (one.principle_id, one.protocol, one.order or "–", f"{one.p_a:.3f}", f"{one.off_mass:.3f}", *values)
        table.add_row(*(Text(visible(cell)) for cell in cells))
    return table


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _reasoning(judgements: Sequence[Judgement]) -> Iterator[RenderableType]:
    """What the judge wrote before its answers."""
    for one in judgements:
        about = (f"order {one.order}",) if one.order else ("about A", "about B")
        for which, rationale in zip(about, one.rationales, strict=False):
            yield from Reply.of(f"Reasoning · {one.principle_id} · {which}", rationale).lines()
