// Two more views for models with a mask head: the chosen query's mask, and how the segments share out the photo.

class MaskLook extends Look {
  connect() {
    this.segments = this.explanation.masks.segments;
    const views = [["mask", "what a query's mask covers", "click the photo or use the arrow keys for another"]];
    if (this.segments) views.push(["segments", "what every pixel belongs to", "the masks, merged: things and stuff"]);
    for (const [view, text, note] of views) this.addView(view, text, note);
    this.names = element("ul", { id: "segments", className: "segments", hidden: true });
    byId("status").after(this.names);
    super.connect();
  }

  addView(view, text, note) {
    const radio = element("input", { type: "radio", name: "view", value: view });
    document.querySelector('input[value="none"]').parentElement.before(element("label", {}, radio, ` ${text} `, element("small", {}, note)));
    this.depth[view] = this.depth.query;
    this.layer[view] = this.depth.query - 1; // masks are drawn after the last one
  }

  get drawsMasks() {
    return this.view === "mask" || this.view === "segments";
  }

  mask(query) {
    const kept = this.kept(query);
    if (kept < 0) return null;
    const { bytes, cell } = this.explanation.masks;
    const [, rows, columns] = bytes.shape;
    const values = this.maps.array(bytes).subarray(kept * rows * columns, (kept + 1) * rows * columns);
    return { values, rows, columns, cell };
  }

  choose(query) {
    this.query = query;
    this.show(this.view === "mask" ? "mask" : "query");
  }

  // the photo clicked: of the detections, whose mask is surest there
  point(event) {
    if (!this.drawsMasks) return super.point(event);
    const place = byId("boxes").getBoundingClientRect();
    const x = (event.clientX - place.left) / place.width, y = (event.clientY - place.top) / place.height;
    if (this.view === "segments") return this.tell(this.segmentAt(x, y));
    const sure = (query) => { const mask = this.mask(query); return mask ? mask.values[this.indexAt(mask, x, y)] : -1; };
    const found = this.detections().sort((a, b) => sure(b) - sure(a))[0];
    if (found !== undefined && sure(found) >= 127.5) this.choose(found);
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
    const forth = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (!forth) return;
    event.preventDefault();
    if (this.view === "segments") return this.tell(nextOf(this.segments.named.map((_, i) => i + 1), this.told, forth) || 0);
    const next = nextOf(this.detections(), this.query, forth);
    if (next !== undefined) this.choose(next);
  }

  // of which segment the status line speaks; 0 is none
  tell(number) {
    this.told = number;
    this.draw();
  }

  update() {
    super.update();
    for (const name of ["layer", "head"]) byId(name).disabled = this.drawsMasks;
    byId("boxes").setAttribute("aria-label", this.view === "mask" ? "Photo. Click, or use the arrow keys, to see another detection's mask." : this.view === "segments" ? "Photo. Click, or use the arrow keys, to hear of a segment." : BOXES_LABEL);
  }

  draw() {
    super.draw();
    this.names.hidden = this.view !== "segments";
    drawRamp(byId("ramp"));
    if (!this.drawsMasks) return;
    const heat = byId("heat"), strength = byId("strength").valueAsNumber;
    const mask = this.view === "mask" ? this.mask(this.query) : null;
    byId("photo").classList.toggle("dimmed", this.view === "segments" || Boolean(mask));
    if (this.view === "segments") {
      drawSegments(heat, this.maps.array(this.segments.ids), this.segments, strength, this.told);
      this.listSegments();
    } else if (mask) {
      const colour = coloured(colourOf(this.final(this.query).top[0][0]));
      drawMask(heat, mask, this.maps.grid.resized, colour, strength);
      drawShades(byId("ramp"), colour);
      byId("most").textContent = "surely part of it";
      byId("ramp").parentElement.style.visibility = "visible";
      const most = hottest(mask.values);
      heat.dataset.hottest = [Math.floor(most / mask.columns), most % mask.columns];
    }
    byId("status").textContent = this.view === "mask" ? this.maskSentence(mask) : this.segmentSentence();
  }

  drawBoxes() {
    if (this.view === "segments") return byId("boxes").getContext("2d").clearRect(0, 0, byId("boxes").width, byId("boxes").height);
    super.drawBoxes();
  }

  sentence(map, most) {
    return this.drawsMasks ? "" : super.sentence(map, most);
  }

  maskSentence(mask) {
    const one = this.final(this.query);
    const says = this.says(one);
    if (!mask) return `${says} Its mask is not in this page, to keep it small: detrkit explain ... --queries ${this.query}`;
    const [covered, inside] = this.shares(mask, one.box);
    const share = covered ? `; ${percent(inside)} of that lies inside its box` : "";
    return `${says} Its mask covers ${percent(covered)} of the photo${share}.`;
  }

  // share of the photo where a mask is surer than not, and which part of that lies in a box
  shares(mask, box) {
    const [height, width] = this.maps.grid.resized, [tall, wide] = this.explanation.photo.size;
    const scale = [(mask.cell[0] * tall) / height, (mask.cell[1] * wide) / width];
    let covered = 0, inside = 0;
    mask.values.forEach((value, i) => {
      if (value < 127.5) return;
      const top = Math.floor(i / mask.columns) * scale[0], left = (i % mask.columns) * scale[1];
      const bottom = Math.min(top + scale[0], tall), right = Math.min(left + scale[1], wide);
      covered += (bottom - top) * (right - left);
      inside += Math.max(0, Math.min(bottom, box[3]) - Math.max(top, box[1])) * Math.max(0, Math.min(right, box[2]) - Math.max(left, box[0]));
    });
    return [covered / (tall * wide), covered ? inside / covered : 0];
  }

  segmentSentence() {
    const one = this.segments.named[this.told - 1];
    if (one) return `${one.name} (${one.isThing ? "thing" : "stuff"}, ${one.score.toFixed(2)}): ${percent(one.share)} of the photo.`;
    const { length } = this.segments.named;
    if (!length) return "No query is sure enough to take part, so the photo has no segment.";
    return this.told === 0 ? "No segment is here." : `${plural(length, "segment")}. Choose one to see it alone.`;
  }

  listSegments() {
    if (!this.names.children.length) {
      this.names.append(...this.segments.named.map((one, i) => {
        const dot = element("i");
        dot.style.background = segmentColour(i + 1);
        const name = element("button", { type: "button", onclick: () => this.tell(this.told === i + 1 ? undefined : i + 1) }, dot, `${one.name} ${one.score.toFixed(2)}, ${percent(one.share)}`);
        return element("li", {}, name);
      }));
    }
    [...this.names.children].forEach((item, i) => item.firstChild.setAttribute("aria-pressed", String(this.told === i + 1)));
  }
}

const BOXES_LABEL = "Photo. Click, or move with the arrow keys, to see what a cell of the encoder attends to.";

// the one after or before the current one, round and round; the first where there is no current one
function nextOf(list, current, forth) {
  const at = list.indexOf(current);
  return at < 0 ? list[0] : list[(at + forth + list.length) % list.length];
}

// steps of the golden ratio keep neighbours apart; lightness tells those of the same hue
const segmentColour = (number) => `hsl(${((number * 0.618034) % 1) * 360} 85% ${[58, 42, 72][number % 3]}%)`;

// a colour of CSS as red, green, blue
function coloured(text) {
  const pen = element("canvas", { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
  pen.fillStyle = text;
  pen.fillRect(0, 0, 1, 1);
  return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
}

// a small canvas with one pixel a value, RGBA as `paint` says
function painted(values, rows, columns, paint) {
  const canvas = element("canvas", { width: columns, height: rows });
  const pen = canvas.getContext("2d");
  const picture = pen.createImageData(columns, rows);
  values.forEach((value, i) => picture.data.set(paint(value), 4 * i));
  pen.putImageData(picture, 0, 0);
  return canvas;
}

function drawMask(heat, mask, [height, width], colour, strength) {
  const pen = heat.getContext("2d");
  const cells = painted(mask.values, mask.rows, mask.columns, (value) => [...colour, Math.round(value * strength)]);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(cells, 0, 0, (mask.columns * mask.cell[1] * heat.width) / width, (mask.rows * mask.cell[0] * heat.height) / height);
}

function drawSegments(heat, ids, segments, strength, told) {
  const colours = [[0, 0, 0, 0], ...segments.named.map((_, i) => [...coloured(segmentColour(i + 1)), Math.round(255 * strength * (told && told !== i + 1 ? 0.2 : 1))])];
  const pen = heat.getContext("2d"), [rows, columns] = segments.ids.shape;
  pen.imageSmoothingEnabled = false;
  pen.drawImage(painted(ids, rows, columns, (id) => colours[id] || colours[0]), 0, 0, heat.width, heat.height);
}

// the legend of a mask: from nothing to its colour
function drawShades(canvas, colour) {
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, 256, 1);
  for (let x = 0; x < 256; x++) {
    pen.fillStyle = `rgb(${colour.join(" ")} / ${x / 255})`;
    pen.fillRect(x, 0, 1, 1);
  }
}
