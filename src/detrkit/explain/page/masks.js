// Two more views for models with a mask head: the mask of the chosen query, and the panoptic segmentation.

class MaskViewer extends Viewer {
  connect() {
    this.segments = this.explanation.masks.segments;
    const views = [["mask", "mask of a query", "choose another by a click on the image or the arrow keys"]];
    if (this.segments) views.push(["segments", "panoptic segmentation", "the merged masks: things and stuff"]);
    for (const [view, text, note] of views) this.addView(view, text, note);
    this.segmentList = element("ul", { id: "segments", className: "segments", hidden: true });
    byId("status").after(this.segmentList);
    super.connect();
  }

  addView(view, text, note) {
    const radio = element("input", { type: "radio", name: "view", value: view });
    document.querySelector('input[value="none"]').parentElement.before(element("label", {}, radio, ` ${text} `, element("small", {}, note)));
    this.numLayers[view] = this.numLayers.query;
    this.layer[view] = this.numLayers.query - 1; // masks belong to the last layer
  }

  get drawsMasks() {
    return this.view === "mask" || this.view === "segments";
  }

  mask(query) {
    const included = this.includedRow(query);
    if (included < 0) return null;
    const { bytes, cell } = this.explanation.masks;
    const [, rows, columns] = bytes.shape;
    const values = this.maps.array(bytes).subarray(included * rows * columns, (included + 1) * rows * columns);
    return { values, rows, columns, cell };
  }

  choose(query) {
    if (this.view !== "mask") return super.choose(query);
    this.query = query;
    this.show("mask");
  }

  // a click chooses the detection with the highest mask probability there
  point(event) {
    if (!this.drawsMasks) return super.point(event);
    const bounds = byId("boxes").getBoundingClientRect();
    const x = (event.clientX - bounds.left) / bounds.width, y = (event.clientY - bounds.top) / bounds.height;
    if (this.view === "segments") return this.chooseSegment(this.segmentAt(x, y));
    const probability = (query) => { const mask = this.mask(query); return mask ? mask.values[this.indexAt(mask, x, y)] : -1; };
    const best = this.detections().sort((a, b) => probability(b) - probability(a))[0];
    if (best !== undefined && probability(best) >= 127.5) this.choose(best);
  }

  indexAt(mask, x, y) {
    const [height, width] = this.maps.grid.resized;
    const row = clamp(Math.floor((y * height) / mask.cell[0]), 0, mask.rows - 1);
    return row * mask.columns + clamp(Math.floor((x * width) / mask.cell[1]), 0, mask.columns - 1);
  }

  segmentAt(x, y) {
    const [rows, columns] = this.segments.ids.shape;
    const row = clamp(Math.floor(y * rows), 0, rows - 1), column = clamp(Math.floor(x * columns), 0, columns - 1);
    return this.maps.array(this.segments.ids)[row * columns + column];
  }

  step(event) {
    if (!this.drawsMasks) return super.step(event);
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    if (this.view === "segments") return this.chooseSegment(neighbourOf(this.segments.named.map((_, i) => i + 1), this.chosenSegment, step) || 0);
    const next = neighbourOf(this.detections(), this.query, step);
    if (next !== undefined) this.choose(next);
  }

  // 0: the click hit no segment; undefined: all segments
  chooseSegment(number) {
    this.chosenSegment = number;
    this.draw();
  }

  get hasLayers() {
    return super.hasLayers && !this.drawsMasks;
  }

  boxesLabel() {
    if (this.view === "mask") return "Image. Click, or use the arrow keys, to choose the mask of another detection.";
    return this.view === "segments" ? "Image. Click, or use the arrow keys, to choose a segment." : super.boxesLabel();
  }

  draw() {
    super.draw();
    this.segmentList.hidden = this.view !== "segments";
    drawColorBar(byId("colorBar"));
    if (!this.drawsMasks) return;
    const heat = byId("heat"), opacity = byId("opacity").valueAsNumber;
    const mask = this.view === "mask" ? this.mask(this.query) : null;
    byId("image").classList.toggle("dimmed", this.view === "segments" || Boolean(mask));
    if (this.view === "segments") {
      drawSegments(heat, this.maps.array(this.segments.ids), this.segments, opacity, this.chosenSegment);
      this.listSegments();
    } else if (mask) {
      const color = rgb(colorOf(this.final(this.query).top[0][0]));
      drawMask(heat, mask, this.maps.grid.resized, color, opacity);
      drawMaskBar(byId("colorBar"), color);
      byId("maxValue").textContent = "probability 1";
      byId("colorBar").parentElement.style.visibility = "visible";
      const max = argmax(mask.values);
      heat.dataset.maxCell = [Math.floor(max / mask.columns), max % mask.columns];
    }
    byId("status").textContent = this.view === "mask" ? this.maskText(mask) : this.segmentText();
  }

  drawBoxes() {
    if (this.view === "segments") return byId("boxes").getContext("2d").clearRect(0, 0, byId("boxes").width, byId("boxes").height);
    super.drawBoxes();
  }

  statusText(map, max) {
    return this.drawsMasks ? "" : super.statusText(map, max);
  }

  maskText(mask) {
    const final = this.final(this.query);
    const prediction = this.predictionText(final);
    if (!mask) return `${prediction} Its mask is not included, to limit the size of the page: detrkit explain ... --queries ${this.query}`;
    const [covered, inside] = this.shares(mask, final.box);
    const share = covered ? `; ${percent(inside)} of that lies inside its box` : "";
    return `${prediction} Its mask covers ${percent(covered)} of the image${share}.`;
  }

  // share of the image with a mask probability of at least 0.5, and the part of it inside a box
  shares(mask, box) {
    const [height, width] = this.maps.grid.resized, [imageHeight, imageWidth] = this.explanation.image.size;
    const scale = [(mask.cell[0] * imageHeight) / height, (mask.cell[1] * imageWidth) / width];
    let covered = 0, inside = 0;
    mask.values.forEach((value, i) => {
      if (value < 127.5) return;
      const top = Math.floor(i / mask.columns) * scale[0], left = (i % mask.columns) * scale[1];
      const bottom = Math.min(top + scale[0], imageHeight), right = Math.min(left + scale[1], imageWidth);
      covered += (bottom - top) * (right - left);
      inside += Math.max(0, Math.min(bottom, box[3]) - Math.max(top, box[1])) * Math.max(0, Math.min(right, box[2]) - Math.max(left, box[0]));
    });
    return [covered / (imageHeight * imageWidth), covered ? inside / covered : 0];
  }

  segmentText() {
    const segment = this.segments.named[this.chosenSegment - 1];
    if (segment) return `${segment.name} (${segment.isThing ? "thing" : "stuff"}, ${segment.score.toFixed(2)}): ${percent(segment.share)} of the image.`;
    const { length } = this.segments.named;
    if (!length) return "No segments: the scores of all queries are below the threshold.";
    return this.chosenSegment === 0 ? "No segment at this point." : `${plural(length, "segment")}. Choose one to highlight it.`;
  }

  listSegments() {
    if (!this.segmentList.children.length) {
      this.segmentList.append(...this.segments.named.map((segment, i) => {
        const dot = element("i");
        dot.style.background = segmentColor(i + 1);
        const name = element("button", { type: "button", onclick: () => this.chooseSegment(this.chosenSegment === i + 1 ? undefined : i + 1) }, dot, `${segment.name} ${segment.score.toFixed(2)}, ${percent(segment.share)}`);
        return element("li", {}, name);
      }));
    }
    [...this.segmentList.children].forEach((item, i) => item.firstChild.setAttribute("aria-pressed", String(this.chosenSegment === i + 1)));
  }
}

// golden ratio steps keep neighbouring numbers apart; lightness separates similar hues
const segmentColor = (number) => `hsl(${((number * 0.618034) % 1) * 360} 85% ${[58, 42, 72][number % 3]}%)`;

// [red, green, blue] of a CSS color
function rgb(text) {
  const context = element("canvas", { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
  context.fillStyle = text;
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
}

function drawMask(heat, mask, [height, width], color, opacity) {
  const context = heat.getContext("2d");
  const cells = pixelCanvas(mask.values, mask.rows, mask.columns, (value) => [...color, Math.round(value * opacity)]);
  context.imageSmoothingEnabled = false;
  context.drawImage(cells, 0, 0, (mask.columns * mask.cell[1] * heat.width) / width, (mask.rows * mask.cell[0] * heat.height) / height);
}

function drawSegments(heat, ids, segments, opacity, chosen) {
  const colors = [[0, 0, 0, 0], ...segments.named.map((_, i) => [...rgb(segmentColor(i + 1)), Math.round(255 * opacity * (chosen && chosen !== i + 1 ? 0.2 : 1))])];
  const context = heat.getContext("2d"), [rows, columns] = segments.ids.shape;
  context.imageSmoothingEnabled = false;
  context.drawImage(pixelCanvas(ids, rows, columns, (id) => colors[id] || colors[0]), 0, 0, heat.width, heat.height);
}

// color bar of a mask: from transparent to its color
function drawMaskBar(canvas, color) {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, 256, 1);
  for (let x = 0; x < 256; x++) {
    context.fillStyle = `rgb(${color.join(" ")} / ${x / 255})`;
    context.fillRect(x, 0, 1, 1);
  }
}
