"""Engines: records as they finish, whatever becomes of a run or its worker; resuming; Ctrl-C."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mad import engine, training
from mad.config import Run
from mad.engine import local, process
from mad.engine.progress import Labels, Lively, Plain, duration
from mad.records import Record, Store


def runs(number: int, **fields) -> list[Run]:
    arch = {"name": "striped", "stack": ["hyena"]}
    return [Run.of({"task": "mqar", "arch": arch, "seed": seed, "device": "cpu", **fields}) for seed in range(number)]


def work(run, on_progress: Any = None):
    """A run that needs no model: by its seed it succeeds, fails or takes its worker down."""
    if run.seed == 1:
        raise ValueError("seed 1 is bad")
    if run.seed == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if run.seed == 3:
        sys.exit(5)
    on_progress({"step": 5, "steps": 10, "accuracy": 0.25})
    return Record(run.id, "ok", run.to_dict(), metrics={"accuracy": 0.5}, device=f"process {os.getpid()}")


def visible(run, on_progress=None):
    """Says which device and process it is; fails for one seed."""
    device = f"{os.environ['CUDA_VISIBLE_DEVICES']} {os.getpid()}"
    assert run.seed != 1, f"CUDA error on {device}"
    return Record(run.id, "ok", run.to_dict(), device=device)


def meeting(run, on_progress=None):
    """Ends when two workers are at it at once."""
    place = Path(run.task["place"])
    (place / str(os.getpid())).touch()
    for _ in range(600):
        if len(list(place.iterdir())) == 2:
            return visible(run)
        time.sleep(0.1)
    raise AssertionError("the other worker did not come")


def by_seed(records) -> dict[int, Any]:
    return {record.config["seed"]: record for record in records}


def collect(name: str, work=work, number=6, **options):
    events = []
    found = by_seed(engine.build(name, work, **options).run(runs(number), on_event=events.append))
    return found, events


def test_inline_keeps_the_order_and_goes_on_after_a_failure():
    made = [run for run in runs(6) if run.seed not in (2, 3)]
    records = list(engine.build("inline", work).run(made))
    assert [(r.config["seed"], r.status) for r in records] == [(0, "ok"), (1, "failed"), (4, "ok"), (5, "ok")]
    assert records[1].last_error == "ValueError: seed 1 is bad" and "Traceback" in str(records[1].error)


def test_local_loses_only_the_runs_that_are_at_fault():
    found, _ = collect("local", workers=2)
    assert {seed: record.status for seed, record in found.items()} == {
        0: "ok",
        1: "failed",
        2: "failed",
        3: "failed",
        4: "ok",
        5: "ok",
    }
    assert found[1].last_error == "ValueError: seed 1 is bad" and "in work" in found[1].error
    assert "SIGKILL" in found[2].error and "out of memory" in found[2].error
    assert "SystemExit" in found[3].error and "5" in found[3].error
    assert all(found[run.seed].run_id == run.id for run in runs(6))
    assert found[0].device != f"process {os.getpid()}"


def test_a_worker_is_a_process_for_many_runs():
    found, _ = collect("local", work=healthy, number=12, workers=2)
    assert 1 <= len({record.device for record in found.values()}) <= 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
def test_less_memory_than_a_worker_holds_is_said_to_be():
    found, _ = collect("local", work=healthy, number=2, workers=1, memory=0.05, retries=0)
    assert {record.failure for record in found.values()} == {"memory"}
    assert found[0].last_error.startswith("MemoryError: engine.memory=0.05: a worker holds 0.")


def healthy(run, on_progress=None):
    return Record(run.id, "ok", run.to_dict(), device=f"process {os.getpid()}")


@pytest.mark.parametrize("name", ["inline", "local"])
def test_events_say_when_a_run_starts_and_how_far_it_is(name):
    events = []
    chosen = [run for run in runs(6) if run.seed in (0, 4)]
    records = list(engine.build(name, work).run(chosen, on_event=events.append))
    assert len(records) == 2
    for run in chosen:
        mine = [event for event in events if event.run.id == run.id]
        assert [event.progress for event in mine] == [None, {"step": 5, "steps": 10, "accuracy": 0.25}]
        assert len({event.worker for event in mine}) == 1


def test_each_worker_has_a_device(monkeypatch, tmp_path):
    monkeypatch.setattr(local, "cuda_devices", lambda: ["3", "5"])
    given = [run for run in runs(3, device="cuda", task={"name": "mqar", "place": str(tmp_path)}) if run.seed != 1]
    records = list(engine.build("local", meeting).run(given))
    assert {str(record.device).split()[0] for record in records} == {"3", "5"}


def test_after_a_failure_on_a_device_its_worker_is_a_new_process(monkeypatch):
    monkeypatch.setattr(local, "cuda_devices", lambda: ["3"])
    first, failed, third, fourth = engine.build("local", visible).run(runs(4, device="cuda"))
    assert failed.last_error == f"AssertionError: CUDA error on {first.device}"
    assert third.device == fourth.device != first.device
    assert str(third.device).split()[0] == str(first.device).split()[0] == "3"


def test_the_devices_are_those_that_were_made_visible(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert local.cuda_devices() == ["4", "7"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert local.cuda_devices() == ["0", "1"]


TINY = {
    "task": {"name": "mqar", "vocab_size": 32, "seq_len": 16, "num_kv": 2},
    "arch": {"stack": "base_conv", "dim": 16},
    "train": {"steps": 6, "batch_size": 8, "num_train": 32, "num_test": 16, "eval_every": 2},
    "device": "cpu",
}
PLUGIN = """
import os, time
from pathlib import Path
import torch
import layers

@layers.register({name!r}, kind="channel")
class Fate(layers.ChannelMixer):
    def __init__(self, dim, max_length, *, end=""):
        super().__init__(dim, max_length)
        self.end = end

    def forward(self, x):
        mark = Path({mark!r})
        if len(x) == 8 and self.end and not (self.end == "die" and mark.exists()):  # a batch, not the model's cost
            mark.touch()
            if self.end == "die":
                os._exit(3)
            if self.end == "exit":
                raise SystemExit(7)
            if self.end == "slow":
                time.sleep(0.4)
                return x
            if self.end == "hang":
                time.sleep(600)
            raise RuntimeError("not today")
        return x

    def flops(self, length):
        return 0
"""


def in_lanes(tmp_path, ends, **options):
    """What becomes of one run for each of `ends` ("": it trains), three at once in one process."""
    plugin, name = tmp_path / "fate.py", f"fate_{tmp_path.name}"
    plugin.write_text(PLUGIN.replace("{mark!r}", repr(str(tmp_path / "mark"))).replace("{name!r}", repr(name)))
    given = [
        training.prepare(
            TINY
            | {"arch": {"stack": ["base_conv", {"name": name, "end": end}], "dim": 16}}
            | {"seed": seed, "plugins": [str(plugin)]}
        )
        for seed, end in enumerate(ends)
    ]
    events = []
    engine_ = engine.build("local", workers=1, lanes=3, **options)
    return by_seed(engine_.run(given, on_event=events.append)), events, given


def test_lanes_are_several_runs_at_once_in_one_process(tmp_path):
    found, events, given = in_lanes(tmp_path, [""] * 5)
    for run in given:
        alone = training.train(run)
        assert found[run.seed].curve == alone.curve and found[run.seed].metrics == alone.metrics
    told = [(event.run.seed, event.progress["step"]) for event in events if event.progress]
    assert told[:6] == [(0, 2), (1, 2), (2, 2), (0, 4), (1, 4), (2, 4)]  # in turns
    assert {event.worker for event in events} == {0}


def test_a_plugin_that_is_edited_meanwhile_is_the_old_one_for_runs_under_way(tmp_path):
    plugin, name = tmp_path / "fate.py", f"edited_{tmp_path.name}"
    plugin.write_text(PLUGIN.replace("{mark!r}", repr(str(tmp_path / "mark"))).replace("{name!r}", repr(name)))
    arch = {"arch": {"stack": ["base_conv", name], "dim": 16}, "plugins": [str(plugin)]}
    given = [training.prepare(TINY | arch | {"seed": seed}) for seed in range(3)]

    def edited(event):
        plugin.write_text("raise ValueError('half a thought')")

    records = list(engine.build("local", workers=1).run(given, on_event=edited))
    assert {record.run_id: record.status for record in records} == dict.fromkeys((run.id for run in given), "ok")


def test_a_lane_that_fails_costs_its_own_run_alone(tmp_path):
    found, _, _ = in_lanes(tmp_path, ["", "raise", "", ""])
    assert [found[seed].status for seed in range(4)] == ["ok", "failed", "ok", "ok"]
    assert found[1].last_error == "RuntimeError: not today" and found[1].failure == "exception"
    assert found[1].versions["plugins"] == found[0].versions["plugins"]  # which text it was that failed


def test_runs_that_a_dying_process_takes_along_are_begun_again(tmp_path):
    found, events, _ = in_lanes(tmp_path, ["", "die", ""])
    assert [found[seed].status for seed in range(3)] == ["ok"] * 3
    assert [found[seed].attempts for seed in range(3)] == [1, 2, 1]  # it was not the others' fault
    assert sum(event.again for event in events) == 3


def test_a_lane_that_hangs_ends_its_process(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "GRACE", 1.0)
    found, _, _ = in_lanes(tmp_path, ["", "hang", ""], timeout=4.0)
    assert [found[seed].failure for seed in range(3)] == [None, "timeout", None]
    assert "longer than engine.timeout=4" in found[1].error and "fate.py" in found[1].error


def test_a_process_on_a_gpu_says_how_many_lanes_it_has_room_for(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for free, lanes in ((80e9, 8), (23e9, 2), (1e9, 1)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 80e9))
        assert training.how_many() == lanes


def test_a_process_is_given_one_run_until_it_has_said_how_many_it_takes():
    context = local._context()
    (woken, wake), (lifeline, held) = context.Pipe(duplex=False), context.Pipe(duplex=False)
    worker = process.LaneWorker(0, context, engine.build("local"), None, wake, lifeline, None)
    try:
        assert worker.room == 1
        run = training.prepare(TINY)
        worker.start(run)
        worker.lanes = 0  # fewer than it has: one more did not pay
        assert worker.room == 0
        worker.lanes, said = 7, []
        deadline = time.monotonic() + 60
        while not said and time.monotonic() < deadline:
            list(worker.told())
            said = worker.ended()
            time.sleep(0.01)
        assert [(run, outcome.record.status) for run, outcome in said] == [(run, "ok")]
        assert worker.lanes == worker.room == 1  # no GPU here
    finally:
        worker.close()
        for end in (woken, wake, lifeline, held):
            end.close()


def test_lanes_are_for_training():
    with pytest.raises(ValueError, match="engine.lanes is for training"):
        engine.build("local", healthy, lanes=2)
    with pytest.raises(ValueError, match="engine.lanes must be a whole number of at least 1, got 0"):
        engine.build("local", lanes=0)


@pytest.mark.parametrize("retries", [0, 1])
def test_a_process_that_ends_by_an_error_of_its_own_costs_the_run_whose_turn_it_was(tmp_path, retries):
    found, _, _ = in_lanes(tmp_path, ["", "exit", ""], retries=retries)  # SystemExit passes what catches exceptions
    assert [found[seed].status for seed in range(3)] == ["ok", "failed", "ok"]
    assert found[1].attempts == 1 + retries and found[0].attempts == 1  # it need not have been that run's error


def test_the_one_that_hangs_is_blamed_though_it_began_later(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "GRACE", 1.0)
    ends = ["slow", "", "", "hang"]  # the last begins when the first has had most of its time
    found, _, _ = in_lanes(tmp_path, ends, timeout=6.0, retries=0)
    assert found[3].failure == "timeout" and found[0].failure in (None, "timeout")
    assert "fate.py" in found[3].error


def test_leaving_early_stops_the_workers():
    records = engine.build("local", stubborn, workers=2).run(runs(4))
    first = next(records)
    assert first.config["seed"] == 0
    records.close()
    with pytest.raises(ProcessLookupError):  # the process that did the run is gone
        os.kill(int(str(first.device)), 0)


def stubborn(run, on_progress=None):
    if run.seed:
        time.sleep(600)
    return Record(run.id, "ok", run.to_dict(), device=str(os.getpid()))


def test_a_worker_that_dies_between_two_runs_is_replaced():
    records = engine.build("local", healthy, workers=1).run(runs(3))
    first = next(records)
    process = int(str(first.device).removeprefix("process "))
    os.kill(process, signal.SIGKILL)
    later = list(records)
    assert len(later) == 2 and {record.status for record in later} == {"ok"}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("locale", {}, "unknown engine 'locale' .did you mean 'local'.*inline, local"),
        ("local", {"worker": 2}, "'worker' .did you mean 'workers'"),
        ("local", {"workers": 0}, "workers must be a whole number of at least 1.* got 0"),
        ("local", {"workers": 1.5}, "got 1.5"),
    ],
)
def test_bad_engines_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        engine.build(name, **options)


# ----------------------------------------------------------------------------------------------------------------------
# execute


def test_execute_writes_every_record_and_the_csv(tmp_path):
    store = Store(tmp_path, "mine")
    chosen = [run for run in runs(6) if run.seed not in (2, 3)]
    summary = engine.execute(chosen, store, engine.build("inline", work))
    assert summary.counts == {"ok": 3, "diverged": 0, "failed": 1} and summary.there == 0
    table = store.table().set_index("seed")
    assert table["status"].to_dict() == {0: "ok", 1: "failed", 4: "ok", 5: "ok"}
    assert set(table["sweep"]) == {"mine"}
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 5


def test_execute_again_runs_what_failed_and_nothing_else(tmp_path):
    store, done = Store(tmp_path), []

    def counting(run, on_progress=None):
        done.append(run.seed)
        return work(run, on_progress)

    chosen = [run for run in runs(6) if run.seed not in (2, 3)]
    inline = engine.build("inline", counting)
    engine.execute(chosen[:2] + chosen[:1], store, inline)
    assert done == [0, 1]  # the same run twice is one run
    summary = engine.execute(chosen, store, inline)
    assert done == [0, 1, 1, 4, 5] and summary.there == 1 and summary.executed == 3


def test_a_diverged_run_is_a_result(tmp_path):
    store = Store(tmp_path)

    def diverging(run, on_progress=None):
        return Record(run.id, "diverged", run.to_dict(), metrics={"loss": float("nan")})

    assert engine.execute(runs(1), store, engine.build("inline", diverging)).executed == 1
    assert engine.execute(runs(1), store, engine.build("inline", diverging)).executed == 0


INTERRUPTED = """
import time
from mad import engine, training
from mad.config import Run
from mad.records import Record, Store

def work(run, on_progress=None):
    if run.seed >= 2:
        time.sleep(600)
    return Record(run.id, "ok", run.to_dict())

if __name__ == "__main__":
    runs = [Run.of({"task": "mqar", "seed": seed}) for seed in range(6)]
    print("ready", flush=True)
    engine.execute(runs, Store("store"), engine.build("local", work, workers=2), engine.display())
"""


@pytest.mark.skipif(os.name == "nt", reason="signals to a process group")
def test_ctrl_c_keeps_what_finished_and_leaves_no_process(tmp_path):
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    root = Path(engine.__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "interrupted.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]  # "ready" and a line for each of the two quick runs
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert lines[0] == "ready\n" and lines[2].startswith("[2/6] ok"), errors
    said = errors.count("Traceback") - errors.count("During handling of the above exception")
    assert errors.strip().endswith("KeyboardInterrupt") and said == 1, errors
    assert process.returncode == -signal.SIGINT
    store = Store(tmp_path / "store")
    assert sorted(record.config["seed"] for record in store.records()) == [0, 1]
    assert len((tmp_path / "store/results.csv").read_text().splitlines()) == 3
    assert group_ends(process.pid)


def group_ends(group: int) -> bool:
    """Whether the last process of the group goes away, within a time that is long for any machine."""
    for _ in range(300):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


# ----------------------------------------------------------------------------------------------------------------------
# Progress


def show(display, chosen):
    display.begin(len(chosen), 3)
    for record in engine.build("inline", work).run(chosen, on_event=display.on_event):
        display.on_record(record)


def test_plain_lines_one_for_each_finished_run():
    lines: list[str] = []
    show(Plain(lines.append), runs(2))
    assert lines[0] == "3 runs have a result already"
    assert lines[1].startswith("[1/2] ok        striped · mqar · lr 0.0005 · accuracy 0.500 · 0 steps")
    bad = f"{runs(2)[1].id}.json"
    assert lines[2] == f"[2/2] failed    striped · mqar · lr 0.0005 · {bad} · ValueError: seed 1 is bad"


def test_a_line_says_what_differs_among_runs_that_would_be_called_alike(tmp_path):
    lines: list[str] = []
    given = runs(1) + [Run.of(vars(runs(1)[0]) | more) for more in ({"seed": 4}, {"optim": {"weight_decay": 0.1}})]
    given += [Run.of(vars(given[0]) | {"task": "text", "train": {"report": "lowest_perplexity"}})]
    store = Store(tmp_path)
    engine.execute(given, store, engine.build("inline", work), Plain(lines.append))
    called = [
        f"striped · mqar · lr 0.0005 · weight decay {more}" for more in ("0 · seed 0", "0 · seed 4", "0.1 · seed 0")
    ]
    called += ["striped · text · lr 0.0005"]  # alone of that name
    assert [line[16:].partition(" · accuracy")[0] for line in lines] == called
    assert list(store.planned().values()) == sorted(called, key=lambda name: given[called.index(name)].id)


def test_a_length_that_follows_the_task_is_not_said_twice():
    def lengths(*pairs):
        made = [
            Run.of({"task": {"name": "mqar", "seq_len": n}, "arch": {"stack": "mlp", "max_length": m}})
            for n, m in pairs
        ]
        return [Labels(made)(run) for run in made]

    assert lengths((32, 32), (64, 64)) == [f"mlp · mqar · lr 0.0005 · seq len {n}" for n in (32, 64)]
    assert lengths((32, 32), (32, 64)) == [f"mlp · mqar · lr 0.0005 · max length {n}" for n in (32, 64)]


def test_the_display_is_plain_where_there_is_no_terminal():
    out = io.StringIO()
    shown = engine.display(Console(file=out))
    assert isinstance(shown, Plain)
    show(shown, runs(1))
    assert out.getvalue().splitlines()[1].startswith("[1/1] ok")
    assert isinstance(engine.display(Console(file=out, force_terminal=True)), Lively)


def test_the_live_display_has_a_line_per_worker_and_the_time_left():
    now = [100.0]
    out, page = io.StringIO(), io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, color_system=None)
    display = Lively(console, clock=lambda: now[0])
    first, second, third, fourth = runs(4)
    with display:
        display.begin(4, 0)
        display.on_event(engine.Event(0, first))
        display.on_event(engine.Event(1, second))
        display.on_event(engine.Event(1, second, {"step": 30, "steps": 100, "accuracy": 0.125}))
        display.on_record(Record(first.id, "ok", first.to_dict()))
        display.on_record(Record(third.id, "failed", third.to_dict(), error="RuntimeError: no memory"))
        display.on_event(engine.Event(0, fourth, {"step": 20, "steps": 100, "accuracy": None}))
        now[0] += 50  # 2 + 0.3 + 0.2 of 4 runs in 50 s
        Console(file=page, width=120, color_system=None).print(display.render())
    lines = page.getvalue().splitlines()
    assert lines[0].split() == "0 striped · mqar · lr 0.0005 step 20/100".split()
    assert lines[1].split() == "1 striped · mqar · lr 0.0005 step 30/100 accuracy 0.125".split()
    assert "2/4" in lines[2] and "50 s, 30 s left" in lines[2]
    assert "1 ok" in lines[2] and "1 failed" in lines[2] and "diverged" not in lines[2]
    assert "RuntimeError: no memory" in out.getvalue()


def test_durations():
    assert [duration(s) for s in (0.4, 59.4, 59.6, 187, 8100)] == ["0 s", "59 s", "1:00 min", "3:07 min", "2:15 h"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_the_server_that_workers_come_from_is_deaf_to_an_interrupt_from_the_first():
    """It shares the terminal, imports for seconds, and would end in a traceback of its own."""
    code = (
        "from multiprocessing import forkserver; from mad.engine import local; local._context();"
        "print(open(f'/proc/{forkserver._forkserver._forkserver_pid}/status').read())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    ignored = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("SigIgn"))
    assert int(ignored, 16) & 1 << signal.SIGINT - 1


def test_ctrl_c_while_a_worker_starts_cuts_no_start_off(monkeypatch):
    """The first waits seconds for the server: begun after all, and nobody's, it would end in a traceback of its own."""
    came = []

    def start(self, run):
        signal.raise_signal(signal.SIGINT)
        came.append(run.seed)
        begin(self, run)

    with monkeypatch.context() as patched:
        begin = local.Worker.start
        patched.setattr(local.Worker, "start", start)
        with pytest.raises(KeyboardInterrupt):
            list(engine.build("local", work, workers=1).run(runs(1)))
    assert came == [0] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [record.status for record in engine.build("local", work, workers=1).run(runs(1))] == ["ok"]
