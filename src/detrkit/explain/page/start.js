// Starts the page on a document and its block of bytes, from wherever they come.

async function startPage(explanation, buffer) {
  const maps = new Maps(explanation, buffer);
  const photo = new Image();
  photo.src = explanation.photo.url;
  await photo.decode();
  const matching = new MatchingTables(explanation, maps);
  byId("title").textContent = explanation.photo.name;
  byId("subtitle").textContent = `${explanation.model.name}: ${plural(explanation.queries.length, "query").replace("querys", "queries")}, ${maps.rows} × ${maps.columns} cells of ${explanation.grid.stride} px${explanation.model.levels > 1 ? ` in the backbone’s last map, of ${explanation.model.levels} in all` : ""}, ${plural(explanation.model.encoderLayers, "encoder layer")}, ${plural(explanation.model.decoderLayers, "decoder layer")}, ${plural(explanation.model.heads, "head")}`;
  const pools = explanation.maps.encoder ? [...explanation.maps.encoder.layers, explanation.maps.encoder.heads] : [];
  byId("pooled").textContent = pools.some((one) => one.column_pool > 1) ? "the encoder's is stored coarser where the status line says so. In full, from Python: detector.attention(photo)." : "nothing is pooled.";
  showStages(explanation);
  const Kind = explanation.masks ? MaskLook : Look;
  const look = new Kind(explanation, maps, photo, (changed) => {
    showLayers(changed);
    matching.show(changed);
  });
  look.resize();
  look.update();
  document.body.dataset.ready = "yes";
  return look;
}

async function startEmbedded() {
  try {
    const text = atob(byId("maps").textContent.trim());
    const packed = Uint8Array.from(text, (sign) => sign.charCodeAt(0));
    const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    await startPage(JSON.parse(byId("document").textContent), await new Response(unpacked).arrayBuffer());
  } catch (error) {
    byId("subtitle").textContent = `The page could not be drawn (${error.message}); a browser of 2023 or newer is needed.`;
    throw error;
  }
}
