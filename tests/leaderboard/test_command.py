"""The command beside a row is the run that it stands beside: parsed as a shell and Hydra parse it."""

import shlex

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

from hydra_plugins.mad_grid import GridSweeper
from mad import leaderboard, plugins, sweep, tasks, training
from mad.leaderboard.command import command
from mad.leaderboard.pack import pack
from mad.records import Record

LAYER = """
import layers
from torch import nn

@layers.register("leaderboard_test_layer", kind="sequence")
class Identity(layers.Layer):
    def __init__(self, dim, max_length, *, text="x", rates=(1,)):
        super().__init__(dim, max_length)
    def forward(self, x):
        return x
    def state_size(self, length):
        return 0
    def flops(self, length):
        return 0
"""


@pytest.fixture(scope="module")
def ids():
    """A command -> the ids of its runs, as the sweep would expand it."""
    ConfigStore.instance().store(name="schema", node=sweep.SweepConfig)
    for name in tasks.names():
        ConfigStore.instance().store(group="task", name=name, node={"name": name, **tasks.options(name)})
    paths = ",".join(f"file://{folder}" for folder in sweep.search_path())
    with initialize_config_dir(str(sweep.ROOT / "conf"), version_base=None):
        master = compose("config", [f"hydra.searchpath=[{paths}]"], return_hydra_config=True)
        sweeper = GridSweeper(master.hydra.sweeper.params, master.hydra.sweeper.settings)

        class Context:
            config_loader = GlobalHydra.instance().config_loader()

        sweeper.setup(hydra_context=Context, task_function=None, config=master)

        def expand(text):
            program, overrides = shlex.split(text)[:3], shlex.split(text)[3:]
            assert program == ["python", "-m", "mad.sweep"]
            return [run.id for run in sweep.prepare(list(sweeper.points(overrides)))[0]]

        yield expand


def prepared(**given):
    arch = {"stack": "base_conv", "dim": 16} | given.pop("arch", {})
    return training.prepare({"task": {"name": "mqar", "seq_len": 32}, "arch": arch, **given})


@pytest.mark.parametrize(
    "stack",
    [
        ["hyena", "swiglu"],
        ["base_conv", {"name": "attention", "rope": False}],
        "attention|hyena-swiglu*2",
        [{"parallel": ["attention", {"name": "hyena", "filter": "rtf"}]}, {"name": "moe", "top_k": 1}],
        [{"name": "linear_attention", "feature_map": "hedgehog", "num_heads": 4}],
    ],
)
def test_stacks(ids, stack):
    run = prepared(arch={"stack": stack})
    assert ids(command(run.to_dict())) == [run.id]


@pytest.mark.parametrize(
    "name",
    [
        "a b\tc", "it's", 'a "b"', "x|y*2,(z=3)", "null", "True", "1e-3", "007", "nan", "#x", "a: b", "a\\", "a\\'b",
        "\\\\", "${seed}", "\\${seed}", "\\\\${oc.env:HOME}'\\", "$HOME `id` $(id)", "new\nline", "ü-π", "[a,b]",
        "{a:1}", "<script>alert(1)</script>", "choice(1,2)", "glob(*)", "a=b", "?", "???",
    ],
)  # fmt: skip
def test_names(ids, name):
    run = prepared(arch={"name": name})
    assert run.arch.name == name and ids(command(run.to_dict())) == [run.id]


@pytest.mark.parametrize(
    "given",
    [
        {"task": {"name": "text", "seq_len": 16}, "train": {"tokens": 2048, "batch_size": 8}},
        {"task": {"name": "text", "seq_len": 16}, "train": {"budget_flops": 1e9, "batch_size": 8}},
        {"task": {"name": "mqar", "segments": [[32, 2, 100], [64, 4, 50]], "test_segments": [[64, 4, 10]]}},
        {"optim": {"lr": 3.1623e-3, "min_lr": 1e-06, "clip": 1.0, "schedule": "constant"}, "seed": 7},
        {"train": {"stop_at": None, "score": "macro_accuracy", "precision": "bf16", "eval_every": 3, "epochs": 2}},
    ],
)
def test_tasks_optimisers_and_budgets(ids, given):
    run = prepared(**given)
    assert ids(command(run.to_dict())) == [run.id]


def test_plugins(ids, tmp_path):
    file = tmp_path / "my layer's.py"
    file.write_text(LAYER)
    plugins.load(plugins.read([str(file)]))
    stack = [{"name": "leaderboard_test_layer", "text": "it's ${x}, [1]", "rates": [1, 0.5, [2]]}]
    run = prepared(arch={"stack": stack}, plugins=[str(file)])
    assert ids(command(run.to_dict())) == [run.id]


def test_the_page_has_the_command_of_every_cell_with_all_its_seeds(ids, record, sweep):
    grid = [(lr, wd) for lr in (1e-3, 3e-4) for wd in (0.0, 0.1)]
    records = [
        record(arch, lr=lr, wd=wd, seed=seed, seq_len=n, vocab_size=64, num_kv=2)
        for arch in ("hyena", "based")
        for lr, wd in grid
        for seed in (0, 1)
        for n in (16, 32)
    ]
    odd = record("rtf", seed=5, seq_len=32, vocab_size=64, num_kv=2, train={"eval_every": 7})  # unlike the others
    runs = [training.prepare(one.config) for one in [*records, odd]]
    records = [Record(run.id, "ok", run.to_dict(), {"accuracy": 0.5}) for run in runs]
    table, records = leaderboard.load([sweep(*records)])
    packed = pack(leaderboard.details(table, records), ["hyena", "based", "rtf"], 4)
    found = []
    for row in packed["rows"]:
        settings, points = (row.get(k, range(len(packed[k]))) for k in ("settings", "grid"))
        for cell, (setting, point) in enumerate((s, g) for s in settings for g in points):
            usual = [packed["settings"][setting][2], row["parts"][0], packed["grid"][point][1]]
            usual += [packed["settings"][setting][3], row["parts"][1]]
            own = row.get("other", {}).get(cell, usual)
            text = " ".join([packed["program"], *(packed["parts"][part] for part in own)])
            found.append(ids(text))
    assert sorted(map(len, found)) == [1] + [2] * 16
    assert sorted(run for runs in found for run in runs) == sorted(run.id for run in runs)
