"""The front door: how overrides become runs, what is refused, and a sweep from the command line to the leaderboard."""

import functools
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

from mad import leaderboard, sweep, training
from mad.config import SECTIONS
from mad.sweepfile import SweepConfig
from mad.training.prepare import _cost

TINY = [
    "task=mqar",
    "arch=mqar_base_conv",
    "arch.dim=16",
    "train.steps=4",
    "train.eval_every=2",
    "train.batch_size=8",
    "train.num_train=32",
    "train.num_test=16",
    "tracker=none",
]


def values(points, key):
    return [functools.reduce(dict.__getitem__, key.split("."), config) for config, _ in points]


def test_the_grid_is_a_product(expand):
    points = expand("task=mqar", "arch=attention,hyena", "optim.lr=1e-3,3e-4", "seed=range(3)")
    assert len(points) == 12
    assert set(zip(values(points, "arch.name"), values(points, "optim.lr"), values(points, "seed"), strict=True)) == {
        (arch, lr, seed) for arch in ("attention", "hyena") for lr in (1e-3, 3e-4) for seed in range(3)
    }


def test_grammar(expand):
    assert len(expand("task=mqar", "arch=glob(striped*)")) == 7
    assert values(expand("task=mqar", "arch=hyena", "optim.lr=choice(1e-3,1e-4)"), "optim.lr") == [1e-3, 1e-4]
    lists = expand("task=mqar", "arch.stack=[hyena,swiglu],[attention]")
    assert values(lists, "arch.stack") == [["hyena", "swiglu"], ["attention"]]
    assert values(expand("task=mqar", "arch.stack=hyena-swiglu*2,attention|hyena"), "arch.stack") == [
        "hyena-swiglu*2",
        "attention|hyena",
    ]


def test_the_command_line_beats_the_sweep(expand):
    assert len(expand()) == 15  # the quickstart
    points = expand("arch=hyena", "optim.lr=0.5", "train.steps=7")
    assert set(values(points, "arch.name")) == {"hyena"} and set(values(points, "train.steps")) == {7}
    assert set(values(points, "optim.lr")) == {0.5} and len(points) == 3


def test_epochs_on_the_command_line_take_the_place_of_the_sweeps_steps(expand):
    points = expand("task=mqar", "arch=hyena", "train.epochs=1,2")  # the quickstart's own length is 400 steps
    assert values(points, "train.epochs") == [1, 2] and values(points, "train.steps") == [None, None]
    assert set(values(expand("sweeps=isoflop", "train.epochs=1"), "train.budget_flops")) == {None}
    assert values(expand("task=mqar", "arch=hyena", "train.epochs=1", "train.steps=7"), "train.steps") == [7]
    with pytest.raises(ValueError, match="^train.steps=7 is the length of every run, an axis of train.epochs has no"):
        expand("task=mqar", "arch=hyena", "train.epochs=1,2", "train.steps=7")


def test_a_task_keeps_its_settings_of_the_sweep_or_takes_its_defaults(expand):
    points = expand("task=mqar,memorization", "arch=hyena")
    assert values(points, "task.name") == ["mqar", "memorization"]
    assert values(points, "task.vocab_size") == [128, 256]
    assert values(points, "train.num_train") == [20000, None]
    assert values(expand("task=mqar", "arch=hyena", "task.num_kv=2"), "task.num_kv") == [2]


def test_a_stack_of_ones_own_is_not_called_after_an_arch(expand):
    points = expand("task=mqar", "arch.stack=hyena-swiglu")
    assert values(points, "arch.name") == [None]
    run, _ = sweep.prepare(points)
    assert run[0].arch.name == "hyena-swiglu"
    assert values(expand("task=mqar", "arch=hyena", "arch.stack=[mlp]", "arch.name=mine"), "arch.name") == ["mine"]


def test_the_mad_protocol_has_396_runs(expand):
    points = expand("sweeps=mad")
    assert len(points) == 396
    runs, about = sweep.prepare(points)
    assert len(runs) == 396 and about["name"] == "mad" and about["results_dir"] == "results/mad"
    assert {run.optim.schedule for run in runs} == {"cosine"} and {run.arch.dim for run in runs} == {128}
    lengths = {run.arch.max_length for run in runs if run.task["name"] == "compression"}
    assert lengths == {32, 64, 128, 256}
    published = sweep.prepare(expand("sweeps=mad", "protocol=mad_lab", "task=compression"))[0]
    assert len(published) == 66
    recipes = {(run.optim.schedule, run.train.score, run.train.report, run.arch.init) for run in published}
    assert recipes == {("constant", "batch_macro_accuracy", "lowest_perplexity", "normal")}


def test_archs_of_a_sweep_vary_in_keys_of_their_own(expand):
    points = expand("sweeps=reproduce_based_figure2", "optim.lr=1e-2")
    assert len(points) == 45
    based = [v["arch"] for v, _ in points if v["arch"]["name"] == "mqar_based"]
    found = [(arch["dim"], arch["stack"][1]["feature_dim"]) for arch in based]
    assert found == [(dim, width) for dim in (48, 64, 128) for width in (8, 16, 24)] + [(128, 32)]
    assert len(expand("sweeps=reproduce_based_figure2", "arch=mqar_based,hyena", "optim.lr=1e-2")) == 11
    assert set(values(expand("sweeps=reproduce_based_figure2", "arch=mqar_based", "arch.dim=16"), "arch.dim")) == {16}
    own = expand("sweeps=reproduce_based_figure2", "arch.stack=hyena", "optim.lr=1e-2")
    assert values(own, "arch.name") == [None] and len(own) == 1
    assert len(expand("sweeps=reproduce_based_figure2", "ladder=hyena", "rung=0", "optim.lr=1e-2")) == 1
    with pytest.raises(ValueError, match="unknown arch 'mqar_basd' .did you mean 'mqar_based'"):
        expand("sweeps=reproduce_based_figure2", "arch=mqar_basd")


COUNTS = {
    "isoflop": 48,
    "isoflop_gpu": 60,
    "mad": 396,
    "quickstart": 15,
    "reproduce_based_figure2": 180,
    "reproduce_based_figure2_reduced": 16,
    "reproduce_mad_table_reduced": 55,
    "reproduce_zoology_figure2": 320,
    "reproduce_zoology_figure2_reduced": 24,
}


@pytest.mark.parametrize("name", sorted(file.stem for file in (sweep.ROOT / "sweeps").glob("*.yaml")))
def test_every_sweep_can_run(expand, name):
    more = ["task=memorization"] if name == "reproduce_mad_table" else []  # of its 1,980 runs 180: time
    runs, about = sweep.prepare(expand(f"sweeps={name}", *more))
    assert len(runs) == COUNTS.get(name, 180) and about["name"] == name


@pytest.mark.parametrize("name", sorted(file.stem for file in (sweep.ROOT / "conf/arch").glob("*.yaml")))
def test_every_arch_can_run(expand, name):
    if name != "custom":
        (run,), _ = sweep.prepare(expand("task=mqar", f"arch={name}"))
        assert run.arch.name == name


def test_a_ladder_takes_the_place_of_an_arch(expand):
    points = expand("sweeps=isoflop", "task.seq_len=32", "rung=0,1", "train.budget_flops=1e9")
    runs, _ = sweep.prepare(points)
    assert len(points) == len(runs) == 4 and {run.arch.name for run in runs} == {"transformer", "hyena"}
    assert {(run.arch.dim, run.optim.lr, run.optim.min_lr) for run in runs} == {(8, 0.04, 0.004), (16, 0.02, 0.002)}
    own = expand("task=text", "ladder=hyena", "rung=0", "train.tokens=5000")  # not the quickstart's archs and steps
    assert values(own, "train.steps") == [None] and len(own) == 1
    assert values(expand("sweeps=isoflop", "arch=hyena", "train.steps=5"), "rung") == [None]
    with pytest.raises(ValueError, match="unknown ladder 'hyenna' .did you mean 'hyena'"):
        expand("task=text", "ladder=hyenna", "rung=0")
    with pytest.raises(ValueError, match="ladder 'hyena' has rung=0 to 13, got rung=14"):
        sweep.prepare(expand("task=text", "ladder=hyena", "rung=14"))


def test_points_of_one_model_build_it_once(expand):
    """400 points of text: a corpus digested and a model built for each would take minutes."""
    points = expand("sweeps=isoflop", "rung=0", "seed=range(50)")
    assert len(points) == 400
    built = _cost.cache_info().misses
    sweep.prepare(points)
    assert _cost.cache_info().misses - built <= 2


def test_parameters_of_an_engine_take_any_key(expand):
    one = expand("engine=slurm", "device=cuda", "engine.parameters={slurm_partition: gpu, gpus_per_node: 1}")
    assert all(v["engine"]["parameters"] == {"slurm_partition": "gpu", "gpus_per_node": 1} for v, _ in one)
    other = expand("engine=slurm", "engine.parameters.slurm_partition=gpu", "engine.parameters.mem_gb=32")
    assert all(v["engine"]["parameters"] == {"slurm_partition": "gpu", "mem_gb": 32} for v, _ in other)
    runs, _ = sweep.prepare(one)
    assert {run.device for run in runs} == {"cuda"}  # which this machine need not have
    with pytest.raises(ValueError, match="device=auto cannot be told here"):
        sweep.prepare(other)
    with pytest.raises(ValueError, match="unknown key 'engine.jobz' .did you mean 'engine.jobs'"):
        expand("engine=slurm", "engine.jobz=3")


def test_the_same_point_is_one_run(expand):
    assert len(sweep.prepare(expand("task=mqar", "arch=hyena", "optim.lr=1e-3,0.001"))[0]) == 1


def test_a_sweep_chooses_a_protocol_and_the_command_line_another(expand):
    for name in ("reproduce_mad_table", "reproduce_mad_table_reduced"):
        for given, want in (([], ("constant", "batch_macro_accuracy")), (["protocol=default"], ("cosine", "accuracy"))):
            runs, _ = sweep.prepare(expand(f"sweeps={name}", "task=compression", "arch=hyena", *given))
            assert {(run.optim.schedule, run.train.score) for run in runs} == {want}


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["task=mqarr"], "unknown task 'mqarr' .did you mean 'mqar'"),
        (["arch=hyenna"], "unknown arch 'hyenna' .did you mean 'hyena'"),
        (["arch=mh_attention"], "'mh_attention' is a layer, .*: arch.stack=mh_attention-swiglu$"),
        (["engine=locl"], "unknown engine 'locl' .did you mean 'local'"),
        (["optim.lrr=1"], "unknown key 'optim.lrr' .did you mean 'optim.lr'"),
        (["task=mqar", "task.num_kw=3"], "unknown key 'task.num_kw' .did you mean 'task.num_kv'"),
        (["+optim.lrr=1"], "leave out the sign"),
        (["nam=x"], "unknown key 'nam' .did you mean 'name'"),
    ],
)
def test_unknown_names_and_keys(expand, overrides, message):
    with pytest.raises(ValueError, match=message):
        expand(*overrides)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["task=mqar", "arch.stack=hyenna"], "unknown layer 'hyenna' .did you mean 'hyena'"),
        (["task=mqar", "arch.stack=[{name:moe,topk:1}]"], "'topk' .did you mean 'top_k'"),
        (
            ["task=mqar", "arch.stack=[{name:linear_attention,feature_map:hedgehg}]"],
            "unknown feature map 'hedgehg' .did you mean 'hedgehog'",
        ),
        (["task=in_context_recall", "arch=hyena", "task.seq_len=127"], "the nearest are 126"),
        (["task=mqar", "arch=hyena", "task.num_kv=17"], "seq_len=64"),
        (["task=selective_copying", "arch=hyena", "task.tokens_to_copy=40"], "tokens_to_copy"),
        (["task=mqar", "arch=hyena", "task.vocab_size=8"], "vocab_size"),
        (["task=mqar", "arch.stack=mh_attention", "arch.dim=40"], "num_heads=16 does not divide dim=40"),
        (["task=mqar", "arch=hyena", "optim.lr=nan"], "optim.lr must be a number, got nan"),
        (["task=mqar", "arch=hyena", "optim.schedule=cosin"], "did you mean 'cosine'"),
        (["task=mqar", "arch=hyena", "seed=range(0)"], "seed is an axis without a value"),
    ],
)
def test_bad_points_are_refused_before_anything_trains(expand, overrides, message):
    with pytest.raises(ValueError, match=message):
        sweep.prepare(expand(*overrides))


def test_all_mistakes_are_told_at_once(expand):
    points = expand("task=mqar", "arch.stack=hyenna,hyena", "optim.lr=1e-3,nan")
    with pytest.raises(ValueError) as error:
        sweep.prepare(points)
    assert "hyenna" in str(error.value) and "got nan" in str(error.value) and "optim.lr=nan" in str(error.value)


def command(*overrides, cwd=None, timeout=120):
    return subprocess.run(
        [sys.executable, "-m", "mad.sweep", *overrides], capture_output=True, text=True, timeout=timeout, cwd=cwd
    )


def test_from_the_command_line_to_the_leaderboard_and_again(tmp_path):
    folder = tmp_path / "mine"
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "import layers\n"
        "@layers.register('halving', kind='channel')\n"
        "class Halving(layers.ChannelMixer):\n"
        "    def forward(self, x):\n"
        "        return x / 2\n"
        "    def flops(self, length):\n"
        "        return 0\n"
    )
    given = [
        *TINY,
        "arch.stack=base_conv,base_conv-halving",
        f"plugins=[{plugin}]",
        "optim.lr=1e-3,1e-2",
        f"results_dir={folder}",
    ]
    done = command(*given)
    assert done.returncode == 0, done.stderr
    assert "4 ok" in done.stdout and "base_conv-halving" in done.stdout
    files = sorted((folder / "runs").glob("*.json"))
    table = pd.read_csv(folder / "results.csv")
    assert len(files) == len(table) == 4 and set(table["status"]) == {"ok"}
    board = pd.read_csv(folder / "leaderboard.csv")
    assert set(board["arch"]) == {"base_conv", "base_conv-halving"} and (folder / "leaderboard.md").exists()
    assert "halving" in (folder / "leaderboard.html").read_text()
    config = json.loads(files[0].read_text())["config"]
    assert training.prepare(config).id == files[0].stem

    assert "versions of the code" not in done.stdout
    older = json.loads(files[1].read_text()) | {"git_commit": "0123456789ab"}
    files[1].write_text(json.dumps(older))
    before = {file: file.stat().st_mtime_ns for file in files}
    files[0].write_text("{")  # a damaged record is set aside and run again, the others are left alone
    again = command(*given)
    assert again.returncode == 0 and "1 runs in" in again.stdout, again.stdout
    assert "results of 2 versions of the code" in again.stdout and "1 of 0123456789ab" in again.stdout
    assert files[0].with_name(files[0].name + ".corrupt").exists()
    assert all(file.stat().st_mtime_ns == before[file] for file in files[1:])
    assert "nothing to train: all 4 runs have a result already" in command(*given).stdout

    plugin.write_text(plugin.read_text().replace("x / 2", "x / 4"))
    part = command(*given, "optim.lr=1e-2", "arch.stack=base_conv-halving")
    assert part.returncode == 0 and "the leaderboard is of this command's 1 runs; of all 5 in the folder" in part.stdout
    assert "this command's" not in done.stdout
    labels = leaderboard.build(leaderboard.read([folder]))["arch"]
    texts = sorted(label.rpartition("@")[2] for label in labels if label.startswith("base_conv-halving plugins=mine@"))
    assert len(texts) == 2 and texts[0] != texts[1]  # the old text's results are not the new one's


def test_any_folder_and_what_lies_in_it(tmp_path):
    here = tmp_path / "Jürgen's a=b (1), [2]#"
    (here / "conf" / "arch").mkdir(parents=True)
    (here / "sweeps").mkdir()
    (here / "conf" / "arch" / "own.yaml").write_text("name: own\nstack: [attention]\n")
    (here / "sweeps" / "own.yaml").write_text("# @package _global_\nname: found\n")
    done = command(*TINY, "sweeps=own", "arch=own", cwd=here)
    assert done.returncode == 0, done.stderr
    assert pd.read_csv(here / "results" / "found" / "leaderboard.csv")["arch"].tolist() == ["own"]
    (here / "sweeps" / "own.yaml").write_text("name: [")
    done = command(*TINY, "sweeps=own", cwd=here)
    assert done.returncode == 2 and "own.yaml is not YAML" in done.stderr and "Traceback" not in done.stderr


def test_a_sweep_of_divergences_is_ranked_with_zeros(tmp_path):
    done = command(*TINY, "arch=attention", "optim.lr=1e30", f"results_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    board = pd.read_csv(tmp_path / "leaderboard.csv")
    assert board["mean"].tolist() == [0.0] and board["diverged"].tolist() == [1]


def test_text_from_the_command_line_to_the_table(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the quick brown fox jumps over the lazy dog; " * 2000)
    given = ["task=text", f"task.path={corpus}", "task.seq_len=32", "ladder=transformer,hyena", "rung=0"]
    given += ["train.budget_flops=3e7", "train.batch_size=4", "train.num_test=20", "optim.lr=5e-3", "tracker=none"]
    done = command(*given, f"results_dir={tmp_path}/mine")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "mine" / "results.csv").set_index("arch")
    assert set(table.index) == {"transformer", "hyena"} and set(table["status"]) == {"ok"}
    assert (table["flops_exact"] / 3e7 - 1).abs().max() < 0.05
    assert (table["flops_6nd"] == 6 * table["params_nonembedding"] * table["tokens"]).all()
    assert table["task.digest"].nunique() == 1 and set(table["seq_len"]) == {32}
    columns = {"params_active", "unique_tokens", "loss", "valid_loss", "bits_per_byte", "perplexity", "arch.dim"}
    assert columns <= set(table) and table[list(columns)].notna().all(axis=None)


@pytest.mark.parametrize(
    "mistake, message",
    [
        ("engine=rai", "unknown engine 'rai' (did you mean 'ray'?)"),
        ("engine=slurm device=cpu", "engine=slurm needs"),
        ("engine=slurm", "device=auto cannot be told here"),
        ("tracker=wandbb", "unknown tracker 'wandbb' (did you mean 'wandb'?)"),
        ("sweeps=quik", "unknown sweep 'quik' (did you mean 'quickstart'?)"),
        ("plugins=[nowhere.py]", "plugin 'nowhere.py' is not a file"),
        ("train.steps=abc", "'abc'"),
        ("train.score=accuracy,macro_accuracy", "ranked by one score, got train.score=accuracy,macro_accuracy"),
        (
            "optim.lr=interval(1e-4,1e-3)",
            "optim.lr=interval(1e-4,1e-3): an interval has no list of values; expected a,b",
        ),
        (
            "results_dir=~/mine",
            "quote a value with spaces, ~, parentheses or accents for Hydra, as \"results_dir='/my dir'\"",
        ),
        ("plugins=mine.py", "expected a list of files, plugins=[mine.py]"),
        ("plugins=[a.py],[b.py]", "all runs of a sweep have the same plugins"),
        ("ladder=hyena rung=0", "arch=mqar_base_conv and ladder=hyena are given"),
        ("seed=range(1000000000)", "seed has more than 1,000,000 values"),
        (
            "seed=range(2000) train.eval_every=range(1,1001)",
            "the grid has 2,000,000 points; expected 1,000,000 at most",
        ),
        ("name=", "name is ''; expected what the sweep is called"),
        ("name=..", "name is '..'; expected what the sweep is called"),
        ("name=a,b", "name is a and b; a sweep has one: give one value"),
        ("engine.workers=1,2", "workers:2"),
        ("tracker=none,wandb", "tracker is none and wandb"),
        ("engine=slurm device=cpu,cuda train.precision=fp32", "device is cpu and cuda; a run is the same run"),
        (f"seed={2**64}", f"seed must be at most {2**64 - 1}, got {2**64}"),
        ("arch.stack=mlp arch.dim=1_000_000", "layer 'mlp': not enough memory for dim=1000000, max_length="),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, refused, mistake, message):
    assert message in refused(*TINY, *mistake.split(), f"results_dir={tmp_path}/none")
    assert not (tmp_path / "none").exists()


def test_a_layer_without_flops_ends_in_one_line(tmp_path, refused):
    plugin = tmp_path / "costless.py"
    plugin.write_text(
        "import layers\n"
        "@layers.register('costless', kind='channel')\n"
        "class Costless(layers.ChannelMixer):\n"
        "    def forward(self, x):\n"
        "        return x\n"
    )
    said = refused(*TINY, "arch.stack=base_conv-costless", f"plugins=[{plugin}]", f"results_dir={tmp_path}/none")
    assert "Costless does not say its flops(length), forward, of one sequence" in said
    assert not (tmp_path / "none").exists()


def test_a_command_starts_without_a_compiler():
    """Which takes as long to import as all the rest."""
    code = "import sys; from mad import sweep\ntry: sweep.main()\nfinally: print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "engine=rai"], capture_output=True, text=True)
    assert done.returncode == 2 and "unknown engine 'rai'" in done.stderr and done.stdout == "False\n", done.stderr


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, refused):
    (tmp_path / "taken").touch()
    assert "taken/here' cannot be written to" in refused(*TINY, f"results_dir={tmp_path}/taken/here")


def test_no_folder_is_not_the_folder_one_is_in(tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "results_dir is empty" in refused(*TINY, "results_dir=") and not list(tmp_path.iterdir())


def test_a_folder_of_another_schema_is_refused(tmp_path, refused):
    (tmp_path / "store.json").write_text('{"schema": 999, "sweep": "old"}')
    assert "schema 999" in refused(*TINY, f"results_dir={tmp_path}")


def test_a_record_of_another_schema_is_refused_before_anything_is_trained(tmp_path, refused):
    """Not at the sweep's end, when the table is written, though it is none of the runs to come."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "0123456789abcdef.json").write_text('{"schema": 0}')
    assert "schema 0" in refused(*TINY, f"results_dir={tmp_path}")
    (tmp_path / "runs" / "0123456789abcdef.json").unlink()
    (tmp_path / "records.jsonl.gz").write_bytes(b"cut off")
    assert "bring back a whole one" in refused(*TINY, f"results_dir={tmp_path}")


def test_help_lists_all_keys_and_choices(folder):
    (folder / "sweeps" / "mine.yaml").write_text("# @package _global_\nname: mine")
    (folder / "conf" / "arch" / "own.yaml").write_text("stack: [mlp]")
    said = command("--help", cwd=folder).stdout
    keys = said.partition("keys:")[2].partition("== choices ==")[0]
    for kind in (SweepConfig, *SECTIONS.values()):
        assert [key for key in kind.__dataclass_fields__ if not re.search(rf"\b{key}\b", keys)] == []
    lines = said.partition("== choices ==")[2].splitlines()
    assert any(line.startswith("sweeps: ") and "mine, quickstart" in line for line in lines)
    assert "arch of this folder: own" in lines and any(line.startswith("arch: attention,") for line in lines)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_the_first_run_can_be_shown(folder, monkeypatch, capsys, expand, at):
    given = ["arch.stack=hyena,attention", "seed=range(2)"]
    runs, about = sweep.prepare(expand(*given))
    given[at:at] = ["--cfg", "job"]
    monkeypatch.setattr(sys, "argv", ["mad.sweep", *given])
    GlobalHydra.instance().clear()  # the fixture's
    sweep.main()
    said = capsys.readouterr().out
    assert said.startswith("# the first of 12 runs; nothing was trained\n")
    assert yaml.safe_load(said) == about | runs[0].to_dict()
    assert runs[0].arch.name == "hyena" and runs[0].task["vocab_size"] == 128 and runs[0].optim.lr == 3e-3
    assert not (folder / "results").exists()


def test_mistakes_are_told_where_a_run_is_to_be_shown(refused):
    assert "unknown key 'optim.lrr'" in refused(*TINY, "--cfg", "job", "optim.lrr=1")
    assert "unknown layer 'hyenna'" in refused("--cfg", "job", "task=mqar", "arch.stack=hyenna")


@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_a_habit_of_hydras_users_changes_nothing(refused, flag):
    assert "unknown key 'optim.lrr' (did you mean 'optim.lr'?)" in refused(*TINY, flag, "optim.lrr=1")


@pytest.mark.parametrize("name, want", [([], None), (["arch.name=mine"], "mine")])
def test_one_point_of_hydras_own_is_not_called_after_an_arch(folder, monkeypatch, name, want):
    found = []
    monkeypatch.setattr(sweep, "run_points", lambda points: found.extend(points()))
    monkeypatch.setattr(sys, "argv", ["mad.sweep", "hydra.mode=RUN", "arch.stack=[mlp]", *name])
    sweep.main()
    assert values(found, "arch.name") == [want] and values(found, "arch.stack") == [["mlp"]]


@pytest.mark.parametrize("given, said", [(["--cfg", "job"], ""), (["engine=inline"], "what had finished is kept")])
def test_a_reader_that_goes_away_is_no_traceback(tmp_path, given, said):
    """As behind `| head -1`."""
    command = [sys.executable, "-m", "mad.sweep", *TINY, f"results_dir={tmp_path}", *given]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 141 and said in errors and "Traceback" not in errors and bool(errors) == bool(said)


def test_ctrl_c_while_it_starts_ends_in_one_line():
    given = [sys.executable, "-X", "importtime", "-m", "mad.sweep", *TINY]  # which says when hydra is there, torch not
    process = subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any("hydra.errors" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.endswith("\nstopped before anything began\n")
    assert "Traceback" not in errors


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_what_had_finished_and_the_next_call_goes_on(tmp_path, sent):
    given = [*TINY, "seed=range(12)", "train.steps=60", f"results_dir={tmp_path}/mine", "engine.workers=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mad.sweep", *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    runs = Path(tmp_path) / "mine" / "runs"
    deadline = time.monotonic() + 90
    while len(list(runs.glob("*.json"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on from there" in errors
    kept = len(list(runs.glob("*.json")))
    assert 2 <= kept < 12 and len(pd.read_csv(runs.parent / "results.csv")) == kept
    assert "Traceback" not in errors
    again = command(*given)
    assert f"{12 - kept} runs in" in again.stdout and len(list(runs.glob("*.json"))) == 12


@pytest.mark.parametrize("when", ["prepare", "leaderboard.build"])
def test_ctrl_c_before_the_first_run_or_after_the_last_ends_in_one_line(tmp_path, monkeypatch, capsys, when):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"mad.sweep.{when}", interrupted)
    monkeypatch.setattr(sys, "argv", ["mad.sweep", *TINY, f"results_dir={tmp_path}", "engine=inline"])
    with pytest.raises(SystemExit) as end:
        sweep.main()
    assert end.value.code == 130
    assert capsys.readouterr().err.endswith(
        "\nstopped; what had finished is kept, the same command goes on from there\n"
    )
