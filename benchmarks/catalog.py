"""What is measured (ROWS) and on what (SIDES). A new row or a new peer is one entry here."""

from __future__ import annotations

from dataclasses import dataclass

from targets import (
    BytesUnder,
    CostsAtMost,
    EachUnder,
    GrowthAtMost,
    SecondsUnder,
    Target,
    TimesFasterThan,
)


@dataclass(frozen=True)
class Row:
    """One line of the table: a case, by its name in the CASES of each side, and its size."""

    name: str
    title: str
    case: str
    n: int
    quick_n: int
    warm_up: int = 16
    target: Target | None = None
    unit: str = "seconds"  # or "bytes"


@dataclass(frozen=True)
class Side:
    """One column of the table: a module of sides/ and the environment it runs in."""

    name: str
    label: str
    module: str
    requirements: tuple[str, ...] = ()
    from_checkout: bool = False
    rust_flags: str = ""


SIDES = (
    Side("ours", "ours", "sides.ours", from_checkout=True),
    Side(
        "radical",
        "radical.asyncflow 0.6.0",
        "sides.radical",
        requirements=("radical.asyncflow==0.6.0",),
    ),
    Side(
        "dftracer-utils",
        "dftracer-utils 0.0.14",
        "sides.dftracer_utils",
        requirements=("dftracer-utils==0.0.14",),
    ),
    Side("asyncio", "asyncio", "sides.stdlib_asyncio"),
    Side("threads", "ThreadPoolExecutor(2)", "sides.stdlib_threads"),
    Side(
        "no-records",
        "ours, no records",
        "sides.no_records",
        from_checkout=True,
        rust_flags="--cfg dft_no_records",
    ),
)

ROWS = (
    Row("bag-1k", "1,000 independent no-op tasks", "bag", 1_000, 100),
    Row(
        "bag-4k",
        "4,000 independent no-op tasks",
        "bag",
        4_000,
        400,
        target=TimesFasterThan("radical", 40),
    ),
    Row(
        "bag-16k",
        "16,000 independent no-op tasks",
        "bag",
        16_000,
        1_600,
        target=GrowthAtMost("bag-1k", 1.3, compared_with="radical"),
    ),
    Row("plain-4k", "4,000 no-op tasks with `def` bodies", "plain-bag", 4_000, 400),
    Row(
        "chain-100",
        "chain of 100, each stage on the one before",
        "chain",
        100,
        10,
        target=TimesFasterThan("radical", 100),
    ),
    Row("awaits-200", "200 no-op tasks, each awaited before the next", "awaits", 200, 20),
    Row("exec-200", "200 runs of `/bin/echo`", "executables", 200, 20),
    Row(
        "sleep-100",
        "100 async bodies that sleep 0.2 s",
        "sleeps",
        100,
        10,
        warm_up=2,
        target=SecondsUnder(0.6),
    ),
    Row(
        "submit-20k",
        "Runtime: 20,000 submits, wait for all",
        "submit-all",
        20_000,
        2_000,
        target=TimesFasterThan("threads", 20),
    ),
    Row(
        "map-20k",
        "Runtime: one map over 20,000 items",
        "map",
        20_000,
        2_000,
        target=TimesFasterThan("threads", 50),
    ),
    Row(
        "get-5k",
        "Runtime: 5,000 submits, each got before the next",
        "submit-get",
        5_000,
        500,
        target=TimesFasterThan("threads", 2),
    ),
    Row(
        "nested-200",
        "Runtime: 200 tasks, each waits for the next, one worker",
        "nested",
        200,
        50,
        target=EachUnder(20e-6, "seconds"),
    ),
    Row(
        "blocking-320",
        "Runtime: 320 bodies that block for 10 ms, 32 workers",
        "blocking",
        320,
        64,
        target=SecondsUnder(0.105),
    ),
    Row(
        "pending-bytes",
        "Runtime: memory of 200,000 tasks that wait in the queue",
        "pending",
        200_000,
        20_000,
        target=EachUnder(250, "bytes"),
        unit="bytes",
    ),
    Row(
        "million",
        "Runtime: growth of memory by a million tasks that have ended",
        "million",
        1_000_000,
        50_000,
        warm_up=20_000,
        target=BytesUnder(5e6),
        unit="bytes",
    ),
    Row(
        "records-20k",
        "Runtime: submit-20k, with and without records for progress",
        "submit-all-records",
        20_000,
        2_000,
        target=CostsAtMost("no-records", 5),
    ),
)


def find_row(name: str) -> Row:
    for row in ROWS:
        if row.name == name:
            return row
    raise KeyError(f"no row is called {name!r}; rows: {', '.join(row.name for row in ROWS)}")


def find_side(name: str) -> Side:
    for side in SIDES:
        if side.name == name:
            return side
    raise KeyError(f"no side is called {name!r}; sides: {', '.join(side.name for side in SIDES)}")
