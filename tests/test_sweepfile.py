"""A sweep's file of one's own: what its axes mean, and what is refused."""

import functools
import json
import subprocess
import sys

import pytest
import yaml

from mad import sweep

TINY = ["task=mqar", "arch=mqar_base_conv", "arch.dim=16", "train.steps=4", "train.batch_size=8", "tracker=none"]


def values(points, key):
    return [functools.reduce(dict.__getitem__, key.split("."), config) for config, _ in points]


def write(folder, text, name="mine"):
    (folder / "sweeps" / f"{name}.yaml").write_text(f"# @package _global_\n{text}\n")


def test_a_stack_in_a_sweeps_file_is_not_called_after_an_arch(folder, expand):
    own = "{arch.stack: [hyena, {name: moe, top_k: 1}], arch.dim: 16}"
    write(folder, f"hydra: {{sweeper: {{params: {own}, settings: [{{task: mqar}}]}}}}")
    points = expand("sweeps=mine")
    assert values(points, "arch.name") == [None]
    assert values(points, "arch.stack") == [["hyena", {"name": "moe", "top_k": 1}]]
    assert "transformer" not in sweep.prepare(points)[0][0].arch.name
    assert values(expand("sweeps=mine", "arch.name=mine"), "arch.name") == ["mine"]
    other = expand("sweeps=mine", "arch=attention,hyena")  # the command line's in place of the sweep's
    assert values(other, "arch.name") == ["attention", "hyena"]
    assert [run.arch.stack[0] for run in sweep.prepare(other)[0]] == ["attention", "hyena"]
    (run,), _ = sweep.prepare(expand("sweeps=mine", "ladder=transformer", "rung=0"))
    assert run.arch.name == "transformer" and run.arch.dim == 8
    with pytest.raises(ValueError, match="arch.dim=32 and ladder=transformer are given, but a ladder says itself"):
        expand("sweeps=isoflop", "arch.dim=32")


def test_a_list_in_yaml_is_an_axis_but_where_a_value_is_a_list(folder, expand, refused):
    lists = "{arch: [hyena, attention], optim.lr: [1e-3, 1e-4], seed: [7]}"
    write(folder, f"hydra: {{sweeper: {{params: {lists}, settings: [{{task: mqar}}]}}}}")
    points = expand("sweeps=mine")
    assert values(points, "arch.name") == ["hyena", "hyena", "attention", "attention"]
    assert values(points, "optim.lr") == [1e-3, 1e-4] * 2 and set(values(points, "seed")) == {7}
    assert values(expand("sweeps=mine", "optim.lr=1"), "optim.lr") == [1, 1]
    write(folder, "hydra: {sweeper: {archs: [{arch: hyena, dim: [16, 32], stack: [hyena, mlp]}]}}")
    points = expand("sweeps=mine", "task=mqar")
    assert values(points, "arch.dim") == [16, 32] and values(points, "arch.stack") == [["hyena", "mlp"]] * 2
    write(folder, "hydra: {sweeper: {params: {seed: []}}}")
    assert "seed is an axis without a value" in refused("sweeps=mine", "tracker=none")


def test_a_settings_option_is_one_value(folder, expand):
    """In params and archs a text is Hydra's grammar, where commas make axes."""
    texts = ["a, b (1)=c/d.txt", "1234567890123456", "null", "it's {x}", "[a,b]"]
    entries = [{"task": "text", "path": text, "seq_len": 32, "batch_size": 8} for text in texts]
    write(folder, f"hydra: {{sweeper: {{settings: {json.dumps(entries)}, params: {{seed: '1,2'}}}}}}")
    points = expand("sweeps=mine")
    assert values(points, "task.path") == [text for text in texts for _ in range(2)]
    assert values(points, "seed") == [1, 2] * 5 and set(values(points, "train.batch_size")) == {8}


@pytest.mark.parametrize(
    "text, message",
    [
        ("train: {stepz: 3}", "unknown key 'train.stepz' (did you mean 'train.steps'?)"),
        ("nme: mine", "unknown key 'nme' (did you mean 'name'?)"),
        ("hydra: {sweeper: {parms: {}}}", "unknown key 'hydra.sweeper.parms' (did you mean 'hydra.sweeper.params'?)"),
        ("- name: mine", "a sweep must be a mapping of its keys, got [{'name': 'mine'}]"),
        ("train:\nname: mine", "train must be a mapping of its keys, got nothing"),
        ("arch: hyena", "got 'hyena'; a choice of it goes into hydra.sweeper.params, as arch: hyena"),
        ("arch: {stack: [mlp]}", "put it into hydra.sweeper.params, as arch.stack: hyena-swiglu*2"),
        ("arch: {name: own}", "put it into hydra.sweeper.params, as arch.name: mine"),
        ("defaults: mad", "defaults must be a list of names, as [mad, _self_], got 'mad'"),
        ("defaults: [quikstart, _self_]", "unknown sweep in defaults: 'quikstart' (did you mean 'quickstart'?)"),
        ("defaults: [{mad: 1}]", "defaults must be a list of names, or of {override /group: choice}"),
        ("defaults: [null]", "as [mad, _self_], got None"),
        (
            "defaults: [mad, {override /protocol: madlab}, _self_]",
            "unknown choice in defaults: override /protocol: 'madlab' (did you mean 'mad_lab'?)",
        ),
        ("train: {epochs: abc}", "train.epochs: Value 'abc' of type 'str' could not be converted to Integer"),
        ("optim: {lr: null}", "optim.lr: Incompatible value 'None' for field of type 'float'"),
        ("seed: [1, 2]", "to Integer; the values of an axis go into hydra.sweeper.params"),
        ("plugins: a.py", "plugins must be a list of files, as [mine.py], got 'a.py'"),
    ],
)
def test_mistakes_in_a_sweeps_file(folder, refused, text, message):
    write(folder, text)
    said = refused(*TINY, "sweeps=mine")
    assert message in said and "mine.yaml: " in said
    (folder / "sweeps" / "mine.yaml").write_text(text)
    assert "mine.yaml needs '# @package _global_' as its first line" in refused(*TINY, "sweeps=mine")


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "settings: [my_task]",
            "a list of mappings, as [{task: name, option: value}], got the entry 'my_task'",
        ),
        (
            "settings: {task: mqar}",
            "a list of mappings, as [{task: name, option: value}], got {'task': 'mqar'}",
        ),
        ("settings: [{seq_len: 64}]", "settings: every entry names its task, as {task: name}, got {'seq_len': 64}"),
        ("archs: hyena", "archs: expected a list of mappings, as [{arch: name, option: value}], got 'hyena'"),
        ("params: [arch=attention]", "params must be a mapping of its keys, got ['arch=attention']"),
        ("params: {arch: {stack: [mlp]}}", "params: write arch.stack: ..., not arch: {'stack': ['mlp']}"),
    ],
)
def test_mistakes_in_the_axes_of_a_sweeps_file(folder, refused, text, message):
    write(folder, f"hydra: {{sweeper: {{{text}}}}}")
    said = refused("sweeps=mine", "tracker=none")
    assert message in said and "mine.yaml: hydra.sweeper." in said
    write(folder, "defaults: [mine, _self_]", "other")  # a file that another builds on is read with it
    assert message in refused("sweeps=other", "tracker=none")


def test_defaults_as_hydra_takes_them(folder, expand):
    (folder / "conf" / "arch" / "mine").mkdir(parents=True)
    (folder / "conf" / "arch" / "mine" / "own.yaml").write_text("name: own\nstack: [hyena, mlp]")
    write(folder, "defaults: [quickstart.yaml, {override /arch: mine/own}, {override /task: mqar.yaml}, _self_]")
    expand("sweeps=mine")


def test_files_that_cannot_be_built_on(folder, refused):
    write(folder, "defaults: [other, _self_]")
    write(folder, "defaults: [mine, _self_]", "other")
    assert "its defaults lead back to itself: mine -> other -> mine" in refused("sweeps=mine", "tracker=none")
    (folder / "sweeps" / "mine.yaml").write_text("\ufeff# @package _global_\nname: mine\n")
    assert "mine.yaml begins with a byte-order mark" in refused("sweeps=mine", "tracker=none")


def test_an_option_of_training_in_a_setting_is_told_its_place(folder, refused):
    write(folder, "hydra: {sweeper: {settings: [{task: mqar, steps: 4}]}}")
    said = refused("sweeps=mine", "tracker=none")
    assert "'steps' is no option of a task but train.steps, which a sweep's file has among hydra.sweeper.params" in said


PARITY = """
from mad import tasks

@tasks.register("parity")
class Parity(tasks.Task):
    def __init__(self, *, vocab_size=2, seq_len=8):
        super().__init__(vocab_size=vocab_size, seq_len=seq_len)

    def generate(self, rng, num, train):
        inputs = rng.integers(0, 2, (num, self.seq_len))
        return inputs, inputs.cumsum(axis=1) % 2
"""


def test_a_task_of_a_plugin_in_a_sweeps_file(folder):
    (folder / "parity.py").write_text(PARITY)
    write(folder, "plugins: [parity.py]\nhydra: {sweeper: {settings: [{task: parity, seq_len: 16}]}}", "base")
    write(folder, "defaults: [base, _self_]\nname: mine")
    done = subprocess.run(
        [sys.executable, "-m", "mad.sweep", "sweeps=mine", "--cfg", "job"], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert shown["task"] == {"name": "parity", "vocab_size": 2, "seq_len": 16} and shown["plugins"] == ["parity.py"]


def test_a_plugin_that_exits_and_a_task_that_no_board_can_hold(folder, refused):
    (folder / "program.py").write_text("import sys\nsys.exit()")
    assert "plugin 'program.py' failed to load: SystemExit" in refused("plugins=[program.py]", "tracker=none")
    (folder / "win_rate.py").write_text(PARITY.replace('"parity"', '"win_rate"'))
    said = refused("plugins=[win_rate.py]", "task=win_rate", *TINY[1:])
    assert "nothing was trained: a task cannot be called 'win_rate' here" in said


def test_a_file_that_a_shipped_one_hides_is_refused(folder, refused):
    (folder / "sweeps" / "quickstart.yaml").write_text("# @package _global_\nname: mine")
    assert "quickstart.yaml would not be read; give it another name" in refused(*TINY)
    (folder / "sweeps" / "quickstart.yaml").write_bytes((sweep.ROOT / "sweeps" / "quickstart.yaml").read_bytes())
    assert "unknown tracker" in refused(*TINY, "tracker=none1")  # the same text is no other choice
    (folder / "conf" / "arch" / "hyena.yaml").write_text("stack: [attention]")
    assert "arch=hyena is a choice that comes with mad" in refused(*TINY, "arch=attention,hyena")
