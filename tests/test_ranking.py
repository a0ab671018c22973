"""Rankings against known truth, and what must hold for any evidence."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import choix
import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from community.bench.ranking import Trial, coverage, simulate, small_tasks
from community.errors import CommunityError
from community.evidence import Evidence
from community.ranking import METHODS, Fit, pairings, rank
from community.types import WORLD, Idea, Ranked, Ranking, Verdict

ONE_AUTHOR = "author"


def idea(author: str, answer: str, task: str = "t", sample: int = 0, turn: int = 0) -> Idea:
    return Idea(task, author, "c", 1, turn, sample, f"it is {answer}", answer)


def items(n: int, task: str = "t") -> list[Idea]:
    """n different answers of one author, which alone say nothing about their order."""
    return [idea(ONE_AUTHOR, f"{i:04}", task, sample=i) for i in range(n)]


def beats(judge: str, a: Idea, b: Idea, score: float = 1.0, confidence: float = 1.0) -> Verdict:
    return Verdict(1, a.task, judge, a.id, score, confidence, other=b.id)


def says(judge: str, a: Idea, score: float) -> Verdict:
    return Verdict(1, a.task, judge, a.id, score)


def entry(ranking: Ranking, of: Idea) -> Ranked:
    return next(e for e in ranking.entries if e.idea == of.id)


@st.composite
def deliberations(draw: st.DrawFn) -> tuple[list[Idea], list[Verdict]]:
    """A few tasks, members that answer in one or two turns, fail or not, and any verdicts."""
    ideas, verdicts = [], []
    for t in range(draw(st.integers(1, 3))):
        mine = []
        for m in range(draw(st.integers(1, 4))):
            for sample in range(draw(st.integers(1, 2))):
                answer = draw(st.sampled_from(["a", "b", "c", ""]))
                turn = draw(st.integers(0, 1))
                failure = "broke" if draw(st.integers(0, 9)) == 0 else ""
                one = idea(f"m{m}", answer, f"t{t}", sample, turn)
                mine.append(replace(one, failure=failure))
        pick, score = st.sampled_from(mine), st.sampled_from([0.0, 0.5, 1.0])
        for judge in draw(st.lists(st.sampled_from(["m0", "m1", "j"]), max_size=6)):
            a, b = draw(pick), draw(pick)
            if a.id != b.id:
                verdicts.append(beats(judge, a, b, draw(score), draw(st.sampled_from([0.3, 1.0]))))
        for judge in draw(st.lists(st.sampled_from(["scorer", WORLD]), max_size=3)):
            a = draw(pick)
            verdicts.append(says(judge, a, float(a.answer == "a") if judge == WORLD else 0.7))
        ideas += mine
    return ideas, verdicts


@given(k=st.integers(1, 25), budget=st.integers(0, 320), seed=st.integers(0, 99))
def test_pairings_connect_the_items_at_every_budget(k: int, budget: int, seed: int) -> None:
    pairs = pairings(items(k), random.Random(seed), budget)
    graph = nx.Graph([(a.answer, b.answer) for a, b in pairs])
    graph.add_nodes_from(i.answer for i in items(k))
    assert nx.is_connected(graph)
    assert not any(a.answer == b.answer for a, b in pairs)
    assert len(pairs) == graph.number_of_edges() == max(k - 1, min(budget, k * (k - 1) // 2))


def test_pairings_leave_out_what_has_no_answer_and_pair_equal_answers_once() -> None:
    ideas = [idea("m0", "x"), idea("m1", "x"), idea("m2", "y"), idea("m3", "")]
    ideas += [replace(idea("m4", "z"), failure="broke"), idea("m0", "alone", task="u")]
    pairs = pairings(ideas, random.Random(1), 100)
    assert [{a.author, b.author} for a, b in pairs] == [{"m0", "m2"}]
    assert pairings(ideas[::-1], random.Random(1), 100) == pairs
    assert pairings([], random.Random(1), 3) == []


def test_pairings_of_a_thousand_items() -> None:
    pairs = pairings(items(1000), random.Random(0), 50_000)
    assert len({frozenset((a.answer, b.answer)) for a, b in pairs}) == 50_000


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None, max_examples=40)
@given(case=deliberations(), seed=st.integers(0, 99))
def test_order_of_arguments_does_not_matter_and_every_idea_has_its_place(
    method: str, case: tuple[list[Idea], list[Verdict]], seed: int
) -> None:
    ideas, verdicts = case
    ranking = rank(ideas, verdicts, method)
    rng = random.Random(seed)
    shuffled = rng.sample(ideas, len(ideas)), rng.sample(verdicts, len(verdicts))
    assert rank(*shuffled, method) == ranking
    assert sorted(e.idea for e in ranking.entries) == sorted({i.id for i in ideas})
    for task in {i.task for i in ideas}:
        mine = [e for e in ranking.entries if e.task == task]
        assert [e.place for e in mine] == list(range(1, len(mine) + 1))
        assert all(e.low <= e.strength <= e.high and 0 <= e.confidence <= 1 for e in mine)
        answered = [e.component >= 0 for e in mine]
        assert answered == sorted(answered, reverse=True)  # without an answer: last


@settings(deadline=None, max_examples=40)
@given(case=deliberations(), names=st.permutations(["m0", "m1", "m2", "m3", "j", "scorer"]))
def test_names_of_judges_do_not_matter(
    case: tuple[list[Idea], list[Verdict]], names: list[str]
) -> None:
    new = dict(zip(["m0", "m1", "m2", "m3", "j", "scorer"], names, strict=True)) | {WORLD: WORLD}
    ideas, verdicts = case
    renamed = [replace(i, author=new[i.author]) for i in ideas]
    ids = {old.id: young.id for old, young in zip(ideas, renamed, strict=True)}
    recast = [
        replace(v, judge=new[v.judge], idea=ids[v.idea], other=ids.get(v.other, ""))
        for v in verdicts
    ]
    before, after = rank(ideas, verdicts), rank(renamed, recast)
    strength = {e.idea: e.strength for e in after.entries}
    for e in before.entries:
        assert strength[ids[e.idea]] == pytest.approx(e.strength, abs=0.02)
    for name, r in before.reliability.items():
        assert after.reliability[new[name]] == pytest.approx(r, abs=0.02)


@settings(deadline=None, max_examples=40)
@given(
    wins=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=12),
    pair=st.permutations(range(4)),
)
def test_more_evidence_for_one_over_another_widens_the_gap(
    wins: list[tuple[int, int]], pair: list[int]
) -> None:
    four = items(4)
    verdicts = [beats(f"j{n}", four[a], four[b]) for n, (a, b) in enumerate(wins) if a != b]
    more = [beats(f"new{n}", four[pair[0]], four[pair[1]]) for n in range(3)]

    def gap(verdicts: list[Verdict]) -> float:
        ranking = rank(four, verdicts)
        return entry(ranking, four[pair[0]]).strength - entry(ranking, four[pair[1]]).strength

    assert gap(verdicts + more) > gap(verdicts)


def test_disconnected_comparisons_are_reported() -> None:
    a, b, c, d = items(4)
    apart = rank([a, b, c, d, *items(2, "u")], [beats("j", a, b), beats("j", c, d)])
    assert apart.disconnected == 2  # nobody compared the items of task u at all
    assert [entry(apart, i).component for i in (a, b, c, d)] == [0, 0, 1, 1]
    assert [entry(apart, i).comparisons for i in (a, b, c, d)] == [1, 1, 1, 1]
    joined = rank([a, b, c, d], [beats("j", a, b), beats("j", c, d), beats("k", b, c)])
    assert joined.disconnected == 0
    assert {e.component for e in joined.entries} == {0}


def test_authors_answers_are_comparisons_too() -> None:
    ideas = [idea("m0", "x"), idea("m1", "x"), idea("m2", "y")]
    ranking = rank(ideas, [])
    assert ranking.disconnected == 0
    assert entry(ranking, ideas[0]).comparisons == 3
    assert [e.idea for e in ranking.entries][2] == ideas[2].id
    assert entry(ranking, ideas[0]).supporters == 2


def mixed() -> Trial:
    return simulate(200, 10_000, np.linspace(0.2, 1, 20).tolist())


def test_order_is_nearer_the_truth_than_that_of_choix() -> None:
    trial = mixed()
    ours = trial.strengths(rank(trial.ideas, trial.verdicts))[0]
    for theirs in (choix.lsr_pairwise, choix.ilsr_pairwise):
        assert trial.tau(ours) > trial.tau(theirs(200, trial.wins(), alpha=0.01))


def test_unweighted_is_choix() -> None:
    trial = mixed()
    ours = trial.strengths(rank(trial.ideas, trial.verdicts, "unweighted"))[0]
    theirs = choix.opt_pairwise(
        200, trial.wins(), alpha=0.05
    )  # half our precision, as it has no 1/2
    assert np.abs(ours - theirs).max() < 0.01


def test_hostile_judges_are_found_out() -> None:
    trial = simulate(200, 10_000, [1.0] * 14 + [-1.0] * 6, seed=3)
    weighted, plain = (
        rank(trial.ideas, trial.verdicts, m) for m in ("bradley-terry", "unweighted")
    )
    gain = trial.tau(trial.strengths(weighted)[0]) - trial.tau(trial.strengths(plain)[0])
    assert gain > 0.1
    assert all(weighted.reliability[f"judge-{j}"] > 0.7 for j in range(14))
    assert all(weighted.reliability[f"judge-{j}"] < -0.7 for j in range(14, 20))


@pytest.mark.parametrize("reliability", [[1.0] * 20, [1.0] * 14 + [-1.0] * 6])
def test_intervals_hold_the_truth_as_often_as_they_say(reliability: list[float]) -> None:
    held = [coverage(simulate(200, 10_000, reliability, seed)) for seed in range(4)]
    assert 0.92 < np.mean(held) < 0.98


def test_reliability_finds_the_good_member_among_weak_ones() -> None:
    ideas, verdicts = small_tasks(300)
    answer = {i.id: i.answer for i in ideas}
    right = {
        method: np.mean(
            [answer[e.idea] == "0" for e in rank(ideas, verdicts, method).winners().values()]
        )
        for method in METHODS
    }
    assert right["bradley-terry"] > max(right["majority"], right["unweighted"], right["elo"]) + 0.04
    trust = rank(ideas, verdicts).reliability
    assert trust["m3"] > trust["m2"] > trust["m1"] > trust["m0"]


def test_two_who_always_disagree_are_trusted_alike() -> None:
    ideas = [idea(m, f"{m}'s", f"t{t}") for t in range(100) for m in ("m0", "m1")]
    verdicts = [
        beats(judge, a, b, float(judge == a.author), confidence)
        for a, b in zip(ideas[::2], ideas[1::2], strict=True)
        for judge, confidence in (("m0", 0.9), ("m1", 0.6))
    ]
    trust = rank(ideas, verdicts).reliability
    assert trust["m0"] == pytest.approx(trust["m1"], abs=0.1)
    told = rank(ideas, verdicts, trust={"m0": 0.1, "m1": 0.9}).reliability
    assert told["m0"] < 0.3 < 0.8 < told["m1"]


def test_the_world_has_the_last_word_and_measures_the_judges() -> None:
    """Three members give one wrong answer everywhere; the world looks at every fourth task."""
    ideas, verdicts = [], []
    for t in range(40):
        wrong = [idea(f"m{m}", "wrong", f"t{t}") for m in range(3)]
        right = idea("m3", "right", f"t{t}")
        ideas += [*wrong, right]
        if t % 4 == 0:
            verdicts += [says(WORLD, i, float(i is right)) for i in (*wrong, right)]
    ranking = rank(ideas, verdicts)
    answer = {i.id: i.answer for i in ideas}
    assert {answer[e.idea] for e in ranking.winners().values()} == {"right"}
    assert ranking.reliability["m3"] > 0.8 > 0.4 > ranking.reliability["m0"]
    assert WORLD not in ranking.reliability
    checked = [e for e in ranking.entries if e.task == "t0"]
    assert [e.confidence for e in checked] == [1.0, 0.0, 0.0, 0.0]
    without = rank(ideas, [])
    assert {answer[e.idea] for e in without.winners().values()} == {"wrong"}


@pytest.mark.parametrize("method", METHODS)
def test_right_answers_come_before_unchecked_and_these_before_wrong(method: str) -> None:
    right, unchecked, wrong = items(3)
    crowd = [beats(f"j{n}", wrong, other) for n in range(20) for other in (right, unchecked)]
    ranking = rank(
        [right, unchecked, wrong], [*crowd, says(WORLD, right, 1), says(WORLD, wrong, 0)], method
    )
    assert [e.idea for e in ranking.entries] == [right.id, unchecked.id, wrong.id]


def test_unanimous_members_are_measured_by_the_world() -> None:
    ideas = [idea(m, "same", f"t{t}") for t in range(20) for m in ("m0", "m1")]
    believed = rank(ideas, []).reliability
    refuted = rank(ideas, [says(WORLD, i, 0.0) for i in ideas]).reliability
    assert believed["m0"] > 0.95 and refuted["m0"] < 0.25


def test_confidence_is_the_trust_weighted_share_of_votes() -> None:
    ideas = [idea("m0", "x"), idea("m1", "x"), idea("m2", "y"), idea("m3", "")]
    verdicts = [beats("j", ideas[2], ideas[0])]
    ranking = rank(ideas, verdicts, trust={"m0": 0.3, "m1": 0.5, "m2": 0.9})
    weight = {name: max(r, 0) ** 2 for name, r in ranking.reliability.items()}
    assert set(weight) == {"m0", "m1", "m2", "j"}  # m3 has no answer and no vote
    expected = (weight["m0"] + weight["m1"]) / sum(weight.values())
    assert entry(ranking, ideas[0]).confidence == pytest.approx(expected, abs=1e-3)
    assert entry(ranking, ideas[3]).confidence == 0.0


def test_majority_counts_authors_and_self_consistency_counts_samples() -> None:
    ideas = [idea("m0", "x", sample=s) for s in range(3)] + [idea("m1", "y"), idea("m2", "y")]
    majority, samples = rank(ideas, [], "majority"), rank(ideas, [], "self-consistency")
    assert majority.winners()["t"].idea in {ideas[3].id, ideas[4].id}
    assert entry(majority, ideas[3]).confidence == 0.667
    assert entry(samples, ideas[0]).confidence == 0.6
    assert samples.winners()["t"].idea in {i.id for i in ideas[:3]}


def test_who_changed_its_mind_divides_its_vote() -> None:
    first = [idea("m0", "x"), idea("m1", "x"), idea("m2", "y")]
    ideas = [*first, idea("m0", "y", turn=1), replace(idea("m1", "", turn=1), failure="broke")]
    ranking = rank(ideas, [], "majority")
    assert entry(ranking, first[2]).confidence == 0.5  # m2 and half of m0
    assert entry(ranking, first[0]).confidence == 0.5  # m1, whose revision failed, and half of m0
    assert entry(ranking, first[0]).supporters == 2  # who gave it, then or now


def test_scores_of_single_ideas_are_comparisons() -> None:
    low, middle, high = items(3)
    scores = [says("encoder", low, -3.0), says("encoder", middle, 0.2), says("encoder", high, 0.9)]
    ranking = rank([low, middle, high], scores)
    assert [e.idea for e in ranking.entries] == [high.id, middle.id, low.id]
    assert ranking.disconnected == 0


def test_many_items_scored_by_one_judge_stay_connected() -> None:
    many = items(60)
    ranking = rank(many, [says("encoder", i, float(i.answer)) for i in many])
    assert ranking.disconnected == 0
    assert ranking.winners()["t"].idea == many[-1].id


def test_nothing_to_rank() -> None:
    failed = [replace(idea("m0", ""), failure="broke"), idea("m1", "")]
    for method in METHODS:
        assert rank([], [], method).entries == ()
        ranking = rank(failed, [says(WORLD, failed[0], 0.0)], method)
        assert [(e.place, e.confidence, e.component) for e in ranking.entries] == [
            (1, 0, -1),
            (2, 0, -1),
        ]


def test_what_is_wrong_is_said() -> None:
    a, b = items(2)
    with pytest.raises(CommunityError, match="did you mean 'bradley-terry'"):
        rank([a, b], [], "bradley_terry")
    with pytest.raises(KeyError):
        rank([a], [beats("j", a, b)])
    with pytest.raises(ValueError, match="two tasks"):
        rank([a, *items(1, "u")], [beats("j", a, items(1, "u")[0])])


@pytest.mark.parametrize("name", ["strength", "low", "high", "confidence"])
@pytest.mark.parametrize("values", [[1.0, np.nan], [np.inf, 0.0], [1.0]])
def test_a_ranker_of_ones_own_has_a_finite_number_for_each_answer(
    name: str, values: list[float]
) -> None:
    def mine(evidence: Evidence, trust: Mapping[str, float]) -> Fit:
        half = np.full(len(evidence.items), 0.5)
        return replace(Fit(half, half, half, half, {}), **{name: np.array(values)})

    with pytest.raises(CommunityError, match=f"{name} of the ranker mine:mine is not one finite"):
        rank(items(2), [], "mine:mine", own=mine)


@pytest.mark.parametrize("given", [None, (1, 2), "strong"])
def test_a_ranker_of_ones_own_gives_a_fit(given: object) -> None:
    def mine(evidence: Evidence, trust: Mapping[str, float]) -> Fit:
        return given  # type: ignore[return-value]

    with pytest.raises(CommunityError, match="it must give a Fit"):
        rank(items(2), [], "mine:mine", own=mine)


@pytest.mark.parametrize("name", ["strength", "reliability"])
@pytest.mark.parametrize("bad", [None, "much", np.nan, 1j])
def test_a_ranker_of_ones_own_gives_numbers(name: str, bad: object) -> None:
    def mine(evidence: Evidence, trust: Mapping[str, float]) -> Fit:
        half = np.full(len(evidence.items), 0.5)
        values = {"strength": [bad] * len(half), "reliability": {ONE_AUTHOR: bad}}
        return replace(Fit(half, half, half, half, {}), **{name: values[name]})

    with pytest.raises(CommunityError, match=f"{name} of the ranker mine:mine is"):
        rank(items(2), [], "mine:mine", own=mine)


def test_numbers_of_numpy_from_a_ranker_of_ones_own_become_those_of_python() -> None:
    def mine(evidence: Evidence, trust: Mapping[str, float]) -> Fit:
        true = np.ones(len(evidence.items), dtype=bool)
        return Fit(true, true, true, true, {ONE_AUTHOR: np.float32(0.5)})  # type: ignore[arg-type]

    found = rank(items(2), [], "mine:mine", own=mine)
    assert type(found.reliability[ONE_AUTHOR]) is float
    assert [type(entry.strength) for entry in found.entries] == [float, float]
