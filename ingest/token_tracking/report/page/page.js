async function draw(script) {
  const place = document.getElementById(script.dataset.chart);
  try {
    // ast: specifications are interpreted, so the page needs no right to make code out of text.
    await vegaEmbed(place, JSON.parse(script.textContent), {
      mode: "vega-lite", renderer: "svg", actions: false, defaultStyle: false, ast: true,
    });
  } catch (error) {
    place.textContent = "The chart could not be drawn; the table has its numbers.";
    throw error;
  }
  script.dataset.drawn = "";
}

function sortBy(header) {
  const body = header.closest("table").tBodies[0];
  const isNumber = header.classList.contains("number");
  const was = header.getAttribute("aria-sort");
  const descending = was === "none" ? isNumber : was === "ascending";
  for (const other of header.parentElement.cells) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");

  const key = (row) => row.cells[header.cellIndex].dataset.key;
  const compare = isNumber
    ? (one, other) => Number(one) - Number(other)
    : (one, other) => one.localeCompare(other, "en", { numeric: true });
  const [empty, rows] = [[], []];
  for (const row of body.rows) (key(row) === "" && isNumber ? empty : rows).push(row);
  rows.sort((one, other) => (descending ? -1 : 1) * compare(key(one), key(other)));
  body.append(...rows, ...empty);
}

for (const header of document.querySelectorAll("thead th")) {
  header.querySelector("button").addEventListener("click", () => sortBy(header));
}
for (const script of document.querySelectorAll("script[data-chart]")) draw(script);
