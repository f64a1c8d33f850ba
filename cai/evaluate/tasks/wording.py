"""What the wording of a reply shows without a judge. The phrase lists are those of the monitor.

They count a phrase wherever it stands, so they serve to compare models and say little by themselves.
"""

from cai.evaluate.records import Exchange
from cai.train.monitor.phrases import holds


def refuses(exchange: Exchange) -> float:
    """1 where the reply holds a phrase of refusal, else 0."""
    return float(holds("refusal", exchange.reply.text))


def hedges(exchange: Exchange) -> float:
    """1 where the reply holds a phrase of hedging, else 0."""
    return float(holds("hedging", exchange.reply.text))


def words(exchange: Exchange) -> float:
    """Number of words, as white space separates them."""
    return float(len(exchange.reply.text.split()))


def was_cut(exchange: Exchange) -> float:
    """1 where the reply was cut at `max_tokens`, else 0."""
    return float(exchange.reply.finish_reason == "length")
