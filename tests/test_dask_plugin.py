"""The Dask plugin, on real clusters: of worker processes, and of workers that share a process.

Functions that run on a worker are at the top: a worker process imports this module to find them.
"""

import os
import pickle
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import cloudpickle
import dask
import pytest
from dask.distributed import Client, LocalCluster, Worker, get_worker

from dftracer.utils import (
    Runtime,
    TaskHandle,
    available_cpus,
    current_task,
    get_default_runtime,
    peek_default_runtime,
    set_default_runtime,
)
from dftracer.utils.dask import (
    DFTracerUtilsDaskWorkerPlugin,
    ProgressAggregator,
    register_auto_thread_plugin,
    resolve_local_staging,
)

GUARD_S = 30
"""How long a test waits for what must come."""

NAME = DFTracerUtilsDaskWorkerPlugin.name
WORKERS = 2

Script = Callable[..., str]


# --- run on a worker ----------------------------------------------------------------------------

release = threading.Event()
kept: list[Any] = []
"""What a call leaves for the next one on the same worker."""


def add_one(number: int) -> int:
    return number + 1


async def add_two(number: int) -> int:
    return number + 2


def use_default_runtime(number: int) -> tuple[bool, int, int]:
    """Use the default runtime in a Dask task; tell whether it is the worker's."""
    runtime = get_default_runtime()
    ours = runtime is get_worker().dftracer_utils_runtime
    return ours, runtime.submit(add_one, number).get(), runtime.submit(add_two, number).get()


def sizes() -> dict[str, int]:
    return get_default_runtime().sizes


def name_of_current_task() -> str | None:
    task = current_task()
    return None if task is None else task.name


def program_output() -> bytes:
    return get_default_runtime().run_process(["echo", "here"]).get().stdout


def runtime_and_process(dask_worker: Worker) -> tuple[int, int, bool]:
    runtime = dask_worker.dftracer_utils_runtime
    return os.getpid(), id(runtime), runtime is peek_default_runtime()


def has_runtime(dask_worker: Worker) -> bool:
    return hasattr(dask_worker, "dftracer_utils_runtime")


def has_default() -> bool:
    return peek_default_runtime() is not None


def set_own_default() -> None:
    kept.append(Runtime(threads=1, io_threads=1, python_threads=1))
    set_default_runtime(kept[-1])


def own_is_default() -> bool:
    return peek_default_runtime() is kept[-1]


def drop_own_default() -> None:
    set_default_runtime(None)
    kept.pop().shutdown()


def begin_stuck_task() -> None:
    started = threading.Event()

    def body() -> str:
        started.set()
        release.wait(GUARD_S)
        return "released"

    kept.append(get_default_runtime().submit(body))
    assert started.wait(GUARD_S)


def state_of_stuck_task() -> str:
    handle: TaskHandle[str] = kept[-1]
    return handle.state


def release_stuck_task() -> str:
    release.set()
    handle: TaskHandle[str] = kept.pop()
    try:
        return handle.get(GUARD_S)
    finally:
        release.clear()


# --- clusters -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client of a cluster with worker processes, each of which runs one Dask task at a time."""
    with (
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def register(client: Client) -> Iterator[Callable[[DFTracerUtilsDaskWorkerPlugin], None]]:
    """Register a plugin until the end of the test."""
    with ExitStack() as stack:

        def register_plugin(plugin: DFTracerUtilsDaskWorkerPlugin) -> None:
            client.register_plugin(plugin)
            stack.pop_all()
            stack.callback(client.unregister_worker_plugin, NAME)

        yield register_plugin


@pytest.fixture
def shared() -> Iterator[list[Worker]]:
    """Two workers of this process, which run more Dask tasks at a time than there are CPUs."""
    before = peek_default_runtime()
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=available_cpus() + 1,
            processes=False,
            dashboard_address=":0",
        ) as cluster,
        Client(cluster),
    ):
        yield list(cluster.workers.values())
    set_default_runtime(before)


def on_each(client: Client, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Run a Dask task on each worker, in the worker's thread pool."""
    workers = list(client.nthreads())
    futures = [client.submit(function, *args, workers=[each], pure=False) for each in workers]
    results = [future.result(GUARD_S) for future in futures]
    assert len(results) == WORKERS
    return results


def run_on_each(client: Client, function: Callable[..., Any]) -> list[Any]:
    """Call a function on each worker, outside of Dask's tasks."""
    results = list(client.run(function).values())
    assert len(results) == WORKERS
    return results


# --- register and use -----------------------------------------------------------------------------


def test_default_runtime_is_the_workers_when_a_task_asks_for_it(client, register):
    register(DFTracerUtilsDaskWorkerPlugin())
    assert on_each(client, use_default_runtime, 40) == [(True, 41, 42)] * WORKERS


def test_programs_run_when_a_task_starts_them_on_the_workers_runtime(client, register):
    register(DFTracerUtilsDaskWorkerPlugin())
    assert on_each(client, program_output) == [b"here\n"] * WORKERS


@pytest.mark.parametrize(
    ("plugin", "threads", "io_threads"),
    [
        (DFTracerUtilsDaskWorkerPlugin(), 1, 1),
        (DFTracerUtilsDaskWorkerPlugin(threads=3), 3, 1),
        (DFTracerUtilsDaskWorkerPlugin(io_threads=4), 1, 4),
        (DFTracerUtilsDaskWorkerPlugin(3, 4), 3, 4),
    ],
    ids=["share", "threads", "io_threads", "both"],
)
def test_sizes_are_the_workers_share_when_they_are_not_given(
    client, register, plugin, threads, io_threads
):
    register(plugin)
    expected = {"threads": threads, "io_threads": io_threads, "python_threads": 1}
    assert on_each(client, sizes) == [expected] * WORKERS


@pytest.mark.parametrize("size", ["threads", "io_threads"])
def test_value_error_names_the_size_when_it_is_negative(size):
    with pytest.raises(ValueError, match=rf"^{size} must not be negative, but is -1$"):
        DFTracerUtilsDaskWorkerPlugin(**{size: -1})


def test_runtimes_are_replaced_when_the_plugin_is_registered_again(client, register):
    register(DFTracerUtilsDaskWorkerPlugin())
    register(DFTracerUtilsDaskWorkerPlugin(threads=7))
    assert on_each(client, sizes) == [{"threads": 7, "io_threads": 1, "python_threads": 1}] * 2
    assert all(is_default for _, _, is_default in run_on_each(client, runtime_and_process))


def test_sizes_change_when_the_plugin_is_unregistered_before(client, register):
    register(DFTracerUtilsDaskWorkerPlugin())
    client.unregister_worker_plugin(NAME)
    register(DFTracerUtilsDaskWorkerPlugin(threads=7))
    assert [each["threads"] for each in on_each(client, sizes)] == [7] * WORKERS


def test_automatic_plugin_leaves_the_runtimes_that_there_are_when_it_is_registered(
    client, register
):
    register(DFTracerUtilsDaskWorkerPlugin(threads=7))
    before = run_on_each(client, runtime_and_process)
    for _ in range(2):
        register_auto_thread_plugin()
    assert run_on_each(client, runtime_and_process) == before


def test_automatic_plugin_gives_each_worker_its_share_when_there_is_a_client(client):
    register_auto_thread_plugin()
    try:
        assert on_each(client, sizes) == [{"threads": 1, "io_threads": 1, "python_threads": 1}] * 2
    finally:
        client.unregister_worker_plugin(NAME)


# --- objects that are like a worker ---------------------------------------------------------------


class State:
    nthreads = 3


class WorkerWithState:
    state = State()


class WorkerWithThreads:
    nthreads = 2


class WorkerOfOurs:
    """It says nothing of itself."""


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(WorkerWithState, 3), (WorkerWithThreads, 2), (WorkerOfOurs, available_cpus())],
)
def test_runtime_is_sized_when_the_worker_is_another_object(kind, expected):
    worker = kind()
    plugin = DFTracerUtilsDaskWorkerPlugin()
    before = peek_default_runtime()
    plugin.setup(worker)
    try:
        assert set(worker.dftracer_utils_runtime.sizes.values()) == {expected}
        assert peek_default_runtime() is worker.dftracer_utils_runtime
        first = worker.dftracer_utils_runtime
        DFTracerUtilsDaskWorkerPlugin(threads=4).setup(worker)
        assert worker.dftracer_utils_runtime.threads == 4
        assert not first.is_responsive()
    finally:
        plugin.teardown(worker)
        plugin.teardown(worker)
    assert peek_default_runtime() is before


# --- staging and progress -------------------------------------------------------------------------


def test_nothing_is_registered_when_no_client_is_active(run_script: Script) -> None:
    out = run_script(
        """
        from dftracer.utils.dask import register_auto_thread_plugin
        print(register_auto_thread_plugin())
        """
    )
    assert out == "None\n"


class Workers:
    """A client that knows of workers."""

    def __init__(self, info):
        self.info = info

    def scheduler_info(self):
        return self.info


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({}, "/tmp/dftracer-sst-staging"),
        ({"workers": None}, "/tmp/dftracer-sst-staging"),
        ({"workers": {"a": {}}}, "/tmp/dftracer-sst-staging"),
        (
            {"workers": {"a": {"local_directory": "/scratch/a"}, "b": {}}},
            "/scratch/a/dftracer-sst-staging",
        ),
    ],
)
def test_staging_is_below_the_workers_directory_when_that_is_known(info, expected):
    assert resolve_local_staging(Workers(info)) == expected


def test_staging_is_below_a_directory_of_the_cluster_when_it_is_real(client):
    directories = {each["local_directory"] for each in client.scheduler_info()["workers"].values()}
    assert os.path.dirname(resolve_local_staging(client)) in directories


def tell_progress(batch: str, done: int, total: int) -> None:
    report = {"phase": "read", "batch": batch, "done": done, "total": total}
    get_worker().log_event("dft-progress", report)


def test_progress_is_added_up_when_batches_tell_theirs(client):
    heard: queue.Queue[tuple[int, int, str]] = queue.Queue()
    with ProgressAggregator(client, lambda *told: heard.put(told)):
        client.submit(tell_progress, "a", 1, 4, pure=False).result()
        assert heard.get(timeout=GUARD_S) == (1, 4, "read")
        client.submit(tell_progress, "b", 2, 6, pure=False).result()
        assert heard.get(timeout=GUARD_S) == (3, 10, "read")
        client.submit(tell_progress, "a", 4, 4, pure=False).result()
        assert heard.get(timeout=GUARD_S) == (6, 10, "read")


def test_next_progress_is_heard_when_the_callback_raised(client, caplog):
    heard: queue.Queue[tuple[int, int, str]] = queue.Queue()

    def hear(done: int, total: int, phase: str) -> None:
        heard.put((done, total, phase))
        if done == 1:
            raise LookupError("not this one")

    with ProgressAggregator(client, hear):
        for done in (1, 2):
            client.submit(tell_progress, "a", done, 4, pure=False).result()
            assert heard.get(timeout=GUARD_S) == (done, 4, "read")
    assert "not this one" in caplog.text


def test_nobody_is_called_when_the_client_has_no_topics_or_there_is_no_callback(client):
    for of, callback in ((Workers({}), print), (client, None)):
        with ProgressAggregator(of, callback) as aggregator:
            assert isinstance(aggregator, ProgressAggregator)


# --- restart --------------------------------------------------------------------------------------


def test_new_process_has_a_runtime_when_a_worker_is_killed():
    # In a cluster of its own. Client.restart() loses workers on a busy machine, plugin or not.
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"}),
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(DFTracerUtilsDaskWorkerPlugin())
        killed = client.submit(os.getpid, pure=False).result(GUARD_S)
        os.kill(killed, signal.SIGKILL)
        # It waits for the worker that the nanny starts instead.
        assert client.submit(use_default_runtime, 0).result(GUARD_S) == (True, 1, 2)
        assert client.submit(os.getpid, pure=False).result(GUARD_S) != killed


# --- unregister -----------------------------------------------------------------------------------


def test_worker_is_as_before_when_the_plugin_is_unregistered(client):
    client.register_plugin(DFTracerUtilsDaskWorkerPlugin())
    assert run_on_each(client, has_runtime) == [True] * WORKERS
    client.unregister_worker_plugin(NAME)
    assert run_on_each(client, has_runtime) == [False] * WORKERS
    assert run_on_each(client, has_default) == [False] * WORKERS


def test_default_of_before_is_restored_when_the_plugin_is_unregistered(client):
    client.run(set_own_default)
    client.register_plugin(DFTracerUtilsDaskWorkerPlugin())
    assert run_on_each(client, own_is_default) == [False] * WORKERS
    client.unregister_worker_plugin(NAME)
    assert run_on_each(client, own_is_default) == [True] * WORKERS
    client.run(drop_own_default)


def test_default_set_meanwhile_stays_when_the_plugin_is_unregistered(client):
    client.register_plugin(DFTracerUtilsDaskWorkerPlugin())
    client.run(set_own_default)
    client.unregister_worker_plugin(NAME)
    assert run_on_each(client, own_is_default) == [True] * WORKERS
    client.run(drop_own_default)


def test_unregistering_does_not_wait_when_a_task_is_stuck(client):
    client.register_plugin(DFTracerUtilsDaskWorkerPlugin())
    on_each(client, begin_stuck_task)
    client.unregister_worker_plugin(NAME)
    assert run_on_each(client, has_runtime) == [False] * WORKERS
    assert run_on_each(client, state_of_stuck_task) == ["running"] * WORKERS
    assert run_on_each(client, release_stuck_task) == ["released"] * WORKERS


# --- workers that share a process -----------------------------------------------------------------


def test_each_worker_has_its_own_runtime_when_they_share_a_process(shared):
    before = peek_default_runtime()
    client = Client.current()
    client.register_plugin(DFTracerUtilsDaskWorkerPlugin())
    runtimes = [worker.dftracer_utils_runtime for worker in shared]
    assert runtimes[0] is not runtimes[1]
    assert peek_default_runtime() in runtimes
    assert [runtime.threads for runtime in runtimes] == [available_cpus() + 1] * 2
    client.unregister_worker_plugin(NAME)
    assert not any(map(has_runtime, shared))
    assert peek_default_runtime() is before


@pytest.mark.parametrize("leaving", [0, 1], ids=["first", "last"])
@pytest.mark.parametrize("plugins", [1, 2], ids=["one-plugin", "two-plugins"])
def test_default_is_never_a_runtime_of_the_past_when_workers_leave_in_any_order(
    shared, leaving, plugins
):
    plugin = [DFTracerUtilsDaskWorkerPlugin() for _ in range(plugins)]
    with Runtime(threads=1) as before:
        set_default_runtime(before)
        for worker in shared:
            plugin[0].setup(worker)
        staying = shared[1 - leaving].dftracer_utils_runtime
        plugin[-1].teardown(shared[leaving])
        assert peek_default_runtime() is staying
        assert staying.submit(add_one, 1).get() == 2
        plugin[-1].teardown(shared[1 - leaving])
        assert peek_default_runtime() is before
        with pytest.raises(RuntimeError):
            staying.submit(add_one, 1)


def test_last_setup_counts_when_a_worker_is_set_up_twice(shared):
    before = peek_default_runtime()
    plugin = DFTracerUtilsDaskWorkerPlugin()
    plugin.setup(shared[0])
    first = shared[0].dftracer_utils_runtime
    plugin.setup(shared[0])
    assert peek_default_runtime() is shared[0].dftracer_utils_runtime is not first
    with pytest.raises(RuntimeError):
        first.submit(add_one, 1)
    plugin.teardown(shared[0])
    assert peek_default_runtime() is before


def test_nothing_happens_when_a_worker_without_a_runtime_is_torn_down(shared):
    with Runtime(threads=1) as own:
        set_default_runtime(own)
        DFTracerUtilsDaskWorkerPlugin().teardown(shared[0])
        assert peek_default_runtime() is own


def test_dask_task_runs_on_the_runtime_when_its_executor_is_annotated(shared):
    client = Client.current()
    client.register_plugin(DFTracerUtilsDaskWorkerPlugin())
    for worker in shared:
        worker.executors["dftracer"] = worker.dftracer_utils_runtime.executor()
    assert client.submit(name_of_current_task, pure=False).result(GUARD_S) is None
    with dask.annotate(executor="dftracer"):
        future = client.submit(name_of_current_task, pure=False)
    assert future.result(GUARD_S) is not None
    for worker in shared:
        worker.executors.pop("dftracer").shutdown()
    client.unregister_worker_plugin(NAME)


# --- pickling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pickler", [pickle, cloudpickle], ids=["pickle", "cloudpickle"])
def test_plugin_is_small_and_the_same_when_it_is_pickled(pickler):
    plugin = DFTracerUtilsDaskWorkerPlugin(threads=3, io_threads=4)
    pickled = pickler.dumps(plugin)
    again = pickle.loads(pickled)
    assert len(pickled) < 200
    assert vars(again) == vars(plugin) == {"threads": 3, "io_threads": 4, "trace": None}
    assert (again.name, again.idempotent) == (NAME, False)


def test_pickled_plugin_holds_no_state_when_it_has_set_up_a_worker(shared):
    plugin = DFTracerUtilsDaskWorkerPlugin()
    before = pickle.dumps(plugin)
    plugin.setup(shared[0])
    assert pickle.dumps(plugin) == before
    plugin.teardown(shared[0])


# --- the process ----------------------------------------------------------------------------------


def test_import_error_names_the_extra_when_distributed_is_missing(run_script: Script):
    out = run_script(
        """
        import sys
        sys.modules["distributed"] = None
        import dftracer.utils
        try:
            import dftracer.utils.dask
        except ImportError as error:
            print(error)
        """
    )
    assert out == (
        "dftracer.utils.dask needs dask.distributed: pip install 'dftracer-asyncflow[dask]'\n"
    )


CLUSTER_PROGRAM = """
import functools
from dask.distributed import Client, LocalCluster, Nanny
from dftracer.utils import get_default_runtime
from dftracer.utils.dask import (
    DFTracerUtilsDaskWorkerPlugin,
    ProgressAggregator,
    register_auto_thread_plugin,
    resolve_local_staging,
)

def use():
    runtime = get_default_runtime()
    handles = [runtime.submit(pow, number, 2) for number in range(100)]
    return sum(handle.get() for handle in handles)

if __name__ == "__main__":
    Nanny.close = functools.partialmethod(Nanny.close, timeout=30)  # and not 5 s
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(DFTracerUtilsDaskWorkerPlugin())
        print(client.submit(use).result(30))
"""


def test_workers_end_without_a_word_when_the_cluster_is_closed(run_script: Script):
    # A worker process that does not end by itself is killed by its nanny, which says so.
    options = ("-W", "ignore:Creating scratch directories")  # in which a busy machine is slow
    assert run_script(CLUSTER_PROGRAM, options=options) == "328350\n"


def test_child_sets_up_its_own_workers_when_a_process_with_workers_forks(run_script: Script):
    out = run_script(
        """
        import os
        import warnings
        from types import SimpleNamespace
        from dftracer.utils import peek_default_runtime
        from dftracer.utils.dask import DFTracerUtilsDaskWorkerPlugin

        warnings.filterwarnings("ignore", "This process .* is multi-threaded")
        plugin = DFTracerUtilsDaskWorkerPlugin()
        parents = SimpleNamespace(state=SimpleNamespace(nthreads=1))
        plugin.setup(parents)
        parents.dftracer_utils_runtime.submit(pow, 2, 2).get()
        if os.fork() == 0:
            own = SimpleNamespace(state=SimpleNamespace(nthreads=1))
            plugin.setup(own)
            print(own.dftracer_utils_runtime.submit(pow, 2, 3).get(), flush=True)
            plugin.teardown(own)
            print(peek_default_runtime(), flush=True)
        else:
            os.wait()
            print(parents.dftracer_utils_runtime is peek_default_runtime())
        """
    )
    assert out == "8\nNone\nTrue\n"
