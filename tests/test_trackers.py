"""Trackers: W&B offline, really written and read back with its own inspector; and nothing lost when it fails."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mad import trackers
from mad.config import Run
from mad.records import Record, Store
from mad.trackers.wandb import mode

ARCH = {"name": "striped_hyena_with_a_name_of_more_than_sixty_four_characters_in_all", "stack": ["hyena", "attention"]}
CURVE = [{"step": 10, "loss": 2.0, "accuracy": 0.25}, {"step": 20, "loss": 1.0, "accuracy": 0.5}]


def make(seed: int, status: str = "ok", accuracy: float = 0.5) -> Record:
    run = Run.of({"task": {"name": "mqar", "vocab_size": 64}, "arch": ARCH, "seed": seed})
    failed: dict[str, Any] = {"error": "Traceback\nValueError: no"} if status == "failed" else {"curve": CURVE}
    cost = {"params": 1000, "flops": 2000, "state_size": 64}
    return Record(run.id, status, run.to_dict(), {"accuracy": accuracy}, cost=cost, steps=20, device="cpu", **failed)


def store(folder: Path, *records: Record) -> Store:
    made = Store(folder, "my sweep")
    for record in records:
        made.write(record)
    return made


def publish(made: Store) -> None:
    trackers.build("wandb").publish(made.records(), made.sweep, made.folder)


def inspect(folder: Path, *options: str) -> str:
    script = Path(sys.executable).with_name("wandb")
    command = [str(script), "leet", "inspect", "--json", *options, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def written(folder: Path) -> dict[str, Path]:
    """Run folders by run id."""
    return {path.name.split("-", 3)[3]: path for path in (folder / "wandb").glob("offline-run-*")}


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch, tmp_path):
    for name in ("API_KEY", "IDENTITY_TOKEN_FILE", "MODE", "PROJECT", "ENTITY", "BASE_URL", "DATA_DIR"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_a_sweep_is_replayed_offline_and_reads_back(tmp_path, capsys):
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
    assert summary["tags"] == [ARCH["name"][:64], "mqar"]
    assert summary["config"]["task"] == {"name": "mqar", "vocab_size": 64} and summary["config"]["optim"]["lr"] == 5e-4
    assert (summary["summary"]["accuracy"], summary["summary"]["params"]) == (0.5, 1000)
    records = [json.loads(line) for line in inspect(found[ok.run_id]).splitlines()]
    assert next(r["run"] for r in records if r["type"] == "run")["run_group"] == "my sweep"
    history = [r["history"]["item"] for r in records if r["type"] == "history"]
    assert [{key: item[key] for key in CURVE[0]} for item in history] == CURVE
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


def test_only_what_is_new_is_replayed(tmp_path, capsys):
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
    assert len(later) == 2 and not set(later) <= set(first)  # the leaderboard is another


def test_project_and_entity_are_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_ENTITY", "them")
    publish(store(tmp_path, make(0)))
    summary = json.loads(inspect(written(tmp_path)[make(0).run_id], "--summary"))
    assert (summary["project"], summary["entity"]) == ("theirs", "them")


def test_no_key_no_network(tmp_path, monkeypatch):
    assert mode() == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert mode() == "offline"


def test_disabled_means_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    publish(store(tmp_path, make(0)))
    assert not (tmp_path / "wandb").exists() and capsys.readouterr().out == ""


def test_trouble_with_wandb_is_a_warning_and_the_rest_is_published_later(tmp_path, monkeypatch, caplog):
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


def test_without_wandb_installed_there_is_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    publish(store(tmp_path, make(0)))
    assert "wandb" in caplog.text and not (tmp_path / "wandb").exists()


def test_none_is_silent(tmp_path, capsys):
    made = store(tmp_path, make(0))
    before = sorted(tmp_path.rglob("*"))
    trackers.build("none").publish(made.records(), made.sweep, made.folder)
    assert sorted(tmp_path.rglob("*")) == before and capsys.readouterr() == ("", "")


def test_an_unknown_tracker_is_named():
    with pytest.raises(ValueError, match="unknown tracker 'wandbb' .did you mean 'wandb'.*none, wandb"):
        trackers.build("wandbb")
