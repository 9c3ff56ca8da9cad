"""Any table becomes one of known columns, or the reason is said; and what makes rows worth less than their number."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mad.records import Record, Store
from mad.scaling import (
    Checkpoints,
    DuplicatedRuns,
    NarrowSpan,
    NotFinite,
    Refused,
    ScalingWarning,
    Units,
    read,
    standard,
)
from mad.scaling.checks import look, positive
from mad.scaling.report import read_scores
from mad.scaling.table import ALIASES, DroppedRows, clusters, part

OURS = Path(__file__).parents[2] / "results" / "isoflop_cpu"


def table(**columns):
    return pd.DataFrame({"params": [10, 20, 40], "tokens": [400, 200, 100], "loss": [3.0, 2.5, 2.7]} | columns)


def test_a_folder_is_its_records_whatever_its_csv_says(tmp_path):
    store = Store(tmp_path, "mine")
    cost = {"params_nonembedding": 10, "tokens": 400, "flops_exact": 24000}
    config = {"arch": {"name": "a", "stack": ["attention"]}, "task": {"name": "text"}}
    store.write(Record("0" * 16, "ok", config, {"loss": 3.0}, cost=cost))
    store.write_csv()
    store.write(Record("1" * 16, "ok", config, {"loss": 2.0}, cost=cost))
    whole = read(tmp_path)
    assert sorted(whole["loss"]) == [2.0, 3.0] and len(whole.attrs["sha256"]) == 64
    store.pack()
    (carried := tmp_path / "carried").mkdir()
    (tmp_path / "records.jsonl.gz").rename(carried / "records.jsonl.gz")
    assert read(carried).equals(whole) and read(carried).attrs == whole.attrs


def test_known_names_are_found_and_said():
    got = standard(table(Model=["a", "a", "b"], junk=[1, 2, 3]))
    assert set(got) == {"n", "d", "loss", "arch", "compute"}
    assert got.attrs["columns"] == {"n": "params", "d": "tokens", "loss": "loss", "compute": "derived", "arch": "Model"}
    assert got["compute"].tolist() == [24000.0] * 3 and got["arch"].tolist() == ["a", "a", "b"]
    assert all(got[name].dtype == np.float64 for name in ("n", "d", "loss", "compute"))
    assert standard(table())["arch"].tolist() == ["all"] * 3


@pytest.mark.parametrize(("name", "alias"), [(name, alias) for name, others in ALIASES.items() for alias in others])
def test_every_alias(name, alias):
    plain = pd.DataFrame({"n": [1.0, 2.0], "d": [5.0, 6.0], "loss": [2.0, 3.0]})
    given = plain.drop(columns=name, errors="ignore").assign(**{alias.upper(): [7, 8]})
    got = standard(given)
    assert got[name].tolist() == (["7", "8"] if name in ("arch", "run") else [7.0, 8.0])
    assert got.attrs["columns"][name] == alias.upper()


def test_the_first_alias_wins_and_the_own_name_before_it():
    got = standard(
        table(params_nonembedding=[1, 2, 3], flops_6nd=[9, 9, 9], flops_exact=[8, 8, 8], valid_loss=[1, 1, 1])
    )
    assert (
        got["n"].tolist() == [1, 2, 3]
        and got["compute"].tolist() == [8, 8, 8]
        and got["loss"].tolist() == [3, 2.5, 2.7]
    )
    forward = standard(table(flops=[1, 1, 1]))  # the forward pass of one sequence, in our records
    assert forward.attrs["columns"]["compute"] == "derived" and forward["compute"].tolist() == [24000.0] * 3


def test_other_names_are_given():
    foreign = pd.DataFrame({"Size": [1, 2], "seen": [3, 4], "final": [2.0, 1.9], "kind": ["x", "y"], "n": [7, 7]})
    got = standard(foreign, {"n": "Size", "d": "seen", "loss": "final"}, group="kind")
    assert got["n"].tolist() == [1, 2] and got["arch"].tolist() == ["x", "y"]
    with pytest.raises(ValueError, match=r"unknown column 'los' \(did you mean 'loss'\?\); expected one of n, d, loss"):
        standard(foreign, {"los": "final"})
    with pytest.raises(
        ValueError, match=r"no column 'sizes' \(did you mean 'Size'\?\) for n; it has: Size, seen, final"
    ):
        standard(foreign, {"n": "sizes"})
    with pytest.raises(ValueError, match=r"no column 'kinds' \(did you mean 'kind'\?\) for arch"):
        standard(foreign, group="kinds")


def test_a_column_is_one_thing():
    for given, said in (
        ({"d": "params"}, "d, and by its name it is n"),
        ({"n": "tokens"}, "n, and by its name it is d"),
    ):
        with pytest.raises(ValueError, match=f"column '.*' is given for {said}; say which column"):
            standard(table(), given)
    with pytest.raises(ValueError, match="the group is 'kind', but the column of arch is 'x'; give one of them"):
        standard(table(kind="a", x="b"), {"arch": "x"}, "kind")
    with pytest.raises(ValueError, match="column 'params' is given for arch and for n; it can be one"):
        standard(table(), {"n": "params"}, "params")
    exchanged = standard(table(), {"d": "params", "n": "tokens"})
    assert exchanged["n"].tolist() == [400, 200, 100] and exchanged["d"].tolist() == [10, 20, 40]
    assert standard(table(), group="params")["arch"].tolist() == ["10", "20", "40"]  # an architecture a size


def test_units_are_those_of_each_architecture(tmp_path):
    nats, file = table(arch="a"), tmp_path / "mixed.csv"
    nats["compute"] = 6 * nats["params"] * nats["tokens"]
    others = nats.assign(arch="b", compute=nats["compute"] / 1e9), nats.assign(arch="b", loss=40)
    messages = "the compute of b is 6e-09 n d, but", "half of the losses of b are above 20, but"
    for other, message in zip(others, messages, strict=True):
        pd.concat([nats, nats.assign(arch="c"), other]).to_csv(file, index=False)
        with pytest.warns(Units, match=message):
            read(file)


def test_any_two_of_size_tokens_and_compute_give_the_third():
    whole = pd.DataFrame({"n": [1e9, 2e9], "d": [3e10, 4e10], "compute": [1.8e20, 4.8e20], "loss": [2.0, 1.9]})
    for name in ("n", "d", "compute"):
        got = standard(whole.drop(columns=name))
        np.testing.assert_allclose(got[name], whole[name])
        assert got.attrs["columns"][name] == "derived"
    for name, missing in (("n", "d"), ("compute", "n"), ("d", "n")):
        with pytest.raises(ValueError, match=f"the table lacks '{missing}': none of .*say which.*{missing}=COLUMN"):
            standard(whole[[name, "loss"]])
    with pytest.raises(
        ValueError, match="lacks 'loss': none of loss, valid_loss, .* is among its columns n, d, compute"
    ):
        standard(whole.drop(columns="loss"))


def test_integers_do_not_overflow():
    big = pd.DataFrame({"n": np.array([7 * 10**10, 10**9]), "d": np.array([15 * 10**12, 10**9]), "loss": [2.0, 3.0]})
    assert big["n"].dtype == np.int64 and (6 * big["n"] * big["d"])[0] != 63 * 10**23
    assert standard(big)["compute"].tolist() == [pytest.approx(6.3e24), 6e18]


def test_rows_without_a_result_are_left_out_and_counted():
    given = pd.concat([table()] * 3, ignore_index=True)
    given["status"] = "ok"
    given.loc[1, "status"], given.loc[3, "loss"], given.loc[4, "loss"] = "failed", np.nan, np.inf
    given.loc[5, "loss"] = -1.0
    given["tokens"] = given["tokens"].astype(float)
    given.loc[6, "tokens"], given.loc[7, "params"] = np.nan, 0
    with pytest.warns(
        DroppedRows,
        match="6 of 9 rows are left out: not ok, or a loss, n, d or compute that is missing, infinite or not above 0",
    ):
        got = standard(given)
    assert got["loss"].tolist() == [3.0, 2.7, 2.7] and got.index.tolist() == [0, 1, 2]
    assert issubclass(DroppedRows, ScalingWarning)
    with pytest.raises(Refused, match="no row has a finite positive loss, n, d and compute, and status ok"):
        standard(given.assign(status="failed"))

    with pytest.raises(Refused, match="no row has"):
        standard(given[:0])


def test_rows_of_no_architecture_and_no_run_are_left_out_and_counted():
    given = table().assign(arch=["a", None, "a"], run=["one", "two", None])
    with pytest.warns(DroppedRows, match="2 of 3 rows are left out: .* not above 0, or no arch, or no run"):
        assert standard(given)["run"].tolist() == ["one"]
    assert standard(given.assign(arch=None, run=None))["arch"].tolist() == ["all"] * 3  # an empty column is none
    with pytest.warns(DroppedRows, match="1 of 3 rows"):  # 6 n d is no number
        standard(given.assign(arch="a", run="r", params=[1e200, 1, 1], tokens=[1e200, 1, 1]))


def test_the_words_of_another_program_say_nothing():
    assert len(standard(table().assign(status="finished"))) == len(table())


def test_words_where_numbers_belong():
    with pytest.raises(ValueError, match=r"column 'params' \(n\) must hold numbers, got '20B' in row 1"):
        standard(table(params=["10", "20B", "40"]))
    assert standard(table(params=["1e1", "20", "40"]))["n"].tolist() == [10, 20, 40]


def test_files_and_folders(tmp_path):
    table().to_csv(tmp_path / "results.csv", index=False)
    pd.testing.assert_frame_equal(read(tmp_path), read(tmp_path / "results.csv"))
    renamed = table().rename(columns={"params": "how many"})
    renamed.to_csv(tmp_path / "x.csv", index=False)
    assert read(tmp_path / "x.csv", {"n": "how many"})["n"].tolist() == [10, 20, 40]
    with pytest.raises(ValueError, match="nowhere.csv does not exist; expected a CSV file, or a results folder"):
        read(tmp_path / "nowhere.csv")
    for name, content in (("empty.csv", b""), ("ragged.csv", b"a,b\n1,2\n1,2,3\n"), ("bytes.csv", b"\xff\xfe\x00")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is not a CSV table"):
            read(tmp_path / name)


def test_names_that_pandas_takes_for_missing_values(tmp_path):
    given = table(Model=["None", "NA", "null"], kind=["NaN", "n/a", "b"]).assign(status=["ok", None, "ok"])
    given = pd.concat([given, given[:1].assign(loss="NA")])
    given.to_csv(tmp_path / "table.csv", index=False)
    for group, names in ((None, ["None", "NA", "null"]), ("kind", ["NaN", "n/a", "b"])):
        with pytest.warns(DroppedRows, match="1 of 4 rows"):  # the loss: there it is a missing value
            assert read(tmp_path / "table.csv", group=group)["arch"].tolist() == names
    (tmp_path / "scores.csv").write_text("arch,mean\nNone,0.5\nb,NA\n")
    assert read_scores(tmp_path / "scores.csv").values.tolist() == [["None", 0.5]]


def test_our_own_results():
    got = read(OURS)
    raw = pd.read_csv(OURS / "results.csv")
    assert len(got) == 48 and set(got["arch"]) == set(raw["arch"])
    for name, source in {
        "n": "params_nonembedding",
        "d": "tokens",
        "compute": "flops_exact",
        "unique": "unique_tokens",
    }.items():
        assert got.attrs["columns"][name] == source and got[name].tolist() == raw[source].tolist()
    assert (got[["state_size", "seq_len"]] > 0).all(axis=None) and clusters(got) is None
    assert got["loss"].tolist() == raw["loss"].tolist()


def test_a_standard_table_stays_as_it_is():
    once = standard(table(run=["a", "a", "b"], arch=["x", "y", "x"], state_size=[1, 2, 3], seq_len=[8, 8, 8]))
    pd.testing.assert_frame_equal(standard(once), once, check_like=True)


def test_a_hundred_thousand_rows_are_read(tmp_path, scattered):
    scattered(rows=100_000).to_csv(tmp_path / "big.csv", index=False)
    got = read(tmp_path / "big.csv")
    assert len(got) == 100_000 and (got["compute"] > 0).all()


def test_one_architecture_and_its_runs():
    got = standard(table(arch=["a", "b", "a"], run=["r", "r", "s"]))
    assert part(got, "a")["n"].tolist() == [10, 40]
    assert clusters(part(got, "a")) is None and clusters(got).tolist() == ["r", "r", "s"]
    assert clusters(standard(table())) is None
    with pytest.raises(ValueError, match="no runs of 'bb'.*; the table has: a, b"):
        part(got, "bb")
    with pytest.raises(ValueError, match=r"no runs of 'hyenna' \(did you mean 'hyena'\?\)"):
        part(standard(table(arch=["hyena", "mamba", "hyena"])), "hyenna")


def test_columns_must_be_positive_vectors_of_one_length():
    a, b = positive(a=[1, 2], b=np.array([3, 2**62]))
    assert a.dtype == b.dtype == np.float64 and b[1] == 2.0**62
    for bad in (np.nan, np.inf, 0, -3):
        with pytest.raises(
            NotFinite, match=rf"b must be positive and finite, but is {float(bad)} in 1 of 3 rows \(from 0: 2"
        ):
            positive(a=[1, 2, 3], b=[1, 2, bad])
    with pytest.raises(ValueError, match=r"a must be a vector, got shape \(1, 2\)"):
        positive(a=[[1, 2]])
    with pytest.raises(ValueError, match="expected columns of one length, got {'a': 1, 'b': 2}"):
        positive(a=[1], b=[1, 2])


def test_repeated_rows_are_counted():
    n, d, loss = np.geomspace(1e7, 1e9, 6), np.full(6, 1e9), np.linspace(3, 2, 6)
    twice = [np.concatenate([v, v[:2]]) for v in (n, d, loss)]
    with pytest.warns(DuplicatedRuns, match="2 rows repeat another one; drop them, or say by cluster="):
        look(*twice, clustered=False)
    look(*twice, clustered=True)
    twice[2][-2:] += 1e-9  # other seeds
    look(*twice, clustered=False)


def test_checkpoints_are_told_from_runs():
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e10, 12)))
    falling = 2 + 100 / n**0.3 + 900 / d**0.3
    with pytest.warns(Checkpoints, match="5 model sizes have 12 or more rows each whose loss falls all along"):
        look(n, d, falling, False)
    look(n, d, falling, True)
    few = d < 9e9  # eleven rows a size, as a ladder at that many budgets has
    look(n[few], d[few], falling[few], False)
    look(n, d, falling * np.exp(0.2 * np.random.default_rng(0).standard_normal(60)), False)


def test_span_of_sizes():
    d, loss = np.arange(1, 5) * 1e9, np.array([4.0, 3.5, 3.2, 3.1])
    with pytest.warns(NarrowSpan, match="model sizes span a factor of 9.9 only"):
        look(np.array([1e7, 2e7, 5e7, 9.9e7]), d, loss, True)
    look(np.array([1e7, 2e7, 5e7, 1e8]), d, loss, True)
