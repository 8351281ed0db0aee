// Small helpers: elements, numbers and colours as people read them.

const byId = (name) => document.getElementById(name);

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}\u00a0%`;
const shapeText = (shape) => `(${shape.join(", ")})`;
const plural = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;

// always the same colour for a class: steps of the golden ratio keep neighbours apart
const colourOf = (label) => `hsl(${((label * 0.618034) % 1) * 360} 90% 58%)`;

function table(place, heads, rows) {
  const head = element("tr", {}, ...heads.map(([text, kind]) => element("th", { className: kind || "", scope: "col" }, text)));
  for (const row of rows) heads.forEach(([text], i) => row.children[i]?.tagName === "TD" && (row.children[i].dataset.label = text));
  byId(place).replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
}

function cells(...entries) {
  return element("tr", {}, ...entries.map(([content, kind]) => element("td", { className: kind || "" }, content)));
}
