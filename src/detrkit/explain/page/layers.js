// The chosen query from decoder layer to decoder layer, and the queries that it listens to.

function showLayers(look) {
  const { explanation, maps, query } = look;
  const layers = explanation.queries[query].layers;
  const kept = look.kept(query);
  const numbers = kept < 0 ? [explanation.model.decoderLayers - 1] : layers.map((_, i) => i);
  byId("layers").replaceChildren(...layers.map((one, i) => layerCard(look, one, numbers[i], kept)));
  byId("listens").replaceChildren(...(kept < 0 ? [] : listens(look, kept)));
}

function layerCard(look, one, layer, kept) {
  const canvas = layerPicture(look, one, layer, kept);
  const bars = element("div", { className: "bars" });
  for (const [label, share] of one.top) bars.append(...bar(look.explanation.classes[label], share, colourOf(label)));
  if (one.noObject !== null) bars.append(...bar("no object", one.noObject, "gray"));
  const card = element("button", { type: "button", className: "layer" }, canvas, element("b", {}, `layer ${layer + 1}`), bars);
  card.setAttribute("aria-pressed", String(look.view === "query" && look.layer.query === layer));
  card.addEventListener("click", () => {
    look.layer.query = layer;
    look.show("query");
    byId("layers").children[layer]?.focus();
  });
  return card;
}

function bar(name, share, colour) {
  const label = element("span", { title: name }, name);
  label.style.background = `linear-gradient(90deg, color-mix(in srgb, ${colour} 45%, transparent) ${100 * share}%, transparent ${100 * share}%)`;
  return [label, element("em", {}, percent(share))];
}

function layerPicture(look, one, layer, kept) {
  const [tall, wide] = look.explanation.photo.size;
  const width = 320, height = Math.round(clamp((width * tall) / wide, 16, 640));
  const canvas = element("canvas", { width, height });
  const pen = canvas.getContext("2d");
  pen.filter = kept < 0 ? "none" : "grayscale(.8) brightness(.9)";
  pen.drawImage(look.photo, 0, 0, width, height);
  pen.filter = "none";
  if (kept >= 0) drawHeat(pen, look.maps, look.maps.cross(kept, layer, -1), 0.8, width, height);
  drawBox(pen, one.box, [width / wide, height / tall], colourOf(one.top[0][0]), 4);
  return canvas;
}

// decoder self-attention: which other queries are heard in the shown layer
function listens(look, kept) {
  const shares = look.maps.toQueries(kept, look.layer.query, look.head);
  const order = Array.from(shares.keys()).sort((a, b) => shares[b] - shares[a]).slice(0, 6);
  const parts = [`In layer ${look.layer.query + 1} (${look.head < 0 ? "average of its heads" : `head ${look.head + 1}`}), query ${look.query} listens most to `];
  order.forEach((other, i) => {
    const text = other === look.query ? "itself" : `query ${other} (${look.name(other)} ${look.score(other).toFixed(2)})`;
    const name = other === look.query ? text : element("button", { type: "button", className: "link", onclick: () => look.choose(other) }, text);
    parts.push(i ? ", " : "", name, `: ${percent(shares[other])}`);
  });
  return [...parts, ". (Decoder self-attention; alike for all would be ", percent(1 / shares.length), ".)"];
}
