"use strict";
// Charts as charts.py describes them, drawn by plotly: axes with lines, and grids of shares.
{
  const { element, plain } = caryatid;
  const FRAME = "#D55E00";
  const SIGNS = { circle: "●", square: "■", diamond: "◆", "triangle-up": "▲", cross: "✚", x: "✕", star: "★", "triangle-down": "▼", "line-ew": "–" };
  const coarse = window.matchMedia("(pointer: coarse)");
  // Plotly shows its buttons all the time, over the drawing, where nothing can hover; there is no place for them then.
  const hovers = window.matchMedia("(hover: hover)");

  // Colours of the page's theme, which charts share.
  function theme() {
    const style = getComputedStyle(document.documentElement);
    const get = (name) => style.getPropertyValue(name).trim();
    return { ink: get("--ink"), soft: get("--soft"), line: get("--line"), page: get("--page"), low: get("--low"), high: get("--high") };
  }

  function axis(title, colours, more) {
    return {
      title: { text: plain(title || ""), font: { size: 11 }, standoff: 6 }, gridcolor: colours.line, linecolor: colours.soft, zeroline: false,
      tickfont: { size: 10 }, automargin: true, fixedrange: coarse.matches, ...more,
    };
  }

  function layout(panel, colours, x, y, shapes) {
    return {
      xaxis: axis(panel.x, colours, x), yaxis: axis(panel.y, colours, y), shapes, showlegend: false, hovermode: "closest",
      margin: { l: 46, r: 10, t: 8, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colours.ink, size: 11 },
      hoverlabel: { align: "left" },
    };
  }

  // One line of a panel; labels stand to the left of points beyond x = `right`, and below points beyond y = `top`.
  function trace(line, right, top) {
    const values = line.y || [];
    const bars = line.lo && line.hi;
    const tips = line.tips ? line.tips.map(plain) : undefined;
    const mode = { dots: "markers", path: "lines" }[line.mark] || "lines+markers";
    return {
      type: "scatter", x: line.x || [], y: values, mode: line.labels ? `${mode}+text` : mode, name: plain(line.name),
      text: line.labels ? line.labels.map(plain) : undefined, textposition: line.labels ? line.x.map((x, i) => `${values[i] > top ? "bottom" : "top"} ${x > right ? "left" : "right"}`) : undefined, textfont: { size: 9 },
      hovertext: tips, hoverinfo: tips ? "text" : "skip",
      marker: { color: line.colour, symbol: line.symbol === "line-ew" ? "line-ew-open" : line.symbol, size: 7, line: { color: line.colour } },
      line: { color: line.colour, width: line.mark === "path" ? 1 : 1.8 },
      error_y: bars ? {
        type: "data", symmetric: false, thickness: 1.2, width: 0,
        array: values.map((v, i) => (v === null || line.hi[i] === null ? 0 : Math.max(0, line.hi[i] - v))),
        arrayminus: values.map((v, i) => (v === null || line.lo[i] === null ? 0 : Math.max(0, v - line.lo[i]))),
      } : undefined,
    };
  }

  function marker(step, colours) {
    return { type: "line", xref: "x", yref: "paper", x0: step, x1: step, y0: 0, y1: 1, line: { color: colours.soft, width: 1, dash: "dot" }, layer: "below" };
  }

  function panelShapes(panel, colours, step) {
    const shapes = (panel.bands || []).map(([, low, high]) => ({
      type: "rect", xref: "paper", x0: 0, x1: 1, y0: low, y1: high, fillcolor: "#E69F00", opacity: 0.25, line: { width: 0 }, layer: "below",
    }));
    if (panel.level !== undefined) {
      shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: panel.level, y1: panel.level, line: { color: colours.ink, width: 1, dash: "dash" } });
    }
    if (panel.steps) shapes.push(marker(step, colours));
    return shapes;
  }

  function panelFigure(panel, colours, step) {
    const lines = panel.lines || [];
    const places = [...new Set(lines.flatMap((line) => line.x || []))].sort((a, b) => a - b);
    const x = {};
    if (panel.x_names) {
      Object.assign(x, { tickvals: panel.x_names.map((_, i) => i), ticktext: panel.x_names.map(plain), range: [-0.5, panel.x_names.length - 0.5], tickangle: -35 });
    } else if (panel.steps && places.length && places.length <= 8) {
      Object.assign(x, { tickvals: places, range: [places[0] - 0.05 * (places.at(-1) - places[0] || 1), places.at(-1) + 0.05 * (places.at(-1) - places[0] || 1)] });
    }
    const y = panel.y_range ? { range: [panel.y_range[0] - 0.04 * (panel.y_range[1] - panel.y_range[0]), panel.y_range[1] + 0.04 * (panel.y_range[1] - panel.y_range[0])] } : {};
    const made = layout(panel, colours, x, y, panelShapes(panel, colours, step));
    if (!lines.some((line) => (line.y || []).some((v) => v !== null && v !== undefined))) {
      made.annotations = [{ text: plain(panel.empty || "nothing to show"), xref: "paper", yref: "paper", x: 0.5, y: 0.5, showarrow: false, font: { color: colours.soft } }];
    }
    const right = (places[0] + places.at(-1)) / 2;
    const top = panel.y_range ? panel.y_range[1] - 0.1 * (panel.y_range[1] - panel.y_range[0]) : Infinity;
    return { data: lines.map((line) => trace(line, right, top)), layout: made };
  }

  // Edges of a grid's columns: to scale where they are steps in order, else one apart.
  function edges(grid) {
    const steps = grid.column_steps;
    const scaled = steps && steps.length > 1 && steps.every((step, i) => !i || step > steps[i - 1]) && grid.x === "step";
    const middles = scaled ? steps : grid.columns.map((_, i) => i);
    const cuts = middles.slice(1).map((value, i) => (value + middles[i]) / 2);
    const first = middles.length > 1 ? middles[0] - (cuts[0] - middles[0]) : middles[0] - 0.5;
    const last = middles.length > 1 ? middles.at(-1) + (middles.at(-1) - cuts.at(-1)) : middles[0] + 0.5;
    return { middles, cuts: [first, ...cuts, last] };
  }

  function gridShapes(grid, colours, step) {
    const { cuts } = edges(grid);
    const box = (x, top, bottom, style) => ({ type: "rect", x0: cuts[x], x1: cuts[x + 1], y0: top, y1: bottom, ...style });
    const shapes = (grid.framed || []).map(([y, x]) => box(x, y - 0.46, y + 0.46, { line: { color: FRAME, width: 1.2 } }));
    (grid.column_steps || []).forEach((one, x) => {
      if (one === step) shapes.push(box(x, -0.5, grid.rows.length - 0.5, { line: { color: colours.ink, width: 2 } }));
    });
    return shapes;
  }

  function gridFigure(grid, colours, step) {
    const { middles, cuts } = edges(grid);
    const width = cuts.at(-1) - cuts[0];
    const wide = cuts.slice(1).every((cut, i) => cut - cuts[i] >= 0.06 * width) && grid.rows.length <= 80;
    const rows = grid.rows.map((_, i) => i);
    const marks = (cells, symbol, words, side) => ({
      type: "scatter", mode: "markers", x: cells.map(([, x]) => (cuts[x] + cuts[x + 1]) / 2 + side * 0.36 * (cuts[x + 1] - cuts[x])), y: cells.map(([y]) => y),
      marker: { color: FRAME, symbol, size: 9, line: { width: 1.6, color: FRAME } }, hoverinfo: "text", hovertext: words,
    });
    const every = Math.max(1, Math.ceil(rows.length / 26));
    const shown = rows.filter((i) => i % every === 0);
    const made = layout(
      grid, colours,
      { tickvals: middles, ticktext: grid.columns.map(plain), range: [cuts[0], cuts.at(-1)], showgrid: false, tickangle: grid.columns.some((name) => name.length > 6) ? -35 : 0 },
      { tickvals: shown, ticktext: shown.map((i) => plain(grid.rows[i])), range: [rows.length - 0.5, -0.5], showgrid: false },
      gridShapes(grid, colours, step),
    );
    const heat = {
      type: "heatmap", x: cuts, y: [...rows.map((i) => i - 0.5), rows.length - 0.5], z: grid.values, zmin: 0, zmax: 1, showscale: false,
      colorscale: [[0, colours.low], [1, colours.high]], hoverinfo: "text", hovertext: (grid.tips || []).map((row) => row.map(plain)), hoverongaps: false,
      text: grid.values.map((row) => row.map((value) => (value === null ? "" : value.toFixed(2)))), texttemplate: wide ? "%{text}" : "", textfont: { size: 10 }, xgap: 1, ygap: 1,
    };
    const data = [heat];
    if ((grid.marked || []).length) data.push(marks(grid.marked, "circle", "best admissible carrier", -1));
    if ((grid.ringed || []).length) data.push(marks(grid.ringed, "circle-open", "carrier depth", 1));
    return { data, layout: made, height: 110 + Math.min(24, Math.max(13, 560 / rows.length)) * rows.length };
  }

  // A key of the names and symbols of a chart's lines, in words.
  function key(chart) {
    const seen = new Map();
    for (const panel of chart.panels) {
      for (const line of panel.lines || []) if (!seen.has(line.name)) seen.set(line.name, [line.colour, line.mark === "path" ? "—" : SIGNS[line.symbol] || "●"]);
      for (const [name] of panel.bands || []) seen.set(name, ["#E69F00", "▒"]);
    }
    return element("div", { class: "key" }, ...[...seen].map(([name, [colour, sign]]) => {
      const mark = element("span", { class: "sign", "aria-hidden": "true" }, sign);
      mark.style.color = colour;
      return element("span", {}, mark, element("bdi", {}, name));
    }));
  }

  // Draw a chart into a figure; panels of one step are shown where it is the page's, or 0.
  caryatid.draw = function (figure, chart, step) {
    const colours = theme();
    const place = figure.querySelector(".panels");
    const panels = chart.panels.filter((panel) => panel.step === undefined || panel.step === step || panel.step === 0);
    for (const old of place.querySelectorAll(".panel")) Plotly.purge(old);
    figure.querySelector(".key")?.remove();
    place.before(key(chart));
    place.replaceChildren(...panels.map((panel) => element("div", {}, element("h4", {}, element("bdi", {}, panel.title || chart.title)),
      element("div", { class: "panel", role: "group", "aria-label": `${chart.title}: ${panel.title || ""}. The numbers are in the tables of this section.` }))));
    if (!panels.length) place.append(element("p", { class: "soft" }, "Not measured at this step."));
    [...place.querySelectorAll(".panel")].forEach((where, i) => {
      const panel = panels[i];
      const made = panel.kind === "grid" ? gridFigure(panel, colours, step) : panelFigure(panel, colours, step);
      where.style.height = `${made.height || 240}px`;
      Plotly.newPlot(where, made.data, made.layout, {
        responsive: true, displaylogo: false, toImageButtonOptions: { format: "svg", filename: figure.id },
        modeBarButtons: [["toImage", "zoom2d", "resetScale2d"]], displayModeBar: hovers.matches && !coarse.matches ? "hover" : false,
      });
    });
    figure.drawn = { chart, panels };
  };

  // Move the mark of the page's step, or draw anew where panels belong to steps.
  caryatid.move = function (figure, step) {
    if (!figure.drawn) return;
    const { chart, panels } = figure.drawn;
    if (chart.panels.some((panel) => panel.step !== undefined)) {
      caryatid.draw(figure, chart, step);
      return;
    }
    const colours = theme();
    [...figure.querySelectorAll(".panel")].forEach((where, i) => {
      const panel = panels[i];
      Plotly.relayout(where, { shapes: panel.kind === "grid" ? gridShapes(panel, colours, step) : panelShapes(panel, colours, step) });
    });
  };
}
