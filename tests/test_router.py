"""The router: tasks reach top_k members, in time the right ones, and lessons their learners."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from community.bench.routing import HOME, Outcome, domain_of, play
from community.errors import CommunityError
from community.router import Router
from community.teaching import POLICIES
from community.types import Idea, Ranked, Ranking, Task, seed_of

SEEDS = range(5)
MEMBERS = ["ada", "bea", "cy", "dan"]


def task(n: int, domain: str = "sums", level: int = 1) -> Task:
    return Task(f"{domain} {n}", "words", domain, level, "train", 0, n)


def tasks(n: int, seed: int = 0) -> list[Task]:
    rng = random.Random(seed)
    return [task(i, rng.choice("abc"), rng.randint(1, 3)) for i in range(n)]


def idea(t: Task, author: str, answer: str, turn: int = 0, sample: int = 0) -> Idea:
    return Idea(t.id, author, "c", 1, turn, sample, f"it is {answer}" if answer else "", answer)


def ranking(t: Task, ordered: list[Idea], confidence: dict[str, float]) -> Ranking:
    """The ideas in this order, with the confidence of each answer."""
    entries = [
        Ranked(
            t.id, i.id, place, -place, -place, -place, 1, 0, confidence.get(i.answer, 0.0),
            len({o.author for o in ordered if o.answer == i.answer}),
        )
        for place, i in enumerate(ordered, 1)
    ]  # fmt: skip
    return Ranking("test", tuple(entries), {})


def merged(rankings: list[Ranking]) -> Ranking:
    return Ranking("test", tuple(e for r in rankings for e in r.entries), {})


def answers(router: Router, posed: list[Task], n: int, seed: int) -> tuple[list[Idea], Ranking]:
    """Members answer right or wrong by chance, and the world says which."""
    ideas, ranks = [], []
    for t in posed:
        rng = random.Random(seed_of(seed, n, t.id))
        members = [m for m, team in router.delegate([t], n).items() if team]
        mine = [idea(t, m, "right" if rng.random() < 0.5 else f"wrong {m}") for m in members]
        ideas += mine
        ranks.append(ranking(t, sorted(mine, key=lambda i: i.answer), {"right": 1.0}))
    return ideas, merged(ranks)


def observed(router: Router, domain: str, good: str, times: int = 30) -> None:
    """Show the router that `good` is right and everybody else wrong in a domain."""
    for n in range(times):
        t = task(n, domain)
        mine = [idea(t, m, "right" if m == good else "wrong") for m in router.members]
        first = sorted(mine, key=lambda i: i.author != good)
        router.observe([t], mine, ranking(t, first, {"right": 1.0}))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), members=st.integers(1, 9), count=st.integers(0, 30), seed=st.integers(0, 99))
def test_every_task_goes_to_exactly_top_k_members(
    data: st.DataObject, members: int, count: int, seed: int
) -> None:
    names = [f"m{i}" for i in range(members)]
    top_k = data.draw(st.none() | st.integers(1, members))
    router = Router(names, seed=seed, top_k=top_k, explore=data.draw(st.floats(0, 1)))
    posed = tasks(count, seed)
    teams = router.delegate(posed, data.draw(st.integers(0, 20)))
    assert list(teams) == names
    times = Counter(t.id for team in teams.values() for t in team)
    assert times == {t.id: top_k or members for t in posed}
    for team in teams.values():
        assert len({t.id for t in team}) == len(team)
        assert [t.index for t in team] == sorted(t.index for t in team)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), top_k=st.integers(1, 4), rounds=st.integers(1, 4))
def test_a_restored_router_has_the_same_future(seed: int, top_k: int, rounds: int) -> None:
    def go(router: Router, first: int, last: int) -> list[object]:
        seen: list[object] = []
        for n in range(first, last):
            posed = tasks(12, seed_of(seed, n))
            ideas, order = answers(router, posed, n, seed)
            router.observe(posed, ideas, order)
            seen += [[i.id for i in ideas], router.teach(n, posed, ideas, order)]
        return seen

    router = Router(MEMBERS, seed=seed, top_k=top_k, policy="specialist")
    go(router, 1, 1 + rounds)
    other = Router(MEMBERS, seed=seed, top_k=top_k, policy="specialist")
    other.restore(json.loads(json.dumps(router.state())))
    assert other.state() == router.state()
    assert go(other, 1 + rounds, 5 + rounds) == go(router, 1 + rounds, 5 + rounds)
    assert other.state() == router.state()


@settings(max_examples=40, deadline=None)
@given(policy=st.sampled_from(sorted(POLICIES)), seed=st.integers(0, 999), stranger=st.booleans())
def test_lessons_name_members_only_and_are_winners(policy: str, seed: int, stranger: bool) -> None:
    router = Router(MEMBERS, seed=seed, policy=policy)
    rng = random.Random(seed)
    posed, ideas, ranks = tasks(8, seed), [], []
    for t in posed:
        authors = rng.sample(MEMBERS, rng.randint(1, 4)) + ["eve"] * stranger
        mine = [idea(t, m, rng.choice(["1", "2", "3", ""])) for m in authors]
        rng.shuffle(mine)
        ideas += mine
        ranks.append(ranking(t, mine, {a: rng.random() for a in "123"}))
    order = merged(ranks)
    router.observe(posed, ideas, order)
    winners = order.winners()
    found = {i.id: i for i in ideas}
    for lesson in router.teach(1, posed, ideas, order):
        assert lesson.learner in MEMBERS
        assert lesson.idea == winners[lesson.task].idea
        assert lesson.confidence == winners[lesson.task].confidence >= 0.6
        assert lesson.text == found[lesson.idea].text != ""
        if lesson.rejected:
            other = found[lesson.rejected]
            assert (other.author, other.task) == (lesson.learner, lesson.task)
            assert other.answer != found[lesson.idea].answer


def test_what_is_known_is_of_the_domain() -> None:
    router = Router(MEMBERS, seed=0)
    sums, words = task(0, "sums"), task(1, "words")
    assert router.known([sums, words]) == {}
    for n in range(40):
        posed = task(n, "sums")
        said = [idea(posed, "ada", "right"), idea(posed, "bea", "wrong")]
        router.observe([posed], said, ranking(posed, said, {"right": 1.0}))
    found = router.known([sums])
    assert found["ada"] > 0.8 and found["bea"] < 0.2 and found["cy"] == 0.5
    assert router.known([words]) == {}
    assert router.known([sums, words]) == found


@pytest.mark.parametrize("seed", SEEDS)
def test_equally_good_members_share_the_load(seed: int) -> None:
    def loads(balance: float) -> list[int]:
        router = Router(MEMBERS, seed=seed, top_k=1, explore=0.0, balance=balance)
        attempts: Counter[str] = Counter(dict.fromkeys(MEMBERS, 0))
        for n in range(10):
            posed = [task(i + 1000 * n) for i in range(40)]
            ideas, order = answers(router, posed, n, seed)
            router.observe(posed, ideas, order)
            attempts.update(i.author for i in ideas)
        return sorted(attempts.values())

    assert loads(balance=0.01)[0] >= 80  # of 400, 100 would be even
    assert loads(balance=0.01)[0] > loads(balance=0.0)[0]


def test_the_bias_counts_for_selection_and_not_as_skill() -> None:
    router = Router(MEMBERS, seed=0, top_k=1)
    before = router.skill(task(0))
    router.delegate([task(i) for i in range(5)], 1)
    assert any(router.state()["bias"])
    assert router.skill(task(0)) == before


@cache
def outcome(seed: int, policy: str, top_k: int = 1, skewed: bool = False) -> Outcome:
    return play(seed, policy, top_k, (4, 2, 1, 1) if skewed else (1, 1, 1, 1))


@pytest.mark.parametrize(("top_k", "skewed"), [(1, False), (2, False), (1, True)])
def test_tasks_reach_the_right_specialist_and_nobody_starves(top_k: int, skewed: bool) -> None:
    for seed in SEEDS:
        found = outcome(seed, "specialist", top_k, skewed)
        assert found.reached >= 0.9
        assert min(found.load.values()) >= (0.1 if skewed else 0.2)


def test_lessons_reach_the_specialist_and_the_shuffled_control_is_worse() -> None:
    for seed in SEEDS:
        found, control = outcome(seed, "specialist"), outcome(seed, "shuffled")
        late = [lesson for lesson in found.lessons if lesson.round > 3]
        assert {HOME[lesson.learner] for lesson in late} == set(HOME.values())
        assert all(HOME[lesson.learner] == domain_of(lesson.prompt) for lesson in late)
        assert control.at_home < 0.5
        assert control.accuracy < found.accuracy - 0.05


T = task(0)
RIGHT, MISSED, LATE = idea(T, "ada", "7"), idea(T, "bea", "8"), idea(T, "bea", "7", turn=1)
OTHER, FAILED = idea(T, "cy", "9"), replace(idea(T, "cy", ""), sample=1, failure="broke down")
IDEAS = [RIGHT, MISSED, LATE, OTHER, FAILED]  # dan did not attempt it
ORDER = ranking(T, [RIGHT, LATE, OTHER, MISSED, FAILED], {"7": 0.8, "8": 0.1, "9": 0.1})


@pytest.mark.parametrize(
    ("policy", "learners"),
    [
        ("all", ["ada", "bea", "cy", "dan"]),
        ("author", ["ada"]),  # bea came to it by reading
        ("boosting", ["bea", "cy"]),
        ("specialist", ["ada"]),
        ("weakest", ["dan"]),
    ],
)
def test_policies_choose_their_learners(policy: str, learners: list[str]) -> None:
    router = Router(MEMBERS, seed=0, policy=policy)
    for n, good in enumerate(["ada", "ada", "bea", "cy"]):
        t = task(n + 1)
        mine = [idea(t, m, "right" if m == good else "wrong") for m in MEMBERS]
        order = ranking(t, sorted(mine, key=lambda i: i.author != good), {"right": 1.0})
        router.observe([t], mine, order)
    lessons = router.teach(1, [T], IDEAS, ORDER)
    assert [lesson.learner for lesson in lessons] == learners
    assert all(lesson.reason.startswith(policy) for lesson in lessons)
    rejected = {"bea": MISSED.id, "cy": OTHER.id}
    assert all(lesson.rejected == rejected.get(lesson.learner, "") for lesson in lessons)


def test_the_hopeless_are_passed_over_unless_all_are() -> None:
    router = Router(MEMBERS, seed=0, policy="weakest")
    observed(router, "sums", "ada", times=12)
    (some,) = router.teach(1, [T], [RIGHT], ranking(T, [RIGHT], {"7": 1.0}))
    assert router.skill(T)["bea"] >= 0.05
    assert some.learner == "bea"  # all three alike, so the first
    observed(router, "sums", "bea", times=12)
    observed(router, "sums", "ada", times=300)
    assert max(router.skill(T)[m] for m in ("bea", "cy", "dan")) < 0.05
    (lesson,) = router.teach(1, [T], [RIGHT], ranking(T, [RIGHT], {"7": 1.0}))
    assert lesson.learner == max(("bea", "cy", "dan"), key=router.skill(T).__getitem__)


@pytest.mark.parametrize(
    ("winner", "confidence", "supporters"),
    [
        (RIGHT, 0.5, 1),
        (RIGHT, 0.9, 2),
        (replace(RIGHT, answer=""), 0.9, 1),
        (replace(RIGHT, failure="broke down"), 0.9, 1),
    ],
)
def test_no_lesson_without_trust(winner: Idea, confidence: float, supporters: int) -> None:
    router = Router(MEMBERS, seed=0, min_supporters=supporters)
    order = ranking(T, [winner], {winner.answer: confidence})
    assert router.teach(1, [T], [winner], order) == ()
    assert router.teach(1, [T], [RIGHT, LATE], ranking(T, [RIGHT, LATE], {"7": 0.9}))


def test_only_the_best_share_of_the_believed_winners_is_taught() -> None:
    posed = [task(n) for n in range(6)]
    ideas = [idea(t, "ada", str(t.index)) for t in posed]
    trust = [0.7, 0.9, 0.5, 0.8, 1.0, 0.65]
    ranks = [ranking(t, [i], {i.answer: c}) for t, i, c in zip(posed, ideas, trust, strict=True)]

    def taught(best: float) -> list[float]:
        router = Router(MEMBERS, seed=0, policy="author", best=best)
        return [lesson.confidence for lesson in router.teach(1, posed, ideas, merged(ranks))]

    assert taught(1.0) == [0.7, 0.9, 0.8, 1.0, 0.65]
    assert taught(0.5) == [0.9, 0.8, 1.0]  # rounded up, in the order of the tasks
    assert taught(0.01) == [1.0]


def test_a_share_of_the_winners_is_a_decimal_and_not_the_float_next_to_it() -> None:
    posed = [task(n) for n in range(100)]
    ideas = [idea(t, "ada", str(t.index)) for t in posed]
    ranks = [ranking(t, [i], {i.answer: 1.0}) for t, i in zip(posed, ideas, strict=True)]
    router = Router(MEMBERS, seed=0, policy="author", best=0.55)
    assert len(router.teach(1, posed, ideas, merged(ranks))) == 55


def test_first_answers_decide_what_is_learned_of_a_member() -> None:
    router = Router(MEMBERS, seed=0)
    before = router.skill(T)
    router.observe([T], IDEAS, ORDER)
    after = router.skill(T)
    assert after["ada"] > before["ada"]
    assert after["bea"] < before["bea"]  # revised to the right answer, but did not know it
    assert after["dan"] == before["dan"]
    assert router.skill(task(5, level=9))["ada"] > 0.5  # an unseen level of the domain
    assert router.skill(task(5, "other"))["ada"] == 0.5


def test_the_order_of_ideas_does_not_matter() -> None:
    one, two = Router(MEMBERS, seed=0), Router(MEMBERS, seed=0)
    one.observe([T], IDEAS, ORDER)
    two.observe([T], IDEAS[::-1], ORDER)
    assert one.state() == two.state()
    assert one.teach(1, [T], IDEAS, ORDER) == two.teach(1, [T], IDEAS[::-1], ORDER)


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(CommunityError, match="did you mean 'weakest'"):
        Router(MEMBERS, seed=0, policy="weekest")
    with pytest.raises(CommunityError, match="top_k = 5"):
        Router(MEMBERS, seed=0, top_k=5)
    with pytest.raises(CommunityError, match="explore"):
        Router(MEMBERS, seed=0, explore=2.0)
    with pytest.raises(CommunityError, match="best"):
        Router(MEMBERS, seed=0, best=0.0)
    with pytest.raises(CommunityError, match="each name once"):
        Router(["ada", "ada"], seed=0)


def test_a_foreign_or_damaged_state_is_refused() -> None:
    router = Router(MEMBERS, seed=0)
    state = router.state()
    with pytest.raises(CommunityError, match="other members"):
        Router(["eve"], seed=0).restore(state)
    for damage in ({"bias": [0.0]}, {"load": None}, {"weights": {"a": ["x"] * 4}}):
        with pytest.raises(CommunityError, match="damaged"):
            router.restore(state | damage)
    assert router.state() == state
