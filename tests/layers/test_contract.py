"""What every registered layer promises, whoever wrote it: a new layer is tested here without an edit."""

import copy
import math
import re
import warnings

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import kernels
import layers

HERE = "cuda" if torch.cuda.is_available() else "cpu"
DIM, LENGTH = 64, 33
EXTRA = [
    {"name": "hyena", "filter": {"name": "rtf", "init": "montel"}},
    {"name": "base_conv", "filter": {"name": "implicit", "filter_order": 16, "sine_frequency": 1.0}},
    {"name": "base_conv", "residual": False},
    {"name": "rtf", "init": "xavier", "constraint": "l1_montel", "num_a": 4},
    {"name": "attention", "rope": False},
    {"name": "sliding_attention", "window": 5},
    {"name": "monarch_mixer", "causal": False},
    {"name": "gla", "num_heads": 2, "expand_k": 0.5, "temperature": 1.0},
    {"name": "mamba", "expansion": 1, "num_states": 16, "kernel_size": 3, "rank": 2},
    {"name": "mamba2", "expansion": 1, "num_states": 16, "head_dim": 8, "kernel_size": 3},
    {"name": "h3", "num_states": None, "head_dim": 2},
    {"name": "delta_net", "num_heads": 1, "expand_v": 2, "kernel_size": 1},
    {"name": "rwkv7", "head_dim": 16, "decay_rank": 4, "a_rank": 2, "gate_rank": 8},
    {"name": "rwkv6", "head_dim": 8, "mix_rank": 3, "decay_rank": 5},
    {"name": "linear_attention", "feature_map": "elu", "rope": True, "num_heads": 4},
    *(
        {"name": "linear_attention", "feature_map": name, "num_heads": 4, "normalize": name != "identity"}
        for name in ("relu", "identity", "t2r", "dpfp", "cosformer", "performer", "taylor", "hedgehog")
    ),
]
SPECS = [*layers.names(), *EXTRA]


def build(spec, dtype=torch.float64):
    torch.manual_seed(0)
    return layers.build(spec, DIM, LENGTH).to(dtype)


def sequence(length=LENGTH, batch=2):
    torch.manual_seed(1)
    return torch.randn(batch, length, DIM, dtype=torch.float64)


def looks_ahead(function, x):
    """Does an output depend on a later input?"""
    x = x.clone().requires_grad_()
    t = x.shape[1] // 2
    (gradient,) = torch.autograd.grad(function(x)[:, t].square().sum(), x)
    return bool(gradient[:, t + 1 :].any())


@pytest.fixture(params=SPECS, ids=lambda spec: spec if isinstance(spec, str) else "-".join(map(str, spec.values())))
def spec(request):
    return request.param


def test_shape_type_and_repetition(spec):
    for dtype in (torch.float32, torch.float64):
        layer, x = build(spec, dtype), sequence().to(dtype)
        y = layer(x)
        assert y.shape == x.shape and y.dtype == dtype and y.isfinite().all() and y.any()
        assert torch.equal(y, layer(x))


@pytest.mark.parametrize("batch, length", [(0, LENGTH), (2, 0), (0, 0)])
def test_no_sequences_or_none_but_empty_ones(spec, batch, length):
    layer, x = build(spec), sequence(length, batch).requires_grad_()
    y = layer(x)
    assert y.shape == x.shape
    y.sum().backward()
    for name, leaf in (("x", x), *layer.named_parameters()):
        assert leaf.grad is not None and not leaf.grad.any(), name


@pytest.mark.parametrize("name", layers.names())
@pytest.mark.parametrize("shape", [(LENGTH, DIM), (2, 4, DIM + 1), (2, 2, 4, DIM)], ids=str)
def test_an_input_of_another_shape_is_refused(name, shape):
    """Where a mix of the token before is one row a map, four dimensions would broadcast."""
    with pytest.raises(ValueError, match=re.escape(f"expected x (B, T, {DIM}), got {shape}")):
        layers.build(name, DIM, LENGTH)(torch.zeros(shape))


@pytest.mark.parametrize("value", ["1", None, 0, -1.0, True, float("inf"), float("nan")], ids=repr)
def test_a_scale_is_a_finite_number_above_0(value):
    frequency = {"name": "implicit", "sine_frequency": value}
    for name, option, options in (
        ("gla", "expand_k", {"expand_k": value}),
        ("hyena", "sine_frequency", {"filter": frequency}),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{option} must be a number above 0, got {value!r}")):
            layers.build({"name": name} | options, DIM, LENGTH)


@pytest.mark.parametrize("size", ["16", 16.5, None, 0, True], ids=repr)
def test_a_size_is_a_whole_number(size):
    for sizes, option in (((size, 8), "dim"), ((8, size), "max_length")):
        said = f"layer 'identity': {option} must be a whole number of at least 1, got {size!r}"
        with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
            layers.build("identity", *sizes)


def test_sizes_and_options_may_be_numpys():
    layer = layers.build({"name": "attention", "num_heads": np.int64(2)}, np.int64(8), np.int32(4))
    assert layer(torch.zeros(1, 4, 8)).shape == (1, 4, 8)


def test_causality(spec):
    layer = build(spec)
    assert looks_ahead(layer, sequence()) == (not layer.causal)


def test_the_causality_check_sees_a_look_ahead():
    assert looks_ahead(lambda x: x.roll(-1, 1), sequence())
    assert not looks_ahead(lambda x: x.roll(1, 1), sequence()[:, :-1])


def test_any_length_is_a_prefix(spec):
    layer, x = build(spec), sequence()
    if not layer.causal:
        assert all(layer(x[:, :n]).shape == (2, n, DIM) for n in (1, 2, 7))
        return
    y = layer(x)
    for length in (1, 2, 7, 16, 32):
        torch.testing.assert_close(layer(x[:, :length]), y[:, :length], rtol=1e-8, atol=1e-9)
    if layers.resolve(spec)[0] in layers.names("sequence"):
        with pytest.raises(ValueError, match=f"max_length={LENGTH}, got {LENGTH + 1} tokens"):
            layer(sequence(LENGTH + 1))


def test_step_by_step_equals_in_parallel_and_state_size_is_the_states(spec):
    layer, x = build(spec), sequence()
    if not layer.causal:
        with pytest.raises(NotImplementedError):
            layer.init_state(2)
        return
    y, state = layer(x), layer.init_state(2)
    for t in range(LENGTH):
        y_t, state = layer.step(x[:, t], state)
        torch.testing.assert_close(y_t, y[:, t], rtol=1e-7, atol=1e-8)
        assert sum(leaf.numel() for leaf in tree_leaves(state)) == 2 * layer.state_size(t + 1)


def test_a_step_too_many_is_refused_or_is_none(spec):
    """What has no taps or positions left says so as forward does; what forgets, or does not count, goes on."""
    torch.manual_seed(0)
    layer = layers.build(spec, DIM, 5).double()
    if not layer.causal:
        return
    state, refused = layer.init_state(2), None
    for t, x_t in enumerate(sequence(12).unbind(1)):
        try:
            y_t, state = layer.step(x_t, state)
        except ValueError as error:
            refused = t, str(error)
            break
        assert y_t.isfinite().all() and (t < 5 or layer.state_size(t + 1) == layer.state_size(5)), t
    assert refused in (None, (5, f"{type(layer).__name__} was built for max_length=5, got 6 tokens"))


def test_every_parameter_gets_a_finite_gradient(spec):
    layer, x = build(spec), sequence().requires_grad_()
    layer(x).square().mean().backward()
    for name, leaf in (("x", x), *layer.named_parameters()):
        assert leaf.grad is not None, name
        assert leaf.grad.isfinite().all(), name
    assert x.grad.any() and (any(p.grad.any() for p in layer.parameters()) or not list(layer.parameters()))


@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:torch.searchsorted")
def test_gradients_of_each_sequence_by_torch_func_are_those_of_autograd(spec):
    layer, x = build(spec), sequence(9)
    parameters = dict(layer.named_parameters())

    def loss(parameters, x):
        return functional_call(layer, parameters, (x.unsqueeze(0),)).square().mean()

    found = vmap(grad(loss, argnums=(0, 1)), in_dims=(None, 0))(parameters, x)
    for i, x_i in enumerate(x):
        leaves = [*parameters.values(), x_i.clone().requires_grad_()]
        want = torch.autograd.grad(layer(leaves[-1].unsqueeze(0)).square().mean(), leaves)
        for got, expected in zip([*found[0].values(), found[1]], want, strict=True):
            torch.testing.assert_close(got[i], expected, rtol=1e-6, atol=1e-9 * want[-1].abs().max().item())


def test_flops_are_those_torch_counts(spec):
    layer = build(spec, torch.float32)
    assert layer.flops(16) < layer.flops(LENGTH) or not list(layer.parameters())
    if not layer.countable:
        return
    with torch.device("meta"):
        layer, x = layers.build(spec, DIM, LENGTH), torch.empty(2, LENGTH, DIM)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        layer(x)
    assert 2 * layer.flops(LENGTH) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_all_of_it_is_built_where_it_is_wanted(spec):
    with torch.device("meta"):
        layer = layers.build(spec, DIM, LENGTH)
    assert all(t.is_meta for t in (*layer.parameters(), *layer.buffers()))
    assert layer(torch.empty(2, LENGTH, DIM, device="meta")).shape == (2, LENGTH, DIM)
    there = build(spec)
    layer = layer.double().to_empty(device="cpu")
    layer.load_state_dict(there.state_dict())
    assert torch.equal(layer(sequence()), there(sequence()))


def test_a_copy_and_a_state_dict_carry_everything(spec):
    layer, x = build(spec), sequence()
    y = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), y)
    torch.manual_seed(7)
    other = layers.build(spec, DIM, LENGTH).double()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), y)


def test_autocast(spec):
    layer, x = build(spec, torch.float32), sequence().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    y.float().square().mean().backward()
    assert y.shape == x.shape and y.isfinite().all()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in (x, *layer.parameters()))


def test_what_takes_rounded_inputs_rounds_them_itself(spec):
    """The same bits, and so are those of the gradient."""
    layer = build(spec, torch.float32)
    if not layer.takes_rounded:
        pytest.skip("another use of its input sees what the rounding takes")
    outcomes = []
    for leaf in (sequence().float(), sequence().bfloat16()):
        x = leaf.requires_grad_() * 1.0  # no leaf, of which autocast would keep one rounded copy for all its uses
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
        slope = torch.linspace(-1, 1, y.numel()).view_as(y).to(y.dtype)
        outcomes.append((y, torch.autograd.grad(y, x, slope)[0].float()))
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


def test_a_forward_of_its_own_takes_its_input_as_it_is():
    class Mine(layers.registry.get("swiglu")):
        def forward(self, x):
            return super().forward(x) + x

    class Mix:
        def forward(self, x):
            return x

    class Same(layers.registry.get("swiglu")):
        pass

    class Mixed(Mix, layers.registry.get("swiglu")):
        pass

    assert (Mine.takes_rounded, Same.takes_rounded, Mixed.takes_rounded) == (False, True, False)


def of_tokens(y, want, size):
    """The median over the tokens of |y - want| / |size|: where a layer divides by almost nothing, any rounding moves
    single tokens as far as one likes."""
    return ((y.double() - want.double()).norm(dim=-1) / size.norm(dim=-1)).median().item()


def test_bf16_throughout(spec):
    """Weights and inputs in bf16, no autocast."""
    layer, x = build(spec, torch.bfloat16).to(HERE), sequence().to(HERE, torch.bfloat16).requires_grad_()
    y = layer(x)
    assert y.dtype == torch.bfloat16 and y.shape == x.shape
    want = copy.deepcopy(layer).double()(x.double()).detach()
    assert of_tokens(y, want, want) < 0.05
    y.float().square().mean().backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in (x, *layer.parameters()))
    if not layer.causal:
        return
    with torch.no_grad():
        state, outputs = layer.init_state(2), []
        types = [leaf.dtype for leaf in tree_leaves(state)]
        for x_t in x.unbind(1):
            y_t, state = layer.step(x_t, state)
            assert y_t.dtype == torch.bfloat16
            assert [leaf.dtype for leaf in tree_leaves(state)] == types
            outputs.append(y_t)
    assert of_tokens(torch.stack(outputs, 1), y, want) < 0.05


@pytest.mark.parametrize("name", layers.names())
def test_an_unknown_option_is_refused(name):
    with pytest.raises(ValueError, match=f"unknown option of layer '{name}': 'no_such_option'"):
        layers.build({"name": name, "no_such_option": 1}, DIM, LENGTH)


ODD = [None, "x", -1, 0, 2.5, 1e-6, math.inf, math.nan, [], {}, True]


@pytest.mark.parametrize("name", layers.names())
@pytest.mark.filterwarnings("error")
def test_an_option_is_refused_or_works(name):
    """Before any work: what is built can be used."""
    for option in layers.options(name):
        for value in ODD:
            try:
                layer = layers.build({"name": name, option: value}, DIM, LENGTH)
            except ValueError:
                continue
            layer(torch.randn(1, 4, DIM))


@pytest.mark.parametrize(
    "spec, said",
    [
        ({"name": "gla", "expand_k": 0.001}, "expand_k=0.001 leaves no key of dim=16; expected at least 0.0625"),
        ({"name": "mh_hyena", "head_dim": 5}, "head_dim=5 does not divide dim=16; the nearest that does is 4"),
        ({"name": "hyena", "proj_groups": 3}, "proj_groups=3 does not divide channels=64; .* is 2"),
        ({"name": "monarch_mlp", "num_blocks": 3, "width": 24}, r"divide gcd\(dim=16, width=24\)=8; .* is 2"),
        ({"name": "hyena", "filter": {"name": "implicit", "sine_frequency": "x"}}, "must be a number above 0, got 'x'"),
        ({"name": "hyena", "filter": {"name": "implicit", "sine_frequency": math.nan}}, "above 0, got nan"),
        (
            {"name": "hyena", "filter": {"name": "implicit", "filter_order": 2}, "filter_order": 8},
            "filter_order=8 beside a filter with {'filter_order': 2}; expected it in one place",
        ),
        ({"name": "hyena", "filter": "rtf", "filter_order": 8}, "unknown option of filter 'rtf': 'filter_order'"),
        ({"name": "hyena", "filter": None}, "a filter is a name or a mapping with the key 'name', got None"),
    ],
)
def test_what_an_option_should_have_been(spec, said):
    with pytest.raises(ValueError, match=said):
        layers.build(spec, 16, 8)


@pytest.mark.parametrize("name", layers.names())
def test_no_tokens_cost_nothing(name):
    layer = layers.build(name, DIM, LENGTH)
    assert layer.flops(0) >= 0 and layer.state_size(0) >= 0


def test_a_kind_that_does_not_exist():
    with pytest.raises(ValueError, match=r"unknown kind of layer 'sequnce' \(did you mean 'sequence'\?\)"):
        layers.names("sequnce")


@pytest.mark.parametrize("spec", ["mlp", {"name": "mamba", "rank": 2}, "dense_hyena_experts"])
@pytest.mark.parametrize("dim, at_once", [(10**7, r" \([\d,]{4,}.\d GB at once\)$"), (10**19, "$")])
def test_more_than_memory_holds_is_refused_by_name(spec, dim, at_once):
    name, options = layers.resolve(spec)
    asked = "".join(f", {key}={value}" for key, value in options.items())
    with pytest.raises(
        ValueError, match=f"^layer '{name}': not enough memory for dim={dim}, max_length=8{asked}{at_once}"
    ):
        layers.build(spec, dim, 8)


def test_a_mistake_in_a_layer_is_not_taken_for_a_lack_of_memory(monkeypatch):
    def wrong(self, dim, max_length):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(layers.registry.get("identity"), "__init__", wrong)
    with pytest.raises(RuntimeError, match="^shapes do not fit$"):
        layers.build("identity", 8, 8)


@pytest.mark.parametrize("name", [["hyena"], None, {"name": "hyena"}])
def test_a_name_is_a_string(name):
    with pytest.raises(ValueError, match="^the name of a layer is a string, got "):
        layers.build({"name": name}, 8, 8)


def _positional(self, dim, max_length, width=2):
    layers.Layer.__init__(self, dim, max_length)


@pytest.mark.parametrize(
    "name, cls, message",
    [
        ("my-layer", layers.Layer, "a layer's name has letters, digits and _ alone, got 'my-layer'"),
        ("mine", torch.nn.Linear, "layer 'mine': expected a class derived from layers.Layer"),
        ("mine", type("P", (layers.Layer,), {"__init__": _positional}), "option 'width' of P.__init__ is not keyword-"),
    ],
)
def test_what_cannot_be_registered(name, cls, message):
    with pytest.raises(ValueError, match=message):
        layers.register(name, kind="sequence")(cls)
    assert name not in layers.names()


@pytest.mark.parametrize("method", ["flops", "state_size"])
def test_a_layer_without_costs_says_what_it_lacks(method):
    class Mine(layers.Layer):
        pass

    with pytest.raises(NotImplementedError, match=rf"^Mine does not say its {method}\(length\)"):
        getattr(Mine(8, 8), method)(4)


SWITCHES = [
    (name, o) for name in layers.names() for o, value in layers.options(name).items() if isinstance(value, bool)
]


@pytest.mark.parametrize("name, option", SWITCHES)
def test_a_switch_is_on_or_off(name, option):
    with pytest.raises(ValueError, match=f"^layer '{name}': {option} must be true or false, got 'no'"):
        layers.build({"name": name, option: "no"}, DIM, LENGTH)


@pytest.mark.parametrize("name", layers.names())
def test_documentation_says_what_it_costs(name):
    text = layers.registry.get(name).__doc__ or ""
    inherited = "rest as in" in text
    assert inherited or "FLOPs" in text, f"{name} does not say its FLOPs"
    assert inherited or "State" in text or name in layers.names("channel"), f"{name} does not say its state"


def results(spec, backend):
    """Outputs and gradients, in fp32: on a card, or in Triton's interpreter."""
    torch.manual_seed(0)
    dim = 32 if str(spec).startswith("mh_") else 16  # the interpreter is slow; but those have 16 heads
    layer = layers.build(spec, dim, 17).to(HERE)
    x = torch.randn(1, 17, dim, device=HERE, requires_grad=True)
    with kernels.use_backend(backend):
        y = layer(x)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]


def assert_agree(found, expected):
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * want.abs().max().item())


def test_triton_equals_the_reference(spec):
    assert_agree(results(spec, "triton"), results(spec, "torch"))


def one_entry(t, wrong):
    t = t.clone(memory_format=torch.contiguous_format)
    t.view(-1)[t.abs().argmax()] *= wrong
    return t


@pytest.mark.parametrize(
    "wrong",
    [lambda t: 0 * t, lambda t: 1.002 * t, lambda t: one_entry(t, 1.002), lambda t: one_entry(t, torch.nan)],
    ids=["zeros", "slightly wrong", "one entry slightly wrong", "a hole"],
)
def test_the_comparison_with_the_reference_rejects_what_is_wrong(wrong):
    """Of any one result: the output, the input's gradient, a parameter's."""
    want = results("hyena", "torch")
    assert_agree([t.clone() for t in want], want)
    for i, t in enumerate(want):
        with pytest.raises(AssertionError):
            assert_agree([*want[:i], wrong(t), *want[i + 1 :]], want)
    with pytest.raises(ValueError):  # one is missing
        assert_agree(want[:-1], want)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_graph_equals_eager(spec):
    layer, x = build(spec, torch.float32).cuda(), sequence().float().cuda()
    with torch.no_grad():
        want = layer(x)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                layer(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with warnings.catch_warnings():
            if spec == "identity":  # there is nothing to record
                warnings.filterwarnings("ignore", "The CUDA Graph is empty")
            with torch.cuda.graph(graph, stream=stream):
                y = layer(x)
        for _ in range(2):
            graph.replay()
            torch.cuda.synchronize()
            torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo of itself
def test_compiles_without_a_graph_break(spec):
    """As training on a GPU compiles it: forward and gradients, by dynamo and autograd's tracer."""
    layer, x = build(spec, torch.float32), sequence().float().requires_grad_()

    def outcome(function):
        y = function(x)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *(p for p in layer.parameters() if p.requires_grad)])]

    want = outcome(layer)
    try:
        got = outcome(torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=False))
    finally:
        torch._dynamo.reset()
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
