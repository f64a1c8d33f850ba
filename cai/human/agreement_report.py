"""What raters and judges agree on: the whole report, from sources to figures. Intervals are of 95%."""

from collections.abc import Iterator, Sequence

import numpy as np

from cai import __version__
from cai.human.agreement import (
    Agreement,
    Coefficient,
    alpha_nominal,
    alpha_ordinal,
    category_counts,
    coefficient_of,
    coincidences,
    kappa,
    pair_tables,
    pooled,
    share_of,
    weighted_kappa,
)
from cai.human.agreement_sources import ComparisonSource, InputFile, JudgeSource, RatingSource
from cai.human.agreement_votes import SIDES, STEPS, RatingSet, VotePairs, Votes, join, pairs_of, votes_of
from cai.human.judge_agreement import JudgeAgreement, judge_agreement
from cai.human.rater_statistics import MIN_COMMON, RaterFigures, rater_figures
from cai.human.reading_time import RULE
from cai.records import Record
from cai.statistics import Bools, Floats

NO_PAIR = "no comparison has the votes of two raters"
NO_SLIGHT = "no vote is slight, so the four steps are the two sides"
TOO_FEW_COMMON = f"no two raters have {MIN_COMMON} votes on the same comparisons"


class RatingCounts(Record):
    """What was rated. A vote is a rating that prefers a response."""

    comparisons: int
    """With a rating."""
    voted: int
    """With a vote."""
    overlap: int
    """With ratings of two raters or more."""
    compared: int
    """With votes of two raters or more; agreement is measured on these."""
    prompts: int
    """Different prompts among all rated comparisons; these are the clusters."""
    unknown_prompts: int
    """Comparisons whose text is not known; each counts as a prompt of its own."""
    raters: int
    ratings: int
    votes: int
    slight: int
    clear: int
    both_bad: int
    skipped: int
    checks: int
    """Answers to attention checks; they are in no figure of agreement."""
    checks_failed: int
    duplicates: int
    """Ratings that stood in several sources and count once."""
    repeated: int
    """Ratings that their rater replaced by a later one; they do not count."""


class HumanAgreement(Record):
    """How well raters agree. Cases of all but α are pairs of votes on a comparison; those of α are comparisons."""

    sides: Agreement
    """Share of pairs that prefer the same response, slightly or clearly."""
    steps: Agreement
    """Share of pairs with the very same answer of the four steps."""
    kappa: Agreement
    """Cohen's κ of sides, pooled over the pairs of raters in `AgreementReport.pairs` (De Vries et al. 2008)."""
    weighted_kappa: Agreement
    """Cohen's κ of steps with linear weights, pooled likewise."""
    alpha_sides: Agreement
    """Krippendorff's α, nominal."""
    alpha_steps: Agreement
    """Krippendorff's α, ordinal."""


class RaterPair(Record):
    """Two raters with at least `MIN_COMMON` votes on the same comparisons."""

    first: str
    second: str
    common: int
    sides: Agreement
    kappa: Agreement
    weighted_kappa: Agreement


class TopicAgreement(Record):
    """Raters on the comparisons of one topic."""

    topic: str
    comparisons: int
    """With a vote."""
    sides: Agreement
    alpha_sides: Agreement


class AgreementReport(Record):
    """What `cai agreement` found. A figure that cannot be given is null, with its reason."""

    cai_version: str = __version__
    seed: int
    """Of the bootstraps."""
    inputs: tuple[InputFile, ...]
    counts: RatingCounts
    people: HumanAgreement
    pairs: tuple[RaterPair, ...]
    raters: tuple[RaterFigures, ...]
    topics: tuple[TopicAgreement, ...]
    """By topic of the prompt, where prompts have one."""
    judges: tuple[JudgeAgreement, ...]
    time_rule: str = RULE
    notes: tuple[str, ...]
    """What the figures do not say of themselves, one sentence each."""


def measure(
    sources: Sequence[RatingSource],
    judges: Sequence[JudgeSource] = (),
    comparisons: Sequence[ComparisonSource] = (),
    *,
    seed: int = 0,
) -> AgreementReport:
    """Measure the agreement of raters with one another and with judges.

    Comparisons are known from the sources, from `comparisons` and from the judges' labels, in this order; a judge's
    that differ are counted, and do not count.

    Raises:
        DataError: two comparisons of the same id are not the same.
    """
    given: tuple[RatingSource | ComparisonSource, ...] = (*sources, *comparisons)
    known = [(found.file.path, comparison) for found in given for comparison in found.comparisons]
    ids = {comparison.id for _, comparison in known}
    for judge in judges:
        new = [comparison for id, (comparison, _) in judge.verdicts.items() if id not in ids]
        known += [(judge.file.path, comparison) for comparison in new]
        ids |= {comparison.id for comparison in new}
    ratings = join([(source.file.path, source.ratings) for source in sources], known)
    votes = votes_of(ratings)
    pairs = pairs_of(votes)
    counts = _counts(ratings, votes)
    set_names = [source.set_name for source in sources] + [source.file.path for source in comparisons]
    return AgreementReport(
        seed=seed,
        inputs=(*(found.file for found in given), *(judge.file for judge in judges)),
        counts=counts,
        people=_human_agreement(votes, pairs, seed),
        pairs=_rater_pairs(votes, pairs, seed),
        raters=rater_figures(ratings, votes, pairs, seed=seed),
        topics=_topics(ratings, votes, pairs, seed),
        judges=tuple(judge_agreement(judge, ratings, votes, set_names=set_names, seed=seed) for judge in judges),
        notes=tuple(_notes(counts, ratings, comparisons, judges)),
    )


def _counts(ratings: RatingSet, votes: Votes) -> RatingCounts:
    answers = [rating.answer for rating in ratings.ratings]
    raters_of = np.unique([rating.comparison_id for rating in ratings.ratings], return_counts=True)
    slight = sum(answer.startswith("rather") for answer in answers)
    return RatingCounts(
        comparisons=len(raters_of[0]),
        voted=len(votes.ids),
        overlap=int((raters_of[1] > 1).sum()),
        compared=int((votes.side_counts.sum(1) > 1).sum()),
        prompts=len({ratings.cluster(str(id)) for id in raters_of[0]}),
        unknown_prompts=sum(str(id) not in ratings.comparisons for id in raters_of[0]),
        raters=len(votes.names),
        ratings=len(answers),
        votes=len(votes.steps),
        slight=slight,
        clear=len(votes.steps) - slight,
        both_bad=answers.count("both_bad"),
        skipped=answers.count("skipped"),
        checks=len(ratings.checks),
        checks_failed=sum(rating.fails_check for rating in ratings.checks),
        duplicates=ratings.duplicates,
        repeated=ratings.repeated,
    )


def _human_agreement(votes: Votes, pairs: VotePairs, seed: int) -> HumanAgreement:
    clusters = votes.clusters[pairs.units]
    no_steps = len(pairs.units) > 0 and not np.isin(votes.steps, (1, 2)).any()
    unclear = Agreement(mean=None, cases=len(pairs.units), reason=NO_SLIGHT)
    return HumanAgreement(
        sides=share_of(pairs.same_side, clusters, seed=seed, nothing=NO_PAIR),
        steps=unclear if no_steps else share_of(pairs.same_step, clusters, seed=seed, nothing=NO_PAIR),
        kappa=_pooled_kappa(votes, pairs, SIDES, kappa, seed),
        weighted_kappa=unclear if no_steps else _pooled_kappa(votes, pairs, STEPS, weighted_kappa, seed),
        alpha_sides=_alpha(votes, np.ones(len(votes.ids), dtype=np.bool_), SIDES, seed),
        alpha_steps=unclear if no_steps else _alpha(votes, np.ones(len(votes.ids), dtype=np.bool_), STEPS, seed),
    )


def _alpha(votes: Votes, kept: Bools, categories: int, seed: int) -> Agreement:
    """Krippendorff's α over the units that are `kept` and have two votes or more."""
    answers = votes.sides if categories == SIDES else votes.steps
    counts = category_counts(votes.units, answers, (len(votes.ids), categories))
    used = kept & (counts.sum(1) > 1)
    coefficient = alpha_nominal if categories == SIDES else alpha_ordinal
    return coefficient_of(coincidences(counts[used]), votes.clusters[used], coefficient, seed=seed, nothing=NO_PAIR)


def _common(pairs: VotePairs) -> dict[tuple[int, int], Bools]:
    """The pairs of votes of each two raters that have enough of them."""
    both, numbers = np.unique(np.stack([pairs.first, pairs.second], 1), axis=0, return_counts=True)
    return {
        (int(first), int(second)): (pairs.first == first) & (pairs.second == second)
        for (first, second), number in zip(both, numbers, strict=True)
        if number >= MIN_COMMON
    }


def _pooled_kappa(votes: Votes, pairs: VotePairs, categories: int, coefficient: Coefficient, seed: int) -> Agreement:
    common = _common(pairs)
    if not common:
        reason = TOO_FEW_COMMON if len(pairs.units) else NO_PAIR
        return Agreement(mean=None, cases=0, reason=reason)
    step = STEPS // categories
    prompts, codes = np.unique(votes.clusters[pairs.units], return_inverse=True)
    tables: Floats = np.zeros((len(prompts), len(common), categories, categories))
    for place, taken in enumerate(common.values()):
        x, y = pairs.first_steps[taken] // step, pairs.second_steps[taken] // step
        np.add.at(tables, (codes[taken], np.full(len(x), place), x, y), 1)
    filled = tables.any((1, 2, 3))
    cases = int(tables.sum())
    return coefficient_of(tables[filled], prompts[filled], pooled(coefficient), seed=seed, cases=cases)


def _rater_pairs(votes: Votes, pairs: VotePairs, seed: int) -> tuple[RaterPair, ...]:
    found = []
    for (first, second), taken in _common(pairs).items():
        clusters = votes.clusters[pairs.units[taken]]
        x, y = pairs.first_steps[taken], pairs.second_steps[taken]
        no_steps = not np.isin((x, y), (1, 2)).any()
        unclear = Agreement(mean=None, cases=len(x), reason=NO_SLIGHT)
        found.append(
            RaterPair(
                first=votes.names[first],
                second=votes.names[second],
                common=len(x),
                sides=share_of(pairs.same_side[taken], clusters, seed=seed),
                kappa=coefficient_of(pair_tables(x // 2, y // 2, SIDES), clusters, kappa, seed=seed),
                weighted_kappa=unclear
                if no_steps
                else coefficient_of(pair_tables(x, y, STEPS), clusters, weighted_kappa, seed=seed),
            )
        )
    return tuple(found)


def _topics(ratings: RatingSet, votes: Votes, pairs: VotePairs, seed: int) -> tuple[TopicAgreement, ...]:
    known = (ratings.comparisons.get(id) for id in votes.ids)
    topics = np.array([None if shown is None else shown.prompt.topic for shown in known], dtype=object)
    found = []
    for topic in sorted({topic for topic in topics if topic is not None}):
        kept: Bools = topics == topic
        inside = kept[pairs.units]
        found.append(
            TopicAgreement(
                topic=topic,
                comparisons=int(kept.sum()),
                sides=share_of(
                    pairs.same_side[inside], votes.clusters[pairs.units[inside]], seed=seed, nothing=NO_PAIR
                ),
                alpha_sides=_alpha(votes, kept, SIDES, seed),
            )
        )
    return tuple(found)


def _notes(
    counts: RatingCounts,
    ratings: RatingSet,
    comparisons: Sequence[ComparisonSource],
    judges: Sequence[JudgeSource],
) -> Iterator[str]:
    if counts.unknown_prompts:
        yield (
            f"The texts of {counts.unknown_prompts} of {counts.comparisons} comparisons are not known, so each of them "
            "is taken for a prompt of its own and intervals may be too narrow; name their source with --comparisons."
        )
    if counts.raters == 1:
        yield "There is one rater, so nothing can be said of agreement between raters."
    elif not counts.compared:
        yield "No comparison has the votes of two raters, so nothing can be said of agreement between raters."
    if ratings.renamed:
        yield (
            f"These names stand in several sources without a rating in common, so they are taken for different raters "
            f"and told apart by the source: {', '.join(ratings.renamed)}."
        )
    if counts.duplicates:
        yield f"Ratings that stand in more than one place and count once: {counts.duplicates}."
    if counts.repeated:
        yield f"Ratings that do not count, as their rater gave a later one of the same comparison: {counts.repeated}."
    for source in comparisons:
        if source.rejects:
            reasons = ", ".join(f"{number} {reason}" for reason, number in source.rejects.items())
            yield f"Of {source.file.path}, {sum(source.rejects.values())} rows cannot be used ({reasons})."
    for judge in judges:
        if judge.note is not None:
            yield judge.note
        if judge.tags is None:
            yield f"No constitution lies beside {judge.file.path}, so its labels cannot be told apart by tag."
