// The live page: uploads one image at a time and shows the answer.

class Live {
  constructor() {
    this.request = null;
    this.look = null;
    this.image = null;
    const choose = byId("file"), place = byId("sending");
    choose.addEventListener("change", () => choose.files.length && this.send(choose.files[0]));
    choose.addEventListener("click", () => { choose.value = ""; }); // so that the same file can be chosen again
    byId("again").addEventListener("click", () => this.send(this.image));
    document.addEventListener("dragover", (event) => { event.preventDefault(); place.classList.add("over"); });
    document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) place.classList.remove("over"); });
    document.addEventListener("drop", (event) => this.dropped(event));
  }

  dropped(event) {
    event.preventDefault();
    byId("sending").classList.remove("over");
    const files = event.dataTransfer.files;
    if (files.length) this.send(files[0]);
    else this.fail("That is not a file; drop an image from your disk.");
  }

  send(image) {
    this.request?.abort();
    this.image = image;
    const limit = Number(document.body.dataset.limit);
    if (image.size > limit) return this.fail(`${image.name}: ${megabytes(image.size)}; the limit is ${megabytes(limit)}. Send a smaller one.`);
    const explains = document.body.dataset.explains === "yes";
    const request = new XMLHttpRequest(); // reports upload progress
    this.request = request;
    const form = new FormData();
    form.append("image", image);
    request.open("POST", explains ? "explain" : "predict");
    request.responseType = "arraybuffer";
    request.upload.onprogress = (event) => this.say("busy", `Sending ${image.name} (${megabytes(image.size)}).`, event.loaded / event.total);
    request.upload.onload = () => this.say("busy", `Predicting ${image.name}.`, null);
    request.onerror = () => this.fail("The server does not answer. Is it still running?", true);
    request.onload = () => this.answered(request, image, explains);
    this.say("busy", `Sending ${image.name} (${megabytes(image.size)}).`, 0);
    request.send(form);
  }

  async answered(request, image, explains) {
    if (request.status !== 200) return this.fail(sentenceOf(request), request.status >= 500);
    try {
      await (explains ? this.explain(request) : this.list(request, image));
    } catch (error) {
      this.fail(`The answer could not be drawn (${error.message}).`);
      throw error;
    }
  }

  async explain(request) {
    const end = Number(request.getResponseHeader("X-Document-Bytes"));
    const explanation = JSON.parse(new TextDecoder().decode(new Uint8Array(request.response, 0, end)));
    this.look?.stop();
    byId("shown").replaceChildren(byId("explained").content.cloneNode(true));
    this.look = await startPage(explanation, request.response.slice(end));
    this.done(explanation.image.name, this.look.detections().length);
  }

  // an exported model cannot be explained: show the image with its boxes, and a list
  async list(request, image) {
    const answer = JSON.parse(new TextDecoder().decode(request.response));
    const bitmap = await createImageBitmap(image);
    const scale = Math.min(1, 1600 / Math.max(answer.width, answer.height));
    const canvas = element("canvas", { className: "annotated", width: Math.max(1, Math.round(answer.width * scale)), height: Math.max(1, Math.round(answer.height * scale)) });
    const pen = canvas.getContext("2d");
    pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    for (const one of answer.objects) drawBox(pen, one.box, [scale, scale], colorOf(one.category_id), 3, { label: `${one.name} ${one.score.toFixed(2)}` });
    const items = answer.objects.map((one) => element("li", {}, `${one.name} ${one.score.toFixed(2)}`));
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Image with ${plural(items.length, "object")}, listed below`);
    byId("shown").replaceChildren(canvas, element("ul", {}, ...items));
    document.body.dataset.ready = "yes";
    this.done(answer.image, items.length, " This is an exported model; serve its checkpoint to see explanations.");
  }

  done(name, count, more = "") {
    this.say("done", `${name}: ${count ? plural(count, "object") : "no object above the threshold"}.${more}`);
  }

  fail(sentence, canHelp = false) {
    this.say("bad", sentence);
    byId("again").hidden = !(canHelp && this.image);
    byId("sending").scrollIntoView({ block: "nearest" });
  }

  // progress: 0 to 1; null for "some"; undefined for none
  say(state, sentence, progress) {
    const sent = byId("sent"), bar = byId("progress"), isBusy = state === "busy";
    sent.textContent = sentence;
    sent.className = `sent ${state}`;
    document.body.dataset.state = state;
    byId("shown").setAttribute("aria-busy", String(isBusy));
    byId("again").hidden = true;
    bar.hidden = !isBusy;
    if (progress === null || progress === undefined) bar.removeAttribute("value");
    else bar.value = progress;
  }
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e6 ? 2 : 1)}\u00a0MB`;

function sentenceOf(request) {
  try {
    return JSON.parse(new TextDecoder().decode(request.response)).error;
  } catch {
    return `The server answered ${request.status} ${request.statusText}.`;
  }
}

new Live();
