"""`python -m mad.scaling`: from anybody's table to laws, JSON and figures, and what is said where data fall short."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib import image

from mad.scaling import __main__ as command
from mad.scaling import fit_isoflop, read, report, standard
from mad.scaling.figures import draw

LAWS = {  # E, A, B, alpha, beta
    "ours": (1.7, 400.0, 410.0, 0.34, 0.28),
    "theirs": (1.7, 520.0, 500.0, 0.34, 0.28),
    "old": (1.9, 700.0, 900.0, 0.34, 0.28),
}
BUDGETS = (1e18, 4e18, 1.6e19, 6.4e19)


def profiles(noise=0.002, sizes=7):
    """A foreign table: three architectures at four budgets, sizes within a factor of 8 of the optimum."""
    rng, rows = np.random.default_rng(1), []
    for name, (E, A, B, alpha, beta) in LAWS.items():
        g = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
        for budget in BUDGETS:
            for n in g * (budget / 6) ** (beta / (alpha + beta)) * np.geomspace(1 / 8, 8, sizes):
                d = budget / (6 * n)
                loss = (E + A * n**-alpha + B * d**-beta) * np.exp(noise * rng.standard_normal())
                rows.append({"family": name, "Size": n, "seen": d, "final": loss, "mem": 64 * n**0.5})
    return pd.DataFrame(rows)


COLUMNS = ["--columns", "n=Size", "d=seen", "loss=final", "state_size=mem", "--group", "family"]


@pytest.fixture
def foreign(tmp_path):
    profiles().to_csv(tmp_path / "theirs.csv", index=False)
    return tmp_path / "theirs.csv"


def run(*arguments):
    return command.main([str(argument) for argument in arguments])


def test_a_foreign_table_becomes_laws_and_figures(foreign, tmp_path, capsys):
    scores = pd.DataFrame({"architecture": list(LAWS), "mad_score": [0.8, 0.7, 0.4]})
    scores.to_csv(tmp_path / "scores.csv", index=False)
    out = tmp_path / "out"
    given = [foreign, *COLUMNS, "--out", out, "--bootstrap", 60]
    assert run(*given, "--scores", tmp_path / "scores.csv", "--score-column", "mad_score") == 0
    shown = capsys.readouterr().out
    assert "84 runs of 3 architectures; n = Size, d = seen, loss = final, arch = family, state_size = mem" in shown
    assert "state-optimal: P* ~ M^" in shown and "Spearman -1.000" in shown and "3 architectures are too few" in shown
    assert "times the compute" in shown
    fits = json.loads((out / "fits.json").read_text(), parse_constant=pytest.fail)
    assert set(fits["groups"]) == set(LAWS) and fits["columns"]["n"] == "Size" and fits["table"]["rows"] == 84
    truth = 0.28 / 0.62
    for name, group in fits["groups"].items():
        low, high = group["parametric"]["intervals"]["a"]
        assert low - 0.02 < truth < high + 0.02 and high - low < 0.2, name
        assert group["isoflop"]["a"] == pytest.approx(truth, abs=0.04)
        assert group["holdout"]["rmse"] < 0.02
        assert not {"samples", "runs"} & set(group["parametric"])
    assert {c["b"] for c in fits["comparisons"]} == {"theirs", "old"} and fits["comparisons"][0]["difference"] < 0
    assert fits["scores"]["correlation"]["kendall"] == pytest.approx(-1)
    names = {"isoflop", "optima", "contours", "residuals", "holdout", "state", "scores"}
    assert {file.stem for file in out.glob("*.png")} == {file.stem for file in out.glob("*.pdf")} == names
    for name in names:
        assert image.imread(out / f"{name}.png")[..., :3].std() > 0.02  # not blank
        assert (out / f"{name}.pdf").read_bytes()[:5] == b"%PDF-"


def test_repeating_a_command_gives_the_same_fits(foreign, tmp_path):
    texts = []
    for name in ("one", "two"):
        assert run(foreign, *COLUMNS, "--out", tmp_path / name, "--bootstrap", 20, "--no-figures") == 0
        fits = json.loads((tmp_path / name / "fits.json").read_text())
        texts.append({key: value for key, value in fits.items() if key not in ("command", "written")})
        assert [file.name for file in (tmp_path / name).iterdir()] == ["fits.json"]
    assert texts[0] == texts[1]


def test_a_results_folder_is_a_table_and_its_place_to_write(tmp_path, capsys):
    table = profiles().rename(columns={"family": "arch", "Size": "params", "seen": "tokens", "final": "loss"})
    table["status"] = "ok"
    table.loc[3, "status"] = "failed"
    table.drop(columns="mem").to_csv(tmp_path / "results.csv", index=False)
    assert run(tmp_path, "--bootstrap", 0, "--no-figures") == 0
    shown = capsys.readouterr().out
    assert "83 runs of 3 architectures" in shown and "DroppedRows (table): 1 of 84 rows" in shown
    assert "state-optimal" not in shown  # there is no such column
    fits = json.loads((tmp_path / "scaling/fits.json").read_text())
    assert fits["groups"]["ours"]["parametric"]["intervals"] == {} and fits["state"] is None


def test_what_the_data_cannot_carry_is_refused_and_said(tmp_path, capsys):
    table = profiles()
    table = table[(table["family"] == "ours") & (table["Size"] * table["seen"] * 6 < 5e18)]
    table.to_csv(tmp_path / "small.csv", index=False)
    assert run(tmp_path / "small.csv", *COLUMNS, "--bootstrap", 20) == 0
    shown = capsys.readouterr().out
    assert "14 runs of 1 architecture;" in shown and "refused" in shown
    assert "TooFewBudgets (ours, IsoFLOP): a power law needs at least 3 budgets, got 2" in shown
    assert "TooFewBudgets (ours, hold-out)" in shown and "NoInteriorMinimum (state)" in shown
    fits = json.loads((tmp_path / "scaling/fits.json").read_text())
    assert fits["groups"]["ours"]["isoflop"] is None and fits["groups"]["ours"]["parametric"]["E"] > 0
    assert not (tmp_path / "scaling/isoflop.png").exists() and (tmp_path / "scaling/contours.png").exists()


def test_checkpoints_make_an_envelope_and_are_resampled_by_run(tmp_path, capsys):
    E, A, B, alpha, beta = LAWS["ours"]
    rng, rows = np.random.default_rng(2), []
    for k, n in enumerate(np.geomspace(1e7, 1e9, 16)):
        luck = np.exp(0.01 * rng.standard_normal())
        for d in np.geomspace(2e8, 4e11, 30):
            rows.append({"run": f"run{k}", "n": n, "d": d, "loss": (E + A * n**-alpha + B * d**-beta) * luck})
    pd.DataFrame(rows).to_csv(tmp_path / "curves.csv", index=False)
    assert run(tmp_path / "curves.csv", "--bootstrap", 40) == 0
    fits = json.loads((tmp_path / "scaling/fits.json").read_text())["groups"]["all"]
    assert fits["envelope"]["winners"] > 2 and fits["envelope"]["a"] == pytest.approx(0.28 / 0.62, abs=0.1)
    low, high = fits["parametric"]["intervals"]["alpha"]
    assert high - low > 0.02  # the runs' own luck, which rows alone would average away
    assert (tmp_path / "scaling/envelope.png").stat().st_size > 10_000
    shown = capsys.readouterr().out
    assert "16 runs, 480 checkpoints, of 1 architecture" in shown and "Checkpoints" not in shown
    assert (fits["runs"], fits["rows"]) == (16, 480)
    low, high = fits["envelope"]["n_law"]["interval"]
    said = re.search(r"envelope, all: a = (\S+) \[(\S+), (\S+)\], from (\d+) points of (\d) runs", shown)
    assert said and [float(x) for x in said.groups()[:3]] == pytest.approx([fits["envelope"]["a"], low, high], abs=6e-4)
    assert int(said[4]) <= 1500 and int(said[5]) == fits["envelope"]["winners"]


def test_an_architecture_without_a_law_sets_no_budget():
    table = standard(profiles(), {"n": "Size", "d": "seen", "loss": "final"}, "family")
    table = table[(table["arch"] != "old") | (table.index == table.index[table["arch"] == "old"][0])]
    made = report.make(table, bootstrap=0)
    assert made.groups["old"].parametric is None and made.compute == pytest.approx(BUDGETS[-1])
    assert report.make(table, bootstrap=0, at=2e19).compute == 2e19
    assert report.make(table[table["arch"] == "old"], bootstrap=0).compute == pytest.approx(BUDGETS[0])


@pytest.mark.parametrize("names", [["ours"], ["ours", "theirs"]])
def test_an_optimum_outside_the_budgets_is_said_once_of_each(names):
    table = standard(profiles(), {"n": "Size", "d": "seen", "loss": "final"}, "family")
    table = table[table["arch"].isin(names)]
    for at, said in ((6.4e21, "100 times the largest"), (1e16, "0.01 times the smallest"), (1e18, ""), (6.4e19, "")):
        notes = [note for note in report.make(table, bootstrap=0, at=at).notes if note.kind == "Extrapolation"]
        wanted = [f"{at:.3g} FLOPs is {said} budget at which {name} was trained" for name in names] if said else []
        assert sorted(note.message for note in notes) == wanted


def test_repeated_tokens_are_valued_or_named(tmp_path, capsys):
    table = profiles(noise=0.0)[["Size", "seen", "final"]].iloc[:28].assign(unique=np.inf)
    table["unique"] = table["seen"]
    few = table.copy()
    few.loc[0, "unique"] /= 2
    few.to_csv(tmp_path / "few.csv", index=False)
    options = [*COLUMNS[:4], "--bootstrap", 0, "--no-figures"]
    assert run(tmp_path / "few.csv", *options) == 0
    shown = capsys.readouterr().out
    assert "RepeatedTokens (all, repeated tokens): 1 of 28 runs of all saw tokens more than once (up to 2.00" in shown
    assert "needs 3 runs that repeat tokens and 10 that do not, got 1 and 27" in shown
    E, A, B, alpha, beta = LAWS["ours"]
    more = table.iloc[::2].copy()
    more["seen"] = more["unique"] * 8
    worth = more["unique"] * (1 + 15 * -np.expm1(-7 / 15))
    more["final"] = E + A * more["Size"] ** -alpha + B * worth**-beta
    pd.concat([table, more]).to_csv(tmp_path / "more.csv", index=False)
    assert run(tmp_path / "more.csv", *options) == 0
    shown = capsys.readouterr().out
    assert "repeated tokens, all: R_D* = 15" in shown
    assert "14 of 42 runs of all saw tokens more than once (up to 8.00 times), which all fits but" in shown


def test_perplexities_in_place_of_losses_are_noticed(tmp_path, capsys):
    """Beyond 700 the exponential is no number; below, all would look well."""
    table = profiles(sizes=5).assign(final=lambda t: 300 * t["final"])
    table.to_csv(tmp_path / "perplexities.csv", index=False)
    assert run(tmp_path / "perplexities.csv", *COLUMNS, "--bootstrap", 0, "--no-figures") == 0
    shown = capsys.readouterr().out
    assert "Units (table): half of the losses are above 20" in shown and "of a perplexity give the logarithm" in shown
    assert "Refused (state): a loss of" in shown and " inf " in shown


def test_tokens_that_nobody_counted_are_not_repeated(tmp_path, capsys):
    profiles(sizes=5).assign(unique=0).to_csv(tmp_path / "table.csv", index=False)
    assert run(tmp_path / "table.csv", *COLUMNS, "--bootstrap", 0, "--no-figures") == 0
    assert "saw tokens more than once" not in capsys.readouterr().out


def test_many_architectures_are_told_apart_in_a_figure():
    """A legend of more entries than fit on a panel left no room for the panel; the ninth looked as the first."""
    table = profiles(sizes=4).query("family == 'ours'")
    many = pd.concat([table.assign(family=f"variant {i}") for i in range(10)])
    table = standard(many, {"n": "Size", "d": "seen", "loss": "final"}, "family")
    groups = {arch: report.Group(arch, runs, 6.0) for arch, runs in table.groupby("arch")}
    for group in groups.values():
        columns = (group.runs[key] for key in ("compute", "n", "d", "loss"))
        group.isoflop = fit_isoflop(*columns)
    figures = dict(draw(report.Report(groups, 1e19)))
    figure = figures["optima"]
    figure.draw_without_rendering()
    assert not figure.axes[0].get_legend() and len(figure.legends[0].get_texts()) == 10
    looks = {(line.get_color(), line.get_marker()) for line in figure.axes[2].lines if line.get_marker() != "None"}
    assert len(looks) == 10 and figure.axes[0].get_position().height > 0.4


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nothing.csv"], "nothing.csv does not exist; expected a CSV file, or a results folder with records or res"),
        (["{table}", *COLUMNS, "--scores", "none.csv"], "a CSV file, or a results folder with leaderboard.csv"),
        (["{table}", *COLUMNS, "--score-column", "mean"], "--score-column mean is a column of --scores FILE, which is"),
        (["{table}", "--columns", "n=Sise"], "the table has no column 'Sise' .did you mean 'Size'.. for n"),
        (["{table}", "--columns", "m2=Size"], "unknown column 'm2'"),
        (["{table}", "--columns", "Size"], "--columns takes NAME=COLUMN, as n=params, got 'Size'"),
        (["{table}", "--group", "familly"], "no column 'familly' .did you mean 'family'"),
        (["{table}"], "the table lacks 'loss'"),
        (["{table}", *COLUMNS, "--at", "-1"], "--at must be a positive number of FLOPs, got -1"),
        (["{table}", *COLUMNS, "--bootstrap", "-5"], "--bootstrap must be at least 0, got -5"),
        (["{table}", *COLUMNS, "--scores", "{table}"], "the table of scores .* has no column 'arch'"),
        (["{table}", *COLUMNS, "--scores", "none.csv"], "none.csv does not exist"),
        (
            ["{table}", "--columns", "n=Size", "--columns", "d=Size"],
            "column 'Size' is given for d and for n; it can be one",
        ),
        (["{table}", *COLUMNS, "--columns", "n=seen"], "--columns gives n twice, as 'Size' and as 'seen'"),
        (["{table}", *COLUMNS, "--scores", "{words}"], "'mean' of the table of scores .* got 'high' for 'ours'"),
    ],
)
def test_mistakes_are_one_line(foreign, capsys, arguments, message):
    words = foreign.with_name("words.csv")
    words.write_text("arch,mean\nours,high\nold,0.2\n")
    given = [argument.format(table=foreign, words=words) for argument in arguments]
    assert run(*given) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(error)
    assert not (foreign.parent / "scaling").exists()


@pytest.mark.parametrize("taken", ["scaling", "scaling/fits.json", "scaling/isoflop.png"])
def test_what_cannot_be_written_is_named_below_the_tables(foreign, capsys, taken):
    """As where the folder is somebody else's: the fits are made, and may have taken minutes."""
    (place := foreign.parent / taken).parent.mkdir(exist_ok=True)
    place.touch() if taken == "scaling" else place.mkdir()
    assert run(foreign, *COLUMNS, "--bootstrap", 0) == 2
    said = capsys.readouterr()
    assert "84 runs of 3 architectures" in said.out and "L = E + A" in said.out
    assert f"{place} cannot be written (" in said.err and "--out DIR" in said.err and said.err.count("\n") == 1


def test_no_common_architecture_is_said(foreign, tmp_path, capsys):
    pd.DataFrame({"arch": ["mine"], "mean": [0.5]}).to_csv(tmp_path / "scores.csv", index=False)
    options = [*COLUMNS, "--bootstrap", 0, "--no-figures", "--scores", tmp_path / "scores.csv"]
    assert run(foreign, *options) == 0
    assert (
        "no architecture has both a law and a score; laws: ours, theirs, old; scores: mine" in capsys.readouterr().out
    )


def test_names_that_are_numbers_and_scores_without_order(tmp_path, capsys):
    table = profiles(sizes=5).replace({"family": {"ours": 1, "theirs": 2, "old": 3}})
    table.assign(gflops=6e-9 * table["Size"] * table["seen"]).to_csv(tmp_path / "table.csv", index=False)
    (tmp_path / "scores.csv").write_text("arch,mean\n1,0.5\n2,0.5\n3,0.5\n")
    options = [*COLUMNS[:4], "compute=gflops", "--group", "family", "--bootstrap", 0, "--no-figures"]
    assert run(tmp_path / "table.csv", *options, "--scores", tmp_path / "scores.csv") == 0
    shown = capsys.readouterr().out
    assert "Refused (scores): x is the same for all 3 architectures" in shown
    assert "Units (table): the compute is 6e-09 n d, but training takes about 6 FLOPs a parameter and token" in shown


def test_figures_of_an_earlier_table_do_not_stay(foreign, tmp_path):
    out = tmp_path / "out"
    assert run(foreign, *COLUMNS, "--out", out, "--bootstrap", 0) == 0 and (out / "isoflop.png").exists()
    profiles().head(3).to_csv(tmp_path / "few.csv", index=False)
    (out / "scores.pdf").write_text("mine")
    assert run(tmp_path / "few.csv", *COLUMNS, "--out", out, "--bootstrap", 0) == 0
    assert sorted(file.name for file in out.iterdir()) == ["fits.json", "scores.pdf"]
    assert run(foreign, *COLUMNS, "--out", out, "--bootstrap", 0) == 0
    assert (
        run(foreign, *COLUMNS, "--out", out, "--bootstrap", 0, "--no-figures") == 0 and (out / "isoflop.png").exists()
    )


def test_names_that_look_like_markup_are_names(tmp_path, capsys):
    table = profiles().replace({"family": {"ours": "[hyena,swiglu]", "theirs": "[/x]", "old": "hyena [old]"}})
    table.to_csv(tmp_path / "runs.csv", index=False)
    assert run(str(tmp_path / "runs.csv"), *COLUMNS, "--no-figures", "--out", str(tmp_path / "[b]out[/]")) == 0
    shown = capsys.readouterr().out
    assert all(shown.count(name) >= 2 for name in ("[hyena,swiglu]", "[/x]", "hyena [old]"))
    assert f"written to {tmp_path / '[b]out[/]'}" in shown and re.search(r"0\.\d+ \[0\.\d+, 0\.\d+\]", shown)


def test_seeds_of_a_score_are_resampled_too(foreign):
    table = read(foreign, {"n": "Size", "d": "seen", "loss": "final"}, "family")
    scores = pd.DataFrame({"arch": list(LAWS) * 2, "score": [0.8, 0.7, 0.4, 0.9, 0.7, 0.3]})
    made = report.make(table, scores=scores, bootstrap=0, at=1e19)
    assert made.scores and made.scores.points.set_index("arch")["score"]["ours"] == pytest.approx(0.85)
    assert made.scores.correlation and made.scores.correlation.spearman == pytest.approx(-1)
    perplexity = made.scores.points.set_index("arch")["perplexity"]
    E, A, B, alpha, beta = LAWS["ours"]
    g = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    n = g * (1e19 / 6) ** (beta / (alpha + beta))
    assert perplexity["ours"] == pytest.approx(math.exp(E + A * n**-alpha + B * (1e19 / 6 / n) ** -beta), rel=0.02)


def test_json_has_no_numbers_that_json_lacks():
    plain = report.to_json({"a": np.array([1.5, np.nan]), "b": (np.inf, -math.inf), "c": np.int64(3), "d": None})
    assert plain == {"a": [1.5, None], "b": ["inf", "-inf"], "c": 3, "d": None}
    json.dumps(plain, allow_nan=False)
