"""Ratings of policies from comparisons (Bradley and Terry 1952): pure functions of numpy arrays.

P(i better than j) = 1 / (1 + exp(r_j - r_i)). Soft labels count as fractional wins: a comparison with probability p for
i is p of a win of i over j and 1 - p of a win of j over i. Ratings follow from wins alone: throughout, with k policies,
`wins[i, j]` is how often i won over j, shapes (…, k, k); ratings (…, k) are in nats with mean zero.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cai.statistics import Bools, Floats, Mean, resampled_sums

Codes = NDArray[np.int64]

ELO = 400 / math.log(10)
"""Elo points for each nat; METHOD.md A."""

MAX_ROUNDS = 200
_SHORT = 1e-6
"""In nats; after a step of Newton's that is this short, the error is about its square."""
_FLAT = 1e-12
"""Slope of the log-likelihood, by the number of comparisons, below which it is rounding."""
LONGEST_STEP = 3.0
"""In nats; where wins are nearly all on one side, Newton's own step leads too far."""
_EQUAL = 1e-12
"""Shares that differ by less are the same but for rounding."""
_LEAST_WEIGHT = 1e-4
"""Of the prior in a draw, so that no draw is without wins of one side. It is less than what decides the ends."""


@dataclass(frozen=True)
class Duels:
    """n comparisons of different policies, as arrays (n,)."""

    policies: tuple[str, ...]
    """All that are compared, by name; `first` and `second` are places in it."""
    first: Codes
    """The policy whose name comes first."""
    second: Codes
    p: Floats
    """Probability that the reply of `first` is the better one."""
    clusters: NDArray[Any]
    """Prompt of each comparison."""
    chars_first: Floats
    """Length of the reply of `first` in characters."""
    chars_second: Floats

    def only(self, taken: Bools | Codes) -> "Duels":
        """Those comparisons alone; the policies stay."""
        return Duels(
            self.policies,
            self.first[taken],
            self.second[taken],
            self.p[taken],
            self.clusters[taken],
            self.chars_first[taken],
            self.chars_second[taken],
        )

    def of(self, first: int, second: int) -> Bools:
        """Which comparisons are of these two, the first one's name first. Shape (n,)."""
        found: Bools = (self.first == first) & (self.second == second)
        return found


@dataclass(frozen=True)
class Ratings:
    """Ratings of the policies of one group, all of which are linked by comparisons."""

    places: tuple[int, ...]
    """Places of the group's k policies in `Duels.policies`."""
    values: Floats
    """In nats with mean zero. Shape (k,)."""
    draws: Floats
    """The same of bootstrap samples. Shape (draws, k); empty where there is only one prompt."""
    above: Bools
    """Whether i is better than j by any amount: j and what it won over, and so on, never won over i. Shape (k, k)."""
    measured: Bools
    """Whether the policy has comparisons on more than one prompt. Shape (k,)."""

    @property
    def unbeaten(self) -> list[int]:
        """Places in the group of policies that are better than others by any amount, and below none by any."""
        return [place for place, row in enumerate(self.above) if row.any() and not self.above[:, place].any()]

    def difference(self, first: int, second: int) -> Mean:
        """Rating of one less that of the other in Elo points, by their places in the group, with a 95% interval."""
        reached = bool(self.above[first, second]), bool(self.above[second, first])
        known = bool(self.measured[first] and self.measured[second])
        value = float(self.values[first] - self.values[second])
        return _elo(value, self.draws[:, first] - self.draws[:, second], *reached, known)

    def expected(self, first: int, second: int) -> float:
        """Probability that the one wins over the other, by their places in the group."""
        return float(sigmoid(self.values[first] - self.values[second]))

    def rating(self, place: int, baseline: int | None) -> Mean:
        """Rating in Elo points against that of `baseline`, or against the mean of the group, with a 95% interval."""
        if baseline is not None:
            return Mean(value=0, low=0, high=0) if place == baseline else self.difference(place, baseline)
        reached = bool(self.above[place].any()), bool(self.above[:, place].any())
        return _elo(float(self.values[place]), self.draws[:, place], *reached, bool(self.measured[place]))


def _elo(value: float, draws: Floats, above: bool, below: bool, known: bool) -> Mean:
    """An end is infinite where nothing bounds the value on that side."""
    if not (known and len(draws)):
        return Mean(value=ELO * value, low=-math.inf, high=math.inf)
    low, high = np.quantile(draws, (0.025, 0.975))
    return Mean(
        value=ELO * value, low=-math.inf if below else ELO * float(low), high=math.inf if above else ELO * float(high)
    )


def win_table(duels: Duels) -> Floats:
    """How often each policy won over each other one. Shape (k, k)."""
    k = len(duels.policies)
    wins: Floats = _cluster_wins(duels, np.zeros(len(duels.p), dtype=np.int64), 1).reshape(k, k)
    return wins


def linked_groups(wins: Floats) -> list[list[int]]:
    """The policies that chains of comparisons link; ratings of different groups cannot be compared."""
    linked = reachable(wins + wins.T)
    groups: dict[int, list[int]] = {}
    for place in range(len(wins)):
        groups.setdefault(int(np.flatnonzero(linked[place])[0]), []).append(place)
    return list(groups.values())


def reachable(wins: Floats) -> Bools:
    """Whether a chain of wins leads from i to j; each policy reaches itself. Shape (…, k, k)."""
    k = wins.shape[-1]
    found: Bools = (wins > 0) | np.eye(k, dtype=bool)
    for _ in range(k.bit_length()):  # each round doubles the length of the chains
        steps = found.astype(np.float64)
        found = steps @ steps > 0
    return found


def rate(duels: Duels, places: Sequence[int], *, seed: int) -> Ratings:
    """Rate the policies at `places`, which comparisons link, with a bootstrap that draws whole prompts.

    The likelihood has a maximum where each policy reaches each other one by a chain of wins (Ford 1957). Where one
    does not, a weak prior makes the values finite, and the interval is open to the side that nothing bounds. The prior
    is that of Jeffreys for a share: half a prompt won and half a prompt lost by each policy, spread over those that it
    was compared with. Bootstrap samples without a maximum have a random one, and so say how rare losses may be. One
    prompt tells nothing about others: then all is possible.
    """
    inside = duels.only(np.isin(duels.first, places))
    names, codes = np.unique(inside.clusters, return_inverse=True)
    k, every = len(places), len(duels.policies)
    by_cluster = _cluster_wins(inside, codes, len(names)).reshape(-1, every, every)[:, places][:, :, places]
    wins = by_cluster.sum(0)
    reach = reachable(wins)
    above = reach & ~reach.T
    prior = _prior(by_cluster)
    values = fit(wins + prior / 2 if above.any() else wins)
    met = np.stack([(by_cluster[:, i] + by_cluster[:, :, i]).sum(1) > 0 for i in range(k)])
    draws = np.concatenate(list(_draws(by_cluster, prior, seed))) if len(names) > 1 else np.empty((0, k))
    return Ratings(tuple(places), values, draws, above, met.sum(1) > 1)


def fit(wins: Floats) -> Floats:
    """The ratings of greatest likelihood, by Newton's method, for any number of tables at once.

    Raises:
        ArithmeticError: a table has no maximum, as some policies never lost to the others; or the method fails.
    """
    tables = np.asarray(wins, dtype=np.float64).reshape(-1, *wins.shape[-2:])
    k = tables.shape[-1]
    if not reachable(tables).all():
        raise ArithmeticError("some policies never lost to the others, so no ratings have the greatest likelihood")
    games = tables + tables.swapaxes(-1, -2)
    total = games.sum((-2, -1)) / 2
    ratings = np.zeros((len(tables), k))
    for _ in range(MAX_ROUNDS):
        expected = sigmoid(ratings[:, :, None] - ratings[:, None, :])
        slope = (tables - games * expected).sum(-1)
        weights = games * expected * expected.swapaxes(-1, -2)
        # Adding the same to all ratings changes nothing, so the first one stays where it is.
        curvature = (np.eye(k) * weights.sum(-1)[:, :, None] - weights)[:, 1:, 1:]
        step = np.linalg.solve(curvature, slope[:, 1:, None])[..., 0]
        length = np.abs(step).max(-1)
        ratings[:, 1:] += step * (LONGEST_STEP / np.maximum(length, LONGEST_STEP))[:, None]
        flat = np.abs(slope).max(-1) <= _FLAT * total
        if (flat | (length <= _SHORT)).all():
            centred: Floats = (ratings - ratings.mean(-1, keepdims=True)).reshape(wins.shape[:-1])
            return centred
    raise ArithmeticError(f"the ratings did not settle within {MAX_ROUNDS} rounds")


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), for any x."""
    found: Floats = 0.5 * (1 + np.tanh(x / 2))
    return found


def _cluster_wins(duels: Duels, codes: Codes, clusters: int) -> Floats:
    """Wins within each cluster. Shape (clusters, k * k)."""
    k = len(duels.policies)
    wins = np.zeros((clusters, k * k))
    np.add.at(wins, (codes, duels.first * k + duels.second), duels.p)
    np.add.at(wins, (codes, duels.second * k + duels.first), 1 - duels.p)
    return wins


def _prior(by_cluster: Floats) -> Floats:
    """Comparisons that the prior is worth, as wins of i over j and of j over i together. Shape (k, k), symmetric."""
    games = by_cluster + by_cluster.swapaxes(1, 2)
    prompts = (games > 0).sum(0)
    opponents = (prompts > 0).sum(1)
    a_prompt = games.sum(0) / np.maximum(prompts, 1)
    worth: Floats = a_prompt / np.maximum(np.maximum(opponents[:, None], opponents[None, :]), 1)
    return worth


def _draws(by_cluster: Floats, prior: Floats, seed: int) -> Iterator[Floats]:
    """Ratings of bootstrap samples, in pieces of shape (some, k).

    A pair of policies whose wins are in the same proportion on all prompts resamples to that. As in
    `statistics.clustered_mean`, such prompts are then taken as won or lost with that probability.
    """
    clusters, k, _ = by_cluster.shape
    random = np.random.default_rng([seed, 1])
    games = by_cluster + by_cluster.swapaxes(1, 2)
    filled = games > 0
    shares = np.where(filled, by_cluster / np.where(filled, games, 1), np.nan)
    prompts = filled.sum(0)
    a_prompt = games.sum(0) / np.maximum(prompts, 1)
    for sums in resampled_sums(by_cluster.reshape(clusters, k * k), seed=seed):
        wins = sums.reshape(-1, k, k).copy()
        for i, j in zip(*np.nonzero(np.triu(prompts)), strict=True):
            share = shares[filled[:, i, j], i, j]
            if np.ptp(share) < _EQUAL:
                drawn = wins[:, i, j] + wins[:, j, i]
                number = np.rint(drawn / a_prompt[i, j]).astype(np.int64)
                won = random.binomial(number, min(1.0, float(share[0])))
                wins[:, i, j] = drawn * won / np.maximum(number, 1)
                wins[:, j, i] = drawn * (number - won) / np.maximum(number, 1)
        open_ = np.flatnonzero(~reachable(wins).all((1, 2)))
        wins[open_] += _random_prior(prior, a_prompt, len(open_), random)
        yield fit(wins)


def _random_prior(prior: Floats, a_prompt: Floats, number: int, random: np.random.Generator) -> Floats:
    """Draws of the prior, in comparisons. Shape (number, k, k).

    All wins of a policy together are a gamma variable of shape 1/2 by the comparisons of a prompt, and so are all its
    losses: among n prompts won, the share of losses is then distributed as by Jeffreys' prior.
    """
    shape = np.divide(prior / 2, a_prompt, out=np.zeros_like(prior), where=a_prompt > 0)
    drawn = np.maximum(random.gamma(np.where(shape > 0, shape, 1), size=(number, *shape.shape)), _LEAST_WEIGHT)
    found: Floats = np.where(shape > 0, drawn * a_prompt, 0)
    return found
