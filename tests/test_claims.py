"""Claims: one of several wins, a dead owner's are taken over, and no clock but the observer's own is asked."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mad.records import Claims

GONE = """
import sys
from mad.records import Claims
assert Claims(sys.argv[1]).take("run")
"""
ROOT = Path(__file__).parents[1]


def left_by_a_dead_process(folder):
    """A claim whose owner has ended without giving it back."""
    subprocess.run([sys.executable, "-c", GONE, str(folder)], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def elsewhere(folder, run_id="run", **changes):
    """A claim of a process on another machine."""
    claims = Claims(folder)
    assert claims.take(run_id)
    path = next(claims.folder.glob(f"{run_id}.*"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": "another", "host": "node7"} | changes))
    return path


def test_one_has_it_until_it_is_given_back(tmp_path):
    one, other = Claims(tmp_path), Claims(tmp_path)
    assert one.take("a") and one.take("a") and not other.take("a") and other.take("b")
    one.release("a")
    assert other.take("a") and not one.take("a")
    one.release("a")  # not ours: nothing happens
    assert not Claims(tmp_path).take("a")


def take_all(folder, start, won):
    claims = Claims(folder)
    start.wait()
    won.extend(run for run in map(str, range(60)) if claims.take(run))


@pytest.mark.parametrize("stale", [False, True], ids=["free", "stale"])
def test_of_many_that_try_one_wins(tmp_path, stale):
    for run in range(60 if stale else 0):
        elsewhere(tmp_path, str(run), machine=here(tmp_path), born="never")
    start, won = threading.Event(), [[] for _ in range(8)]
    threads = [threading.Thread(target=take_all, args=(tmp_path, start, mine)) for mine in won]
    for thread in threads:
        thread.start()
    start.set()
    for thread in threads:
        thread.join()
    assert sorted(int(run) for mine in won for run in mine) == list(range(60))


def here(folder):
    """What this machine is called in a claim."""
    claims = Claims(folder)
    claims.take("probe")
    machine = json.loads(next(claims.folder.glob("probe.*")).read_text())["machine"]
    claims.release("probe")
    return machine


def test_a_dead_owner_is_seen_at_once(tmp_path):
    left_by_a_dead_process(tmp_path)
    claims = Claims(tmp_path)
    (left,) = claims.all()
    assert claims.dead(left) and left.pid != os.getpid()
    assert claims.take("run")
    assert [claim.generation for claim in claims.all()] == [2]
    claims.release("run")
    assert not list(claims.folder.iterdir())  # the dead one's is gone, too


def test_what_was_left_beside_a_result_is_cleared(tmp_path):
    """An owner killed between writing the record and giving the claim back; no one takes such a run over."""
    left_by_a_dead_process(tmp_path)
    elsewhere(tmp_path, "far"), elsewhere(tmp_path, "far2")
    claims = Claims(tmp_path)
    claims.clear(lambda run_id: False)
    assert len(claims.all()) == 3  # without a result they are for others to take over
    claims.clear(lambda run_id: run_id != "far2")
    assert [claim.run_id for claim in claims.all()] == ["far2"]


def test_a_folder_that_cannot_be_read_is_not_cleared(tmp_path, monkeypatch):
    claims = Claims(tmp_path)
    assert claims.take("run")

    def gone(path):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(os, "scandir", gone)
    claims.clear(lambda run_id: True)
    monkeypatch.undo()
    assert len(claims.all()) == 1


def test_a_number_that_was_used_again_is_another_process(tmp_path):
    elsewhere(tmp_path, machine=here(tmp_path), born="1")  # our own number, but born at another time
    assert Claims(tmp_path).take("run")


def test_silence_is_measured_by_the_observer_alone(tmp_path):
    now = [1000.0]
    path = elsewhere(tmp_path, since=4e12)  # a clock far ahead
    claims = Claims(tmp_path, stale=60, clock=lambda: now[0])
    assert not claims.take("run")
    os.utime(path, (1, 1))  # a disk whose clock is far behind: a sign of life all the same
    now[0] += 59
    assert not claims.take("run")
    now[0] += 59
    assert not claims.take("run")  # 59 s since the last sign
    now[0] += 2
    assert claims.take("run")


def test_an_owner_that_lives_is_heard(tmp_path):
    with Claims(tmp_path, heartbeat=0.05) as claims:
        claims.take("run")
        path = next(claims.folder.glob("run.*"))
        os.utime(path, (1, 1))
        for _ in range(100):
            if path.stat().st_mtime > 2:
                break
            time.sleep(0.05)
        assert path.stat().st_mtime > 2
    assert not list(claims.folder.iterdir())  # leaving gives back


def test_a_claim_that_cannot_be_read_is_somebodys(tmp_path):
    now = [0.0]
    claims = Claims(tmp_path, clock=lambda: now[0])
    claims.folder.mkdir()
    (claims.folder / "run.1").write_text("")  # made, not yet written
    assert not claims.take("run") and claims.all()[0].pid is None
    now[0] = 61
    assert claims.take("run")


def test_no_space_leaves_no_claim(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    from mad.records import claims as module

    claims = Claims(tmp_path)
    monkeypatch.setattr(module, "dumps", full)
    with pytest.raises(OSError, match="No space left"):
        claims.take("run")
    assert not list(claims.folder.iterdir())


def test_another_process_sees_what_this_one_holds(tmp_path):
    Claims(tmp_path).take("run")
    child = multiprocessing.get_context("spawn").Process(target=_try, args=(str(tmp_path),))
    child.start()
    child.join()
    assert child.exitcode == 3


def _try(folder):
    os._exit(4 if Claims(folder).take("run") else 3)
