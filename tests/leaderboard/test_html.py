"""The page as a file: complete, small, escaped, and nothing in it that would be fetched."""

import base64
import hashlib
import html.parser
import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest

from mad import leaderboard
from mad.leaderboard.__main__ import main
from mad.leaderboard.html import page
from mad.records import table as table_of

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;"


class Page(html.parser.HTMLParser):
    """Elements with their attributes, the board's cells as texts, and a check that tags match."""

    VOID = {"meta", "link", "input", "img", "wbr"}

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.rows, self.data = [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data
        if self.open and self.open[-1] == "script" and not self.data:
            self.data = data

    def of(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def pages(records, **options):
    table = table_of(records)
    board = leaderboard.build(table)
    return Page(page(board, leaderboard.details(table, records), **options)), board


def test_the_table_is_there_without_scripts(record):
    cost = {"params": 131600, "flops": 2_500_000_000, "state_size": 12}
    found, _ = pages(
        [
            *(record("hyena", accuracy=a, seed=s, cost=cost) for s, a in enumerate((0.5, 0.7))),
            record("mlp", accuracy=0.25, cost=cost),
            *(record("hyena", task="copy", accuracy=0.25, seed=seed, cost=cost) for seed in (0, 1)),
            record("mlp", task="copy", status="failed"),
        ]
    )
    head, *rows = found.rows
    assert head == [
        "#", "architecture", "mean", "valid-selected mean", "win rate", "copy", "mqar", "params", "FLOPs", "state size",
        "settings", "ok", "failed",
    ]  # fmt: skip
    assert rows[0] == [
        "1", "hyena", "0.425 ± 0.071", "0.425", "1.000", "0.250 ± 0.000", "0.600 ± 0.141", "131.6k", "2.5G", "12",
        "2/2", "4", "0",
    ]  # fmt: skip
    assert rows[1] == ["", "mlp", "", "", "0.000", "", "0.250", "131.6k", "2.5G", "12", "1/2", "1", "1"]
    heads = found.of("th")
    assert [h["scope"] for h in heads] == ["col"] * len(head) + ["row"] * 2
    assert [h["data-k"] for h in heads[: len(head)]][:5] == ["rank", "arch", "mean", "mean_valid_selected", "win_rate"]
    assert {"caption", "thead", "tbody", "noscript", "main", "header"} <= {tag for tag, _ in found.elements}
    assert found.of("html")[0]["lang"] == "en"


def test_texts_of_tables_are_texts(record):
    anchors = leaderboard.match(
        pd.DataFrame([{"arch": "<b>theirs</b>", "mqar": 0.5}]),
        leaderboard.build(table_of([record()])),
        table_of([record()]),
    )
    records = [record(EVIL, task=f"<i>{EVIL}", stack=[EVIL, "<u>layer</u>"], option="<s>value</s>"), record()]
    records[0].device = "<em>device</em>"
    found, _ = pages(records, anchors=anchors, title=f"<h2>{EVIL}")
    assert {tag for tag, _ in found.elements} & {"img", "b", "u", "s", "em", "h2"} == set()
    assert len(found.of("script")) == 2 and not any("onerror" in attrs for _, attrs in found.elements)
    assert any(EVIL == cell for row in found.rows for cell in row)
    assert json.loads(found.data)["rows"][0]["stack"]  # and the data are whole


def test_nothing_is_fetched_and_only_our_script_runs(record):
    table = table_of([record()])
    text = page(leaderboard.build(table), leaderboard.details(table, [record()]))
    found = Page(text)
    assert not any(key in attrs for _, attrs in found.elements for key in ("src", "action", "srcset", "poster"))
    assert [attrs["href"] for _, attrs in found.elements if "href" in attrs] == ["data:,"]
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp|import\(", text)
    addresses = set(re.findall(r"https?://[^\s\"'<]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, not an address
    script = text[text.rindex("<script>") + len("<script>") : text.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (meta["content"] for meta in found.of("meta") if "http-equiv" in meta)
    assert f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'")


def test_the_same_records_give_the_same_bytes(record):
    records = [record("a", accuracy=0.5), record("b", accuracy=0.25)]
    texts = {page(leaderboard.build(table_of(r)), leaderboard.details(table_of(r), r)) for r in (records, records)}
    assert len(texts) == 1


def synthetic(archs, settings, lrs, seeds=1):
    """(table, records): a hundred architectures of long names, curves of fifty points."""
    from mad.config import Run
    from mad.records import Record

    rng, records = np.random.default_rng(0), []
    for arch, (task, n), lr, seed in itertools.product(range(archs), settings, lrs, range(seeds)):
        name = f"sliding_attention_linear_attention_hyena_experts_{arch}"
        run = Run.of(
            {
                "task": {"name": task, "vocab_size": 16, "seq_len": n, "frac_noise": 0.0},
                "arch": {"name": name, "stack": ["hyena", "swiglu", {"name": "moe", "top_k": arch}], "max_length": n},
                "optim": {"lr": lr},
                "train": {"num_train": 12800, "num_test": 1280},
                "seed": seed,
            }
        )
        score, last = rng.random(), int(rng.integers(100, 20_000))
        curve = [{"step": last * i // 50, "accuracy": score * i / 50} for i in range(1, 51)]
        cost = {"params": int(rng.integers(1e6)), "flops": int(rng.integers(1e9)), "state_size": int(rng.integers(1e5))}
        records.append(Record(run.id, "ok", run.to_dict(), {"accuracy": score, "valid_accuracy": score}, curve, cost))
    return table_of(records), records


@pytest.mark.parametrize(
    ("settings", "lrs"),
    [(3, 1), pytest.param(66, 6, marks=pytest.mark.slow)],  # the MAD protocol: 39,600 runs
)
def test_a_hundred_rows_are_below_300_kb(settings, lrs):
    tasks = ("in_context_recall", "noisy_in_context_recall", "fuzzy_in_context_recall", "compression", "memorization")
    chosen = [(tasks[i % 5], 16 + i) for i in range(settings)]
    table, records = synthetic(100, chosen, [1e-4 * (i + 1) for i in range(lrs)])
    text = page(leaderboard.build(table), leaderboard.details(table, records), title="mad")
    assert len(text.encode()) < 300_000
    data = json.loads(Page(text).data)
    assert len(Page(text).rows) == 101 and len(data["rows"]) == 100
    assert data["curve"][0] >= 12 and all("curves" in row for row in data["rows"])


def test_where_room_is_short_curves_go_and_then_the_details(monkeypatch):
    table, records = synthetic(20, [("compression", n) for n in range(16, 24)], [1e-3])
    board, behind = leaderboard.build(table), leaderboard.details(table, records)
    whole, states = len(page(board, behind).encode()), []
    for room in range(whole, whole // 2, -400):
        monkeypatch.setattr("mad.leaderboard.html.BYTES", room)
        text = page(board, behind)
        data = json.loads(Page(text).data)
        states.append("none" if data is None else (data["curve"][0], len(data["drawn"] or range(8))))
        assert len(text.encode()) <= room or data is None  # the table itself stays
        assert data is None or ("curves" in data["rows"][0]) == (data["curve"][0] > 0)
    order = [state for state, _ in itertools.groupby(states)]
    assert order == [(24, 8), (16, 8), (12, 8), (16, 6), (16, 3), (12, 2), (12, 1), (0, 8), "none"]


def test_published_scores(record):
    table = table_of([record("a", accuracy=0.5), record("b", accuracy=0.25)])
    board = leaderboard.build(table)
    published = pd.DataFrame({"arch": ["b", "x"], "mqar": [0.375, 0.125], "ppl": [1, 2]})
    found = Page(page(board, None, leaderboard.match(published, board, table)))
    heads = {h["data-k"]: h for h in found.of("th") if "data-k" in h}
    assert heads["mqar"]["data-p"] == "mqar_published" and "data-p" not in heads["params"]
    mqar = found.rows[0].index("mqar")
    assert [row[mqar] for row in found.rows[1:]] == ["0.500", "0.2500.375 -0.125", "0.125"]
    assert found.rows[2][1] == "bpublished: b" and found.rows[3][1] == "xpublished"
    assert found.data == "null"  # without details


def test_the_command_writes_several_at_once(sweep, record, tmp_path, capsys):
    folder = sweep(record("a", accuracy=0.5), record("b", accuracy=0.25))
    names = {kind: tmp_path / f"out.{kind}" for kind in ("csv", "md", "html", "png")}
    assert main([str(folder), *(text for kind, path in names.items() for text in (f"--{kind}", str(path)))]) == 0
    assert all(path.stat().st_size > 100 for path in names.values())
    assert "<title>one</title>" in names["html"].read_text() and "a" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--png", "a.jpeg", "unknown suffix '.jpeg' (did you mean '.png'?); expected one of: .png, .pdf, .svg"),
        ("--html", "a.png", "unknown suffix '.png' (did you mean '"),
        ("--md", "board", "unknown suffix ''"),
        ("--csv", "no/such/b.csv", "there is no folder"),
        ("--html", "", "it is a folder; expected a file"),
        ("--csv", "table.csv/b.csv", "there is no folder"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_before_work(tmp_path, capsys, option, name, message):
    (tmp_path / "table.csv").write_text("arch,task,accuracy\nx,t,1\n")
    assert main([str(tmp_path / "absent.csv"), option, str(tmp_path / name)]) == 2  # before the table is looked for
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and option in said
