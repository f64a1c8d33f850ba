"""The recipes that ship are sound, and say what they are for."""

from pathlib import Path
from typing import Any

import pytest
from small_recipe import check

from cai.pipeline.recipe import Recipe, load_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def shipped(name: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml")


def kinds(recipe: Recipe) -> set[str]:
    return {option.kind.name for stage in recipe.stages for option in stage.options}


def config(recipe: Recipe, name: str) -> Any:
    (found,) = (stage.options[0].config for stage in recipe.stages if stage.name == name)
    return found


@pytest.mark.parametrize("name", ["demo", "paper", "workstation"])
def test_every_recipe_leads_from_drafts_to_a_report(name: str) -> None:
    recipe = shipped(name)
    assert recipe.name == name
    assert {"critique-revise", "train-sft", "sample", "judge-check", "label", "train-reward", "train-ppo"} <= kinds(
        recipe
    )
    assert {"evaluate", "rank", "report"} <= kinds(recipe)
    assert recipe.stages[-1].options[0].kind.name == "report"


def test_the_demo_needs_nothing_but_the_embedded_model_and_chooses_by_certificates() -> None:
    recipe = shipped("demo")
    check(recipe)
    for stage in recipe.stages:
        for option in stage.options:
            settings: Any = option.config
            engine = getattr(settings, "engine", None)
            assert engine is None or engine.engine == "transformers"
    (choice,) = (stage for stage in recipe.stages if len(stage.options) > 1)
    assert [option.kind.name for option in choice.options] == ["label", "label", "label", "contrast"]
    protocols = [option.config.judge.protocol for option in choice.options[:-1]]  # type: ignore[attr-defined]
    assert protocols == [("pairwise",), ("pointwise",), ("likelihood",)]
    assert {"train-dpo", "compare", "import"} <= kinds(recipe)


def test_the_paper_has_the_papers_numbers() -> None:
    recipe = shipped("paper")
    revisions, ppo = config(recipe, "revisions"), config(recipe, "rl-cai")
    assert (revisions.limit, revisions.rounds, revisions.few_shot) == (42_496 + 140_335, 4, 5)
    assert round(revisions.limit * revisions.helpful_ratio) == pytest.approx(135_296, rel=1e-4)
    assert {config(recipe, name).sampling.temperature for name in ("revisions", "pairs")} == {1.0}
    sft = config(recipe, "sl-cai")
    assert sft.per_device_train_batch_size * sft.gradient_accumulation_steps == 1024
    assert (sft.num_train_epochs, sft.lr_scheduler_type, sft.data[0].rounds) == (1, "constant", "all")
    assert (config(recipe, "pairs").responses, config(recipe, "harmless").judge.principles) == (2, 1)
    assert config(recipe, "helpful").limit == 135_296
    assert (ppo.kl_coef, ppo.cliprange, ppo.gamma, ppo.temperature, ppo.kl_target) == (0.001, 0.2, 1.0, 1.0, None)


def test_the_workstation_judges_by_another_family_and_trains_adapters() -> None:
    recipe = shipped("workstation")
    policy, judge = config(recipe, "revisions").engine, config(recipe, "judge").engine
    assert (policy.engine, judge.engine) == ("vllm", "vllm")
    assert policy.model.startswith("Qwen/")
    assert judge.model.startswith("meta-llama/")
    assert all(config(recipe, name).use_peft for name in ("sft", "reward", "dpo", "ppo"))
