"""How comparisons are judged: the options of a judge, and what they need."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from cai.config import Positive, Share, StrictModel
from cai.constitution import Constitution, Part, Principle
from cai.engines import EngineInfo
from cai.errors import ConfigError
from cai.feedback.prompts import Layout
from cai.records import JudgeProtocol

COT_CLAMP = (0.4, 0.6)
"""Bai et al. 2022, section 4.1: after reasoning, probabilities are near 0 or 1 whatever the case."""
PARTS: Mapping[JudgeProtocol, Part] = {
    "pairwise": "comparison",
    "pointwise": "question",
    "score": "question",
    "likelihood": "question",
}
"""Which part of a principle each protocol uses."""


def _one_or_several(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class JudgeConfig(StrictModel):
    """How comparisons are judged."""

    protocol: Annotated[tuple[JudgeProtocol, ...], BeforeValidator(_one_or_several)] = ("pairwise",)
    """One of `pairwise`, `pointwise`, `score`, `likelihood`, or several, which are averaged."""
    layout: Layout = "principle-last"
    """Of a pairwise request: `principle-last` lets all principles share what is read before, `paper` is the paper's."""
    principles: Positive | Literal["all"] = 1
    """How many principles are drawn for each comparison: 1 as in the paper, more, or all (its ensemble)."""
    tags: tuple[str, ...] = ()
    """Draw only principles that have one of these tags."""
    few_shot: Annotated[int, Field(ge=0)] | None = None
    """Worked examples before each request. Default: all of the constitution; the paper has 5, or 6 with reasoning."""
    cot: bool = False
    """Have the judge reason before it answers (chain of thought), in two calls."""
    cot_tokens: Positive = 512
    """Longest reasoning in tokens."""
    clamp: tuple[Share, Share] | None = None
    """Bounds of each judgement's probability before they are averaged. Default: 0.4 and 0.6 with `cot`, else none."""
    content_free: bool = False
    """Take from the log-odds of A what they are where there is nothing to compare (Zhao et al. 2021, arXiv
    2102.09690)."""
    per_token: bool = False
    """Divide log-likelihoods by the length of the response in tokens."""
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """What all log-odds are multiplied by; `cai judge-check` prints the one that suits its labels best."""
    min_option_mass: Share = 0.1
    """A judgement fails when the options together have a smaller probability."""
    sample_verdicts: Positive | None = None
    """For servers without log-probabilities: write so many verdicts at temperature 1 and take their shares."""

    @model_validator(mode="after")
    def _checked(self) -> Self:
        wrong = []
        if not self.protocol or len(set(self.protocol)) < len(self.protocol):
            wrong.append("`protocol` names at least one protocol, and each once")
        needs: Mapping[str, frozenset[str]] = {
            "layout": frozenset({"pairwise"}),
            "content_free": frozenset({"pairwise"}),
            "per_token": frozenset({"likelihood"}),
            "cot": frozenset({"pairwise", "pointwise", "score"}),
            "sample_verdicts": frozenset({"pairwise", "pointwise", "score"}),
            "min_option_mass": frozenset({"pairwise", "pointwise", "score"}),
            "few_shot": frozenset({"pairwise", "pointwise"}),
        }
        wrong += [
            f"`{name}` has no effect with the protocol {', '.join(self.protocol)}; leave it out"
            for name, protocols in needs.items()
            if name in self.changed and protocols.isdisjoint(self.protocol)
        ]
        if self.sample_verdicts is not None and "likelihood" in self.protocol:
            wrong.append("the protocol likelihood reads log-probabilities, which `sample_verdicts` does without")
        for name, given in (("sample_verdicts", self.sample_verdicts is not None), ("content_free", self.content_free)):
            if given and self.cot:
                wrong.append(f"`{name}` is for answers at once; leave out `cot`")
        if self.few_shot is not None and self.cot and "pointwise" in self.protocol and "pairwise" not in self.protocol:
            wrong.append("`few_shot` has no effect with `cot`, whose worked examples are pairwise; leave it out")
        if "cot_tokens" in self.changed and not self.cot:
            wrong.append("`cot_tokens` has no effect without `cot`; leave it out")
        if self.clamp is not None and not self.clamp[0] <= 0.5 <= self.clamp[1]:
            wrong.append("`clamp` must enclose 0.5")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """Lower and upper bound of a judgement's probability in the average."""
        return self.clamp or (COT_CLAMP if self.cot else (0.0, 1.0))


def check_constitution(config: JudgeConfig, constitution: Constitution) -> None:
    """Check that enough principles serve every protocol.

    Raises:
        ConstitutionError: they do not.
    """
    for part in sorted({PARTS[protocol] for protocol in config.protocol}):
        if config.principles == "all":
            constitution.select(part, config.tags)
        else:
            constitution.sample(part, config.principles, tags=config.tags)


def principle_weights(config: JudgeConfig, asked: Sequence[Principle]) -> list[float]:
    """What each principle that a comparison is judged by weighs in the mean; drawn ones weigh the same. Sums to 1."""
    weights = [principle.weight if config.principles == "all" else 1.0 for principle in asked]
    return [weight / sum(weights) for weight in weights]


def check_engine(config: JudgeConfig, info: EngineInfo) -> None:
    """Check that the engine offers what every protocol needs.

    Raises:
        ConfigError: it does not.
    """
    if "likelihood" in config.protocol and not info.reply_logprob:
        raise ConfigError(
            f"the protocol likelihood needs the log-probability of a given reply, which the engine `{info.engine}` "
            "does not offer; use the engine transformers or vllm, or another protocol"
        )
    if config.sample_verdicts is None and config.protocol != ("likelihood",) and not info.choice_logprobs:
        raise ConfigError(
            f"the engine `{info.engine}` offers no log-probabilities; set `sample_verdicts` (--sample-verdicts N)"
        )
