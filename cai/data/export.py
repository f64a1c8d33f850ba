"""The chains of a critique-revise run as tables in the columns that TRL reads."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from cai.data.card import CardFacts, ExportCounts, render_card
from cai.data.dataset import DatasetWriter, SplitFile
from cai.data.tables import (
    LLM_SWARM,
    PAIRS,
    SFT,
    TABLES,
    PairState,
    SftRow,
    pair_row,
    pair_state,
    sft_rows,
    split_of,
    swarm_row,
    swarm_split,
)
from cai.prompting import Requests
from cai.records import RevisionChain


def export_chains(
    chains: Iterable[RevisionChain],
    out: Path,
    *,
    requests: Requests,
    test_share: float,
    seed: int,
    card: CardFacts,
) -> ExportCounts:
    """Write `data/*.parquet` and README.md of the run directory `out`, in place of an earlier export.

    Reads `chains` once; memory does not grow with their number. The tables are those of `cai.data.tables`. About
    `test_share` of the prompts go to the test splits. `requests` words the principles for the table `llm_swarm`.

    Raises:
        RunDirError: the disk is full, `out` cannot be written, or a chain names a principle that `requests` lacks.
    """
    tally = _Tally()
    with DatasetWriter(out, TABLES) as dataset:
        for chain in chains:
            rows = sft_rows(chain)
            state = pair_state(chain)
            tally.add(chain, rows, state)
            side = split_of(chain.prompt, test_share, seed)
            for row in rows:
                dataset.add(SFT, side, row)
            if state == "pair":
                dataset.add(PAIRS, side, pair_row(chain))
            half = swarm_split(chain.prompt, test_share, seed)
            if state == "pair" or (state == "identical" and half.endswith("_sft")):
                dataset.add(LLM_SWARM, half, swarm_row(chain, requests))
        counts = tally.counts(dataset.finish())
        dataset.publish(render_card(card, counts, test_share=test_share, seed=seed))
    return counts


class _Tally:
    """Counts of chains and of what they gave."""

    def __init__(self) -> None:
        self._chains = self._helpful = self._empty = self._cut = 0
        self._states: Counter[PairState] = Counter()
        self._principles: Counter[str] = Counter()

    def add(self, chain: RevisionChain, rows: Sequence[SftRow], state: PairState) -> None:
        helpful = chain.prompt.kind == "helpful"
        replies = 1 if helpful else len(chain.revisions)
        self._chains += 1
        self._helpful += helpful
        self._empty += replies - len(rows)
        self._cut += sum(row.finish_reason == "length" for row in rows)
        self._principles.update(round_.principle_id for round_ in chain.rounds)
        if not helpful:
            self._states[state] += 1

    def counts(self, files: tuple[SplitFile, ...]) -> ExportCounts:
        return ExportCounts(
            chains=self._chains,
            helpful=self._helpful,
            unrevised=self._states["unrevised"],
            identical_pairs=self._states["identical"],
            empty_pairs=self._states["empty"],
            empty_replies=self._empty,
            cut_replies=self._cut,
            principles=dict(self._principles),
            files=files,
        )
