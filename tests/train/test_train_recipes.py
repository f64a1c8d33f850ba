"""The recipes of training: settings that are shipped run as they are, and accelerate takes its files."""

import json
from pathlib import Path
from typing import Any

import pytest
from ppo_jobs import without_drawings
from ppo_models import write_function, write_prompts

ROOT = Path(__file__).resolve().parent.parent.parent
KINDS = ("sft", "reward", "dpo")
ACCELERATE = sorted((ROOT / "recipes/accelerate").glob("*.yaml"))


def test_each_kind_of_training_has_a_recipe() -> None:
    found = sorted(path.stem for path in (ROOT / "recipes").glob("train-*.yaml"))
    assert found == sorted(f"train-{kind}" for kind in (*KINDS, "ppo"))


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize("kind", KINDS)
def test_a_shipped_recipe_trains_as_it_is(kind: str, cai: Any, tiny: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    row = {"chosen": "\n\nHuman: Why?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Why?\n\nAssistant: No."}
    data.write_text("".join(json.dumps({**row, "chosen": f"{row['chosen']} {n}"}) + "\n" for n in range(8)))
    out = tmp_path / "run"
    done = cai(
        "train", kind, "--config", ROOT / f"recipes/train-{kind}.yaml", "--data", data, "--model", tiny,
        "--max-steps", 1, "--report-to", "none", "--no-bf16", "--use-cpu", "--out", out,
        *(() if kind == "reward" else ("--collapse-prompts", 0)),
    )  # fmt: skip
    assert done.code == 0, done.err
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["stage"], manifest["state"]) == (f"train-{kind}", "finished")


def test_the_recipe_of_ppo_trains_as_it_is(
    cai: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_drawings(monkeypatch)
    done = cai(
        "train", "ppo", "--config", ROOT / "recipes/train-ppo.yaml", "--model", tiny,
        "--prompts", write_prompts(tmp_path / "prompts.jsonl"),
        "--reward-function", write_function(tmp_path / "rewards.py"),
        "--batch-size", 4, "--total-episodes", 4, "--response-length", 6, "--probe-prompts", 1,
        "--report-to", "none", "--no-bf16", "--use-cpu", "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.code == 0, done.err
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["stage"], manifest["state"]) == ("train-ppo", "finished")


def test_the_recipe_of_ppo_differs_from_the_defaults_in_its_reward_alone() -> None:
    from cai.config import load_config
    from cai.train.ppo.config import PpoConfig

    shipped = load_config(PpoConfig, ROOT / "recipes/train-ppo.yaml", {})
    assert [source.model for source in shipped.rewards] == ["runs/train-reward"]
    assert shipped.model_copy(update={"rewards": ()}) == PpoConfig()


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_differs_from_the_defaults_only_where_it_says_so(kind: str) -> None:
    from cai.config import load_config
    from cai.train import config

    model = {"sft": config.SftConfig, "reward": config.RewardConfig, "dpo": config.DpoConfig}[kind]
    shipped = load_config(model, ROOT / f"recipes/train-{kind}.yaml", {}).model_dump()
    differing = {name for name, value in model().model_dump().items() if shipped[name] != value}
    expected = {
        "sft": {"lr_scheduler_type"},
        "reward": {"warmup_steps"},
        "dpo": {"warmup_steps"},
    }
    assert differing == {"data", "gradient_accumulation_steps"} | expected[kind]


def launched(path: Path) -> dict[str, str]:
    """The environment that `accelerate launch` gives to a process by this file."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    arguments = launch_command_parser().parse_args(["--config_file", str(path), "-m", "cai", "train", "sft"])
    arguments, *_ = _validate_launch_command(arguments)
    assert (arguments.module, arguments.training_script) == (True, "cai")
    assert arguments.training_script_args == ["train", "sft"]
    if not arguments.use_deepspeed:
        return dict(prepare_multi_gpu_env(arguments))
    arguments.deepspeed_fields_from_accelerate_config = ""  # set by the command itself, which needs deepspeed
    return dict(prepare_deepspeed_cmd_env(arguments)[1])


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_accelerate_reads_a_file_whole(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))  # refuses keys that it does not know
    assert (config.num_machines, config.num_processes, config.use_cpu) == (1, 8, False)
    kinds = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero3": "DEEPSPEED"}
    assert config.distributed_type == kinds[path.stem]
    assert launched(path)["ACCELERATE_MIXED_PRECISION"] == "bf16"


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_accelerate_knows_every_key_below_a_section(path: Path) -> None:
    # Its loader takes any key there and passes over those that no option of `accelerate launch` has.
    import yaml
    from accelerate.commands.launch import launch_command_parser

    options = set(vars(launch_command_parser().parse_args(["script"])))
    for section in ("fsdp_config", "deepspeed_config"):
        assert set(yaml.safe_load(path.read_text()).get(section, {})) <= options


def test_fsdp2_shards_and_saves_whole_models() -> None:
    found = launched(ROOT / "recipes/accelerate/fsdp2.yaml")
    assert (found["ACCELERATE_USE_FSDP"], found["FSDP_VERSION"]) == ("true", "2")
    assert found["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"
    assert found["FSDP_RESHARD_AFTER_FORWARD"] == "true"
    assert found["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"


def test_zero3_saves_whole_models_and_leaves_steps_to_the_training() -> None:
    found = launched(ROOT / "recipes/accelerate/zero3.yaml")
    assert (found["ACCELERATE_USE_DEEPSPEED"], found["ACCELERATE_DEEPSPEED_ZERO_STAGE"]) == ("true", "3")
    assert found["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"
    assert found["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == found["ACCELERATE_GRADIENT_CLIPPING"] == "auto"
