// Drawing on canvases: the photo, the heat over it, boxes.

const RAMP = [[0, 48, 18, 110], [0.3, 150, 30, 120], [0.6, 235, 85, 60], [0.85, 250, 170, 50], [1, 255, 250, 160]];

function heatColour(share) {
  let i = 1;
  while (i < RAMP.length - 1 && share > RAMP[i][0]) i++;
  const [from, to] = [RAMP[i - 1], RAMP[i]];
  const part = (share - from[0]) / (to[0] - from[0]);
  return [1, 2, 3].map((c) => Math.round(from[c] + part * (to[c] - from[c])));
}

// small canvas with one pixel a cell
function heatCells(map, strength) {
  const canvas = element("canvas", { width: map.columns, height: map.rows });
  const pen = canvas.getContext("2d");
  const picture = pen.createImageData(map.columns, map.rows);
  const most = map.values[hottest(map.values)] || 1;
  map.values.forEach((value, i) => {
    const share = value / most;
    picture.data.set([...heatColour(share), Math.round(255 * strength * (0.06 + 0.94 * Math.sqrt(share)))], 4 * i);
  });
  pen.putImageData(picture, 0, 0);
  return canvas;
}

function drawHeat(pen, maps, map, strength, wide, tall) {
  const [height, width] = maps.grid.resized;
  const side = maps.grid.stride * map.pool;
  pen.imageSmoothingEnabled = false;
  pen.drawImage(heatCells(map, strength), 0, 0, (map.columns * side * wide) / width, (map.rows * side * tall) / height);
}

function drawRamp(canvas) {
  const pen = canvas.getContext("2d");
  for (let x = 0; x < 256; x++) {
    pen.fillStyle = `rgb(${heatColour(x / 255).join(" ")})`;
    pen.fillRect(x, 0, 1, 1);
  }
}

// a box in pixels of the photo; a dark line below keeps it visible on any ground
function drawBox(pen, box, scale, colour, width, { dash = [], label = "", alpha = 1 } = {}) {
  const [x, y, right, bottom] = [box[0] * scale[0], box[1] * scale[1], box[2] * scale[0], box[3] * scale[1]];
  pen.save();
  pen.globalAlpha = alpha;
  pen.setLineDash(dash);
  for (const [style, line] of [["rgba(0, 0, 0, .65)", width + 2], [colour, width]]) {
    pen.strokeStyle = style;
    pen.lineWidth = line;
    pen.strokeRect(x, y, right - x, bottom - y);
  }
  if (label) drawLabel(pen, label, x, y, colour);
  pen.restore();
}

// sampled points, the weightier the larger, and a cross where they are chosen around
function drawPoints(pen, sampled, scale, colour, width) {
  pen.save();
  pen.strokeStyle = "rgba(0, 0, 0, .75)";
  pen.lineWidth = width / 3;
  pen.fillStyle = colour;
  for (const { place, weight } of sampled.points) {
    pen.beginPath();
    pen.arc(place[0] * scale[0], place[1] * scale[1], width * (0.5 + 4 * Math.sqrt(weight)), 0, 2 * Math.PI);
    pen.fill();
    pen.stroke();
  }
  const [x, y] = [sampled.reference[0] * scale[0], sampled.reference[1] * scale[1]], arm = 4 * width;
  for (const [style, line] of [["rgba(0, 0, 0, .75)", width * 1.8], ["#fff", width * 0.9]]) {
    pen.strokeStyle = style;
    pen.lineWidth = line;
    pen.beginPath();
    for (const [dx, dy] of [[arm, arm], [arm, -arm]]) {
      pen.moveTo(x - dx, y - dy);
      pen.lineTo(x + dx, y + dy);
    }
    pen.stroke();
  }
  pen.restore();
}

function drawLabel(pen, label, x, y, colour) {
  const ratio = window.devicePixelRatio || 1;
  const size = 13 * ratio;
  pen.font = `600 ${size}px system-ui, sans-serif`;
  const width = pen.measureText(label).width + size * 0.6, height = size * 1.45;
  if (height > pen.canvas.height / 2) return; // a photo that is little more than a line
  const left = clamp(x, 0, Math.max(0, pen.canvas.width - width)), top = y >= height ? y - height : Math.max(y, 0);
  pen.fillStyle = colour;
  pen.fillRect(left, top, width, height);
  pen.fillStyle = "#000";
  pen.fillText(label, left + size * 0.3, top + size * 1.08);
}
