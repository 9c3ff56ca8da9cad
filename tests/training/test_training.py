"""Training: runs repeat bit for bit, learn what they should, and say what became of them."""

import math
import pickle

import numpy as np
import pytest
import torch

from mad import tasks, training
from mad.config import Optim
from mad.tasks.folder import write_folder
from mad.training import data
from mad.training.data import IGNORE, MULTIPLE, Batches, Examples, compact, fill_up, load
from mad.training.evaluate import Evaluation, loss_of, scores
from mad.training.graphs import Immediate
from mad.training.loop import CURVE_POINTS
from mad.training.prepare import build_task
from mad.training.schedule import learning_rate
from mad.training.trainer import Update

TINY = {
    "task": {"name": "mqar", "vocab_size": 32, "seq_len": 16, "num_kv": 2},
    "arch": {"stack": "base_conv-attention", "dim": 16},
    "train": {"steps": 6, "batch_size": 8, "num_train": 32, "num_test": 16, "eval_every": 2},
    "device": "cpu",
}


def tiny(seed=0, **changes):
    """TINY with some keys of its sections changed."""
    return TINY | {section: TINY.get(section, {}) | keys for section, keys in changes.items()} | {"seed": seed}


def same(a, b):
    """Equal records, but for the clock."""
    a, b = a.to_dict(), b.to_dict()
    return {k: v for k, v in a.items() if k not in ("seconds", "started")} == {
        k: v for k, v in b.items() if k not in ("seconds", "started")
    }


def test_a_few_sequences_of_a_mixture_are_shared_out():
    lengths = [(8, 100), (10, 20), (12, 20), (14, 20), (16, 20)]
    task = tasks.build("mqar", vocab_size=32, segments=[[length, 2, number] for length, number in lengths])
    assert [len(part) for part in load(task, 6, 0, "train", "cpu")] == [2, 1, 1, 1, 1]
    assert [len(part) for part in load(task, 18, 0, "train", "cpu")] == [10, 2, 2, 2, 2]


def test_the_same_run_gives_the_same_bits():
    first = training.train(tiny())
    training.train(tiny(seed=1))  # another run in between
    torch.rand(3)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    assert same(first, training.train(tiny()))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert first.curve != training.train(tiny(seed=1)).curve


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_the_caller_has_set_does_not_matter(precision):
    run = tiny(train={"precision": precision})
    alone = training.train(run)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", dtype=torch.float16), torch.inference_mode():
            assert same(alone, training.train(run))
            assert torch.is_autocast_enabled("cpu") and torch.is_inference_mode_enabled()
        with torch.autocast("cpu", enabled=False), torch.no_grad():  # what it rounds is kept until the outermost ends
            assert same(alone, training.train(run))
            assert not torch.is_grad_enabled()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_dropout_repeats_too_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = training.train(tiny(arch={"embed_dropout": 0.3}))
    assert torch.equal(before, torch.get_rng_state())
    assert same(first, training.train(tiny(arch={"embed_dropout": 0.3})))
    assert first.curve != training.train(tiny()).curve


def test_a_record_says_what_ran():
    record = training.train(tiny())
    assert record.status == "ok" and record.steps == 6 and [p["step"] for p in record.curve] == [2, 4, 6]
    assert record.run_id == training.prepare(tiny()).id == training.prepare(training.prepare(tiny())).id
    assert record.config["task"]["power"] == 0.01 and record.config["train"]["precision"] == "fp32"
    assert record.config["arch"]["name"] == "base_conv-attention" and record.config["arch"]["max_length"] == 16
    model = {"params", "params_nonembedding", "params_active", "flops", "state_size", "seq_len"}
    assert set(record.cost) == model | {"tokens", "unique_tokens", "flops_exact", "flops_6nd"}
    assert min(record.cost.values()) > 0 and record.cost["tokens"] == 6 * 8 * 16
    assert record.cost["unique_tokens"] == 32 * 16 and record.cost["flops_exact"] == 3 * 48 * record.cost["flops"]
    assert {"accuracy", "macro_accuracy", "loss", "train_loss", "best_accuracy", "valid_accuracy"} <= set(
        record.metrics
    )
    assert record.device == "cpu" and set(record.versions) == {"mad", "torch", "python"}


def test_recall_is_learned_with_attention_and_not_without():
    settings = {
        "task": {"vocab_size": 64, "seq_len": 32, "num_kv": 2},
        "arch": {"dim": 32},
        "optim": {"lr": 1e-2},
        "train": {"steps": 150, "batch_size": 64, "num_train": 4000, "num_test": 200, "eval_every": 25},
    }
    assert training.train(tiny(**settings)).metrics["accuracy"] > 0.95
    settings["arch"] = {"dim": 32, "stack": "base_conv*2"}
    assert training.train(tiny(**settings)).metrics["accuracy"] < 0.3


def test_early_stop():
    record = training.train(tiny(train={"stop_at": 0.0}))
    assert record.steps == 2 and record.status == "ok"
    assert training.train(tiny(train={"stop_at": None})).steps == 6


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_what_was_measured():
    record = training.train(tiny(optim={"lr": 1e18}))
    assert record.status == "diverged" and record.steps < 6
    assert not math.isfinite(record.curve[-1]["train_loss"])
    assert all(math.isfinite(v) for v in record.metrics.values())


def test_the_curve_is_thinned():
    record = training.train(tiny(train={"steps": 120, "eval_every": 1, "stop_at": None}))
    assert len(record.curve) <= CURVE_POINTS and record.curve[-1]["step"] == 120


def test_a_mixture_of_lengths():
    task = {"segments": [[8, 2, 20], [16, 4, 9]], "test_segments": [[8, 2, 8], [12, 2, 8], [16, 4, 8]]}
    run = tiny(task=task, train={"num_train": None, "num_test": None, "steps": None, "epochs": 2})
    record = training.train(run)
    assert record.steps == 2 * (3 + 2)  # each part's last batch is full, too
    training.prepare(run | {"optim": {"warmup_steps": 9}})
    with pytest.raises(ValueError, match="warmup_steps=10 leaves nothing of the 10 steps"):
        training.prepare(run | {"optim": {"warmup_steps": 10}})
    parts = [record.metrics[f"accuracy_{i}"] for i in range(3)]
    assert record.metrics["accuracy"] == pytest.approx(sum(parts) / 3)


def test_every_head_trains():
    for task in ({"name": "compression", "seq_len": 8}, {"name": "memorization", "vocab_size": 16, "seq_len": 8}):
        record = training.train(tiny() | {"task": task})
        assert record.status == "ok" and record.curve[-1]["train_loss"] != record.curve[0]["train_loss"]


def test_progress_is_told():
    told = []
    training.train(tiny(), told.append)
    assert [p["step"] for p in told] == [2, 4, 6] and all(p["steps"] == 6 for p in told)


def test_batches_use_every_example_once_a_pass():
    inputs = torch.arange(10).unsqueeze(1)
    batches = Batches([len(inputs)], batch_size=4, seed=0)
    assert batches.per_epoch == 3
    seen = torch.cat([inputs[batches.next()[1]].flatten() for _ in range(5)])
    assert sorted(seen[:10].tolist()) == list(range(10)) == sorted(seen[10:].tolist())
    assert seen[:10].tolist() != list(range(10)) and seen[:10].tolist() != seen[10:].tolist()


def test_scored_positions_give_the_loss_of_all_positions():
    torch.manual_seed(0)
    (examples,) = load(tasks.build("mqar", vocab_size=32, seq_len=16, num_kv=2), 8, 0, "train", "cpu")
    assert examples.positions is not None and examples.targets.shape == (8, 2)
    inputs, targets = tasks.build("mqar", vocab_size=32, seq_len=16, num_kv=2).sample(8)
    logits = torch.randn(8, 16, 32)
    picked = logits.gather(1, examples.positions.unsqueeze(-1).expand(-1, -1, 32))
    assert torch.allclose(loss_of(picked, examples.targets), loss_of(logits, targets))


def test_accuracies_against_their_definitions():
    torch.manual_seed(0)
    targets = torch.randint(0, 6, (40, 7)).masked_fill(torch.rand(40, 7) < 0.5, -100)
    logits = torch.randn(40, 7, 8)
    examples = compact(torch.arange(40 * 7).view(40, 7), targets)

    class Table(torch.nn.Module):
        def forward(self, tokens, positions):
            chosen = logits[tokens[:, 0] // 7]
            return chosen if positions is None else chosen.gather(1, positions.unsqueeze(-1).expand(-1, -1, 8))

    evaluation = Evaluation(Table(), [examples], batch_size=16, vocab_size=8)
    evaluation.queue()
    got = scores(evaluation.counts, [len(examples)])
    guess, scored = logits.argmax(-1), targets != -100
    assert got["accuracy"] == pytest.approx((guess == targets)[scored].float().mean().item())
    recalls = []
    for label in range(8):
        is_label, guessed = (targets == label) & scored, (guess == label) & scored
        if is_label.any() or guessed.any():
            recalls.append((is_label & guessed).sum().item() / max(1, is_label.sum().item()))
    assert got["macro_accuracy"] == pytest.approx(sum(recalls) / len(recalls))
    assert got["loss"] == pytest.approx(loss_of(logits, targets).item(), rel=1e-6)
    macros = perplexities = 0.0
    for rows in (slice(0, 16), slice(16, 32), slice(32, 40)):
        share = (rows.stop - rows.start) / 40
        part = Evaluation(Table(), [compact(torch.arange(40 * 7).view(40, 7)[rows], targets[rows])], 40, vocab_size=8)
        part.queue()
        alone = scores(part.counts, [rows.stop - rows.start])
        macros += share * alone["macro_accuracy"]
        perplexities += share * math.exp(alone["loss"])
    assert got["batch_macro_accuracy"] == pytest.approx(macros)
    assert got["batch_perplexity"] == pytest.approx(perplexities, rel=1e-5)


def test_an_id_guessed_once_costs_one_batch_its_share():
    targets, logits = torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4, 1, 3)
    logits[:, 0, 0], logits[3, 0, 2] = 1.0, 2.0  # the last guess is an id that is never asked for

    class Table(torch.nn.Module):
        def forward(self, tokens, positions):
            return logits[tokens[:, 0]]

    evaluation = Evaluation(Table(), [compact(torch.arange(4).view(4, 1), targets)], batch_size=2, vocab_size=3)
    evaluation.queue()
    got = scores(evaluation.counts, [4])
    assert got["accuracy"] == 0.75
    assert got["macro_accuracy"] == pytest.approx(0.75 / 2)  # over the whole set it halves the score
    assert got["batch_macro_accuracy"] == pytest.approx((1 + 0.5 / 2) / 2)


def test_the_evaluation_of_the_lowest_perplexity_is_reported():
    """Its numbers, and its model: what is measured on validation data is of the same weights."""
    few = {"num_train": 16, "steps": 200, "eval_every": 10, "stop_at": None}  # it overfits
    last, lowest = (
        training.train(tiny(train=few | {"report": report}, optim={"lr": 1e-2, "schedule": "constant"}))
        for report in ("last", "lowest_perplexity")
    )
    assert last.curve == lowest.curve
    perplexities = [point["batch_perplexity"] for point in lowest.curve]
    place = perplexities.index(min(perplexities))
    assert place < len(perplexities) - 1, "or nothing is told apart"
    for name in ("accuracy", "loss", "batch_macro_accuracy", "train_loss"):
        assert lowest.metrics[name] == lowest.curve[place][name]
        assert last.metrics[name] == last.curve[-1][name]
    assert lowest.metrics["valid_loss"] < last.metrics["valid_loss"]
    assert lowest.run_id != last.run_id and lowest.metrics["reported_step"] == lowest.curve[place]["step"]
    with pytest.raises(ValueError, match="expected train.report=last"):
        training.prepare(tiny(train={"report": "lowest_perplexity", "steps": None, "tokens": 1000}))


def test_a_batch_that_asks_nothing_is_no_divergence(tmp_path):
    """Of 32 sequences two have questions: most batches of 8 have none, and no mean either."""
    task = tasks.build("mqar", vocab_size=32, seq_len=16, num_kv=2)
    write_folder(task, tmp_path, 32, 16)
    file = tmp_path / "train" / "targets.npy"
    targets = np.load(file)
    targets[2:] = IGNORE
    np.save(file, targets)
    run = tiny(train={"num_train": None, "num_test": None}) | {"task": {"name": "folder", "path": str(tmp_path)}}
    record = training.train(run)
    losses = [point["train_loss"] for point in record.curve]
    assert record.status == "ok" and record.steps == 6 and min(losses) == 0 < max(losses)
    np.save(file, np.full_like(targets, IGNORE))
    with pytest.raises(ValueError, match="split 'train' of task 'folder' asks nothing in all its 32 sequences: every"):
        training.train(run)


def test_schedules():
    cosine = Optim(lr=1.0, min_lr=0.1, warmup_steps=4)
    rates = [learning_rate(cosine, step, 24) for step in range(24)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8]) and rates[4] == pytest.approx(1.0)
    assert rates[14] == pytest.approx(0.55) and min(rates[4:]) == rates[-1] < 0.12
    constant = Optim(lr=0.5, schedule="constant")
    assert {learning_rate(constant, step, 10) for step in range(10)} == {0.5}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"task": {"name": "mqarr"}}, "unknown task 'mqarr' .did you mean 'mqar'"),
        ({"task": {"num_kw": 2}}, "unknown option of task 'mqar': 'num_kw' .did you mean 'num_kv'"),
        ({"task": {"num_kv": 9}}, "seq_len=16 .*36"),
        ({"arch": {"stack": "hyenna"}}, "unknown layer 'hyenna' .did you mean 'hyena'"),
        ({"arch": {"stack": []}}, "the stack is empty"),
        ({"arch": {"stack": "mh_attention", "dim": 24}}, "num_heads=16 does not divide dim=24"),
        ({"arch": {"max_length": 8}}, "arch.max_length=8 is shorter than the 16 tokens"),
        ({"optim": {"lr": math.nan}}, "optim.lr must be a number, got nan"),
        ({"optim": {"lr": 0.0}}, "optim.lr must be above 0"),
        ({"optim": {"lrr": 1e-3}}, "unknown key 'optim.lrr' .did you mean 'optim.lr'"),
        ({"optim": {"schedule": "cosin"}}, "unknown optim.schedule 'cosin' .did you mean 'cosine'"),
        ({"train": {"precision": "fp16"}}, "unknown train.precision 'fp16'"),
        ({"train": {"batch_size": 0}}, "train.batch_size must be at least 1"),
        ({"plugins": ["nowhere.py"]}, "plugin 'nowhere.py' is not a file"),
        ({"plugins": "nowhere.py"}, "plugins must be a list of files, got 'nowhere.py'"),
        ({"optim": {"lr": True}}, "optim.lr must be a number, got True"),
        ({"optim": {"warmup_steps": 6}}, "optim.warmup_steps=6 leaves nothing of the 6 steps .* expected 5 at most"),
        ({"train": {"stop_at": 99.0}}, "train.stop_at must be a share from 0 to 1, or null for never, got 99"),
        (
            {"task": {"segments": [[8, 2, 9], [16, 2, 9]]}, "train": {"num_test": 1}},
            "train.num_test=1 cannot be shared by the 2 parts of split 'valid' of task 'mqar'; expected at least 2",
        ),
    ],
)
def test_bad_runs(changes, message):
    plugins = {"plugins": changes.pop("plugins")} if "plugins" in changes else {}
    with pytest.raises(ValueError, match=message):
        training.prepare(tiny(**changes) | plugins)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"task": None}, "task must be a name, or a mapping with its name and options, got None"),
        ({"arch": "hyena"}, "arch must be a mapping of its keys, as {'stack': ...}, got 'hyena'"),
        ({"optim": None}, "optim must be a mapping of its keys, as {'lr': ...}, got None"),
    ],
)
def test_sections_that_are_none(given, message):
    with pytest.raises(ValueError, match=message):
        training.prepare(TINY | given)


@pytest.mark.parametrize("given", ["mqar", None])
def test_what_is_no_run(given):
    with pytest.raises(ValueError, match=f"a run is a mapping of its keys, .* got {given!r}"):
        training.train(given)


def test_cuda_is_refused_where_there_is_none():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(ValueError, match="torch sees no CUDA device"):
        training.prepare(tiny() | {"device": "cuda"})


def test_a_plugin_brings_a_layer_and_its_text_decides_the_run_id(tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "import layers\n"
        "@layers.register('doubling', kind='channel')\n"
        "class Doubling(layers.ChannelMixer):\n"
        "    def forward(self, x):\n"
        "        return 2 * x\n"
        "    def flops(self, length):\n"
        "        return 0\n"
    )
    run = tiny(arch={"stack": "base_conv-doubling"}) | {"plugins": [str(plugin)]}
    first = training.prepare(run)
    record = training.train(run)
    assert record.status == "ok" and record.run_id == first.id and record.versions["plugins"].startswith("mine@")
    plugin.write_text(plugin.read_text().replace("2 * x", "3 * x"))
    other = training.train(run)
    assert other.run_id != first.id and other.metrics != record.metrics and other.versions != record.versions
    plugin.write_text(plugin.read_text().replace("Doubling", "Tripling"))  # another class by the same name
    assert training.train(run).metrics == other.metrics
    plugin.unlink()  # what was prepared goes on with the text that it was prepared with, in other processes too
    again = training.train(pickle.loads(pickle.dumps(first)))
    assert (again.run_id, again.metrics, again.versions) == (first.id, record.metrics, record.versions)


def test_a_task_may_draw_from_torch(tmp_path, monkeypatch):
    """Against advice; where its examples were kept, the model's draws came out otherwise."""
    for name in ("_classes", "_tags"):
        monkeypatch.setattr(tasks.registry, name, dict(getattr(tasks.registry, name)))
    plugin = tmp_path / "coins.py"
    plugin.write_text(
        "import torch\n"
        "from mad import tasks\n"
        "@tasks.register('coins')\n"
        "class Coins(tasks.Task):\n"
        "    def __init__(self, *, vocab_size=2, seq_len=8):\n"
        "        super().__init__(vocab_size=vocab_size, seq_len=seq_len)\n"
        "    def generate(self, rng, num, train):\n"
        "        return 2 * (torch.randint(2, (num, 8)).numpy(),)\n"
    )
    run = TINY | {"task": "coins", "plugins": [str(plugin)]}
    first = training.train(run)
    assert same(first, training.train(run)) and first.metrics["loss"] != first.metrics["valid_loss"]
    task = tasks.build("coins")
    torch.manual_seed(0)
    once = [task.sample(40, seed=seed, split=split).inputs for seed in (0, 1) for split in ("train", "test")]
    assert torch.equal(once[0], task.sample(40).inputs)
    assert not any(torch.equal(a, b) for i, a in enumerate(once) for b in once[:i])
    assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(0)))


def test_a_layer_may_draw_from_numpy(tmp_path):
    plugin = tmp_path / "noise.py"
    plugin.write_text(
        "import layers, numpy, torch\n"
        "@layers.register('from_numpy', kind='channel')\n"
        "class FromNumPy(layers.ChannelMixer):\n"
        "    def __init__(self, dim, max_length):\n"
        "        super().__init__(dim, max_length)\n"
        "        self.weight = torch.nn.Parameter(torch.tensor(numpy.random.randn(dim), dtype=torch.float32))\n"
        "    def forward(self, x):\n"
        "        return x * self.weight\n"
        "    def flops(self, length):\n"
        "        return length * self.dim\n"
    )
    run = tiny(arch={"stack": "base_conv-from_numpy"}) | {"plugins": [str(plugin)]}
    before = np.random.get_state()[1].tolist()
    first, second = training.train(run), training.train(run)
    assert first.metrics == second.metrics and first.metrics != training.train(run | {"seed": 2}).metrics
    assert np.random.get_state()[1].tolist() == before


@pytest.mark.parametrize("stack", ["base_conv-attention", "rtf-mlp", "monarch_mixer-moe", "hyena-swiglu"])
@pytest.mark.parametrize("length", [10, 16, 20])  # of which all but the last token are read: 9, 15, 19
def test_filling_up_changes_no_score(length, stack, monkeypatch):
    task = {"name": "in_context_recall", "vocab_size": 16, "seq_len": length}
    run = training.prepare(tiny(arch={"stack": stack, "positions": True}) | {"task": task})
    assert run.arch.max_length % MULTIPLE == 0
    filled = training.train(run)
    seen = []
    real = data.load
    monkeypatch.setattr(data, "load", lambda *given: seen.append(real(*given[:5], 0)) or seen[-1])
    plain = training.train(run)
    assert seen[0][0].inputs.shape[1] == build_task(run).input_length
    for a, b in zip(filled.curve, plain.curve, strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    assert filled.cost == plain.cost


def test_examples_are_filled_up_where_there_is_room():
    inputs, targets = torch.ones(2, 13, dtype=torch.int64), torch.ones(2, 13, dtype=torch.int64)
    filled = fill_up(Examples(inputs, None, targets), room=16)
    assert filled.inputs.shape == filled.targets.shape == (2, 16)
    assert (filled.targets[:, 13:] == IGNORE).all() and torch.equal(filled.inputs[:, :13], inputs)
    assert fill_up(Examples(inputs, None, targets), room=15).inputs.shape == (2, 13)
    picked = Examples(inputs, torch.zeros(2, 3, dtype=torch.int64), targets[:, :3])
    assert fill_up(picked, room=16).targets.shape == (2, 3) and fill_up(picked, room=16).inputs.shape == (2, 16)


def test_layers_compiled_one_by_one_and_what_cannot_be_runs_as_it_is(caplog):
    from torch._dynamo.exc import BackendCompilerFailed

    from mad import models
    from mad.training import regions

    model = models.build("base_conv-mlp", dim=16, vocab_size=8, max_length=8)
    tokens = torch.randint(0, 8, (2, 8))
    want = model(tokens)
    calls = []

    def compiled(layer, x):
        calls.append(type(layer).__name__)
        if type(layer).__name__ == "MLP":
            raise BackendCompilerFailed(compiled, RuntimeError("no compiler here"), None)
        return regions.run(layer, x)

    model.stack.run = regions._or_plain(compiled, regions.run, lambda layer, x: type(layer))
    assert torch.equal(model(tokens), want) and torch.equal(model(tokens), want)
    assert calls == ["BaseConv", "MLP", "BaseConv"]
    assert "MLP is not compiled" in caplog.text and "no compiler here" in caplog.text


def test_the_compiler_knows_our_options():
    from torch._inductor import list_options

    from mad.training import regions

    assert set(regions.OPTIONS) <= set(list_options())


def test_steps_that_are_recorded_together_are_the_same_steps(monkeypatch):
    """An epoch is five of one part, four of which come together, then two of another."""
    calls, once = [], Update.__call__
    monkeypatch.setattr(Immediate, "together", 4)
    monkeypatch.setattr(Update, "__call__", lambda self, *piece: calls.append(piece) or once(self, *piece))
    mqar = {"name": "mqar", "vocab_size": 64, "segments": [[8, 2, 160], [16, 4, 64]]}
    run = {"task": mqar, "arch": {"stack": "base_conv", "dim": 16}, "train": {"epochs": 1, "batch_size": 32}}
    together = training.train(run)
    assert calls == [(0, 4), (0, 1), (1, 1), (1, 1)]
    monkeypatch.setattr(Immediate, "together", 1)
    assert training.train(run).curve == together.curve
