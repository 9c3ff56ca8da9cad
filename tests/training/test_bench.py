"""The benchmarks of training: what they say on a CPU, and what a score card comes to."""

import csv

import pytest
import torch

from layers.attention import Attention
from mad.bench import lanes, profile, protocol, step


def test_lanes_are_measured_and_written(tmp_path, capsys):
    given = ["arch=attention", "--lengths", "16", "--seconds", "0.1", "--device", "cpu", "--csv"]
    lanes.main([*given, str(tmp_path / "lanes.csv")])
    (row,) = csv.DictReader((tmp_path / "lanes.csv").read_text().splitlines())
    assert (row["arch"], row["length"], row["mode"], row["lanes"]) == ("attention", "16", "eager", "1")
    assert float(row["tokens"]) == pytest.approx(
        128 * 15 * 1000 / float(row["step_ms"]), rel=1e-3
    )  # the last token is never read
    assert "ms a step" in capsys.readouterr().out


def test_what_does_not_fit_is_said_and_the_next_is_measured(monkeypatch, capsys):
    forward, failing = Attention.forward, [True]

    def full(self, x):
        if failing.pop() if failing else False:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x)

    monkeypatch.setattr(Attention, "forward", full)
    lanes.main(["arch=attention", "--lengths", "16", "32", "--seconds", "0.1", "--device", "cpu"])
    said = [line for line in capsys.readouterr().out.splitlines() if "lanes" in line and "T " in line]
    assert "do not fit into memory" in said[0] and "M tokens/s" in said[1]


def test_a_profile_names_what_a_step_spends_its_time_on(capsys):
    given = ["arch=attention", "--lengths", "16", "--steps", "2", "--top", "200", "--device", "cpu"]
    profile.main(given)
    out = capsys.readouterr().out
    assert "attention, in_context_recall, 16 tokens, eager" in out
    (row,) = [line for line in out.splitlines() if "aten::_fused_adamw_" in line]
    assert "1.0" in row  # once a step


def test_an_unknown_architecture_is_named_before_any_work(capsys):
    with pytest.raises(SystemExit, match="2"):
        lanes.main(["arch=attention,hyenna"])
    assert "mad.bench: unknown arch 'hyenna' (did you mean 'hyena'?)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "main, given, said",
    [
        (step.main, ["--threads", "0"], "--threads must be at least 1, got 0"),
        (lanes.main, ["arch=attention", "--lengths", "0"], "--lengths at least 4"),
        (protocol.main, ["arch=attention", "--lanes", "0"], "--lanes must be at least 1"),
    ],
)
def test_sizes_that_nothing_can_be_measured_with(capsys, main, given, said):
    with pytest.raises(SystemExit):
        main(given)
    assert said in capsys.readouterr().err


def test_a_score_card_in_steps_and_tokens():
    works = protocol.score_card()
    assert sum(work.runs for work in works) == 396
    assert sum(work.tokens for work in works) == pytest.approx(1.8e11, rel=0.02)
    recall, copying = (work for work in works if work.task["seq_len"] == 1024)
    assert (recall.scored, copying.scored) == (None, 16)
    assert recall.steps == 6 * 200 * 100 * 3  # in-context, noisy and fuzzy recall have a setting of that length each
    assert copying.evaluated == 6 * 200 * 10
    assert {work.scored for work in works if work.task["seq_len"] == 256} == {None, 16, 32, 64, 96}


def test_a_task_that_does_not_fit_its_length_is_refused_before_any_work(capsys):
    with pytest.raises(SystemExit):
        lanes.main(["arch=attention", "--tasks", "in_context_recall", "selective_copying", "--lengths", "16"])
    assert "--tasks selective_copying --lengths 16:" in capsys.readouterr().err


def test_another_task_is_measured_by_its_name(capsys):
    given = ["arch=attention", "--tasks", "selective_copying", "--lengths", "40", "--seconds", "0.1", "--device", "cpu"]
    lanes.main(given)
    assert "attention                  selective_copying       T 40 " in capsys.readouterr().out


def test_a_benchmark_that_does_not_exist_is_a_mistake_of_the_command(capsys, monkeypatch):
    from mad.bench import __main__ as command

    monkeypatch.setattr("sys.argv", ["mad.bench", "lnes"])
    assert command.main() == 2
    assert "mad.bench: unknown benchmark 'lnes' (did you mean 'lanes'?)" in capsys.readouterr().err


def test_how_far_a_run_had_come_at_a_moment():
    evaluations = [(0.0, 0), (1.0, 100), (3.0, 200)]
    assert [lanes.steps_at(evaluations, moment) for moment in (0.5, 1.0, 2.0)] == [50.0, 100.0, 150.0]
