// Distributions of the edges of the chosen query's box after every decoder layer (D-FINE).

const EDGE_NAMES = ["left", "top", "right", "bottom"];
const OUTWARDS = [-1, -1, 1, 1];

// expected distance of an edge after a layer, in pixels; outwards is positive. From the box, which has more digits than the probabilities
const expected = (viewer, edges, layer, side) => OUTWARDS[side] * (viewer.explanation.queries[viewer.query].layers[layer].box[side] - edges.reference[side]);

function showEdges(viewer) {
  byId("edgesSection").hidden = !viewer.explanation.maps.edges;
  if (!viewer.explanation.maps.edges) return;
  const row = viewer.includedRow(viewer.query);
  if (row < 0) {
    byId("edgesText").textContent = `The distributions of query ${viewer.query} are not included, to limit the size of the page: detrkit explain ... --queries ${viewer.query}`;
    return byId("edgeCards").replaceChildren();
  }
  const edges = viewer.maps.edges(row);
  const limits = [0, 1].map((side) => `${edges.distances[side][edges.distances[side].length - 1].toFixed(0)}\u00a0px`);
  const highest = Math.max(...edges.probabilities.flat().map((probabilities) => probabilities[argmax(probabilities)]));
  byId("edgesText").textContent = `Every decoder layer predicts how far each edge of query ${viewer.query} is from the box of the first layer: inwards in the left half of a chart, outwards in the right half, up to ${limits[0]} (left and right edge) or ${limits[1]} (top and bottom edge). Bins are finest around zero. The edge is moved by the expected distance (line and number). Quality is what sharp distributions add to the class logits. The highest bar is ${percent(highest)}.`;
  byId("edgeCards").replaceChildren(...edges.probabilities.map((_, layer) => edgeCard(viewer, edges, layer, highest)));
}

function edgeCard(viewer, edges, layer, highest) {
  const charts = element("div", { className: "charts" });
  EDGE_NAMES.forEach((name, side) => {
    const moved = expected(viewer, edges, layer, side);
    charts.append(element("span", {}, name), edgeChart(edges.probabilities[layer][side], edges.distances[side], moved, highest), element("em", {}, `${signed(moved, 1)} px`));
  });
  const card = element("button", { type: "button", className: "layer" }, element("b", {}, `layer ${layer + 1}`), element("span", { className: "quality" }, `quality ${signed(edges.quality[layer], 2)}`), charts);
  card.setAttribute("aria-pressed", String(viewer.view === "query" && viewer.layer.query === layer));
  card.addEventListener("click", () => {
    viewer.layer.query = layer;
    viewer.show("query");
    byId("edgeCards").children[layer]?.focus();
  });
  return card;
}

// bars of equal width, one per bin, and lines at zero and at the expected distance
function edgeChart(probabilities, distances, moved, highest) {
  const bar = 8, width = bar * probabilities.length, height = 64;
  const canvas = element("canvas", { width, height }), context = canvas.getContext("2d");
  const style = getComputedStyle(document.body);
  context.fillStyle = style.getPropertyValue("--line");
  context.fillRect(0, height - 1, width, 1);
  context.fillRect(width / 2 - 1, 0, 2, height);
  context.fillStyle = style.getPropertyValue("--accent");
  probabilities.forEach((probability, bin) => {
    const share = (probability / highest) * (height - 4);
    context.fillRect(bin * bar, height - 1 - share, bar - 1, share);
  });
  context.fillStyle = style.getPropertyValue("--bad");
  context.fillRect((positionOf(moved, distances) + 0.5) * bar - 1.5, 0, 3, height);
  return canvas;
}

// bin at a distance, with fractions between bins
function positionOf(distance, distances) {
  let bin = 0;
  while (bin < distances.length - 2 && distance > distances[bin + 1]) bin++;
  return bin + clamp((distance - distances[bin]) / (distances[bin + 1] - distances[bin] || 1), 0, 1);
}

// on the image: the first layer's box, dotted, and the distributions as curves across the middle of its edges
function drawEdges(context, edges, layer, scale, line) {
  const [left, top, right, bottom] = edges.reference;
  drawBox(context, edges.reference, scale, "#bfe0ff", line * 0.8, { dash: [line, line * 2] });
  const middle = [((left + right) / 2) * scale[0], ((top + bottom) / 2) * scale[1]];
  const tallest = 0.12 * Math.min(context.canvas.width, context.canvas.height);
  context.save();
  edges.probabilities[layer].forEach((probabilities, side) => {
    const isVertical = side % 2 === 0, axis = isVertical ? 0 : 1, away = side < 2 ? 1 : -1; // opposite edges do not overlap
    const place = (bin, height) => {
      const along = (edges.reference[side] + OUTWARDS[side] * edges.distances[side][bin]) * scale[axis];
      return isVertical ? [along, middle[1] - away * height] : [middle[0] + away * height, along];
    };
    const highest = probabilities[argmax(probabilities)] || 1, last = probabilities.length - 1;
    context.beginPath();
    context.moveTo(...place(0, 0));
    probabilities.forEach((probability, bin) => context.lineTo(...place(bin, (tallest * probability) / highest)));
    context.lineTo(...place(last, 0));
    context.closePath();
    context.fillStyle = "rgba(140, 190, 255, .55)";
    context.fill();
    for (const [style, width] of [["rgba(0, 0, 0, .7)", line * 1.4], ["#bfe0ff", line * 0.7]]) {
      context.strokeStyle = style;
      context.lineWidth = width;
      context.stroke();
    }
  });
  context.restore();
}
