"""Short convolution in Triton against the sum that defines it."""

import pytest
import torch

import kernels
from kernels.testing import poisoned_memory, relative_error, verify, within_bounds

HERE = "cuda" if torch.cuda.is_available() else "cpu"


def oracle(u, w, bias=None, input_bias=None, *, activation=None):
    """One term after the other."""
    repeats, width = w.shape[0] // u.shape[1], w.shape[1]
    x = (u if input_bias is None else u + input_bias[:, None]).repeat(1, repeats, 1)
    y = torch.zeros_like(x) if bias is None else bias[:, None].expand_as(x).clone()
    for t in range(u.shape[-1]):
        terms = [w[:, width - 1 - j] * x[:, :, t - j] for j in range(min(width, t + 1))]
        y = torch.cat([y[..., :t], (y[..., t] + sum(terms))[..., None], y[..., t + 1 :]], dim=-1)
    return {None: lambda z: z, "silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu}[activation](y)


@pytest.mark.parametrize(
    "batch, channels, length, width, repeats, activation",
    [
        (1, 1, 1, 3, 1, None),
        (2, 3, 63, 4, 1, "silu"),
        (3, 5, 127, 3, 1, None),
        (2, 3, 30, 7, 2, "gelu"),
        (1, 2, 600, 3, 1, "silu"),
    ],
)
def test_equals_the_sum(where, batch, channels, length, width, repeats, activation):
    torch.manual_seed(0)
    u, w = torch.randn(batch, channels, length).double(), torch.randn(channels * repeats, width).double()
    bias = torch.randn(channels * repeats).double()
    verify(kernels.short_conv, oracle, {"u": u, "w": w, "bias": bias}, activation=activation, **where)


def test_without_bias_and_channel_first(where):
    torch.manual_seed(1)
    u = torch.randn(3, 2, 20).double().transpose(0, 1)  # (B, H, L), stored channel-first
    verify(kernels.short_conv, oracle, {"u": u, "w": torch.randn(3, 4).double()}, **where)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("repeats", [1, 2])
def test_sums_reach_beyond_half_precision(backend, repeats):
    u = torch.tensor([[[-300.0, 300.0, 300.0]]], device=HERE).half()
    y = kernels.short_conv(u, torch.full((repeats, 3), 200.0, device=HERE).half(), backend=backend)
    assert y.dtype == torch.float16 and y[0, 0].tolist() == [-60_000.0, 0.0, 60_000.0]


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("repeats", [1, 2])
def test_gradients_of_wide_taps_reach_beyond_half_precision(backend, repeats):
    u = torch.full((8, 1, 1024), 16.0, device=HERE).half()
    w, bias = (torch.ones(*shape, device=HERE, requires_grad=True) for shape in ((repeats, 3), (repeats,)))
    y = kernels.short_conv(u, w, bias, backend=backend)
    dw, db = torch.autograd.grad(y, (w, bias), torch.ones_like(y))
    assert dw.tolist() == repeats * [[128.0 * n for n in (1022, 1023, 1024)]] and db.tolist() == repeats * [8.0 * 1024]


def test_a_bias_in_any_layout(where):
    torch.manual_seed(2)
    given = {"u": torch.randn(1, 3, 9), "w": torch.randn(3, 2), "bias": torch.randn(3, 2)[:, 0]}
    given = {name: t.to(where["device"]) for name, t in given.items()}
    y = kernels.short_conv(**given, backend="triton")
    assert torch.allclose(y, kernels.short_conv(**given, backend="torch"), atol=1e-5)


LAYOUTS = {"channels first": (1, 0, 2), "batch first": (0, 1, 2), "channels last": (0, 2, 1)}


def laid_out(stored, repeats, *shape_and_width):
    *shape, width = shape_and_width
    torch.manual_seed(3)
    axes, outputs = LAYOUTS[stored], repeats * shape[1]
    u = torch.randn([shape[i] for i in axes]).double().permute([axes.index(i) for i in range(3)])
    return {"u": u, "w": torch.randn(outputs, width).double(), "bias": torch.randn(outputs).double()}


@pytest.mark.parametrize("stored", LAYOUTS)
@pytest.mark.parametrize("repeats", [1, 2, 4])
def test_any_layout(where, repeats, stored):
    verify(kernels.short_conv, oracle, laid_out(stored, repeats, 2, 4, 20, 5), activation="silu", **where)


@pytest.mark.parametrize(
    "batch, channels, length, width, activation",
    [
        (4, 2, 63, 5, None),
        (4, 1, 130, 3, "silu"),
        (4, 2, 4, 4, "gelu"),
        (4, 1, 7, 2, None),
        (4, 2, 5, 1, "silu"),
    ],
)
@pytest.mark.parametrize("stored", LAYOUTS)
@pytest.mark.parametrize("repeats", [1, 3])
def test_four_tokens_a_word(half, repeats, stored, batch, channels, length, width, activation):
    """Sequences that start within a word, or fill whole words, or do neither."""
    given = laid_out(stored, repeats, batch, channels, length, width)
    verify(kernels.short_conv, oracle, given, activation=activation, **half)


@pytest.mark.parametrize("repeats, streams", [(1, 1), (3, 1), (6, 2), (4, 2), (3, 3), (5, 1)])
def test_any_number_of_outputs_goes_by_words(monkeypatch, repeats, streams):
    from kernels.short_conv import triton

    monkeypatch.setattr(triton, "forward_kernel", None)  # the plain one
    given = {name: t.to(HERE).half() for name, t in laid_out("channels first", repeats, 3, 2, 64, 3).items()}
    ys = kernels.short_conv_streams(**given, streams=streams, backend="triton")
    want = oracle(**{name: t.double() for name, t in given.items()}).chunk(streams, dim=1)
    assert len(ys) == streams and all(relative_error(y, w) < 5e-3 for y, w in zip(ys, want, strict=True))


@pytest.mark.parametrize(
    "stored, batch, length",
    [("channels first", 10, 60), ("channels first", 12, 47), ("batch first", 5, 24), ("batch first", 3, 260)],
)
def test_a_share_of_words_is_several_blocks(monkeypatch, stored, batch, length):
    """As with long or many sequences: two shares, by turns, of five to nine blocks of 32 words. Rows are channels of
    the whole batch, or sequences of one block or three."""
    from kernels.short_conv import words

    monkeypatch.setattr(words, "WORDS", 32)
    monkeypatch.setattr(words, "PROGRAMS", 4)
    exact = laid_out(stored, 1, batch, 2, length, 3)
    u, dy = (t.to(HERE).half() for t in (exact["u"], exact["u"].flip(2).clone()))
    w, bias, added = exact["w"].to(HERE).float(), torch.zeros(2, device=HERE), torch.randn(2, device=HERE)
    for given in ((u, w, bias), (u, w, bias, added)):
        with poisoned_memory(), within_bounds():
            got = words.backward(u, w, added if len(given) == 4 else None, [dy])
        assert got is not None
        leaves = [t.double().requires_grad_() for t in given]
        want = torch.autograd.grad(oracle(*leaves), leaves, dy.double())
        sums = got[1].split([t.numel() for t in given[1:]])
        for value, true in zip((got[0], *sums), want, strict=True):
            assert relative_error(value.view_as(true), true) < 1e-3


@pytest.mark.parametrize("stored", LAYOUTS)
@pytest.mark.parametrize("repeats, width", [(1, 3), (3, 2)])
def test_a_share_of_the_batch_is_several_sequences(where, monkeypatch, stored, repeats, width):
    from kernels.short_conv import triton, words

    monkeypatch.setattr(triton, "SPLITS", 2)
    monkeypatch.setattr(words, "WIDEST", 0)  # the plain kernel, in half precision too
    given = laid_out(stored, repeats, 5, 2, 20, width) | {"input_bias": torch.randn(2).double()}
    verify(kernels.short_conv, oracle, given, activation="silu", wide=("w", "bias", "input_bias"), **where)


@pytest.mark.parametrize(
    "channels, repeats, streams, length, width",
    [
        (3, 4, 3, 20, 3),
        (6, 1, 3, 7, 5),
        (4, 3, 2, 20, 3),
        (4, 3, 2, 9, 6),
        (4, 4, 1, 7, 5),
        (2, 3, 3, 9, 6),
    ],
)
def test_streams_are_parts_of_the_outputs(where, channels, repeats, streams, length, width):
    """Also where a part begins within the channels."""
    torch.manual_seed(4)
    u, outputs = torch.randn(channels, 2, length).double().transpose(0, 1), repeats * channels
    given = {"u": u, "w": torch.randn(outputs, width).double(), "bias": torch.randn(outputs).double()}

    def parts(u, w, bias, *, streams, activation=None):
        return oracle(u, w, bias, activation=activation).chunk(streams, dim=1)

    verify(kernels.short_conv_streams, parts, given, streams=streams, **where)
    verify(kernels.short_conv_streams, parts, given, streams=streams, activation="silu", **where)


@pytest.mark.parametrize("stored", LAYOUTS)
@pytest.mark.parametrize("channels, repeats, streams", [(3, 4, 3), (2, 1, 1), (4, 3, 2)])
@pytest.mark.parametrize("length, width", [(20, 3), (9, 5), (63, 4), (8, 6)])
def test_an_input_bias_is_not_added_to_the_zeros_before(where, stored, channels, repeats, streams, length, width):
    """Words that begin with a sequence and words that do not, and no words; with an activation's gradient, too."""
    given = laid_out(stored, repeats, 3, channels, length, width)
    given["input_bias"] = torch.randn(channels).double()
    options = {"streams": streams, "activation": "silu" if width == 4 else None}

    def parts(u, w, bias, input_bias, *, streams, activation=None):
        return oracle(u, w, bias, input_bias, activation=activation).chunk(streams, dim=1)

    verify(kernels.short_conv_streams, parts, given, **options, **where)


@pytest.mark.parametrize(
    "batch, length, repeats", [(3, 20, 1), (3, 20, 2), (3, 20, 4), (4, 9, 1), (4, 9, 2), (4, 9, 4), (4, 127, 2)]
)
def test_streams_as_training_has_them(batch, length, repeats):
    """Half precision, channel by channel in memory, the gradients too: whole words, and one launch for all streams."""
    from kernels.short_conv import triton, words

    def channel_first(channels):
        return torch.randn(channels, batch, length, device=HERE).half().transpose(0, 1)

    torch.manual_seed(6)
    u, w, dys = (
        channel_first(3),
        torch.randn(3 * repeats, 3, device=HERE),
        [channel_first(repeats) for _ in range(3)],
    )
    assert words.backward(u, w, None, dys) is not None
    du, sums = triton.gradients(u, w, None, None, dys, "none")
    leaves = u.double().requires_grad_(), w.double().requires_grad_()
    want = torch.autograd.grad(oracle(*leaves), leaves, torch.cat(dys, dim=1).double())
    for got, exact in zip((du, sums[: w.numel()].view_as(w)), want, strict=True):
        assert ((got.double() - exact).norm() / exact.norm()).item() < 1e-3
    mixed = [dys[0], dys[1].contiguous(), dys[2]]
    torch.testing.assert_close(triton.gradients(u, w, None, None, mixed, "none")[0], du, atol=1e-2, rtol=1e-2)


def test_streams_nobody_reads_and_gradients_in_other_layouts():
    torch.manual_seed(5)
    u, w = torch.randn(2, 3, 8, device=HERE), torch.randn(12, 3, device=HERE)

    def gradients(backend):
        leaves = u.clone().requires_grad_(), w.clone().requires_grad_()
        a, _, c = kernels.short_conv_streams(*leaves, streams=3, backend=backend)
        return torch.autograd.grad((a * a).sum() + (c.transpose(0, 1).contiguous() ** 3).sum(), leaves)

    for got, want in zip(gradients("triton"), gradients("torch"), strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_as_many_numbers_are_added_as_there_are_channels():
    with pytest.raises(ValueError, match=r"expected input_bias \(4,\), got \(8,\)"):
        kernels.short_conv(torch.randn(1, 4, 5), torch.randn(8, 3), input_bias=torch.randn(8))


def test_as_many_streams_as_there_can_be():
    with pytest.raises(ValueError, match="streams must be 1 to 3 and divide the 8 outputs, got 3"):
        kernels.short_conv_streams(torch.randn(1, 4, 5), torch.randn(8, 3), streams=3)
    with pytest.raises(ValueError, match="streams must be 1 to 3"):
        kernels.short_conv_streams(torch.randn(1, 4, 5), torch.randn(8, 3), streams=4)


def test_words_are_taken_where_they_fit():
    from kernels.short_conv.words import words

    half = torch.zeros(3, 4, 7, dtype=torch.float16).transpose(0, 1)  # (4, 3, 7), channel-first
    rows = words(half)
    assert rows is not None and rows.shape == (1, 3, 7)
    assert words(half.float()) is None  # four bytes a token
    assert words(half[:, :, :6]) is None and words(half[:3]) is None  # gaps; 21 tokens a row
    rows = words(torch.zeros(2, 3, 8, dtype=torch.float16))
    assert rows is not None and rows.shape == (2, 3, 2)


def test_words_are_not_taken_where_a_row_has_more_tokens_than_32_bits_count():
    from kernels.short_conv.words import words

    def row(tokens):
        return torch.empty(tokens // 1024, 1, 1024, dtype=torch.float16, device="meta")

    assert words(row((1 << 31) - 1024)) is not None and words(row(1 << 31)) is None


@pytest.mark.parametrize(
    "shape, strides, widest",
    [
        ((2, 3, 8), (8, 1 << 30, 1), 5),
        ((2, 3, 8), (8, 1 << 30, 1), 0),
        ((2, 2, 3), (2, 1, 1 << 30), 5),
        ((3, 2, 8), (1 << 30, 8, 1), 5),
        ((3, 2, 8), (1 << 30, 8, 1), 0),
    ],
    ids=["channels, words", "channels", "tokens", "sequences, words", "sequences"],
)
def test_offsets_of_more_than_32_bits(monkeypatch, shape, strides, widest):
    """Inputs, outputs and both gradients of 2^31 elements and more, of which few are touched: the rest is no memory."""
    from kernels.short_conv import triton, words

    def apart(*_):
        last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        return torch.empty(last + 1, dtype=torch.float16, device=HERE).as_strided(shape, strides)

    torch.manual_seed(7)
    u, dy = (apart().copy_(torch.randn(shape)) for _ in range(2))
    w, bias = torch.randn(shape[1], 3, device=HERE), torch.randn(shape[1], device=HERE)
    monkeypatch.setattr(triton, "new_outputs", apart)
    monkeypatch.setattr(words, "WIDEST", widest)

    def outcome(function, *inputs, **options):
        leaves = [t.detach().requires_grad_() for t in inputs]
        y = function(*leaves, activation="silu", **options)
        return [y, *torch.autograd.grad(y, leaves, dy.to(y.dtype))]

    with within_bounds():
        got = outcome(kernels.short_conv, u, w, bias, backend="triton")
    want = outcome(oracle, *(t.double() for t in (u, w, bias)))
    for value, true in zip(got, want, strict=True):
        assert relative_error(value, true) < 2e-3


def test_more_sequences_than_a_grid_holds(monkeypatch):
    """A grid's third axis is the batch where words are taken, and short: the plain kernel takes what is more."""
    from kernels.short_conv import words

    u, w = torch.randn(3, 2, 8, dtype=torch.float16, device=HERE), torch.randn(2, 3, dtype=torch.float16, device=HERE)
    y = torch.empty_like(u)
    assert words.forward(u, w, None, None, None, [y], 0, "none")
    monkeypatch.setattr(words, "MOST", 2)
    assert not words.forward(u, w, None, None, None, [y], 0, "none")
    torch.testing.assert_close(kernels.short_conv(u, w, backend="triton"), y)


def test_is_a_well_formed_operator():
    from kernels.short_conv import triton

    torch.manual_seed(2)
    u, w = torch.randn(2, 3, 9, requires_grad=True, device=HERE), torch.randn(3, 3, requires_grad=True, device=HERE)
    added = torch.randn(3, device=HERE)
    for input_bias in (None, added):
        torch.library.opcheck(triton.convolve, (u, w, None, input_bias, "silu", 3))
    for repeats, width in ((1, 3), (1, 4), (4, 3), (4, 4)):
        w = torch.randn(3 * repeats, width, device=HERE)
        dys = [torch.randn(2, repeats, 9, device=HERE) for _ in range(3)]
        for input_bias in (None, added):
            torch.library.opcheck(triton.gradients, (u.detach(), w, None, input_bias, dys, "none"))


@pytest.mark.parametrize("repeats, streams, launches", [(4, 3, 1), (1, 3, 1), (2, 1, 1), (3, 3, 3)])
def test_streams_are_one_launch_where_that_can_be(monkeypatch, repeats, streams, launches):
    """A channel is then read once for all the outputs that read it."""
    from kernels.short_conv import words

    u = torch.randn(2, 6, 8, dtype=torch.float16, device=HERE)
    w, bias = torch.randn(repeats * 6, 3, device=HERE), torch.randn(repeats * 6, device=HERE)
    taken, forward = [], words.forward
    monkeypatch.setattr(words, "forward", lambda *given: taken.append(forward(*given)) or taken[-1])
    ys = kernels.short_conv_streams(u, w, bias, streams=streams, backend="triton")
    assert sum(taken) == launches
    for y, want in zip(ys, oracle(u.double(), w.double(), bias.double()).chunk(streams, dim=1), strict=True):
        assert relative_error(y, want) < 2e-3
