// Query selection: the cells of the encoder's memory that the queries are from.

const cellsOfLevel = (selection, level) => selection.cells.filter(([own]) => own === level);

// everything about the cell of a query; null if there are more queries than cells
function selectedCell(viewer, query) {
  const { selection } = viewer.explanation;
  if (query >= selection.cells.length) return null;
  const boxOf = (location) => Array.from(viewer.maps.array(location).subarray(4 * query, 4 * query + 4));
  const [level, row, column] = selection.cells[query];
  const label = selection.labels ? selection.labels[query] : null;
  return { query, level, row, column, label, score: selection.scores[query], isValid: selection.isValid[query], area: boxOf(selection.areas), anchor: boxOf(selection.anchors), box: boxOf(selection.boxes) };
}

// cells of the shown levels, by descending score
function shownCells(viewer) {
  return viewer.explanation.selection.cells.map((_, query) => selectedCell(viewer, query)).filter(({ level }) => viewer.shownLevels.has(level));
}

// cells are as opaque as their score is high; of the chosen query also its anchor (dashed blue), its box, and its final box (thin)
function drawSelection(viewer, context, scale, line) {
  const { levels } = viewer.explanation, opacity = byId("opacity").valueAsNumber;
  const cells = shownCells(viewer), highest = Math.max(1e-6, ...cells.map(({ score }) => score));
  context.save();
  for (const { area: [left, top, right, bottom], level, score } of [...cells].reverse().sort((a, b) => b.level - a.level)) {
    const place = [left * scale[0], top * scale[1], (right - left) * scale[0], (bottom - top) * scale[1]];
    context.globalAlpha = opacity * (0.12 + (0.68 * score) / highest);
    context.fillStyle = levels[level].color;
    context.fillRect(...place);
    context.globalAlpha = opacity;
    context.strokeStyle = "rgba(0, 0, 0, .6)";
    context.lineWidth = line / 3;
    context.strokeRect(...place);
  }
  context.restore();
  const cell = selectedCell(viewer, viewer.query), final = viewer.final(viewer.query), color = colorOf(final.top[0][0]);
  drawBox(context, final.box, scale, color, line * 0.6);
  if (!cell) return;
  drawBox(context, cell.area, scale, "#fff", line * 1.6);
  if (!cell.isValid) return;
  drawBox(context, cell.anchor, scale, REFERENCE_COLOR, line * 0.8, { dash: [line * 3, line * 2] });
  drawBox(context, cell.box, scale, color, line * 1.6, { label: `${nameOfCell(viewer, cell)} ${cell.score.toFixed(2)}` });
}

const nameOfCell = (viewer, { label }) => (label === null ? "object" : viewer.explanation.classes[label]);
const boxText = (box) => box.map((side) => side.toFixed(0)).join(", ");

function iou(a, b) {
  const side = (low, high) => Math.max(0, Math.min(a[high], b[high]) - Math.max(a[low], b[low]));
  const area = (box) => Math.max(0, box[2] - box[0]) * Math.max(0, box[3] - box[1]);
  const shared = side(0, 2) * side(1, 3);
  return shared / (area(a) + area(b) - shared || 1);
}

function selectionText(viewer) {
  const { selection, levels } = viewer.explanation, cell = selectedCell(viewer, viewer.query);
  if (!cell) return `Query ${viewer.query} has no cell: there are only ${selection.cells.length} cells in this image.`;
  const [rows, columns] = levels[cell.level].cells;
  const place = `row ${cell.row + 1}, column ${cell.column + 1} of level ${cell.level + 1} (${rows} × ${columns} cells of ${levels[cell.level].stride} px)`;
  const rank = `Query ${viewer.query} is from the cell in ${place}: score ${cell.score.toFixed(2)} (${nameOfCell(viewer, cell)}), number ${viewer.query + 1} of ${selection.cells.length}.`;
  if (!cell.isValid) return `${rank} Its anchor is too close to the image's edge: the cell has no features, and its box is not usable.`;
  return `${rank} From its anchor (dashed blue), the encoder predicts the box that the decoder starts from (thick); its IoU with the final box (thin) is ${iou(cell.box, viewer.final(viewer.query).box).toFixed(2)}.`;
}

function showSelection(viewer) {
  const { selection } = viewer.explanation;
  byId("selectionSection").hidden = !selection;
  if (!selection) return;
  const detections = viewer.detections();
  const queries = detections.includes(viewer.query) ? detections : [viewer.query, ...detections];
  const ranks = selection.labels ? "the score of its best class" : "its score of being an object";
  byId("selectionText").textContent = `Every cell of the encoder's output is ranked by ${ranks}; the best ${selection.cells.length} became queries. Below: the cells of the detections, and of the chosen query.`;
  table("selection", [["query"], ["level"], ["cell (row, column)"], ["score"], ["box of the cell (left, top, right, bottom)"], ["prediction, IoU of its box"]], queries.map((query) => selectionRow(viewer, query)));
}

function selectionRow(viewer, query) {
  const cell = selectedCell(viewer, query), final = viewer.final(query);
  const link = element("button", { type: "button", className: "link", onclick: () => { viewer.query = query; viewer.show("selection"); byId("stage").scrollIntoView({ block: "nearest" }); } }, `query ${query}`);
  const prediction = `${viewer.className(query)} ${viewer.score(query).toFixed(2)}`;
  const entries = cell
    ? [[levelText(viewer, cell.level)], [`${cell.row + 1}, ${cell.column + 1}`], [`${nameOfCell(viewer, cell)} ${cell.score.toFixed(2)}`, "name"], [cell.isValid ? boxText(cell.box) : "none: too close to the edge", "name"], [cell.isValid ? `${prediction}, ${iou(cell.box, final.box).toFixed(2)}` : prediction, "name"]]
    : [["none"], [""], [""], [""], [prediction, "name"]];
  const row = tableRow([link, "name"], ...entries);
  row.className = query === viewer.query ? "chosen" : "";
  return row;
}

function levelText(viewer, level) {
  const dot = element("i", { className: "dot" });
  dot.style.background = viewer.explanation.levels[level].color;
  return element("span", {}, dot, ` ${level + 1}`);
}
