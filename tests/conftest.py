"""Tests run on one thread each: several run side by side, and tiny tensors gain nothing from more.

Without a GPU, Triton kernels run in its interpreter, which has to be asked for before Triton is imported.
"""

import os
import sys

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
torch.set_num_threads(1)


@pytest.fixture
def expand():
    """Overrides -> the points of the grid, as the command would expand them."""
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra

    from hydra_plugins.mad_grid import GridSweeper
    from mad import sweep, tasks

    ConfigStore.instance().store(name="schema", node=sweep.SweepConfig)
    for name in tasks.names():
        ConfigStore.instance().store(group="task", name=name, node={"name": name, **tasks.options(name)})
    paths = ",".join(f"file://{folder}" for folder in sweep.search_path())

    with initialize_config_dir(str(sweep.ROOT / "conf"), version_base=None):

        def run(*overrides):
            sweeps = [text for text in overrides if text.startswith("sweeps=")]
            own = [text for text in overrides if text not in sweeps]
            master = compose("config", [*sweeps, f"hydra.searchpath=[{paths}]"], return_hydra_config=True)
            options = master.hydra.sweeper
            sweeper = GridSweeper(options.params, options.settings, options.archs)

            class Context:
                config_loader = GlobalHydra.instance().config_loader()

            sweeper.setup(hydra_context=Context, task_function=None, config=master)
            return list(sweeper.points(own))

        yield run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of one's own to work in."""
    for name in ("sweeps", "conf/arch"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(monkeypatch, capsys):
    """What the command says, in this process, to a mistake."""
    from mad import sweep

    def run(*overrides):
        monkeypatch.setattr(sys, "argv", ["mad.sweep", *overrides])
        with pytest.raises(SystemExit) as end:
            sweep.main()
        said = capsys.readouterr()
        assert end.value.code == 2 and not said.out and "Traceback" not in said.err
        return said.err

    return run
