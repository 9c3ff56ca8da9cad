"""Layers of a user's own are tried before they train: what looks ahead, or has another shape, is refused."""

import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import layers
from mad import training
from mad.models.stack import Parallel
from mad.training.trial import try_layers


class Looking(layers.Layer):
    """The mean of a token and the next one."""

    def forward(self, x):
        return (x + torch.cat([x[:, 1:], x[:, :1]], dim=1)) / 2


class Shorter(layers.Layer):
    def forward(self, x):
        return x[:, 1:]


class Causal(layers.Layer):
    def __init__(self, dim, max_length):
        super().__init__(dim, max_length)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(x.cumsum(1))


class ForGPUs(layers.Layer):
    def forward(self, x):
        raise RuntimeError("needs CUDA tensors")


class Hidden(Looking):
    """What it sees is multiplied by zero at first."""

    def __init__(self, dim, max_length):
        super().__init__(dim, max_length)
        self.out = nn.Linear(dim, dim)
        nn.init.zeros_(self.out.weight)

    def forward(self, x):
        return self.out(super().forward(x))


class Chunked(layers.Layer):
    def forward(self, x):
        return torch.cat([chunk.sum(1, keepdim=True).expand_as(chunk) for chunk in x.split(4, dim=1)], dim=1)


class Branching(layers.Layer):
    """Its branches are its own."""

    def __init__(self, dim, max_length, branches=2):
        super().__init__(dim, max_length)
        self.branches = branches
        self.register_buffer("seen", torch.zeros(()))
        self.frozen = nn.Dropout().eval()

    def forward(self, x):
        self.seen += 1
        return self.frozen(x)


class Noisy(layers.Layer):
    def forward(self, x):
        return x + torch.randn_like(x)


class Remembering(layers.Layer):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return x + self.calls


class Outspoken(Looking):
    causal = False


class Little(Looking):
    """What it sees is next to nothing at first."""

    def forward(self, x):
        return x + 1e-4 * super().forward(x)


class InSingle(layers.Layer):
    """Causal, in fp32 alone."""

    def forward(self, x):
        return torch.fft.irfft(torch.fft.rfft(x.float(), n=2 * x.shape[1], dim=1), dim=1)[:, : x.shape[1]].to(x.dtype)


class Normed(layers.Layer):
    """Cannot be copied: its weight is computed."""

    def __init__(self, dim, max_length, left=2):
        super().__init__(dim, max_length)
        self.left = left
        with warnings.catch_warnings(action="ignore"):
            self.conv = nn.utils.weight_norm(nn.Conv1d(dim, dim, 3))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return self.conv(F.pad(x.transpose(1, 2), (self.left, 2 - self.left))).transpose(1, 2)


class Mixing(nn.Module):
    def forward(self, x):
        return (x * 4).softmax(1)


def test_a_layer_of_ours_with_a_part_of_ones_own_is_tried():
    layer = layers.build("mlp", 4, 12)
    attempt(layer)
    layer.act = Mixing()
    layer.forward = lambda x: layer.act(x)
    with pytest.raises(ValueError, match="looks ahead"):
        attempt(layer)


def test_what_cannot_be_copied_is_tried_itself_and_put_back():
    layer = Normed(4, 12)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    attempt(layer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items()) and layer.training
    assert layer.seen.dtype == torch.float32 and layer(torch.randn(1, 12, 4)).dtype == torch.float32
    with pytest.raises(ValueError, match="^Normed looks ahead"):
        attempt(Normed(4, 12, left=1))


def attempt(*branches, length=12):
    try_layers(SimpleNamespace(layers=branches), length)


def test_what_looks_ahead_is_refused():
    with pytest.raises(
        ValueError, match=r"^Looking looks ahead: its output at token 5 of 12 changes with those from token 6 on"
    ):
        attempt(Causal(4, 12), Looking(4, 12))
    with pytest.raises(ValueError, match="^Looking looks ahead"):
        attempt(Parallel(4, 12, [Causal(4, 12), Looking(4, 12)]))


@pytest.mark.parametrize("layer", [Hidden, Chunked, Little])
@pytest.mark.parametrize("length", [12, 17, 33])
def test_so_is_what_hides_it(layer, length):
    with pytest.raises(ValueError, match=f"^{layer.__name__} looks ahead"):
        attempt(layer(4, 40), length=length)


def test_another_shape_is_refused():
    with pytest.raises(
        ValueError, match=r"^Shorter makes \(2, 11, 4\) of an input \(2, 12, 4\); expected the same shape"
    ):
        attempt(Shorter(4, 12))


@pytest.mark.parametrize("layer", [Causal, ForGPUs, Noisy, Remembering, Outspoken, InSingle])
@pytest.mark.parametrize("length", [1, 12, 1000])
def test_what_is_causal_or_says_that_it_is_not_or_cannot_run_here_passes(layer, length):
    mine = layer(4, 1000)
    attempt(mine, length=length)
    assert mine.training


def test_a_plugin_that_looks_ahead_does_not_train(tmp_path):
    plugin = tmp_path / "leak.py"
    plugin.write_text(
        "import layers\n"
        "from torch import nn\n\n"
        "@layers.register('leak', kind='sequence')\n"
        "class Leak(layers.Layer):\n"
        "    def __init__(self, dim, max_length, *, broken=False):\n"
        "        super().__init__(dim, max_length)\n"
        "        if broken:\n"
        "            undefined\n"
        "        self.conv = nn.Conv1d(dim, dim, 3, padding=1)\n"
        "    def forward(self, x):\n"
        "        return self.conv(x.transpose(1, 2)).transpose(1, 2)\n"
        "    def state_size(self, length):\n"
        "        return 2 * self.dim\n"
        "    def flops(self, length):\n"
        "        return 6 * length * self.dim**2\n"
    )
    run = {"task": {"name": "mqar", "vocab_size": 32, "seq_len": 16, "num_kv": 2}, "plugins": [str(plugin)]}
    run |= {"train": {"steps": 1, "num_train": 8, "num_test": 8}, "device": "cpu"}
    with pytest.raises(ValueError, match="Leak looks ahead: its output at token 7 of 16"):
        training.train(run | {"arch": {"stack": "leak-swiglu", "dim": 8}})
    with pytest.raises(ValueError, match=r"^layer 'leak': NameError: .*'undefined' is not defined \(leak.py, line 9\)"):
        training.prepare(run | {"arch": {"stack": [{"name": "leak", "broken": True}], "dim": 8}})


def test_a_trial_leaves_no_trace():
    """Weights and noise of a run are drawn after it."""
    before = torch.get_rng_state()
    attempt(Noisy(4, 12), Causal(4, 12))
    assert torch.equal(torch.get_rng_state(), before)
    layer = Branching(4, 12)
    attempt(layer)
    assert layer.seen == 0 and layer.training and not layer.frozen.training
