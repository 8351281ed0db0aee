// Builds the page from a document and its block of bytes.

async function startPage(explanation, buffer) {
  const maps = new Maps(explanation, buffer);
  const image = new Image();
  image.src = explanation.image.url;
  await image.decode();
  const matching = new MatchingTables(explanation, maps);
  byId("title").textContent = explanation.image.name;
  byId("subtitle").textContent = modelText(explanation, maps);
  const pools = explanation.maps.encoder ? [...explanation.maps.encoder.layers, explanation.maps.encoder.heads] : [];
  byId("pooled").textContent = pools.some((packed) => packed.column_pool > 1) ? "encoder attention is pooled where the status line says so. At full resolution, from Python: detector.attention(image)." : "nothing is pooled.";
  showStages(explanation);
  const ViewerClass = explanation.masks ? MaskViewer : Viewer;
  const viewer = new ViewerClass(explanation, maps, image, (changed) => {
    showLayers(changed);
    showEdges(changed);
    showSelection(changed);
    matching.show(changed);
  });
  viewer.resize();
  viewer.update();
  document.body.dataset.ready = "yes";
  return viewer;
}

function modelText({ model, queries, grid }, maps) {
  const level = model.featureLevels > 1 ? ` (last feature map of the backbone, 1 of ${model.featureLevels})` : "";
  return `${model.name}: ${plural(queries.length, "query", "queries")}, ${maps.rows} × ${maps.columns} cells of ${grid.stride} px${level}, ${plural(model.encoderLayers, "encoder layer")}, ${plural(model.decoderLayers, "decoder layer")}, ${plural(model.heads, "head")}`;
}

async function startEmbedded() {
  try {
    const text = atob(byId("maps").textContent.trim());
    const packed = Uint8Array.from(text, (character) => character.charCodeAt(0));
    const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    await startPage(JSON.parse(byId("document").textContent), await new Response(unpacked).arrayBuffer());
  } catch (error) {
    byId("subtitle").textContent = `The page cannot be shown (${error.message}). It needs a browser from 2023 or later.`;
    throw error;
  }
}
