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
  const levels = model.windows ? " of the ViT" : ` (last feature map of the backbone, 1 of ${model.featureLevels})`;
  const level = model.featureLevels > 1 || model.windows ? levels : "";
  const encoder = plural(model.encoderLayers, model.windows ? "ViT block" : "encoder layer");
  const { encoder: encoderHeads, self, cross } = model.heads; // no encoder: 0
  const isEqual = self === cross && [0, self].includes(encoderHeads);
  const heads = isEqual ? plural(self, "head") : `heads: ${encoderHeads} (${model.windows ? "ViT" : "encoder"}), ${self} and ${cross} (decoder)`;
  return `${model.name}: ${plural(queries.length, "query", "queries")}, ${maps.rows} × ${maps.columns} cells of ${grid.stride} px${level}, ${encoder}, ${plural(model.decoderLayers, "decoder layer")}, ${heads}`;
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
