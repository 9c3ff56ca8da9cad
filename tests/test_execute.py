"""Executing into a store: shared folders, full disks, limits of time and memory, retries, parents that are killed."""

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mad import engine
from mad.bench import engine as bench
from mad.config import Run
from mad.engine.base import Pending
from mad.records import Claims, Record, Store

ROOT = Path(__file__).parents[1]
GB = 1_000_000_000


def runs(number, **fields):
    return [Run.of({"task": "mqar", "seed": seed, "device": "cpu", **fields}) for seed in range(number)]


def fine(run, on_progress=None):
    return Record(run.id, "ok", run.to_dict(), metrics={"accuracy": 0.5})


def statuses(store):
    return {record.config["seed"]: record.status for record in store.records()}


# ----------------------------------------------------------------------------------------------------------------------
# Several processes


def test_two_processes_share_a_folder_and_do_each_run_once(tmp_path):
    assert bench.shared(tmp_path, "local", 120, 2) == (120, 120, 120)


def test_what_is_done_elsewhere_meanwhile_is_not_done_again(tmp_path):
    store, done = Store(tmp_path), []

    def work(run, on_progress=None):
        done.append(run.seed)
        if run.seed == 0:  # while this one runs, another process does the next, and fails at the one after
            other = runs(3)
            Store(tmp_path).write(fine(other[1]))
            Store(tmp_path).write(Record(other[2].id, "failed", other[2].to_dict(), error="ValueError: x"))
        return fine(run)

    summary = engine.execute(runs(3), store, engine.build("inline", work))
    assert done == [0] and summary.elsewhere == 2 and summary.executed == 1
    summary = engine.execute(runs(3), store, engine.build("inline", work))
    assert done == [0, 2] and summary.there == 2  # a failure of before is tried again


def test_what_a_dead_process_had_is_taken_over(tmp_path):
    claimed = runs(2)[0]
    code = f"from mad.records import Claims; assert Claims({str(tmp_path)!r}).take({claimed.id!r})"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert engine.execute(runs(2), Store(tmp_path), engine.build("inline", fine)).executed == 2
    assert not Claims(tmp_path).all()


def test_a_run_under_way_elsewhere_is_waited_for(tmp_path):
    here, there = runs(2)
    other = Claims(tmp_path)
    other.take(here.id)
    seen = []

    def work(run, on_progress=None):
        seen.append(run.seed)
        Store(tmp_path).write(fine(here))  # the other process is done
        other.release(here.id)
        return fine(run)

    summary = engine.execute([here, there], Store(tmp_path), engine.build("inline", work))
    assert seen == [1] and (summary.executed, summary.elsewhere) == (1, 1)


def test_a_record_that_was_cut_off_is_made_again(tmp_path):
    store, (run,) = Store(tmp_path), runs(1)
    engine.execute([run], store, engine.build("inline", fine))
    path = tmp_path / "runs" / f"{run.id}.json"
    path.write_text(path.read_text()[:50])
    assert engine.execute([run], Store(tmp_path), engine.build("inline", fine)).executed == 1
    assert Store(tmp_path).done(run.id) and len(list((tmp_path / "runs").glob("*.corrupt"))) == 1


def test_another_sweep_s_folder_and_one_that_cannot_be_written_are_refused(tmp_path, monkeypatch):
    engine.execute(runs(1), Store(tmp_path / "a", "mine"), engine.build("inline", fine))
    with pytest.raises(ValueError, match="holds the sweep 'mine', not 'yours'; choose another folder"):
        Store(tmp_path / "a", "yours")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/sub' cannot be written to .*choose another \(results_dir"):
        engine.execute(runs(1), Store(tmp_path / "file/sub"), engine.build("inline", fine))


# ----------------------------------------------------------------------------------------------------------------------
# A full disk


class Full(Store):
    """A store whose disk is full for a while."""

    def __init__(self, folder, times):
        super().__init__(folder)
        self.times = times

    def write(self, record):
        if self.times:
            self.times -= 1
            raise OSError(28, "No space left on device")
        super().write(record)


class Troubles(engine.Display):
    def __init__(self):
        self.messages = []

    def on_trouble(self, message):
        self.messages.append(message)


def test_a_full_disk_delays_records_and_loses_none(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("mad.engine.execute"), "AGAIN", 0.01)
    shown, store = Troubles(), Full(tmp_path, times=7)
    summary = engine.execute(runs(5), store, engine.build("inline", fine), shown)
    assert statuses(Store(tmp_path)) == dict.fromkeys(range(5), "ok") and summary.executed == 5
    assert "No space left on device; it is kept and tried again" in shown.messages[0]
    assert not Claims(tmp_path).all()


def test_interrupted_on_a_full_disk_records_are_rescued(tmp_path):
    def work(run, on_progress=None):
        if run.seed == 2:
            raise KeyboardInterrupt
        return fine(run)

    shown = Troubles()
    with pytest.raises(KeyboardInterrupt):
        engine.execute(runs(4), Full(tmp_path, times=10**9), engine.build("inline", work), shown)
    place = re.search(r"2 records could not be written to .*; they are in (.*)/runs", shown.messages[-1])
    assert place and statuses(Store(place[1])) == {0: "ok", 1: "ok"}


# ----------------------------------------------------------------------------------------------------------------------
# Runs that break


def breaking(run, on_progress=None):
    if run.seed == 1:
        time.sleep(600)
    if run.seed == 2:
        hoard = bytearray(6 * GB)
        raise AssertionError(f"{len(hoard)} bytes within 2 GB")
    if run.seed == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    return fine(run)


def test_limits_of_time_and_memory_end_a_run_and_not_the_sweep(tmp_path):
    machine = engine.build("local", breaking, workers=2, timeout=4.0, memory=2.0, retries=0)
    engine.execute(runs(6), Store(tmp_path), machine)
    found = {record.config["seed"]: record for record in Store(tmp_path).records()}
    assert {seed: record.failure for seed, record in found.items()} == {
        0: None, 1: "timeout", 2: "memory", 3: "killed", 4: None, 5: None,
    }  # fmt: skip
    assert found[1].last_error == "TimeoutError: the run took longer than engine.timeout=4 seconds"
    assert "in breaking" in str(found[1].error)  # where it was
    assert "MemoryError" in str(found[2].last_error) and "in breaking" in str(found[2].error)
    assert "SIGSEGV" in str(found[3].last_error) and "in breaking" in str(found[3].error)
    table = Store(tmp_path).table().set_index("seed")
    assert table.loc[1, "failure"] == "timeout"


def flaky(run, on_progress=None):
    """Fails, or dies, the first time."""
    place = Path(run.task["place"]) / str(run.seed)
    if not place.exists():
        place.touch()
        if run.seed == 0:
            raise OSError("the network is down")
        if run.seed == 1:
            raise ValueError("it is wrong")
        os.kill(os.getpid(), signal.SIGKILL)
    return fine(run)


@pytest.mark.parametrize(
    "options, want",
    [
        ({"retries": 1, "retry_on": ["OSError"]}, {0: "ok", 1: "failed", 2: "ok"}),
        ({"retries": 1}, {0: "failed", 1: "failed", 2: "ok"}),
        ({"retries": 0, "retry_on": ["OSError"]}, {0: "failed", 1: "failed", 2: "failed"}),
    ],
)
def test_retries(tmp_path, options, want):
    (tmp_path / "place").mkdir()
    task = {"name": "mqar", "place": str(tmp_path / "place")}
    store = Store(tmp_path / "store")
    engine.execute(runs(3, task=task), store, engine.build("local", flaky, workers=1, **options))
    assert statuses(store) == want
    for record in store.records():
        assert record.attempts == (2 if record.status == "ok" else 1)


def test_a_run_that_always_dies_is_recorded_after_its_retries(tmp_path):
    engine.execute(runs(4)[3:], Store(tmp_path), engine.build("local", breaking, workers=1, retries=2))
    (record,) = Store(tmp_path).records()
    assert (record.status, record.failure, record.attempts) == ("failed", "killed", 3)


PARENT = """
import sys, time
from pathlib import Path
from mad import engine
from mad.config import Run
from mad.records import Store

def work(run, on_progress=None):
    Path(sys.argv[1], f"{run.seed}").touch()
    time.sleep(600)

if __name__ == "__main__":
    runs = [Run.of({"task": "mqar", "seed": seed}) for seed in range(2)]
    engine.execute(runs, Store(sys.argv[1]), engine.build("local", work, workers=2))
"""


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    from mad.drill import alive

    (tmp_path / "parent.py").write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "parent.py", str(tmp_path / "store")]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True) as parent:
        for _ in range(600):
            if all((tmp_path / "store" / str(seed)).exists() for seed in range(2)):
                break
            time.sleep(0.1)
        assert len(alive(parent.pid)) >= 3
        parent.kill()
    for _ in range(200):
        if not alive(parent.pid):
            break
        time.sleep(0.1)
    assert not alive(parent.pid)
    assert all(Claims(tmp_path / "store").dead(claim) for claim in Claims(tmp_path / "store").all())


def test_pending_asks_again_after_a_while():
    now, answers = [0.0], {0: [None, None, True], 1: [False], 2: [True]}
    pending = Pending(runs(3), lambda run: answers[run.seed].pop(0), clock=lambda: now[0])
    first = pending.next()
    assert first is not None and first.seed == 2
    assert pending and pending.next() is None and pending.next() is None and len(answers[0]) == 1
    now[0] += 1
    last = pending.next()
    assert last is not None and last.seed == 0 and not pending and pending.attempts == {first.id: 1, last.id: 1}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"timeout": 0}, "engine.timeout must be a number above 0, or null for no limit, got 0"),
        ({"memory": "4GB"}, "engine.memory must be a number above 0, .* got '4GB'"),
        ({"retries": -1}, "engine.retries must be a whole number of at least 0, got -1"),
        ({"time_out": 3}, "'time_out' .did you mean 'timeout'"),
    ],
)
def test_bad_limits_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        engine.build("local", **options)
