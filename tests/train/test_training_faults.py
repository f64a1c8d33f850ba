"""What a user does wrong is said in one line before any weights are read, and the mended command then works."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from cai_process import manifest
from peft import PeftModel
from processes import Cai
from safetensors.torch import save_file
from tiny_model import save_tiny_model
from training_rows import conversations, pairs, weights, write_rows
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that reads weights."""

    def read(*_: object, **__: object) -> None:
        pytest.fail("weights are read")

    for loaded in (AutoModelForCausalLM, AutoModelForSequenceClassification, PeftModel):
        monkeypatch.setattr(loaded, "from_pretrained", read)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "pairs.jsonl", pairs(6))


Refused = Callable[..., str]


@pytest.fixture
def refused(cai: Cai, tmp_path: Path, tiny: Path, no_weights: None) -> Refused:  # noqa: ARG001
    """The message with which a training is refused; nothing is loaded or trained."""

    def message(kind: str, *words: object, model: Path = tiny, code: int = 2) -> str:
        out = tmp_path / "run"
        failed = cai("train", kind, "--model", model, "--out", out, "--report-to", "none", "--max-length", 256, *words)
        assert failed.code == code, failed.out + failed.err
        assert failed.err.startswith("error: ")
        assert failed.err.count("\n") == 1, failed.err
        assert not out.exists()
        return failed.err[len("error: ") : -1]

    return message


def rows_of(path: Path, **columns: Any) -> Path:
    """Six rows of pairs, with columns changed; a column that is None is left out."""
    return write_rows(
        path, ({name: value for name, value in (row | columns).items() if value is not None} for row in pairs(6))
    )


@pytest.mark.parametrize("kind", ["reward", "dpo"])
@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"chosen": None, "rejected": None, "text": "words"}, "chosen"),
        ({"p_chosen": float("nan")}, "`p_chosen` must be a number from 0 to 1"),
        ({"p_chosen": 1.5}, "`p_chosen` must be a number from 0 to 1, but is 1.5"),
        ({"p_chosen": -0.1}, "`p_chosen` must be a number from 0 to 1, but is -0.1"),
        ({"p_chosen": "likely"}, "`p_chosen` must be a number from 0 to 1, but is 'likely'"),
    ],
    ids=["columns", "nan", "above", "below", "words"],
)
def test_data_without_a_usable_row(
    kind: str, columns: Mapping[str, Any], reason: str, tmp_path: Path, refused: Refused
) -> None:
    file = rows_of(tmp_path / "bad.jsonl", **columns)
    said = refused(kind, "--data", file)
    assert str(file) in said
    assert reason in said


def test_pairs_are_no_conversations(data: Path, refused: Refused) -> None:
    said = refused("sft", "--data", data)
    assert str(data) in said
    assert "no row can be used (6 " in said


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
def test_no_data_and_empty_data(kind: str, tmp_path: Path, refused: Refused) -> None:
    assert "no row is left to train on (no source is named: give one with --data" in refused(kind)
    empty = write_rows(tmp_path / "empty.jsonl", [])
    assert str(empty) in refused(kind, "--data", empty)
    assert str(tmp_path / "absent.jsonl") in refused(kind, "--data", tmp_path / "absent.jsonl")


def test_an_empty_held_out_split(tmp_path: Path, data: Path, refused: Refused) -> None:
    empty = write_rows(tmp_path / "empty.jsonl", [])
    assert str(empty) in refused("reward", "--data", data, "--eval-data", empty)


def test_rows_that_are_all_held_out(data: Path, refused: Refused) -> None:
    assert "no row is left to train on (6 test rows" in refused("reward", "--data", data, "--test-share", 1)


def test_rows_that_are_all_too_long(tmp_path: Path, refused: Refused) -> None:
    file = rows_of(tmp_path / "long.jsonl", chosen="word " * 60)
    said = refused("dpo", "--data", file, "--test-share", 0)
    assert "none of the 6 training rows can be used (6 too_long)" in said
    assert "max_length = 256" in said


def test_a_length_beyond_the_context(tiny: Path, data: Path, refused: Refused) -> None:
    said = refused("reward", "--data", data, "--max-length", 513)
    assert said == f"max_length 513 is more than the context of {tiny}, which is 512 tokens"


@pytest.mark.parametrize("kind", ["sft", "dpo"])
@pytest.mark.parametrize("form", ["whole", "adapter", "--adapter"])
def test_a_reward_model_is_no_start_of_a_language_model(
    kind: str, form: str, tmp_path: Path, tiny: Path, data: Path, refused: Refused
) -> None:
    folder = tmp_path / "rewards"
    if form == "whole":
        shutil.copytree(tiny, folder)
        described = json.loads((tiny / "config.json").read_bytes())
        described |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
        (folder / "config.json").write_text(json.dumps(described))
    else:
        folder.mkdir()
        described = {"base_model_name_or_path": str(tiny), "task_type": "SEQ_CLS"}
        (folder / "adapter_config.json").write_text(json.dumps(described))
    rows = write_rows(tmp_path / "rows.jsonl", conversations(6)) if kind == "sft" else data
    words = ("--adapter", folder) if form == "--adapter" else ("--model", folder)
    said = refused(kind, "--data", rows, *words)
    assert said == f"{folder} is a reward model, which has no output layer to write with; name a language model"


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
@pytest.mark.usefixtures("no_curves")
def test_a_loss_that_is_no_number_any_more(kind: str, tmp_path: Path, tiny: Path, data: Path, cai: Cai) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", conversations(6)) if kind == "sft" else data
    failed = cai(*broken_training(kind, broken_at("?", tiny, tmp_path / "broken"), rows, tmp_path / "run"))
    assert failed.code == 1, failed.out + failed.err
    assert "error: the loss is not a number any more, so the weights are worth nothing; try a lower" in failed.err
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.usefixtures("no_curves")
def test_rewards_of_held_out_pairs_that_are_no_numbers(tmp_path: Path, tiny: Path, data: Path, cai: Cai) -> None:
    held = write_rows(tmp_path / "held.jsonl", (row | {"chosen": "Zebra"} for row in pairs(3, seed=1)))
    out = tmp_path / "run"
    words = broken_training("reward", broken_at("Z", tiny, tmp_path / "broken"), data, out)
    failed = cai(*words, "--eval-data", held)
    assert failed.code == 1, failed.out + failed.err
    assert failed.err.startswith("error: the reward is not a number any more, so the weights are worth nothing; try a ")
    assert not (out / "model").exists()
    assert not (out / "held_out.json").exists()


def broken_at(letter: str, model: Path, folder: Path) -> Path:
    """A model whose output is no number once it has read that letter."""
    shutil.copytree(model, folder)
    (token,) = AutoTokenizer.from_pretrained(model)(letter).input_ids
    found = weights(folder)
    found["model.embed_tokens.weight"][token] = float("nan")
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def broken_training(kind: str, model: Path, data: Path, out: Path) -> tuple[object, ...]:
    return (
        "train", kind, "--model", model, "--data", data, "--out", out, "--max-length", 256, "--test-share", 0,
        "--report-to", "none", "--use-cpu", "--no-bf16",
        *(() if kind == "reward" else ("--collapse-prompts", 0)),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
def test_a_base_model_without_a_chat_template(kind: str, tmp_path: Path, data: Path, refused: Refused) -> None:
    base = save_tiny_model(tmp_path / "base", chat=False)
    rows = write_rows(tmp_path / "rows.jsonl", conversations(6)) if kind == "sft" else data
    said = refused(kind, "--data", rows, model=base)
    assert f"{base} has no chat template" in said
    assert "--chat-template chatml" in said


def test_a_template_whose_turns_do_not_end(tmp_path: Path, tiny: Path, data: Path, refused: Refused) -> None:
    template = tmp_path / "endless.jinja"
    template.write_text("{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}")
    said = refused("dpo", "--data", data, "--chat-template", template)
    assert "does not end the assistant's turn with a token at which generation stops" in said
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% for message in messages %}\n{{ message.role ")
    assert f"{broken}:2: is not a Jinja template" in refused("dpo", "--data", data, "--chat-template", broken)
    assert "there is no chat template other" in refused("dpo", "--data", data, "--chat-template", "other")
    assert AutoTokenizer.from_pretrained(tiny).chat_template is not None


def test_an_unknown_key_of_a_file(tmp_path: Path, data: Path, refused: Refused) -> None:
    config = tmp_path / "reward.yaml"
    config.write_text("max_grad_norm: 2.0\nlearning_rates: 1.0e-5\n")
    said = refused("reward", "--data", data, "--config", config)
    assert said.startswith(f"{config}:2: learning_rates: ")
    assert "learning_rate" in said.removeprefix(f"{config}:2: learning_rates: ")


@pytest.mark.parametrize("kind", ["reward", "dpo"])
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("adam_beta", "0.9", "trainer.adam_beta: is no argument of TRL's trainer"),
        ("learning_rate", "0.1", "trainer.learning_rate: is set by an option of its own or by the run"),
        ("output_dir", "elsewhere", "trainer.output_dir: is set by an option of its own or by the run"),
        ("logging_nan_inf_filter", "true", "trainer.logging_nan_inf_filter: is set by an option of its own or by"),
        ("optim", "downhill", "TRL does not take these arguments: downhill is not a valid OptimizerNames"),
    ],
)
def test_an_argument_that_the_trainer_does_not_take(
    kind: str, name: str, value: str, reason: str, data: Path, refused: Refused
) -> None:
    assert reason in refused(kind, "--data", data, "--trainer", name, value)


def test_an_argument_that_the_loss_on_soft_labels_does_not_read(data: Path, refused: Refused) -> None:
    said = refused("dpo", "--data", data, "--trainer", "ld_alpha", 0.5)
    assert said == "trainer.ld_alpha: has no effect on loss_type soft; name one of TRL's losses"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sft", "--rounds", "last"), "--rounds speaks of --data; in a --config file, set `rounds` at the source"),
        (("sft", "--mix", "more.jsonl", 0.5), "--mix adds to --data; add the source to `data` of the --config file"),
        (("reward", "--weighted", "more.jsonl", 2), "--weighted adds to --data; add the source to `data` of the"),
        (("dpo", "--weighted", "more.jsonl", 2), "--weighted adds to --data; add the source to `data` of the"),
    ],
    ids=lambda value: " ".join(map(str, value[:2])) if isinstance(value, tuple) else "",
)
def test_an_option_that_would_hide_the_data_of_a_file(
    words: tuple[object, ...], said: str, tmp_path: Path, data: Path, cai: Cai
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"data:\n  - path: {data}\n")
    failed = cai("train", *words, "--config", config, "--out", tmp_path / "run")
    assert failed.code == 2, failed.out + failed.err
    assert said in failed.err
    assert not (tmp_path / "run").exists()


def test_sources_of_different_weight_need_no_others(tmp_path: Path, tiny: Path, data: Path, cai: Cai) -> None:
    words = ("--model", tiny, "--max-length", 256, "--out", tmp_path / "run", "--estimate")
    done = cai("train", "reward", "--weighted", data, 2, *words)
    assert done.code == 0, done.err


def test_an_unknown_loss(data: Path, refused: Refused) -> None:
    said = refused("dpo", "--data", data, "--loss-type", "nonsense")
    assert "nonsense" in said
    assert "sigmoid" in said


def test_a_best_model_without_held_out_rows(data: Path, refused: Refused) -> None:
    said = refused("reward", "--data", data, "--test-share", 0, "--load-best-model-at-end")
    assert "load_best_model_at_end needs held-out rows" in said


def test_a_model_that_is_none(tmp_path: Path, data: Path, refused: Refused) -> None:
    assert str(tmp_path / "none") in refused("reward", "--data", data, model=tmp_path / "none", code=1)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{empty} holds no config.json" in refused("dpo", "--data", data, model=empty, code=1)


@pytest.mark.usefixtures("no_weights")
def test_a_run_directory_that_cannot_be_one(tmp_path: Path, tiny: Path, data: Path, cai: Cai) -> None:
    words = ("train", "reward", "--model", tiny, "--data", data, "--max-length", 256, "--out")
    (tmp_path / "file").write_text("")
    below = cai(*words, tmp_path / "file" / "run")
    assert below.code == 1
    assert below.err.startswith(f"error: {tmp_path / 'file' / 'run'} cannot be used as a run directory: ")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("Dear reader")
    others = cai(*words, foreign)
    assert others.code == 1
    assert "is not a run directory and not empty (letter.txt)" in others.err
    assert below.err.count("\n") == others.err.count("\n") == 1
    assert [path.name for path in foreign.iterdir()] == ["letter.txt"]


@pytest.mark.usefixtures("no_curves")
def test_some_bad_rows_are_counted_and_the_others_used(tmp_path: Path, tiny: Path, cai: Cai) -> None:
    good = list(pairs(9))
    bad = [row | {"p_chosen": p} for row, p in zip(pairs(3, seed=1), (float("nan"), 2, "x"), strict=True)]
    long = [row | {"chosen": "word " * 60} for row in pairs(2, seed=2)]
    file = write_rows(tmp_path / "mixed.jsonl", [*good, *bad, *long])
    out = tmp_path / "run"
    done = cai(
        "train", "reward", "--model", tiny, "--data", file, "--out", out, "--max-length", 256, "--test-share", 0,
        "--report-to", "none", "--max-steps", 1,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "train on 9 rows, held out: none" in done.out
    assert "left out: 2 too_long\n" in done.out
    counts = manifest(out)["counts"]
    assert (counts["train"], counts["rejected_rows"], counts["too_long"]) == (9, 3, 2)
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert [(reject["row"], reject["reason"]) for reject in rejects] == [(10, "bad_p"), (11, "bad_p"), (12, "bad_p")]
