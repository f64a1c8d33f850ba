"""What TRL's trainers are given: every argument as it was asked for, precision by the hardware, evaluations by hand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from training_rows import QUIET, conversations, pairs, write_rows

from cai.errors import ConfigError
from cai.train import precision
from cai.train.arguments import check_further, trainer_arguments
from cai.train.config import DpoConfig, RewardConfig, SftConfig, TrlConfig
from cai.train.plan import plan_dpo, plan_reward, plan_sft
from cai.train.precision import trains_in_bf16, weights_dtype

PLANS: Mapping[str, Any] = {
    "sft": (SftConfig, plan_sft),
    "reward": (RewardConfig, plan_reward),
    "dpo": (DpoConfig, plan_dpo),
}

PASSED: Mapping[str, Any] = {
    "learning_rate": 3e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.25,
    "num_train_epochs": 2.5,
    "max_steps": 17,
    "per_device_train_batch_size": 3,
    "per_device_eval_batch_size": 5,
    "gradient_accumulation_steps": 7,
    "weight_decay": 0.125,
    "max_grad_norm": 0.75,
    "gradient_checkpointing": True,
    "logging_steps": 13,
    "save_steps": 19,
    "metric_for_best_model": "accuracy",
}
"""Values that are nobody's defaults."""
ELSEWHERE = {
    *("model", "adapter", "trust_remote_code", "chat_template", "attn_implementation"),  # find the start and load it
    *("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "merge_adapter"),
    *("test_share", "max_length", "group_by_length"),  # prepare the rows
    *("save_total_limit", "eval_steps"),  # callbacks have them
    *("seed", "bf16", "use_cpu", "report_to", "trainer", "load_best_model_at_end"),  # have tests of their own
}


def planned(kind: str, folder: Path, model: Path, rows: int = 21, held: int = 0, **settings: Any) -> Any:
    config, plan = PLANS[kind]
    made = conversations if kind == "sft" else pairs
    given = {**QUIET, "model": str(model), "data": [{"path": str(write_rows(folder / "train.jsonl", made(rows)))}]}
    if held:
        given["eval_data"] = [{"path": str(write_rows(folder / "held.jsonl", made(held, 1)))}]
    return plan(config.model_validate({**given, **settings}))


@pytest.mark.parametrize("kind", PLANS)
def test_arguments_pass_through_by_their_names(kind: str, tmp_path: Path, tiny: Path) -> None:
    found = trainer_arguments(planned(kind, tmp_path, tiny, **PASSED), tmp_path / "run" / "checkpoints", 23)
    assert {name: getattr(found, name) for name in PASSED} == dict(PASSED)
    assert found.seed == 23
    assert found.output_dir == str(tmp_path / "run" / "checkpoints")
    assert found.run_name == "run"


def test_no_option_is_forgotten() -> None:
    assert set(TrlConfig.model_fields) == set(PASSED) | ELSEWHERE


def test_options_of_each_kind_reach_trl(tmp_path: Path, tiny: Path) -> None:
    sft = trainer_arguments(planned("sft", tmp_path, tiny), tmp_path, 0)
    assert (sft.packing, sft.max_length) == (False, None)
    packed = trainer_arguments(planned("sft", tmp_path, tiny, packing=True, max_length=128), tmp_path, 0)
    assert (packed.packing, packed.max_length) == (True, 128)
    reward = trainer_arguments(planned("reward", tmp_path, tiny), tmp_path, 0)
    assert (reward.center_rewards_coefficient, reward.max_length) == (None, None)
    centred = trainer_arguments(planned("reward", tmp_path, tiny, center_rewards_coefficient=0.01), tmp_path, 0)
    assert centred.center_rewards_coefficient == 0.01
    dpo = trainer_arguments(planned("dpo", tmp_path, tiny, beta=0.3), tmp_path, 0)
    assert (dpo.beta, dpo.loss_type, dpo.max_length) == (0.3, ["sigmoid"], None)
    assert dpo.precompute_ref_log_probs
    ipo = trainer_arguments(planned("dpo", tmp_path, tiny, loss_type="ipo"), tmp_path, 0)
    assert ipo.loss_type == ["ipo"]


def test_without_held_out_rows_nothing_is_evaluated(tmp_path: Path, tiny: Path) -> None:
    assert trainer_arguments(planned("dpo", tmp_path, tiny), tmp_path, 0).eval_strategy == "no"
    assert trainer_arguments(planned("dpo", tmp_path, tiny, held=2), tmp_path, 0).eval_strategy == "steps"


def test_the_metric_says_whether_more_is_better(tmp_path: Path, tiny: Path) -> None:
    for metric, greater in (("loss", False), ("accuracy", True)):
        best = {"load_best_model_at_end": True, "metric_for_best_model": metric}
        found = trainer_arguments(planned("reward", tmp_path, tiny, held=2, **best), tmp_path, 0)
        assert found.load_best_model_at_end
        assert found.greater_is_better is greater


@pytest.mark.parametrize("hardware", [torch.bfloat16, torch.float32])
def test_precision_follows_the_hardware_unless_it_is_asked_for(
    hardware: torch.dtype, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "choose_dtype", lambda *_: hardware)
    expected = {None: hardware is torch.bfloat16, True: True, False: False}
    for asked, mixed in expected.items():
        for use_peft in (False, True):
            config = SftConfig(bf16=asked, use_peft=use_peft, use_cpu=True)
            assert trains_in_bf16(config) is mixed
            assert weights_dtype(config) is (torch.bfloat16 if mixed and use_peft else torch.float32)
        found = trainer_arguments(planned("sft", tmp_path, tiny, bf16=asked), tmp_path, 0)
        assert (found.bf16, found.fp16) == (mixed, False)


def test_our_own_writers_are_not_named_to_transformers(tmp_path: Path, tiny: Path) -> None:
    for asked in (("tensorboard",), ("none",), ()):
        assert trainer_arguments(planned("sft", tmp_path, tiny, report_to=asked), tmp_path, 0).report_to == []
    tracked = planned("sft", tmp_path, tiny, report_to=("tensorboard", "wandb"))
    assert trainer_arguments(tracked, tmp_path, 0).report_to == ["wandb"]


def test_checkpoints_are_not_removed_by_transformers(tmp_path: Path, tiny: Path) -> None:
    found = trainer_arguments(planned("sft", tmp_path, tiny, save_total_limit=5), tmp_path, 0)
    assert (found.save_strategy, found.save_total_limit) == ("steps", None)


def test_a_cpu_that_is_asked_for_is_used(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = trainer_arguments(planned("sft", tmp_path, tiny, use_cpu=True), tmp_path, 0)
    assert (found.use_cpu, found.dataloader_pin_memory) == (True, False)


def test_further_arguments_of_trl_pass_through(tmp_path: Path, tiny: Path) -> None:
    further = {"adam_beta2": 0.95, "optim": "sgd"}
    found = trainer_arguments(planned("dpo", tmp_path, tiny, trainer=further), tmp_path, 0)
    assert found.adam_beta2 == 0.95
    assert found.optim == "sgd"


def test_further_arguments_are_checked_all_at_once() -> None:
    own = {"output_dir": "here", "learning_rate": 1, "bf16": True, "logging_nan_inf_filter": True}
    further = {"adam_epsilom": 1e-4, **own, "adam_beta1": 0.8}
    with pytest.raises(ConfigError) as caught:
        check_further("sft", SftConfig(trainer=further))
    problems = {problem.key: problem.message for problem in caught.value.problems}
    assert set(problems) == {f"trainer.{name}" for name in ("adam_epsilom", *own)}
    assert "adam_epsilon" in problems["trainer.adam_epsilom"]
    assert "option of its own" in problems["trainer.learning_rate"]
    assert len({problems[f"trainer.{name}"] for name in own}) == 1


@pytest.mark.parametrize(
    ("kind", "known"), [("sft", "assistant_tokens_mask"), ("reward", "center_rewards"), ("dpo", "label_smoothin")]
)
def test_names_that_trl_does_not_know_are_refused_for_each_kind(kind: Any, known: str) -> None:
    with pytest.raises(ConfigError, match="is no argument of TRL"):
        check_further(kind, PLANS[kind][0](trainer={known: 1}))


def test_one_kinds_arguments_are_unknown_to_another() -> None:
    check_further("dpo", DpoConfig(trainer={"precompute_ref_batch_size": 4}))
    with pytest.raises(ConfigError, match=r"precompute_ref_batch_size: is no argument of TRL"):
        check_further("reward", RewardConfig(trainer={"precompute_ref_batch_size": 4}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ld_alpha", 0.5),
        ("label_smoothing", 0.1),
        ("f_divergence_type", "forward_kl"),
        ("f_alpha_divergence_coef", 0.5),
        ("use_weighting", True),
        ("loss_weights", [1.0]),
        ("discopop_tau", 0.1),
        ("router_aux_loss_coef", 0.1),
    ],
)
def test_what_the_loss_on_soft_labels_does_not_read_is_refused(name: str, value: Any) -> None:
    check_further("dpo", DpoConfig(loss_type="sigmoid", trainer={name: value}))
    with pytest.raises(ConfigError, match=f"trainer.{name}: has no effect on loss_type soft; name one of TRL's losses"):
        check_further("dpo", DpoConfig(trainer={name: value}))


def test_a_wrong_argument_is_found_before_anything_is_loaded(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(ConfigError, match="adam_epsilon"):
        planned("reward", tmp_path, tiny, trainer={"adam_epsilom": 1e-4})


def test_a_value_that_trl_refuses_is_a_configuration_error(tmp_path: Path, tiny: Path) -> None:
    plan = planned("sft", tmp_path, tiny, trainer={"optim": "downhill"})
    with pytest.raises(ConfigError, match=r"TRL does not take these arguments: .*downhill"):
        trainer_arguments(plan, tmp_path, 0)
