"""The page in a real browser: everything one can do with it, that it can be read, and that it asks for nothing."""

import itertools
import time

import pandas as pd
import pytest

from mad import leaderboard
from mad.leaderboard.command import command
from mad.records import Store

EVIL = "<img src=x onerror=alert(1)>"
ARCHS = {"hyena": 0.8, "attention": 1.0, "based_conv": 0.4, EVIL: 0.6}

ALL = "const all = (selector, root) => [...(root ?? document).querySelectorAll(selector)];"
NAMES = f"""{ALL}
const rows = all("#board > tbody > tr:not(.more):not([hidden])");
return rows.map((tr) => tr.querySelector("th > button, th > span").textContent)
"""
COLUMNS = f"""{ALL} return all("#board > thead th").filter((th) => th.checkVisibility()).map((th) => th.dataset.k)"""
TICK = f"""{ALL}
all("#columns label").find((label) => label.textContent === arguments[0]).querySelector("input").click()
"""
FILTER = """
const field = document.querySelector("#filter");
field.focus();
field.value = arguments[0];
field.dispatchEvent(new Event("input"));
"""
CELLS = f"""{ALL} return all(arguments[0]).map((tr) => [...tr.cells].map((cell) => cell.textContent))"""
CURVES = f"""{ALL}
return all("#more-1 svg").map((svg) => [
  svg.getAttribute("aria-label"), ...all("path", svg).map((path) => path.getAttribute("d"))])
"""
NAMED = f"""{ALL}
return all("button, input, select, summary").filter((e) => e.checkVisibility())
  .map((e) => e.textContent.trim() || e.labels?.[0]?.textContent.trim())
"""
REGIONS = f"""{ALL}
const by = (e) => document.getElementById(e.getAttribute("aria-labelledby"));
const label = (e) => e.getAttribute("aria-label") || by(e).textContent;
return all("[role=region]").map((e) => [e.tabIndex, label(e).length > 0])
"""
CONTRAST = """
// [contrast by WCAG, text] of every text that is shown, on the nearest background that is not transparent
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
function rgb(color) {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = color;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
}
const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
function light(color) {
  const [r, g, b] = color.map((v) => linear(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function behind(node) {
  for (let at = node; at; at = at.parentElement) {
    const color = rgb(getComputedStyle(at).backgroundColor);
    if (color[3] === 255) return color;
  }
  return [255, 255, 255];
}
const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const text = walk.currentNode.data.trim(), node = walk.currentNode.parentElement;
  if (!text || !node.checkVisibility() || node.closest("script, noscript, style")) continue;
  const style = getComputedStyle(node);
  const pair = [light(rgb(node.closest("svg") ? style.fill : style.color)), light(behind(node))];
  found.push([(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), text]);
}
return found;
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory, record):
    """A page of four architectures, two tasks, two seeds, two learning rates, and published scores; board, records."""
    store = Store(tmp_path_factory.mktemp("page") / "sweep")
    for arch, score in ARCHS.items():
        for task, lr, seed in itertools.product(("mqar", "copy"), (1e-3, 1e-4), (0, 1)):
            own = score - 0.1 * (task == "copy") - 0.05 * seed - 0.01 * (lr == 1e-4)
            cost = {"params": int(1e5 * score), "flops": int(1e6 / score), "state_size": 64}
            status = "diverged" if (arch, task, lr) == ("hyena", "copy", 1e-4) else "ok"
            store.write(record(arch, task, own, lr=lr, seed=seed, cost=cost, status=status, seq_len=16))
    table, records = leaderboard.load([store.folder])
    board = leaderboard.build(table)
    published = pd.DataFrame({"arch": ["hyena", "theirs"], "mqar": [0.75, 0.5], "copy": [0.5, 0.25]})
    anchors = leaderboard.match(published, board, table)
    file = store.folder / "page.html"
    leaderboard.write_html(board, file, leaderboard.details(table, records), anchors, "a <b>test</b>")
    return file, board, records


@pytest.fixture
def page(chromium, made):
    """The page, opened afresh; at the end it has said nothing on the console, and asked for nothing."""
    chromium.resize(1280, 900)
    chromium.prefer("light")
    chromium.open(made[0])
    yield chromium
    assert chromium.console() == []
    assert [url for url in chromium.requests() if not url.startswith("blob:")] == [made[0].as_uri()]
    assert chromium.run("return performance.getEntriesByType('resource').map(entry => entry.name)") == []


def head(page, key):
    return page.run("return document.querySelector(`th[data-k='${arguments[0]}']`).getAttribute('aria-sort')", key)


def click(page, selector):
    page.run("document.querySelector(arguments[0]).click()", selector)


def test_sorting(page):
    assert page.run(NAMES) == ["attention", "hyena", EVIL, "based_conv", "theirs"]  # as ranked; what is published last
    assert head(page, "rank") == "ascending" and head(page, "mean") is None
    click(page, "th[data-k='flops'] button")
    assert (
        page.run(NAMES) == ["attention", "hyena", EVIL, "based_conv", "theirs"] and head(page, "flops") == "ascending"
    )
    click(page, "th[data-k='flops'] button")
    assert page.run(NAMES) == ["based_conv", EVIL, "hyena", "attention", "theirs"]  # what has no value stays last
    assert head(page, "flops") == "descending" and head(page, "rank") is None
    click(page, "th[data-k='mqar'] button")  # scores begin with the best
    assert (
        page.run(NAMES) == ["attention", "hyena", EVIL, "theirs", "based_conv"] and head(page, "mqar") == "descending"
    )
    page.run("document.querySelector(`th[data-k='arch'] button`).focus()")
    page.keys("\ue007")  # Enter
    assert page.run(NAMES) == [EVIL, "attention", "based_conv", "hyena", "theirs"] and head(page, "arch") == "ascending"
    assert "5 of 5 shown, by architecture, ascending" in page.run("return document.querySelector('#status').value")


def test_filtering_by_name_and_by_layer(page):
    click(page, "tbody tr:nth-child(2) th button")
    for text, names in (
        ("BASED", ["based_conv"]),
        ("swiglu hy", ["hyena"]),
        ("nothing", []),
        ("<img", [EVIL]),
        ("", ["attention", "hyena", EVIL, "based_conv", "theirs"]),
    ):
        page.run(FILTER, "")
        page.keys(*text)
        assert page.run(NAMES) == names
        opened = page.run("return [...document.querySelectorAll('.more')].map(tr => tr.hidden)")
        assert opened == ["hyena" not in names]  # what is open goes with its row
        assert page.run("return document.querySelector('#status').value").startswith(f"{len(names)} of 5 shown")


def test_choosing_columns(page):
    before = page.run(COLUMNS)
    page.run("document.querySelector('.menu summary').focus()")
    page.keys("\ue00d")  # space opens it
    for name in ("params", "win rate"):
        page.run(TICK, name)
    assert page.run(COLUMNS) == [key for key in before if key not in ("params", "win_rate")]
    shown = f"{ALL} return all('#board > tbody > tr').map(tr => all('th, td', tr).filter(cell => !cell.hidden).length)"
    assert set(page.run(shown)) == {len(before) - 2}
    page.run(TICK, "params")
    assert "params" in page.run(COLUMNS)
    page.keys("\ue00c")  # Escape closes it, and the focus is where it was
    state = page.run("return [document.querySelector('.menu').open, document.activeElement.tagName]")
    assert state == [False, "SUMMARY"]


def test_what_stands_behind_a_row(page, made):
    page.run("document.querySelector('#board tbody th button').focus()")
    expanded = "return document.activeElement.getAttribute('aria-expanded')"
    assert page.run(expanded) == "false"
    page.keys("\ue007")
    assert page.run(expanded) == "true"
    controlled = "return document.getElementById(document.activeElement.getAttribute('aria-controls')).className"
    assert page.run(controlled) == "more"
    click(page, "tbody tr:nth-child(3) th button")  # hyena, after the row that was opened
    assert page.run(CELLS, "#more-1 .grid tbody tr") == [
        ["copy, seq len 16", "diverged", "0.675 (best)", "0.675"],
        ["mqar, seq len 16", "0.765", "0.775 (best)", "0.775"],
    ]
    assert "hyena → swiglu" in page.run("return document.querySelector('#more-1').textContent")
    lines = page.run(CURVES)
    assert len(lines) == 2 and all(len(found) == 2 and found[1].count("L") == 9 for found in lines)
    assert lines[1][0] == "Learning curves of mqar: 1 over 100 steps, ending at 0.79 to 0.79"  # in 63 levels
    wanted = {}
    for config in (one.config for one in made[2]):
        if config["arch"]["name"] == "hyena":
            wanted[config["task"]["name"], config["optim"]["lr"]] = command({**config, "seed": 0}) + ",1"
    code = "return document.querySelector('#more-1 code').textContent"
    assert page.run(code) == wanted["copy", 1e-3]  # the best of the first setting
    seen = []
    for i in range(page.run("return document.querySelectorAll('#more-1 .grid button').length")):
        page.run("document.querySelectorAll('#more-1 .grid button')[arguments[0]].click()", i)
        seen.append(page.run(code))
        assert page.run("return document.querySelectorAll('#more-1 [aria-pressed=true]').length") == 1
    assert seen == [wanted[key] for key in (("copy", 1e-4), ("copy", 1e-3), ("mqar", 1e-4), ("mqar", 1e-3))]
    click(page, "tbody tr:nth-child(1) th button")
    assert page.run("return document.querySelector('.more').hidden")


def test_what_stands_behind_a_row_is_text_too(page):
    page.run(f"{ALL} for (const button of all('#board > tbody > tr > th > button')) button.click()")
    texts = page.run(f"{ALL} return all('.more').map((tr) => tr.textContent)")
    assert len(texts) == len(ARCHS) and f"{EVIL} → swiglu" in texts[2]
    assert page.run("return document.querySelectorAll('img').length") == 0


def test_the_csv_has_what_is_shown(page, made):
    _, board, _ = made
    page.run(TICK, "params")
    page.run(FILTER, "swiglu")
    click(page, "th[data-k='flops'] button")
    click(page, "th[data-k='flops'] button")
    click(page, "#download")
    file = page.downloads / "a_b_test_b_.csv"
    for _ in range(100):
        if file.exists():
            break
        time.sleep(0.05)
    got = pd.read_csv(file)
    want = board.sort_values("flops", ascending=False)
    assert got["arch"].tolist() == want["arch"].tolist() == ["based_conv", EVIL, "hyena", "attention"]
    assert "params" not in got and {"mqar_published", "mean_std", "win_rate", "settings_total"} <= set(got)
    for column in set(got) & set(board) - {"arch"}:
        assert got[column].tolist() == pytest.approx(want[column].astype(float).tolist(), abs=1e-4), column
    assert got["mqar_published"].dropna().tolist() == [0.75] and got["mean_published"].dropna().tolist() == [0.625]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_everything_can_be_read_in_light_and_dark_and_at_any_width(page, scheme, width):
    page.resize(width, 844)
    page.prefer(scheme)
    click(page, "#board tbody th button")
    click(page, ".menu summary")
    found = page.run(CONTRAST)
    assert len(found) > 100 and any(text == "0.975" for _, text in found)  # on the fullest colour
    assert min(found)[0] >= 4.5, sorted(found)[:5]
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")  # wide tables scroll by themselves
    assert page.run("return getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 28)"
    )


def test_colours_can_be_chosen_and_are_kept(page, made):
    color = "return getComputedStyle(document.body).backgroundColor"
    choose = "const t = document.querySelector('#theme'); t.value = arguments[0]; t.dispatchEvent(new Event('change'))"
    page.run(choose, "dark")
    assert page.run(color) == "rgb(20, 23, 28)"
    page.run("location.reload()")
    assert page.run(color) == "rgb(20, 23, 28)"
    page.run(choose, "")
    assert page.run(color) == "rgb(255, 255, 255)"
    page.requests()
    page.open(made[0])


def test_for_those_who_do_not_see_it_or_have_no_mouse(page):
    names = page.run(NAMED)
    assert all(names) and len(names) > 15
    click(page, "#board tbody th button")
    assert page.run(REGIONS) == [[0, True], [0, True]]
    assert page.run("return [...document.querySelectorAll('th')].every(th => th.scope)")
    page.run("document.querySelector('#filter').focus()")
    seen = []
    for _ in range(8):
        page.keys("\ue004")  # Tab
        seen.append(page.run("const e = document.activeElement; return [e.tagName, getComputedStyle(e).outlineStyle]"))
    assert [tag for tag, _ in seen] == ["SUMMARY", "BUTTON", "SELECT", "DIV"] + ["BUTTON"] * 4
    assert all(outline == "solid" for _, outline in seen)


def test_in_print(page):
    click(page, "#board tbody th button")
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.devtools("Emulation.setEmulatedMedia", media="print", features=dark)
    assert page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.run("return document.querySelector('.tools').checkVisibility()")
    assert page.run("return document.querySelector('#more-0').checkVisibility()")
    page.devtools("Emulation.setEmulatedMedia", media="")


def test_without_scripts_the_table_is_there(page, made):
    def look(expression):
        return page.devtools("Runtime.evaluate", expression=expression)["result"]["value"]

    page.devtools("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(made[0])
        text, tools = (
            look("document.querySelector('#board').innerText"),
            look("document.querySelector('.tools').hidden"),
        )
    finally:
        page.devtools("Emulation.setScriptExecutionDisabled", value=False)
    assert "attention" in text and EVIL in text and tools is True
