// Drawing on canvases: heatmaps, boxes, sampling points, labels.

const COLOR_STOPS = [[0, 48, 18, 110], [0.3, 150, 30, 120], [0.6, 235, 85, 60], [0.85, 250, 170, 50], [1, 255, 250, 160]];

const REFERENCE_COLOR = "#4cf"; // of boxes that predictions start from

function heatColor(share) {
  let i = 1;
  while (i < COLOR_STOPS.length - 1 && share > COLOR_STOPS[i][0]) i++;
  const [from, to] = [COLOR_STOPS[i - 1], COLOR_STOPS[i]];
  const part = (share - from[0]) / (to[0] - from[0]);
  return [1, 2, 3].map((c) => Math.round(from[c] + part * (to[c] - from[c])));
}

// canvas with one pixel per value; `color` maps a value to RGBA
function pixelCanvas(values, rows, columns, color) {
  const canvas = element("canvas", { width: columns, height: rows });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(columns, rows);
  values.forEach((value, i) => pixels.data.set(color(value), 4 * i));
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function drawHeat(context, maps, map, opacity, canvasWidth, canvasHeight) {
  const [height, width] = maps.grid.resized;
  const side = maps.grid.stride * map.pool;
  const max = map.values[argmax(map.values)] || 1;
  const cells = pixelCanvas(map.values, map.rows, map.columns, (value) => {
    const share = value / max;
    return [...heatColor(share), Math.round(255 * opacity * (0.06 + 0.94 * Math.sqrt(share)))];
  });
  context.imageSmoothingEnabled = false;
  context.drawImage(cells, 0, 0, (map.columns * side * canvasWidth) / width, (map.rows * side * canvasHeight) / height);
}

function drawColorBar(canvas) {
  const context = canvas.getContext("2d");
  for (let x = 0; x < 256; x++) {
    context.fillStyle = `rgb(${heatColor(x / 255).join(" ")})`;
    context.fillRect(x, 0, 1, 1);
  }
}

// box in pixels of the image; a dark line below it keeps it visible on any background
function drawBox(context, box, scale, color, width, { dash = [], label = "", alpha = 1 } = {}) {
  const [x, y, right, bottom] = [box[0] * scale[0], box[1] * scale[1], box[2] * scale[0], box[3] * scale[1]];
  context.save();
  context.globalAlpha = alpha;
  context.setLineDash(dash);
  for (const [style, lineWidth] of [["rgba(0, 0, 0, .65)", width + 2], [color, width]]) {
    context.strokeStyle = style;
    context.lineWidth = lineWidth;
    context.strokeRect(x, y, right - x, bottom - y);
  }
  if (label) drawLabel(context, label, x, y, color);
  context.restore();
}

// sampling points, their area growing with their weight, a cross at the reference point, and the reference box, dashed blue
function drawPoints(context, sampled, scale, colors, width) {
  if (sampled.box) drawBox(context, sampled.box, scale, REFERENCE_COLOR, width * 0.8, { dash: [width * 3, width * 2] });
  context.save();
  context.strokeStyle = "rgba(0, 0, 0, .75)";
  context.lineWidth = width / 3;
  for (const { point, weight, level } of sampled.points) {
    context.fillStyle = colors[level];
    context.beginPath();
    context.arc(point[0] * scale[0], point[1] * scale[1], width * (0.5 + 4 * Math.sqrt(weight)), 0, 2 * Math.PI);
    context.fill();
    context.stroke();
  }
  const [x, y] = [sampled.reference[0] * scale[0], sampled.reference[1] * scale[1]], arm = 4 * width;
  for (const [style, lineWidth] of [["rgba(0, 0, 0, .75)", width * 1.8], ["#fff", width * 0.9]]) {
    context.strokeStyle = style;
    context.lineWidth = lineWidth;
    context.beginPath();
    for (const [dx, dy] of [[arm, arm], [arm, -arm]]) {
      context.moveTo(x - dx, y - dy);
      context.lineTo(x + dx, y + dy);
    }
    context.stroke();
  }
  context.restore();
}

function drawLabel(context, label, x, y, color) {
  const ratio = window.devicePixelRatio || 1;
  const size = 13 * ratio;
  context.font = `600 ${size}px system-ui, sans-serif`;
  const width = context.measureText(label).width + size * 0.6, height = size * 1.45;
  if (height > context.canvas.height / 2) return; // the image is too low for a label
  const left = clamp(x, 0, Math.max(0, context.canvas.width - width)), top = y >= height ? y - height : Math.max(y, 0);
  context.fillStyle = color;
  context.fillRect(left, top, width, height);
  context.fillStyle = "#000";
  context.fillText(label, left + size * 0.3, top + size * 1.08);
}
