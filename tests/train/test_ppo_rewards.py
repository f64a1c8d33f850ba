"""Rewards of PPO from models and mixes of sources: by other ways and by hand; what is checked before, and refused."""

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ppo_rewards import PROMPTS, REPLIES, function, lengths, opened, scores
from pydantic import ValidationError
from reward_models import change_json, plain_reward, save_ensemble, save_reward_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification, PreTrainedTokenizerFast

from cai.config import EngineConfig
from cai.errors import CaiError, ConfigError, EngineError
from cai.records import Message
from cai.train.ppo import judge_reward
from cai.train.ppo.reward_config import JudgeRewardConfig, RewardSourceConfig
from cai.train.ppo.reward_plan import find_rewards

NONE = (None, None, None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tmp_path_factory.mktemp("rewards") / "model", offset=0.5)


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_ensemble(tmp_path_factory.mktemp("rewards") / "three", 3)


def conversation(place: int) -> tuple[Message, ...]:
    return (*PROMPTS[place], Message(role="assistant", content=REPLIES[place]))


def test_a_model_scores_whole_conversations_and_its_weight_comes_on_top(model: Path) -> None:
    expected = [plain_reward(model, conversation(place)) - 0.5 for place in range(3)]
    assert np.ptp(expected) > 1
    found = scores({"model": str(model), "weight": -2.0})
    np.testing.assert_allclose(found.scores, [-2 * reward for reward in expected], rtol=1e-5)
    np.testing.assert_allclose(found.parts["model"], expected, rtol=1e-5)
    assert (list(found.parts), found.reasons, found.variance) == (["model"], NONE, None)


def save_foreign_model(folder: Path) -> Path:
    """A reward model with the bytes in the other order in its vocabulary, and a chat template of its own."""
    save_reward_model(folder, seed=1)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    core = Tokenizer(models.BPE({token: place for place, token in enumerate(["[PAD]", "[END]", *letters])}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", eos_token="[END]")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role[0] | upper }}={{ m.content }}[END]{% endfor %}"
    tokenizer.save_pretrained(folder)
    change_json(folder / "config.json", pad_token_id=0)
    return folder


@torch.no_grad()
def foreign_reward(folder: Path, messages: Sequence[Message]) -> float:
    """The head at the last token of ids that are written down without a tokenizer."""
    order = sorted(map(ord, pre_tokenizers.ByteLevel.alphabet()), reverse=True)
    ids = []
    for message in messages:
        written = f"{message.role[0].upper()}={message.content}".replace(" ", "Ġ")  # a byte-level vocabulary's space
        ids += [*(2 + order.index(ord(letter)) for letter in written), 1]
    model = LlamaForSequenceClassification.from_pretrained(folder)
    return float(model.score(model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]))


def test_a_model_reads_text_with_its_own_tokenizer_and_template_beside_another_one(tmp_path: Path, model: Path) -> None:
    foreign = save_foreign_model(tmp_path / "foreign")
    found = scores({"model": str(model)}, {"model": str(foreign), "weight": 0.5, "name": "other"})
    own = [plain_reward(model, conversation(place)) - 0.5 for place in range(3)]
    other = [foreign_reward(foreign, conversation(place)) for place in range(3)]
    np.testing.assert_allclose(found.parts["other"], other, rtol=1e-5)
    np.testing.assert_allclose(found.scores, [a + 0.5 * b for a, b in zip(own, other, strict=True)], rtol=1e-5)


@pytest.mark.parametrize("how", ["mean", "worst", "uncertainty"])
def test_an_ensemble_is_combined_by_hand(ensemble: Path, how: str) -> None:
    expected, variances = [], []
    for place in range(3):
        members = [plain_reward(ensemble / f"member-{n}" / "model", conversation(place)) for n in range(3)]
        mean = sum(members) / 3
        variances.append(sum((member - mean) ** 2 for member in members) / 3)
        expected.append({"mean": mean, "worst": min(members), "uncertainty": mean - 0.3 * variances[-1]}[how])
    found = scores({"model": str(ensemble), "ensemble_by": how, "penalty": 0.3, "weight": 3.0})
    np.testing.assert_allclose(found.parts["three"], expected, rtol=1e-4)
    np.testing.assert_allclose(found.scores, [3 * one for one in expected], rtol=1e-4)
    np.testing.assert_allclose(found.variance, variances, rtol=1e-4)


def test_the_variance_is_that_of_the_largest_ensemble(tmp_path: Path, model: Path, ensemble: Path) -> None:
    two = {"model": str(save_ensemble(tmp_path / "two", 2, max_position_embeddings=40))}
    three = {"model": str(ensemble)}
    of_three, of_two = scores(three).variance, scores(two).variance
    assert of_three is not None
    assert of_two is not None
    np.testing.assert_array_equal(scores(two, {"model": str(model)}, three).variance, of_three)
    np.testing.assert_array_equal(scores({"model": str(model)}, two).variance, of_two)
    cut = scores(two, {"model": str(model)}, replies=["a", "b" * 41, "c"])
    assert cut.reasons == (None, "too_long", None)
    assert cut.variance is not None
    assert np.isnan(cut.variance).tolist() == [False, True, False]


def test_a_mix_has_a_score_only_where_all_sources_have_one(tmp_path: Path, model: Path) -> None:
    nan = function(tmp_path, "return [1.0, float('nan'), 3.0]")
    sources = [{"function": nan}, {"model": str(model)}]
    found = scores(*sources, replies=["r" * 200, "fine", "fine"])
    assert found.reasons == ("too_long", "not_finite", None)
    last = plain_reward(model, (*PROMPTS[2], Message(role="assistant", content="fine"))) - 0.5
    np.testing.assert_allclose(found.scores, [np.nan, np.nan, 3 + last], rtol=1e-5)
    np.testing.assert_allclose(found.parts["reward"], [1, np.nan, 3])
    assert np.isnan(found.parts["model"]).tolist() == [True, False, False]
    # Of two reasons the first source's counts.
    both = ["fine", "r" * 200, "fine"]
    assert scores(*sources, replies=both).reasons == (None, "not_finite", None)
    assert scores(*sources[::-1], replies=both).reasons == (None, "too_long", None)


def test_weights_of_any_sign_are_factors(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first = {"function": function(tmp_path / "a", "return [1.0, 2.0, 4.0]"), "weight": 0.5, "name": "first"}
    second = {"function": function(tmp_path / "b", "return [10.0, 0.0, -10.0]"), "weight": -0.25, "name": "second"}
    found = scores(first, second)
    assert found.scores.tolist() == [0.5 - 2.5, 1.0, 2.0 + 2.5]
    assert {name: part.tolist() for name, part in found.parts.items()} == {"first": [1, 2, 4], "second": [10, 0, -10]}


def test_a_sum_beyond_all_numbers_is_marked(tmp_path: Path) -> None:
    huge = function(tmp_path, "return [1e300, -1e300, 1.0]")
    found = scores({"function": huge, "weight": 1e300, "name": "a"}, {"function": huge, "weight": -1e300, "name": "b"})
    assert found.reasons == ("not_finite", "not_finite", None)
    assert np.isnan(found.scores[:2]).all()
    assert found.parts["a"].tolist() == [1e300, -1e300, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give one of `model`, `judge` and `function`; several sources are several entries"),
        ({"model": "m", "function": "m:f"}, "give one of `model`, `judge` and `function`"),
        ({"function": "m:f", "ensemble_by": "worst"}, "`ensemble_by` has no effect without a reward `model`"),
        ({"judge": {}, "penalty": 0.2}, "`penalty` has no effect without a reward `model`"),
        ({"model": "m", "penalty": -1}, "greater than or equal to 0"),
        ({"model": "m", "weight": 0}, "`weight` is 0, so the source has no effect"),
        ({"model": "m", "weight": float("inf")}, "finite number"),
        ({"model": "m", "weight": float("nan")}, "finite number"),
        ({"model": "m", "name": "a/b"}, "match pattern"),
        ({"function": "f.py"}, "'f.py' is not of the form FILE.py:NAME or package.module:NAME"),
        ({"function": "f.py:"}, "is not of the form"),
        ({"function": "rewards/f:good"}, "is not of the form"),
        ({"function": "f.py:a.b"}, "is not of the form"),
        ({"judge": {"judge": {}}}, "`judge.protocol` must be score, the only one that rates a response by itself"),
        ({"judge": {"judge": {"protocol": "score", "scale": 2}}}, "`judge.scale` has no effect on a rating"),
        ({"judge": {"judge": {"protocol": "score", "clamp": [0.4, 0.6]}}}, "`judge.clamp` has no effect"),
        (
            {"judge": {"judge": {"protocol": "score", "few_shot": 2}}},
            "`few_shot` has no effect with the protocol score",
        ),
        ({"judge": {"engine": {"system": "Be kind."}}}, "`engine.system` has no effect on a judge"),
        ({"judge": {"consitution": "hhh"}}, "Extra inputs"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RewardSourceConfig.model_validate(settings)


def test_sources_are_called_by_what_they_are() -> None:
    named = {
        "runs/kind": {"model": "runs/kind"},
        "owner/kind model": {"model": "owner/kind model"},
        "here": {"model": "."},
        "judge": {"judge": {}},
        "function": {"function": "~/rewards/f.py:brief"},
        "own": {"function": "a.b:brief", "name": "short-1.0"},
    }
    called = {key: RewardSourceConfig.model_validate(settings).called for key, settings in named.items()}
    assert called == {
        "runs/kind": "kind",
        "owner/kind model": "kind-model",
        "here": "model",
        "judge": "judge",
        "function": "brief",
        "own": "short-1.0",
    }


def test_names_must_differ_and_there_must_be_a_source(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="several rewards are called reward; give each a `name` of its own"):
        find_rewards([RewardSourceConfig.model_validate(lengths(tmp_path))] * 2)
    with pytest.raises(ConfigError, match="no reward is named: give a reward `model`, a `judge` or a `function`"):
        find_rewards([])


def test_options_of_ensembles_are_checked_against_the_model(model: Path, ensemble: Path) -> None:
    with pytest.raises(ConfigError, match="ensemble_by: worst is for an ensemble, and this is one reward model"):
        find_rewards([RewardSourceConfig(model=str(model), ensemble_by="worst")])
    plan = find_rewards([RewardSourceConfig(model=str(ensemble), ensemble_by="worst")])
    assert plan.only_model is not None
    assert len(plan.only_model.members) == 3


def test_options_of_the_run_reach_the_reward_models(model: Path) -> None:
    config = RewardSourceConfig(model=str(model))
    for trusted in (False, True):
        found = find_rewards([config], trust_remote_code=trusted).only_model
        assert found is not None
        assert found.trust_remote_code is trusted
    with pytest.raises(EngineError, match="device nowhere cannot be used"):
        find_rewards([config]).open(device="nowhere")


def test_only_a_reward_model_alone_is_the_only_model(tmp_path: Path, model: Path) -> None:
    one, other = RewardSourceConfig(model=str(model)), RewardSourceConfig.model_validate(lengths(tmp_path))
    assert find_rewards([one]).only_model is not None
    assert find_rewards([other]).only_model is None
    assert find_rewards([one, other]).only_model is None


def all_kinds(folder: Path, model: Path) -> list[RewardSourceConfig]:
    principle = "{id: kind, comparison: Choose the kinder., question: Is it unkind?}"
    (folder / "rules.yaml").write_text(f"name: rules\nversion: '1'\nprinciples:\n- {principle}\n")
    (folder / "templates").mkdir(exist_ok=True)
    judge = JudgeRewardConfig(
        constitution=str(folder / "rules.yaml"),
        templates=folder / "templates",
        engine=EngineConfig(engine="scripted", script=folder / "script.yaml"),
    )
    return [
        RewardSourceConfig(model=str(model)),
        RewardSourceConfig(judge=judge),
        RewardSourceConfig.model_validate(lengths(folder)),
    ]


def test_hashes_change_with_what_the_scores_depend_on(tmp_path: Path) -> None:
    model = save_reward_model(tmp_path / "rm")
    configs = all_kinds(tmp_path, model)
    before = find_rewards(configs).hashes
    assert list(before) == ["rm", "judge constitution", "judge templates", "reward"]
    assert before["reward"] == sha256((tmp_path / "rewards.py").read_bytes()).hexdigest()
    assert find_rewards(configs).hashes == before

    def changed() -> list[str]:
        after = find_rewards(configs).hashes
        return [name for name in before if after[name] != before[name]]

    change_json(model / "config.json", reward_offset=1.0)
    assert changed() == ["rm"]
    rules = (tmp_path / "rules.yaml").read_text()
    (tmp_path / "rules.yaml").write_text(rules.replace("unkind", "cruel"))
    assert changed() == ["rm", "judge constitution"]
    shipped = Path("prompts/templates/score.j2").read_text()
    (tmp_path / "templates" / "score.j2").write_text(shipped.replace("with a number", "by a number"))
    assert changed() == ["rm", "judge constitution", "judge templates"]
    (tmp_path / "rewards.py").write_text((tmp_path / "rewards.py").read_text() + "#")
    assert changed() == ["rm", "judge constitution", "judge templates", "reward"]


def test_nothing_heavy_is_loaded_before_all_is_checked(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(name: str, **_: object) -> None:
        loaded.append(name)
        raise OSError("not now")

    def open_engine(config: EngineConfig) -> None:
        loaded.append(config.engine)
        raise OSError("not now")

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", load)
    monkeypatch.setattr(judge_reward, "open_engine", open_engine)
    configs = all_kinds(tmp_path, model)
    plan = find_rewards(configs)
    wrong = [
        {"model": str(tmp_path / "nowhere")},
        {"function": "nowhere_at_all:good"},
        {"judge": {"constitution": "nowhere"}},
        {"judge": {"constitution": str(tmp_path / "rules.yaml"), "judge": {"protocol": "score", "principles": 2}}},
        {"judge": {"constitution": str(tmp_path / "rules.yaml"), "judge": {"protocol": "score", "tags": ["x"]}}},
        {"judge": {"templates": str(tmp_path / "nowhere")}},
    ]
    for settings in wrong:
        with pytest.raises(CaiError):
            find_rewards([*configs, RewardSourceConfig.model_validate({"name": "wrong", **settings})])
    assert loaded == []
    with pytest.raises(CaiError, match="not now"):
        plan.open()
    assert loaded == [str(model)]


def test_closing_closes_all_sources_once_the_last_one_first(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    def noting(name: str, close: Callable[[Any], None]) -> Callable[[Any], None]:
        return lambda self: (closed.append(name), close(self))[1]

    from cai.train.ppo import reward_plan

    for kind in (reward_plan.ModelReward, reward_plan.FunctionReward):
        monkeypatch.setattr(kind, "close", noting(kind.__name__, kind.close))
    rewards = opened({"model": str(model)}, lengths(tmp_path))
    assert rewards.name == "model + reward"
    assert rewards.details["model"]["model"] == str(model)
    assert rewards.details["model"]["dtype"] == "float32"
    assert rewards.details["reward"] == {"function": f"{tmp_path}/rewards.py:reward"}
    rewards.close()
    rewards.close()
    assert closed == ["FunctionReward", "ModelReward"]
    with pytest.raises(AttributeError):
        rewards.score(PROMPTS, REPLIES)
