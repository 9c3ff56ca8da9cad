"""The fault drill, whole: a sweep survives killed workers, killed sweeps, a full disk, a cut record and broken runs."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")
def test_a_sweep_survives():
    command = [sys.executable, "-m", "mad.drill"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("holds ") == 9 and "FAILS" not in done.stdout
    assert done.stdout.count("sweep killed") == 2 and "cut off" in done.stdout and "worker" in done.stdout


def test_too_few_runs_are_refused():
    done = subprocess.run([sys.executable, "-m", "mad.drill", "--runs", "10"], capture_output=True, text=True)
    assert done.returncode == 2 and "--runs must be at least 44, got 10" in done.stderr
