// With ground truth: the outcome of every object and detection, the matching costs, and the loss of every query.

const TERMS = [["total", "total"], ["class", "class: weight × class cost"], ["box", "box: weight × L1 distance"], ["giou", "−weight × GIoU"]];
const NUM_UNMATCHED_LOSSES = 5; // rows of the loss table; the others are summed up

class MatchingTables {
  constructor(explanation, maps) {
    Object.assign(this, { explanation, maps, term: 0, chosen: null });
    if (!explanation.objects) return;
    byId("objectsSection").hidden = false;
    byId("matchingSection").hidden = false;
    this.costs = maps.array(explanation.matching.costs);
    this.pairs = new Map(explanation.matching.layerPairs[explanation.matching.layerPairs.length - 1]);
    const fieldset = document.querySelector(".terms");
    TERMS.forEach(([name, text], i) => {
      const radio = element("input", { type: "radio", name: "term", checked: i === 0, onchange: () => { this.term = i; this.showCosts(); } });
      fieldset.append(element("label", {}, radio, ` ${text}`));
    });
  }

  objectName(index) {
    return `${index}: ${this.explanation.classes[this.explanation.objects[index].label]}`;
  }

  queryLink(query) {
    if (query === null) return "none";
    return element("button", { type: "button", className: "link", onclick: () => { this.viewer.choose(query); byId("stage").scrollIntoView({ block: "nearest" }); } }, `query ${query}`);
  }

  show(viewer) {
    if (!this.explanation.objects) return;
    this.viewer = viewer;
    this.showObjects();
    this.showDetections();
    if (!byId("costs").children.length) {
      this.showCosts();
      this.showLosses();
      byId("pairsNote").textContent = this.changesText();
    }
  }

  isDetected(object) {
    return object.score !== null && object.score >= this.viewer.minScore(object.label);
  }

  // why an object is missed, with enough digits to tell its score from the threshold
  reason(object) {
    if (object.score === null) return object.reason;
    const [score, limit] = tellApart(object.score, this.viewer.minScore(object.label));
    return `${object.reason}: ${score} is below the threshold of ${limit}`;
  }

  showObjects() {
    const { objects } = this.explanation;
    const rows = objects.map((object, index) => {
      const outcome = this.isDetected(object)
        ? element("span", {}, element("span", { className: "good" }, "detected "), `by query ${object.detectedBy}, score ${object.score.toFixed(2)}`)
        : element("span", {}, element("span", { className: "bad" }, "missed: "), this.reason(object));
      const closest = object.bestQuery === null ? "none overlaps it" : element("span", {}, this.queryLink(object.bestQuery), ` ${object.bestIou.toFixed(2)}`);
      return tableRow([this.objectName(index), "name"], [outcome], [this.queryLink(object.matchedQuery)], [closest, "name"]);
    });
    const count = objects.filter((object) => this.isDetected(object)).length;
    byId("detected").textContent = `${count} of ${rows.length} detected at threshold ${this.viewer.thresholdText()}: right class, IoU of at least 0.50, one query per object.`;
    table("objects", [["object"], ["outcome"], ["matched in training"], ["closest box, IoU"]], rows);
  }

  showDetections() {
    const rows = this.viewer.detections().map((query) => {
      const [outcome, kind, text] = this.detectionOutcome(query);
      return tableRow([this.queryLink(query), "name"], [`${this.viewer.className(query)} ${this.viewer.score(query).toFixed(2)}`, "name"], [element("span", {}, element("span", { className: kind }, outcome), text)]);
    });
    if (!rows.length) rows.push(tableRow(["No detections above the threshold."], [""], [""]));
    table("detectionOutcomes", [["query"], ["prediction"], ["outcome"]], rows);
  }

  // outcome of a detection by COCO's rules
  detectionOutcome(query) {
    const { objects } = this.explanation;
    const detected = objects.findIndex((object) => object.detectedBy === query);
    if (detected >= 0) return ["true positive: ", "good", `detects object ${this.objectName(detected)}`];
    const row = this.viewer.includedRow(query);
    if (row < 0 || !objects.length) return ["false positive: ", "bad", objects.length ? "detects no object" : "the image has no objects"];
    const ious = objects.map((_, index) => this.cost(row, index, 4));
    const closest = argmax(ious), label = this.viewer.final(query).top[0][0];
    const duplicate = ious.findIndex((iou, index) => iou >= 0.5 && objects[index].label === label);
    if (duplicate >= 0) return ["duplicate: ", "bad", `object ${this.objectName(duplicate)} is detected by query ${objects[duplicate].detectedBy} with a higher score`];
    if (ious[closest] >= 0.5) return ["wrong class: ", "bad", `its box is on object ${this.objectName(closest)} (IoU ${ious[closest].toFixed(2)})`];
    if (!ious[closest]) return ["background: ", "bad", "it overlaps no object"];
    return ["background: ", "bad", `the closest object is ${this.objectName(closest)} (IoU ${ious[closest].toFixed(2)}, at least 0.50 needed)`];
  }

  cost(row, object, term) {
    const first = (row * this.explanation.objects.length + object) * 4;
    return term ? this.costs[first + term - 1] : this.costs[first] + this.costs[first + 1] + this.costs[first + 2];
  }

  showCosts() {
    const { includedQueries, objects } = this.explanation;
    const all = includedQueries.flatMap((_, row) => objects.map((_, object) => this.cost(row, object, this.term)));
    const min = Math.min(...all), max = Math.max(...all);
    const position = (query) => (this.pairs.has(query) ? this.pairs.get(query) : 1e6 + query); // matched queries first
    const order = includedQueries.map((query, row) => [query, row]).sort(([a], [b]) => position(a) - position(b));
    const rows = order.map(([query, row]) => {
      const line = element("tr", {}, element("th", { scope: "row" }, `query ${query}`));
      objects.forEach((_, object) => line.append(this.costCell(query, row, object, min, max)));
      return line;
    });
    table("costs", [["costs"], ...objects.map((_, index) => [this.objectName(index), "number"])], rows);
  }

  costCell(query, row, object, min, max) {
    const cost = this.cost(row, object, this.term);
    const button = element("button", { type: "button" }, cost.toFixed(2));
    button.setAttribute("aria-pressed", String(this.chosen === `${query},${object}`));
    button.addEventListener("click", () => {
      document.querySelector('#costs [aria-pressed="true"]')?.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", "true");
      this.chosen = `${query},${object}`;
      this.showTerms(query, row, object);
    });
    const cell = element("td", { className: this.pairs.get(query) === object ? "matched" : "" }, button);
    cell.style.background = `rgba(var(--cost), ${(0.6 * (max - cost)) / (max - min || 1)})`;
    return cell;
  }

  showTerms(query, row, object) {
    const [total, classCost, boxCost, giouCost] = [0, 1, 2, 3].map((term) => this.cost(row, object, term).toFixed(3));
    const pair = this.pairs.get(query) === object ? " They are matched." : this.pairs.has(query) ? ` The query is matched to object ${this.objectName(this.pairs.get(query))}.` : " The query is not matched to an object.";
    byId("terms").textContent = `Query ${query} and object ${this.objectName(object)}: class ${classCost} + box ${boxCost} + GIoU ${giouCost} = ${total}; IoU ${this.cost(row, object, 4).toFixed(2)}.${pair}`;
  }

  // number of pairs that change between layers
  changesText() {
    const layers = this.explanation.matching.layerPairs;
    const changes = layers.slice(1).map((pairs, i) => {
      const before = new Map(layers[i]);
      return `${i + 1} to ${i + 2}: ${pairs.filter(([query, object]) => before.get(query) !== object).length}`;
    });
    return changes.length ? `Every decoder layer is matched separately. Pairs that change between layers: ${changes.join("; ")}.` : "";
  }

  showLosses() {
    const { losses, classLoss } = this.explanation.matching;
    const sum = (loss) => loss.class + loss.box + loss.giou;
    const total = losses.reduce((before, loss) => before + sum(loss), 0);
    const line = (name, object, unweighted, loss) => tableRow([name, "name"], [object], [unweighted, "number"], [loss.class.toFixed(3), "number"], [loss.box.toFixed(3), "number"], [loss.giou.toFixed(3), "number"], [percent(total ? sum(loss) / total : 0), "number"]);
    const byLoss = (isMatched) => losses.filter((loss) => (loss.object !== null) === isMatched).sort((a, b) => sum(b) - sum(a));
    const matched = byLoss(true), unmatched = byLoss(false);
    const summed = (list) => list.reduce((all, loss) => ({ class: all.class + loss.class, box: all.box + loss.box, giou: all.giou + loss.giou }), { class: 0, box: 0, giou: 0 });
    const rows = [...matched, ...unmatched.slice(0, NUM_UNMATCHED_LOSSES)].map((loss) => line(this.queryLink(loss.query), loss.object === null ? "no object" : this.objectName(loss.object), loss.unweighted.toFixed(3), loss));
    const others = unmatched.slice(NUM_UNMATCHED_LOSSES);
    if (others.length) rows.push(line(`${others.length} more`, "no object", "", summed(others)));
    rows.push(line("all", "", "", summed(losses)));
    table("losses", [["query"], ["target"], [classLoss, "number"], ["class loss", "number"], ["box loss", "number"], ["GIoU loss", "number"], ["share", "number"]], rows);
  }
}
