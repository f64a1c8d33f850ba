"""Chains for tests, written out by hand."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from cai.data.card import CardFacts, ExportCounts
from cai.data.card_parts import ConstitutionFacts, RunFacts
from cai.data.export import export_chains
from cai.records import FinishReason, Message, Prompt, PromptKind, RevisionChain, RevisionRound, Sampling, Step, Usage

_REQUESTS = {
    "honesty": ("Where is the reply untrue?", "Rewrite it to be true."),
    "harm": ("Where does the reply harm?", "Rewrite it without harm."),
}

CONSTITUTION = """\
name: two
version: "1"
description: Two principles.
principles:
  - id: honesty
    critique: Where is the reply untrue?
    revision: Rewrite it to be true.
  - id: harm
    text: The reply harms nobody.
"""


def requests(principle_id: str, topic: str | None, round_: int) -> tuple[str, str] | None:  # noqa: ARG001
    """What `Templates.requests` gives, for principles without variables."""
    return _REQUESTS.get(principle_id)


def step(text: str, finish_reason: FinishReason = "stop", removed: str = "") -> Step:
    return Step(text=text, removed=removed, finish_reason=finish_reason, usage=Usage(), seed=1)


def turns(*texts: str) -> tuple[Message, ...]:
    """A conversation that begins with the user."""
    return tuple(Message(role="assistant" if n % 2 else "user", content=text) for n, text in enumerate(texts))


def round_(principle_id: str, critique: str | Step | None, revision: str | Step | None) -> RevisionRound:
    return RevisionRound(
        principle_id=principle_id,
        critique=step(critique) if isinstance(critique, str) else critique,
        revision=step(revision) if isinstance(revision, str) else revision,
    )


def chain(
    id: str,
    *rounds: RevisionRound,
    index: int = 0,
    prompt: Sequence[str] = ("How do I pick a lock?",),
    draft: str | Step = "With a pin.",
    kind: PromptKind = "red_team",
    topic: str | None = None,
    model: str = "tiny",
) -> RevisionChain:
    return RevisionChain(
        id=id,
        index=index,
        prompt=Prompt(id=f"p-{id}", messages=turns(*prompt), kind=kind, topic=topic),
        draft=step(draft) if isinstance(draft, str) else draft,
        rounds=rounds,
        constitution_sha256="c" * 64,
        templates_sha256="t" * 64,
        model=model,
        seed=7,
    )


TWO = ConstitutionFacts(
    name="two", version="1", description="Two principles.", sha256="c" * 64, templates_sha256="t" * 64
)


def run_facts(**changes: object) -> RunFacts:
    """What a card says of a run without failures."""
    known = RunFacts(title="locks", command="cai …", cai_version="0.1.0", created="2026-11-21", failures={}, rejects={})
    return RunFacts.model_validate(known.model_dump() | changes)


def facts(**changes: object) -> CardFacts:
    """What the run behind these chains would tell the card; a change is to the field of that name, in `run` too."""
    of_run = {name: value for name, value in changes.items() if name in RunFacts.model_fields}
    known = CardFacts(
        run=run_facts(**of_run),
        constitution=TWO,
        model="tiny",
        engine="scripted",
        sampling=Sampling(),
        rounds=2,
        critiques=True,
        prompt_sources=("locks.jsonl",),
    )
    return CardFacts.model_validate(
        known.model_dump() | {name: value for name, value in changes.items() if name not in of_run}
    )


def write_run(run: Path, chains: Sequence[RevisionChain]) -> None:
    """The files of a run directory that `cai show` reads."""
    run.mkdir(exist_ok=True)
    (run / "constitution.yaml").write_text(CONSTITUTION, encoding="utf-8")
    lines = [chain_.model_dump_json() + "\n" for chain_ in chains]
    (run / "records.jsonl").write_text("".join(lines), encoding="utf-8")


def export(run: Path, chains: Iterable[RevisionChain], test_share: float = 0.0, **changes: Any) -> ExportCounts:
    run.mkdir(exist_ok=True)
    return export_chains(chains, run, requests=requests, test_share=test_share, seed=7, card=facts(**changes))


def header(run: Path) -> dict[str, Any]:
    """The YAML header of the card."""
    found: dict[str, Any] = yaml.safe_load((run / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    return found


def rows(run: Path, table: str, split: str | None = None) -> list[dict[str, Any]]:
    """The rows of a table as the card leads to them, read without `datasets`."""
    configs = [config for config in header(run)["configs"] if config["config_name"] == table]
    files = [file for config in configs for file in config["data_files"] if split in (None, file["split"])]
    return [row for file in files for row in pq.read_table(run / file["path"]).to_pylist()]


def many(number: int) -> list[RevisionChain]:
    """Chains with prompts of their own and one changed revision each."""
    return [
        chain(f"n{n}", round_("harm", "Bad.", f"No, not {n}."), index=n, prompt=(f"Question {n}?",))
        for n in range(number)
    ]
