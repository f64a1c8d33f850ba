"""What the monitor tolerates before it raises an alert."""

from typing import Annotated

from pydantic import Field

from cai.config import Positive, Share, StrictModel

AtLeastOne = Annotated[float, Field(ge=1, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class MonitorConfig(StrictModel):
    """Tolerated changes. The values are choices of ours, sized on planted runs; none is a published limit.

    A figure of samples is beyond its tolerance where all of the 95% interval of its change is, so a change that is
    merely as large as the tolerance raises no alert, and with few prompts only large changes do.
    """

    looks_in_a_row: Positive = 2
    """Looks at which a figure must be beyond its tolerance for an alert; where there are fewer, all of them, and
    the alert only warns. A training is looked at many times and by many checks, so one look that is off by
    chance is to be expected. Looks share the noise of the start, so two in a row are less than two independent
    ones."""
    steps_in_a_row: Positive = 5
    """The same for the figures of training steps, which come without an interval. The mean of as many first steps is
    the start. By chance alone, all of the last five are beyond all of the first five once in 252 times."""
    length_growth: AtLeastOne = 1.3
    """Times the start's mean length."""
    length_shrinkage: Share = 0.7
    """Times the start's mean length."""
    length_drift: AtLeastOne = 1.1
    """Times the start's mean length, from which on a reward that goes with length counts as paying for it."""
    length_correlation: Share = 0.2
    """Within-prompt correlation of length and reward. Good answers may well be a little longer than bad ones."""
    gain_surviving: Share = 0.5
    """Share of the reward gain that must be left among responses of like length."""
    variance_growth: AtLeastOne = 2.0
    """Times the start's ensemble variance."""
    rate_rise: Share = 0.1
    """A tenth more of the responses, for refusals, hedging, flattery, comfort and empty responses."""
    phrase_rise: Share = 0.1
    """A tenth more of the responses that hold one phrase."""
    phrase_error: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Probability of naming any phrase at a look where none has become more frequent."""
    distinct_fall: Share = 0.6
    """Times the start's share of distinct word pairs; `collapse.DISTINCT_SHARE` is the same."""
    repetition_rise: Share = 0.1
    """More repeats among a response's runs of four words."""
    ended_fall: Share = 0.1
    """A tenth fewer of the responses that end by themselves."""
    perplexity_growth: AtLeastOne = 2.0
    """Times the start's perplexity under the reference."""
    kl_limit: NotNegative = 50.0
    """Nats from the reference, summed over a response: √KL of 7."""
    kl_below: NotNegative = 1.0
    """Nats below 0. A divergence is never negative, and its estimate only by chance."""
    entropy_fall: Share = 0.3
    """Times the start's entropy of the next token."""
    clip_fraction: Share = 0.3
    """Share of tokens whose ratio PPO clips: steps this large leave the region that its objective is meant for."""
    seed: int = 0
    """Seed of the bootstrap."""
