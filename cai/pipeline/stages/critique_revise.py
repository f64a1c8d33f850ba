"""`critique-revise` in a recipe."""

from cai.constitution import WRITES_BY
from cai.critique import CritiqueReviseConfig
from cai.critique_run import STAGE, load_inputs
from cai.pipeline.contents import dataset_digest
from cai.pipeline.stages.generating import counted
from cai.pipeline.stages.kind import MODELS, StageKind, by_config

KIND = StageKind(
    name=STAGE,
    config=CritiqueReviseConfig,
    command=by_config(STAGE),
    output=dataset_digest,
    headlines=lambda run: tuple(
        counted(run, {"chains": "chains"}, tables={"sft": "SFT rows", "pairs": "revisions that changed the draft"})
    ),
    reads={"engine.model": MODELS, "engine.adapter": MODELS},
    blind=WRITES_BY,
    check=load_inputs,
    retries=True,
)
