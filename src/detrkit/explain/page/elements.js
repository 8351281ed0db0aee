// Helpers for elements, numbers and colors.

const byId = (name) => document.getElementById(name);

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child !== null));
  return node;
}

const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}\u00a0%`;
const shapeText = (shape) => `(${shape.join(", ")})`;
const plural = (count, noun, nouns = `${noun}s`) => `${count} ${count === 1 ? noun : nouns}`;

// one fixed color per class; golden ratio steps keep neighbouring labels apart
const colorOf = (label) => `hsl(${((label * 0.618034) % 1) * 360} 90% 58%)`;

// next or previous item, cyclic; the first one if there is no current item
function neighbourOf(list, current, step) {
  const index = list.indexOf(current);
  return index < 0 ? list[0] : list[(index + step + list.length) % list.length];
}

// number with its sign; zero has a plus
const signed = (value, digits) => { const text = value.toFixed(digits); return Number(text) < 0 ? text.replace("-", "\u2212") : `+${text.replace("-", "")}`; };

function table(id, headings, rows) {
  const head = element("tr", {}, ...headings.map(([text, kind]) => element("th", { className: kind || "", scope: "col" }, text)));
  for (const row of rows) headings.forEach(([text], i) => row.children[i]?.tagName === "TD" && (row.children[i].dataset.label = text));
  byId(id).replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
}

function tableRow(...entries) {
  return element("tr", {}, ...entries.map(([content, kind]) => element("td", { className: kind || "" }, content)));
}

// two numbers with two digits, or with as many as show that they differ
function tellApart(value, limit) {
  for (let digits = 2; digits <= 16; digits++) {
    const texts = [value.toFixed(digits), limit.toFixed(digits)];
    if (texts[0] !== texts[1]) return texts;
  }
  return [value.toFixed(2), limit.toFixed(2)];
}
