"""Ray and SLURM engines: the same runs, the same records; Ray really runs here, SLURM's jobs as local processes."""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mad import engine, training
from mad.config import Run
from mad.engine.slurm import work_off
from mad.records import Claims, Record, Store

HAVE = {name: importlib.util.find_spec(name) is not None for name in ("ray", "submitit")}


def needs(name):
    return pytest.mark.skipif(not HAVE[name], reason=f"{name} is not installed")


def runs(number):
    return [Run.of({"task": "mqar", "seed": seed, "device": "cpu"}) for seed in range(number)]


def breaking(run, on_progress=None):
    if run.seed == 1:
        raise ValueError("seed 1 is bad")
    if run.seed == 2:
        os.kill(os.getpid(), 9)
    if run.seed == 3:
        time.sleep(600)
    return Record(run.id, "ok", run.to_dict(), device=f"process {os.getpid()}")


def check(store):
    """Ten runs of `breaking`: each has its record, once, and those that broke say how."""
    found = {record.config["seed"]: record for record in store.records()}
    assert sorted(found) == list(range(10))
    assert {seed: r.failure for seed, r in found.items() if r.failure} == {1: "exception", 2: "killed", 3: "timeout"}
    assert all(found[seed].status == "ok" for seed in found if seed not in (1, 2, 3))
    assert (found[1].attempts, found[2].attempts, found[3].attempts) == (1, 2, 2)
    assert found[1].last_error == "ValueError: seed 1 is bad" and "WorkerKilled" in str(found[2].error)
    assert not Claims(store.folder).all()
    return found


@needs("ray")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_loses_only_the_runs_that_are_at_fault(tmp_path):
    store = Store(tmp_path, "mine")
    summary = engine.execute(runs(10), store, engine.build("ray", breaking, workers=2, timeout=3.0))
    found = check(store)
    assert summary.counts == {"ok": 7, "diverged": 0, "failed": 3}
    assert found[0].device != f"process {os.getpid()}"
    assert len({record.device for record in found.values() if record.device}) < 7  # an actor is for many runs


@needs("ray")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_trains(tmp_path):
    given = {
        "task": {"name": "mqar", "vocab_size": 32, "seq_len": 16, "num_kv": 2},
        "arch": {"stack": "base_conv", "dim": 16},
        "train": {"steps": 3, "batch_size": 8, "num_train": 16, "num_test": 8},
        "device": "cpu",
    }
    run = training.prepare(given)
    engine.execute([run], Store(tmp_path), engine.build("ray", workers=1))
    (record,) = Store(tmp_path).records()
    assert record.metrics == training.train(run).metrics


PLUGIN = """
import os, time
import torch
import layers

@layers.register("telling", kind="channel")
class Telling(layers.Layer):
    def __init__(self, dim, max_length, *, number=0, fate="", log=""):
        super().__init__(dim, max_length)
        self.number, self.fate, self.log = number, fate, log
        self.weight = torch.nn.Parameter(torch.ones(dim))

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            with open(self.log, "a") as log:
                log.write(f"{self.number} {os.getpid()}\\n")
            time.sleep(0.02)
            if self.fate == "dies":
                os.kill(os.getpid(), 9)
            if self.fate == "hangs":
                time.sleep(600)
        return self.weight * x

    def state_size(self, length):
        return 0

    def flops(self, length):
        return 0
"""


def telling(folder, fates):
    """Six runs; the steps of all are told in a file, as (number, process)."""
    name, log = f"telling_{len(fates)}_{'_'.join(fates.values())}", folder / "log"
    plugin = folder / f"{name}.py"
    plugin.write_text(PLUGIN.replace('"telling"', f'"{name}"'))
    return [
        training.prepare(
            {
                "task": {"name": "mqar", "vocab_size": 32, "seq_len": 16, "num_kv": 2},
                "arch": {
                    "stack": [{"name": name, "number": n, "fate": fates.get(n, ""), "log": str(log)}],
                    "dim": 8,
                },
                "train": {"steps": 30, "eval_every": 10, "batch_size": 8, "num_train": 16, "num_test": 8},
                "device": "cpu",
                "plugins": [str(plugin)],
            }
        )
        for n in range(6)
    ]


def told(folder):
    return [tuple(map(int, line.split())) for line in (folder / "log").read_text().splitlines()]


@needs("ray")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_trains_several_at_once_and_finds_out_who_kills_them(tmp_path):
    mine, store = telling(tmp_path, {1: "dies"}), Store(tmp_path / "store", "mine")
    summary = engine.execute(mine, store, engine.build("ray", workers=1, lanes=3))
    found = {record.config["arch"]["stack"][0]["number"]: record for record in store.records()}
    assert summary.counts == {"ok": 5, "diverged": 0, "failed": 1} and sorted(found) == list(range(6))
    assert found[1].failure == "killed" and found[1].attempts == 2
    assert all(found[n].attempts == 1 for n in found if n != 1)  # although its neighbours began twice
    steps = told(tmp_path)
    first = [n for n, pid in steps if pid == steps[0][1]]
    assert first == sorted(first) and len(set(first)) > 1  # they took turns, and all ended there
    turns = [a for a, b in zip(steps, steps[1:], strict=False) if a[0] != b[0]]
    assert len(turns) > 20
    assert found[5].metrics == training.train(mine[5]).metrics


@needs("ray")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_gives_up_the_one_of_several_that_hangs(tmp_path, monkeypatch):
    from mad.engine import actor

    monkeypatch.setattr(actor, "GRACE", 2.0)
    mine, store = telling(tmp_path, {1: "hangs"}), Store(tmp_path / "store", "mine")
    engine.execute(mine, store, engine.build("ray", workers=1, lanes=3, timeout=8.0, retries=0))
    found = {record.config["arch"]["stack"][0]["number"]: record for record in store.records()}
    assert {n: r.failure for n, r in found.items() if r.failure} == {1: "timeout"} and sorted(found) == list(range(6))


@needs("ray")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_at_an_address(tmp_path, monkeypatch):
    """A cluster of one machine, begun as clusters are, asking for a token as they do."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}"]
    command += ["--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats"]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL) as head:
        try:
            for _ in range(300):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.2)
            monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
            machine = engine.build("ray", breaking, timeout=3.0, retries=0)
            summary = engine.execute(runs(1) + runs(5)[4:], Store(tmp_path), machine)
        finally:
            os.killpg(head.pid, signal.SIGTERM)
    assert summary.counts == {"ok": 2, "diverged": 0, "failed": 0}


@needs("submitit")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # submitit's own: processes that it does not wait for
def test_slurm_jobs_share_the_runs(tmp_path):
    store = Store(tmp_path, "mine")
    machine = engine.build("slurm", breaking, cluster="local", jobs=2, timeout=3.0)
    summary = engine.execute(runs(10), store, machine)
    check(store)
    assert summary.counts == {"ok": 7, "diverged": 0, "failed": 3}
    assert len(list((tmp_path / "slurm").glob("*_log.out"))) == 2  # two jobs, whatever the number of runs


@needs("submitit")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # submitit's own: processes that it does not wait for
def test_runs_that_the_jobs_leave_are_left_and_not_failed(tmp_path, caplog):
    store = Store(tmp_path, "mine")
    summary = engine.execute(runs(2), store, engine.build("slurm", not_there, cluster="local", jobs=1))
    assert summary.left == 2 and not store.records()
    assert "all 1 jobs have ended and 2 runs are left: the same command submits again" in caplog.text
    assert str(tmp_path / "slurm") in caplog.text


@needs("submitit")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_job_that_starts_later_repeats_no_failure(tmp_path):
    store = Store(tmp_path, "mine")
    before = {run.id: store.stamp(run.id) for run in runs(2)}
    given = (runs(2), before, str(tmp_path), "mine", breaking, {"workers": 1})
    for _ in range(2):
        work_off(*given)
        stamps = {run.id: store.stamp(run.id) for run in runs(2)}
    work_off(*given)
    assert stamps == {run.id: store.stamp(run.id) for run in runs(2)}


@needs("submitit")
def test_a_wrong_parameter_is_named(tmp_path):
    machine = engine.build("slurm", breaking, cluster="local", parameters={"slurm_partitoin": "gpu", "nonsense": 1})
    with pytest.raises(engine.Unusable, match="no job can be submitted, with engine.parameters=.*nonsense"):
        engine.execute(runs(1), Store(tmp_path), machine)


@needs("ray")
@pytest.mark.filterwarnings("ignore")
def test_a_ray_that_is_not_there_is_named(tmp_path, monkeypatch):
    import ray

    def init(address, **options):
        assert address == "auto" and "num_cpus" not in options
        raise ConnectionError("Could not find any\n running Ray instance")  # as Ray does

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(
        engine.Unusable, match="Ray cannot be used at 'auto': Could not find any running Ray instance; "
    ):
        engine.execute(runs(1), Store(tmp_path), engine.build("ray", breaking, address="auto"))


def test_devices_of_other_machines_are_said(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert engine.elsewhere("slurm", {}) and not engine.elsewhere("slurm", {"cluster": "local"})
    assert engine.elsewhere("ray", {"address": "head:6379"}) and not engine.elsewhere("ray", {"address": None})
    assert not engine.elsewhere("local", {})
    given = {"task": {"name": "mqar", "vocab_size": 32, "seq_len": 16, "num_kv": 2}, "arch": {"stack": "mlp", "dim": 8}}
    with pytest.raises(ValueError, match="device=auto cannot be told here for runs on other machines"):
        training.prepare(given, here=False)
    run = training.prepare(given | {"device": "cuda"}, here=False)
    assert (run.device, run.train.precision) == ("cuda", "bf16")


class Unpicklable:
    def __call__(self, run, on_progress=None):
        raise AssertionError("never gets there")

    def __reduce__(self):
        return os._exit, (7,)  # the job ends as it reads its work


not_there = Unpicklable()


@needs("ray")
def test_a_ray_that_does_not_answer_is_named(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        engine.build("ray", address=f"127.0.0.1:{port}")  # something answers
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(ValueError, match=rf"no Ray answers at '127.0.0.1:{port}' .*ray start --head"):
        engine.build("ray")
    with pytest.raises(ValueError, match="'nonsense' must be host:port"):
        engine.build("ray", address="nonsense")
    with pytest.raises(ValueError, match="engine.gpus must be a number above 0"):
        engine.build("ray", gpus=0, address="local")


@needs("submitit")
def test_a_machine_without_slurm_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="sbatch, which is not on the PATH here.*engine.cluster=local"):
        engine.build("slurm")
    with pytest.raises(ValueError, match="unknown engine.cluster 'locl' .did you mean 'local'"):
        engine.build("slurm", cluster="locl")


@pytest.mark.parametrize("name, extra", [("ray", "ray"), ("slurm", "slurm")])
def test_what_is_not_installed_is_named(monkeypatch, name, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(ValueError, match=rf"engine={name} needs .*pip install 'mad\[{extra}\]'"):
        engine.build(name)
