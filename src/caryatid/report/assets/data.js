"use strict";
// The page's data (embed.py), decoded, and helpers that put text into the page as text and never as markup.
const caryatid = {};
{
  const page = JSON.parse(document.getElementById("data-json").textContent);
  const decoded = {};
  caryatid.page = page;

  // One column of a table: a single value, numbers of distinct values, or all values.
  function column(stored, n) {
    if ("one" in stored) return new Array(n).fill(stored.one);
    return stored.of ? stored.at.map((place) => stored.of[place]) : stored.all;
  }

  // A table as {n, names, columns}, decoded when it is first asked for; null where there is none.
  caryatid.table = function (name) {
    const stored = page.tables[name];
    if (!stored) return null;
    if (!decoded[name]) {
      const columns = {};
      for (const key of Object.keys(stored.columns)) columns[key] = column(stored.columns[key], stored.n);
      decoded[name] = { n: stored.n, names: Object.keys(stored.columns), columns };
    }
    return decoded[name];
  };

  // Rows of a table, as objects, for which every wanted column has the wanted value.
  caryatid.rows = function (name, wanted) {
    const table = caryatid.table(name);
    const found = [];
    if (!table) return found;
    const keys = Object.keys(wanted);
    for (let i = 0; i < table.n; i += 1) {
      if (keys.every((key) => (table.columns[key] ? table.columns[key][i] === wanted[key] : false))) {
        const row = {};
        for (const key of table.names) row[key] = table.columns[key][i];
        found.push(row);
      }
    }
    return found;
  };

  // An element with attributes and children; strings become text.
  caryatid.element = function (tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (key === "on") for (const [event, act] of Object.entries(value)) made.addEventListener(event, act);
      else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  };

  // A cell as it is read: four significant digits, a dash for nothing.
  caryatid.shown = function (value) {
    if (value === null || value === undefined) return "–";
    if (value === true) return "yes";
    if (value === false) return "no";
    if (typeof value === "number" && !Number.isInteger(value)) return String(Number(value.toPrecision(4)));
    return String(value);
  };

  // Text for plotly, which reads some markup: every < > & is written as an entity.
  caryatid.plain = function (text) {
    return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  };

  // Offer a text as a file.
  caryatid.save = function (name, text, type) {
    const address = URL.createObjectURL(new Blob([text], { type }));
    const link = caryatid.element("a", { href: address, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  };
}
