// The image and its controls: the chosen query or cell, and what is drawn.

class Viewer {
  constructor(explanation, maps, image, onChange) {
    Object.assign(this, { explanation, maps, image, onChange });
    const model = explanation.model;
    this.numLayers = { query: model.decoderLayers, cell: model.encoderLayers, selection: model.decoderLayers, none: model.decoderLayers };
    this.layer = { query: model.decoderLayers - 1, cell: Math.max(0, model.encoderLayers - 1), selection: model.decoderLayers - 1, none: model.decoderLayers - 1 };
    this.shownLevels = new Set(explanation.levels.keys());
    this.head = -1;
    this.threshold = explanation.threshold; // null: every class has its own
    this.view = "query";
    this.query = this.ranked()[0];
    this.cell = [Math.floor(maps.rows / 2), Math.floor(maps.columns / 2)];
    this.connect();
  }

  // prediction after the last layer
  final(query) {
    const layers = this.explanation.queries[query].layers;
    return layers[layers.length - 1];
  }

  score(query) {
    return this.final(query).top[0][1];
  }

  className(query) {
    return this.explanation.classes[this.final(query).top[0][0]];
  }

  ranked() {
    return this.explanation.queries.map((_, query) => query).sort((a, b) => this.score(b) - this.score(a));
  }

  // minimum score of a class
  minScore(label) {
    return this.threshold ?? this.explanation.classThresholds[label];
  }

  thresholdText() {
    return this.threshold === null ? "auto" : this.threshold.toFixed(2);
  }

  detections() {
    return this.ranked().filter((query) => this.score(query) >= this.minScore(this.final(query).top[0][0]));
  }

  // index of a query among those whose attention is included in the page, or -1
  includedRow(query) {
    return this.explanation.includedQueries.indexOf(query);
  }

  connect() {
    const model = this.explanation.model;
    const listen = (id, event, handler) => byId(id).addEventListener(event, handler);
    for (const radio of document.querySelectorAll('input[name="view"]')) radio.addEventListener("change", () => this.show(radio.value));
    document.querySelector('input[value="selection"]').parentElement.hidden = !this.explanation.selection;
    if (!this.explanation.maps.encoder) document.querySelector('input[value="cell"]').disabled = true;
    listen("layer", "input", () => { this.layer[this.view] = byId("layer").valueAsNumber - 1; this.update(); });
    listen("head", "input", () => { this.head = byId("head").valueAsNumber - 1; this.update(); });
    listen("threshold", "input", () => { this.threshold = byId("threshold").valueAsNumber; this.update(); });
    for (const name of ["opacity", "layerBoxes", "groundTruth", "points", "edges"]) listen(name, "input", () => this.update());
    listen("query", "change", () => this.choose(Number(byId("query").value)));
    listen("boxes", "click", (event) => this.point(event));
    listen("boxes", "pointermove", (event) => { if (event.pointerType === "mouse" && event.buttons & 1) this.point(event); });
    listen("boxes", "keydown", (event) => this.step(event));
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(byId("stage").parentElement);
    if (model.windows) byId("cellKind").textContent = "self-attention of the ViT; click the image";
    byId("threshold").value = this.threshold ?? Math.max(...this.explanation.classThresholds);
    byId("groundTruth").parentElement.hidden = !this.explanation.objects;
    byId("points").parentElement.hidden = !this.explanation.maps.points;
    if (this.explanation.maps.points?.boxes) byId("pointsName").textContent = "sampling points, reference box (blue)";
    byId("edges").parentElement.hidden = !this.explanation.maps.edges;
    if (this.explanation.levels.length > 1) this.listLevels();
    drawColorBar(byId("colorBar"));
  }

  // choice of the feature levels whose sampling points and cells are drawn, with their colors
  listLevels() {
    byId("levels").hidden = false;
    byId("levels").append(...this.explanation.levels.map(({ cells: [rows, columns], stride, color }, level) => {
      const box = element("input", { type: "checkbox", checked: true }), dot = element("i");
      dot.style.background = color;
      box.addEventListener("input", () => { this.shownLevels[box.checked ? "add" : "delete"](level); this.update(); });
      const selected = this.explanation.selection ? `, ${plural(cellsOfLevel(this.explanation.selection, level).length, "query", "queries")}` : "";
      return element("label", {}, box, dot, `level ${level + 1}: ${rows} × ${columns} of ${stride} px${selected}`);
    }));
  }

  levelColors() {
    return this.explanation.levels.map(({ color }) => color);
  }

  // sampling points of the shown levels, and the reference; null if they are not to be drawn
  shownPoints(row, layer, head) {
    const sampled = byId("points").checked ? this.maps.points(row, layer, head) : null;
    return sampled && { ...sampled, points: sampled.points.filter(({ level }) => this.shownLevels.has(level)) };
  }

  // call before the elements it draws on are replaced
  stop() {
    this.observer.disconnect();
  }

  show(view) {
    this.view = view;
    this.update();
  }

  choose(query) {
    this.query = query;
    this.show(this.view === "selection" ? "selection" : "query");
  }

  get numHeads() {
    return this.explanation.model.heads[this.view === "cell" ? "encoder" : "cross"];
  }

  // whether the view is of a layer and heads
  get hasLayers() {
    return this.view !== "selection";
  }

  boxesLabel() {
    if (this.view === "selection") return "Image. Click, or use the arrow keys, to choose the cell of another query.";
    return "Image. Click, or move with the arrow keys, to see the encoder attention of a cell.";
  }

  point(event) {
    const bounds = byId("boxes").getBoundingClientRect();
    const [imageHeight, imageWidth] = this.explanation.image.size;
    if (this.view === "selection") return this.chooseSelected(((event.clientX - bounds.left) / bounds.width) * imageWidth, ((event.clientY - bounds.top) / bounds.height) * imageHeight);
    this.chooseCell(...this.maps.cellAt(((event.clientX - bounds.left) / bounds.width) * imageWidth, ((event.clientY - bounds.top) / bounds.height) * imageHeight));
  }

  // the query whose cell is at a point of the image, the finest if there are several
  chooseSelected(x, y) {
    const found = shownCells(this).filter(({ area }) => x >= area[0] && x < area[2] && y >= area[1] && y < area[3]);
    if (found.length) this.choose(found.reduce((best, cell) => (cell.level < best.level ? cell : best)).query);
  }

  stepSelected(event) {
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = neighbourOf(shownCells(this).map(({ query }) => query), this.query, step);
    if (next !== undefined) this.choose(next);
  }

  step(event) {
    if (this.view === "selection") return this.stepSelected(event);
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    this.chooseCell(clamp(this.cell[0] + move[0], 0, this.maps.rows - 1), clamp(this.cell[1] + move[1], 0, this.maps.columns - 1));
  }

  chooseCell(row, column) {
    if (!this.explanation.maps.encoder) return;
    this.cell = [row, column];
    this.show("cell");
  }

  // fit the image into its column and three quarters of the window height
  resize() {
    const [imageHeight, imageWidth] = this.explanation.image.size;
    const maxWidth = byId("stage").parentElement.clientWidth;
    const width = Math.max(1, Math.min(maxWidth, (0.75 * window.innerHeight * imageWidth) / imageHeight));
    const height = Math.max(1, (width * imageHeight) / imageWidth);
    Object.assign(byId("stage").style, { width: `${width}px`, height: `${height}px` });
    const ratio = window.devicePixelRatio || 1;
    for (const id of ["image", "heat", "boxes"]) Object.assign(byId(id), { width: Math.max(1, Math.round(width * ratio)), height: Math.max(1, Math.round(height * ratio)) });
    const canvas = byId("image"), context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(this.image, 0, 0, canvas.width, canvas.height);
    this.draw();
  }

  map() {
    const layer = this.layer[this.view];
    if (this.view === "query" && this.includedRow(this.query) >= 0) return this.maps.cross(this.includedRow(this.query), layer, this.head);
    return this.view === "cell" ? this.maps.encoder(...this.cell, layer, this.head) : null;
  }

  update() {
    document.querySelector(`input[value="${this.view}"]`).checked = true;
    const layer = this.layer[this.view], numLayers = this.numLayers[this.view];
    Object.assign(byId("layer"), { max: Math.max(1, numLayers), value: layer + 1 });
    for (const name of ["layer", "head"]) byId(name).disabled = !this.hasLayers;
    byId("boxes").setAttribute("aria-label", this.boxesLabel());
    byId("layerValue").value = `${layer + 1} of ${numLayers}`;
    this.head = Math.min(this.head, this.numHeads - 1);
    Object.assign(byId("head"), { max: this.numHeads, value: this.head + 1 });
    byId("headValue").value = this.head < 0 ? "mean" : `${this.head + 1} of ${this.numHeads}`;
    byId("thresholdValue").value = this.thresholdText();
    byId("opacityValue").value = percent(byId("opacity").valueAsNumber);
    this.listDetections();
    this.draw();
    this.onChange(this);
  }

  listDetections() {
    const detections = this.detections();
    byId("count").textContent = `(${detections.length} at ${this.thresholdText()})`;
    const focused = document.activeElement?.dataset?.query;
    byId("detections").replaceChildren(...detections.map((query) => this.chip(query)));
    if (!detections.length) byId("detections").append(element("p", {}, "No detections above the threshold."));
    if (focused) byId("detections").querySelector(`[data-query="${focused}"]`)?.focus();
    const select = byId("query");
    if (!select.options.length) {
      for (const query of this.ranked()) {
        const text = `${query}: ${this.className(query)} ${this.score(query).toFixed(2)}`;
        select.append(new Option(this.includedRow(query) < 0 ? `${text} (box only)` : text, query));
      }
    }
    select.value = this.query;
  }

  chip(query) {
    const dot = element("i");
    dot.style.background = colorOf(this.final(query).top[0][0]);
    const chip = element("button", { type: "button", onclick: () => this.choose(query) }, dot, `${this.className(query)} ${this.score(query).toFixed(2)}`);
    chip.dataset.query = query;
    chip.title = `query ${query}`;
    chip.setAttribute("aria-pressed", String(this.view !== "cell" && query === this.query));
    return chip;
  }

  draw() {
    const heat = byId("heat"), map = this.map();
    const context = heat.getContext("2d");
    context.clearRect(0, 0, heat.width, heat.height);
    byId("image").classList.toggle("dimmed", Boolean(map) || this.view === "selection");
    if (map) drawHeat(context, this.maps, map, byId("opacity").valueAsNumber, heat.width, heat.height);
    const max = map ? argmax(map.values) : 0;
    byId("maxValue").textContent = map ? `${percent(map.values[max])} per cell` : "";
    byId("colorBar").parentElement.style.visibility = map ? "visible" : "hidden";
    heat.dataset.maxCell = map ? [Math.floor(max / map.columns), max % map.columns] : "";
    this.drawBoxes();
    byId("status").textContent = this.statusText(map, max);
  }

  drawBoxes() {
    const canvas = byId("boxes"), context = canvas.getContext("2d");
    const [imageHeight, imageWidth] = this.explanation.image.size;
    const scale = [canvas.width / imageWidth, canvas.height / imageHeight], line = 2 * (window.devicePixelRatio || 1);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (byId("groundTruth").checked) for (const object of this.explanation.objects || []) drawBox(context, object.box, scale, "#fff", line * 0.7, { dash: [line * 3, line * 2] });
    if (this.view === "cell") {
      if (this.explanation.model.windows) this.drawWindows(context, scale, line);
      const cell = this.maps.cellBox({ columns: this.maps.columns, pool: 1 }, this.cell[0] * this.maps.columns + this.cell[1]);
      return drawBox(context, cell, scale, "#4cf", line);
    }
    if (this.view === "selection") return drawSelection(this, context, scale, line);
    for (const query of this.detections()) {
      if (query !== this.query) drawBox(context, this.final(query).box, scale, colorOf(this.final(query).top[0][0]), line, { alpha: this.view === "none" ? 1 : 0.55, label: this.view === "none" ? this.className(query) : "" });
    }
    const layers = this.explanation.queries[this.query].layers;
    if (byId("layerBoxes").checked) layers.forEach((prediction, i) => drawBox(context, prediction.box, scale, "#4cf", line, { alpha: 0.3 + (0.6 * (i + 1)) / layers.length, label: String(i + 1) }));
    const shown = layers[this.layer[this.view]] || this.final(this.query);
    drawBox(context, shown.box, scale, colorOf(shown.top[0][0]), line * 1.6, { label: `${this.explanation.classes[shown.top[0][0]]} ${shown.top[0][1].toFixed(2)}` });
    const row = this.view === "query" ? this.includedRow(this.query) : -1;
    const sampled = row < 0 ? null : this.shownPoints(row, this.layer.query, this.head);
    if (sampled) drawPoints(context, sampled, scale, this.levelColors(), line * 0.8);
    const edges = row >= 0 && byId("edges").checked ? this.maps.edges(row) : null;
    if (edges) drawEdges(context, edges, this.layer.query, scale, line);
  }

  // whether all windows of a ViT attend to each other in the shown block
  isGlobal() {
    const { perSide, globalLayers } = this.explanation.model.windows;
    return perSide === 1 || globalLayers.includes(this.layer.cell);
  }

  // window of the chosen cell, counted from 0
  windowOfCell() {
    const { perSide } = this.explanation.model.windows;
    return [Math.floor((this.cell[0] * perSide) / this.maps.rows), Math.floor((this.cell[1] * perSide) / this.maps.columns)];
  }

  // windows of a ViT: all of them thin, and that of the chosen cell, unless it attends to all
  drawWindows(context, scale, line) {
    const { perSide } = this.explanation.model.windows, [row, column] = this.windowOfCell();
    for (let i = 0; i < perSide * perSide; i++) drawBox(context, this.maps.windowBox(Math.floor(i / perSide), i % perSide, perSide), scale, "#fff", line * 0.4, { alpha: 0.5 });
    if (!this.isGlobal()) drawBox(context, this.maps.windowBox(row, column, perSide), scale, "#fff", line);
  }

  layerText(layer, numLayers) {
    if (!this.explanation.model.windows) return `Encoder layer ${layer} of ${numLayers}`;
    const [row, column] = this.windowOfCell(), { perSide, hasClassToken } = this.explanation.model.windows;
    const reach = this.isGlobal() ? "all cells" : `the cells of its window, row ${row + 1}, column ${column + 1} of ${perSide} × ${perSide}`;
    return `ViT block ${layer} of ${numLayers} (attends to ${reach}${hasClassToken ? "; not shown: class token" : ""})`;
  }

  // models with sigmoid scores have no "no object" probability
  predictionText(prediction) {
    const rest = prediction.noObject === null ? "" : `; no object ${prediction.noObject.toFixed(2)}`;
    return `Query ${this.query} predicts ${this.explanation.classes[prediction.top[0][0]]} (${prediction.top[0][1].toFixed(2)}${rest}).`;
  }

  statusText(map, max) {
    if (this.view === "selection") return selectionText(this);
    const layer = this.layer[this.view] + 1, numLayers = this.numLayers[this.view];
    const head = this.head < 0 ? `mean of ${plural(this.numHeads, "head")}` : `head ${this.head + 1}`;
    const maxCell = map ? `row ${Math.floor(max / map.columns) + 1}, column ${(max % map.columns) + 1}` : "";
    if (this.view === "cell") {
      const pooled = map.pool > 1 || map.queryPool > 1 ? ` Pooled to squares of ${map.pool} × ${map.pool} cells, mean of ${map.queryPool} × ${map.queryPool} cells.` : "";
      return `Cell in row ${this.cell[0] + 1}, column ${this.cell[1] + 1} of ${this.maps.rows} × ${this.maps.columns}. ${this.layerText(layer, numLayers)}, ${head}: it attends most to ${maxCell} (${percent(map.values[max])}).${pooled}`;
    }
    const shown = this.explanation.queries[this.query].layers[layer - 1] || this.final(this.query);
    const prediction = this.predictionText(shown);
    if (this.view === "none") return prediction;
    if (!map) return `${prediction} Its attention is not included, to limit the size of the page: detrkit explain ... --queries ${this.query}`;
    const [imageHeight, imageWidth] = this.explanation.image.size;
    const box = [clamp(shown.box[0], 0, imageWidth), clamp(shown.box[1], 0, imageHeight), clamp(shown.box[2], 0, imageWidth), clamp(shown.box[3], 0, imageHeight)];
    const area = ((box[2] - box[0]) * (box[3] - box[1])) / (imageWidth * imageHeight);
    return `${prediction} Decoder layer ${layer} of ${numLayers}, ${head}: ${percent(this.maps.massInside(map, box))} of its attention lies inside its box, which covers ${percent(area)} of the image; maximum in ${maxCell} (${percent(map.values[max])}).`;
  }
}
