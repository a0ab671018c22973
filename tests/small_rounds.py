"""Small but complete rounds for tests: every field set, everything referring to something."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from community.ledger import Ledger
from community.types import (
    WORLD,
    Checkpoint,
    Decoding,
    Idea,
    Learning,
    Lesson,
    Ranked,
    Ranking,
    Round,
    Score,
    Task,
    Verdict,
    content_hash,
    seed_of,
)

AGENTS = ("ann", "bob", "cy")
MEMBERS = [(name, {"backend": "scripted", "error": 0.1}) for name in AGENTS]
META = {"name": "small", "seed": 7, "recipe_hash": "abc", "versions": {"torch": "2.13"}}


def make_task(n: int, index: int, split: str = "train") -> Task:
    """The index-th task of round n; the arena is the same, so ids differ by prompt alone."""
    prompt = f"{n} + {index} = ?"
    return Task(prompt, "arithmetic", "sum", n, split, seed_of("task", n), index)  # type: ignore[arg-type]


def checkpoint_of(agent: str, n: int) -> str:
    """The agent's checkpoint after learning n."""
    return content_hash("checkpoint", agent, n)


def make_round(n: int, agents: tuple[str, ...] = AGENTS, tasks: int = 2, turns: int = 2) -> Round:
    """Round n: each agent answers, then revises after reading the two before it on a ring."""
    posed = tuple(make_task(n, index) for index in range(tasks))
    ideas: list[Idea] = []
    for task in posed:
        earlier: list[Idea] = []
        for turn in range(turns):
            earlier = [_answer(task, n, turn, k, a, earlier) for k, a in enumerate(agents)]
            ideas += earlier
    ranking = _rank(posed, ideas, agents)
    by_id = {idea.id: idea for idea in ideas}
    lessons = tuple(
        Lesson(
            round=n,
            learner=agents[(n + k) % len(agents)],
            task=entry.task,
            idea=entry.idea,
            prompt=f"teach: {entry.task}",
            text=by_id[entry.idea].text,
            reason="weakest that can learn it",
            confidence=entry.confidence,
            rejected=next(i.id for i in ideas if i.task == entry.task and i.id != entry.idea),
        )
        for k, entry in enumerate(e for e in ranking.entries if e.place == 1)
    )
    edges = tuple((agents[k], agents[k - step]) for k in range(len(agents)) for step in (1, 2))
    router = {"bias": {a: 0.1 * k for k, a in enumerate(agents)}, "round": n}
    verdicts = tuple(_judge(ideas, n, agents))
    return Round(n, posed, tuple(ideas), verdicts, ranking, lessons, edges, router, seconds=n / 3)


def _answer(task: Task, n: int, turn: int, k: int, agent: str, earlier: list[Idea]) -> Idea:
    return Idea(
        task=task.id,
        author=agent,
        checkpoint=checkpoint_of(agent, n - 1),
        round=n,
        turn=turn,
        sample=k % 2,
        text=f"é\x00 it is {task.level + task.index}",
        answer=str(task.level + task.index),
        parents=tuple(earlier[k - step].id for step in (1, 2)) if earlier else (),
        prompt=f"read and answer: {task.prompt}" if turn else "",
        tokens=5 + k,
        logprob=-0.1 * (k + 1),
        decoding=Decoding(0.8, 0.95, 32, 2),
        failure="timed out" if k == 2 and turn == 0 else "",
    )


def _judge(ideas: list[Idea], n: int, agents: tuple[str, ...]) -> list[Verdict]:
    found = [Verdict(n, i.task, WORLD, i.id, 1.0) for i in ideas]
    for k, idea in enumerate(ideas[1:], 1):
        if idea.task == ideas[k - 1].task:
            judge = agents[k % len(agents)]
            found.append(Verdict(n, idea.task, judge, idea.id, 0.7, 1 / 3, ideas[k - 1].id))
    return found


def _rank(tasks: tuple[Task, ...], ideas: list[Idea], agents: tuple[str, ...]) -> Ranking:
    entries = [
        Ranked(task.id, idea.id, place, 1 / place, -0.1, 2.0 / 3, 4, 0, 0.9 / place, len(agents))
        for task in tasks
        for place, idea in enumerate((i for i in reversed(ideas) if i.task == task.id), 1)
    ]
    return Ranking("bradley-terry", tuple(entries), dict.fromkeys(agents, 0.25) | {WORLD: 1.0}, 1)


def make_learning(n: int, round: Round | None = None, roll_back: str = "") -> Learning:
    """What the agents became after `round`; the start has no round and no lessons."""
    lessons = round.lessons if round else ()
    checkpoints = tuple(
        Checkpoint(
            id=checkpoint_of(agent, n),
            agent=agent,
            round=n,
            parent=checkpoint_of(agent, n - 1) if n else "",
            path=f"checkpoints/{checkpoint_of(agent, n)}",
            kept=agent != roll_back,
            before=0.5 if n else None,
            after=0.6 if n else None,
            lessons=tuple(x.id for x in lessons if x.learner == agent),
            steps=3,
            loss=0.1 if n else None,
        )
        for agent in AGENTS
    )
    scores = (
        Score(n, "community", "holdout", "sum", 2, 7.0, 8),
        Score(n, "mean", "validation", "sum", 1, 5.5, 8),
    )
    return Learning(n, checkpoints, scores, dict.fromkeys(AGENTS, 100), seconds=1.5)


def fill(ledger: Ledger, rounds: int = 3) -> list[Round]:
    """Play `rounds` rounds with their learnings into a ledger."""
    ledger.learned(make_learning(0))
    played = [make_round(n) for n in range(1, rounds + 1)]
    for round in played:
        ledger.record(round)
        ledger.learned(make_learning(round.n, round))
    return played


def make_old(place: Path) -> None:
    """Make a ledger one of schema version 1, which knew no index of texts and one of ids alone."""
    with closing(sqlite3.connect(place)) as conn:
        for table in ("idea_trigrams", "idea_texts"):
            conn.execute(f"DROP TABLE {table}")
        for index in ("rankings_strength", "tasks_arena", "ideas_by_id"):
            conn.execute(f"DROP INDEX {index}")
        conn.execute("CREATE UNIQUE INDEX ideas_id ON ideas (id)")
        conn.execute("UPDATE meta SET value = '1' WHERE key = 'schema'")
        conn.commit()


def make_ledger(place: str | Path, rounds: int = 3) -> Ledger:
    """A ledger with a few rounds, open for writing."""
    ledger = Ledger.create(place, META, MEMBERS)
    fill(ledger, rounds)
    return ledger
