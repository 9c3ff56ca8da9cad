"""The kernels' benchmark as a command, on a CPU: what it prints and where it writes."""

import csv

import pytest

from kernels import bench, cases

pytestmark = pytest.mark.skipif(bench.torch.cuda.is_available(), reason="times more on a GPU")


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """In a folder of its own, one small shape."""
    module = cases.load("short_conv")
    monkeypatch.setattr(module, "SHAPES", [cases.smallest(module)])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "given, where",
    [
        (["--csv"], "kernels_cpu_fp32.csv"),
        (["--csv", "--dtype", "bf16"], "kernels_cpu_bf16.csv"),
        (["--csv", "."], "kernels_cpu_fp32.csv"),
        (["--csv", "deep/er.csv"], "deep/er.csv"),
    ],
)
def test_rows_are_written(here, capsys, given, where):
    bench.main(["short_conv", "--seconds", "0", *given])
    rows = list(csv.DictReader((here / where).read_text().splitlines()))
    assert tuple(rows[0]) == bench.COLUMNS and {row["provider"] for row in rows} == {"torch"}
    assert {row["mode"] for row in rows} == {"forward", "training"} and all(float(row["value"]) >= 0 for row in rows)
    assert capsys.readouterr().out.splitlines()[-1] == f"rows written to {where}"


def test_nothing_is_written_unasked(here, capsys):
    bench.main(["short_conv", "--seconds", "0"])
    assert not list(here.iterdir()) and "written" not in capsys.readouterr().out


def test_the_file_is_named_after_the_card(monkeypatch):
    monkeypatch.setattr(bench, "device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert bench.file_name("cuda", "bf16") == "kernels_nvidia_h100_80gb_hbm3_bf16.csv"


@pytest.mark.parametrize(
    "given, what",
    [
        (["shrt_conv"], "did you mean 'short_conv'"),
        (["short_conv", "--csv", "fft_conv"], "--csv fft_conv: that is a kernel to time; name it before --csv"),
    ],
)
def test_what_cannot_be_meant_is_refused(here, capsys, given, what):
    with pytest.raises(SystemExit):
        bench.main(given)
    assert what in capsys.readouterr().err and not list(here.iterdir())
