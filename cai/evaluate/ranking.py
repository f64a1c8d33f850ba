"""Policies ranked by labelled comparisons of their replies, and what to think of the ranking.

Comparisons exist where replies differ: `cai sample` drops replies that say the same, so that policies which often agree
look further apart than they are.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cai.config import StrictModel
from cai.errors import ConfigError, DataError
from cai.evaluate.ranking_figures import measure_axis
from cai.evaluate.ranking_provenance import certificate_grade, policy_engines, taught_by_judge
from cai.evaluate.ranking_records import Axis, AxisName, RankedRun, Ranking
from cai.evaluate.ranking_sources import LabelledRun, read_labelled_run
from cai.rundir import run_path
from cai.strict_yaml import nearest

STAGE = "rank"


class RankConfig(StrictModel):
    """Configuration of `cai rank`."""

    runs: tuple[str, ...] = ()
    """Runs with labelled comparisons, which give one rating."""
    helpful: tuple[str, ...] = ()
    """Runs whose labels say which reply is more helpful; with `harmless` they give the plane."""
    harmless: tuple[str, ...] = ()
    """Runs whose labels say which reply is less harmful."""
    baseline: str | None = None
    """The policy whose rating is 0. Default: the mean of all policies is."""
    seed: int = 0
    """Of the bootstraps."""

    FREE_KEYS: ClassVar[frozenset[str]] = frozenset({"baseline", "seed"})

    @property
    def axes(self) -> Mapping[AxisName, tuple[str, ...]]:
        """The runs of each axis, each once."""
        named: Mapping[AxisName, tuple[str, ...]] = {
            "all": self.runs,
            "helpfulness": self.helpful,
            "harmlessness": self.harmless,
        }
        return {name: tuple(dict.fromkeys(runs)) for name, runs in named.items() if runs}


@dataclass(frozen=True)
class RankInputs:
    """The runs of a ranking, read."""

    config: RankConfig
    runs: Mapping[str, LabelledRun]
    """By path."""

    @property
    def hashes(self) -> Mapping[str, str]:
        """Content hash of each run's labelled comparisons."""
        return {path: run.sha256 for path, run in self.runs.items()}

    @property
    def default_out(self) -> Path:
        """Where the ranking goes that names no directory."""
        return run_path(STAGE, self.config, self.hashes, free_keys=frozenset())


def load_ranking(config: RankConfig) -> RankInputs:
    """Read the runs.

    Raises:
        ConfigError: no run is named, only one axis of the plane is, or the baseline is unknown.
        DataError: a run holds no labels, or those of an axis compare fewer than two policies.
        RunDirError: a directory is no run, or its records are broken.
    """
    if not config.axes:
        raise ConfigError("name runs of `cai label`, `cai export` or `cai import` whose comparisons are to be counted")
    if bool(config.helpful) != bool(config.harmless):
        missing = "harmless" if config.helpful else "helpful"
        raise ConfigError(f"the plane has two axes, and only one has a run; give --{missing} as well")
    inputs = RankInputs(config, {path: read_labelled_run(path) for runs in config.axes.values() for path in runs})
    for paths in config.axes.values():
        runs = [inputs.runs[path] for path in paths]
        policies = sorted({name for run in runs for one in run.outcomes for name in (one.first, one.second)})
        if not policies:
            raise DataError(f"{', '.join(paths)}: fewer than two policies are compared ({_why_not(runs)})")
        if config.baseline is not None and config.baseline not in policies:
            hint = nearest(config.baseline, policies)
            raise ConfigError(f"baseline: no policy of {', '.join(paths)} is called {config.baseline!r}{hint}")
    return inputs


def rank(inputs: RankInputs) -> Ranking:
    """Rank the policies on each axis. The order of the runs and of the replies within a comparison changes nothing."""
    config = inputs.config
    axes = []
    for name, paths in config.axes.items():
        runs = [inputs.runs[path] for path in paths]
        axis = measure_axis(name, (one for run in runs for one in run.outcomes), config.baseline, seed=config.seed)
        notes = (*_notes(runs), *axis.notes)
        axes.append(axis.model_copy(update={"runs": tuple(map(_ranked, runs)), "notes": notes}))
    warnings = tuple(_warnings(inputs, axes))
    ranking = Ranking(seed=config.seed, baseline=config.baseline, axes=tuple(axes), warnings=warnings)
    noted = (axis.model_copy(update={"notes": (*axis.notes, *_plane_notes(axis, ranking))}) for axis in axes)
    return ranking.model_copy(update={"axes": tuple(noted)})


def _why_not(runs: Iterable[LabelledRun]) -> str:
    reasons: Counter[str] = Counter()
    for run in runs:
        reasons["within one policy"] += run.within_policy
        reasons.update(run.rejects)
    found = ", ".join(f"{number} {reason}" for reason, number in reasons.items() if number)
    return f"labelled comparisons: {found}" if found else "there is no labelled comparison yet"


def _ranked(run: LabelledRun) -> RankedRun:
    grade = certificate_grade(Path(run.path), run.manifest) if run.labels == "judge" else None
    return RankedRun(
        path=run.path,
        stage=run.manifest.stage,
        sha256=run.sha256,
        labels=run.labels,
        judge=run.judge,
        certificate=grade,
        state=run.manifest.state,
        comparisons=run.comparisons,
        used=len(run.outcomes),
        within_policy=run.within_policy,
        rejects=run.rejects,
        unlabelled=run.unlabelled,
    )


def _notes(runs: Sequence[LabelledRun]) -> Iterator[str]:
    for run in runs:
        if run.manifest.state != "finished":
            state = f"its state is `{run.manifest.state}`"
            yield f"{run.path} is not finished ({state}); the {run.comparisons} labels that it has are counted."
        if run.unlabelled:
            yield f"Of {run.path}, comparisons without a label: {_counted(run.unlabelled)}."
        if run.rejects:
            yield f"Of {run.path}, labels that cannot be used: {_counted(run.rejects)}."
        if run.within_policy:
            yield f"Of {run.path}, {run.within_policy} comparisons are of two replies of one policy and left out."
    if len({(run.labels, run.judge) for run in runs}) > 1:
        who = ", ".join(dict.fromkeys("people" if run.judge is None else run.judge for run in runs))
        yield f"Labels of different origin are put together: {who}."


def _plane_notes(axis: Axis, ranking: Ranking) -> Iterator[str]:
    """Why policies of this axis are not in the plane."""
    opposite: Mapping[AxisName, AxisName] = {"helpfulness": "harmlessness", "harmlessness": "helpfulness"}
    if axis.name not in opposite:
        return
    other = ranking.axis(opposite[axis.name])
    assert other is not None, "the plane has two axes"
    if alone := [one.policy for one in axis.policies if other.policy(one.policy) is None]:
        yield f"On no axis of {other.name}, and so not in the plane: {', '.join(alone)}."
    if axis.groups > 1:
        yield "The plane is not drawn, as ratings of different groups cannot be compared."


def _counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in reasons.items())


def _warnings(inputs: RankInputs, axes: Iterable[Axis]) -> Iterator[str]:
    ranked = {run.path: run for axis in axes for run in axis.runs}
    for path, run in inputs.runs.items():
        grade = ranked[path].certificate
        if grade in ("absent", "fail", "unknown"):
            how = {
                "absent": "absent (`cai judge-check` with the same judge options makes one beside the run)",
                "fail": "fail",
                "unknown": "not to be found, as its constitution or templates are not there any more",
            }[grade]
            yield f"{path}: the judge's certificate is {how}; these ratings show what it prefers, and nothing more."
        if run.labels == "judge":
            for taught in dict.fromkeys(taught_by_judge(run.manifest)):
                yield (
                    f"{path}: this judge has also taught {taught.policy} ({taught.by}); a good rating may show that it "
                    "learned the judge's taste. Rank with another judge, or with people."
                )
    engines: dict[str, tuple[str, str]] = {}
    for path, run in inputs.runs.items():
        for policy, engine in policy_engines(run.manifest).items():
            other, known = engines.setdefault(policy, (path, engine))
            if known != engine:
                yield f"{policy} is one model in {other} and another one in {path}, but they are ranked as one."
