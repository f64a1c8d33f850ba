"""Which settings a stage's result depends on."""

from pathlib import Path

import pytest

from cai.pipeline.contents import FileHashes
from cai.pipeline.planning import ingredients, key_of
from cai.pipeline.recipe import load_recipe

SCORE = "stage: score, model: some/model, responses: planted"
DPO = 'stage: train-dpo, data: [{path: "hub:some/pairs"}]'
COMPARE = 'stage: compare, ai: {path: "hub:some/ai"}, human: {path: "hub:some/human"}'


def key(folder: Path, settings: str) -> str:
    """The key of a stage with these settings."""
    path = folder / "recipe.yaml"
    path.write_text(f"name: r\nstages:\n  one: {{{settings}}}\n", encoding="utf-8")
    (stage,) = load_recipe(path).stages
    return key_of(ingredients(stage.options[0], lambda _: "", FileHashes(folder / "hashes.json")))


@pytest.mark.parametrize(
    ("stage", "setting", "counts"),
    [
        ("stage: sample", "max_failure_share: 0.5", False),
        ("stage: sample", "engine: {device: cpu, batch_size: 3}", False),
        ("stage: sample", "engine: {base_url: [http://a/v1, http://b/v1]}", False),
        ("stage: sample", "engine: {dtype: float32}", True),
        ("stage: sample", "limit: 3", True),
        ("stage: judge-check", "max_failure_share: 0.5", False),
        (SCORE, "max_failure_share: 0.5", False),
        (SCORE, "batch_size: 3", False),
        (SCORE, "device: cpu", False),
        (SCORE, "limit: 3", True),
        (SCORE, "penalty: 2", True),
        (DPO, "save_steps: 7, logging_steps: 3", False),
        (DPO, "report_to: [none]", False),
        (DPO, "beta: 0.3", True),
        (COMPARE, "reward: {save_total_limit: 1}", False),
        (COMPARE, "seeds: 2", True),
    ],
)
def test_a_stage_is_done_again_for_settings_that_its_result_depends_on(
    stage: str, setting: str, counts: bool, tmp_path: Path
) -> None:
    assert (key(tmp_path, stage) != key(tmp_path, f"{stage}, {setting}")) is counts
