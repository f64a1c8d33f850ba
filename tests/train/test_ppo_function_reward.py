"""Rewards of PPO from the user's functions: what they get, what they may give, and what is said of those that fail."""

import json
import os
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from ppo_rewards import PROMPTS, REPLIES, function, scores
from reward_models import save_reward_model

from cai.errors import ConfigError, StageError
from cai.train.ppo.reward_config import RewardSourceConfig
from cai.train.ppo.reward_plan import find_rewards


def test_a_function_gets_the_conversations_and_the_responses(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    body = f"Path({str(log)!r}).write_text(json.dumps([prompts, responses])); return [1, 2.5, 3]"
    place = function(tmp_path, body, head="import json\nfrom pathlib import Path")
    assert scores({"function": place}).scores.tolist() == [1, 2.5, 3]
    assert json.loads(log.read_text()) == [
        [
            [{"role": "user", "content": "What burns?"}],
            [
                {"role": "user", "content": "Hello."},
                {"role": "assistant", "content": "Hi."},
                {"role": "user", "content": "And ash?"},
            ],
            [{"role": "user", "content": "Oak or elm?"}],
        ],
        REPLIES,
    ]


def test_a_function_of_an_installed_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brevity").mkdir()
    (tmp_path / "brevity" / "__init__.py").write_text("")
    (tmp_path / "brevity" / "short.py").write_text(
        "def brief(prompts, responses):\n    return [-len(r) for r in responses]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plan = find_rewards([RewardSourceConfig(function="brevity.short:brief")])
    found = plan.open().score(PROMPTS, REPLIES)
    assert found.parts["brief"].tolist() == [-6, -19, -4]
    assert plan.hashes == {"brief": sha256((tmp_path / "brevity" / "short.py").read_bytes()).hexdigest()}


def test_a_file_in_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    function(tmp_path, "return [1, 2, 3]")
    assert scores({"function": "~/rewards.py:reward"}).scores.tolist() == [1, 2, 3]


def test_a_file_may_hold_data_classes_and_call_other_functions(tmp_path: Path) -> None:
    head = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Marks:\n    good: int\ndef count(text):\n    return Marks(text.count('a')).good\n"
    )
    place = function(tmp_path, "return [count(response) for response in responses]", head=head)
    assert scores({"function": place}).scores.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    "body",
    [
        "return (1, 2, 3)",
        "import numpy; return numpy.array([1, 2, 3], dtype='float32')",
        "import numpy; return [numpy.float32(1), numpy.int64(2), numpy.array(3.0)]",
        "import torch; return torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16, requires_grad=True)",
        "import torch; return [torch.tensor(1.0), torch.tensor(2), 3]",
    ],
)
def test_numbers_of_all_kinds_will_do(tmp_path: Path, body: str) -> None:
    found = scores({"function": function(tmp_path, body)})
    assert found.scores.tolist() == [1, 2, 3]
    assert found.scores.dtype == np.float64


def test_a_function_cannot_change_what_the_others_see(tmp_path: Path) -> None:
    model = save_reward_model(tmp_path / "model")
    body = "prompts[0][0]['content'] = 'x'; prompts.pop(); responses.clear(); return [0, 0, 0]"
    prompts, replies = list(PROMPTS), list(REPLIES)
    rude = {"function": function(tmp_path, body)}
    found = scores(rude, {"model": str(model)}, prompts=prompts, replies=replies)
    np.testing.assert_array_equal(found.parts["model"], scores({"model": str(model)}).scores)
    assert (prompts, replies) == (PROMPTS, REPLIES)
    assert PROMPTS[0][0].content == "What burns?"


def test_what_is_no_finite_number_has_no_score(tmp_path: Path) -> None:
    found = scores({"function": function(tmp_path, "return [float('inf'), 10 ** 400, -5]")})
    assert found.reasons == ("not_finite", "not_finite", None)
    np.testing.assert_array_equal(found.scores, [np.nan, np.nan, -5])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [1, 'good', 3]", "gave 'good' as reward 2 of 3, and that is not a number"),
        ("return [1, 2, None]", "gave None as reward 3 of 3, and"),
        ("return [True, 2, 3]", "gave True as reward 1 of 3, and"),
        ("import numpy; return numpy.array([True, False, True])", "gave True as reward 1 of 3, and"),
        ("import numpy; return numpy.ones((3, 1))", r"gave \[1.0\] as reward 1 of 3, and"),
        ("return [1j, 2, 3]", "gave 1j as reward 1 of 3, and"),
        ("return [1, 2]", "gave 2 rewards for 3 responses"),
        ("return [1, 2, 3, 4]", "gave 4 rewards for 3 responses"),
        ("pass", "gave a NoneType, where a list of 3 numbers is wanted"),
        ("return 1.0", "gave a float, where"),
        ("return '123'", "gave a str, where"),
        ("return {0: 1, 1: 2, 2: 3}", "gave a dict, where"),
        ("import numpy; return numpy.array(3.0)", "gave a ndarray, where"),
        ("return 1 / len(responses[0][9:])", r"failed: ZeroDivisionError: division by zero \(line 3\)$"),
        ("raise KeyError('first\\nsecond')", r"failed: KeyError: 'first\\nsecond' \(line 3\)$"),
        ("raise ValueError('first\\nsecond')", r"failed: ValueError: first \(line 3\)$"),
        ("assert not responses", r"failed: AssertionError \(line 3\)$"),
        ("import sys; sys.exit(3)", r"failed: SystemExit: 3 \(line 3\)$"),
    ],
)
def test_a_function_that_fails_ends_the_stage_in_one_sentence(tmp_path: Path, body: str, message: str) -> None:
    place = function(tmp_path, body)
    with pytest.raises(StageError, match=message) as caught:
        scores({"function": place})
    assert str(caught.value).startswith(f"the reward function {place} ")
    assert "\n" not in str(caught.value)


def test_the_line_is_the_last_one_that_the_error_passed_in_the_users_file(tmp_path: Path) -> None:
    head = "import json\ndef parsed(text):\n    return json.loads(text)\n"
    place = function(tmp_path, "return [parsed(response) for response in responses]", head=head)
    with pytest.raises(
        StageError, match=r"failed: JSONDecodeError: Expecting value: line 1 column 1 \(char 0\) \(line 3\)$"
    ):
        scores({"function": place})


def test_ctrl_c_within_a_function_stays_one(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        scores({"function": function(tmp_path, "raise KeyboardInterrupt")})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.py:good", None, r"f.py cannot be read: No such file or directory; a reward function is FILE.py:NAME"),
        ("f.py:god", "def good(p, r): ...", "f.py has no god; did you mean `good`\\?"),
        ("f.py:good", "", "f.py has no good$"),
        ("f.py:good", "good = 3", "f.py:good is no function but of the type int"),
        ("f.py:good", "async def good(p, r): ...", "f.py:good is an `async` function"),
        ("f.py:good", "def good(r): ...", r"f.py:good must be callable as good\(prompts, responses\), with these two"),
        ("f.py:good", "def good(p, r, *, scale): ...", "f.py:good must be callable as good"),
        ("f.py:good", "def good(p, r)", r"f.py:good cannot be imported: SyntaxError: expected ':'"),
        ("f.py:good", "\nimport nowhere_at_all", r"ModuleNotFoundError: No module named 'nowhere_at_all' \(line 2\)$"),
        ("f.py:good", "import sys\nsys.exit('no')", r"f.py:good cannot be imported: SystemExit: no \(line 2\)$"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "f.py").write_text(content)
    with pytest.raises(ConfigError, match=message):
        find_rewards([RewardSourceConfig(function=f"{tmp_path}/{name}")])


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere_at_all.rewards:good", "No module named 'nowhere_at_all'; install it, or name a file: FILE.py:NAME"),
        ("json.nowhere:good", "No module named 'json.nowhere'; install it, or"),
        ("broken_rewards:good", "ModuleNotFoundError: No module named 'nowhere_at_all'$"),
        ("sys:exit", "sys:exit: sys has no file, so that its content cannot be recorded; name FILE.py:NAME"),
    ],
)
def test_a_module_that_cannot_be_used_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, message: str
) -> None:
    (tmp_path / "broken_rewards.py").write_text("import nowhere_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=message):
        find_rewards([RewardSourceConfig(function=place)])


def test_the_file_that_is_hashed_is_the_one_that_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    place = function(tmp_path, "return [1, 1, 1]")
    assert scores({"function": place}).scores.tolist() == [1, 1, 1]
    file = tmp_path / "rewards.py"
    time = file.stat().st_mtime_ns
    function(tmp_path, "return [2, 2, 2]")
    os.utime(file, ns=(time, time))  # a compiled copy of the old file would pass for one of the new
    assert scores({"function": place}).scores.tolist() == [2, 2, 2]
