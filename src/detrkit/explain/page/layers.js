// The chosen query after every decoder layer, and its self-attention to other queries.

function showLayers(viewer) {
  const { explanation, query } = viewer;
  const layers = explanation.queries[query].layers;
  const row = viewer.includedRow(query);
  const numbers = row < 0 ? [explanation.model.decoderLayers - 1] : layers.map((_, i) => i);
  const points = explanation.maps.points ? ", sampling points of all heads and their reference" : "";
  byId("layersText").textContent = `Predictions of the chosen query after every decoder layer: cross-attention (mean of the heads)${points}, box and most probable classes.`;
  byId("layers").replaceChildren(...layers.map((prediction, i) => layerCard(viewer, prediction, numbers[i], row)));
  byId("selfAttention").replaceChildren(...(row < 0 ? [] : selfAttentionText(viewer, row)));
}

function layerCard(viewer, prediction, layer, row) {
  const canvas = layerCanvas(viewer, prediction, layer, row);
  const bars = element("div", { className: "bars" });
  for (const [label, share] of prediction.top) bars.append(...bar(viewer.explanation.classes[label], share, colorOf(label)));
  if (prediction.noObject !== null) bars.append(...bar("no object", prediction.noObject, "gray"));
  const card = element("button", { type: "button", className: "layer" }, canvas, element("b", {}, `layer ${layer + 1}`), bars);
  card.setAttribute("aria-pressed", String(viewer.view === "query" && viewer.layer.query === layer));
  card.addEventListener("click", () => {
    viewer.layer.query = layer;
    viewer.show("query");
    byId("layers").children[layer]?.focus();
  });
  return card;
}

function bar(name, share, color) {
  const label = element("span", { title: name }, name);
  label.style.background = `linear-gradient(90deg, color-mix(in srgb, ${color} 45%, transparent) ${100 * share}%, transparent ${100 * share}%)`;
  return [label, element("em", {}, percent(share))];
}

function layerCanvas(viewer, prediction, layer, row) {
  const [imageHeight, imageWidth] = viewer.explanation.image.size;
  const width = 320, height = Math.round(clamp((width * imageHeight) / imageWidth, 16, 640));
  const canvas = element("canvas", { width, height });
  const context = canvas.getContext("2d");
  context.filter = row < 0 ? "none" : "grayscale(.8) brightness(.9)";
  context.drawImage(viewer.image, 0, 0, width, height);
  context.filter = "none";
  if (row >= 0) drawHeat(context, viewer.maps, viewer.maps.cross(row, layer, -1), 0.8, width, height);
  const scale = [width / imageWidth, height / imageHeight];
  drawBox(context, prediction.box, scale, colorOf(prediction.top[0][0]), 4);
  const sampled = row < 0 ? null : viewer.shownPoints(row, layer, -1);
  if (sampled) drawPoints(context, sampled, scale, viewer.levelColors(), 1.8);
  return canvas;
}

// decoder self-attention of the chosen query in the chosen layer
function selfAttentionText(viewer, row) {
  const head = viewer.head < viewer.explanation.model.heads.self ? viewer.head : -1; // cross-attention may have more
  const weights = viewer.maps.self(row, viewer.layer.query, head);
  const order = Array.from(weights.keys()).sort((a, b) => weights[b] - weights[a]).slice(0, 6);
  const parts = [`In layer ${viewer.layer.query + 1} (${head < 0 ? "mean of its heads" : `head ${head + 1}`}), query ${viewer.query} attends most to `];
  order.forEach((other, i) => {
    const text = other === viewer.query ? "itself" : `query ${other} (${viewer.className(other)} ${viewer.score(other).toFixed(2)})`;
    const name = other === viewer.query ? text : element("button", { type: "button", className: "link", onclick: () => viewer.choose(other) }, text);
    parts.push(i ? ", " : "", name, `: ${percent(weights[other])}`);
  });
  return [...parts, ". (Decoder self-attention; uniform attention would be ", percent(1 / weights.length), ".)"];
}
