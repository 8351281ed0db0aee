// Attention maps read from the block of bytes: value = byte * scale / 255.

class Maps {
  constructor(explanation, buffer) {
    this.explanation = explanation;
    this.buffer = buffer;
    this.grid = explanation.grid;
    [this.rows, this.columns] = explanation.grid.cells;
  }

  array(location) {
    const types = { uint8: Uint8Array, int16: Int16Array, float32: Float32Array };
    const size = location.shape.reduce((product, side) => product * side, 1);
    return new types[location.type](this.buffer, location.offset, size);
  }

  // one row of packed maps, as numbers
  row(packed, index) {
    const width = packed.bytes.shape[packed.bytes.shape.length - 1];
    const bytes = this.array(packed.bytes);
    const scale = this.array(packed.scales)[index] / 255;
    const values = new Float32Array(width);
    for (let i = 0; i < width; i++) values[i] = bytes[index * width + i] * scale;
    return values;
  }

  // weights of an included query; head -1 is the mean of the heads
  queryWeights(packed, row, layer, head) {
    const [, layers, heads] = packed.bytes.shape;
    const first = (row * layers + layer) * heads;
    if (head >= 0) return this.row(packed, first + head);
    const total = this.row(packed, first);
    for (let other = 1; other < heads; other++) this.row(packed, first + other).forEach((value, i) => (total[i] += value));
    return total.map((value) => value / heads);
  }

  // sampling points with their weights, and the reference point, as [x, y] in pixels of the image
  points(row, layer, head) {
    const packed = this.explanation.maps.points;
    if (!packed) return null;
    const [, layers, heads, count] = packed.points.shape;
    const levels = packed.counts.flatMap((number, level) => Array(number).fill(level));
    const [imageHeight, imageWidth] = this.explanation.image.size;
    const locations = this.array(packed.points), weights = this.array(packed.weights), references = this.array(packed.references);
    const pixels = (values, index) => [(values[2 * index] / packed.units) * imageWidth, (values[2 * index + 1] / packed.units) * imageHeight];
    const first = (row * layers + layer) * heads;
    const shown = head >= 0 ? [head] : Array.from({ length: heads }, (_, i) => i);
    const points = shown.flatMap((shownHead) => Array.from({ length: count }, (_, i) => {
      const index = (first + shownHead) * count + i;
      return { point: pixels(locations, index), weight: weights[index] / 255, level: levels[i] };
    }));
    const boxes = packed.boxes && this.array(packed.boxes), corner = 2 * (row * layers + layer);
    return { points, reference: pixels(references, row * layers + layer), box: boxes && [...pixels(boxes, corner), ...pixels(boxes, corner + 1)] };
  }

  // distributions of the four edges of an included query's box; null if the model has none
  edges(row) {
    const packed = this.explanation.maps.edges;
    if (!packed) return null;
    const [, layers, sides, bins] = packed.probabilities.bytes.shape;
    const first = row * layers * sides;
    return {
      probabilities: Array.from({ length: layers }, (_, layer) => Array.from({ length: sides }, (_, side) => this.row(packed.probabilities, first + layer * sides + side))),
      distances: Array.from({ length: sides }, (_, side) => this.array(packed.distances).subarray((row * sides + side) * bins, (row * sides + side + 1) * bins)),
      reference: Array.from(this.array(packed.references).subarray(row * 4, row * 4 + 4)),
      quality: Array.from(this.array(packed.quality).subarray(row * layers, (row + 1) * layers)),
    };
  }

  cross(row, layer, head) {
    const values = this.queryWeights(this.explanation.maps.cross, row, layer, head);
    return { values, rows: this.rows, columns: this.columns, pool: 1 };
  }

  self(row, layer, head) {
    return this.queryWeights(this.explanation.maps.self, row, layer, head);
  }

  encoder(row, column, layer, head) {
    const maps = this.explanation.maps.encoder;
    const packed = head < 0 ? maps.layers[layer] : maps.heads;
    const queryPool = packed.row_pool;
    let index = Math.floor(row / queryPool) * Math.ceil(this.columns / queryPool) + Math.floor(column / queryPool);
    if (head >= 0) {
      const [, heads, rows] = packed.bytes.shape;
      index += (layer * heads + head) * rows;
    }
    const pool = packed.column_pool;
    return { values: this.row(packed, index), rows: Math.ceil(this.rows / pool), columns: Math.ceil(this.columns / pool), pool, queryPool };
  }

  // xyxy of one value of a map in pixels of the image, clipped to the image
  cellBox(map, index) {
    const side = this.grid.stride * map.pool;
    const [height, width] = this.grid.resized;
    const [imageHeight, imageWidth] = this.explanation.image.size;
    const row = Math.floor(index / map.columns), column = index % map.columns;
    const x = (n) => (Math.min(n * side, width) * imageWidth) / width, y = (n) => (Math.min(n * side, height) * imageHeight) / height;
    return [x(column), y(row), x(column + 1), y(row + 1)];
  }

  // xyxy of a window of a ViT in pixels of the image
  windowBox(row, column, perSide) {
    const rows = this.rows / perSide, columns = this.columns / perSide;
    const corner = (i, j) => this.cellBox({ columns: this.columns, pool: 1 }, i * this.columns + j);
    const [left, top] = corner(row * rows, column * columns), [, , right, bottom] = corner((row + 1) * rows - 1, (column + 1) * columns - 1);
    return [left, top, right, bottom];
  }

  cellAt(x, y) {
    const [height, width] = this.grid.resized;
    const [imageHeight, imageWidth] = this.explanation.image.size;
    const row = Math.floor(((y / imageHeight) * height) / this.grid.stride), column = Math.floor(((x / imageWidth) * width) / this.grid.stride);
    return [clamp(row, 0, this.rows - 1), clamp(column, 0, this.columns - 1)];
  }

  // share of a map's attention inside a box
  massInside(map, box) {
    let inside = 0, total = 0;
    for (let i = 0; i < map.values.length; i++) {
      const cell = this.cellBox(map, i);
      const area = (cell[2] - cell[0]) * (cell[3] - cell[1]);
      if (area <= 0) continue;
      const w = Math.min(cell[2], box[2]) - Math.max(cell[0], box[0]), h = Math.min(cell[3], box[3]) - Math.max(cell[1], box[1]);
      total += map.values[i];
      inside += map.values[i] * (Math.max(w, 0) * Math.max(h, 0)) / area;
    }
    return total > 0 ? inside / total : 0;
  }
}

const clamp = (value, min, max) => Math.min(Math.max(value, min), max);

function argmax(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}
