"""Executing into a store: shared folders, full disks, limits of time and memory, retries, parents that are killed."""

import importlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from mad import engine
from mad.bench import engine as bench
from mad.config import Run
from mad.engine.base import Outcome, Pending
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


def test_a_process_killed_right_after_writing_leaves_nothing_for_good(tmp_path):
    done = runs(2)[0]
    code = f"from mad.records import Claims; assert Claims({str(tmp_path)!r}).take({done.id!r})"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    Store(tmp_path).write(fine(done))
    assert engine.execute(runs(2), Store(tmp_path), engine.build("inline", fine)).there == 1
    assert not Claims(tmp_path).all()


def test_what_a_killed_process_recorded_reaches_the_table(tmp_path):
    engine.execute(runs(1), Store(tmp_path), engine.build("inline", fine))
    os.utime(tmp_path / "results.csv", (0, 0))
    Store(tmp_path).write(fine(runs(2)[1]))  # by a process that came to no end
    assert engine.execute(runs(2), Store(tmp_path), engine.build("inline", fine)).there == 2
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 3


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
    with pytest.raises(ValueError, match="holds the sweep .mine., not .yours.; .* .name=mine results_dir="):
        Store(tmp_path / "a", "yours")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/sub' cannot be written to .*choose another \(results_dir"):
        engine.execute(runs(1), Store(tmp_path / "file/sub"), engine.build("inline", fine))


def test_what_is_done_while_the_folder_is_read_is_not_done_again(tmp_path):
    class Meanwhile(Store):
        """Another process stores the last run while the first is looked at."""

        def done(self, run_id):
            if run_id == runs(2)[0].id:
                Store(tmp_path).write(fine(runs(2)[1]))
            return super().done(run_id) if run_id == runs(2)[0].id else False

    done = []
    summary = engine.execute(runs(2), Meanwhile(tmp_path), engine.build("inline", lambda run, **_: noted(run, done)))
    assert done == [0] and summary.elsewhere == 1


def noted(run, done):
    done.append(run.seed)
    return fine(run)


def test_a_late_failure_does_not_replace_a_result(tmp_path):
    """An owner that was taken for dead wakes up, and its run times out."""

    def work(run, on_progress=None):
        Store(tmp_path).write(fine(run))  # the process that took it over is done
        raise OSError("too late")

    engine.execute(runs(1), Store(tmp_path), engine.build("inline", work))
    assert statuses(Store(tmp_path)) == {0: "ok"}


def test_waiting_for_others_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("mad.engine.execute"), "WAITING", 0.5)
    (run,), shown, other = runs(1), Troubles(), Claims(tmp_path)
    other.take(run.id)
    threading.Timer(2.0, lambda: (Store(tmp_path).write(fine(run)), other.release(run.id))).start()
    engine.execute([run], Store(tmp_path), engine.build("inline", fine), shown)
    assert set(shown.messages) == {f"waiting for runs that other processes have; see python -m mad.status {tmp_path}"}


def test_failures_since_an_earlier_time_are_settled(tmp_path):
    store, done = Store(tmp_path), []
    before = {run.id: store.stamp(run.id) for run in runs(2)}
    store.write(Record(runs(2)[0].id, "failed", runs(2)[0].to_dict(), error="ValueError: x"))
    work = engine.build("inline", lambda run, **_: noted(run, done))
    engine.execute(runs(2), store, work, before=before)
    assert done == [1]
    engine.execute(runs(2), store, work)
    assert done == [1, 0]


# ----------------------------------------------------------------------------------------------------------------------
# A full disk


class Full(Store):
    """A store whose disk is full for a while."""

    def __init__(self, folder, sweep=None, *, times):
        super().__init__(folder, sweep)
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


def test_ctrl_c_in_the_middle_of_writing_loses_nothing(tmp_path):
    class Interrupted(Store):
        once = True

        def write(self, record):
            if Interrupted.once:
                Interrupted.once = False
                raise KeyboardInterrupt
            super().write(record)

    with pytest.raises(KeyboardInterrupt):
        engine.execute(runs(3), Interrupted(tmp_path), engine.build("inline", fine))
    assert statuses(Store(tmp_path)) == {0: "ok"}


def test_interrupted_on_a_full_disk_records_are_rescued(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def work(run, on_progress=None):
        if run.seed == 2:
            raise KeyboardInterrupt
        return fine(run)

    shown = Troubles()
    full = Full(tmp_path / "full", "a/sweep", times=10**9)  # whose name is no name of a folder
    with pytest.raises(KeyboardInterrupt):
        engine.execute(runs(4), full, engine.build("inline", work), shown)
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


def odd(run, on_progress=None):
    """Ends its process without a word, by a signal that asks, or with more memory than it leaves behind."""
    if run.seed == 0:
        os._exit(0)
    if run.seed == 1:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    if run.seed == 2 and not HOARD:
        HOARD.append(bytearray(GB))
        raise MemoryError("no more")
    return Record(run.id, "ok", run.to_dict(), metrics={"hoard": float(len(HOARD))})


HOARD: list[bytearray] = []


def test_odd_ends_are_told_apart(tmp_path):
    engine.execute(runs(4), Store(tmp_path), engine.build("local", odd, workers=1, retries=1))
    found = {record.config["seed"]: record for record in Store(tmp_path).records()}
    assert (found[0].failure, found[0].attempts) == ("killed", 2) and "with status 0" in str(found[0].error)
    assert found[1].failure == "killed" and "SIGTERM" in str(found[1].error)
    assert found[2].status == "failed" and found[2].failure == "memory"  # in each new process, once
    assert found[3].metrics == {"hoard": 0.0}  # a new process again


def nearly(run, on_progress=None):
    """Long enough to leave a traceback, and in time; then a run that is killed."""
    if run.seed == 0:
        time.sleep(2.9)
        return fine(run)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_traceback_is_of_its_own_run(tmp_path):
    engine.execute(runs(2), Store(tmp_path), engine.build("local", nearly, workers=1, timeout=3.2, retries=0))
    found = {record.config["seed"]: record for record in Store(tmp_path).records()}
    assert found[0].status == "ok" and "File" not in str(found[1].error) and found[1].failure == "killed"


def test_a_clock_that_jumps_ends_no_run(tmp_path, monkeypatch):
    real, began = time.time, time.monotonic()
    monkeypatch.setattr(time, "time", lambda: real() + (7200 if time.monotonic() - began > 1.0 else 0))
    engine.execute(runs(2), Store(tmp_path), engine.build("local", slow, workers=2, timeout=3600, retries=0))
    assert statuses(Store(tmp_path)) == {0: "ok", 1: "ok"}


def slow(run, on_progress=None):
    time.sleep(4)
    return fine(run)


def raising(run, on_progress=None):
    if run.task.get("kind") == "lines":
        raise RuntimeError("CUDA error: unspecified\nCompile with `TORCH_USE_CUDA_DSA`\n\nand more")
    raise ConnectionResetError("gone")


def test_exceptions_are_retried_by_their_kind_and_named_by_their_first_line(tmp_path):
    lines = runs(1, task={"name": "mqar", "kind": "lines"})
    for retry_on, attempts in ((["OSError", "RuntimeError"], 2), (["ValueError"], 1)):
        store = Store(tmp_path / str(attempts))
        engine.execute(runs(1) + lines, store, engine.build("inline", raising, retry_on=retry_on))
        found = {str(record.last_error): record.attempts for record in store.records()}
        assert found == {
            "ConnectionResetError: gone": attempts,
            "RuntimeError: CUDA error: unspecified": attempts,
        }


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
    pending = Pending(runs(3), lambda run: answers[run.seed].pop(0), retries=1, clock=lambda: now[0])
    first = pending.next()
    assert first is not None and first.seed == 2
    assert pending and pending.next() is None and pending.next() is None and len(answers[0]) == 1
    now[0] += 1
    last = pending.next()
    assert last is not None and last.seed == 0 and not pending
    answers[0] = [True]
    assert pending.settle(last, Outcome(fine(last), again=True)) is None and pending.next() is last
    record = pending.settle(last, Outcome(fine(last), again=True))
    assert record is not None and record.attempts == 2 and not pending


@pytest.mark.parametrize(
    "options, message",
    [
        ({"timeout": 0}, "engine.timeout must be a number above 0, or null for no limit, got 0"),
        ({"memory": "4GB"}, "engine.memory must be a number above 0, .* got '4GB'"),
        ({"retry_on": "OSError"}, r"engine.retry_on must be a list, as \[OSError\], got 'OSError'"),
        ({"retries": -1}, "engine.retries must be a whole number of at least 0, got -1"),
        ({"time_out": 3}, "'time_out' .did you mean 'timeout'"),
    ],
)
def test_bad_limits_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        engine.build("local", **options)
