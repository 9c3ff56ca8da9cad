"""trackio: a real local project, written in a process of its own and read back with trackio's own commands."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from mad import trackers

installed = pytest.mark.skipif(
    importlib.util.find_spec("trackio") is None, reason="the extra 'trackio' is not installed"
)
COMMAND = str(Path(sys.executable).with_name("trackio"))


@pytest.fixture
def environment(tmp_path):
    """Of a user who has trackio write somewhere else by default: we stay local."""
    elsewhere = {"TRACKIO_SPACE_ID": "them/space", "TRACKIO_BUCKET_ID": "them/bucket", "HF_TOKEN": "hf_secret"}
    return {**os.environ, **elsewhere, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HOME": str(tmp_path / "hf")}


@pytest.fixture
def publish(environment):
    def run(folder: Path, *options: str) -> str:
        command = [sys.executable, "-W", "error", "-m", "mad.publish", str(folder), "--to", "trackio", *options]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def ask(environment):
    def run(query: str) -> list[dict]:
        local = {
            key: value for key, value in environment.items() if key not in ("TRACKIO_SPACE_ID", "TRACKIO_BUCKET_ID")
        }
        command = [COMMAND, "query", "project", "--project", "mad", "--sql", query, "--json"]
        done = subprocess.run(command, env=local, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)["rows"]

    return run


def test_without_the_package_the_error_says_what_to_install_before_anything_is_trained(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ValueError, match=r"needs the package trackio: pip install 'mad\[trackio\]'"):
        trackers.build("trackio")


@installed
def test_a_folder_is_published_and_publishing_again_updates(tmp_path, make, store, publish, ask):
    ok, bad = make(0), make(1, "failed")
    made = store(tmp_path / "out", ok, bad)
    assert "2 of 2 runs and the leaderboard" in publish(made.folder, "--dry-run")
    said = publish(made.folder)
    assert said.splitlines()[-1] == "trackio: to see it in a browser: trackio show --project mad"
    runs = "SELECT DISTINCT run_id, run_name FROM metrics"
    assert {row["run_id"] for row in ask(runs)} == {ok.run_id, bad.run_id, "leaderboard-my-sweep"}
    rows = ask(f"SELECT step, metrics, timestamp FROM metrics WHERE run_id = '{ok.run_id}' ORDER BY step")
    shown = [json.loads(row["metrics"]) for row in rows]
    assert [(row["step"], point["loss"], point["accuracy"]) for row, point in zip(rows, shown, strict=True)] == [
        (point["step"], point["loss"], point["accuracy"]) for point in ok.curve
    ]
    assert (shown[-1]["final/accuracy"], shown[-1]["cost/params"]) == (0.5, 1000)
    [config] = ask(f"SELECT config FROM configs WHERE run_id = '{bad.run_id}'")
    config = json.loads(config["config"])
    assert (config["_Group"], config["status"], config["error"]) == ("my sweep", "failed", "ValueError: no")
    assert (config["arch.name"], config["optim.lr"]) == (bad.config["arch"]["name"], 5e-4)
    [board] = ask("SELECT metrics FROM metrics WHERE run_id = 'leaderboard-my-sweep'")
    assert json.loads(board["metrics"])["leaderboard"]["_value"][0]["mean"] == 0.5

    assert publish(made.folder).startswith("trackio: nothing is new, 2 runs and the leaderboard")  # remembered
    made.write(make(1))  # retried
    assert "publishing 1 runs" in publish(made.folder)
    (made.folder / "trackio/published.json").unlink()
    publish(made.folder)
    assert len(ask(runs)) == 3 and len(ask("SELECT id FROM metrics")) == len(ok.curve) * 2 + 1
    for file in (tmp_path / "trackio").glob("mad.db*"):
        file.unlink()  # as the dashboard deletes a project
    publish(made.folder)
    assert len(ask(runs)) == 3


@installed
def test_what_trackio_cannot_write_is_a_warning(tmp_path, make, store, environment):
    (tmp_path / "trackio").write_text("a file where its folder should be")
    folder = store(tmp_path / "out", make(0)).folder
    command = [sys.executable, "-m", "mad.publish", str(folder), "--to", "trackio"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "are complete; the same command publishes the rest" in done.stderr
    assert "Traceback" not in done.stderr


@installed
def test_storage_that_cannot_be_read_is_a_warning_too(tmp_path, make, store, environment):
    (tmp_path / "trackio").mkdir()
    (tmp_path / "trackio/mad.db").write_text("no database, whatever it is called")
    folder = store(tmp_path / "out", make(0)).folder
    for options, said in (([], "are complete; the same command"), (["--dry-run"], "what is published is not known")):
        command = [sys.executable, "-m", "mad.publish", str(folder), "--to", "trackio", *options]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


@installed
def test_where_nothing_can_be_remembered_all_is_published(tmp_path, make, store, environment, ask):
    """As in somebody else's folder, which is only read."""
    folder = store(tmp_path / "out", make(0), make(1)).folder
    (folder / "trackio").write_text("a file where the memory's folder should be")
    command = [sys.executable, "-m", "mad.publish", str(folder), "--to", "trackio"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and len(ask("SELECT DISTINCT run_id FROM metrics")) == 3
    assert done.stderr.count("is not remembered: publishing again sends it again") == 1
    assert f"{folder}/trackio/published.json: " in done.stderr and "Traceback" not in done.stderr


@installed
def test_the_dashboard_starts_and_its_files_are_local(tmp_path, make, store, publish, environment):
    publish(store(tmp_path / "out", make(0)).folder)
    environment = {**environment, "PYTHONUNBUFFERED": "1", "BROWSER": "true", "GRADIO_SERVER_PORT": "17860"}
    for key in ("TRACKIO_SPACE_ID", "TRACKIO_BUCKET_ID"):
        environment.pop(key)
    log = tmp_path / "show.log"
    with log.open("w") as out:
        shown = subprocess.Popen([COMMAND, "show", "--project", "mad"], env=environment, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())):
            assert shown.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        with urllib.request.urlopen(f"{found[0]}?project=mad", timeout=10) as page:
            text = page.read().decode()
            assert page.status == 200
        assert not re.search(r"(?:src|href)=\"(?:https?:)?//", text)
        scripts = re.findall(r'src="(/[^"]+\.js)"', text)
        for script in scripts:
            with urllib.request.urlopen(found[0] + script.lstrip("/"), timeout=10) as file:
                assert file.status == 200
        assert scripts
    finally:
        shown.send_signal(signal.SIGINT)
        shown.wait(timeout=20)
