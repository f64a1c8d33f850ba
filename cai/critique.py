"""The critique–revision chain: draft → (critique → revision) × rounds for one prompt (Bai et al. 2022, section 3.1).

Departures from the paper, each an option of the run: critiques can be left out, and a chain can end when a critique
finds nothing. As in the paper, each round draws its own principle and works on the revision before it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from cai.author import Author
from cai.config import Positive, SamplingConfig, Share, StageConfig
from cai.constitution import Constitution
from cai.engines.base import Engine
from cai.errors import RecordError
from cai.preamble import strip_preamble
from cai.prompting import Templates, found_nothing
from cai.records import Message, Prompt, RevisionChain, RevisionRound, Step
from cai.stage import OnStep, WorkItem


class CritiqueReviseConfig(StageConfig):
    """Configuration of `cai critique-revise`; its `limit` counts the prompts of `prompts`."""

    constitution: str = "hhh"
    """A constitution file, or the name of a shipped one."""
    prompts: str = "red-team"
    """Red-team prompts, to be answered and revised: a file, a shipped set, or `hub:owner/name[@config][:split]`."""
    prompt_column: str | None = None
    """Column of `prompts` that holds the prompt. Default: found by its name."""
    helpful: str = "helpful"
    """Helpful prompts, to be answered only and mixed into the SFT data."""
    helpful_ratio: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    """Helpful prompts for each prompt of `prompts`. The paper has 135,296 to 182,831, or 0.74."""
    rounds: Positive = 4
    """Critiques and revisions of each draft; the paper's number is 4."""
    critique: bool = True
    """False asks for revisions without a critique (the ablation of section 3.5)."""
    stop_when_clean: bool = False
    """End a chain when its critique finds nothing to change."""
    tags: tuple[str, ...] = ()
    """Draw only principles that have one of these tags."""
    few_shot: Annotated[int, Field(ge=0)] | None = None
    """Worked examples before each critique and revision. Default: all of the constitution; the paper has 5."""
    templates: Path | None = None
    """Folder with templates of your own; those it lacks are the shipped ones."""
    test_share: Share = 0.05
    """Share of the prompts whose rows go to the test splits."""
    sampling: SamplingConfig = SamplingConfig()

    FREE_KEYS: ClassVar[frozenset[str]] = StageConfig.FREE_KEYS | {"constitution", "templates", "prompts", "helpful"}

    @property
    def calls_per_prompt(self) -> int:
        """Model calls for one red-team prompt."""
        return 1 + self.rounds * (2 if self.critique else 1)


class Reviser:
    """Makes revision chains with one engine, one constitution and one set of templates."""

    def __init__(
        self,
        config: CritiqueReviseConfig,
        constitution: Constitution,
        templates: Templates,
        engine: Engine,
        on_step: OnStep,
    ) -> None:
        """Take what the chains share; `on_step` is called after every model call."""
        self._config = config
        self._constitution = constitution
        self._templates = templates
        self._engine = engine
        self._author = Author(engine, config.sampling, config.seed, on_step)
        self._opening = templates.opening(constitution, config.few_shot, config.critique)

    async def chain(self, item: WorkItem[Prompt]) -> RevisionChain:
        """Make the chain of one prompt.

        Raises:
            RecordError: a step failed; `step` names it. `empty_reply` when the model said nothing.
        """
        prompt = item.of
        opening = self._templates.draft(prompt, self._config.engine.system)
        draft = await self._step(item, "draft", opening, clean=False)
        rounds: list[RevisionRound] = []
        reply = draft
        for number in range(1, self._config.rounds + 1) if prompt.kind == "red_team" else ():
            done = await self._round(item, number, reply)
            rounds.append(done)
            if done.revision is None:
                break
            reply = done.revision
        return RevisionChain(
            id=prompt.id,
            index=item.index,
            prompt=prompt,
            draft=draft,
            rounds=tuple(rounds),
            constitution_sha256=self._constitution.sha256,
            templates_sha256=self._templates.sha256,
            model=self._engine.info.model,
            seed=self._config.seed,
        )

    async def _round(self, item: WorkItem[Prompt], number: int, reply: Step) -> RevisionRound:
        config, templates, prompt = self._config, self._templates, item.of
        drawn = self._constitution.draw("critique", config.seed, prompt.id, number, tags=config.tags)
        principle = templates.phrase(drawn, prompt.topic, number, config.rounds)
        conversation = (*prompt.messages, Message(role="assistant", content=reply.text))
        if not config.critique:
            request = templates.revision(conversation, principle, None)
            revision = await self._step(item, f"revision {number}", (*self._opening, request))
            return RevisionRound(principle_id=drawn.id, critique=None, revision=revision)
        asked = (*self._opening, templates.critique(conversation, principle, config.stop_when_clean))
        critique = await self._step(item, f"critique {number}", asked)
        if config.stop_when_clean and found_nothing(critique.text):
            return RevisionRound(principle_id=drawn.id, critique=critique, revision=None)
        said = Message(role="assistant", content=critique.text)
        request = templates.revision(conversation, principle, critique.text)
        revision = await self._step(item, f"revision {number}", (*asked, said, request))
        return RevisionRound(principle_id=drawn.id, critique=critique, revision=revision)

    async def _step(self, item: WorkItem[Prompt], name: str, messages: Sequence[Message], clean: bool = True) -> Step:
        """One model call; `clean` takes the preamble off the reply."""
        step = await self._author.reply(item, name, messages)
        text, removed = strip_preamble(step.text) if clean else (step.text, "")
        if not text:
            raise RecordError("empty_reply", "the model's reply has no text", name)
        return step if text == step.text else step.model_copy(update={"text": text, "removed": removed})
