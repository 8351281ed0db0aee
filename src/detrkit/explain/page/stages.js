// Input and output shapes of every stage for this image.

function showStages(explanation) {
  const { grid, stages, image } = explanation;
  const { outputs } = explanation.model;
  const [height, width] = image.size;
  const sizeText = ([h, w]) => `${h} × ${w} px`;
  const isPadded = grid.padded.some((side, i) => side !== grid.resized[i]);
  const rows = [
    tableRow(["image", "name"], [`${height} × ${width} px (height × width)`], [sizeText(grid.resized)], ["resized to the size the model was trained with"], ["data/transforms/geometry.py"]),
    tableRow(["batch", "name"], [sizeText(grid.resized)], [`(1, ${numChannels(stages)}, ${grid.padded.join(", ")})`], [isPadded ? `normalised as in training, and padded to ${sizeText(grid.padded)}` : "normalised as in training; a single image needs no padding"], ["data/batching.py"]),
    ...stages.map((stage) => tableRow([stage.part, "name"], [inputText(stage), "shape"], [lines(stage.outputs.map(shapeText)), "shape"], [stage.description], [element("code", {}, stage.file)])),
    tableRow(["detections", "name"], ["scores, boxes 0 .. 1"], [`${stages.length ? outputs.boxes : 0} boxes in px`], [outputs.description], [element("code", {}, "postprocess/boxes.py")]),
  ];
  table("stages", [["stage"], ["input"], ["output"], ["description"], ["code"]], rows);
}

function inputText(stage) {
  if (stage.inputs.length) return lines(stage.inputs.map(([name, shape]) => `${name} ${shapeText(shape)}`));
  return stage.part === "query_source" ? "none: learned parameters" : "sizes of the feature maps";
}

function numChannels(stages) {
  const backbone = stages.find((stage) => stage.part === "backbone");
  return backbone ? backbone.inputs[0][1][1] : 3;
}

function lines(texts) {
  return element("span", {}, ...texts.flatMap((text, i) => (i ? [element("br"), text] : [text])));
}
