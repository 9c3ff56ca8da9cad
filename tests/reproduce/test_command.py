"""`python -m mad.reproduce`: what it prints, writes and refuses, and the figures."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from mad.records import Store
from mad.reproduce import compare
from mad.reproduce.__main__ import main
from mad.reproduce.figures import draw


def test_the_table_and_what_is_said_below_it(runs_of, tmp_path, capsys):
    store = Store(tmp_path / "mine")
    for record in runs_of("reproduce_based_figure2_reduced", costs=True):
        store.write(record)
    other = runs_of("reproduce_based_figure2", "arch=mqar_hedgehog", "optim.lr=1e-2")[0]
    other.status = "failed"
    store.write(other)
    csv, png = tmp_path / "rows.csv", tmp_path / "figure.png"
    assert main(["based_figure2", str(store.folder), "--csv", str(csv), "--png", str(png)]) == 0
    shown = capsys.readouterr().out
    (line,) = (line for line in shown.splitlines() if "based" in line and "f=16" in line)
    cells = ["based", "64", "f=16", "40,500", "0.912", "0.500", "40,292", "-0.412 !", "2/4", "partial"]
    assert [cell.strip() for cell in line.strip("│").split("│")] == cells
    assert "of 43 published values 0 are reproduced within 0.03, 0 are off, 8 are partial" in shown
    assert "published, and not run yet: sliding_window (4), based (7), mamba (3), mamba2 (7), deltanet (3)" in shown
    assert "recipe: train.epochs is 8, published 32" in shown and "1 runs failed" in shown
    assert "settings" not in shown.split("verdict")[0]  # one each: no column
    rows = pd.read_csv(csv)
    assert len(rows) == 43 and {"points_expected", "state_bytes", "verdict"} <= set(rows)
    assert png.read_bytes().startswith(b"\x89PNG")


def test_the_mad_table_says_how_the_scores_rank(mad_table, tmp_path, capsys):
    mad_table.to_csv(tmp_path / "results.csv", index=False)
    assert main(["mad_table", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "of 35 published values 35 are reproduced" in shown and "66/66" in shown and "396/396" in shown
    for who in ("published", "ours"):
        assert f"{who} mean against perplexity, 5 architectures: Spearman -1.00 (p = 0.017)" in shown
    assert "plain accuracy" in shown and "recipe:" not in shown
    before = (tmp_path / "results.csv").read_bytes()
    assert main(["mad_table", str(tmp_path), "--csv", str(tmp_path / "results.csv")]) == 2
    assert (tmp_path / "results.csv").read_bytes() == before


def test_the_default_is_the_sweeps_folder_or_its_reduced_one(mad_table, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["mad_table"]) == 2
    assert "train one: python -m mad.sweep sweeps=reproduce_mad_table_reduced" in capsys.readouterr().err
    for name in ("reproduce_mad_table_reduced", "reproduce_mad_table"):
        (tmp_path / "results" / name).mkdir(parents=True)
        mad_table.to_csv(tmp_path / "results" / name / "results.csv", index=False)
        assert main(["mad_table"]) == 0
        said = capsys.readouterr().out
        assert f"results/{name}: Poli" in said
    # whoever has just trained the reduced sweep is shown the other folder: said
    assert "_reduced is there too: python -m mad.reproduce mad_table results/reproduce_mad_table_reduced\n" in said


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["mad_tabl"], "unknown reproduction 'mad_tabl' (did you mean 'mad_table'?)"),
        (["mad_table", "nowhere"], "nowhere does not exist"),
        (
            ["mad_table", "--png", "figure.pgn"],
            "unknown suffix '.pgn' (did you mean '.png'?); expected one of: .png, .pdf, .svg",
        ),
        (["mad_table", "--png", "no/such/figure.png"], "there is no folder 'no/such'"),
        (["mad_table", "--csv", "no/such/rows.csv"], "there is no folder 'no/such'"),
    ],
)
def test_mistakes_end_in_one_line(capsys, arguments, message):
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and not said.out


def test_a_file_that_is_no_table_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "notes.md").write_text("a\nb\nc,d,e\n")
    assert main(["mad_table", str(tmp_path / "notes.md")]) == 2
    said = capsys.readouterr().err
    assert "notes.md is not a CSV file of runs: Error tokenizing data" in said and said.count("\n") == 1


def test_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("mad_table", "based_figure2", "zoology_figure2", "2403.17844"))


def markers(axes, face):
    """The points of lines whose faces are of a kind, with a score."""
    found = []
    for line in axes.lines:
        fill = line.get_markerfacecolor()
        if (fill in ("white", "none")) == (face == "hollow") and line.get_marker() != "None":
            found += [tuple(p) for p in np.asarray(line.get_xydata(), float) if np.isfinite(p).all()]
    return found


def test_figure_of_the_mad_table(mad_table):
    for table, whole in ((mad_table, 5), (mad_table[mad_table["arch"] == "hyena_swiglu"], 1), (mad_table[:66], 0)):
        figure = draw(compare("mad_table", table))
        figure.draw_without_rendering()
        left, right = figure.axes
        assert len(markers(left, "hollow")) == 30 and len(markers(right, "hollow")) == 5
        assert len(markers(right, "filled")) == whole
        assert ("ours: Spearman -1.00 (n = 5)" in right.get_title(loc="left")) == (whole == 5)


@pytest.mark.parametrize("name, published", [("based_figure2", [43]), ("zoology_figure2", [20] * 4)])
def test_figures_of_recall(table_of, name, published):
    for kind in ("", "_reduced"):
        found = compare(name, table_of(f"reproduce_{name}{kind}", costs=name == "based_figure2"))
        figure = draw(found)
        figure.draw_without_rendering()
        assert [len(markers(axes, "hollow")) for axes in figure.axes] == published
        assert sum(len(markers(axes, "filled")) for axes in figure.axes) == found.rows["ours"].notna().sum()
        looks = [
            (line.get_color(), line.get_marker()) for line in figure.legends[0].get_lines() if line.get_color() != "0.2"
        ]
        assert len(looks) == len(set(looks)) == found.rows["model"].nunique()
        legend = [text.get_text() for text in figure.legends[0].get_texts()]
        assert ("ours, partial" in legend) == bool(kind) and len(legend) == len(set(legend))


def test_matplotlib_is_loaded_for_a_figure_alone():
    program = "import sys; import mad.reproduce.__main__; assert not {'matplotlib', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
