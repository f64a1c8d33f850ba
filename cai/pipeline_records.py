"""What a pipeline leaves behind: `pipeline.json`, what each stage did, and `changes.json`, what the last edit moved."""

from collections.abc import Mapping
from typing import Literal

from cai.records import Record, Usage

PIPELINE, CHANGES = "pipeline.json", "changes.json"

StageState = Literal["running", "stopped", "failed", "finished"]
Outcome = Literal["ran", "went on", "skipped"]


class Headline(Record):
    """One figure that a person wants to know of a finished stage."""

    name: str
    """Unique within the stage."""
    text: str
    """As it is shown, with its interval where it has one."""
    value: float | None = None
    """None where it is no number, such as the grade of a certificate."""


class StageRun(Record):
    """One stage, as it was asked with certain settings and inputs."""

    name: str
    """In the recipe."""
    stage: str
    """What kind of stage it is."""
    key: str
    """Hash of `ingredients`: where it is the same, so is the result."""
    ingredients: Mapping[str, str]
    """All that the result depends on, by name: settings as they are, files and earlier results as hashes."""
    path: str
    """Its run directory, within that of the pipeline."""
    reads: Mapping[str, str]
    """The run directory, within that of the pipeline, of each earlier stage whose result it reads."""
    state: StageState = "running"
    started: str
    ended: str | None = None
    seconds: float = 0.0
    """Wall-clock time of all sessions, by its manifest."""
    usage: Usage = Usage()
    output: str | None = None
    """Hash of what later stages read of its result; None until it is finished."""
    headlines: tuple[Headline, ...] = ()
    carried: int = 0
    """Records that were taken over from the run before, since the edit of the constitution does not touch them; they
    are in its usage, and cost nothing again."""
    choice: str | None = None
    """Why this one of several was chosen, in a sentence; None where there was nothing to choose."""


class PipelineState(Record):
    """`pipeline.json`: what each stage of a recipe did."""

    recipe: str
    """Name of the recipe."""
    cai: str
    stages: tuple[StageRun, ...] = ()
    """In the order of the recipe."""
    earlier: tuple[StageRun, ...] = ()
    """What stages did with other settings or inputs; one that is asked for again is not done again."""
    complete: tuple[StageRun, ...] = ()
    """`stages` as they were when the whole recipe was last finished; changes are told against these."""

    def run(self, name: str) -> StageRun | None:
        """What the stage of that name did last."""
        return next((run for run in self.stages if run.name == name), None)

    def find(self, name: str, key: str) -> StageRun | None:
        """What the stage of that name did with exactly these settings and inputs, now or earlier."""
        runs = (*self.stages, *reversed(self.earlier))
        return next((run for run in runs if (run.name, run.key) == (name, key)), None)

    def with_run(self, run: StageRun) -> "PipelineState":
        """The same with this run as what its stage did last."""
        others = [one for one in self.stages if one.name != run.name]
        known = [one for one in (*self.earlier, *self.stages) if (one.name, one.key) != (run.name, run.key)]
        earlier = [one for one in known if one not in others]
        return self.model_copy(update={"stages": (*others, run), "earlier": tuple(earlier)})


class Moved(Record):
    """A figure that is not what it was."""

    name: str
    before: str | None
    """As it was shown; None where it is new."""
    after: str | None
    """None where it is gone."""
    difference: float | None
    """None where either is no number."""


class PrincipleTouched(Record):
    """A principle that differs from the one that the stage worked by before."""

    id: str
    kind: Literal["added", "removed", "changed"]
    parts: tuple[str, ...]
    """The keys that differ."""


class StageChange(Record):
    """What the last run of the recipe did to one stage."""

    name: str
    stage: str
    outcome: Outcome
    why: tuple[str, ...]
    """Names of the ingredients that changed, where it was done before; empty for a stage that is skipped or new."""
    principles: tuple[PrincipleTouched, ...]
    carried: int
    """Records that the edit does not touch, and that were taken over from the run before."""
    same_result: bool
    """Whether later stages read the very same as before, so that they need not run again for its sake."""
    before: str | None
    """Its run directory before, within that of the pipeline; None for a new stage."""
    after: str
    moved: tuple[Moved, ...]

    @property
    def touched(self) -> bool:
        """Whether it was done, or is another run or another result than in the whole run before."""
        return self.outcome != "skipped" or self.before != self.after or not self.same_result


class Changes(Record):
    """`changes.json`: what happened the last time that anything was touched, against the whole run before it."""

    recipe: str
    first: bool
    """Whether no whole run came before it, so that there is nothing to compare with."""
    stages: tuple[StageChange, ...]
    """In the order of the recipe."""
