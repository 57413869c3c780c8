"""What a trace means: how busy it was, what took long, what it all hung on."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from dftracer.asyncflow.observe.report.reader import Key, TaskSpan, Trace

BINS = 600
"""Into how many parts the time of a run is divided for charts."""


@dataclass
class Load:
    """How much was going on, on average in each part of the time."""

    width: float
    """Of a part, in µs."""
    running: list[float]
    queued: list[float]
    ended_per_second: list[float]


@dataclass
class NameStatistics:
    """All tasks of one name. Times in µs."""

    name: str
    durations: list[int] = field(default_factory=list[int])
    queued: int = 0
    waited: int = 0
    failed: int = 0

    def percentile(self, share: float) -> int:
        """Return the duration that this share of the tasks does not exceed."""
        ordered = sorted(self.durations)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass
class Step:
    """One task on the critical path."""

    task: TaskSpan
    reason: str
    """Why it did not begin before the step before it had ended."""
    wait: int
    """From there to its own beginning, in µs."""


@dataclass
class Wait:
    """How long tasks of one name have waited, in the end for those of another."""

    waiter: str
    awaited: str
    count: int = 0
    total: int = 0
    longest: int = 0


def span_of(trace: Trace) -> tuple[int, int]:
    """Return when the first task was called and when the last has ended."""
    return min(task.created for task in trace.tasks), max(task.end for task in trace.tasks)


def load_of(trace: Trace) -> Load:
    """Return the load over time. Blocks only wait, and are not counted."""
    begin, end = span_of(trace)
    width = max(1.0, (end - begin) / BINS)
    tasks = [task for task in trace.tasks if not task.is_block]
    ended = [0.0] * BINS
    for task in tasks:
        ended[min(BINS - 1, int((task.end - begin) / width))] += 1e6 / width
    return Load(
        width,
        _covered(((task.start - begin, task.end - begin) for task in tasks), width),
        _covered(((task.submitted - begin, task.start - begin) for task in tasks), width),
        ended,
    )


def _covered(spans: Iterable[tuple[int, int]], width: float) -> list[float]:
    """Return how many spans cover each bin, on average over the bin."""
    parts = [0.0] * BINS
    steps = [0] * (BINS + 1)
    for start, end in spans:
        first = min(BINS - 1, int(start / width))
        last = min(BINS - 1, int(end / width))
        if first == last:
            parts[first] += (end - start) / width
            continue
        parts[first] += first + 1 - start / width
        parts[last] += end / width - last
        steps[first + 1] += 1
        steps[last] -= 1
    whole = 0
    for number in range(BINS):
        whole += steps[number]
        parts[number] += whole
    return parts


def statistics_of(trace: Trace) -> list[NameStatistics]:
    """Return the statistics of each name, that with the most time first."""
    by_name: dict[str, NameStatistics] = {}
    for task in trace.tasks:
        statistics = by_name.get(task.name)
        if statistics is None:
            statistics = by_name[task.name] = NameStatistics(task.name)
        statistics.durations.append(task.duration)
        statistics.queued += task.queued
        statistics.waited += task.waited
        statistics.failed += task.state == "failed"
    return sorted(by_name.values(), key=lambda statistics: -sum(statistics.durations))


def waits_of(trace: Trace) -> list[Wait]:
    """Return who has waited for whom, the longest first.

    A task waits for all of its dependencies; its time is put down to the one that ended last.
    """
    known = {task.key: task for task in trace.tasks}
    waits: dict[tuple[str, str], Wait] = {}
    for task in trace.tasks:
        last = _last(known[key] for key in task.dependencies if key in known)
        if last is None:
            continue
        names = (task.name, last.name)
        wait = waits.get(names)
        if wait is None:
            wait = waits[names] = Wait(*names)
        wait.count += 1
        wait.total += task.waited
        wait.longest = max(wait.longest, task.waited)
    return sorted(waits.values(), key=lambda wait: -wait.total)


def critical_path_of(trace: Trace) -> list[Step]:
    """Return the chain of tasks that the end of the run hung on, first to last.

    It is followed back from the task that ended last: to what kept its worker busy while it was
    queued, else to the dependency that ended last, else to what its block had awaited before, else
    to the task that submitted it.
    """
    candidates = [task for task in trace.tasks if not task.is_block] or trace.tasks
    find = _finder(trace)
    current = max(candidates, key=lambda task: task.end)
    steps: list[Step] = []
    seen: set[Key] = set()
    while current.key not in seen:
        seen.add(current.key)
        before, reason = find(current)
        if before is None:
            steps.append(Step(current, "beginning", current.start - current.created))
            break
        since = before.start if reason == "submitted by" else before.end
        steps.append(Step(current, reason, max(0, current.start - since)))
        current = before
    return steps[::-1]


def _finder(trace: Trace) -> Callable[[TaskSpan], tuple[TaskSpan | None, str]]:
    """Return a function that returns what a task had to wait for last, and in which way."""
    known = {task.key: task for task in trace.tasks}
    order = {id(task): number for number, task in enumerate(trace.tasks)}
    on_row: dict[tuple[int, int], list[TaskSpan]] = defaultdict(list)
    in_block: dict[Key, list[TaskSpan]] = defaultdict(list)
    for task in trace.tasks:
        on_row[task.row].append(task)
        if task.owner is not None:
            in_block[task.owner].append(task)
    ends: dict[int, list[int]] = {}
    for group in (*on_row.values(), *in_block.values()):
        group.sort(key=lambda task: task.end)
        ends[id(group)] = [task.end for task in group]

    def last_before(group: list[TaskSpan], time: int, task: TaskSpan) -> TaskSpan | None:
        place = bisect_right(ends.get(id(group), ()), time)
        while place:
            place -= 1
            # By their places too, lest two that took no time be each other's reason.
            if order[id(group[place])] < order[id(task)] and not group[place].is_block:
                return group[place]
        return None

    def find(task: TaskSpan) -> tuple[TaskSpan | None, str]:
        busy = last_before(on_row[task.row], task.start, task) if task.queued else None
        if busy is not None and busy.end > task.submitted:
            return busy, "worker was busy"
        for waiting in _with_owners(task, known):
            awaited = _last(known[key] for key in waiting.dependencies if key in known)
            if awaited is not None:
                return awaited, "dependency"
            if waiting.owner is not None and waiting.owner in in_block:
                earlier = last_before(in_block[waiting.owner], waiting.created, waiting)
                if earlier is not None and earlier.key != task.key:
                    return earlier, "block"
        if task.parent is not None and task.parent in known:
            return known[task.parent], "submitted by"
        return None, ""

    return find


def _with_owners(task: TaskSpan, known: dict[Key, TaskSpan]) -> Iterable[TaskSpan]:
    """Yield a task and the blocks around it, innermost first."""
    seen: set[Key] = set()
    current: TaskSpan | None = task
    while current is not None and current.key not in seen:
        seen.add(current.key)
        yield current
        current = known.get(current.owner) if current.owner is not None else None


def _last(tasks: Iterable[TaskSpan]) -> TaskSpan | None:
    return max(tasks, key=lambda task: task.end, default=None)
