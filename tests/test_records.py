"""Records and their store: round trips, atomic files, damaged files, other versions."""

import gzip
import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mad.config import Run
from mad.records import SCHEMA, Record, Store, dumps, loads, read_csv, save, table, write_csv


def make(seed: int = 0, status: str = "ok", **fields: Any) -> Record:
    """A record with every kind of field filled."""
    run = Run.of(
        {
            "task": {"name": "mqar", "vocab_size": 64, "segments": [[64, 4, 100]]},
            "arch": {"name": "striped", "stack": ["hyena", "swiglu"]},
            "optim": {"lr": 1e-3},
            "seed": seed,
        }
    )
    defaults: dict[str, Any] = {
        "metrics": {"accuracy": 0.1 + 0.2, "loss": 1e-300},
        "curve": [{"step": 10, "train_loss": 2.5, "accuracy": 0.25}],
        "cost": {"params": 1000, "flops": 2000, "state_size": 64},
        "steps": 10,
        "seconds": 1.5,
        "started": "2026-01-01T00:00:00+00:00",
        "device": "cpu",
        "git_commit": "abc",
        "versions": {"mad": "0.1.0", "torch": "2.13.0"},
    }
    return Record(run_id=run.id, status=status, config=run.to_dict(), **(defaults | fields))


def test_a_record_survives_the_store(tmp_path):
    store, record = Store(tmp_path / "sweep"), make(sweep="mine", error="Traceback\nValueError: x")
    store.write(record)
    assert store.read(record.run_id) == record
    assert Store(tmp_path / "sweep").records() == [record]


@given(st.recursive(st.floats() | st.integers() | st.none() | st.booleans(), lambda v: st.lists(v), max_leaves=8))
def test_json_is_standard_and_keeps_every_float(value):
    text = dumps({"x": value})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    json.loads(text, parse_constant=refuse)
    assert repr(loads(text)["x"]) == repr(value)  # repr: nan equals itself, -0.0 differs from 0.0


def test_a_diverged_record_keeps_its_nan(tmp_path):
    store, record = Store(tmp_path), make(status="diverged", metrics={"loss": math.nan, "train_loss": math.inf})
    store.write(record)
    back = store.read(record.run_id)
    assert back is not None and math.isnan(back.metrics["loss"]) and back.metrics["train_loss"] == math.inf


def test_ok_and_diverged_are_done_and_failed_is_not(tmp_path):
    store = Store(tmp_path)
    for seed, status in enumerate(("ok", "diverged", "failed")):
        store.write(make(seed, status))
    assert [store.done(make(seed).run_id) for seed in range(4)] == [True, True, False, False]


def test_a_record_replaces_the_earlier_one_and_leaves_no_other_file(tmp_path):
    store = Store(tmp_path)
    store.write(make(status="failed"))
    store.write(make(status="ok"))
    assert [record.status for record in store.records()] == ["ok"]
    assert [path.name for path in store.runs.iterdir()] == [f"{make().run_id}.json"]


def test_a_write_that_is_interrupted_leaves_the_earlier_record(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.write(make(status="failed"))

    def interrupted(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.write(make(status="ok"))
    assert [record.status for record in store.records()] == ["failed"]
    assert len(list(store.runs.iterdir())) == 1


def test_nothing_is_made_before_the_first_record(tmp_path):
    store = Store(tmp_path / "new")
    assert store.records() == [] and not store.done("x")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "text",
    [
        '{"run_id": "x", "sta',
        "",
        "[]",
        b"\xff\xfe",
        '{"run_id": "RUN", "status": "ok"}',
        '{"run_id": "RUN", "status": "okay", "config": {}}',
        '{"run_id": "RUN", "status": "ok", "config": []}',
        '{"run_id": "another", "status": "ok", "config": {}}',
    ],
)
def test_a_corrupt_record_is_reported_set_aside_and_not_done(tmp_path, caplog, text):
    store, record = Store(tmp_path), make()
    store.write(make(seed=1))
    store.write(record)
    path = store.runs / f"{record.run_id}.json"
    path.write_bytes(text if isinstance(text, bytes) else text.replace("RUN", record.run_id).encode())
    with caplog.at_level(logging.WARNING):
        assert not store.done(record.run_id)
    assert path.name in caplog.text and "not done" in caplog.text
    assert [p.name for p in store.corrupt] == [f"{record.run_id}.json.corrupt"] and store.corrupt[0].exists()
    assert [r.run_id for r in store.records()] == [make(seed=1).run_id]
    store.write(record)
    assert store.done(record.run_id)


def test_a_store_of_another_schema_is_an_error_that_says_what_to_do(tmp_path):
    (tmp_path / "store.json").write_text('{"schema": 99, "sweep": "old"}')
    with pytest.raises(ValueError, match=rf"schema 99.* schema {SCHEMA};.*results_dir"):
        Store(tmp_path)


@pytest.mark.parametrize("more, message", [({"schema": 99}, "schema 99"), ({"joules": 1.0}, "the field 'joules'")])
def test_a_record_of_another_mad_is_an_error_and_stays(tmp_path, more, message):
    """Also where it only has more fields: set aside by an older mad that but looked, it would be trained again."""
    store, record = Store(tmp_path), make()
    store.write(record)
    path = store.runs / f"{record.run_id}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    for reading in (store.records, store.check, lambda: store.done(record.run_id)):
        with pytest.raises(ValueError, match=message):
            reading()
    assert path.exists() and not store.corrupt


@pytest.mark.parametrize("text", ["not json", "{}", "[]"])
def test_a_store_json_of_somebody_else_is_an_error(tmp_path, text):
    (tmp_path / "store.json").write_text(text)
    with pytest.raises(ValueError, match="store.json"):
        Store(tmp_path)


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        Store(tmp_path / "taken")


def test_the_sweeps_name_is_kept(tmp_path):
    assert Store(tmp_path / "folder").sweep == "folder"
    Store(tmp_path / "folder", "mine").write(make())
    assert Store(tmp_path / "folder").sweep == "mine"


def test_the_table_has_a_row_for_every_run_also_failed_and_diverged_ones(tmp_path):
    store = Store(tmp_path)
    store.write(make(0))
    store.write(make(1, "diverged", metrics={"loss": math.nan}))
    store.write(
        make(2, "failed", metrics={}, cost={}, error="Traceback (most recent call last):\n  x\nValueError: no\n")
    )
    table = store.table().set_index("seed")
    assert table["status"].to_dict() == {0: "ok", 1: "diverged", 2: "failed"}
    row = table.loc[0]
    assert (row["arch"], row["stack"], row["task"]) == ("striped", "hyena-swiglu", "mqar")
    assert (row["lr"], row["accuracy"], row["params"], row["state_size"]) == (1e-3, 0.1 + 0.2, 1000, 64)
    assert (row["task.vocab_size"], row["task.segments"], row["train.epochs"]) == (64, "[[64, 4, 100]]", 200)
    assert (row["arch.dim"], row["optim.schedule"], row["device"]) == (128, "cosine", "cpu")
    assert table.loc[2, "error"] == "ValueError: no"
    assert pd.isna(table.loc[1, "loss"]) and pd.isna(table.loc[2, "accuracy"])


def test_of_a_run_that_reports_another_evaluation_the_table_has_the_last_one_too():
    last, lowest = make(0), make(1)
    lowest.config["train"]["report"] = "lowest_perplexity"
    both = table([last, lowest])
    assert both["last_accuracy"].isna().tolist() == [True, False] and both["last_accuracy"][1] == 0.25
    assert "last_accuracy" not in table([last]) and "last_step" not in both


def test_results_csv_says_what_the_table_says(tmp_path):
    store = Store(tmp_path)
    for seed in range(3):
        store.write(make(seed, metrics={"accuracy": 1 / (seed + 3)}))
    other = make(5)
    other.config["task"] = {"name": "copying", "tokens_to_copy": 16}  # options of its own: others' are empty
    store.write(other)
    back = pd.read_csv(store.write_csv())
    pd.testing.assert_frame_equal(back, store.table(), check_dtype=False)
    assert list(back.columns).index("task.tokens_to_copy") < list(back.columns).index("lr")  # beside its like
    assert ",16," in (tmp_path / "results.csv").read_text()  # not 16.0 for want of a value elsewhere


@pytest.mark.parametrize("times", [1, 9])
def test_results_csv_has_what_another_process_wrote_meanwhile_or_is_known_to_be_older(tmp_path, monkeypatch, times):
    """The other has come to its end and written its own table, which this one's, of the records before, replaces."""
    store, other, seeds = Store(tmp_path), Store(tmp_path), list(range(1, times + 1))
    store.write(make(0))

    def slow(records, path):
        if seeds:
            other.write(make(seeds.pop()))
            write_csv(other.records(), path)
        write_csv(records, path)

    monkeypatch.setattr("mad.records.store.write_csv", slow)
    rows = len(pd.read_csv(store.write_csv()))
    assert store.csv_is_older() == (rows < len(store.records())) == (times > 1)


def test_results_csv_is_older_than_packed_records_that_were_brought(tmp_path):
    store = Store(tmp_path)
    store.write(make())
    store.write_csv()
    assert not store.csv_is_older()
    store.pack()
    assert store.csv_is_older()


def test_a_stack_with_options_is_json_and_without_a_name_is_the_row(tmp_path):
    record = make()
    record.config["arch"] = {"name": None, "stack": [{"name": "moe", "top_k": 1}]}
    store = Store(tmp_path)
    store.write(record)
    row = store.table().iloc[0]
    assert row["arch"] == row["stack"] == '[{"name": "moe", "top_k": 1}]'


def test_rows_do_not_depend_on_the_order_of_arrival(tmp_path):
    for folder, seeds in (("a", range(5)), ("b", reversed(range(5)))):
        for seed in seeds:
            Store(tmp_path / folder, "sweep").write(make(seed))
        Store(tmp_path / folder, "sweep").write_csv()
    assert (tmp_path / "a/results.csv").read_text() == (tmp_path / "b/results.csv").read_text()


def test_packed_records_are_records_and_a_runs_own_file_counts_before_them(tmp_path):
    store = Store(tmp_path / "a", "mine")
    for seed, status in enumerate(("ok", "diverged", "failed")):
        store.write(make(seed, status, metrics={"loss": math.nan} if status == "diverged" else {"accuracy": 0.1 + 0.2}))
    file = store.pack()
    bytes_of, before = file.read_bytes(), [repr(record) for record in store.records()]
    assert store.pack().read_bytes() == bytes_of  # nothing changed, and git sees no change

    (tmp_path / "b").mkdir()
    (tmp_path / "b" / file.name).write_bytes(bytes_of)
    other = Store(tmp_path / "b")
    assert other.exists() and [repr(record) for record in other.records()] == before
    assert [other.done(make(seed).run_id) for seed in range(4)] == [True, True, False, False]
    for seed in (2, 3):  # the failed one again, and a new one
        other.write(make(seed, "ok"))
    assert [other.done(make(seed).run_id) for seed in range(4)] == [True] * 4
    assert len(other.records()) == len(pd.read_csv(other.write_csv())) == 4
    other.pack()
    for path in other.runs.iterdir():
        path.unlink()
    assert sorted(record.status for record in other.records()) == ["diverged", "ok", "ok", "ok"]


def test_records_that_were_copied_without_the_rest_are_a_store(tmp_path):
    there = Store(tmp_path / "there")
    assert not there.exists()
    there.write(make())
    (tmp_path / "here").mkdir()
    there.runs.rename(tmp_path / "here/runs")
    assert Store(tmp_path / "here").exists() and len(Store(tmp_path / "here").records()) == 1
    (tmp_path / "other/runs").mkdir(parents=True)
    (tmp_path / "other/runs/settings.json").write_text("{}")  # of another program: not ours to set aside
    assert not Store(tmp_path / "other").exists()


def test_a_failed_file_does_not_hide_a_packed_result(tmp_path):
    there = Store(tmp_path / "there")
    there.write(make(status="ok"))
    there.pack()
    here = Store(tmp_path / "here")
    here.write(make(status="failed"))
    here.packed.write_bytes(there.packed.read_bytes())
    (run_id,) = {r.run_id for r in here.records()}
    assert here.done(run_id) and here.read(run_id).status == "ok"
    here.pack()
    assert Store(tmp_path / "here").read(run_id).status == "ok"


def test_a_damaged_own_file_falls_back_to_the_packed_record(tmp_path):
    store = Store(tmp_path)
    store.write(make())
    store.pack()
    (store.runs / f"{make().run_id}.json").write_text("{")
    assert store.done(make().run_id) and len(store.corrupt) == 1


def test_a_damaged_packed_file_is_an_error_and_stays(tmp_path):
    store = Store(tmp_path)
    store.write(make())
    whole = store.pack().read_bytes()
    broken = (whole[:-20], b"no gzip", gzip.compress(b"[]\n"), gzip.compress(b'{"run_id": "x"}\n'))
    for content in broken:
        store.packed.write_bytes(content)
        with pytest.raises(ValueError, match="records.jsonl.gz cannot be read.*bring back a whole one"):
            Store(tmp_path).records()
        assert store.packed.read_bytes() == content
    store.packed.write_bytes(gzip.compress(json.dumps({"run_id": "x", "schema": 99}).encode()))
    with pytest.raises(ValueError, match="schema 99"):
        Store(tmp_path).records()


def test_a_packed_record_of_a_later_mad_is_no_damage(tmp_path):
    """Moved away and trained again, as the advice for damage is, it would be lost to the mad that can read it."""
    later = vars(make()) | {"joules": 1.0}
    Store(tmp_path).packed.write_bytes(gzip.compress(json.dumps(later).encode()))
    for reading in (Store(tmp_path).records, Store(tmp_path).check, Store(tmp_path).pack):
        with pytest.raises(ValueError, match="has the field 'joules'.*a later mad wrote it; use that one"):
            reading()


def test_a_named_file_keeps_its_old_text_where_the_new_does_not_fit(tmp_path, monkeypatch, capfd):
    (tmp_path / "board.md").write_text("old")
    (tmp_path / "link.md").symlink_to("board.md")
    save(tmp_path / "link.md", "new")
    assert (tmp_path / "board.md").read_text() == "new" and (tmp_path / "link.md").is_symlink()

    def full(path, content):
        os.truncate(path, 0) if path.exists() else path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError):
        save(tmp_path / "board.md", "newer")
    assert (tmp_path / "board.md").read_text() == "new" and len(list(tmp_path.iterdir())) == 2
    save("/dev/stdout", "shown")
    assert capfd.readouterr().out == "shown"


def test_a_comma_behind_every_row_shifts_nothing(tmp_path):
    file = tmp_path / "runs.csv"
    file.write_text("arch,task,accuracy\nhyena,mqar,0.5,\nattention,mqar,0.9,\n")
    found = read_csv(file, {"arch", "task"}.__contains__)
    assert found.to_dict("list") == {"arch": ["hyena", "attention"], "task": ["mqar"] * 2, "accuracy": [0.5, 0.9]}
    file.write_text("arch,task,accuracy\nhyena,mqar,0.5,x\n")
    with pytest.raises(ValueError, match=r"3 names in its first row, but row 1 has 4 cells: \['x'\]"):
        read_csv(file, {"arch", "task"}.__contains__)


def test_other_programs_files_beside_the_records_are_left_alone(tmp_path):
    store = Store(tmp_path, "mine")
    store.write(make())
    others = [
        tmp_path / "runs" / name for name in ("notes.json", f"{make().run_id} (copy).json", "._0123456789abcdef.json")
    ]
    for other in others:
        other.write_text('{"note": "mine"}')
    assert len(store.records()) == 1 and all(other.exists() for other in others)


def test_packed_files_may_be_put_together(tmp_path):
    """A result counts, wherever the failure of the same run stands."""
    failed, done = (make(status=status) for status in ("failed", "ok"))
    for order in ([failed, done], [done, failed]):
        packs = []
        for number, record in enumerate(order):
            store = Store(tmp_path / f"{order[0].status}{number}", "mine")
            store.write(record)
            packs.append(store.pack().read_bytes())
        whole = tmp_path / f"{order[0].status}-whole"
        whole.mkdir()
        (whole / "records.jsonl.gz").write_bytes(gzip.compress(b"\n").join(packs))
        assert [record.status for record in Store(whole).records()] == ["ok"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"error": 3}, "'error' must be a text or null, got 3"),
        ({"failure": 3}, "'failure' must be a text or null, got 3"),
        ({"config": {"arch": "hyena"}}, "config arch must be a dict, got 'hyena'"),
        ({"config": {"task": None}}, "config task must be a dict, got None"),
        ({"curve": [{"step": 1}, 2]}, "curve point must be a dict, got 2"),
    ],
)
def test_a_record_with_a_field_of_another_kind(change, message):
    with pytest.raises(ValueError, match=message):
        Record.from_dict(vars(make()) | change)


def test_half_a_character_in_an_error_spoils_no_table(tmp_path):
    write_csv([make(status="failed", error="no file 'a\udce4.txt'")], tmp_path / "results.csv")
    assert "a\\udce4.txt" in (tmp_path / "results.csv").read_text()
