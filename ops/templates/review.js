"use strict";

// Tables: a button in every header sorts, a search field filters.
const cellValue = (row, column) => {
  const cell = row.cells[column];
  const text = cell.dataset.value ?? cell.textContent.trim();
  return text === "" || text === "–" ? null : text;
};

const compare = (a, b) => {
  const [x, y] = [Number(a), Number(b)];
  return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, undefined, { numeric: true }) : x - y;
};

const sortBy = (table, header) => {
  const column = header.cellIndex;
  const first = header.classList.contains("n") ? "descending" : "ascending";
  const second = first === "ascending" ? "descending" : "ascending";
  const order = header.getAttribute("aria-sort") === first ? second : first;
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => {
    const [x, y] = [cellValue(a, column), cellValue(b, column)];
    if (x === null || y === null) return (x === null) - (y === null); // what is missing comes last, in either order
    return sign * compare(x, y);
  });
  table.tBodies[0].append(...rows);
  for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", order);
};

const filterBy = (table, text) => {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...table.tBodies[0].rows];
  for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  const shown = rows.filter((row) => !row.hidden).length;
  document.querySelector(`[data-counts="${table.id}"]`).textContent = words.length ? `${shown} of ${rows.length}` : "";
};

for (const table of document.querySelectorAll("table.sortable")) {
  for (const header of table.tHead.rows[0].cells) {
    header.querySelector("button").addEventListener("click", () => sortBy(table, header));
  }
  const field = document.querySelector(`[data-filters="${table.id}"]`);
  field.addEventListener("input", () => filterBy(table, field.value));
}

// Figures: plotly draws, the page's colours are used for everything but the data.
const dark = matchMedia("(prefers-color-scheme: dark)");
const figures = [...document.querySelectorAll("script[data-figure]")].map((script) => ({
  element: document.getElementById(script.dataset.figure),
  content: JSON.parse(script.textContent),
}));

const themed = (layout, data, light) => {
  const ink = light ? "#1d2024" : "#e6e7e8";
  const soft = light ? "#646b73" : "#9aa1a9";
  const line = light ? "#e3e3df" : "#2f343a";
  const paper = light ? "#ffffff" : "#15171a";
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: soft, tickcolor: soft, automargin: true };
  const all = {
    ...layout,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: ink },
    xaxis: { ...layout.xaxis, ...axis, title: { ...layout.xaxis?.title, standoff: 8 } },
    yaxis: { ...layout.yaxis, ...axis },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: ink },
    hoverlabel: { bgcolor: paper, bordercolor: line, font: { color: ink } },
    legend: { y: -0.2, x: 0, xanchor: "left", yanchor: "top", font: { color: ink } },
  };
  const traces = data.map((trace) =>
    trace.type === "parcoords"
      ? { ...trace, labelfont: { color: ink }, tickfont: { color: soft }, rangefont: { color: soft }, unselected: { line: { color: line } } }
      : trace
  );
  return [all, traces];
};

const draw = (light = !dark.matches) => {
  for (const { element, content } of figures) {
    const [layout, traces] = themed(content.layout, content.data, light);
    Plotly.react(element, traces, layout, { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] });
  }
};

draw();
dark.addEventListener("change", () => draw());
addEventListener("beforeprint", () => draw(true));
addEventListener("afterprint", () => draw());
