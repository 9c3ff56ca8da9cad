"""Every configuration of every kernel compiles for an H100, with no GPU, without spills, within its shared memory."""

import os
import subprocess
import sys

import pytest

from kernels import cases
from kernels.offline import SHARED_LIMIT, TYPES, Compiled


def of(kind: str, *types: str, names=None, marks=(), first: int | None = None):
    options = [word for name in types for word in ("--type", name)] + (["--first", str(first)] if first else [])
    return pytest.param(names or cases.names(), options, id=f"{kind}-{'-'.join(types)}", marks=marks)


@pytest.mark.parametrize(
    "names, options",
    [
        of("hardest even", "float32", "bfloat16", names=cases.names()[::2], first=1),
        of("hardest odd", "float32", "bfloat16", names=cases.names()[1::2], first=1),
        *(
            of(kind, name, names=cases.names()[start::2], marks=pytest.mark.slow)
            for name in TYPES
            for start, kind in enumerate(("even", "odd"))
        ),
    ],
)
def test_every_kernel_fits(names, options):
    """In a process of its own: the interpreter that the other tests use cannot compile."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "kernels.offline", *names, "--jobs", "1", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert {line.split()[0] for line in done.stdout.splitlines()[1:]} == set(names)


def test_what_does_not_fit_is_seen():
    fine = Compiled("k", "f", "float32", "", shared=SHARED_LIMIT, registers=255, stack=0)
    assert fine.fits
    assert not Compiled("k", "f", "float32", "", shared=SHARED_LIMIT + 1, registers=255, stack=0).fits
    assert not Compiled("k", "f", "float32", "", shared=0, registers=255, stack=8).fits


def test_products_that_wait_for_each_other_are_told():
    """Those of gated_mlp's backward in bf16, at the time of writing: the machine waits more often than it was asked."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "kernels.offline", "gated_mlp", "--type", "bfloat16", "--waits", "--jobs", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    said = [line.split("<- ")[1].split() for line in done.stdout.splitlines() if "waits for products" in line]
    assert all(int(words[0]) > int(words[4]) > 0 for words in said)
    assert said, "none waits any more: name another kernel here"


def test_an_unknown_kernel_is_named():
    command = [sys.executable, "-m", "kernels.offline", "ftf_conv"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "did you mean 'fft_conv'" in done.stderr
