"""Trackers: W&B offline, really written and read back with its own inspector; and nothing lost when it fails."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from mad import trackers
from mad.records import Store
from mad.trackers.wandb import mode


def publish(made: Store) -> None:
    trackers.build("wandb").publish(made.records(), made.sweep, made.folder)


def inspect(folder: Path, *options: str) -> str:
    script = Path(sys.executable).with_name("wandb")
    command = [str(script), "leet", "inspect", "--json", *options, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def written(folder: Path) -> dict[str, Path]:
    """Run folders by run id."""
    return {path.name.split("-", 3)[3]: path for path in (folder / "wandb").glob("offline-run-*")}


def test_a_sweep_is_replayed_offline_and_reads_back(make, store, tmp_path, capsys):
    ok, bad = make(0), make(1, "failed")
    publish(store(tmp_path / "out", ok, bad))
    said = capsys.readouterr()
    assert f"wandb sync {tmp_path / 'out' / 'wandb'}/offline-run-*" in said.out
    assert len(said.out.splitlines()) == 2 and said.err == ""  # W&B itself is silent

    found = written(tmp_path / "out")
    board = next(path for name, path in found.items() if name.startswith("leaderboard-"))
    assert set(found) == {ok.run_id, bad.run_id, board.name.split("-", 3)[3]}

    summary = json.loads(inspect(found[ok.run_id], "--summary"))
    assert (summary["project"], summary["run_id"], summary["state"]) == ("mad", ok.run_id, "finished")
    assert summary["tags"] == [ok.config["arch"]["name"][:64], "mqar"]
    assert summary["config"]["task"] == {"name": "mqar", "vocab_size": 64} and summary["config"]["optim"]["lr"] == 5e-4
    assert (summary["summary"]["accuracy"], summary["summary"]["params"]) == (0.5, 1000)
    records = [json.loads(line) for line in inspect(found[ok.run_id]).splitlines()]
    assert next(r["run"] for r in records if r["type"] == "run")["run_group"] == "my sweep"
    history = [r["history"]["item"] for r in records if r["type"] == "history"]
    assert [{key: item[key] for key in ok.curve[0]} for item in history] == ok.curve
    metrics = [r["metric"] for r in records if r["type"] == "metric"]
    assert any(metric.get("glob_name") == "*" and metric.get("step_metric") == "step" for metric in metrics)

    failure = json.loads(inspect(found[bad.run_id], "--summary"))
    assert failure["state"] == "failed" and failure["summary"]["error"] == "ValueError: no"

    records = [json.loads(line) for line in inspect(board).splitlines()]
    run = next(r["run"] for r in records if r["type"] == "run")
    assert run["job_type"] == "leaderboard" and run["run_group"] == "my sweep" and "tags" not in run
    artifacts = {r["artifact"]["name"]: r["artifact"] for r in records if r["type"] == "artifact"}
    files = {entry["path"]: entry["local_path"] for entry in artifacts["my-sweep-results"]["manifest"]["contents"]}
    assert set(files) == {"leaderboard.csv", "leaderboard.md", "results.csv"}
    assert "ValueError: no" in Path(files["results.csv"]).read_text()
    tables = list(board.glob("files/media/table/*.json"))
    table = json.loads(tables[0].read_text())
    assert table["data"][0][table["columns"].index("mean")] == 0.5
    assert all(str(tmp_path / "out") in r for r in [*files.values()])
    assert not (tmp_path / "home/.local/share/wandb").exists()


def test_only_what_is_new_is_replayed(make, store, tmp_path, capsys):
    made = store(tmp_path, make(0), make(1, "failed"))
    publish(made)
    first = written(tmp_path)
    capsys.readouterr()
    publish(made)
    assert written(tmp_path) == first and capsys.readouterr().out == ""
    for path in (tmp_path / "wandb").glob("offline-run-*"):
        path.rename(path.with_name("earlier-" + path.name))
    made.write(make(1, "ok"))  # retried
    publish(made)
    later = written(tmp_path)
    assert make(1).run_id in later and make(0).run_id not in later
    assert len(later) == 2 and set(later) <= set(first)  # the same ids: an upload updates


def test_project_and_entity_are_the_users(make, store, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_ENTITY", "them")
    publish(store(tmp_path, make(0)))
    summary = json.loads(inspect(written(tmp_path)[make(0).run_id], "--summary"))
    assert (summary["project"], summary["entity"]) == ("theirs", "them")


def test_no_key_no_network(tmp_path, monkeypatch):
    assert mode() == "offline"
    for host in ("api.wandb.ai", "api.forge.coreweave.com"):  # where `wandb login` of the last versions puts it
        (tmp_path / "netrc").write_text(f"machine {host} login user password secret\n")
        assert mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert mode() == "offline"


def test_disabled_means_nothing_is_written(make, store, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    publish(store(tmp_path, make(0)))
    assert not (tmp_path / "wandb").exists() and capsys.readouterr().out == ""


def test_trouble_with_wandb_is_a_warning_and_the_rest_is_published_later(make, store, tmp_path, monkeypatch, caplog):
    import wandb

    made, real = store(tmp_path, make(0), make(1)), wandb.init

    def breaking(**options):
        if options["id"] == make(1).run_id:
            raise ConnectionError("no route to host")
        return real(**options)

    monkeypatch.setattr(wandb, "init", breaking)
    with caplog.at_level(logging.WARNING):
        publish(made)
    assert "no route to host" in caplog.text and "complete" in caplog.text
    before = set(written(tmp_path))
    monkeypatch.setattr(wandb, "init", real)
    publish(made)
    after = set(written(tmp_path))
    assert {make(0).run_id, make(1).run_id} < after and len(after) == 3 and before <= after


def test_a_folder_that_is_only_read_is_said_to_be(make, store, tmp_path, caplog):
    made = store(tmp_path, make(0))
    (tmp_path / "wandb").write_text("a file where W&B's folder should be")
    publish(made)
    assert f"{tmp_path}/wandb cannot be written to (" in caplog.text and "are complete" in caplog.text
    assert f"copy {tmp_path} to a folder of your own" in caplog.text and "the same command" not in caplog.text


def test_without_wandb_installed_there_is_a_warning(make, store, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    publish(store(tmp_path, make(0)))
    assert "wandb" in caplog.text and not (tmp_path / "wandb").exists()


def test_none_is_silent(make, store, tmp_path, capsys):
    made = store(tmp_path, make(0))
    before = sorted(tmp_path.rglob("*"))
    trackers.build("none").publish(made.records(), made.sweep, made.folder)
    assert sorted(tmp_path.rglob("*")) == before and capsys.readouterr() == ("", "")


def test_an_unknown_tracker_is_named():
    with pytest.raises(ValueError, match="unknown tracker 'wandbb' .did you mean 'wandb'.*none, trackio, wandb"):
        trackers.build("wandbb")
