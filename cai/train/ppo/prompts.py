"""The order in which a policy meets its prompts."""

from random import Random

from cai.records import stable_seed


class PromptOrder:
    """Which of n prompts each batch has: all of them once, in an order of their own, before any comes again.

    It follows from seed and batch alone, so that a run that goes on meets the same prompts.
    """

    def __init__(self, prompts: int, batch_size: int, seed: int) -> None:
        """Take the number of prompts and that of a batch."""
        self._prompts = prompts
        self._batch_size = batch_size
        self._seed = seed

    def rows(self, batch: int) -> list[int]:
        """Indices of the prompts of a batch, counted from 0."""
        begin = batch * self._batch_size
        places = range(begin, begin + self._batch_size)
        orders = {round: self._order(round) for round in {place // self._prompts for place in places}}
        return [orders[place // self._prompts][place % self._prompts] for place in places]

    def _order(self, round: int) -> list[int]:
        order = list(range(self._prompts))
        Random(stable_seed(self._seed, "prompts", round)).shuffle(order)
        return order
