"""Figures -> what happened, in a few sentences that hold whoever won.

A difference is called one when it exceeds two standard errors; anything less is said to be
within the error of so many holdout tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from typing import Any

from community.words import count

Facts = Mapping[str, Any]
Shares = Mapping[str, float]

FEW = 0.2  # of the tasks posed: below this few lessons were kept
CHANCE = 0.023  # of a fall by more than two standard errors where nothing changed
EQUAL = 0.1  # by which tokens may differ and still be called equal


def happened(facts: Facts) -> list[str]:
    """Three to eight sentences from the figures of a run, without their own."""
    parts = (_course, _change, _against_members, _against_baselines, _lessons, _fates, _troubles)
    return [sentence for part in parts for sentence in part(facts)]


def beyond(p: float, n: int, q: float, m: int) -> int:
    """1 if p of n exceeds q of m by more than two standard errors, -1 if it falls short, else 0.

    One success and one failure are added to each side, so that 0 and 1 have an error too
    (Agresti and Caffo, The American Statistician 54, 2000).
    """
    a, b = (p * n + 1) / (n + 2), (q * m + 1) / (m + 2)
    error = sqrt(a * (1 - a) / (n + 2) + b * (1 - b) / (m + 2))
    return int(a - b > 2 * error) - int(b - a > 2 * error)


def main_holdout(facts: Facts) -> Facts:
    """The holdout by digits where there is one, else by domain and level."""
    found: Facts = facts.get("holdout_by_digits", facts["holdout"])
    return found


def overall(shares: Shares, tasks: Mapping[str, int]) -> float:
    """Share of all holdout tasks; 0 without any."""
    total = sum(tasks.values())
    return sum(share * tasks[key] for key, share in shares.items()) / total if total else 0.0


def exact(share: float | None) -> str:
    """0.935, or a dash for what was not measured."""
    return "–" if share is None else f"{share:.3f}"


def span(keys: Sequence[str], unit: str) -> str:
    """9–12 digits; gcd@1, gcd@2."""
    if unit != "digits":
        return ", ".join(keys)
    runs: list[list[int]] = []
    for digits in sorted(int(key) for key in keys):
        if runs and digits == runs[-1][-1] + 1:
            runs[-1].append(digits)
        else:
            runs.append([digits])
    texts = [str(r[0]) if len(r) == 1 else f"{r[0]}–{r[-1]}" for r in runs]
    return f"{', '.join(texts)} {'digit' if texts == ['1'] else 'digits'}"


def duration(seconds: float) -> str:
    """6 min 12 s."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _listed(items: Sequence[str], most: int = 3) -> str:
    """a, b and c; a, b, c and 4 more."""
    shown = list(items[:most])
    if len(items) > most:
        shown.append(f"{len(items) - most} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _course(facts: Facts) -> Iterator[str]:
    stopped = f" ({facts['stopped']})" if facts["stopped"] else ""
    yield (
        f"{count(len(facts['members']), 'member')} played {facts['rounds_played']} of "
        f"{count(facts['rounds_planned'], 'round')}{stopped} in {duration(facts['seconds'])} "
        f"with {facts['tokens']:,} tokens."
    )


def _change(facts: Facts) -> Iterator[str]:
    """How the community's answer changed."""
    holdout = main_holdout(facts)
    tasks, after, before = holdout["tasks"], holdout["community"], holdout["start"]["community"]
    if not tasks:
        yield "There was no holdout, so nothing is known of how much better anyone became."
    elif not facts["rounds_played"] or not before:
        yield f"The community's answer is right on {exact(overall(after, tasks))} of the holdout."
    else:
        p, q, n = overall(after, tasks), overall(before, tasks), sum(tasks.values())
        verb = {1: "rose", 0: "did not change beyond error", -1: "fell"}[beyond(p, n, q, n)]
        text = f"Over the whole holdout the community's exact match {verb}"
        yield f"{text}, from {exact(q)} to {exact(p)}{_posed_last(facts, after, before)}."


def _posed_last(facts: Facts, after: Shares, before: Shares) -> str:
    """The change on what was posed last, if the holdout has that."""
    last = str(facts["rounds"][-1][facts["unit"]]) if facts["rounds"] else ""
    if facts["unit"] != "digits" or last not in after or last not in before:
        return ""
    where = span([last], "digits")
    return f"; at {where}, posed last, from {exact(before[last])} to {exact(after[last])}"


def _against_members(facts: Facts) -> Iterator[str]:
    holdout = main_holdout(facts)
    tasks, n = holdout["tasks"], sum(holdout["tasks"].values())
    all_ = {name: overall(shares, tasks) for name, shares in holdout["members"].items()}
    if not n or len(all_) < 2:
        return
    best, mean = max(all_, key=lambda name: all_[name]), sum(all_.values()) / len(all_)
    own = overall(holdout["community"], tasks)
    words = {1: "ahead of", 0: "within error of", -1: "behind"}
    to_mean, to_best = words[beyond(own, n, mean, n)], words[beyond(own, n, all_[best], n)]
    yield (
        f"With {exact(own)} at the end the community's answer is {to_mean} its mean member "
        f"({exact(mean)}) and {to_best} its best, {best} ({exact(all_[best])})."
    )


def _against_baselines(facts: Facts) -> Iterator[str]:
    """One sentence a baseline: who is ahead, where, and at how many tokens."""
    holdout = main_holdout(facts)
    tasks, n = holdout["tasks"], sum(holdout["tasks"].values())
    own = holdout["community"]
    for kind, theirs in holdout["baselines"].items():
        if not n or set(theirs) != set(own):
            continue
        p, q = overall(own, tasks), overall(theirs, tasks)
        won = {
            1: f"the community is ahead by {exact(p - q)}",
            0: "neither is ahead beyond error",
            -1: f"the baseline wins by {exact(q - p)}",
        }[beyond(p, n, q, n)]
        where = {
            sign: [k for k in own if beyond(own[k], tasks[k], theirs[k], tasks[k]) == sign]
            for sign in (1, -1)
        }
        unit = facts["unit"]
        ahead = f" (community ahead at {span(where[1], unit)})" if where[1] else ""
        behind = f" (baseline ahead at {span(where[-1], unit)})" if where[-1] else ""
        said = f"The baseline {kind} ({_terms(facts, kind)}) ends at {exact(q)}"
        yield f"{said}: {won}{ahead}{behind}."


def _terms(facts: Facts, kind: str) -> str:
    """Who played a baseline, and how its tokens compare; without rounds, how its answers do."""
    baseline = facts["baselines"][kind]
    if not baseline["rounds_planned"]:
        given, of = baseline["answers_a_task"], facts["answers_a_task"]
        asked = f"{count(given, 'answer')} to a task, the community {of:,}"
        return f"{baseline['member']} alone, untrained; it gives {asked}"
    share = baseline["tokens_share"]
    if share is None:
        return f"{baseline['member']} alone"
    fair = "" if abs(share - 1) <= EQUAL else ", so not at equal tokens"
    return f"{baseline['member']} alone, {share:.0%} of the community's tokens{fair}"


def _lessons(facts: Facts) -> Iterator[str]:
    """What was kept, how much of it is right, and whether that got worse."""
    rounds = facts["rounds"]
    if not rounds:
        return
    posed, kept = (sum(r[key] for r in rounds) for key in ("posed", "kept"))
    if not kept:
        yield f"Nothing was kept: none of {count(posed, 'task')} posed became a lesson."
        return
    text = f"Of {count(posed, 'task')} posed, {kept:,} became lessons"
    yield f"{text}{_precision(rounds)}{_few(rounds)}."


def _precision(rounds: Sequence[Facts]) -> str:
    checked = [r for r in rounds if r["checked"]]
    if not checked:
        return ""
    share = sum(r["right"] for r in checked) / sum(r["checked"] for r in checked)
    first, last, low = checked[0], checked[-1], min(checked, key=lambda r: r["precision"])
    text = (
        f", {exact(share)} of them right (lowest {exact(low['precision'])}, round {low['round']})"
    )
    fell = beyond(last["precision"], last["checked"], first["precision"], first["checked"]) < 0
    if fell:
        text += (
            f"; precision fell from {exact(first['precision'])} in round {first['round']} to "
            f"{exact(last['precision'])} in round {last['round']}"
        )
    return text


def _few(rounds: Sequence[Facts]) -> str:
    few = [str(r["round"]) for r in rounds if r["kept"] < FEW * r["posed"]]
    if not few:
        return ""
    where = "every round" if len(few) == len(rounds) else f"round{'s' * (len(few) > 1)} "
    names = "" if len(few) == len(rounds) else _listed(few, 5)
    return f"; few were kept in {where}{names} (less than {FEW:.0%} of the tasks)"


def _fates(facts: Facts) -> Iterator[str]:
    """Who lost what they could do, and how the weakest fared."""
    holdout = main_holdout(facts)
    if not facts["rounds_played"] or not holdout["tasks"] or not holdout["start"]["members"]:
        return
    fallen = [text for name in holdout["members"] if (text := _collapse(facts, name))]
    who = (
        f"{_listed(fallen)} fell below the start{_by_chance(holdout)}"
        if fallen
        else "No member fell below its start beyond error"
    )
    yield f"{who}; {_weakest(facts)}."


def _by_chance(holdout: Facts) -> str:
    """How many such falls so many comparisons bring by themselves, if it is one or more."""
    comparisons = len(holdout["members"]) * len(holdout["tasks"])
    expected = round(CHANCE * comparisons)
    if not expected:
        return ""
    return f" (of {comparisons:,} comparisons, about {expected:,} would by chance alone)"


def _collapse(facts: Facts, name: str) -> str:
    """Where a member ended more than two standard errors below its start; empty if nowhere."""
    holdout = main_holdout(facts)
    tasks, after = holdout["tasks"], holdout["members"][name]
    before = holdout["start"]["members"].get(name, {})
    lost = {
        key: before[key] - after[key]
        for key in after
        if key in before and beyond(after[key], tasks[key], before[key], tasks[key]) < 0
    }
    if not lost:
        return ""
    worst = max(lost, key=lambda key: lost[key])
    most = f", {'worst ' if len(lost) > 1 else ''}{exact(before[worst])} to {exact(after[worst])}"
    at = f" at {span([worst], facts['unit'])}" if len(lost) > 1 else ""
    return f"{name} ({span(list(lost), facts['unit'])}{most}{at})"


def _weakest(facts: Facts) -> str:
    """The weakest member at the end beside the weakest at the start, level by level."""
    holdout, unit = main_holdout(facts), facts["unit"]
    tasks, after, before = holdout["tasks"], holdout["weakest"], holdout["start"]["weakest"]
    lower = [key for key in after if key in before and after[key] < before[key]]
    if not lower:
        return "nowhere is the weakest member worse at the end than the weakest was at the start"
    sure = [k for k in lower if beyond(after[k], tasks[k], before[k], tasks[k]) < 0]
    size = f"beyond error at {span(sure, unit)}" if sure else "within error"
    size = "beyond error" if sure == lower else size
    return f"the weakest is worse at the end than at the start at {span(lower, unit)} ({size})"


def _troubles(facts: Facts) -> Iterator[str]:
    """Rollbacks, failures and comparisons that hung together by nothing."""
    members, rounds = facts["members"].values(), facts["rounds"]
    back = sum(m["rollbacks"] for m in members)
    failed = sum(m["failures"] for m in members)
    apart = sum(r["disconnected"] for r in rounds)
    found = [
        f"{count(back, 'learning')} rolled back" if back else "",
        f"{count(failed, 'answer')} failed" if failed else "",
        f"{count(apart, 'task')} ranked from unconnected comparisons" if apart else "",
    ]
    if any(found):
        yield f"On the way: {_listed([text for text in found if text])}."
