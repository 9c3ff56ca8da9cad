"""The figure: which points are the front, what is hollow, that names can be read, and the files."""

import itertools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from mad import leaderboard
from mad.leaderboard.__main__ import main
from mad.leaderboard.anchors import Anchor, Anchors
from mad.leaderboard.figure import draw, front, write_figure


def board(count=6, seed=0, **columns):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "arch": [f"architecture_{i}" for i in range(count)],
            "task": "t",
            "accuracy": rng.random(count),
            "state_size": 10 ** rng.uniform(2, 5, count),
            "flops": 10 ** rng.uniform(6, 9, count),
        }
        | columns
    )
    return leaderboard.build(table)


def test_the_front():
    rng = np.random.default_rng(0)
    for _ in range(50):
        cost, score = rng.integers(0, 6, (2, 12)).astype(float)
        best = front(cost, score)
        want = {
            (cost[i], score[i])
            for i in range(12)
            if not any(
                (cost[j] <= cost[i] and score[j] > score[i]) or (cost[j] < cost[i] and score[j] >= score[i])
                for j in range(12)
            )
        }
        assert {(cost[i], score[i]) for i in best} == want and len(best) == len(want)
        assert list(cost[best]) == sorted(cost[best])


@pytest.mark.parametrize("count", [1, 6, 12, 40])
def test_names_are_in_the_figure_and_do_not_cover_each_other(count):
    figure = draw(board(count))
    figure.draw_without_rendering()
    for axes in figure.axes:
        texts = [text for text in axes.texts if "   " not in text.get_text()]  # without the key of the front
        boxes = [Text.get_window_extent(text) for text in texts]  # of an annotation it would be with its line
        assert boxes and not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        assert all(axes.get_window_extent().padded(2).count_overlaps([box]) for box in boxes)
        assert axes.get_xscale() == "log" and axes.get_xlabel()
    named = {text.get_text() for text in figure.axes[0].texts}
    if count <= 12:
        assert named == {f"architecture_{i}" for i in range(count)}
    else:
        ours = board(count)
        best = ours["arch"].iloc[front(ours["state_size"].to_numpy(), ours["mean"].to_numpy())].tolist()
        (key,) = (text.get_text() for text in figure.axes[0].texts if best[0] in text.get_text())
        assert key.replace("\N{NO-BREAK SPACE}", " ").split() == [
            t for i, name in enumerate(best, 1) for t in (str(i), name)
        ]


def test_published_points_are_hollow_at_our_cost_or_at_their_own():
    ours = board(3)
    first = ours.iloc[0]
    given = [
        Anchor("x", {"mean": 0.5}, [first["arch"]]),
        Anchor("y", {"mean": 0.6, "flops": 1e7}),
        Anchor("z", {"mean": 0.7}),  # at no known cost
        Anchor("w", {"t": 0.7, "flops": 1e7}),
    ]
    figure = draw(ours, Anchors(given, []))
    for axes, key, more in zip(figure.axes, ("state_size", "flops"), ([], [(1e7, 0.6)]), strict=True):
        hollow = [line for line in axes.lines if line.get_marker() == "D"]
        assert all(line.get_markerfacecolor() == "none" for line in hollow)
        assert [tuple(line.get_xydata()[0]) for line in hollow] == [(first[key], 0.5), *more]
        assert (
            [t.get_text() for t in axes.get_legend().get_texts()].count("published") == 1 if axes.get_legend() else True
        )


def test_incomplete_architectures_are_no_part_of_the_front():
    ours = board(4, state_size=[0.0, 10.0, 100.0, 1000.0], accuracy=[0.1, 0.9, 0.5, 0.95])
    ours.loc[ours["mean"] == 0.9, "rank"] = pd.NA
    axes = draw(ours).axes[0]
    (step,) = (line for line in axes.lines if line.get_label() == "Pareto front")
    assert step.get_xydata().tolist() == [[1, 0.1], [100, 0.5], [1000, 0.95]]  # nothing is at 0 on a logarithmic axis
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "settings missing" in labels and "architecture" in labels
    ours["rank"] = pd.NA
    assert [text.get_text() for text in draw(ours).axes[0].get_legend().get_texts()] == ["settings missing"]


def test_files(tmp_path):
    for suffix, magic in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), (".SVG", b"<?xml")):
        write_figure(board(arch=["$x^$", "a_b", "c", "d", "e", "f"]), tmp_path / f"a{suffix}")
        assert (tmp_path / f"a{suffix}").read_bytes().startswith(magic)


def test_nothing_to_draw(tmp_path, capsys):
    pd.DataFrame({"arch": ["x"], "task": ["t"], "accuracy": [1.0]}).to_csv(tmp_path / "t.csv", index=False)
    assert main([str(tmp_path / "t.csv"), "--png", str(tmp_path / "a.png")]) == 2
    assert "no architecture has both a mean and one of state_size, flops" in capsys.readouterr().err


def test_matplotlib_is_loaded_for_a_figure_alone_and_pyplot_never(tmp_path):
    board(3).to_pickle(tmp_path / "board")
    program = (
        "import sys; import mad.leaderboard.__main__; assert 'matplotlib' not in sys.modules; import pandas;"
        "from mad.leaderboard.figure import write_figure; write_figure(pandas.read_pickle(sys.argv[1]), sys.argv[2]);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "board", tmp_path / "a.png"], check=True)
