// With annotations: what became of every object, the costs of the matching, and every query's loss.

const TERMS = [["total", "sum"], ["class", "class: weight × cost of saying it"], ["box", "box: weight × L1 distance"], ["giou", "−weight × GIoU"]];

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

  objectName(number) {
    return `${number}: ${this.explanation.classes[this.explanation.objects[number].label]}`;
  }

  queryLink(query) {
    if (query === null) return "none";
    return element("button", { type: "button", className: "link", onclick: () => { this.look.choose(query); byId("stage").scrollIntoView({ block: "nearest" }); } }, `query ${query}`);
  }

  show(look) {
    if (!this.explanation.objects) return;
    this.look = look;
    this.showObjects();
    this.showVerdicts();
    if (!byId("costs").children.length) {
      this.showCosts();
      this.showLosses();
      byId("pairsNote").textContent = this.changes();
    }
  }

  showObjects() {
    const rows = this.explanation.objects.map((one, number) => {
      const isFound = one.score !== null && one.score >= this.look.threshold;
      const outcome = isFound
        ? element("span", {}, element("span", { className: "good" }, "found "), `by query ${one.foundBy}, score ${one.score.toFixed(2)}`)
        : element("span", {}, element("span", { className: "bad" }, "missed: "), one.ifMissed);
      return cells([this.objectName(number), "name"], [outcome], [this.queryLink(one.matchedQuery)], [one.bestQuery === null ? "none overlaps it" : element("span", {}, this.queryLink(one.bestQuery), ` ${one.bestIou.toFixed(2)}`), "name"]);
    });
    const found = this.explanation.objects.filter((one) => one.score !== null && one.score >= this.look.threshold).length;
    byId("found").textContent = `${found} of ${rows.length} found at threshold ${this.look.threshold.toFixed(2)}: right class, IoU of at least 0.50, one query for one object.`;
    table("objects", [["object"], ["outcome"], ["matched in training"], ["closest box, IoU"]], rows);
  }

  showVerdicts() {
    const rows = this.look.detections().map((query) => {
      const [word, kind, text] = this.verdict(query);
      return cells([this.queryLink(query), "name"], [`${this.look.name(query)} ${this.look.score(query).toFixed(2)}`, "name"], [element("span", {}, element("span", { className: kind }, word), text)]);
    });
    if (!rows.length) rows.push(cells(["Nothing above the threshold."], [""], [""]));
    table("verdicts", [["query"], ["says"], ["outcome"]], rows);
  }

  // what a detection is, as COCO counts: it finds an object, repeats one, mistakes one, or is on nothing
  verdict(query) {
    const { objects } = this.explanation;
    const finds = objects.findIndex((one) => one.foundBy === query);
    if (finds >= 0) return ["right: ", "good", `finds object ${this.objectName(finds)}`];
    const row = this.look.kept(query);
    if (row < 0 || !objects.length) return ["wrong: ", "bad", objects.length ? "finds no object" : "there are no objects"];
    const overlaps = objects.map((_, object) => this.cost(row, object, 4));
    const close = hottest(overlaps), label = this.look.final(query).top[0][0];
    const same = overlaps.findIndex((iou, object) => iou >= 0.5 && objects[object].label === label);
    if (same >= 0) return ["repeats: ", "bad", `object ${this.objectName(same)}, which query ${objects[same].foundBy} finds with a higher score`];
    if (overlaps[close] >= 0.5) return ["wrong class: ", "bad", `it is on object ${this.objectName(close)} (IoU ${overlaps[close].toFixed(2)})`];
    if (!overlaps[close]) return ["on nothing: ", "bad", "it overlaps no object"];
    return ["on nothing: ", "bad", `the closest object is ${this.objectName(close)} (IoU ${overlaps[close].toFixed(2)}, 0.50 would count)`];
  }

  cost(row, object, term) {
    const at = (row * this.explanation.objects.length + object) * 4;
    return term ? this.costs[at + term - 1] : this.costs[at] + this.costs[at + 1] + this.costs[at + 2];
  }

  showCosts() {
    const { keptQueries, objects } = this.explanation;
    const all = keptQueries.flatMap((_, row) => objects.map((_, object) => this.cost(row, object, this.term)));
    const least = Math.min(...all), most = Math.max(...all);
    const order = keptQueries.map((query, row) => [query, row]).sort(([a], [b]) => (this.pairs.has(a) ? this.pairs.get(a) : 1e6 + a) - (this.pairs.has(b) ? this.pairs.get(b) : 1e6 + b));
    const rows = order.map(([query, row]) => {
      const line = element("tr", {}, element("th", { scope: "row" }, `query ${query}`));
      objects.forEach((_, object) => line.append(this.costCell(query, row, object, least, most)));
      return line;
    });
    table("costs", [["costs"], ...objects.map((_, number) => [this.objectName(number), "number"])], rows);
  }

  costCell(query, row, object, least, most) {
    const cost = this.cost(row, object, this.term);
    const button = element("button", { type: "button" }, cost.toFixed(2));
    button.setAttribute("aria-pressed", String(this.chosen === `${query},${object}`));
    button.addEventListener("click", () => {
      document.querySelector('#costs [aria-pressed="true"]')?.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", "true");
      this.chosen = `${query},${object}`;
      this.explainCost(query, row, object);
    });
    const cell = element("td", { className: this.pairs.get(query) === object ? "matched" : "" }, button);
    cell.style.background = `rgba(var(--cost), ${(0.6 * (most - cost)) / (most - least || 1)})`;
    return cell;
  }

  explainCost(query, row, object) {
    const [total, ofClass, ofBox, ofGiou] = [0, 1, 2, 3].map((term) => this.cost(row, object, term).toFixed(3));
    const pair = this.pairs.get(query) === object ? " They are matched." : this.pairs.has(query) ? ` The query is matched to object ${this.objectName(this.pairs.get(query))}.` : " The query is matched to no object.";
    byId("terms").textContent = `Query ${query} and object ${this.objectName(object)}: class ${ofClass} + box ${ofBox} + GIoU ${ofGiou} = ${total}; IoU ${this.cost(row, object, 4).toFixed(2)}.${pair}`;
  }

  // which pairs change from layer to layer
  changes() {
    const layers = this.explanation.matching.layerPairs;
    const lines = layers.slice(1).map((pairs, i) => {
      const before = new Map(layers[i]);
      return `${i + 1} to ${i + 2}: ${pairs.filter(([query, object]) => before.get(query) !== object).length}`;
    });
    return lines.length ? `Every decoder layer is matched for itself. Pairs that change from layer to layer: ${lines.join("; ")}.` : "";
  }

  showLosses() {
    const { losses, measure } = this.explanation.matching;
    const sum = (one) => one.class + one.box + one.giou;
    const total = losses.reduce((before, one) => before + sum(one), 0);
    const line = (name, object, entropy, one) => cells([name, "name"], [object], [entropy, "number"], [one.class.toFixed(3), "number"], [one.box.toFixed(3), "number"], [one.giou.toFixed(3), "number"], [percent(total ? sum(one) / total : 0), "number"]);
    const matched = losses.filter((one) => one.object !== null).sort((a, b) => sum(b) - sum(a));
    const others = losses.filter((one) => one.object === null).sort((a, b) => sum(b) - sum(a));
    const rest = (list) => list.reduce((all, one) => ({ class: all.class + one.class, box: all.box + one.box, giou: all.giou + one.giou }), { class: 0, box: 0, giou: 0 });
    const rows = [...matched, ...others.slice(0, 5)].map((one) => line(this.queryLink(one.query), one.object === null ? "no object (unmatched)" : this.objectName(one.object), one.entropy.toFixed(3), one));
    if (others.length > 5) rows.push(line(`${others.length - 5} more`, "no object (unmatched)", "", rest(others.slice(5))));
    rows.push(line("all", "", "", rest(losses)));
    table("losses", [["query"], ["should say"], [measure, "number"], ["class loss", "number"], ["box loss", "number"], ["GIoU loss", "number"], ["share", "number"]], rows);
  }
}
