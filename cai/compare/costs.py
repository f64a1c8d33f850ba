"""What the labels of both sides took, by the files of their runs, and what they cost by the prices stated."""

from pathlib import Path
from statistics import median

from cai.compare.config import CompareConfig
from cai.compare.records import AiEffort, Costs, HumanEffort
from cai.errors import ConfigError, DataError, Problem
from cai.human.card import ExportCounts
from cai.human.exporting import CHECKS, RATINGS, STAGE as EXPORT
from cai.human.records import Rating
from cai.journal import read_lines
from cai.rundir import read_manifest

_MILLION, _HOUR = 1_000_000, 3600


def find_costs(config: CompareConfig) -> Costs:
    """Collect what is known of the effort, and price it.

    Raises:
        ConfigError: a price is of tokens or hours that are not known.
        DataError, RunDirError: the ratings or a manifest cannot be read.
    """
    ai, human, prices = _ai_effort(Path(config.ai.path)), _human_effort(config), config.prices
    ai_label = human_label = None
    problems = []
    if prices is not None:
        ai_label, human_label = prices.ai_label, prices.human_label
        if prices.ai_million_prompt_tokens is not None and prices.ai_million_completion_tokens is not None:
            if ai is None:
                message = f"the tokens of {config.ai.path} are not known, as it is no run of `cai label` that used any"
                problems.append(Problem(f"{message}; state ai_label", key="prices.ai_million_prompt_tokens"))
            else:
                prompt = ai.prompt_tokens * prices.ai_million_prompt_tokens
                ai_label = (prompt + ai.completion_tokens * prices.ai_million_completion_tokens) / _MILLION
        if prices.human_hour is not None:
            if human is None:
                message = f"the time that {config.human.path} took is not known"
                problems.append(
                    Problem(f"{message}; name its `ratings`, or state human_label", key="prices.human_hour")
                )
            else:
                human_label = human.seconds / _HOUR * prices.human_hour
    if problems:
        raise ConfigError(problems)
    return Costs(
        ai=ai,
        human=human,
        currency=None if prices is None else prices.currency,
        ai_label=ai_label,
        human_label=human_label,
    )


def _ai_effort(run: Path) -> AiEffort | None:
    """By the manifest of a run of `cai label`. Other runs' tokens went into responses, not into labels."""
    if not run.is_dir():
        return None
    manifest = read_manifest(run)
    labels, usage = manifest.counts.get("finished", 0), manifest.usage
    if manifest.stage != "label" or not labels or not usage.prompt_tokens + usage.completion_tokens:
        return None
    return AiEffort(
        model=str(manifest.engine.get("model", "")),
        labels=labels,
        prompt_tokens=usage.prompt_tokens / labels,
        cached_tokens=usage.cached_tokens / labels,
        completion_tokens=usage.completion_tokens / labels,
        seconds=manifest.work_seconds / labels,
    )


def _human_effort(config: CompareConfig) -> HumanEffort | None:
    """By the ratings of a run of `cai export`, or of the file that is named; None where they hold no times."""
    path = Path(config.human.path) if config.ratings is None else config.ratings
    files = [path / RATINGS, path / CHECKS] if path.is_dir() else [path]
    if config.ratings is None and not (path / RATINGS).is_file():
        return None
    if not files[0].is_file():
        raise DataError(f"{path} is no file of ratings; name one, or a run of `cai export`, or leave `ratings` out")
    ratings = [rating for file in files for rating in read_lines(file, Rating)]
    labels = _exported_labels(path) if path.is_dir() else len({one.comparison_id for one in ratings if _is_vote(one)})
    seconds = [one.seconds for one in ratings]
    if not labels or not any(seconds):
        return None
    return HumanEffort(
        raters=len({one.rater for one in ratings}),
        ratings=len(ratings),
        labels=labels,
        seconds=sum(seconds) / labels,
        median_seconds=median(seconds),
    )


def _exported_labels(run: Path) -> int:
    """The labels that a run of `cai export` made of its ratings; it has left out raters and, maybe, ties."""
    manifest = read_manifest(run)
    if manifest.stage != EXPORT or manifest.state != "finished":
        raise DataError(f"{run} is no finished run of `cai export`; run its command again, or name a file of ratings")
    figures = ExportCounts.model_validate(manifest.export["counts"]).figures
    return figures.labels - figures.dropped_ties


def _is_vote(rating: Rating) -> bool:
    return rating.check is None and rating.preferred is not None
