// Attention maps out of the block of bytes: value = byte x scale / 255.

class Maps {
  constructor(explanation, buffer) {
    this.explanation = explanation;
    this.buffer = buffer;
    this.grid = explanation.grid;
    [this.rows, this.columns] = explanation.grid.cells;
  }

  array(place) {
    const types = { uint8: Uint8Array, int16: Int16Array, float32: Float32Array };
    const size = place.shape.reduce((product, side) => product * side, 1);
    return new types[place.type](this.buffer, place.offset, size);
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

  // (query, layer, head) -> values; head -1 is the average of all
  ofQuery(packed, kept, layer, head) {
    const [, layers, heads] = packed.bytes.shape;
    const first = (kept * layers + layer) * heads;
    if (head >= 0) return this.row(packed, first + head);
    const total = this.row(packed, first);
    for (let other = 1; other < heads; other++) this.row(packed, first + other).forEach((value, i) => (total[i] += value));
    return total.map((value) => value / heads);
  }

  // the points that a query looks at, and what they lie around: [x, y] in pixels of the photo, and weights
  points(kept, layer, head) {
    const packed = this.explanation.maps.points;
    if (!packed) return null;
    const [, layers, heads, count] = packed.places.shape;
    const [tall, wide] = this.explanation.photo.size;
    const places = this.array(packed.places), weights = this.array(packed.weights), references = this.array(packed.references);
    const pixels = (values, index) => [(values[2 * index] / packed.units) * wide, (values[2 * index + 1] / packed.units) * tall];
    const first = (kept * layers + layer) * heads;
    const shown = head >= 0 ? [head] : Array.from({ length: heads }, (_, i) => i);
    const points = shown.flatMap((one) => Array.from({ length: count }, (_, i) => {
      const index = (first + one) * count + i;
      return { place: pixels(places, index), weight: weights[index] / 255 };
    }));
    return { points, reference: pixels(references, kept * layers + layer) };
  }

  cross(kept, layer, head) {
    const values = this.ofQuery(this.explanation.maps.cross, kept, layer, head);
    return { values, rows: this.rows, columns: this.columns, pool: 1 };
  }

  toQueries(kept, layer, head) {
    return this.ofQuery(this.explanation.maps.toQueries, kept, layer, head);
  }

  encoder(row, column, layer, head) {
    const maps = this.explanation.maps.encoder;
    const packed = head < 0 ? maps.layers[layer] : maps.heads;
    const asking = packed.row_pool;
    let index = Math.floor(row / asking) * Math.ceil(this.columns / asking) + Math.floor(column / asking);
    if (head >= 0) {
      const [, heads, rows] = packed.bytes.shape;
      index += (layer * heads + head) * rows;
    }
    const pool = packed.column_pool;
    return { values: this.row(packed, index), rows: Math.ceil(this.rows / pool), columns: Math.ceil(this.columns / pool), pool, asking };
  }

  // xyxy of one value of a map, in pixels of the photo; what lies beyond the photo is cut off
  cellBox(map, index) {
    const side = this.grid.stride * map.pool;
    const [height, width] = this.grid.resized;
    const [tall, wide] = this.explanation.photo.size;
    const row = Math.floor(index / map.columns), column = index % map.columns;
    const x = (n) => (Math.min(n * side, width) * wide) / width, y = (n) => (Math.min(n * side, height) * tall) / height;
    return [x(column), y(row), x(column + 1), y(row + 1)];
  }

  cellAt(x, y) {
    const [height, width] = this.grid.resized;
    const [tall, wide] = this.explanation.photo.size;
    const row = Math.floor(((y / tall) * height) / this.grid.stride), column = Math.floor(((x / wide) * width) / this.grid.stride);
    return [clamp(row, 0, this.rows - 1), clamp(column, 0, this.columns - 1)];
  }

  // share of a map's attention inside of a box
  massInside(map, box) {
    let inside = 0, all = 0;
    for (let i = 0; i < map.values.length; i++) {
      const cell = this.cellBox(map, i);
      const area = (cell[2] - cell[0]) * (cell[3] - cell[1]);
      if (area <= 0) continue;
      const w = Math.min(cell[2], box[2]) - Math.max(cell[0], box[0]), h = Math.min(cell[3], box[3]) - Math.max(cell[1], box[1]);
      all += map.values[i];
      inside += map.values[i] * (Math.max(w, 0) * Math.max(h, 0)) / area;
    }
    return all > 0 ? inside / all : 0;
  }
}

const clamp = (value, least, most) => Math.min(Math.max(value, least), most);

function hottest(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}
