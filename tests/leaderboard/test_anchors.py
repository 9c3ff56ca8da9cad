"""Published scores beside ours: which row they belong to, what is compared, and what is refused."""

import io

import pandas as pd
import pytest
from rich.console import Console

from mad import leaderboard
from mad.leaderboard.__main__ import main

TASKS = {"compression": (0.4, 0.5), "selective_copying": (0.9, 0.7)}
TABLE = pd.DataFrame(
    [
        {"arch": arch, "task": task, "accuracy": scores[i], "stack": stack, "flops": 10.0, "state_size": 7.0}
        for i, (arch, stack) in enumerate(
            [
                ("striped", "hyena-swiglu-mh_attention-swiglu"),
                ("Plain-Hyena", '["hyena", {"name": "swiglu", "width": 2}]'),
            ]
        )
        for task, scores in TASKS.items()
    ]
)
BOARD = leaderboard.build(TABLE)


def anchors(tmp_path, text):
    file = tmp_path / "anchors.csv"
    file.write_text(text)
    return leaderboard.match(leaderboard.read_anchors(file), BOARD, TABLE)


def test_by_name_then_by_stack_and_the_others_stand_alone(tmp_path):
    found = anchors(
        tmp_path,
        'architecture,layers,compression\nplain hyena,,0.1\nshsh,"hyena, swiglu,mh_attention,swiglu",0.2\n'
        "again,hyena-swiglu,0.3\nother,,0.4\n",
    )
    assert [(row.name, row.beside) for row in found.rows] == [
        ("plain hyena", ["Plain-Hyena"]),
        ("shsh", ["striped"]),
        ("again", []),  # that row has its published one already
        ("other", []),
    ]
    assert found.beside("striped").values == {"compression": 0.2} and found.beside("nobody") is None
    assert [row.name for row in found.alone] == ["again", "other"]


def test_a_published_mean_is_over_the_tasks_of_the_board_or_is_none(tmp_path):
    whole = anchors(tmp_path, "arch,mean,compression,selective_copying,memorization\nx,0.9,0.2,0.4,1\n")
    assert whole.rows[0].values["mean"] == pytest.approx(0.3) and whole.left_out == ["memorization"]
    assert "mean" not in anchors(tmp_path, "arch,mean,compression\nx,0.9,0.2\n").rows[0].values
    assert "mean" not in anchors(tmp_path, "arch,mean,compression,selective_copying\nx,0.9,0.2,\n").rows[0].values
    assert anchors(tmp_path, "arch,mean\nx,0.9\n").rows[0].values == {"mean": 0.9}


def test_in_the_terminal_and_in_markdown(tmp_path):
    found = anchors(tmp_path, "arch,compression,selective_copying,flops,extra\nstriped,0.45,0.85,2e6,1\nnew,0.5,,,\n")
    out = io.StringIO()
    leaderboard.show(BOARD, Console(file=out), anchors=found)
    lines = leaderboard.markdown(BOARD, found).splitlines()
    names = [line.split("|")[2].strip() for line in lines[2:6]]
    assert names == ["striped", "published: striped", "Plain-Hyena", "published: new"]
    for text in (out.getvalue(), lines[3]):
        assert "0.450 (-0.050)" in text and "0.850 (+0.050)" in text and "0.650 (+0.000)" in text and "2.0M" in text
    assert "0.500 |" in lines[5] and "(" not in lines[5]
    assert "ours minus theirs" in lines[-1] and "not on this board: extra" in lines[-1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a CSV file"),
        ("architectur,compression\nx,1\n", "lacks the column 'arch' or 'architecture' (did you mean 'architectur'?)"),
        ("arch,compression\n", "needs at least one row"),
        ("arch,compression\n,1\n", "a name of an architecture in each"),
        ("arch,selective_copyng\nx,1\n", "'selective_copyng' (did you mean 'selective_copying'?)"),
        (
            "arch,perplexity\nx,1\n",
            "no column is a score of this board; expected some of compression, selective_copying, mean, got perplexity",
        ),
        ("arch,params\nx,1\n", "got params"),
        ("arch,compression\nx,high\n", "compression of x must be a number, got 'high'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_anything_is_written(tmp_path, capsys, text, message):
    (tmp_path / "anchors.csv").write_text(text)
    TABLE.to_csv(tmp_path / "table.csv", index=False)
    page = tmp_path / "page.html"
    assert main([str(tmp_path / "table.csv"), "--anchors", str(tmp_path / "anchors.csv"), "--html", str(page)]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and not said.out and not page.exists()


def test_a_published_name_is_no_missing_value(tmp_path):
    found = anchors(tmp_path, "arch,layers,compression\nNone,NA,0.1\nNA,,NaN\n")
    assert [(row.name, row.values) for row in found.rows] == [("None", {"compression": 0.1}), ("NA", {})]


def test_two_names_alike_are_two_rows(tmp_path):
    found = anchors(tmp_path, "arch,compression\nstriped,0.1\nstriped,0.2\n")
    assert [row.beside for row in found.rows] == [["striped"], []]
