"""Programs as tasks: what a command means, and what comes back."""

import asyncio
import os
import pickle
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from engine_support import assert_nothing_kept, async_identity, identity

from dftracer.asyncflow import (
    CommandError,
    DependencyFailureError,
    ExecutableError,
    WorkflowEngine,
)

SHELL = "/bin/sh"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory in which programs run, with a few files in it."""
    for name in ("a.txt", "b.txt", "name with spaces.txt", ".hidden"):
        (tmp_path / name).write_text(f"content of {name}\n")
    (tmp_path / "below").mkdir()
    (tmp_path / "link").symlink_to("below")
    script = tmp_path / "script"
    script.write_text("echo a script without a first line: $1\n")
    script.chmod(0o755)
    full_script = tmp_path / "script with a first line"
    full_script.write_text("#!/bin/sh\necho argument: $1\n")
    full_script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "below"))
    monkeypatch.setenv("VAR", "value of  var")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.delenv("UNSET", raising=False)
    return tmp_path


async def run(flow: WorkflowEngine, command: Any) -> str:
    """Run ``command`` as a task."""

    def program() -> Any:
        return command

    return await flow.executable_task(program)()


# --- what a string means ------------------------------------------------------------------------

COMMANDS = [
    # words and quotes
    "echo hello",
    "  echo   two   words  ",
    "echo 'single  quoted' \"double  quoted\"",
    """echo "it's" 'say "hi"' """,
    "echo ''",
    """echo a'b'c"d"e""",
    r"echo back\ slash \'x\' \"y\" \\z",
    r'''echo "in \" double \\ quotes"''',
    r"echo 'in single \ quotes'",
    r"echo C:\dir\new",
    "'echo' quoted name",
    "ec'ho' split name",
    "echo tab\tbetween",
    "echo a\rb",
    "echo a\vb\fc",
    "echo ünïcödé 漢字",
    "echo -n no newline",
    "echo -e x",
    r"echo 'a\tb\nc'",
    r"printf '\x41\101'",
    "echo backslash at the end \\",
    # expansions
    "echo $VAR",
    'echo "$VAR" ${VAR} "${VAR}x" $EMPTY "$EMPTY" ${UNSET:-default}',
    "echo '$VAR'",
    r"echo \$VAR",
    'echo "$(echo nested "$VAR")" `echo old style`',
    "echo $((6 * 7)) $? $#",
    "echo *.txt",
    "echo '*.txt' \"*.txt\"",
    "echo ?.txt [ab].txt nothing*here",
    "echo {a,b}",
    "echo ~",
    "echo ~/x '~' a~",
    "cat 'name with spaces.txt'",
    r"cat name\ with\ spaces.txt",
    # pipes, redirections, lists
    "echo one two | wc -w",
    "cat a.txt b.txt | sort -r | head -n 1",
    "echo to a file > out.txt; cat out.txt",
    "echo more >> out2.txt && echo more >> out2.txt && cat out2.txt",
    "cat < a.txt",
    "echo oops >&2",
    "echo both; echo err 1>&2",
    "true && echo yes || echo no",
    "false && echo yes || echo no",
    "false || echo recovered",
    "(cd below; pwd); pwd",
    "sleep 0 & wait; echo waited",
    "echo first\necho second",
    "cat <<END\nheredoc $VAR\nEND\n",
    "echo visible # a comment",
    "echo not#a comment",
    "# nothing but a comment",
    "echo trailing;",
    "yes | head -n 2",
    # words of the shell
    "cd below && pwd",
    "cd below",
    "pwd",
    "export A=1; echo $A",
    "A=1 env | grep ^A=",
    "if true; then echo yes; fi",
    'for f in *.txt; do echo "<$f>"; done',
    "while false; do :; done",
    "case $VAR in value*) echo matched;; esac",
    "! false",
    "! true",
    "{ echo grouped; }",
    "[ -f a.txt ] && echo exists",
    "test -d below",
    "test -d nowhere",
    "set -- a b; echo $2",
    "umask 022",
    "exec echo replaced",
    "command -v sh",
    ":",
    ".  ./script",
    "eval 'echo evaluated'",
    "f() { echo function $1; }; f x",
    "trap 'echo trapped' EXIT",
    # programs by path
    "./script plain",
    "./script $VAR",
    # ends
    "exit 3",
    "true",
    "false",
    "sh -c 'exit 7'",
    "sh -c 'echo out; echo err >&2; exit 255'",
    "kill -TERM $$",
    "sh -c 'kill -9 $$'",
    "ls nowhere",
    "dft-no-such-program; true",
    "echo before; dft-no-such-program",
    "cat",
]


def remove_output() -> None:
    """Remove what a command may have left for a second run to find."""
    for name in ("out.txt", "out2.txt"):
        Path(name).unlink(missing_ok=True)


def by_the_shell(command: str) -> tuple[str, str, int]:
    """Return what the system's shell makes of ``command``."""
    done = subprocess.run(
        command,
        shell=True,
        executable=SHELL,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    return (
        done.stdout.decode(errors="replace"),
        done.stderr.decode(errors="replace"),
        done.returncode,
    )


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("command", COMMANDS)
async def test_a_string_means_what_it_means_to_the_shell_when_it_is(command: str) -> None:
    stdout, stderr, code = by_the_shell(command)
    remove_output()
    async with await WorkflowEngine.create() as flow:
        if code == 0:
            assert await run(flow, command) == stdout
            return
        with pytest.raises(ExecutableError) as caught:
            await run(flow, command)
        error = caught.value
        assert (error.stdout, error.stderr) == (stdout, stderr)
        assert (error.exit_code, error.signal) == ((code, None) if code > 0 else (None, -code))


async def test_pwd_is_the_one_of_the_shell_when_the_directory_is_a_link(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here / "link")
    monkeypatch.setenv("PWD", str(here / "link"))
    async with await WorkflowEngine.create() as flow:
        assert await run(flow, "pwd") == by_the_shell("pwd")[0]


# --- a list of words ----------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
async def test_no_shell_is_used_when_the_command_is_a_list() -> None:
    words = [
        "$VAR",
        "*.txt",
        "~",
        "a b",
        "",
        "|",
        "; false",
        "# no comment",
        "'q'",
        '"',
        "\n",
        "\\",
    ]
    async with await WorkflowEngine.create() as flow:
        for make in (list, tuple):
            output = await run(flow, make(["printf", "<%s>", *words]))
            assert output == "".join(f"<{word}>" for word in words)


async def test_paths_are_words_when_the_command_is_a_list(here: Path) -> None:
    async with await WorkflowEngine.create() as flow:
        assert await run(flow, [Path("cat"), here / "a.txt"]) == "content of a.txt\n"
        assert await run(flow, (here / "script with a first line", "x")) == "argument: x\n"


async def test_bytes_arrive_unchanged_when_a_word_is_not_utf_8(here: Path) -> None:
    expected = b"caf\xe9 \xff\xfe"
    word = os.fsdecode(expected)
    (here / word).write_text("content\n")
    async with await WorkflowEngine.create() as flow:
        await run(flow, ["sh", "-c", 'printf %s "$1" > out.txt', "sh", word])
        await run(flow, f"printf '%s' '{word}' > out2.txt")
        assert await run(flow, ["echo", word]) == expected.decode(errors="replace") + "\n"
        assert await run(flow, ["cat", Path(word)]) == "content\n"
    assert (here / "out.txt").read_bytes() == expected
    assert (here / "out2.txt").read_bytes() == expected


async def test_the_task_fails_when_a_word_cannot_be_encoded() -> None:
    async with await WorkflowEngine.create() as flow:
        with pytest.raises(UnicodeEncodeError):
            await run(flow, ["echo", "\ud800"])
        with pytest.raises(UnicodeEncodeError):
            await run(flow, "echo \ud800")
        assert await run(flow, "echo fine") == "fine\n"


async def test_the_task_fails_when_the_arguments_are_too_long() -> None:
    async with await WorkflowEngine.create() as flow:
        with pytest.raises(OSError, match=r"'program'.*too long"):
            await run(flow, ["echo", "x" * 3_000_000])
        assert await run(flow, ["sh", "-c", "echo ${#1}", "sh", "x" * 100_000]) == "100000\n"


# --- no command ---------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize(
    "value",
    [None, "", "   ", 42, [], [""], ["ls", 3], b"ls", "echo 'open", 'echo "open', "ls a\0b"],
    ids=repr,
)
async def test_the_task_fails_by_name_when_its_body_returns(value: Any, is_async: bool) -> None:
    def wrong(value: Any) -> Any:
        return value

    async def async_wrong(value: Any) -> Any:
        return value

    async with await WorkflowEngine.create() as flow:
        body = async_wrong if is_async else wrong
        future = flow.executable_task(body)(value)
        behind = flow.function_task(identity)(future)
        with pytest.raises(CommandError, match=f"'{body.__name__}'") as caught:
            await future
        with pytest.raises(DependencyFailureError) as of_dependent:
            await behind
        assert of_dependent.value.root_cause is caught.value
        assert await run(flow, "echo fine") == "fine\n"
        assert_nothing_kept(flow)


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
async def test_the_very_error_arrives_when_its_body_raises(is_async: bool) -> None:
    error = LookupError("mine")

    def raising() -> str:
        raise error

    async def async_raising() -> str:
        await asyncio.sleep(0)
        raise error

    async with await WorkflowEngine.create() as flow:
        with pytest.raises(LookupError) as caught:
            await flow.executable_task(async_raising if is_async else raising)()
        assert caught.value is error


# --- programs that cannot start -----------------------------------------------------------------


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("command", "error_type", "program"),
    [
        ("dft-no-such-program -x", FileNotFoundError, "dft-no-such-program"),
        (["dft-no-such-program", "-x"], FileNotFoundError, "dft-no-such-program"),
        ("./nowhere/program", FileNotFoundError, "./nowhere/program"),
        ("./a.txt", PermissionError, "./a.txt"),
        (["./a.txt"], PermissionError, "./a.txt"),
        (["./below"], PermissionError, "./below"),
    ],
    ids=str,
)
async def test_the_error_names_program_and_task_when_it_cannot_start(
    command: Any, error_type: type[OSError], program: str
) -> None:
    async with await WorkflowEngine.create() as flow:
        future = flow.executable_task(lambda: command)()
        named = flow.executable_task(identity)(command)
        for expected, component in (("<lambda>", future), ("identity", named)):
            with pytest.raises(error_type) as caught:
                await component
            assert caught.value.filename == program
            assert f"'{expected}'" in str(caught.value)
            assert program in str(caught.value)
            assert caught.value.errno is not None
        assert await run(flow, "echo fine") == "fine\n"


# --- how programs end ---------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
async def test_the_error_tells_all_when_a_program_fails() -> None:
    async with await WorkflowEngine.create() as flow:

        @flow.executable_task
        def failing(code: int) -> str:
            return f"cat a.txt; echo 'last words' >&2; exit {code}"

        future = failing(42)
        with pytest.raises(ExecutableError) as caught:
            await future
        error = caught.value
        assert isinstance(error, RuntimeError)
        assert (error.task, error.exit_code, error.signal) == ("failing", 42, None)
        assert (error.stdout, error.stderr) == ("content of a.txt\n", "last words\n")
        assert error.command == "cat a.txt; echo 'last words' >&2; exit 42"
        for part in ("'failing'", "code 42", "last words", "content of a.txt", error.command):
            assert part in str(error)
        assert future.task["exit_code"] == 42
        copy = pickle.loads(pickle.dumps(error))
        assert (str(copy), vars(copy)) == (str(error), vars(error))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGUSR1])
async def test_the_error_names_the_signal_when_one_ends_the_program(
    number: signal.Signals,
) -> None:
    command = ["sh", "-c", f"ulimit -c 0; echo out; kill -{number.value} $$"]
    async with await WorkflowEngine.create() as flow:
        with pytest.raises(ExecutableError, match=f"signal {number.value}") as caught:
            await run(flow, command)
        assert (caught.value.exit_code, caught.value.signal) == (None, number.value)
        assert caught.value.stdout == "out\n"


async def test_dependents_tell_the_end_of_the_program_when_it_fails() -> None:
    async with await WorkflowEngine.create() as flow:
        future = flow.executable_task(lambda: "exit 9")()
        with pytest.raises(DependencyFailureError, match="code 9") as caught:
            await flow.function_task(identity)(future)
        assert caught.value.root_cause is future.exception()


async def test_a_program_ends_with_its_reader_when_it_writes_to_a_pipe() -> None:
    # Python ignores SIGPIPE, and a program that inherited this would complain or go on.
    masks = "grep -E '^Sig(Blk|Ign):' /proc/self/status"
    async with await WorkflowEngine.create() as flow:
        assert await run(flow, "yes | head -n 1") == "y\n"
        blocked, ignored = (
            int(line.split()[1], 16) for line in (await run(flow, masks)).splitlines()
        )
        assert blocked == 0
        assert not ignored & 1 << signal.SIGPIPE - 1


# --- output -------------------------------------------------------------------------------------


async def test_the_output_is_text_when_a_program_writes() -> None:
    async with await WorkflowEngine.create() as flow:
        future = flow.executable_task(lambda: "echo out; echo err >&2")()
        assert await future == "out\n"
        assert future.task["stderr"] == "err\n"
        assert future.task["exit_code"] == 0
        assert await run(flow, "true") == ""
        assert await run(flow, r"printf 'a\r\nb\0c'") == "a\r\nb\0c"
        assert await run(flow, "echo ünïcödé") == "ünïcödé\n"


async def test_the_output_is_replaced_when_it_is_not_utf_8() -> None:
    expected = b"a\xffb\xc3(\n".decode(errors="replace")
    async with await WorkflowEngine.create() as flow:
        assert await run(flow, r"printf 'a\377b\303(\n'") == expected
        with pytest.raises(ExecutableError) as caught:
            await run(flow, r"printf 'a\377b\303(\n' >&2; exit 1")
        assert caught.value.stderr == expected


async def test_all_output_arrives_when_it_is_large() -> None:
    size = 5_000_000
    lines = f"yes 0123456789abcde | head -c {size}"
    async with await WorkflowEngine.create() as flow:
        output = await run(flow, lines)
        assert len(output) == size
        assert set(output.split("\n")) == {"0123456789abcde", "0123456789abcde"[: size % 16]}
        future = flow.executable_task(lambda: f"({lines}) & ({lines}) >&2; wait; exit 1")()
        with pytest.raises(ExecutableError) as caught:
            await future
        assert (len(caught.value.stdout), len(caught.value.stderr)) == (size, size)
        assert len(str(caught.value)) < 10_000


async def test_input_is_empty_when_a_program_reads() -> None:
    async with await WorkflowEngine.create() as flow:
        assert await run(flow, ["cat"]) == ""
        assert await run(flow, "wc -c") == by_the_shell("wc -c")[0]


# --- many, and their dependencies ---------------------------------------------------------------


async def test_all_run_at_once_when_there_are_two_hundred(tmp_path: Path) -> None:
    count = 200
    ready, go = tmp_path / "ready", tmp_path / "go"
    for pipe in (ready, go):
        os.mkfifo(pipe)

    def all_are_ready() -> None:
        with ready.open() as pipe:
            for _ in range(count):
                assert pipe.readline() == "ready\n"

    async with await WorkflowEngine.create() as flow:

        @flow.executable_task
        def program(number: int) -> list[str]:
            script = 'echo ready > "$1"; read -r _ < "$2"; echo "$3"'
            return ["sh", "-c", script, "sh", str(ready), str(go), str(number)]

        # Kept open here too, so that no end of file comes between two writers or two readers.
        held = [os.open(pipe, os.O_RDWR) for pipe in (ready, go)]
        try:
            futures = [program(number) for number in range(count)]
            await asyncio.to_thread(all_are_ready)
            os.write(held[1], b"\n" * count)
            assert await asyncio.gather(*futures) == [f"{number}\n" for number in range(count)]
        finally:
            for descriptor in held:
                os.close(descriptor)
        assert_nothing_kept(flow)


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
async def test_the_body_sees_values_when_it_depends_on_futures(is_async: bool) -> None:
    seen: list[Any] = []

    def command(first: str, *, rest: list[Any]) -> list[str]:
        seen.append((first, rest))
        return ["printf", "%s,", first, *map(str, rest)]

    async def async_command(first: str, *, rest: list[Any]) -> list[str]:
        await asyncio.sleep(0)
        return command(first, rest=rest)

    loop = asyncio.get_running_loop()
    async with await WorkflowEngine.create() as flow:
        plain: asyncio.Future[str] = loop.create_future()
        future = flow.executable_task(async_command if is_async else command)(
            flow.executable_task(lambda: "printf output")(),
            rest=[flow.function_task(identity)(7), flow.block(async_identity)("block"), plain],
        )
        loop.call_soon(plain.set_result, "plain")
        assert await future == "output,7,block,plain,"
        assert seen == [("output", [7, "block", "plain"])]


async def test_output_is_an_argument_when_another_task_depends_on_it() -> None:
    async with await WorkflowEngine.create() as flow:
        shout = flow.function_task(str.upper)
        say = flow.executable_task(lambda text: ["printf", "%s!", text])
        assert await shout(say(shout(say("hello")))) == "HELLO!!"


async def test_the_body_runs_in_the_thread_of_the_loop_when_called() -> None:
    threads: list[threading.Thread] = []

    def command() -> str:
        threads.append(threading.current_thread())
        return "true"

    async with await WorkflowEngine.create() as flow:
        await flow.executable_task(command)()
    assert threads == [threading.current_thread()]


async def test_programs_and_failures_keep_apart_when_they_run_together() -> None:
    async with await WorkflowEngine.create() as flow:
        task = flow.executable_task(lambda number: f"echo {number}; exit {number % 3}")
        futures = [task(number) for number in range(60)]
        results = await asyncio.gather(*futures, return_exceptions=True)
        for number, result in enumerate(results):
            if number % 3 == 0:
                assert result == f"{number}\n"
            else:
                assert isinstance(result, ExecutableError)
                assert (result.exit_code, result.stdout) == (number % 3, f"{number}\n")
        assert_nothing_kept(flow)


@pytest.mark.usefixtures("new_loop")
async def test_programs_of_the_engine_and_of_asyncio_keep_apart_when_mixed() -> None:
    async with await WorkflowEngine.create() as flow:
        task = flow.executable_task(lambda number: f"exit {number}")
        futures = [task(number) for number in range(1, 6)]
        processes = [await asyncio.create_subprocess_shell(f"exit {n + 10}") for n in range(1, 6)]
        codes = [await process.wait() for process in processes]
        errors = await asyncio.gather(*futures, return_exceptions=True)
        assert codes == [11, 12, 13, 14, 15]
        assert [error.exit_code for error in errors if isinstance(error, ExecutableError)] == [
            *range(1, 6)
        ]
