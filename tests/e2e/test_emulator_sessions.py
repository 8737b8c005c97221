"""Functions start concurrently on the emulated AWS, each with a session of its execution role."""

from __future__ import annotations

import subprocess

from local.paths import AWS_PYTHON, PROCESS_HOOKS

# In the emulator's own environment. Threads switch as often as possible: without the lock most of them fail.
PROGRAM = """
import sys, threading
sys.setswitchinterval(1e-6)
import emulator
from ministack.services import sts
register, errors = emulator.one_at_a_time(sts.register_session), []

def starts(thread):
    try:
        for number in range(500):
            register(f"{thread}-{number}", {"Arn": "arn:aws:sts::000000000000:assumed-role/role/function"})
    except RuntimeError as exc:
        errors.append(str(exc))

threads = [threading.Thread(target=starts, args=(thread,)) for thread in range(7)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(errors)
"""


def test_no_start_of_a_function_fails_because_another_starts() -> None:
    done = subprocess.run(
        [str(AWS_PYTHON), "-c", PROGRAM],
        env={"PYTHONPATH": str(PROCESS_HOOKS)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout == "[]\n", done.stderr
