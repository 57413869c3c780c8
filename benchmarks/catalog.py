"""What is measured (ROWS) and on what (SIDES). A new row or a new peer is one entry here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from targets import CostsAtMost, GrowthAtMost, Target, TimesFasterThan, Under


@dataclass(frozen=True)
class Row:
    """One line of the table: a case, by its name in the CASES of each side, and its size."""

    group: str  # "runtime" or "engine"
    name: str
    title: str
    case: str
    n: int
    quick_n: int
    targets: tuple[Target, ...] = ()
    warm_up: int | None = None
    """How many tasks are run before; if not told a tenth, at most 1,000."""
    unit: str = "seconds"  # or "bytes"
    repeats: int = 100
    """At most so many, for what takes long."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Sides that are so slow that they get fewer tasks; ratios are of the cost of each."""

    without: tuple[str, ...] = ()
    """Sides that have the case, but for which the row is too much."""

    def size_on(self, side: str, *, quick: bool) -> int:
        size = self.sizes.get(side, self.n)
        return min(size, self.quick_n) if quick else size

    def warm_up_for(self, n: int) -> int:
        return max(1, min(1_000, n // 10)) if self.warm_up is None else min(self.warm_up, n)


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
    Side("futures", "bare futures", "sides.bare_futures"),
    Side("threads", "ThreadPoolExecutor(2)", "sides.stdlib_threads"),
    Side("spawn", "raw posix_spawn", "sides.stdlib_spawn"),
    Side("programs", "programs alone", "sides.programs_alone"),
    Side(
        "no-records",
        "ours, no records",
        "sides.no_records",
        from_checkout=True,
        rust_flags="--cfg dft_no_records",
    ),
)

_RUNTIME_ROWS = (
    Row(
        "runtime",
        "submit-20k",
        "20,000 submits, wait for all",
        "submit-all",
        20_000,
        2_000,
        (TimesFasterThan(20, 35, side="threads"),),
    ),
    Row(
        "runtime",
        "map-20k",
        "one map over 20,000 items",
        "map",
        20_000,
        2_000,
        (TimesFasterThan(50, 80, side="threads"),),
    ),
    Row(
        "runtime",
        "get-5k",
        "5,000 submits, each got before the next",
        "submit-get",
        5_000,
        500,
        (TimesFasterThan(2, 6, side="threads"),),
    ),
    Row(
        "runtime",
        "nested-200",
        "200 tasks, each waits for the next, one worker",
        "nested",
        200,
        50,
        (Under(20e-6, 5e-6, each=True),),
    ),
    Row(
        "runtime",
        "blocking-320",
        "320 bodies that block for 10 ms, 32 workers: 100 ms at best",
        "blocking",
        320,
        64,
        (Under(0.105, 0.103),),
    ),
    Row(
        "runtime",
        "pending-bytes",
        "memory of 200,000 tasks that wait in the queue",
        "pending",
        200_000,
        20_000,
        (Under(250, 170, unit="bytes", each=True),),
        unit="bytes",
        sizes={"threads": 100_000, "dftracer-utils": 100_000},
    ),
    Row(
        "runtime",
        "million",
        "growth of memory by a million tasks that have ended",
        "million",
        1_000_000,
        50_000,
        (Under(5e6, 0, unit="bytes"),),
        warm_up=20_000,
        unit="bytes",
        sizes={"threads": 100_000, "dftracer-utils": 100_000},
    ),
    Row(
        "runtime",
        "records-20k",
        "submit-20k, with and without records for progress and trace",
        "submit-all-records",
        20_000,
        2_000,
        (CostsAtMost(1.05, 1.02, side="no-records"),),
    ),
)

_ENGINE_ROWS = (
    Row(
        "engine",
        "bags-of-1k",
        "20 bags of 1,000 independent no-op tasks, one after the other",
        "bags",
        20_000,
        2_000,
        sizes={"radical": 2_000},
    ),
    Row(
        "engine",
        "bag-4k",
        "4,000 independent no-op tasks",
        "bag",
        4_000,
        400,
        (TimesFasterThan(200, side="radical"), CostsAtMost(1.5, 1, side="asyncio")),
    ),
    Row(
        "engine",
        "bag-100k",
        "100,000 independent no-op tasks",
        "bag",
        100_000,
        5_000,
        (GrowthAtMost(1.2, 1.05, base_row="bags-of-1k"),),
        without=("radical",),
    ),
    Row("engine", "plain-4k", "4,000 no-op tasks with `def` bodies", "plain-bag", 4_000, 400),
    Row(
        "engine",
        "chain-1k",
        "chain of 1,000, registered up front",
        "chain",
        1_000,
        50,
        (TimesFasterThan(1_000, side="radical"), Under(20e-6, 10e-6, each=True)),
        sizes={"radical": 100},
    ),
    Row(
        "engine",
        "awaits-1k",
        "1,000 no-op tasks, each awaited before the next",
        "awaits",
        1_000,
        20,
        (TimesFasterThan(150, 300, side="radical"),),
        sizes={"radical": 200},
    ),
    Row(
        "engine",
        "layers-10k",
        "layers of 100 tasks, each with three of the layer before; 100 layers",
        "layers",
        10_000,
        500,
        (GrowthAtMost(2, 1.3, base_row="bag-4k"),),
        sizes={"radical": 1_000},
    ),
    Row(
        "engine",
        "graph-100k",
        "the same, 1,000 layers",
        "layers",
        100_000,
        1_000,
        repeats=2,
        without=("radical",),
    ),
    Row(
        "engine",
        "graph-1m",
        "the same, 10,000 layers: linear in time",
        "layers",
        1_000_000,
        2_000,
        (GrowthAtMost(1.2, 1.05, base_row="graph-100k"),),
        repeats=2,
        without=("radical", "asyncio"),
    ),
    Row(
        "engine",
        "graph-bytes",
        "memory of 200,000 such tasks, none of which has begun",
        "layers-pending",
        200_000,
        5_000,
        (Under(1_500, 800, unit="bytes", each=True),),
        unit="bytes",
    ),
    Row(
        "engine",
        "exec-500",
        "500 runs of `/bin/echo`, output captured",
        "executables",
        500,
        20,
        (TimesFasterThan(4, side="asyncio"), CostsAtMost(1.2, 1.1, side="spawn")),
    ),
    Row(
        "engine",
        "exec-sleep-1k",
        "1,000 runs of `sleep 1` at a time",
        "sleep-programs",
        1_000,
        50,
        (Under(3, 2),),
        warm_up=1,
    ),
    Row(
        "engine",
        "sleep-1k",
        "1,000 async bodies that sleep 0.2 s",
        "sleeps",
        1_000,
        20,
        (Under(0.6, 0.35),),
        warm_up=2,
        sizes={"radical": 40},
    ),
    Row(
        "engine",
        "noop-4k",
        "4,000 tasks on the backend that runs nothing",
        "noop-bag",
        4_000,
        400,
        (TimesFasterThan(30, 60, side="radical"),),
    ),
    Row(
        "engine",
        "kept-bytes",
        "memory kept of 100,000 tasks whose futures are gone",
        "kept",
        100_000,
        10_000,
        (Under(1, unit="bytes", each=True),),
        warm_up=30_000,
        unit="bytes",
    ),
)

ROWS = _RUNTIME_ROWS + _ENGINE_ROWS
GROUPS = ("runtime", "engine")


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
