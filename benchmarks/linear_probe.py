"""What there is to learn in human labels, before a reward model is trained: two baselines that take minutes.

- Bag of words: logistic regression on which words and pairs of words stand in the one response and not in the other.
  It knows no language and has no model.
- Linear probe: logistic regression on the difference of two responses' hidden states, in a model that is not trained.
  A reward model that is trained from the same model on the same pairs should reach it.

The penalty of each is chosen by five-fold cross-validation on the training pairs alone. What is printed is the accuracy
on the first so many pairs by cross-validation, and that on the pairs after them with a 95% interval.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from common import positive, versions
from transformers import AutoModel

from cai.data.preference_source import PreferenceSource, read_preferences
from cai.data.training_rows import Preference
from cai.engines.transformers import choose_dtype
from cai.statistics import Floats, clustered_mean, longer_wins, percent
from cai.train.config import TrainConfig
from cai.train.encoding import Encoding
from cai.train.models import find_start

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
FOLDS = 5
RARE = 5
"""Words and pairs of words in fewer responses are left out."""
BATCH = 16


def fitted(differences: Floats, penalty: float) -> Floats:
    """Weights w that minimise mean ln(1 + exp(−w·x)) + penalty/2 · |w|², for x (n, d) of better less worse."""
    x = torch.as_tensor(differences, dtype=torch.float64)
    weights = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([weights], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        search.zero_grad()
        value = torch.nn.functional.softplus(-(x @ weights)).mean() + penalty * weights.square().sum() / 2
        value.backward()
        return value

    search.step(loss)
    return weights.detach().numpy()


def report(name: str, train: Floats, test: Floats, clusters: Sequence[str]) -> None:
    """Choose the penalty, fit, and print both accuracies."""
    folds = np.arange(len(train)) % FOLDS

    def validated(penalty: float) -> float:
        hits = [train[folds == fold] @ fitted(train[folds != fold], penalty) > 0 for fold in range(FOLDS)]
        return float(np.mean(np.concatenate(hits)))

    found = {penalty: validated(penalty) for penalty in PENALTIES}
    best = max(found, key=lambda penalty: found[penalty])
    hits = (test @ fitted(train, best) > 0).astype(float)
    accuracy = clustered_mean(hits, np.array(clusters), seed=0)
    print(f"{name}: {found[best]:.1%} by cross-validation, {percent(accuracy)} on new pairs (penalty {best:g})")


def bags(train: Sequence[Preference], test: Sequence[Preference]) -> tuple[Floats, Floats]:
    """Which words and pairs of words are in the better response and not in the worse one: 1, or −1 the other way."""

    def grams(text: str) -> set[object]:
        words = re.findall(r"[a-z']+", text.lower())
        return {*words, *pairwise(words)}

    counts = Counter(gram for row in train for text in (row.chosen, row.rejected) for gram in grams(text))
    vocabulary = {gram: place for place, gram in enumerate(gram for gram, count in counts.items() if count >= RARE)}

    def table(rows: Sequence[Preference]) -> Floats:
        found = np.zeros((len(rows), len(vocabulary)))
        for number, row in enumerate(rows):
            for text, sign in ((row.chosen, 1), (row.rejected, -1)):
                for gram in grams(text) & vocabulary.keys():
                    found[number, vocabulary[gram]] += sign
        return found

    return table(train), table(test)


def states(model: str | None, rows: Sequence[Preference], length: int) -> tuple[list[Preference], dict[str, Floats]]:
    """Rows that fit, and for some layers the difference of their responses' hidden states, (n, hidden size)."""
    start = find_start(TrainConfig(model=model, learning_rate=0.0, max_length=length), generates=False)
    encoding = Encoding(start.chat, start.max_length)
    pairs = [(row, pair) for row in rows if (pair := encoding.pair(row)) is not None]
    texts = [pair.prompt_ids + ids for _, pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = AutoModel.from_pretrained(start.weights.base, dtype=choose_dtype("auto", device)).to(device).eval()
    layers = {f"layer {layer}": layer for layer in (net.config.num_hidden_layers // 2, net.config.num_hidden_layers)}
    reads: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"mean": lambda h: h.mean(0), "last": lambda h: h[-1]}
    found = {f"{layer}, {read}": np.zeros((len(texts), net.config.hidden_size)) for layer in layers for read in reads}
    order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
    for begin in range(0, len(order), BATCH):
        batch = order[begin : begin + BATCH]
        ids = torch.zeros(len(batch), len(texts[batch[0]]), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, place in enumerate(batch):
            ids[row, : len(texts[place])] = torch.tensor(texts[place])
            mask[row, : len(texts[place])] = 1
        with torch.no_grad():
            hidden = net(ids.to(device), attention_mask=mask.to(device), output_hidden_states=True).hidden_states
        for name, layer in layers.items():
            for row, place in enumerate(batch):
                own = hidden[layer][row, : len(texts[place])].float()
                for read, of in reads.items():
                    found[f"{name}, {read}"][place] = of(own).cpu().numpy()
        print(f"\r{begin + len(batch)}/{len(texts)} texts", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return [row for row, _ in pairs], {name: values[::2] - values[1::2] for name, values in found.items()}


def main() -> None:
    """Read the pairs, and report both baselines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="pairs with human labels")
    parser.add_argument("--train", type=positive, default=1200, help="learn from the first so many; default: 1200")
    parser.add_argument("--model", help="directory or hub id; default: SmolLM2-135M-Instruct")
    parser.add_argument("--max-length", type=positive, default=384, help="longest conversation in tokens; default: 384")
    options = parser.parse_args()
    halves = (
        (PreferenceSource(path=options.data, limit=options.train),),
        (PreferenceSource(path=options.data, skip=options.train),),
    )
    rows = read_preferences(*halves, test_share=0, seed=0)
    print(f"{Path(options.data).name}: {len(rows.train)} pairs to learn from, {len(rows.test)} new ones; {versions()}")
    better, worse = (np.array([float(len(getattr(row, side))) for row in rows.test]) for side in ("chosen", "rejected"))
    clusters = np.array([row.prompt_id for row in rows.test])
    print(f"the longer one wins: {percent(clustered_mean(longer_wins(better, worse), clusters, seed=0))} on new pairs")
    report("bag of words", *bags(rows.train, rows.test), list(clusters))
    kept, found = states(options.model, [*rows.train, *rows.test], options.max_length)
    trained = {id(row) for row in rows.train}
    is_train = np.array([id(row) in trained for row in kept])
    new = [row.prompt_id for row in kept if id(row) not in trained]
    for name, values in found.items():
        scaled = values / (values[is_train].std(0) + 1e-6)
        report(f"linear probe, {name} of the tokens", scaled[is_train], scaled[~is_train], new)


if __name__ == "__main__":
    main()
