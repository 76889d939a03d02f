"use strict";
// Selectors, the carrier map, the answers browser, and the order in which the page draws itself.
{
  const { element, page, shown } = caryatid;
  const by = (id) => document.getElementById(id);
  const state = { seed: page.seeds[0], step: 0, profile: page.profile, position: "best", quantity: "bypass_effect" };
  const linked = () => ({ seed: state.seed, step: state.step });
  const steps = () => [...new Set(caryatid.rows("behaviour", { seed: state.seed }).map((row) => row.step))].sort((a, b) => a - b);

  function options(select, values, words, chosen) {
    select.replaceChildren(...values.map((value, i) => element("option", { value, selected: String(value) === String(chosen) }, words ? words[i] : String(value))));
  }

  // ---- the carrier map: computed here from the table `carriers`, as figures.py does it for the files
  function first(row, best) {
    if (!best) return true;
    for (const key of ["best", "admissible"]) if (row[key] !== best[key]) return row[key];
    return row.bypass !== null && (best.bypass === null || row.bypass < best.bypass);
  }

  caryatid.mapGrid = function (arm, wanted) {
    const key = { seed: wanted.seed, profile: wanted.profile };
    const rows = [...caryatid.rows("carriers", { ...key, arm: "base" }), ...caryatid.rows("carriers", { ...key, arm })];
    const columns = [...new Set(rows.map((row) => row.step))].sort((a, b) => a - b);
    const layers = [...new Set(rows.map((row) => row.layer))].sort((a, b) => b - a);
    const cells = new Map();
    for (const row of rows) {
      const place = `${row.layer} ${row.step}`;
      if ((wanted.position === "best" || row.position === wanted.position) && first(row, cells.get(place))) cells.set(place, row);
    }
    const depth = [...caryatid.rows("carrier_summary", { ...key, arm: "base", quantity: "depth" }), ...caryatid.rows("carrier_summary", { ...key, arm, quantity: "depth" })];
    const rings = new Map(depth.map((row) => [row.step, row.depth_layer]));
    const grid = { kind: "grid", title: arm, columns: columns.map(String), rows: layers.map(String), x: "step", y: "layer", column_steps: columns, values: [], tips: [], framed: [], marked: [], ringed: [] };
    layers.forEach((layer, y) => {
      const here = columns.map((step) => cells.get(`${layer} ${step}`));
      grid.values.push(here.map((row) => (row ? row[wanted.quantity] : null)));
      grid.tips.push(here.map((row) => (row
        ? `layer ${row.layer}, position ${row.position}: bypass ${shown(row.bypass_effect)}, induce ${shown(row.induce_effect)}, KL ${shown(row.kl)}${row.admissible ? ", admissible" : ""}`
        : "not scored")));
      here.forEach((row, x) => {
        if (row && row.admissible) grid.framed.push([y, x]);
        if (row && row.best) grid.marked.push([y, x]);
        if (rings.get(columns[x]) === layer) grid.ringed.push([y, x]);
      });
    });
    return grid;
  };

  function drawMap() {
    const arms = [...new Set(caryatid.rows("behaviour", { seed: state.seed }).map((row) => row.arm))].filter((arm) => arm !== "base");
    caryatid.draw(by("map"), { title: "Carrier map", panels: arms.map((arm) => caryatid.mapGrid(arm, state)) }, state.step);
  }

  // ---- what the model does at the chosen step
  function drawNow() {
    const rows = caryatid.rows("behaviour", { seed: state.seed, step: state.step }).filter((row) => !row.group);
    const arms = [...new Set(rows.map((row) => row.arm))];
    const measured = page.headline.filter(([, suite, attack, metric]) => rows.some((row) => row.suite === suite && row.attack === attack && row.metric === metric));
    by("now-step").textContent = `step ${state.step}`;
    by("now").replaceChildren(
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "arm"), ...measured.map(([title]) => element("th", { scope: "col" }, title)))),
      element("tbody", {}, ...arms.map((arm) => element("tr", {}, element("th", { scope: "row" }, element("bdi", {}, arm)), ...measured.map(([, suite, attack, metric]) => {
        const row = rows.find((one) => one.arm === arm && one.suite === suite && one.attack === attack && one.metric === metric);
        if (!row) return element("td", {}, "–");
        const rate = (value) => (value === null ? "–" : Math.abs(value) <= 1 ? value.toFixed(2) : shown(value));
        return element("td", {}, element("b", {}, rate(row.value)), " ", element("span", { class: "soft" }, `[${rate(row.lo)}, ${rate(row.hi)}]`), " ", element("span", { class: "soft" }, `n = ${row.n}`));
      })))),
    );
  }

  // ---- answers
  const ANSWERS = 10;
  const FILTERS = ["seed", "arm", "step", "suite", "attack", "verdict"];
  let from = 0;

  function drawAnswers() {
    const table = caryatid.table("answers");
    const wanted = FILTERS.map((name) => [name, by(`answers-${name}`).value]).filter(([, value]) => value !== "");
    const text = by("answers-text").value.toLowerCase();
    const places = [];
    for (let i = 0; i < table.n; i += 1) {
      const here = wanted.every(([name, value]) => String(table.columns[name][i]) === value);
      if (here && (!text || `${table.columns.prompt[i]}\n${table.columns.answer[i]}`.toLowerCase().includes(text))) places.push(i);
    }
    from = Math.min(from, Math.max(0, places.length - 1));
    by("answers-count").textContent = places.length ? `${from + 1} to ${Math.min(from + ANSWERS, places.length)} of ${places.length}` : "no answer";
    by("answers-back").disabled = from === 0;
    by("answers-next").disabled = from + ANSWERS >= places.length;
    by("answers-list").replaceChildren(...places.slice(from, from + ANSWERS).map((i) => {
      const get = (name) => table.columns[name][i];
      const facts = [`${get("arm")}, step ${get("step")}, seed ${get("seed")}`, get("suite"), get("attack"), get("verdict") || "unscored", get("degenerate")];
      return element("li", {}, element("div", { class: "soft" }, facts.filter(Boolean).join(" · ")),
        element("div", { class: "prompt", dir: "auto" }, get("prompt")), element("div", { class: "answer", dir: "auto" }, get("answer")));
    }));
  }

  function readyAnswers() {
    const table = caryatid.table("answers");
    if (!table || !by("answers-list")) return;
    for (const name of FILTERS) {
      const values = [...new Set(table.columns[name])];
      options(by(`answers-${name}`), ["", ...values], [`every ${name}`, ...values.map((value) => (value === "" ? "unscored" : String(value)))], "");
      by(`answers-${name}`).addEventListener("change", () => { from = 0; drawAnswers(); });
    }
    by("answers-text").addEventListener("input", () => { from = 0; drawAnswers(); });
    by("answers-back").addEventListener("click", () => { from = Math.max(0, from - ANSWERS); drawAnswers(); });
    by("answers-next").addEventListener("click", () => { from += ANSWERS; drawAnswers(); });
    drawAnswers();
  }

  // ---- the page as a whole
  const figures = () => [...document.querySelectorAll("figure[data-chart]")];
  const visible = (figure) => figure.offsetParent !== null;
  const chartOf = (figure) => page.charts[figure.dataset.chart.replace("SEED", state.seed)] || page.charts[figure.dataset.chart];

  function drawFigure(figure) {
    const chart = chartOf(figure);
    if (!chart || !visible(figure)) return;
    if (chart.caption) figure.querySelector("figcaption").textContent = chart.caption;
    caryatid.draw(figure, chart, state.step);
  }

  // Draws one figure at a time, so that the page answers in between.
  let queue = [];
  function work() {
    const next = queue.shift();
    if (!next) { document.documentElement.dataset.drawn = "yes"; return; }
    next();
    setTimeout(work);
  }

  function drawAll() {
    document.documentElement.dataset.drawn = "no";
    const idle = queue.length === 0;
    queue = [drawNow, drawMap, ...figures().map((figure) => () => drawFigure(figure))];
    if (idle) setTimeout(work);
  }

  function setStep(step) {
    state.step = step;
    const all = steps();
    by("step").value = String(all.indexOf(step));
    by("step").setAttribute("aria-valuetext", `step ${step}`);
    by("step-shown").textContent = `step ${step}`;
    drawNow();
    for (const figure of [...figures(), by("map")]) caryatid.move(figure, step);
    for (const fold of document.querySelectorAll("details.table[open]")) fold.redraw?.();
  }

  function setSeed(seed) {
    state.seed = seed;
    const all = steps();
    by("step").max = String(all.length - 1);
    state.step = all.at(-1);
    drawAll();
    setStep(state.step);
  }

  function ready() {
    const positions = [...new Set((caryatid.table("carriers") || { columns: { position: [] } }).columns.position)].sort((a, b) => b - a);
    const profiles = [...new Set((caryatid.table("carriers") || { columns: { profile: [] } }).columns.profile)];
    options(by("seed"), page.seeds, page.seeds.map((seed) => `seed ${seed}`), state.seed);
    options(by("position"), ["best", ...positions], ["best of each layer", ...positions.map(String)], "best");
    options(by("profile"), profiles, null, state.profile);
    by("seed").addEventListener("change", (event) => setSeed(Number(event.target.value)));
    by("step").addEventListener("input", (event) => setStep(steps()[Number(event.target.value)]));
    by("position").addEventListener("change", (event) => { state.position = event.target.value === "best" ? "best" : Number(event.target.value); drawMap(); });
    by("profile").addEventListener("change", (event) => { state.profile = event.target.value; drawMap(); });
    by("quantity").addEventListener("change", (event) => { state.quantity = event.target.value; drawMap(); });
    for (const fold of document.querySelectorAll("details")) {
      fold.addEventListener("toggle", () => {
        if (!fold.open) return;
        if (fold.classList.contains("table")) caryatid.fill(fold, linked);
        for (const figure of fold.querySelectorAll("figure[data-chart]")) if (!figure.drawn) drawFigure(figure);
      });
    }
    for (const fold of document.querySelectorAll("details.table[open]")) caryatid.fill(fold, linked);
    by("save-config")?.addEventListener("click", () => caryatid.save("config.yaml", by("config").textContent, "text/yaml"));
    by("theme").addEventListener("click", () => {
      const dark = getComputedStyle(document.documentElement).colorScheme === "dark";
      document.documentElement.dataset.theme = dark ? "light" : "dark";
      drawAll();
    });
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
    let screen = null; // the theme before printing, which is always light
    window.addEventListener("beforeprint", () => {
      screen = document.documentElement.dataset.theme || "";
      document.documentElement.dataset.theme = "light";
      document.documentElement.classList.add("printing"); // as wide as paper, before anything is drawn
      drawAll();
      while (queue.length) queue.shift()();
    });
    window.addEventListener("afterprint", () => {
      document.documentElement.dataset.theme = screen;
      document.documentElement.classList.remove("printing");
      drawAll();
    });
    caryatid.state = state;
    setSeed(state.seed);
    readyAnswers();
  }
  ready();
}
