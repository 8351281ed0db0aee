// What goes in and out of every stage, for this photo.

function showStages(explanation) {
  const { grid, stages, photo } = explanation;
  const { answer } = explanation.model;
  const [tall, wide] = photo.size;
  const size = ([height, width]) => `${height} × ${width} px`;
  const isPadded = grid.padded.some((side, i) => side !== grid.resized[i]);
  const rows = [
    cells(["photo", "name"], [`${tall} × ${wide} px (height × width)`], [size(grid.resized)], ["resized: what the model was trained on"], ["data/transforms.py"]),
    cells(["batch", "name"], [size(grid.resized)], [`(1, ${shapeOf(stages)}, ${grid.padded.join(", ")})`], [isPadded ? `normalised, and padded to ${size(grid.padded)}` : "normalised; one photo alone needs no padding"], ["data/batching.py"]),
    ...stages.map((stage) => cells([stage.part, "name"], [stage.takes.length ? lines(stage.takes.map(([name, shape]) => `${name} ${shapeText(shape)}`)) : stage.part === "queries" ? "nothing: a table" : "the maps' sizes", "shape"], [lines(stage.gives.map(shapeText)), "shape"], [stage.meaning], [element("code", {}, stage.code)])),
    cells(["detections", "name"], ["scores, boxes 0 .. 1"], [`${stages.length ? answer.boxes : 0} boxes in px`], [answer.meaning], [element("code", {}, "postprocess/boxes.py")]),
  ];
  table("stages", [["stage"], ["in"], ["out"], ["what happens"], ["code"]], rows);
}

function shapeOf(stages) {
  const backbone = stages.find((stage) => stage.part === "backbone");
  return backbone ? backbone.takes[0][1][1] : 3;
}

function lines(texts) {
  return element("span", {}, ...texts.flatMap((text, i) => (i ? [element("br"), text] : [text])));
}
