"""The stage `export`: the ratings of a rating directory as preference data to train on, at any time.

ratings.jsonl        every rating that stands, a line each, whoever gave it
checks.jsonl         the answers to attention checks
label-studio.json    the comparisons as Label Studio tasks, with the ratings that count as annotations
comparisons.jsonl    the comparisons with a label, the preferred response as `gold`
constitution.yaml    the principles that the raters read
"""

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from cai import __version__
from cai.constitution import Constitution, frozen_yaml, load_constitution
from cai.data.card_parts import RunFacts
from cai.data.comparisons import SAMPLED
from cai.data.dataset import DatasetWriter
from cai.data.preference_card import LABEL_STUDIO
from cai.data.preference_tables import PREFERENCE_TABLES
from cai.errors import ConfigError, DataError
from cai.human.card import ExportCounts, ExportFacts, render_export_card
from cai.human.label_studio import rating_task
from cai.human.page_directory import CONSTITUTION, STORE
from cai.human.preference_run import HumanTablesConfig, Published, publish, write_labels
from cai.human.records import SLIGHT, Rating
from cai.human.store import RatingStore
from cai.human.votes import HumanLabel, RaterFacts, human_label, rater_facts, rating_votes
from cai.records import Comparison
from cai.rundir import RunDir, run_path
from cai.strict_yaml import nearest

STAGE = "export"
RATINGS, CHECKS = "ratings.jsonl", "checks.jsonl"


class ExportConfig(HumanTablesConfig):
    """Configuration of `cai export`."""

    ratings: str
    """The rating directory."""
    slight: Annotated[float, Field(gt=0.5, le=1)] = SLIGHT
    """What a slight preference counts as, where a clear one is 1."""
    leave_out: tuple[str, ...] = ()
    """Raters whose ratings do not count."""

    FREE_KEYS: ClassVar[frozenset[str]] = HumanTablesConfig.FREE_KEYS | {"slight", "leave_out"}


@dataclass(frozen=True)
class ExportInputs:
    """The ratings as they stood at one moment."""

    config: ExportConfig
    constitution: Constitution
    source: str
    """Where the comparisons were read from."""
    hashes: Mapping[str, str]
    ratings: tuple[Rating, ...]
    checks: tuple[Rating, ...]
    raters: tuple[RaterFacts, ...]

    @property
    def default_out(self) -> Path:
        """Where the run goes that names no directory."""
        name = Path(self.config.ratings).resolve().name
        return run_path(f"{STAGE}-{name}", self.config, self.hashes)


def load_export(config: ExportConfig) -> ExportInputs:
    """Read the ratings that stand now.

    Raises:
        DataError: there is no rating directory.
        ConfigError: a rater to be left out is unknown.
        CaiError: the store or the constitution cannot be read.
    """
    folder = Path(config.ratings)
    if not (folder / STORE).is_file():
        raise DataError(f"{folder} is not a rating directory (no {STORE}); name one that `cai rate` made")
    with closing(RatingStore.open(folder / STORE)) as store:
        answers = tuple(store.ratings(checks=True))
        names = [progress.rater for progress in store.progress()]
        source, source_sha256 = store.source, store.source_sha256
    raters = rater_facts(answers, names, leave_out=config.leave_out)
    if unknown := [name for name in config.leave_out if name not in {rater.name for rater in raters}]:
        known = ", ".join(rater.name for rater in raters) or "none"
        raise ConfigError(f"leave_out: no rater is called {unknown[0]!r}{nearest(unknown[0], names)} (raters: {known})")
    constitution = load_constitution(str(folder / CONSTITUTION))
    return ExportInputs(
        config=config,
        constitution=constitution,
        source=source,
        hashes={"comparisons": source_sha256, "constitution": constitution.sha256},
        ratings=tuple(rating for rating in answers if rating.check is None),
        checks=tuple(rating for rating in answers if rating.check is not None),
        raters=raters,
    )


def export_ratings(
    inputs: ExportInputs, out: Path, *, command: Sequence[str] = (), overwrite: bool = False
) -> Published[ExportCounts]:
    """Write the ratings as a run, in place of an earlier export of the same rating directory.

    Raises:
        RunDirError: `out` holds another run or cannot be written.
    """
    config = inputs.config
    votes = rating_votes(inputs.ratings, slight=config.slight, leave_out=config.leave_out)
    counted: dict[str, list[Rating]] = {}
    for rating in inputs.ratings:
        if rating.rater not in config.leave_out:
            counted.setdefault(rating.comparison_id, []).append(rating)

    def write(run: RunDir) -> ExportCounts:
        run.write_text(CONSTITUTION, frozen_yaml(inputs.constitution))
        states: Counter[str] = Counter()
        with (
            closing(RatingStore.open(Path(config.ratings) / STORE)) as store,
            DatasetWriter(run.path, PREFERENCE_TABLES, (RATINGS, CHECKS, LABEL_STUDIO, SAMPLED)) as writer,
        ):
            for name, ratings in ((RATINGS, inputs.ratings), (CHECKS, inputs.checks)):
                for rating in ratings:
                    writer.write_line(name, rating.model_dump_json())
            writer.write_line(LABEL_STUDIO, "[")

            def labelled() -> Iterator[tuple[Comparison, HumanLabel]]:
                for comparison in store.comparisons():
                    task = rating_task(comparison, counted.get(comparison.id, ()))
                    writer.write_line(LABEL_STUDIO, ("," if states else "") + task)
                    if comparison.id in votes:
                        states["labelled"] += 1
                        yield comparison, human_label(votes[comparison.id])
                    else:
                        states["without a vote" if comparison.id in counted else "unrated"] += 1

            figures = write_labels(writer, labelled(), config, "human")
            writer.write_line(LABEL_STUDIO, "]")
            counts = ExportCounts(
                files=writer.finish(),
                figures=figures,
                comparisons=states.total(),
                unrated=states["unrated"],
                unvoted=states["without a vote"],
                raters=inputs.raters,
            )
            facts = ExportFacts(
                run=RunFacts(
                    title=f"Preferences of {_people(inputs.raters)}",
                    command=shlex.join(command),
                    cai_version=__version__,
                    created=run.manifest.updated,
                    failures={},
                    rejects={},
                ),
                constitution=inputs.constitution.name,
                constitution_version=inputs.constitution.version,
                constitution_sha256=inputs.constitution.sha256,
                comparisons=inputs.source,
                comparisons_sha256=inputs.hashes["comparisons"],
            )
            writer.publish(render_export_card(facts, counts, config, slight=config.slight))
        return counts

    return publish(
        STAGE,
        config,
        inputs.hashes,
        out,
        write,
        counts={"ratings": len(inputs.ratings), "checks": len(inputs.checks), "raters": len(inputs.raters)},
        other_files=(RATINGS, CHECKS, LABEL_STUDIO, SAMPLED),
        command=command,
        overwrite=overwrite,
    )


def _people(raters: Sequence[RaterFacts]) -> str:
    number = sum(rater.ratings > 0 and not rater.left_out for rater in raters)
    return "1 rater" if number == 1 else f"{number} raters"
