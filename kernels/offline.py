"""`python -m kernels.offline [NAME ...]`: compile every configuration of every kernel for an H100, without one.

Runs backend="auto" (or what a cases module names) on CPU tensors as if they were on a card while each launch only
compiles (for sm_90). So what is checked is what the block-size rules really choose, with the very specialisations of a
run, forward and backward, in fp32, bf16 and fp16. A configuration that spills registers or asks for more shared memory
than an SM has is an error. `--waits` also says where ptxas has asynchronous products (wgmma) wait for each other: many
can be under way, but for some loops it gives that up, without a word, and each then takes its whole latency.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from kernels import cases, checks
from mad.registry import unknown

SHARED_LIMIT = 227 * 1024  # bytes a block may ask for on sm_90
TYPES = {str(t).removeprefix("torch."): t for t in (torch.float32, torch.bfloat16, torch.float16)}


@dataclass(frozen=True)
class Compiled:
    """One launch of one kernel, compiled. `stack` is bytes of local memory a thread: spills, or indexed registers;
    `waits` how often it waits for wgmma, in machine code and as Triton asked for: unlooked at None."""

    kernel: str
    function: str
    dtype: str
    shape: str
    shared: int
    registers: int
    stack: int
    waits: tuple[int, int] | None = None

    @property
    def fits(self) -> bool:
        return self.shared <= SHARED_LIMIT and self.stack == 0


@contextmanager
def compiling_only() -> Iterator[list]:
    """Inside, launching a Triton kernel compiles it for sm_90 and collects it; nothing runs.

    The process must not have a GPU in use: Triton's driver stays replaced afterwards.
    """
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    class NoDevice:
        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return 0

    collected = []
    launch, on_card = JITFunction.run, checks.on_card

    def compile_only(self, *args, grid, warmup, **options):
        collected.append(launch(self, *args, grid=grid, warmup=True, **options))

    driver.set_active(NoDevice())  # pyright: ignore[reportArgumentType]
    JITFunction.run, checks.on_card = compile_only, lambda t: True
    try:
        yield collected
    finally:
        JITFunction.run, checks.on_card = launch, on_card


def compile_kernel(job: tuple[str, torch.dtype, int | None, bool]) -> list[Compiled]:
    """Every launch of one kernel over its (first) CONFIGS in one type."""
    name, dtype, first, waits = job
    module = cases.load(name)
    found = {}
    for shape in module.CONFIGS[:first]:
        with compiling_only() as launches:
            given = module.tensors(shape, dtype, "cpu")
            leaves = cases.leaves(given) if cases.gradients(module, shape) else []
            out = cases.call(module, given, cases.backend(module))
            outputs = out if isinstance(out, tuple) else (out,)
            if leaves:
                torch.autograd.backward(outputs, [torch.ones_like(y) for y in outputs])
        for kernel in launches:
            found.setdefault(kernel.hash, (kernel, shape))
    return [describe(name, dtype, kernel, shape, waits) for kernel, shape in found.values()]


def describe(name: str, dtype: torch.dtype, kernel, shape: dict, waits: bool) -> Compiled:
    """Registers, stack and, where `waits`, those, from the machine code itself."""
    usage = dict(pair.split(":", 1) for pair in told("cuobjdump --dump-resource-usage", kernel).split() if ":" in pair)
    where = " ".join(f"{key}={value}" for key, value in shape.items())
    registers, stack = int(usage["REG"]), int(usage["STACK"]) + int(usage.get("LOCAL", 0))
    kind, shared = str(dtype).removeprefix("torch."), kernel.metadata.shared
    asked = kernel.asm["ptx"].count("wgmma.wait_group") if waits else 0
    found = (told("nvdisasm -c", kernel).count("WARPGROUP.DEPBAR"), asked) if asked else None
    return Compiled(name, kernel.metadata.name, kind, where, shared, registers, stack, found)


def told(command: str, kernel) -> str:
    """What a tool that comes with Triton says of a kernel."""
    import triton

    tool, *options = command.split()
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return subprocess.run([tools / tool, *options, file.name], capture_output=True, text=True, check=True).stdout


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m kernels.offline", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(cases.names())}; all by default")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument("--first", type=int, metavar="N", help="only the N most demanding shapes of a kernel")
    parser.add_argument(
        "--type", action="append", choices=TYPES, dest="types", help="once or more often; all by default"
    )
    parser.add_argument("--waits", action="store_true", help="say where products wait for each other, too")
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in cases.names():
            parser.error(str(unknown("kernel", name, cases.names())))
    types = [TYPES[name] for name in options.types or TYPES]
    jobs = [(name, dtype, options.first, options.waits) for name in options.names or cases.names() for dtype in types]
    print(f"{'kernel':24} {'function':28} {'type':9} {'shared':>7} {'reg':>4} {'stack':>6}  shape")
    bad = 0
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for results in pool.map(compile_kernel, jobs):
            for c in results:
                bad += not c.fits
                usage = f"{c.shared:7} {c.registers:4} {c.stack:6}"
                mark = "" if c.fits else "  <- does not fit"
                if c.waits and c.waits[0] > c.waits[1]:
                    mark += f"  <- {c.waits[0]} waits for products, {c.waits[1]} asked for"
                print(f"{c.kernel:24} {c.function:28} {c.dtype:9} {usage}  {c.shape}{mark}", flush=True)
    if bad:
        sys.exit(f"{bad} configurations spill registers or exceed {SHARED_LIMIT} bytes of shared memory")


if __name__ == "__main__":
    main()
