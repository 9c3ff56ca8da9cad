"""What every kernel promises, whoever wrote it: a folder with a cases module is tested here without an edit."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import kernels
from kernels import cases, checks, tiles
from kernels.testing import TOLERANCE, relative_error, run, within_bounds
from kernels.tiles import MOST

HERE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(params=cases.names())
def module(request):
    with within_bounds():
        yield cases.load(request.param)


def folders_and_kinds():
    for name in cases.names():
        for kind in cases.kinds(cases.load(name)):
            yield pytest.param((name, kind), id=f"{name}, {kind}" if kind else name)


@pytest.fixture(params=folders_and_kinds())
def case(request):
    """A folder's module, and its smallest shape of each kind."""
    name, kind = request.param
    with within_bounds():
        yield cases.load(name), cases.smallest(cases.load(name), kind)


def inputs(case, dtype=torch.float32):
    module, shape = case
    torch.manual_seed(0)
    return module.tensors(shape, dtype, HERE)


def test_compiles_without_a_graph_break(case):
    (module, _), tensors = case, inputs(case)

    def function(tensors):
        return cases.call(module, tensors, "triton")

    want = tree_leaves(function(tensors))
    got = tree_leaves(torch.compile(function, backend="aot_eager", fullgraph=True)(tensors))
    torch._dynamo.reset()
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


class FakesAreTrue(TorchDispatchMode):
    """Each operator's fake gives the sizes, strides and types of the real one: compiled code relies on them."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        real = func(*args, **(kwargs or {}))
        if func.namespace == "mad":
            self.seen += 1
            mode = FakeTensorMode()
            fakes = tree_map_only(torch.Tensor, lambda t: mode.from_tensor(t.detach()), args)
            with mode:
                fake = func(*fakes, **(kwargs or {}))
            for a, b in zip(tree_leaves(real), tree_leaves(fake), strict=True):
                assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype), func
        return real


@pytest.mark.parametrize("turned", ["neither", "inputs", "gradients"])
def test_fakes_are_true_whatever_the_layout(case, turned):
    module, gradients = case[0], cases.gradients(*case)

    def turn(t):
        return t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.dim() > 2 else t

    tensors = inputs(case)
    if turned == "inputs":
        tensors = tree_map_only(torch.Tensor, turn, tensors)
    leaves = [t for t in tree_leaves(tensors) if isinstance(t, torch.Tensor) and t.is_floating_point()]
    for t in leaves:
        t.requires_grad_(gradients)
    with FakesAreTrue() as mode:
        outputs = tree_leaves(cases.call(module, tensors, "triton"))
        if gradients:
            given = [torch.ones_like(y, memory_format=torch.contiguous_format) for y in outputs]
            torch.autograd.grad(outputs, leaves, [turn(g) for g in given] if turned == "gradients" else given)
    assert mode.seen


def without_gradients():
    for case in folders_and_kinds():
        name, kind = case.values[0]
        if not cases.gradients(cases.load(name), cases.smallest(cases.load(name), kind)):
            yield case


@pytest.mark.parametrize("case", [*without_gradients()], indirect=True)
def test_torch_gives_the_gradients_that_triton_has_not(case, monkeypatch):
    module, tensors = case[0], inputs(case)
    leaves = [t.requires_grad_() for t in tree_leaves(tensors) if isinstance(t, torch.Tensor) and t.is_floating_point()]
    monkeypatch.setattr(checks, "on_card", lambda t: True)  # for "auto"
    with pytest.raises(ValueError, match="backend='triton' has no gradients here; use torch.no_grad"):
        cases.call(module, tensors, "triton")

    def gradients(backend):
        outputs = tree_leaves(cases.call(module, tensors, backend))
        return torch.autograd.grad(outputs, leaves, [torch.ones_like(y) for y in outputs])

    for got, want in zip(gradients("auto"), gradients("torch"), strict=True):
        torch.testing.assert_close(got, want)
    for backend in ("auto", "triton"):
        with torch.no_grad(), FakesAreTrue() as mode:
            cases.call(module, tensors, backend)
        assert mode.seen


@pytest.mark.skipif(HERE == "cuda", reason="looks into Triton's interpreter")
def test_grids_hold_more_sequences_than_one_axis_does(case, monkeypatch):
    """2200 x 32 heads, which are not run: axes but the first hold 65,535 programs on a card."""
    from triton.runtime.interpreter import InterpretedFunction

    grids = []
    monkeypatch.setattr(InterpretedFunction, "run", lambda self, *args, grid, **options: grids.append(grid))
    module, smallest = case
    many = {"B": 2200, "H": 32, "Hq": 32, "Hkv": 32, "T": 4, "L": 4}
    shape = {key: many.get(key, value) for key, value in smallest.items()}
    tensors = module.tensors(shape, torch.float32, HERE)
    leaves = cases.leaves(tensors) if cases.gradients(module, shape) else []
    outputs = tree_leaves(cases.call(module, tensors, "triton"))
    if leaves:
        torch.autograd.backward(outputs, [torch.ones_like(y) for y in outputs])
    assert grids and max(size for grid in grids for size in grid[1:] or (0,)) <= MOST, grids


@pytest.mark.skipif(HERE == "cuda", reason="looks into Triton's interpreter")
def test_launches_where_the_tensors_lie(case, monkeypatch):
    """On the current device Triton would: here every tensor lies elsewhere, and nothing is run."""
    from triton.runtime.interpreter import InterpretedFunction

    module, shape = case
    current, devices = [], []

    @contextmanager
    def on(device):
        current.append(device)
        yield
        current.pop()

    monkeypatch.setattr(tiles, "elsewhere", lambda t: True)
    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(InterpretedFunction, "run", lambda self, *args, grid, **options: devices.append(current[-1:]))
    tensors = inputs(case)
    leaves = cases.leaves(tensors) if cases.gradients(module, shape) else []
    outputs = tree_leaves(cases.call(module, tensors, "triton"))
    if leaves:
        torch.autograd.backward(outputs, [torch.ones_like(y) for y in outputs])
    assert devices and all(device == [torch.device("cpu")] for device in devices) and not current


def test_what_lies_elsewhere(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    where = [SimpleNamespace(is_cuda=i >= 0, get_device=lambda i=i: i) for i in (-1, 0, 1)]
    assert [tiles.elsewhere(t) for t in where] == [False, True, False]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_runs_on_another_device_than_the_current(case):
    module, shape = case
    tensors = tree_map_only(torch.Tensor, lambda t: t.to("cuda:1"), inputs(case))

    def outcome(backend):
        return run(lambda **t: cases.call(module, t, backend), tensors, {}, cases.gradients(module, shape))

    assert torch.cuda.current_device() == 0
    want = outcome("torch")
    for name, value in outcome("triton").items():
        assert value.device == torch.device("cuda:1") and relative_error(value, want[name]) < 1e-3, name


def test_is_documented(module):
    name = module.__name__.split(".")[1]
    text = getattr(kernels, name).__doc__ or ""
    assert name in kernels.__all__
    for part in ("Args:", "Returns:", "Raises:", "arXiv"):
        assert part in text, f"{name} does not say: {part}"


def test_work_grows_with_the_shape(module):
    small = module.SHAPES[0]
    large = {key: 2 * value if type(value) is int else value for key, value in small.items()}
    assert 0 < module.work(small, 2, False).floor() < module.work(large, 2, False).floor()
    assert module.work(small, 2, False).bytes < module.work(small, 4, False).bytes


@pytest.mark.gpu
@pytest.mark.skipif(HERE != "cuda", reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_configuration_equals_the_reference(module, dtype):
    """In float64; on a card, as the shapes that reach every configuration are too much for the interpreter."""

    def outcome(tensors, backend):
        return run(lambda **given: cases.call(module, given, backend), tensors, {}, cases.gradients(module, shape))

    for shape in module.CONFIGS:
        torch.manual_seed(0)
        tensors = module.tensors(shape, dtype, HERE)
        got = outcome(tensors, cases.backend(module))
        want = outcome(
            tree_map_only(torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, tensors), "torch"
        )
        for name, value in got.items():
            allowed = TOLERANCE[dtype][name.startswith("d ")]
            assert relative_error(value, want[name]) <= allowed, f"{shape}: {name}"


@pytest.mark.gpu
@pytest.mark.skipif(HERE != "cuda", reason="needs a CUDA device")
def test_a_captured_graph_equals_eager_forward_and_backward(case):
    module, tensors, backward = case[0], inputs(case, torch.bfloat16), cases.gradients(*case)
    leaves = [t for t in tree_leaves(tensors) if isinstance(t, torch.Tensor) and t.is_floating_point()]
    for t in leaves:
        t.requires_grad_(backward)

    def step():
        outputs = [y for y in tree_leaves(cases.call(module, tensors, "triton"))]
        if not backward:
            return outputs
        return [*outputs, *torch.autograd.grad(outputs, leaves, [torch.ones_like(y) for y in outputs])]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # all of it: a leaf's node stays on the stream that first used it
        want = [t.clone() for t in step()]
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        got = step()
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)  # no atomics: the same bits every time
