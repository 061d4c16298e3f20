// The panels: one canvas of cells each, sampled nearest, and one above it for marks.

const MARGIN = { left: 62, right: 10, top: 6, bottom: 42 };
const HATCH = 7;

function rgba(hex) {
  const n = parseInt(hex.replace("#", ""), 16);
  return ((255 << 24) | ((n & 255) << 16) | (n & 0xff00) | (n >> 16)) >>> 0;
}

function colourTable(text) {
  const table = new Uint32Array(text.length / 6);
  for (let k = 0; k < table.length; k++) table[k] = rgba(text.slice(6 * k, 6 * k + 6));
  return table;
}

function ramp(table, share) {
  return table[Math.round(Math.min(Math.max(share, 0), 1) * (table.length - 1))];
}

// What each panel shows. `share` gives a value in 0..1 for a table, or null: no value there.
function panelKinds(records) {
  const { states } = records;
  const coded = codes => p => codes[p] === NO_CODE ? null : codes[p] / TOP_CODE;
  const known = p => states[p] >= DIVERGED;
  const between = ([low, high], value) => high > low ? (value - low) / (high - low) : 0.5;
  const logSteps = data.stepsRange.map(Math.log10);
  // losses over more than a decade are coloured by their logarithm
  const [least, most] = data.lossRange, byLog = least > 0 && most > 10 * least;
  const lossShare = loss => byLog ? between(data.lossRange.map(Math.log10), Math.log10(loss)) : between(data.lossRange, loss);
  const diverges = records.lostAt.some(step => step !== NEVER);
  const kinds = [
    { id: "trainability", title: "Trainability", table: "trainability", share: coded(records.trainability),
      keys: [["not trainable", 0]], ramp: [0.65, 1], ends: ["high", "low loss"] },
    { id: "loss", title: "Final loss of trainable runs", table: "loss",
      share: p => states[p] === TRAINABLE ? lossShare(records.finalLoss[p]) : null,
      ramp: [0, 1], ends: data.lossRange.map(value => digits(value, 3)), note: byLog ? "log scale" : "" },
    { id: "binary", title: "Trainable or not", table: "binary",
      share: p => known(p) && states[p] !== MARGINAL ? Number(states[p] === TRAINABLE) : null,
      keys: [["not trainable", 0], ["trainable", 1]] },
    { id: "stability", title: "Stability", table: "binary", share: p => known(p) ? Number(states[p] > DIVERGED) : null,
      keys: [["diverged", 0], ["stable", 1]] },
    { id: "steps", title: "Steps until divergence", table: "steps",
      share: p => records.lostAt[p] !== NEVER ? between(logSteps, Math.log10(Math.max(records.lostAt[p], 1))) : null,
      ...(diverges ? { ramp: [0, 1], ends: data.stepsRange.map(String), note: "log scale" } : { note: "no run diverged" }) },
    { id: "measure", title: "Convergence speed, ranked", table: "measure", share: coded(records.measure),
      ramp: [0, 1], ends: ["diverges slowly", "converges slowly"] },
  ];
  if (records.replicaShare) kinds.push({ id: "replicas", title: "Share of replicas that train", table: "share",
    share: coded(records.replicaShare), ramp: [0, 1], ends: ["none", "all"] });
  return kinds;
}

class Panel {
  constructor(kind, records, view, explorer) {
    Object.assign(this, { kind, records, view, explorer });
    this.element = document.createElement("section");
    this.element.className = "card panel";
    this.element.id = kind.id;
    const title = document.createElement("h3");
    title.textContent = kind.title;
    this.legend = document.createElement("div");
    this.legend.className = "legend";
    const stage = document.createElement("div");
    stage.className = "stage";
    this.base = document.createElement("canvas");
    this.over = document.createElement("canvas");
    this.over.className = "over";
    this.over.tabIndex = 0;
    this.over.setAttribute("role", "application");
    this.over.setAttribute("aria-label", kind.title + ": map of " + data.axes.y.label + " against " + data.axes.x.label);
    stage.append(this.base, this.over);
    this.element.append(title, this.legend, stage);
  }

  colour(schemeName) {
    const scheme = data.schemes[schemeName];
    this.table = colourTable(scheme.tables[this.kind.table]);
    const { states } = this.records, none = rgba(paletteColour("--none"));
    const special = { [MISSING]: 0, [FAILED]: rgba(scheme.failed), ...(this.hasBand() && { [MARGINAL]: rgba(scheme.marginal) }) };
    this.cells = new Uint32Array(states.length);
    for (let p = 0; p < states.length; p++) {
      const share = this.kind.share(p);
      // 0 stands for a hole, which is hatched
      this.cells[p] = share !== null ? ramp(this.table, share) : special[states[p]] ?? none;
    }
    this.drawLegend(scheme);
  }

  // Whether marginal points have a colour of their own: where verdicts are shown.
  hasBand() { return ["trainability", "binary"].includes(this.kind.id); }

  drawLegend(scheme) {
    const css = colour => "rgb(" + [colour & 255, (colour >> 8) & 255, (colour >> 16) & 255].join(",") + ")";
    const parts = (this.kind.keys || []).map(([text, share]) => legendKey(text, css(ramp(this.table, share))));
    if (this.kind.ramp) {
      const [from, to] = this.kind.ramp;
      const stops = Array.from({ length: 17 }, (_, k) => css(ramp(this.table, from + (to - from) * k / 16)));
      const bar = document.createElement("span");
      bar.className = "ramp";
      bar.style.background = "linear-gradient(90deg," + stops.join(",") + ")";
      const low = document.createElement("span"), high = document.createElement("span"), group = document.createElement("span");
      [low.textContent, high.textContent] = this.kind.ends;
      group.className = "key";
      group.append(low, bar, high);
      parts.push(group);
    }
    if (this.kind.note) {
      const note = document.createElement("span");
      note.textContent = this.kind.note;
      parts.push(note);
    }
    const seen = new Set(this.records.states);
    if (seen.has(MISSING)) parts.push(legendKey("missing", null));
    if (seen.has(FAILED)) parts.push(legendKey("failed", scheme.failed));
    if (seen.has(MARGINAL) && this.hasBand()) parts.push(legendKey("marginal", scheme.marginal));
    this.legend.replaceChildren(...parts);
  }

  // Sizes both canvases to their place on the screen; true if that changed.
  fit() {
    const place = this.base.getBoundingClientRect();
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const width = Math.round(place.width * ratio), height = Math.round(place.height * ratio);
    this.ratio = ratio;
    this.plot = { left: MARGIN.left, top: MARGIN.top, width: place.width - MARGIN.left - MARGIN.right,
                  height: place.height - MARGIN.top - MARGIN.bottom };
    if (this.base.width === width && this.base.height === height) return false;
    for (const canvas of [this.base, this.over]) { canvas.width = width; canvas.height = height; }
    return true;
  }

  draw() {
    const ink = getComputedStyle(document.body), context = this.base.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.base.width, this.base.height);
    this.drawCells(context, ink.getPropertyValue("--card").trim(), ink.getPropertyValue("--soft").trim());
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    this.drawAxes(context, ink);
    this.drawMarks();
  }

  drawCells(context, paper, soft) {
    const scale = value => Math.round(value * this.ratio);
    const left = scale(this.plot.left), top = scale(this.plot.top);
    const width = Math.max(1, scale(this.plot.width)), height = Math.max(1, scale(this.plot.height));
    const picture = context.createImageData(width, height), pixels = new Uint32Array(picture.data.buffer);
    const [xs, ys] = this.view.span;
    const place = (edges, [low, high], n, flip) => Int32Array.from({ length: n }, (_, k) =>
      cellAt(edges, low + (high - low) * ((flip ? n - 1 - k : k) + 0.5) / n));
    const across = place(data.axes.x.edges, xs, width, false), up = place(data.axes.y.edges, ys, height, true);
    const blank = rgba(paper), line = rgba(soft), every = Math.round(HATCH * this.ratio);
    for (let row = 0, k = 0; row < height; row++) {
      const start = up[row] * columns;
      for (let column = 0; column < width; column++, k++) {
        pixels[k] = this.cells[start + across[column]] || ((row + column) % every < this.ratio ? line : blank);
      }
    }
    context.putImageData(picture, left, top);
  }

  drawAxes(context, ink) {
    const { left, top, width, height } = this.plot, [xs, ys] = this.view.span;
    context.strokeStyle = ink.getPropertyValue("--soft");
    context.fillStyle = ink.getPropertyValue("--soft");
    context.font = "11px " + ink.fontFamily;
    context.lineWidth = 1;
    context.strokeRect(left - 0.5, top - 0.5, width + 1, height + 1);
    const x = ticks(data.axes.x, xs, Math.max(2, Math.floor(width / 62)));
    const y = ticks(data.axes.y, ys, Math.max(2, Math.floor(height / 44)));
    context.textAlign = "center";
    for (const { at, text } of x.places) {
      const place = left + (at - xs[0]) / (xs[1] - xs[0]) * width;
      context.fillRect(place - 0.5, top + height, 1, 4);
      context.fillText(text, place, top + height + 16);
    }
    context.fillText(data.axes.x.label + x.offset, left + width / 2, top + height + 34);
    context.textAlign = "right";
    for (const { at, text } of y.places) {
      const place = top + height - (at - ys[0]) / (ys[1] - ys[0]) * height;
      context.fillRect(left - 4, place - 0.5, 4, 1);
      context.fillText(text, left - 7, place + 4);
    }
    context.textAlign = "center";
    context.save();
    context.translate(11, top + height / 2);
    context.rotate(-Math.PI / 2);
    context.fillText(data.axes.y.label + y.offset, 0, 0);
    context.restore();
  }

  // Rectangle on the canvas of cells i0..i1 x j0..j1, ends included.
  rectangle(box) {
    const { left, top, width, height } = this.plot, [xs, ys] = this.view.span;
    const across = edge => left + (edgeAt(data.axes.x.edges, edge) - xs[0]) / (xs[1] - xs[0]) * width;
    const up = edge => top + height - (edgeAt(data.axes.y.edges, edge) - ys[0]) / (ys[1] - ys[0]) * height;
    return [across(box.j0), up(box.i1 + 1), across(box.j1 + 1) - across(box.j0), up(box.i0) - up(box.i1 + 1)];
  }

  drawMarks() {
    const context = this.over.getContext("2d");
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, this.over.width, this.over.height);
    context.save();
    context.beginPath();
    context.rect(this.plot.left, this.plot.top, this.plot.width, this.plot.height);
    context.clip();
    const { hovered, selected, box } = this.explorer;
    for (const child of data.children) this.outline(context, boxOf(child.box), [4, 3], child.id);
    if (box) this.outline(context, box, [], "");
    if (selected) this.target(context, selected, 7);
    if (hovered) this.target(context, hovered, 3.5);
    context.restore();
  }

  outline(context, box, dash, text) {
    const [x, y, width, height] = this.rectangle(box);
    context.setLineDash([]);
    context.lineWidth = 3;
    context.strokeStyle = "rgba(0,0,0,0.75)";
    context.strokeRect(x, y, width, height);
    context.setLineDash(dash);
    context.lineWidth = 1.4;
    context.strokeStyle = "#fff";
    context.strokeRect(x, y, width, height);
    context.setLineDash([]);
    if (!text || width < 40) return;
    context.font = "10px " + getComputedStyle(document.body).fontFamily;
    context.lineWidth = 3;
    context.strokeStyle = "rgba(0,0,0,0.75)";
    context.strokeText(text, x + 4, y + 12, width - 8);
    context.fillStyle = "#fff";
    context.fillText(text, x + 4, y + 12, width - 8);
  }

  // The cell's own outline, or a ring where the cell is too small to be seen.
  target(context, { i, j }, radius) {
    const [x, y, width, height] = this.rectangle({ i0: i, i1: i, j0: j, j1: j });
    context.beginPath();
    if (Math.min(width, height) >= 2 * radius) context.rect(x, y, width, height);
    else context.arc(x + width / 2, y + height / 2, radius, 0, 2 * Math.PI);
    context.lineWidth = 3.5;
    context.strokeStyle = "rgba(0,0,0,0.8)";
    context.stroke();
    context.lineWidth = 1.5;
    context.strokeStyle = "#fff";
    context.stroke();
  }

  // Share of the plot at a pointer event, and the cell there (null outside the plot).
  locate(event) {
    const place = this.over.getBoundingClientRect(), { left, top, width, height } = this.plot;
    const fx = (event.clientX - place.left - left) / width, fy = 1 - (event.clientY - place.top - top) / height;
    const [xs, ys] = this.view.span;
    const j = cellAt(data.axes.x.edges, xs[0] + fx * (xs[1] - xs[0]));
    const i = cellAt(data.axes.y.edges, ys[0] + fy * (ys[1] - ys[0]));
    const inside = fx >= 0 && fx <= 1 && fy >= 0 && fy <= 1 && i >= 0 && j >= 0;
    return { fx, fy, cell: inside ? { i, j } : null };
  }
}

// A box that was given by values may begin between two cells.
function edgeAt(edges, k) {
  const below = Math.min(Math.max(Math.floor(k), 0), edges.length - 2);
  return edges[below] + (k - below) * (edges[below + 1] - edges[below]);
}

function paletteColour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

function legendKey(text, colour) {
  const key = document.createElement("span"), patch = document.createElement("i");
  key.className = "key";
  if (colour) patch.style.background = colour; else patch.className = "hatched";
  key.append(patch, text);
  return key;
}

function boxOf([[i0, i1], [j0, j1]]) { return { i0, i1, j0, j1 }; }
