"""Native log messages in Python's logging, and no way to deadlock over them."""

from collections.abc import Callable

Script = Callable[..., str]


def test_native_messages_reach_python_logging_when_debug_is_on(run_script: Script) -> None:
    out = run_script(
        """
        import logging
        import sys
        logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(name)s %(message)s")
        from dftracer.utils import Runtime
        with Runtime(threads=2, io_threads=3, python_threads=4):
            pass
        logging.getLogger().setLevel(logging.WARNING)
        with Runtime():
            pass
        """
    )
    assert out.splitlines() == [
        "dftracer.utils A runtime has started, with 2 compute threads, 3 I/O threads and up to 4 "
        "Python workers.",
        "dftracer.utils A runtime was shut down.",
    ]


def test_nobody_deadlocks_when_everybody_logs(run_script: Script) -> None:
    # Native code logs when runtimes come and go; bodies, callbacks and other threads log under the
    # lock of the same handler; processes end on threads without the interpreter meanwhile.
    out = run_script(
        """
        import io
        import logging
        import threading
        text = io.StringIO()
        logging.basicConfig(level=logging.DEBUG, stream=text)
        from dftracer.utils import Runtime, as_completed

        log = logging.getLogger("test")

        def body(number):
            log.debug("body %d", number)
            if number % 5 == 0:
                raise ValueError(number)

        async def coroutine(number):
            log.debug("coroutine %d", number)

        def storm():
            for _ in range(15):
                with Runtime(python_threads=2) as runtime:
                    runtime.set_error_callback(lambda handle, error: log.debug("%s", error))
                    handles = [runtime.submit(body, number) for number in range(20)]
                    handles += [runtime.submit(coroutine, number) for number in range(20)]
                    handles += [runtime.run_process(["./no-such-program"]) for _ in range(3)]
                    handles += [runtime.run_process(["true"])]
                    for handle in handles:
                        handle.add_done_callback(lambda handle: log.debug("%s", handle))
                    for handle in as_completed(handles):
                        pass

        threads = [threading.Thread(target=storm) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(text.getvalue().count("A runtime was shut down."))
        """
    )
    assert out == "60\n"
