// The photo and its controls: which query or cell is looked at, and what is drawn.

class Look {
  constructor(explanation, maps, photo, changed) {
    Object.assign(this, { explanation, maps, photo, changed });
    const model = explanation.model;
    this.depth = { query: model.decoderLayers, cell: model.encoderLayers, none: model.decoderLayers };
    this.layer = { query: model.decoderLayers - 1, cell: Math.max(0, model.encoderLayers - 1), none: model.decoderLayers - 1 };
    this.head = -1;
    this.threshold = explanation.threshold;
    this.view = "query";
    this.query = this.ranked()[0];
    this.cell = [Math.floor(maps.rows / 2), Math.floor(maps.columns / 2)];
    this.connect();
  }

  final(query) {
    const layers = this.explanation.queries[query].layers;
    return layers[layers.length - 1];
  }

  score(query) {
    return this.final(query).top[0][1];
  }

  name(query) {
    return this.explanation.classes[this.final(query).top[0][0]];
  }

  ranked() {
    return this.explanation.queries.map((_, query) => query).sort((a, b) => this.score(b) - this.score(a));
  }

  detections() {
    return this.ranked().filter((query) => this.score(query) >= this.threshold);
  }

  kept(query) {
    return this.explanation.keptQueries.indexOf(query);
  }

  connect() {
    const listen = (name, kind, act) => byId(name).addEventListener(kind, act);
    for (const radio of document.querySelectorAll('input[name="view"]')) radio.addEventListener("change", () => this.show(radio.value));
    if (!this.explanation.maps.encoder) document.querySelector('input[value="cell"]').disabled = true;
    listen("layer", "input", () => { this.layer[this.view] = byId("layer").valueAsNumber - 1; this.update(); });
    listen("head", "input", () => { this.head = byId("head").valueAsNumber - 1; this.update(); });
    listen("threshold", "input", () => { this.threshold = byId("threshold").valueAsNumber; this.update(); });
    for (const name of ["strength", "trail", "truth", "points"]) listen(name, "input", () => this.update());
    listen("query", "change", () => this.choose(Number(byId("query").value)));
    listen("boxes", "click", (event) => this.point(event));
    listen("boxes", "pointermove", (event) => { if (event.pointerType === "mouse" && event.buttons & 1) this.point(event); });
    listen("boxes", "keydown", (event) => this.step(event));
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(byId("stage").parentElement);
    byId("head").max = this.explanation.model.heads;
    byId("threshold").value = this.threshold;
    byId("truth").parentElement.hidden = !this.explanation.objects;
    byId("points").parentElement.hidden = !this.explanation.maps.points;
    drawRamp(byId("ramp"));
  }

  // before other elements take the place of those that it draws on
  stop() {
    this.observer.disconnect();
  }

  show(view) {
    this.view = view;
    this.update();
  }

  choose(query) {
    this.query = query;
    this.show("query");
  }

  point(event) {
    const place = byId("boxes").getBoundingClientRect();
    const [tall, wide] = this.explanation.photo.size;
    this.look(...this.maps.cellAt(((event.clientX - place.left) / place.width) * wide, ((event.clientY - place.top) / place.height) * tall));
  }

  step(event) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    this.look(clamp(this.cell[0] + move[0], 0, this.maps.rows - 1), clamp(this.cell[1] + move[1], 0, this.maps.columns - 1));
  }

  look(row, column) {
    if (!this.explanation.maps.encoder) return;
    this.cell = [row, column];
    this.show("cell");
  }

  // the photo as large as its column and three quarters of the window allow
  resize() {
    const [tall, wide] = this.explanation.photo.size;
    const room = byId("stage").parentElement.clientWidth;
    const width = Math.max(1, Math.min(room, (0.75 * window.innerHeight * wide) / tall));
    const height = Math.max(1, (width * tall) / wide);
    Object.assign(byId("stage").style, { width: `${width}px`, height: `${height}px` });
    const ratio = window.devicePixelRatio || 1;
    for (const name of ["photo", "heat", "boxes"]) Object.assign(byId(name), { width: Math.max(1, Math.round(width * ratio)), height: Math.max(1, Math.round(height * ratio)) });
    const canvas = byId("photo"), pen = canvas.getContext("2d");
    pen.imageSmoothingQuality = "high";
    pen.drawImage(this.photo, 0, 0, canvas.width, canvas.height);
    this.draw();
  }

  map() {
    const layer = this.layer[this.view];
    if (this.view === "query" && this.kept(this.query) >= 0) return this.maps.cross(this.kept(this.query), layer, this.head);
    return this.view === "cell" ? this.maps.encoder(...this.cell, layer, this.head) : null;
  }

  update() {
    document.querySelector(`input[value="${this.view}"]`).checked = true;
    const layer = this.layer[this.view], depth = this.depth[this.view];
    Object.assign(byId("layer"), { max: Math.max(1, depth), value: layer + 1 });
    byId("layerValue").value = `${layer + 1} of ${depth}`;
    byId("head").value = this.head + 1;
    byId("headValue").value = this.head < 0 ? "average" : `${this.head + 1} of ${this.explanation.model.heads}`;
    byId("thresholdValue").value = this.threshold.toFixed(2);
    byId("strengthValue").value = percent(byId("strength").valueAsNumber);
    this.listDetections();
    this.draw();
    this.changed(this);
  }

  listDetections() {
    const found = this.detections();
    byId("count").textContent = `(${found.length} at ${this.threshold.toFixed(2)})`;
    const focused = document.activeElement?.dataset?.query;
    byId("detections").replaceChildren(...found.map((query) => this.chip(query)));
    if (!found.length) byId("detections").append(element("p", {}, "Nothing above the threshold."));
    if (focused) byId("detections").querySelector(`[data-query="${focused}"]`)?.focus();
    const select = byId("query");
    if (!select.options.length) {
      for (const query of this.ranked()) {
        const text = `${query}: ${this.name(query)} ${this.score(query).toFixed(2)}`;
        select.append(new Option(this.kept(query) < 0 ? `${text} (box only)` : text, query));
      }
    }
    select.value = this.query;
  }

  chip(query) {
    const dot = element("i");
    dot.style.background = colourOf(this.final(query).top[0][0]);
    const chip = element("button", { type: "button", onclick: () => this.choose(query) }, dot, `${this.name(query)} ${this.score(query).toFixed(2)}`);
    chip.dataset.query = query;
    chip.title = `query ${query}`;
    chip.setAttribute("aria-pressed", String(this.view !== "cell" && query === this.query));
    return chip;
  }

  draw() {
    const heat = byId("heat"), map = this.map();
    const pen = heat.getContext("2d");
    pen.clearRect(0, 0, heat.width, heat.height);
    byId("photo").classList.toggle("dimmed", Boolean(map));
    if (map) drawHeat(pen, this.maps, map, byId("strength").valueAsNumber, heat.width, heat.height);
    const most = map ? hottest(map.values) : 0;
    byId("most").textContent = map ? `${percent(map.values[most])} a cell` : "";
    byId("ramp").parentElement.style.visibility = map ? "visible" : "hidden";
    heat.dataset.hottest = map ? [Math.floor(most / map.columns), most % map.columns] : "";
    this.drawBoxes();
    byId("status").textContent = this.sentence(map, most);
  }

  drawBoxes() {
    const canvas = byId("boxes"), pen = canvas.getContext("2d");
    const [tall, wide] = this.explanation.photo.size;
    const scale = [canvas.width / wide, canvas.height / tall], line = 2 * (window.devicePixelRatio || 1);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    if (byId("truth").checked) for (const one of this.explanation.objects || []) drawBox(pen, one.box, scale, "#fff", line * 0.7, { dash: [line * 3, line * 2] });
    if (this.view === "cell") {
      const cell = this.maps.cellBox({ columns: this.maps.columns, pool: 1 }, this.cell[0] * this.maps.columns + this.cell[1]);
      return drawBox(pen, cell, scale, "#4cf", line);
    }
    for (const query of this.detections()) {
      if (query !== this.query) drawBox(pen, this.final(query).box, scale, colourOf(this.final(query).top[0][0]), line, { alpha: this.view === "none" ? 1 : 0.55, label: this.view === "none" ? this.name(query) : "" });
    }
    const layers = this.explanation.queries[this.query].layers;
    if (byId("trail").checked) layers.forEach((one, i) => drawBox(pen, one.box, scale, "#4cf", line, { alpha: 0.3 + (0.6 * (i + 1)) / layers.length, label: String(i + 1) }));
    const shown = layers[this.layer[this.view]] || this.final(this.query);
    drawBox(pen, shown.box, scale, colourOf(shown.top[0][0]), line * 1.6, { label: `${this.explanation.classes[shown.top[0][0]]} ${shown.top[0][1].toFixed(2)}` });
    const kept = this.view === "query" && byId("points").checked ? this.kept(this.query) : -1;
    const sampled = kept < 0 ? null : this.maps.points(kept, this.layer.query, this.head);
    if (sampled) drawPoints(pen, sampled, scale, "#7fe", line * 0.8);
  }

  // with a yes or no for every class, nothing is said of no object
  says(one) {
    const rest = one.noObject === null ? "" : `; no object ${one.noObject.toFixed(2)}`;
    return `Query ${this.query} says ${this.explanation.classes[one.top[0][0]]} (${one.top[0][1].toFixed(2)}${rest}).`;
  }

  sentence(map, most) {
    const layer = this.layer[this.view] + 1, depth = this.depth[this.view];
    const head = this.head < 0 ? `average of ${plural(this.explanation.model.heads, "head")}` : `head ${this.head + 1}`;
    const place = map ? `row ${Math.floor(most / map.columns) + 1}, column ${(most % map.columns) + 1}` : "";
    if (this.view === "cell") {
      const pooled = map.pool > 1 || map.asking > 1 ? ` Stored as squares of ${map.pool} × ${map.pool} cells, of a mean over ${map.asking} × ${map.asking}.` : "";
      return `The cell in row ${this.cell[0] + 1}, column ${this.cell[1] + 1} of ${this.maps.rows} × ${this.maps.columns}. Encoder layer ${layer} of ${depth}, ${head}: it looks most at ${place} (${percent(map.values[most])}).${pooled}`;
    }
    const shown = this.explanation.queries[this.query].layers[layer - 1] || this.final(this.query);
    const says = this.says(shown);
    if (this.view === "none") return says;
    if (!map) return `${says} Its attention is not in this page, to keep it small: detrkit explain ... --queries ${this.query}`;
    const [tall, wide] = this.explanation.photo.size;
    const box = [clamp(shown.box[0], 0, wide), clamp(shown.box[1], 0, tall), clamp(shown.box[2], 0, wide), clamp(shown.box[3], 0, tall)];
    const area = ((box[2] - box[0]) * (box[3] - box[1])) / (wide * tall);
    return `${says} Decoder layer ${layer} of ${depth}, ${head}: ${percent(this.maps.massInside(map, box))} of its attention lies inside its box, which covers ${percent(area)} of the photo; most at ${place} (${percent(map.values[most])}).`;
  }
}
