"use strict";
// The page of several studies: its charts, and its tables when they are opened.
{
  const draw = () => {
    for (const figure of document.querySelectorAll("figure[data-chart]")) caryatid.draw(figure, caryatid.page.charts[figure.dataset.chart], null);
    document.documentElement.dataset.drawn = "yes";
  };
  for (const fold of document.querySelectorAll("details.table")) {
    fold.addEventListener("toggle", () => { if (fold.open) caryatid.fill(fold, () => ({})); });
  }
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
}
