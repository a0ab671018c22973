"""What members are to learn from, and whether learning did them good."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from fractions import Fraction

from community.config import FirstSection, LearningSection
from community.errors import CommunityError
from community.types import Arena, Idea, Lesson, Ranking, Study, Task, seed_of
from community.world import posed, said, verified

PATIENCE = 1000  # tasks posed for one that belongs to a member's domains: more than any arena has
Answers = dict[str, bool]  # task id -> right


def first_lessons(
    arena: Arena,
    first: FirstSection,
    learner: str,
    seed: int,
    count: int,
    domains: Sequence[str] = (),
) -> tuple[Lesson, ...]:
    """Worked examples from the arena's train split: what an expert learns before round 1.

    `first.levels` are drawn equally often, and only tasks of `domains` if any are named.
    Raises CommunityError for an arena that cannot solve its own tasks, and for a domain that
    it does not pose.
    """
    if not count:
        return ()
    solve = getattr(arena, "solve", None)
    if solve is None:
        raise CommunityError(
            f"arena {arena.name} offers no worked examples: set first.examples = 0"
        )
    lessons: list[Lesson] = []
    index = missed = 0
    while len(lessons) < count:
        level = first.levels[len(lessons) % len(first.levels)]
        task = posed(arena, "train", seed_of(seed, learner, "first"), index, level)
        index += 1
        if not domains or task.domain in domains:
            missed = 0
            text = said(arena, "solve", solve(task))
            lessons.append(Lesson(0, learner, task.id, "", task.prompt, text, "first lessons"))
        elif (missed := missed + 1) == PATIENCE:
            raise CommunityError(
                f"arena {arena.name} poses no task of {', '.join(domains)} for {learner}; "
                "name domains that it poses"
            )
    return tuple(lessons)


def replay(
    earlier: Sequence[Lesson], first: Sequence[Lesson], n: int, each: int, seed: int
) -> tuple[Lesson, ...]:
    """At most `each` lessons of every earlier round, and as many first ones for each.

    What came first is rehearsed as much as everything since: it is what the later rests on.
    """
    rounds: dict[int, list[Lesson]] = defaultdict(list)
    for lesson in earlier:
        if lesson.round < n:
            rounds[lesson.round].append(lesson)
    rng = random.Random(seed_of(seed, n, "replay"))
    chosen = [x for r in sorted(rounds) for x in rng.sample(rounds[r], min(each, len(rounds[r])))]
    return (*chosen, *rng.sample(list(first), min(len(first), max(each, len(chosen)))))


def doubted(ideas: Sequence[Idea], taught: Set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those (task, answer) of `taught` that more of `ideas` contradict than say.

    What a weak crowd once believed is often seen to be wrong by the better one it became, which
    may have taught another answer to the same task since.
    """
    said: dict[str, Counter[str]] = defaultdict(Counter)
    for idea in ideas:
        if idea.answer:
            said[idea.task][idea.answer] += 1
    return {(task, own) for task, own in taught if said[task].total() > 2 * said[task][own]}


def set_aside(lesson: Lesson, share: float) -> bool:
    """Whether a lesson's task is kept for validation by peers, the same one for every learner."""
    return seed_of("peers", lesson.task) % 10_000 < share * 10_000


def studies(
    n: int,
    lessons: Sequence[Lesson],
    replays: Mapping[str, Sequence[Lesson]],
    settings: LearningSection,
    seed: int,
) -> dict[str, Study]:
    """Learner -> its study of round n; learners with too few lessons have none."""
    mine: dict[str, list[Lesson]] = defaultdict(list)
    for lesson in lessons:
        if not set_aside(lesson, settings.peers):
            mine[lesson.learner].append(lesson)
    found = {
        learner: Study(
            round=n,
            seed=seed_of(seed, n, learner, "learn"),
            lessons=tuple(own),
            replay=tuple(replays.get(learner, ())),
            batch=settings.batch,
        )
        for learner, own in mine.items()
        if len(own) >= settings.min_lessons
    }
    return {k: replace(study, steps=_steps(study, settings)) for k, study in found.items()}


def _steps(study: Study, settings: LearningSection) -> int:
    """As many as the recipe says, or passes over the new lessons, which share batches with old."""
    passes = Fraction(str(settings.epochs))  # the float next to 1.1 may be a step too many
    return settings.steps or math.ceil(passes * len(study.lessons) / study.fresh)


def judged_by_world(
    ideas: Sequence[Idea], tasks: Sequence[Task], arena: Arena
) -> dict[str, Answers]:
    """Author -> task -> whether its first answer is right."""
    by_id = {task.id: task for task in tasks}
    found: dict[str, Answers] = defaultdict(dict)
    for idea in ideas:
        score = verified(arena, by_id[idea.task], idea)
        if idea.sample == 0 and score is not None:
            found[idea.author][idea.task] = score >= 1.0
    return dict(found)


def judged_by_peers(ideas: Sequence[Idea], winners: Mapping[str, str]) -> dict[str, Answers]:
    """Author -> task -> whether its first answer is the community's (task -> answer)."""
    found: dict[str, Answers] = defaultdict(dict)
    for idea in ideas:
        if idea.sample == 0 and idea.task in winners:
            found[idea.author][idea.task] = idea.answer == winners[idea.task]
    return dict(found)


def winning_answers(ideas: Sequence[Idea], ranking: Ranking) -> dict[str, str]:
    """Task -> the answer on top of its ranking."""
    by_id = {idea.id: idea for idea in ideas}
    return {task: by_id[top.idea].answer for task, top in ranking.winners().items()}


def fell(before: Answers, after: Answers, alpha: float) -> bool:
    """Whether a member got worse beyond noise on the same tasks.

    The exact sign test (McNemar, 1947) on the tasks it answers differently: if nothing
    changed, each is lost or gained with equal chance. `alpha` is the share of harmless
    changes that look like a fall.
    """
    lost = sum(right and not after.get(task, False) for task, right in before.items())
    gained = sum(after.get(task, False) and not right for task, right in before.items())
    if lost <= gained:
        return False
    return _as_bad_by_chance(lost, lost + gained) < alpha


def _as_bad_by_chance(lost: int, changed: int) -> float:
    """The chance that of so many changes that many are losses, or more.

    scipy.stats would say it, too; it takes most of a second to import.
    """
    ways = total = 1
    for k in range(changed, lost, -1):
        ways = ways * k // (changed - k + 1)  # to choose k - 1 of them
        total += ways
    return total / 2**changed


def share(answers: Answers) -> float | None:
    """Share of right answers; None without any."""
    return round(sum(answers.values()) / len(answers), 6) if answers else None
