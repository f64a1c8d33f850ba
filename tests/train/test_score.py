"""The stage `score` and its command: every response scored once, and figures that follow from the scores."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cai_process import finish, manifest, size, start, wait_until
from chain_samples import turns
from click.testing import CliRunner, Result
from reward_models import change_json, plain_reward, save_ensemble, save_reward_model
from rich.console import Console
from tiny_model import save_tiny_model
from training_rows import pairs, planted, train, write_rows

from cai.cli import cli
from cai.cli.score import score
from cai.errors import CaiError, RunDirError, StageError
from cai.records import Message, Usage
from cai.rundir import RunDir
from cai.train.reward_checkpoints import RewardCheckpoints
from cai.train.reward_model import RewardEnsemble
from cai.train.score_config import ScoreConfig
from cai.train.scores import ResponseScore, ScoreSummary, write_scores
from cai.train.scoring import Scored, load_scoring, score_responses

Row = dict[str, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tmp_path_factory.mktemp("rewards") / "model", offset=0.5)


def scored(out: Path, model: Path, responses: Path, **settings: Any) -> Scored:
    given = {"model": str(model), "responses": str(responses), "device": "cpu", "dtype": "float32", **settings}
    return score_responses(load_scoring(ScoreConfig(**given)), out, Console(quiet=True))


def lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def scores(out: Path) -> list[Row]:
    return lines(out / "scores.jsonl")


def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Message, ...]]:
    """All conversations that are scored from now on."""
    found: list[tuple[Message, ...]] = []
    whole = RewardEnsemble.score

    def noting(self: RewardEnsemble, conversations: Sequence[tuple[Message, ...]]) -> Any:
        found.extend(conversations)
        return whole(self, conversations)

    monkeypatch.setattr(RewardEnsemble, "score", noting)
    return found


def test_both_responses_of_each_pair_are_scored_in_the_order_of_the_file(tmp_path: Path, model: Path) -> None:
    rows = list(pairs(20))
    found = scored(tmp_path / "run", model, write_rows(tmp_path / "pairs.jsonl", rows), batch_size=2)
    written = scores(tmp_path / "run")
    assert [line["origin"] for line in written] == ["chosen", "rejected"] * 20
    for line, (row, name) in zip(
        written, [(row, name) for row in rows for name in ("chosen", "rejected")], strict=True
    ):
        conversation = turns(row["prompt"], row[name])
        assert line["messages"] == [message.model_dump() for message in conversation]
        assert line["reward"] == pytest.approx(plain_reward(model, conversation) - 0.5, abs=1e-4)
        assert line["rewards"] == [line["reward"]]
        assert line["p_better"] == pytest.approx(row["p_chosen"] if name == "chosen" else 1 - row["p_chosen"])
        assert line["id"].rpartition("/")[0] == line["row"]
    rewards = np.array([line["reward"] for line in written])
    margins = (rewards[0::2] - rewards[1::2]) * np.sign([row["p_chosen"] - 0.5 for row in rows])
    summary = found.summary
    assert (summary.scored, summary.members, summary.disagreement, summary.half_pairs) == (40, 1, None, 0)
    assert (summary.lowest, summary.highest) == (rewards.min(), rewards.max())
    assert summary.mean == pytest.approx(rewards.sum() / 40)
    assert summary.deviation == pytest.approx(math.sqrt(((rewards - rewards.mean()) ** 2).sum() / 40))
    assert {name: one.scored for name, one in summary.origins.items()} == {"chosen": 20, "rejected": 20}
    assert summary.origins["chosen"].mean == pytest.approx(rewards[0::2].mean())
    assert summary.pairs is not None
    assert summary.pairs.sources[0].accuracy is not None
    assert summary.pairs.sources[0].accuracy.value == pytest.approx((margins > 0).mean())
    assert summary.pairs.sources[0].source == "human"
    assert ScoreSummary.model_validate_json((tmp_path / "run" / "summary.json").read_bytes()) == summary
    assert found.manifest.state == "finished"
    assert found.manifest.counts["finished"] == 40


def test_an_ensemble_is_combined_anew_without_running_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = save_ensemble(tmp_path / "ensemble", 3)
    file = write_rows(tmp_path / "pairs.jsonl", pairs(5))
    found = scored(tmp_path / "run", ensemble, file).summary
    members = np.array([line["rewards"] for line in scores(tmp_path / "run")])
    assert members.shape == (10, 3)
    assert [line["reward"] for line in scores(tmp_path / "run")] == pytest.approx(members.mean(axis=1))
    assert found.disagreement == pytest.approx(np.sqrt(((members.T - members.mean(axis=1)) ** 2).mean(axis=0)).mean())

    def load(*_: object, **__: object) -> None:
        raise AssertionError("the models were loaded")

    monkeypatch.setattr(RewardCheckpoints, "load", load)
    scored(tmp_path / "run", ensemble, file, ensemble_by="worst")
    assert [line["reward"] for line in scores(tmp_path / "run")] == pytest.approx(members.min(axis=1))
    found = scored(tmp_path / "run", ensemble, file, ensemble_by="uncertainty", penalty=0.2).summary
    expected = members.mean(axis=1) - 0.2 * members.var(axis=1)
    assert [line["reward"] for line in scores(tmp_path / "run")] == pytest.approx(expected)
    assert (found.ensemble_by, found.penalty, found.mean) == ("uncertainty", 0.2, pytest.approx(expected.mean()))


def test_a_run_goes_on_with_what_is_not_scored_yet(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_rows(tmp_path / "pairs.jsonl", pairs(12))
    settings: Row = {"batch_size": 1}
    scored(tmp_path / "whole", model, file, **settings)
    conversations = asked(monkeypatch)
    first = scored(tmp_path / "run", model, file, limit=4, **settings)
    assert (len(conversations), first.summary.scored) == (8, 8)
    scored(tmp_path / "run", model, file, **settings)
    assert len(conversations) == len(set(conversations)) == 24
    assert (tmp_path / "run" / "scores.jsonl").read_bytes() == (tmp_path / "whole" / "scores.jsonl").read_bytes()
    scored(tmp_path / "run", model, file, **settings)
    assert len(conversations) == 24


def test_responses_that_do_not_fit_are_counted_and_not_tried_again(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"id": "fits", "prompt": "Why?", "chosen": "So.", "rejected": "No."},
        {"id": "half", "prompt": "Why?", "chosen": "So.", "rejected": "No" * 70},
        {"id": "long", "messages": [{"role": "user", "content": "W" * 200}, {"role": "assistant", "content": "So."}]},
        {"id": "bad"},
    ]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(StageError, match=r"2 of 5 responses failed \(2 too_long\), more than .* 0\.1 "):
        scored(tmp_path / "run", model, file)
    assert [line["id"] for line in scores(tmp_path / "run")] == ["fits/0", "fits/1", "half/0"]
    failures = [(line["id"], line["index"], line["reason"]) for line in lines(tmp_path / "run" / "failures.jsonl")]
    assert failures == [("half/1", 3, "too_long"), ("long/0", 4, "too_long")]
    assert [(line["row"], line["reason"]) for line in lines(tmp_path / "run" / "rejects.jsonl")] == [
        (4, "missing_response")
    ]
    conversations = asked(monkeypatch)
    found = scored(tmp_path / "run", model, file, max_failure_share=0.5)
    assert not conversations
    assert (found.summary.half_pairs, found.summary.scored) == (1, 3)
    assert found.summary.pairs is not None
    assert found.summary.pairs.sources[0].pairs == 1
    assert (found.manifest.state, found.manifest.failures) == ("finished", {"too_long": 2})


def test_shortened_conversations_are_marked(tmp_path: Path, model: Path) -> None:
    long = [{"role": role, "content": "word " * 8} for role in ("user", "assistant") * 2]
    file = write_rows(tmp_path / "rows.jsonl", [{"messages": long}, {"messages": long[:2]}])
    found = scored(tmp_path / "run", model, file)
    assert [line["shortened"] for line in scores(tmp_path / "run")] == [True, False]
    assert found.summary.shortened == 1
    assert len(scores(tmp_path / "run")[0]["messages"]) == 4


def test_nothing_scored_has_no_figures(tmp_path: Path, model: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Why?", "completion": "So" * 100}])
    summary = scored(tmp_path / "run", model, file, max_failure_share=1).summary
    assert (summary.scored, summary.mean, summary.highest, summary.pairs) == (0, None, None, None)


@pytest.mark.parametrize(
    ("changed", "message"),
    [("model", "the model changed"), ("responses", "the responses changed"), ("max_length", "max_length is 64")],
)
def test_a_run_does_not_go_on_with_other_inputs(tmp_path: Path, changed: str, message: str) -> None:
    model, file = save_reward_model(tmp_path / "model"), write_rows(tmp_path / "pairs.jsonl", pairs(2))
    scored(tmp_path / "run", model, file)
    if changed == "model":
        change_json(model / "config.json", reward_offset=1.0)
    if changed == "responses":
        write_rows(file, pairs(3))
    with pytest.raises(RunDirError, match=message):
        scored(tmp_path / "run", model, file, max_length=64 if changed == "max_length" else None)


def response(place: int, row: str, rewards: tuple[float, ...], p_better: float | None) -> ResponseScore:
    return ResponseScore(
        id=f"{row}/{place % 2}",
        index=place,
        row=row,
        origin="",
        rewards=rewards,
        shortened=False,
        p_better=p_better,
        label_source=None if p_better is None else "ai",
        messages=turns(f"Question {row}?", "word " * (2 - place % 2)),
    )


def test_figures_of_labelled_pairs_by_hand(tmp_path: Path) -> None:
    """Three pairs, of which the first two are met, and the longer response is always the first one."""
    records = [
        response(0, "x", (3.0, 1.0), 0.9),
        response(1, "x", (0.0, 0.0), 0.1),
        response(2, "y", (-1.0, 0.0), 0.2),
        response(3, "y", (1.0, 1.0), 0.8),
        response(4, "z", (-1.0, -1.0), 1.0),
        response(5, "z", (0.0, 0.0), 0.0),
        response(6, "alone", (0.0, 0.0), None),
    ]
    with RunDir.open(tmp_path / "run", stage="score", config={}, inputs={}, seed=0) as run_dir:
        for record in reversed(records):  # in order of completion
            run_dir.append(record, Usage())
    found = write_scores(tmp_path / "run", members=2, how="mean", penalty=0.1, name="rows")
    assert [line["reward"] for line in scores(tmp_path / "run")] == [2.0, 0.0, -0.5, 1.0, -1.0, 0.0, 0.0]
    assert found.pairs is not None
    (source,) = found.pairs.sources
    assert (source.pairs, source.prompts, source.source) == (3, 3, "ai")
    assert (source.accuracy.value, source.longer_wins.value) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert source.margin.value == pytest.approx((2.0 + 1.5 - 1.0) / 3)
    # Standard deviations over the members: 1 of the first, 0.5 of the third, 0 of the others.
    assert found.disagreement == pytest.approx(1.5 / 7)


@pytest.mark.parametrize("settings", [{}, {"use_peft": True, "ensemble": 2}])
def test_a_trained_reward_model_scores_as_it_did_when_it_was_trained(tmp_path: Path, tiny: Path, settings: Row) -> None:
    data = write_rows(tmp_path / "data.jsonl", planted(8))
    held = write_rows(tmp_path / "held.jsonl", planted(4, seed=1))
    out = tmp_path / "reward"
    train("reward", out, model=tiny, data=data, eval_data=held, max_steps=1, **settings)
    members = [out] if not settings else [out / "member-0", out / "member-1"]
    expected = [json.loads((member / "held_out.json").read_text())["held_out"] for member in members]
    scored(tmp_path / "run", out, held)
    found = [line["rewards"] for line in scores(tmp_path / "run")]
    np.testing.assert_allclose(found, np.array(expected).reshape(len(members), -1).T, rtol=1e-4, atol=1e-4)


def cai(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["score", "--device", "cpu", "--dtype", "float32", *arguments])


def test_a_killed_run_goes_on_and_so_does_an_interrupted_one(tmp_path: Path, model: Path) -> None:
    file = write_rows(tmp_path / "pairs.jsonl", pairs(120))
    job = ["score", "--model", str(model), "--responses", str(file), "--out", "run"]
    job += ["--batch-size", "1", "--device", "cpu", "--dtype", "float32"]
    records = tmp_path / "run" / "records.jsonl"
    process = start(job, tmp_path)
    wait_until(process, lambda: size(records) > 0)
    process.kill()
    process.communicate()
    killed = records.read_bytes()
    killed = killed[: killed.rfind(b"\n") + 1]
    assert not (tmp_path / "run" / "scores.jsonl").exists()
    process = start(job, tmp_path)
    wait_until(process, lambda: size(records) > len(killed) + 100)
    process.terminate()
    stopped = finish(process)
    assert stopped.code == 130
    assert "stopped; finished scores are kept. Go on with: " in stopped.err
    assert manifest(tmp_path / "run")["state"] == "stopped"
    interrupted = records.read_bytes()
    assert interrupted.startswith(killed)
    assert 0 < killed.count(b"\n") < interrupted.count(b"\n") < 240
    scored(tmp_path / "run", model, file, batch_size=1)
    assert records.read_bytes().startswith(interrupted)
    scored(tmp_path / "whole", model, file, batch_size=1)
    assert (tmp_path / "run" / "scores.jsonl").read_bytes() == (tmp_path / "whole" / "scores.jsonl").read_bytes()


def test_the_command_shows_what_came_of_it(tmp_path: Path) -> None:
    ensemble = str(save_ensemble(tmp_path / "ensemble", 2))
    file = str(write_rows(tmp_path / "pairs.jsonl", [*planted(6), {"id": "bad"}]))
    more = ["--model", ensemble, "--responses", file, "--out", str(tmp_path / "run")]
    shown = cai(*more, "--ensemble-by", "uncertainty", "--penalty", "0.2")
    assert shown.exit_code == 0, shown.output
    summary = ScoreSummary.model_validate_json((tmp_path / "run" / "summary.json").read_bytes())
    assert "ensemble of 2 reward models" in shown.output
    assert "not used: " in shown.output
    cells = (re.split(r" {2,}", line.strip(), maxsplit=1) for line in shown.output.splitlines())
    rows = {found[0]: found[1] for found in cells if len(found) == 2}
    assert rows["scored"] == "12 (0 without their oldest turns)"
    assert rows["combined by"] == "uncertainty, penalty 0.2"
    assert rows["mean, deviation"] == f"{summary.mean:.3f}, {summary.deviation:.3f}"
    assert rows["members' disagreement"] == f"{summary.disagreement:.3f}"
    assert rows["mean of chosen"] == f"{summary.origins['chosen'].mean:.3f} (6)"
    assert rows["accuracy"].startswith(f"{summary.pairs.sources[0].accuracy.value:.1%}")
    assert str(tmp_path / "run" / "scores.jsonl") in shown.output


def test_bad_commands_end_with_what_is_wrong(tmp_path: Path, model: Path) -> None:
    file = str(write_rows(tmp_path / "pairs.jsonl", pairs(2)))
    language_model = str(save_tiny_model(tmp_path / "tiny"))
    for arguments, message in [
        (["--responses", file], "model: is missing"),
        (["--model", str(model)], "responses: is missing"),
        (["--model", language_model, "--responses", file], "is no reward model"),
        (["--model", str(model), "--responses", file, "--ensemble-by", "worst"], "this is one reward model"),
        (["--model", str(model), "--responses", str(tmp_path / "none.jsonl")], "there is no such file"),
        (["--model", str(model), "--responses", file, "--penalty", "-1"], "penalty: "),
    ]:
        error = cai(*arguments, "--out", str(tmp_path / "run")).exception
        assert isinstance(error, CaiError)
        assert error.exit_code == 2
        assert message in str(error)
        assert not (tmp_path / "run").exists()


def test_every_setting_has_an_option() -> None:
    options = {option.name for option in score.params} - {"config_file", "out", "overwrite"}
    assert options == set(ScoreConfig.model_fields)


def test_help_loads_no_torch(tmp_path: Path) -> None:
    code = """
import sys
from cai.cli import cli
cli.main(["score", "--help"], standalone_mode=False)
print([name for name in ("torch", "transformers", "trl") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--ensemble-by" in done.stdout
