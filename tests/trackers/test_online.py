"""W&B online, by its real client against a server of our own: what gets there, twice, and without a network."""

import json
import logging
import subprocess
import sys
import time

import pytest

from mad import trackers
from mad.publish import main
from mad.trackers import workspace

BOARD = "leaderboard-my-sweep"


def test_a_folder_is_published_and_publishing_again_updates(tmp_path, make, store, server, capsys):
    ok, bad = make(0), make(1, "failed")
    made = store(tmp_path / "out", ok, bad)
    assert main([str(made.folder), "--to", "wandb"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == ["W&B: publishing 2 runs and the leaderboard (online)"] and said.err == ""
    assert set(server.runs) == {ok.run_id, bad.run_id, BOARD}
    run = server.runs[ok.run_id]
    assert run["complete"] and run["exit"] == 0 and run["group"] == "my sweep"
    assert [{key: line[key] for key in ok.curve[0]} for line in run["history"]] == ok.curve
    assert (run["summary"]["params"], run["config"]["optim"]["lr"]) == (1000, 5e-4)
    assert server.runs[bad.run_id]["exit"] == 1 and server.runs[bad.run_id]["summary"]["error"] == "ValueError: no"
    assert b"ValueError: no" in server.files["my-sweep-results/results.csv"]
    assert any(name.startswith(f"{BOARD}/media/table/") for name in server.files)

    asked = len(server.asked)
    assert main([str(made.folder)]) == 0
    assert len(server.asked) == asked and "W&B: nothing is new, 2 runs" in capsys.readouterr().out  # remembered
    (made.folder / "wandb/published.json").unlink()
    made.write(make(1))  # retried
    assert main([str(made.folder)]) == 0
    assert set(server.runs) == {ok.run_id, bad.run_id, BOARD}
    assert len(server.runs[ok.run_id]["history"]) == len(ok.curve)  # not there twice
    assert server.runs[bad.run_id]["exit"] == 0 and server.runs[bad.run_id]["summary"]["accuracy"] == 0.5


@pytest.mark.parametrize("trouble", ["drop", "refuse"])
def test_trouble_in_mid_publish_is_a_warning_and_the_rest_follows(
    trouble, tmp_path, make, store, server, monkeypatch, caplog
):
    records = [make(seed) for seed in range(3)]
    made = store(tmp_path, *records)
    first, second, third = (record.run_id for record in made.records())
    server.trouble_at = (second, trouble)
    began = time.monotonic()
    assert main([str(tmp_path)]) == 1
    assert time.monotonic() - began < 20
    [warning] = [record.getMessage() for record in caplog.records if record.name.startswith("mad.")]
    assert "are complete; the same command publishes the rest" in warning
    assert server.runs[first]["complete"] and not server.runs[second]["complete"] and third not in server.runs
    assert [record.run_id for record in made.records()] == [first, second, third]

    server.trouble = server.trouble_at = None
    asked = len(server.runs[first]["history"])
    assert main([str(tmp_path)]) == 0
    assert set(server.runs) == {first, second, third, BOARD} and all(run["complete"] for run in server.runs.values())
    assert all(len(server.runs[name]["history"]) == asked for name in (first, second, third))


def test_a_key_that_is_refused_is_said_at_once(tmp_path, make, store, server, caplog):
    server.trouble = "refuse"
    made = store(tmp_path, make(0))
    began = time.monotonic()
    assert not trackers.build("wandb").publish(made.records(), made.sweep, made.folder)
    assert time.monotonic() - began < 10
    assert "is the API key for 127.0.0.1" in caplog.text and "wandb login --relogin" in caplog.text


def test_an_artifact_that_is_refused_is_not_taken_for_published(tmp_path, make, store, server, caplog):
    server.trouble = "quota"
    folder = str(store(tmp_path, make(0)).folder)
    assert main([folder]) == 1 and "storage quota exceeded" in caplog.text
    server.trouble = None
    assert main([folder]) == 0 and "my-sweep-results/leaderboard.md" in server.files


def test_no_server_at_all(tmp_path, make, store, server, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # discard: nobody listens
    with caplog.at_level(logging.WARNING, "mad"):
        assert main([str(store(tmp_path, make(0)).folder)]) == 1
    assert "refused" in caplog.text and "complete" in caplog.text


def test_what_was_written_offline_is_published_after_a_login(tmp_path, make, store, server, monkeypatch, capsys):
    folder = str(store(tmp_path, make(0)).folder)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main([folder]) == 0 and server.asked == []
    capsys.readouterr()
    for again in ([folder, "--dry-run"], [folder]):
        assert main(again) == 0
        assert (
            capsys.readouterr().out == "W&B: nothing is new, 1 runs and the leaderboard are published, to offline mad\n"
        )
    monkeypatch.delenv("WANDB_MODE")
    assert main([folder, "--dry-run"]) == 0
    assert "1 of 1 runs and the leaderboard would be published, to 127.0.0.1" in capsys.readouterr().out
    assert main([folder]) == 0 and make(0).run_id in server.runs


def test_a_view_is_saved_once(tmp_path, make, store, server, capsys):
    pytest.importorskip("wandb_workspaces", reason="the extra 'workspaces' is not installed", exc_type=ImportError)
    folder = str(store(tmp_path, make(0)).folder)
    for _ in range(2):
        assert main([folder, "--workspace"]) == 0
        assert "W&B: the view of my sweep: http" in capsys.readouterr().out
    [view] = server.views
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("them", "mad", "mad my sweep by accuracy")
    server.trouble = "refuse"
    (tmp_path / "wandb/published.json").write_text((tmp_path / "wandb/published.json").read_text().replace("view", "w"))
    assert main([folder, "--workspace"]) == 1
    assert "no view was saved" in capsys.readouterr().err


def test_a_view_sorts_by_the_score_and_groups_by_architecture():
    pytest.importorskip("wandb_workspaces", reason="the extra 'workspaces' is not installed", exc_type=ImportError)
    spec = json.loads(
        workspace.build("them", "mad", "my sweep", "accuracy")
        ._to_model()
        .spec.model_dump_json(by_alias=True, exclude_none=True)
    )["section"]
    [runs] = spec["runSets"]
    assert runs["grouping"] == [{"section": "config", "name": "arch.value.name"}]
    assert runs["sort"]["keys"] == [{"key": {"section": "summary", "name": "accuracy"}, "ascending": False}]
    assert runs["filters"]["filters"][0]["value"] == "my sweep"
    panels = [panel["config"] for section in spec["panelBankConfig"]["sections"] for panel in section["panels"]]
    assert {"accuracy", "train_loss"} <= {name for panel in panels for name in panel.get("metrics", [])}
    assert "summary:state_size" in {panel["xAxis"] for panel in panels}


def test_a_view_needs_a_login_and_a_package(tmp_path, make, store, server, monkeypatch, capsys):
    folder = str(store(tmp_path, make(0)).folder)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main([folder, "--workspace"]) == 1
    assert "needs W&B online" in capsys.readouterr().err
    monkeypatch.delenv("WANDB_MODE")
    for name in ("wandb_workspaces", "wandb_workspaces.workspaces", "wandb_workspaces.reports.v2"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main([folder, "--workspace"]) == 1
    assert "pip install 'mad[workspaces]'" in capsys.readouterr().err and server.views == []


def test_mistakes_in_the_command(tmp_path, make, store, capsys):
    folder = str(store(tmp_path / "there", make(0)).folder)
    for arguments, said in (
        ([str(tmp_path / "nowhere")], "no results folder with records"),
        ([folder, "--to", "wandbb"], "did you mean 'wandb'"),
        ([folder, "--to", "none", "--workspace"], "only wandb has saved views"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("mad.publish: ") and said in error and len(error.splitlines()) == 1
    done = subprocess.run([sys.executable, "-m", "mad.publish", "--help"], capture_output=True, text=True, check=True)
    assert "--dry-run" in done.stdout
