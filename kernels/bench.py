"""`python -m kernels.bench NAME ... | all`: each kernel against torch, the strongest stock rival and its floor.

On a GPU every contestant is captured in a CUDA graph where it can be (so that small shapes show the kernel, not the
launch), the L2 cache is overwritten before each run, and the median is taken. `forward` is without gradients,
`training` forward and backward. The floor is what the least traffic and arithmetic take on an H100 SXM
(`kernels.cases.Work`); "x floor" is the time over it. On a CPU only the references are timed, on shapes that fit.
"""

import argparse
import csv
import importlib.util
import io
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from torch.utils._pytree import tree_leaves

from kernels import cases
from mad.registry import unknown

COLUMNS = ("kernel", "provider", "mode", "dtype", "shape", "metric", "value", "unit", "device", "torch", "triton")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CPU_LIMIT = 1 << 25  # elements of all inputs together that are timed on a CPU


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"all, or of {', '.join(cases.names())}")
    parser.add_argument("--dtype", choices=DTYPES, help="of the inputs: bf16 on a GPU, fp32 on a CPU by default")
    told = "also write tidy rows here: a file, or a folder for kernels_DEVICE_DTYPE.csv (without FILE, the current one)"
    parser.add_argument("--csv", type=Path, nargs="?", const=Path(), metavar="FILE", help=told)
    parser.add_argument("--seconds", type=float, default=0.3, help="of measuring a contestant (0.3)")
    options = parser.parse_args(arguments)
    names = cases.names() if options.names == ["all"] else options.names
    for name in names:
        if name not in cases.names():
            parser.error(str(unknown("kernel", name, [*cases.names(), "all"])))
    if str(options.csv) in (*cases.names(), "all"):
        parser.error(f"--csv {options.csv}: that is a kernel to time; name it before --csv, which may take a file")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        print("No GPU here: only the torch references are timed, and floors (an H100's) are left out.")
    short = options.dtype or ("bf16" if device == "cuda" else "fp32")
    dtype, path = DTYPES[short], options.csv
    if path is not None and path.is_dir():
        path /= file_name(device, short)
    print(f"{'kernel':24} {'mode':9} {'provider':14} {'ms':>9} {'GB/s':>7} {'TFLOP/s':>8} {'x floor':>8}  shape")
    with open_csv(path) as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for name in names:
            for row in bench(name, dtype, device, options.seconds):
                print(line(row), flush=True)
                writer.writerows(tidy(row, device))
                file.flush()
    if path is not None:
        print(f"rows written to {path}")


def file_name(device: str, dtype: str) -> str:
    return f"kernels_{re.sub('[^a-z0-9]+', '_', device_name(device).lower())}_{dtype}.csv"


def open_csv(path: Path | None) -> TextIO:
    """Where rows are written as they come; without a path they go nowhere."""
    if path is None:
        return io.StringIO()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w", newline="")


def bench(name: str, dtype: torch.dtype, device: str, seconds: float) -> Iterator[dict[str, Any]]:
    """One row a shape, mode and provider."""
    module = cases.load(name)
    for shape in module.SHAPES:
        torch.manual_seed(0)
        try:
            if device == "cpu" and elements(module.tensors(shape, dtype, "meta")) > CPU_LIMIT:
                continue
            tensors = module.tensors(shape, dtype, device)
        except torch.cuda.OutOfMemoryError:
            continue
        modes = ("forward", "training") if cases.gradients(module, shape) else ("forward",)
        for mode in modes:
            work = module.work(shape, dtype.itemsize, False)
            if mode == "training":
                back = module.work(shape, dtype.itemsize, True)
                work = cases.Work(work.bytes + back.bytes, work.flops + back.flops, work.exps + back.exps)
            for provider, function in providers(module, shape, device).items():
                row = {"kernel": name, "provider": provider, "mode": mode, "dtype": str(dtype).removeprefix("torch.")}
                row |= {"shape": " ".join(f"{k}={v}" for k, v in shape.items()), "work": work}
                try:
                    yield row | {"seconds": measure(function, tensors, mode, device, seconds)}
                except (torch.cuda.OutOfMemoryError, NotImplementedError) as error:
                    print(f"  {provider} {row['shape']}: {type(error).__name__}", file=sys.stderr)
                except Exception as error:  # a contestant that cannot run must not end the bench; it is named
                    print(f"  {provider} {row['shape']}: {type(error).__name__}: {error}", file=sys.stderr)


def providers(module, shape: dict, device: str) -> dict[str, Any]:
    """Ours, the torch reference, and on a GPU the rivals."""
    reference = {"torch": lambda **tensors: cases.call(module, tensors, "torch")}
    if device == "cpu":
        return reference
    ours = {"triton": lambda **tensors: cases.call(module, tensors, "triton")}
    return ours | reference | ({} if shape.get("step") else module.rivals())


def measure(contestant: Any, tensors: dict, mode: str, device: str, seconds: float) -> float:
    """Median seconds of one call."""
    prepare, function = contestant if isinstance(contestant, tuple) else (None, contestant)
    tensors = (
        prepare({n: t.detach() if isinstance(t, torch.Tensor) else t for n, t in tensors.items()})
        if prepare
        else tensors
    )
    leaves = cases.leaves(tensors) if mode == "training" else []
    ones: list[torch.Tensor] = []  # the outputs' gradients, made in the first run: making them is not timed

    def step():
        if mode == "forward":
            with torch.no_grad():
                return function(**tensors)
        outputs = function(**tensors)
        outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
        if not ones:
            ones.extend(map(torch.ones_like, outputs))
        return torch.autograd.grad(outputs, leaves, ones, allow_unused=True)

    return on_gpu(step, seconds) if device == "cuda" else on_cpu(step, seconds)


def on_cpu(step: Callable, seconds: float) -> float:
    times, began = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def on_gpu(step: Callable, seconds: float) -> float:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    run = step
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            kept = step()
        run = graph.replay
    except RuntimeError:  # what cannot be captured is timed as it is
        kept = None
        torch.cuda.synchronize()
    cache = torch.empty(1 << 27, dtype=torch.int8, device="cuda")  # more than the L2 cache holds
    times: list[float] = []
    while len(times) < 10 or (sum(times) < seconds and len(times) < 200):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cache.zero_()
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    del kept, graph
    torch.cuda.empty_cache()
    return statistics.median(times)


def elements(tensors: dict) -> int:
    leaves = tree_leaves(tensors)
    return sum(t.numel() for t in leaves if isinstance(t, torch.Tensor))


def line(row: dict) -> str:
    work, seconds = row["work"], row["seconds"]
    ratio = f"{seconds / work.floor():8.2f}" if torch.cuda.is_available() else " " * 8
    rates = f"{work.bytes / seconds / 1e9:7.0f} {work.flops / seconds / 1e12:8.2f}"
    return (
        f"{row['kernel']:24} {row['mode']:9} {row['provider']:14} {seconds * 1e3:9.3f} {rates} {ratio}  {row['shape']}"
    )


def tidy(row: dict, device: str) -> Iterator[list]:
    """One line a metric: time, achieved traffic and arithmetic, and on a GPU the floor and the ratio to it."""
    work, seconds = row["work"], row["seconds"]
    metrics = [("median", seconds * 1e3, "ms"), ("bandwidth", work.bytes / seconds / 1e9, "GB/s")]
    metrics += [("arithmetic", work.flops / seconds / 1e12, "TFLOP/s")]
    if device == "cuda":
        metrics += [("floor", work.floor() * 1e3, "ms"), ("over floor", seconds / work.floor(), "ratio")]
    where = device_name(device), torch.__version__, triton_version()
    for metric, value, unit in metrics:
        yield [*(row[column] for column in COLUMNS[:5]), metric, f"{value:.6g}", unit, *where]


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def triton_version() -> str:
    if importlib.util.find_spec("triton") is None:
        return "none"
    import triton

    return triton.__version__


if __name__ == "__main__":
    main()
