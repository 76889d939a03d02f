"use strict";
// Tables that sort, filter and download. `details.table` is filled when it is opened.
{
  const { element, shown } = caryatid;
  const PAGE = 50;
  const TEST = /^([\w ]+?)\s*(>=|<=|!=|=|>|<)\s*(.*)$/;

  // Whether a row passes a filter: words that must occur, and tests such as arm=r2d2 or value>0.5, separated by spaces.
  function tests(text, table) {
    return text.trim().split(/\s+(?=(?:[^"]*"[^"]*")*[^"]*$)/).filter(Boolean).map((word) => {
      const found = TEST.exec(word.replace(/"/g, ""));
      if (!found || !table.columns[found[1]]) {
        const wanted = word.replace(/"/g, "").toLowerCase();
        return (i) => table.names.some((name) => shown(table.columns[name][i]).toLowerCase().includes(wanted));
      }
      const [, name, operator, right] = found;
      const cells = table.columns[name];
      const number = Number(right);
      const compare = {
        "=": (cell) => shown(cell) === right || (right !== "" && cell === number),
        "!=": (cell) => shown(cell) !== right && cell !== number,
        ">": (cell) => cell !== null && cell > number,
        "<": (cell) => cell !== null && cell < number,
        ">=": (cell) => cell !== null && cell >= number,
        "<=": (cell) => cell !== null && cell <= number,
      }[operator];
      return (i) => compare(cells[i]);
    });
  }

  // Rows in order of a column; what is empty comes last either way.
  function sorted(places, cells, direction) {
    const compare = (a, b) => {
      const [left, right] = [cells[a], cells[b]];
      if (left === null || right === null) return (left === null) - (right === null) || a - b;
      const order = typeof left === "string" ? left.localeCompare(right) : Number(left) - Number(right);
      return direction * order || a - b;
    };
    return direction ? [...places].sort(compare) : places;
  }

  function csvCell(value) {
    if (value === null || value === undefined) return "";
    if (typeof value !== "string") return String(value);
    const inert = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value; // no formula for a spreadsheet
    return /[",\n\r]/.test(inert) ? `"${inert.replace(/"/g, '""')}"` : inert;
  }

  // Fill a fold with its table. `linked` gives what the page's selectors ask for, {seed, step}.
  caryatid.fill = function (fold, linked) {
    const table = caryatid.table(fold.dataset.table);
    if (!table || fold.querySelector("table")) return;
    const names = fold.dataset.columns ? fold.dataset.columns.split(" ").filter((name) => table.columns[name]) : table.names;
    const state = { sort: null, direction: 0, page: 0, text: fold.dataset.filter || "" };
    const step = table.columns.step ? "step" : table.columns.to ? "to" : null;
    const search = element("input", {
      type: "search", placeholder: "words, or arm=r2d2 value>0.5", "aria-label": `Filter ${fold.dataset.table}`, value: state.text,
    });
    const only = element("input", { type: "checkbox" });
    const count = element("span", { class: "soft", role: "status" });
    const save = element("button", { type: "button" }, "Download CSV");
    const back = element("button", { type: "button" }, "Previous");
    const on = element("button", { type: "button" }, "Next");
    const head = element("tr");
    const body = element("tbody");
    const whole = element("table", {}, element("thead", {}, head), body);
    const box = element("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": `Table ${fold.dataset.table}` }, whole);
    const buttons = names.map((name) => {
      const button = element("button", { type: "button", class: "sort" }, name);
      const cell = element("th", { scope: "col", "aria-sort": "none" }, button);
      button.addEventListener("click", () => {
        state.direction = state.sort === name ? { 1: -1, "-1": 0, 0: 1 }[state.direction] : 1;
        state.sort = name;
        state.page = 0;
        draw();
      });
      head.append(cell);
      return cell;
    });

    function chosen() {
      const passes = tests(state.text, table);
      const want = linked();
      const places = [];
      for (let i = 0; i < table.n; i += 1) {
        const here = !only.checked || ((!table.columns.seed || table.columns.seed[i] === want.seed) && table.columns[step][i] === want.step);
        if (here && passes.every((test) => test(i))) places.push(i);
      }
      return sorted(places, table.columns[state.sort], state.sort ? state.direction : 0);
    }

    function draw() {
      const places = chosen();
      const pages = Math.max(1, Math.ceil(places.length / PAGE));
      state.page = Math.min(state.page, pages - 1);
      body.replaceChildren(...places.slice(state.page * PAGE, (state.page + 1) * PAGE).map((i) =>
        element("tr", {}, ...names.map((name) => {
          const value = table.columns[name][i];
          const text = shown(value);
          const kind = typeof value === "number" ? "number" : text.length > 30 ? "words" : "short";
          return element("td", { class: kind, dir: typeof value === "string" ? "auto" : null }, text);
        }))));
      names.forEach((name, place) => {
        const sort = state.sort === name ? { 1: "ascending", "-1": "descending", 0: "none" }[state.direction] : "none";
        buttons[place].setAttribute("aria-sort", sort);
      });
      count.textContent = `${places.length} of ${table.n} rows, page ${state.page + 1} of ${pages}`;
      back.disabled = state.page === 0;
      on.disabled = state.page + 1 >= pages;
    }

    search.addEventListener("input", () => { state.text = search.value; state.page = 0; draw(); });
    only.addEventListener("change", () => { state.page = 0; draw(); });
    back.addEventListener("click", () => { state.page -= 1; draw(); });
    on.addEventListener("click", () => { state.page += 1; draw(); });
    save.addEventListener("click", () => {
      const lines = [names, ...chosen().map((i) => names.map((name) => table.columns[name][i]))];
      caryatid.save(`${fold.dataset.table}.csv`, `${lines.map((line) => line.map(csvCell).join(",")).join("\n")}\n`, "text/csv");
    });
    const tools = element("div", { class: "tools" }, search, save, back, on, count);
    if (step && document.getElementById("step")) search.after(element("label", {}, only, " only the step above"));
    fold.append(tools, box);
    fold.redraw = draw;
    draw();
  };
  caryatid.csvCell = csvCell;
}
