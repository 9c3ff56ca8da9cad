"""Models around a stack: shapes, what a head may see, costs, and who draws the initial weights."""

import re

import pytest
import torch
import torch.nn.functional as F

import kernels
import layers
from mad import models
from mad.determinism import algorithms
from mad.models.positions import at_positions


def test_language_model_is_causal():
    torch.manual_seed(0)
    m = models.build(["base_conv", "attention|hyena", "swiglu"], 32, 11, 20)
    tokens = torch.randint(0, 11, (2, 20))
    logits = m(tokens)
    assert logits.shape == (2, 20, 11)
    changed = tokens.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % 11
    assert torch.equal(m(changed)[:, :12], logits[:, :12])
    assert not torch.allclose(m(changed)[:, 12:], logits[:, 12:])


@pytest.mark.parametrize("head", ["lm", "autoencoder"])
@pytest.mark.parametrize("stack, positions", [("hyena", False), ("mlp", False), ("mlp", True), ("mamba", True)])
def test_a_token_too_many_or_a_batch_too_few_is_refused(head, stack, positions):
    m = models.build(stack, 32, 11, 20, head, positions=positions)
    assert m(torch.zeros(2, 20, dtype=torch.long)).shape == (2, 20, 11)
    with pytest.raises(ValueError, match="the model was built for max_length=20, got 21 tokens"):
        m(torch.zeros(2, 21, dtype=torch.long))
    with pytest.raises(ValueError, match=r"expected tokens \(B, T\), got \(5,\)"):
        m(torch.zeros(5, dtype=torch.long))


@pytest.mark.parametrize("head", ["lm", "autoencoder"])
def test_tokens_are_sequences(head):
    with pytest.raises(ValueError, match=r"^expected tokens \(B, T\), got \(5,\)$"):
        models.build("mlp", 8, 4, 20, head)(torch.zeros(5, dtype=torch.long))


def test_a_stack_s_step_too_many_is_refused():
    stack = models.build(["mamba|hyena", "mlp"], 32, 11, 3).stack
    state, x_t = stack.init_state(2), torch.randn(2, 32)
    for _ in range(3):
        _, state = stack.step(x_t, state)
    with pytest.raises(ValueError, match="Hyena was built for max_length=3, got 4 tokens"):
        stack.step(x_t, state)


@pytest.mark.parametrize("size", ["dim", "vocab_size", "max_length"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "16", None])
def test_sizes_are_whole_numbers(size, value):
    with pytest.raises(ValueError, match=f"^{size} must be a whole number of at least 1, got {value!r}"):
        models.build("mlp", **{"dim": 8, "vocab_size": 5, "max_length": 6} | {size: value})


def test_logits_at_some_positions_are_those_of_all():
    torch.manual_seed(0)
    for head in ("lm", "autoencoder"):
        m = models.build("hyena-swiglu", 32, 11, 20, head).double()
        tokens = torch.randint(0, 11, (3, 17))
        positions = torch.tensor([[3, 16], [0, 1], [5, 5]])
        want = m(tokens).gather(1, positions.unsqueeze(-1).expand(-1, -1, 11))
        assert torch.allclose(m(tokens, positions), want, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_gradient_of_vectors_at_positions_is_that_of_gather(dtype):
    torch.manual_seed(0)
    x = torch.randn(3, 9, 5, dtype=dtype, requires_grad=True)
    positions = torch.tensor([[8, 0, 3], [1, 2, 7], [5, 5, 4]])
    with algorithms(True):
        y = at_positions(x, positions)
    want = x.gather(1, positions.unsqueeze(-1).expand(-1, -1, 5))
    dy = torch.randn_like(y)
    assert torch.equal(y, want)
    assert torch.equal(*(torch.autograd.grad(out, x, dy)[0] for out in (y, want))) and "AtPositions" in y.grad_fn.name()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_vectors_at_positions_are_put_back_without_sorting():
    x = torch.randn(64, 128, 32, device="cuda", requires_grad=True)
    positions = torch.rand(64, 128, device="cuda").argsort(1)[:, :48]
    torch.cuda.synchronize()  # or the profile has this sort
    with algorithms(True), torch.profiler.profile(acc_events=True) as profile:
        torch.autograd.grad(at_positions(x, positions).sum(), x)
        torch.cuda.synchronize()
    kernels = [event.key for event in profile.key_averages() if event.self_device_time_total]
    assert kernels and not any("sort" in name.lower() for name in kernels), kernels


def test_auto_encoder_decodes_the_last_vector_alone():
    """Two inputs whose encodings agree in the last position decode alike everywhere, and positions differ."""
    torch.manual_seed(0)
    m = models.build("mlp", 32, 11, 20, "autoencoder")  # no mixing: the last vector is the last token's
    a, b = torch.randint(0, 11, (2, 1, 20))
    b[:, -1] = a[:, -1]
    assert torch.equal(m(a), m(b))
    assert m(a)[0].std(0).max() > 1e-4


def test_a_layer_that_looks_ahead_fits_the_auto_encoder_only():
    stack = [{"name": "monarch_mixer", "causal": False}]
    with pytest.raises(ValueError, match="MonarchMixer looks ahead"):
        models.build(stack, 32, 11, 20)
    assert models.build(stack, 32, 11, 20, "autoencoder")(torch.zeros(1, 20, dtype=torch.int64)).shape == (1, 20, 11)


def test_a_model_keeps_what_a_layer_initialised():
    torch.manual_seed(0)
    m = models.build([{"name": "rtf", "init": "zeros"}], 32, 11, 20, "autoencoder")
    rtf = m.stack.layers[0]
    assert not rtf.filter.a.any() and rtf.filter.h0.any()
    attention = models.build("attention", 32, 11, 20).stack.layers[0]
    assert attention.out.bias.any()


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("positions", [None, torch.tensor([[1, 5, 9], [0, 2, 9]])], ids=["all", "some"])
def test_a_model_is_branches_with_norms_before_them(norm, bf16, positions):
    """Bit for bit, gradients too, although sums and norms are taken together and rounded for the layers that allow."""
    model = models.build("mh_hyena-swiglu-base_conv-attention|gla-mlp", 16, 8, 10, norm=norm)
    tokens = torch.randint(8, (2, 10))

    def normed(part, x):
        if norm == "rms":
            return F.rms_norm(x, (16,), part.weight, 1e-5)
        return F.layer_norm(x, (16,), part.weight, part.bias, 1e-5)

    def plain():
        x = model.embedding(tokens)
        for part, layer in zip(model.stack.norms, model.stack.layers, strict=True):
            x = x + layer(normed(part, x))
        x = x if positions is None else x.gather(1, positions.unsqueeze(-1).expand(-1, -1, 16))
        return model.head(normed(model.norm, x))

    outcomes = []
    for logits in (lambda: model(tokens, positions), plain):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            y = logits()
        outcomes.append((y, *torch.autograd.grad(y.float().square().sum(), list(model.parameters()))))
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


def test_hooks_see_every_part():
    """What is between the layers is taken together, and still each module is called, once."""
    model = models.build("hyena-swiglu", 16, 8, 10)
    seen: list[str] = []
    for name, part in model.named_modules():
        part.register_forward_hook(lambda *_, name=name: seen.append(name))
    model(torch.randint(8, (2, 10)))
    parts = ["embedding", "stack.norms.0", "stack.layers.0", "stack.norms.1", "stack.layers.1", "norm", "head", ""]
    assert [name for name in seen if name in parts] == parts


@pytest.mark.parametrize("head", ["lm", "autoencoder"])
def test_a_model_from_the_meta_device_becomes_real(head):
    there = models.build("attention-swiglu", 16, 8, 10, head)
    with torch.device("meta"):
        model = models.build("attention-swiglu", 16, 8, 10, head)
    model = model.to_empty(device="cpu")
    model.load_state_dict(there.state_dict())
    tokens = torch.randint(8, (2, 10))
    assert torch.equal(model(tokens), there(tokens))


def test_fp64_and_the_meta_device_know_no_autocast():
    model, tokens = models.build("attention-swiglu", 16, 8, 10), torch.randint(8, (2, 10))
    assert model.to("meta")(tokens.to("meta")).shape == (2, 10, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert models.build("mlp", 16, 8, 10).double()(tokens).dtype == torch.float64


def test_triton_gives_the_same_model():
    """In its interpreter, without a GPU: sums and norms are kernels, as layers and token vectors are."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = models.build("mlp-mlp", 16, 8, 10, norm="layer").to(device)
    tokens = torch.randint(8, (2, 10), device=device)
    outcomes = []
    for backend in ("triton", "torch"):
        with kernels.use_backend(backend):
            y = model(tokens)
        outcomes.append((y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))))
    for got, want in zip(*outcomes, strict=True):
        torch.testing.assert_close(got, want)


def test_recurrent_stack_equals_the_parallel_one():
    torch.manual_seed(0)
    stack = models.build(["base_conv", "attention|rtf", "moe"], 32, 11, 9).stack.double()
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    want, state = stack(x), stack.init_state(2)
    for t in range(9):
        y, state = stack.step(x[:, t], state)
        assert torch.allclose(y, want[:, t], atol=1e-10)


def test_cost_adds_up():
    m = models.build("attention-swiglu*2", 128, 16, 128)
    got = models.cost(m, 100)
    parts = [layers.build(name, 128, 128) for name in ("attention", "swiglu")]
    assert got.flops == 2 * sum(p.flops(100) for p in parts) + 2 * 100 * 128 * 16
    assert got.state_size == 2 * 2 * 128 * 100
    weights = 2 * sum(p.numel() for layer in parts for p in layer.parameters())
    assert got.params == weights + 2 * 16 * 128 + 5 * 128
    tied = models.build("attention-swiglu*2", 128, 16, 128, tied_embeddings=True)
    assert got.params - models.cost(tied, 100).params == 16 * 128
    assert got.params_nonembedding == got.params_active == got.params - 16 * 128 and got.seq_len == 100
    assert models.cost(tied, 100).params_nonembedding == got.params_nonembedding  # the table is the output weights, too
    placed = models.cost(models.build("attention-swiglu*2", 128, 16, 128, positions=True), 100)
    assert placed.params_nonembedding == got.params_nonembedding


@pytest.mark.parametrize("init, last", [("normal", 1.0), ("gpt2", 0.5)])
@pytest.mark.parametrize("head", ["lm", "autoencoder"])
def test_linear_maps_drawn_alike(head, init, last):
    stack = ["hyena", "moe", "hyena_experts", "swiglu"]
    torch.manual_seed(0)
    own = models.build(stack, 64, 11, 20, head)
    torch.manual_seed(0)
    drawn = models.build(stack, 64, 11, 20, head, init=init)
    maps = ends = 0
    for (name, before), after in zip(own.named_parameters(), drawn.parameters(), strict=True):
        module, _, leaf = name.rpartition(".")
        experts = before.dim() == 3 and leaf in ("up", "down", "weight")
        if not experts and not isinstance(drawn.get_submodule(module), torch.nn.Linear):
            assert torch.equal(before, after), name
            continue
        maps += 1
        if leaf == "bias":
            assert (after == 0).all(), name
            continue
        end = re.fullmatch(r"stack\.layers\.\d\.(out\.weight|down\.weight|down)", name)
        ends += end is not None
        deviation = 0.02 * (last if end else 1.0)
        assert abs(after.std().item() / deviation - 1) < 6 * after.numel() ** -0.5, name
    assert maps >= 20 and ends == 4


def test_filters_keep_their_own_draws():
    torch.manual_seed(0)
    own = models.build("hyena-mh_hyena-swiglu", 64, 11, 20)
    torch.manual_seed(0)
    drawn = models.build("hyena-mh_hyena-swiglu", 64, 11, 20, init="normal", own_filters=True)
    maps = 0
    for (name, before), after in zip(own.named_parameters(), drawn.parameters(), strict=True):
        if ".filter." in name:
            assert torch.equal(before, after), name
        elif re.search(r"layers.*(linear|out|up|down)\.weight", name):
            maps += 1
            assert abs(after.std().item() / 0.02 - 1) < 6 * after.numel() ** -0.5, name
    assert maps == 6


def test_a_token_uses_its_own_experts():
    for spec, experts in (("moe", 8 * 3 * 32 * 16), ("hyena_experts", 8 * (32 + 1) * 3 * 4)):
        dense = models.cost(models.build([{"name": spec, "top_k": 8}], 32, 11, 20), 20)
        sparse = models.cost(models.build(["mlp|mlp", {"name": spec, "top_k": 2}], 32, 11, 20), 20)
        assert dense.params_active == dense.params_nonembedding
        assert sparse.params_nonembedding - sparse.params_active == experts * 6 // 8


def test_frozen_weights_count_nowhere():
    model = models.build("moe-hyena_experts", 16, 11, 9, tied_embeddings=True)
    for weight in model.parameters():
        weight.requires_grad_(False)
    got = models.cost(model, 9)
    assert got.params == got.params_nonembedding == got.params_active == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"stack": "hyenna"}, "unknown layer 'hyenna' .did you mean 'hyena'"),
        ({"stack": [{"name": "moe", "topk": 1}]}, "unknown option of layer 'moe': 'topk' .did you mean 'top_k'"),
        ({"stack": [{"name": "mh_attention", "num_heads": 5}]}, "does not divide dim=32; the nearest that does is 4"),
        ({"head": "lmm"}, "unknown head 'lmm' .did you mean 'lm'"),
        ({"norm": "rmss"}, "unknown norm 'rmss' .did you mean 'rms'"),
        ({"embed_dropout": 1.5}, "embed_dropout must be a number from 0 to 1, got 1.5"),
        ({"embed_dropout": float("nan")}, "embed_dropout must be a number from 0 to 1, got nan"),
        ({"tied_embeddings": "no"}, "tied_embeddings must be true or false, got 'no'"),
        ({"positions": 1}, "positions must be true or false, got 1"),
        ({"init": "norml"}, "unknown init 'norml' .did you mean 'normal'"),
        (
            {"dim": 10**7, "stack": "mlp"},
            "layer 'mlp': not enough memory for dim=10000000, max_length=20 .1,600,000.0 GB",
        ),
        (
            {"vocab_size": 10**14},
            "not enough memory for a model with dim=32, vocab_size=100000000000000, max_length=20",
        ),
    ],
)
def test_bad_models(change, message):
    with pytest.raises(ValueError, match=message):
        models.build(**({"stack": "hyena", "dim": 32, "vocab_size": 11, "max_length": 20} | change))


@pytest.mark.parametrize("length", [0, 17])
def test_cost_of_sequences_that_the_model_does_not_take(length):
    with pytest.raises(ValueError, match=f"length from 1 to max_length=16 tokens, got {length}"):
        models.cost(models.build("hyena", 16, 8, 16), length)


def test_who_looks_ahead_is_named_among_branches_too():
    stack = [{"parallel": ["attention", {"name": "monarch_mixer", "causal": False}]}]
    with pytest.raises(ValueError, match="causal layers, but MonarchMixer looks ahead"):
        models.build(stack, 8, 8, 8)


def test_costs_are_whole_numbers(monkeypatch):
    model = models.build("mlp", 8, 8, 8)
    monkeypatch.setattr(type(model.stack.layers[0]), "state_size", lambda self, length: 0.5 * length)
    with pytest.raises(ValueError, match=r"state_size\(8\) must be a whole number, got 4.0"):
        models.cost(model, 8)
