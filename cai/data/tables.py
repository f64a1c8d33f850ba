"""The tables that a critique-revise run is exported as: what a row holds and how it follows from a chain."""

from typing import Literal

from cai.data.dataset import Row, Table, conversation_chars
from cai.errors import RunDirError
from cai.prompting import Requests
from cai.records import Message, Prompt, RevisionChain, Step, stable_seed


class SftRow(Row):
    """A conversation with one reply to learn from."""

    messages: tuple[Message, ...]
    """The conversation, ending with the reply."""
    id: str
    """`<chain id>/<round>`."""
    prompt_id: str
    """Id of the prompt; all rounds of a prompt share it."""
    round: int
    """Round that wrote the revision, from 1; 0 for the answer to a helpful prompt."""
    kind: str
    """`red_team` (the reply is a revision) or `helpful` (the reply is a plain answer)."""
    principle_id: str | None
    """Principle of that round; null for helpful answers."""
    topic: str | None
    """Topic of the prompt, where the prompt set names one."""
    finish_reason: str
    """`stop`, or `length` where the reply was cut at the token limit."""
    constitution_sha256: str
    """Hash of the constitution's content."""
    model: str
    """Model that wrote the reply."""
    seed: int
    """Seed of the run."""

    @property
    def chars(self) -> int:
        return conversation_chars(self.messages)


class PairRow(Row):
    """The last revision preferred to the draft. No judge has compared the two."""

    prompt: tuple[Message, ...]
    """The conversation up to the last user turn."""
    chosen: tuple[Message, ...]
    """The last revision, as one assistant message."""
    rejected: tuple[Message, ...]
    """The draft, as one assistant message."""
    id: str
    """Id of the chain."""
    prompt_id: str
    """Id of the prompt."""
    source: str
    """Always `revision`: the order is assumed from how the texts were made; it is not a label."""
    principle_ids: tuple[str, ...]
    """Principles of the revisions that led from rejected to chosen, in order."""
    rounds: int
    """Number of those revisions."""
    constitution_sha256: str
    """Hash of the constitution's content."""
    model: str
    """Model that wrote both replies."""
    seed: int
    """Seed of the run."""

    @property
    def chars(self) -> int:
        return conversation_chars(self.prompt, self.chosen, self.rejected)


class SwarmRow(Row):
    """A trace in the columns of llm-swarm's constitutional-ai example.

    Departures: the whole conversation is kept where the original keeps its first human turn; `critic_*` is null in a
    run without critiques; chains without a revision or with an empty reply are left out, and from the preference splits
    also those whose last revision equals the draft.
    """

    init_prompt: str
    """The last user turn."""
    init_response: str
    """The draft."""
    critic_prompt: str | None
    """The last round's critique request, as the constitution words it."""
    critic_response: str | None
    """The last round's critique."""
    revision_prompt: str
    """The last round's revision request, as the constitution words it."""
    revision_response: str
    """The last revision."""
    prompt: str
    """The last user turn once more, under the name that trainers look for."""
    messages: tuple[Message, ...]
    """The conversation, ending with the last revision."""
    chosen: tuple[Message, ...]
    """The same as `messages`."""
    rejected: tuple[Message, ...]
    """The conversation, ending with the draft."""

    @property
    def chars(self) -> int:
        texts = len(self.init_response + self.revision_response)
        return conversation_chars(self.messages, self.chosen, self.rejected) + texts


SFT = Table("sft", SftRow, ("train", "test"))
PAIRS = Table("pairs", PairRow, ("train", "test"))
LLM_SWARM = Table("llm_swarm", SwarmRow, ("train_sft", "train_prefs", "test_sft", "test_prefs"))
TABLES = (SFT, PAIRS, LLM_SWARM)

PairState = Literal["pair", "identical", "empty", "unrevised"]


def is_empty(step: Step) -> bool:
    """Whether a reply has no text: nothing can be learnt from it."""
    return not step.text.strip()


def sft_rows(chain: RevisionChain) -> list[SftRow]:
    """One row for each revision with text, or one for the answer to a helpful prompt."""
    replies: list[tuple[int, str | None, Step]]
    if chain.prompt.kind == "helpful":
        replies = [(0, None, chain.draft)]
    else:
        replies = [
            (number, round_.principle_id, round_.revision)
            for number, round_ in enumerate(chain.rounds, 1)
            if round_.revision is not None
        ]
    return [
        SftRow(
            messages=_with_reply(chain.prompt, step),
            id=f"{chain.id}/{number}",
            prompt_id=chain.prompt.id,
            round=number,
            kind=chain.prompt.kind,
            principle_id=principle_id,
            topic=chain.prompt.topic,
            finish_reason=step.finish_reason,
            constitution_sha256=chain.constitution_sha256,
            model=chain.model,
            seed=chain.seed,
        )
        for number, principle_id, step in replies
        if not is_empty(step)
    ]


def pair_state(chain: RevisionChain) -> PairState:
    """Whether a chain gives a pair, and if not, why. White space at its ends does not tell a reply from another."""
    if not chain.revisions:
        return "unrevised"
    if is_empty(chain.draft) or is_empty(chain.final):
        return "empty"
    return "identical" if chain.draft.text.strip() == chain.final.text.strip() else "pair"


def pair_row(chain: RevisionChain) -> PairRow:
    """The pair of a chain whose `pair_state` is `pair`."""
    principle_ids = tuple(round_.principle_id for round_ in chain.rounds if round_.revision is not None)
    return PairRow(
        prompt=chain.prompt.messages,
        chosen=(_reply(chain.final),),
        rejected=(_reply(chain.draft),),
        id=chain.id,
        prompt_id=chain.prompt.id,
        source="revision",
        principle_ids=principle_ids,
        rounds=len(principle_ids),
        constitution_sha256=chain.constitution_sha256,
        model=chain.model,
        seed=chain.seed,
    )


def swarm_row(chain: RevisionChain, requests: Requests) -> SwarmRow:
    """The trace of the last round that wrote a revision; the chain has one.

    Raises:
        RunDirError: the chain names a principle that `requests` lacks.
    """
    number = max(number for number, round_ in enumerate(chain.rounds, 1) if round_.revision is not None)
    last = chain.rounds[number - 1]
    asked = requests(last.principle_id, chain.prompt.topic, number)
    if asked is None:
        raise RunDirError(
            f"record {chain.id} names the principle `{last.principle_id}`, which the run's constitution lacks; "
            "restore constitution.yaml as the run wrote it"
        )
    critique_request, revision_request = asked
    last_turn = chain.prompt.messages[-1].content
    revised = _with_reply(chain.prompt, chain.final)
    return SwarmRow(
        init_prompt=last_turn,
        init_response=chain.draft.text,
        critic_prompt=None if last.critique is None else critique_request,
        critic_response=None if last.critique is None else last.critique.text,
        revision_prompt=revision_request,
        revision_response=chain.final.text,
        prompt=last_turn,
        messages=revised,
        chosen=revised,
        rejected=_with_reply(chain.prompt, chain.draft),
    )


def split_of(prompt: Prompt, test_share: float, seed: int) -> Literal["train", "test"]:
    """The side a prompt falls on: a stable hash of its conversation, so that one text never stands on both sides.

    A larger `test_share` adds prompts to the test side and takes none away.
    """
    return "test" if _draw(prompt, seed, "split") < test_share else "train"


def swarm_split(prompt: Prompt, test_share: float, seed: int) -> str:
    """The split of `llm_swarm`: half of each side's prompts serve SFT and the other half preferences, as there."""
    half = "sft" if _draw(prompt, seed, "half") < 0.5 else "prefs"
    return f"{split_of(prompt, test_share, seed)}_{half}"


def _draw(prompt: Prompt, seed: int, purpose: str) -> float:
    turns = (part for message in prompt.messages for part in (message.role, message.content))
    return stable_seed(seed, purpose, *turns) / 2**32


def _reply(step: Step) -> Message:
    return Message(role="assistant", content=step.text)


def _with_reply(prompt: Prompt, step: Step) -> tuple[Message, ...]:
    return (*prompt.messages, _reply(step))
