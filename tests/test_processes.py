"""The helper that every test starts programs with: nothing that a program leaves behind outlives the test."""

from __future__ import annotations

import os
import re
import socket
import sys
import time

import pytest

import processes
from processes import Countdown, ProcessFailedError, Program, finish_all, is_alive, reserved_port, run, run_python

# As torchrun does it: the child has a session of its own and holds the output of its parent.
LAUNCHER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("child", child.pid, flush=True)
{then}
"""


def child_of(printed: str) -> int:
    found = re.search(r"child (\d+)", printed)
    assert found, printed
    return int(found[1])


def test_a_limit_ends_the_launcher_and_its_grandchildren_within_seconds() -> None:
    program = Program([sys.executable, "-c", LAUNCHER.format(then="time.sleep(600)")])
    program.wait_for("child", 60.0)
    start = time.monotonic()
    with pytest.raises(ProcessFailedError, match=r"(?s)did not end within 0.5 s.*--- stdout\nchild \d+"):
        program.finish(limit=0.5)
    assert time.monotonic() - start < 0.5 * processes.MOST_SLOWDOWN + 10.0
    assert not is_alive(program.pid)
    assert not is_alive(child_of(program.read()))


@pytest.mark.parametrize(("then", "status"), [("", 0), ("sys.exit(3)", 3)])
def test_orphans_of_a_launcher_that_has_ended_are_ended(then: str, status: int) -> None:
    program = run([sys.executable, "-c", LAUNCHER.format(then=then)], status=status)
    assert program.status() == status
    assert not is_alive(child_of(program.read()))


def test_one_failure_ends_the_programs_that_work_together_and_names_each() -> None:
    sources = ("import time; print('waiting', flush=True); time.sleep(600)", "raise SystemExit('a rank that fails')")
    start = time.monotonic()
    with pytest.raises(
        ProcessFailedError, match=r"(?s)was still running.*waiting.*ended with status 1.*rank that fails"
    ):
        finish_all([Program([sys.executable, "-c", source]) for source in sources], 600.0, grace=2.0)
    assert time.monotonic() - start < 2.0 * processes.MOST_SLOWDOWN + 20.0
    finish_all([Program([sys.executable, "-c", "pass"]) for _ in range(2)], 60.0)


def test_an_exception_in_the_test_ends_the_program() -> None:
    program = Program([sys.executable, "-c", LAUNCHER.format(then="time.sleep(600)")])

    def fail_inside() -> None:
        with program:
            program.wait_for("child", 60.0)
            raise KeyError("in the test")

    with pytest.raises(KeyError):
        fail_inside()
    assert not is_alive(program.pid)
    assert not is_alive(child_of(program.read()))


def test_a_failure_shows_the_command_the_status_and_what_was_printed() -> None:
    source = "import sys; print('before'); sys.exit('a reason')"
    with pytest.raises(
        ProcessFailedError, match=r"(?s)-c .*ended with status 1, expected 0.*stdout\nbefore.*stderr\na reason"
    ):
        run_python(source)
    assert run([sys.executable, "-c", source], status=None).read("stderr") == "a reason\n"


def test_waiting_for_a_line_ends_with_the_program() -> None:
    with pytest.raises(ProcessFailedError, match="ended with status 0 before it printed 'ready'"):
        Program([sys.executable, "-c", "pass"]).wait_for("ready", 60.0)


def test_output_of_any_length_is_read_whole() -> None:
    """A pipe holds 64 KiB: a program that prints more would wait for a reader."""
    assert run_python("print('x' * 1_000_000)") == "x" * 1_000_000 + "\n"


def test_variables_are_added_and_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_VARIABLE", "1")
    source = "import os; print(os.environ.get('SOME_VARIABLE'), os.environ.get('OTHER'))"
    assert run_python(source, env={"OTHER": "2"}) == "1 2\n"
    assert run_python(source, without=("SOME_",)) == "None None\n"


def test_limits_grow_with_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    for load, factor in ((0.3, 1.0), (2.0, 1.0), (8.0, 4.0), (1000.0, 10.0)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert processes.slowdown() == factor
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(os, "getloadavg", lambda: (8.0, 0.0, 0.0))
    countdown = Countdown(10.0)
    now = 120.0
    assert countdown.left() == 5.0
    now = 140.0
    assert countdown.left() == 0.0


def test_a_reserved_port_can_be_listened_on_and_is_given_to_nobody_else() -> None:
    with reserved_port() as port, socket.socket() as server:
        for _ in range(50):
            with socket.socket() as other:
                other.bind(("127.0.0.1", 0))
                assert other.getsockname()[1] != port
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("0.0.0.0", port))
        server.listen()
        assert server.getsockname()[1] == port
