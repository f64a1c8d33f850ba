"""Transcripts of all runs that have any, evenly chosen where there are many."""

from collections.abc import Mapping

from cai.report.blocks import Chapter, Paragraph, Transcripts
from cai.report.collecting import Collected
from cai.report.transcribing import MOST_CHARACTERS, ON_PAGES_ALONE, transcribed, transcripts_of


def transcripts_chapter(collected: Collected, most: int) -> Chapter | None:
    """At most that many transcripts.

    Raises:
        RunDirError: a record is broken.
    """
    totals = {run.name: number for run in collected.runs if (number := transcribed(run))}
    if not totals or not most:
        return None
    shares = divided(totals, most)
    shown = tuple(one for run in collected.runs if run.name in totals for one in transcripts_of(run, shares[run.name]))
    said = [f"{shares[name]:,} of {total:,} from {name}" for name, total in totals.items()]
    whole = sum(totals.values())
    cut = {run.stage for run in collected.runs if shares.get(run.name, 0) < totals.get(run.name, 0)}
    way = "`cai show` shows the others" if cut.isdisjoint(ON_PAGES_ALONE) else "a larger `--transcripts` shows more"
    chosen = f" They are evenly spaced over the input of each run; {way}." if cut else ""
    return Chapter(
        "transcripts",
        "Transcripts",
        (
            Paragraph(f"{len(shown):,} transcripts of {whole:,}: {', '.join(said)}.{chosen}"),
            Paragraph(
                f"Of a text, at most {MOST_CHARACTERS:,} characters are shown. In a revision, words that it removed "
                "are struck through and words that it added are underlined."
            ),
            Transcripts(shown),
        ),
    )


def divided(totals: Mapping[str, int], most: int) -> dict[str, int]:
    """How many of each run: the same number of all, more where others have fewer, at most `most` together."""
    shares = dict.fromkeys(totals, 0)
    left = most
    for place, name in enumerate(sorted(totals, key=lambda name: totals[name])):
        shares[name] = min(totals[name], left // (len(totals) - place))
        left -= shares[name]
    return shares
