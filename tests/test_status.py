"""`python -m mad.status`: done, running, failed, left, by the folder alone."""

import json
import os
import time

import pytest

from mad import engine, leaderboard, status
from mad.config import Run
from mad.records import Claims, Record, Store


def runs(number):
    arch = {"name": "striped", "stack": ["hyena"]}
    return [Run.of({"task": "mqar", "arch": arch, "seed": seed, "device": "cpu"}) for seed in range(number)]


def work(run, on_progress=None):
    if run.seed == 1:
        raise ValueError("no good")
    if run.seed == 4:
        raise KeyboardInterrupt
    return Record(run.id, "diverged" if run.seed == 2 else "ok", run.to_dict(), seconds=30.0)


@pytest.fixture
def folder(tmp_path):
    """Of eight runs three have a result, one has failed, one runs here, one elsewhere, and one has lost its process."""
    with pytest.raises(KeyboardInterrupt):
        engine.execute(runs(8), Store(tmp_path, "mine"), engine.build("inline", work))
    claims = Claims(tmp_path)
    for run in runs(8)[4:7]:
        claims.take(run.id)
    _change(claims, runs(8)[5], host="node7", machine="another", pid=99, since=time.time() - 3700)
    os.utime(next(claims.folder.glob(f"{runs(8)[5].id}.*")), (time.time() - 200,) * 2)
    _change(claims, runs(8)[6], born="long ago")
    return tmp_path


def _change(claims, run, **fields):
    path = next(claims.folder.glob(f"{run.id}.*"))
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_it_says_all_of_it(folder, capsys):
    assert status.main([str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "mine: 8 runs: 2 ok, 1 diverged, 1 failed, 2 running, 2 left; about 1:15 min to go" in shown
    lines = {line.split("│")[2].strip(): line for line in shown.splitlines() if line.count("│") == 6}
    assert "1:01 h" in lines["node7"] and "no sign of life for 3:2" in lines["node7"] and "99" in lines["node7"]
    assert shown.count("gone: taken over by the next process") == 1
    assert "exception" in shown and "ValueError: no good" in shown and "striped · mqar · lr 0.0005 · seed 1" in shown


def test_counts_by_the_folder(folder):
    found = status.read(str(folder))
    assert (len(found.planned), len(found.records), len(found.running), len(found.lost)) == (8, 4, 2, 1)
    assert found.left == 5 and found.seconds_left == 75


def test_a_failed_run_that_is_tried_again_is_not_taken_for_one_of_those_left(folder, capsys):
    Claims(folder).take(runs(8)[1].id)
    assert status.main([str(folder)]) == 0
    assert "2 ok, 1 diverged, 1 failed, 3 running, 2 left" in capsys.readouterr().out


def test_a_finished_sweep(tmp_path, capsys):
    engine.execute(runs(1), Store(tmp_path, "mine"), engine.build("inline", work))
    assert status.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == "mine: 1 runs: 1 ok\n"


def test_texts_of_runs_are_no_markup_and_configurations_of_any_mad_are_shown(tmp_path, capsys):
    config = runs(1)[0].to_dict() | {"later": 1}
    error = "ValueError: no [hyena] in [/tmp/x]"
    Store(tmp_path, "a[b]").write(Record("0123456789abcdef", "failed", config, error=error))
    assert status.main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert error in shown and "0123456789abcdef" in shown and shown.startswith("a[b]: 1 runs: 1 failed")


def test_no_results_folder(tmp_path, capsys):
    assert status.main([str(tmp_path / "nothing")]) == 2
    assert "nothing is no results folder: it has neither store.json nor" in capsys.readouterr().err


def test_records_alone_are_a_results_folder(tmp_path, capsys):
    engine.execute(runs(1), Store(tmp_path / "a", "mine"), engine.build("inline", work))
    (tmp_path / "merged").mkdir()
    (tmp_path / "a/runs").rename(tmp_path / "merged/runs")
    assert status.main([str(tmp_path / "merged")]) == 0
    assert capsys.readouterr().out == "merged: 1 runs: 1 ok\n"
    assert len(leaderboard.read([tmp_path / "merged"])) == 1


def test_one_file_carries_a_sweep_to_the_next_machine(folder, tmp_path_factory, capsys):
    assert status.main([str(folder), "--pack"]) == 0
    assert f"{folder}/records.jsonl.gz: " in capsys.readouterr().out
    there = tmp_path_factory.mktemp("there")
    (there / "records.jsonl.gz").write_bytes((folder / "records.jsonl.gz").read_bytes())
    assert status.main([str(there)]) == 0
    assert "4 runs: 2 ok, 1 diverged, 1 failed" in capsys.readouterr().out
    assert len(leaderboard.read([there])) == 4
    did = []

    def noting(run, on_progress=None):
        did.append(run.seed)
        return Record(run.id, "ok", run.to_dict())

    summary = engine.execute(runs(4), Store(there, "mine"), engine.build("inline", noting))
    assert did == [1] and summary.there == 3  # the failed one is tried again, the others have a result
    assert {r.status for r in Store(there).records()} == {"ok", "diverged"}
    assert len(list((there / "runs").glob("*.json"))) == 1 and "ok" in (there / "results.csv").read_text()
