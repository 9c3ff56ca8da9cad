"use strict";
// The table is in the page already; here are sorting, filtering, choosing columns, what stands behind a row, and CSV.
// Whatever comes from the data is set as text, never as markup.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const board = byId("board"), body = board.tBodies[0], heads = [...board.tHead.rows[0].cells];
  const rows = [...body.rows].map((tr, place) => ({ tr, place, more: null, name: tr.querySelector("th span").textContent }));
  const nameAt = heads.findIndex((th) => th.classList.contains("name"));

  function element(tag, fields = {}, ...children) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(fields)) key in made ? (made[key] = value) : made.setAttribute(key, value);
    made.append(...children);
    return made;
  }
  const number = (cell) => (cell.dataset.v === undefined ? NaN : Number(cell.dataset.v));
  const columnName = (th) => (th.textContent === "#" ? "rank" : th.textContent);
  const shown = () => rows.filter((row) => !row.tr.hidden);

  // ------------------------------------------------------------------------------------------------------------------
  // Sorting: by the numbers behind the texts; what has none comes last either way, and equals keep the board's order.

  let sorted = { at: heads.findIndex((th) => th.classList.contains("rank")), sign: 1 };
  function sortBy(at, sign) {
    sorted = { at, sign };
    const key = (row) => (at < 0 ? row.place : at === nameAt ? row.name.toLowerCase() : number(row.tr.cells[at]));
    const none = (value) => Number.isNaN(value);
    rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (none(x) || none(y)) return none(x) - none(y) || a.place - b.place;
      return sign * (x < y ? -1 : x > y ? 1 : 0) || a.place - b.place;
    });
    for (const row of rows) body.append(row.tr, ...(row.more ? [row.more] : []));
    heads.forEach((th, i) => (i === at ? th.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending") : th.removeAttribute("aria-sort")));
    tell();
  }
  heads.forEach((th, at) => {
    const first = ["rank", "name", "amount"].some((kind) => th.classList.contains(kind)) ? 1 : -1;
    const button = element("button", { type: "button", textContent: th.textContent });
    button.onclick = () => sortBy(at, sorted.at === at ? -sorted.sign : first);
    th.replaceChildren(button);
  });
  function tell() {
    const by = sorted.at < 0 ? "" : `, by ${columnName(heads[sorted.at])}, ${sorted.sign > 0 ? "ascending" : "descending"}`;
    byId("status").value = `${shown().length} of ${rows.length} shown${by}`;
  }

  // ------------------------------------------------------------------------------------------------------------------
  // Filter and columns

  byId("filter").oninput = (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const stack = data && row.tr.dataset.i !== undefined ? data.rows[row.tr.dataset.i].stack : "";
      const text = `${row.tr.cells[nameAt].textContent} ${stack}`.toLowerCase();
      row.tr.hidden = !words.every((word) => text.includes(word));
      if (row.more) row.more.hidden = row.tr.hidden || !isOpen(row);
    }
    tell();
  };
  heads.forEach((th, at) => {
    if (at === nameAt) return;
    const box = element("input", { type: "checkbox", checked: true });
    box.onchange = () => {
      for (const tr of [board.tHead.rows[0], ...rows.map((row) => row.tr)]) tr.cells[at].hidden = !box.checked;
    };
    byId("columns").append(element("label", {}, box, element("span", { textContent: columnName(th) })));
  });
  const menu = document.querySelector(".menu");
  document.addEventListener("click", (event) => menu.contains(event.target) || (menu.open = false));
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    menu.open = false;
    menu.querySelector("summary").focus();
  });

  // ------------------------------------------------------------------------------------------------------------------
  // CSV of what is shown: its rows in their order, its columns, all digits that the page has

  function csv() {
    const columns = heads.map((th, at) => ({ at, ...th.dataset })).filter(({ at }) => !heads[at].hidden);
    const quoted = (text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const parts = ({ k, e, p }) => [k, e, p];
    const values = ({ at, k, e, p }, row) => {
      const { v = "", e: spread = "", p: theirs = "" } = row.tr.cells[at].dataset;
      return [k && (at === nameAt ? (row.tr.classList.contains("theirs") ? `published: ${row.name}` : row.name) : v), e && spread, p && theirs];
    };
    const lines = [columns.flatMap((c) => parts(c)), ...shown().map((row) => columns.flatMap((c) => values(c, row)))];
    return lines.map((line) => line.filter((cell) => cell !== undefined).map(quoted).join(",") + "\n").join("");
  }
  byId("download").onclick = () => {
    const url = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    element("a", { href: url, download: `${document.title.replace(/[^\w.-]+/g, "_")}.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  };

  // ------------------------------------------------------------------------------------------------------------------
  // Light and dark; a choice is kept where the browser keeps things for files

  const root = document.documentElement, theme = byId("theme");
  const kept = { get: () => { try { return localStorage.getItem("theme") || ""; } catch { return ""; } }, set: (to) => { try { localStorage.setItem("theme", to); } catch {} } };
  const paint = (to) => (to ? (root.dataset.theme = to) : delete root.dataset.theme);
  theme.value = kept.get();
  paint(theme.value);
  theme.onchange = () => { paint(theme.value); kept.set(theme.value); };

  // ------------------------------------------------------------------------------------------------------------------
  // What stands behind a row; pack.py says how it is packed

  const digit = (char) => data.digits.indexOf(char);
  const names = data && Object.fromEntries(Object.entries(data.codes).map(([name, code]) => [code, name]));
  function score(text, at) {
    const level = 64 * digit(text[2 * at]) + digit(text[2 * at + 1]);
    return names[level] || data.scale[0] + data.scale[1] * level;
  }
  const written = (value) => (typeof value === "string" ? (value === "missing" ? "" : value) : value.toFixed(3));
  const value = (given) => (typeof given === "string" ? (given === "diverged" ? 0 : -Infinity) : given);
  const isOpen = (row) => row.button.getAttribute("aria-expanded") === "true";
  const label = (setting) => [data.tasks[setting[0]].replaceAll("_", " "), setting[1]].filter(Boolean).join(", ");

  function commandOf(packed, setting, point, cell) {
    const usual = packed.parts.length ? [data.settings[setting][2], packed.parts[0], data.grid[point][1], data.settings[setting][3], packed.parts[1]] : [];
    const own = packed.other?.[cell] ?? usual;
    return own.length && own.every((part) => part !== undefined) ? [data.program, ...own.map((part) => data.parts[part])].join(" ") : "";
  }

  function gridTable(packed, settings, grid, choose) {
    const all = settings.map((_, i) => grid.map((_, j) => score(packed.scores, i * grid.length + j)));
    const known = all.flat().map(value).filter(Number.isFinite), low = Math.min(0, ...known), high = Math.max(1, ...known);
    const heat = (given) => Math.max(0, (value(given) - low) / (high - low)).toFixed(2);
    const head = element("tr", {}, element("th", { scope: "col", textContent: "setting" }),
      ...grid.map((point) => element("th", { scope: "col", textContent: data.grid[point][0] })));
    if (packed.best) head.append(element("th", { scope: "col", className: "counted", textContent: "best of each seed, mean" }));
    const lines = settings.map((setting, i) => {
      const best = Math.max(...all[i].map(value));
      const line = element("tr", {}, element("th", { scope: "row", textContent: label(data.settings[setting]) }));
      grid.forEach((point, j) => {
        const text = written(all[i][j]), command = commandOf(packed, setting, point, i * grid.length + j);
        const inner = element(command ? "button" : "span", { textContent: text });
        const cell = element("td", {}, inner);
        if (Number.isFinite(value(all[i][j]))) { cell.className = "s"; cell.style.setProperty("--s", heat(all[i][j])); }
        if (value(all[i][j]) === best && Number.isFinite(best)) { cell.classList.add("best"); inner.append(element("span", { className: "unseen", textContent: " (best)" })); }
        if (command) {
          inner.type = "button";
          inner.setAttribute("aria-pressed", "false");
          inner.onclick = () => choose(inner, command, `${label(data.settings[setting])}; ${data.grid[point][0]}`);
          if (cell.classList.contains("best")) inner.dataset.best = "";
        }
        line.append(cell);
      });
      if (packed.best) line.append(element("td", { className: "counted" }, element("span", { textContent: written(score(packed.best, i)) })));
      return line;
    });
    const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...lines));
    return element("div", { className: "grid", tabIndex: 0, role: "region", "aria-label": "Scores of settings and optimiser points" }, table);
  }

  function drawing(tag, fields, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, given] of Object.entries(fields)) made.setAttribute(key, given);
    if (text !== undefined) made.textContent = text;
    return made;
  }
  function curveOf(text) {
    const [count, unit, low, high] = data.curve, digits = [...text].map(digit);
    const last = (digits[0] * 4096 + digits[1] * 64 + digits[2]) * unit, first = (digits[3] / 63) * last;
    return Array.from({ length: count }, (_, i) => [first + ((last - first) * i) / Math.max(count - 1, 1), low + ((high - low) * digits[4 + i]) / 63]);
  }
  function curves(packed, settings) {
    const figures = [], size = 4 + data.curve[0], [, , low, high] = data.curve, [width, height, left, base] = [240, 120, 30, 102];
    data.tasks.forEach((task, number) => {
      const lines = settings.filter((setting) => data.drawn?.includes(setting) ?? true).map((setting, i) => ({ setting, text: packed.curves.slice(i * size, (i + 1) * size) }))
        .filter(({ setting, text }) => data.settings[setting][0] === number && text[0] !== ".");
      if (!lines.length) return;
      const found = lines.map(({ setting, text }) => ({ setting, points: curveOf(text) }));
      const longest = Math.max(...found.map(({ points }) => points.at(-1)[0])), ends = found.map(({ points }) => points.at(-1)[1]);
      const x = (step) => left + (step / (longest || 1)) * (width - left - 8), y = (given) => base - ((given - low) / (high - low || 1)) * (base - 10);
      const name = task.replaceAll("_", " "), spread = `${Math.min(...ends).toFixed(2)} to ${Math.max(...ends).toFixed(2)}`;
      const svg = drawing("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Learning curves of ${name}: ${lines.length} over ${longest.toFixed(0)} steps, ending at ${spread}` });
      for (const at of [low, (low + high) / 2, high]) {
        svg.append(drawing("line", { x1: left, x2: width - 8, y1: y(at), y2: y(at) }));
        svg.append(drawing("text", { x: left - 4, y: y(at) + 3, "text-anchor": "end" }, Number(at.toPrecision(2))));
      }
      svg.append(drawing("text", { x: left, y: height - 5 }, "0"), drawing("text", { x: width - 8, y: height - 5, "text-anchor": "end" }, `${longest.toFixed(0)} steps`));
      for (const { setting, points } of found) {
        const path = drawing("path", { d: "M" + points.map(([step, given]) => `${x(step).toFixed(1)} ${y(given).toFixed(1)}`).join("L") });
        path.append(drawing("title", {}, label(data.settings[setting])));
        svg.append(path);
      }
      figures.push(element("figure", {}, element("figcaption", { textContent: name }), svg));
    });
    return figures;
  }

  function inside(row) {
    const packed = data.rows[row.tr.dataset.i], all = (list) => list.map((_, i) => i);
    const settings = packed.settings ?? all(data.settings), grid = packed.grid ?? all(data.grid);
    const box = element("div", { className: "inside" });
    const title = (text) => box.append(element("h3", { textContent: text }));
    if (packed.stack) { title("Stack"); box.append(element("p", { textContent: packed.stack })); }
    if (data.parts[packed.about]) box.append(element("p", { className: "quiet", textContent: data.parts[packed.about] }));
    title("Settings and optimiser grid");
    const text = element("code"), about = element("p", { className: "quiet" }), copy = element("button", { type: "button", textContent: "Copy" });
    let pressed = null;
    const choose = (button, command, what) => {
      pressed?.setAttribute("aria-pressed", "false");
      (pressed = button).setAttribute("aria-pressed", "true");
      text.textContent = command;
      about.textContent = what;
    };
    const table = gridTable(packed, settings, grid, choose);
    box.append(element("p", { className: "quiet", textContent: `${data.score.replaceAll("_", " ")} on the test split, averaged over seeds; the best of a setting is bold` }), table);
    if (packed.curves) {
      title("Learning curves");
      box.append(element("p", { className: "quiet", textContent: `${data.score.replaceAll("_", " ")} on the test split at the best point of ${data.drawn ? "some settings of each task" : "each setting"}` }));
      box.append(element("div", { className: "curves" }, ...curves(packed, settings)));
    }
    const first = table.querySelector("[data-best]") ?? table.querySelector("button");
    if (first) {
      title("Run it again");
      copy.onclick = async () => {
        try { await navigator.clipboard.writeText(text.textContent); copy.textContent = "Copied"; }
        catch { getSelection().selectAllChildren(text); copy.textContent = "Selected"; }
        setTimeout(() => (copy.textContent = "Copy"), 1500);
      };
      box.append(about, element("div", { className: "shell" }, element("pre", {}, text), copy),
        element("p", { className: "quiet", textContent: "Choose a score above for its command." }));
      first.click();
    }
    return box;
  }

  for (const row of rows) {
    row.button = element("button", { type: "button" });
    if (!data || row.tr.dataset.i === undefined) continue;
    const name = row.tr.querySelector("th span"), id = `more-${row.tr.dataset.i}`;
    row.button.append(...name.childNodes);
    row.button.setAttribute("aria-expanded", "false");
    name.replaceWith(row.button);
    row.button.onclick = () => {
      const open = !isOpen(row);
      row.button.setAttribute("aria-expanded", String(open));
      if (open && !row.more) {
        row.more = element("tr", { className: "more", id }, element("td", { colSpan: heads.length }, inside(row)));
        row.tr.after(row.more);
        row.button.setAttribute("aria-controls", id);
      }
      row.more.hidden = !open;
    };
  }
  document.querySelector(".tools").hidden = false;
  sortBy(sorted.at, 1);
})();
