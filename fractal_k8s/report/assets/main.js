// Puts the parts together: pointer, keys, tools, and the address that remembers what is shown.

class Explorer {
  constructor(records) {
    this.records = records;
    this.curves = new Curves(records);
    this.view = new View();
    this.hovered = this.selected = this.box = this.drag = this.anchor = null;
    this.mode = "box";
    this.waiting = null;
    this.panels = panelKinds(records).map(kind => new Panel(kind, records, this.view, this));
    document.getElementById("panels").append(...this.panels.map(panel => panel.element));
    this.view.listeners.push(() => this.redraw(true));
    for (const panel of this.panels) this.listen(panel);
    this.tools();
    new ResizeObserver(() => { this.panels.forEach(panel => panel.fit()); this.redraw(true); })
      .observe(document.getElementById("panels"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.paint(this.chooser.value));
  }

  // Draws at most once a frame: all of it, or the marks only.
  redraw(all) {
    if (this.waiting) { this.waiting.all = this.waiting.all || all; return; }
    this.waiting = { all };
    requestAnimationFrame(() => {
      const { all: everything } = this.waiting;
      this.waiting = null;
      for (const panel of this.panels) if (everything) panel.draw(); else panel.drawMarks();
      document.body.dataset.drawn = String(Number(document.body.dataset.drawn || 0) + 1);
    });
  }

  listen(panel) {
    const over = panel.over;
    over.addEventListener("wheel", event => this.wheel(panel, event), { passive: false });
    over.addEventListener("pointerdown", event => this.press(panel, event));
    over.addEventListener("pointermove", event => this.movePointer(panel, event));
    over.addEventListener("pointerup", event => this.release(panel, event));
    over.addEventListener("pointercancel", () => { this.drag = null; });
    over.addEventListener("pointerleave", () => { if (!this.drag) this.hover(null); });
    over.addEventListener("dblclick", () => this.view.reset());
    over.addEventListener("keydown", event => this.key(event));
  }

  wheel(panel, event) {
    // at the whole map a wheel that zooms out scrolls the page
    if (event.deltaY > 0 && this.view.isWhole) return;
    const { fx, fy, cell } = panel.locate(event);
    if (!cell) return;
    event.preventDefault();
    this.view.zoom(Math.exp(Math.max(-1, Math.min(1, event.deltaY / 400))), fx, fy);
  }

  press(panel, event) {
    if (event.button > 1) return;
    const { fx, fy, cell } = panel.locate(event);
    if (!cell) return;
    panel.over.setPointerCapture(event.pointerId);
    const moves = this.mode === "pan" || event.shiftKey || event.button === 1;
    this.drag = { panel, fx, fy, cell, moves, x: event.clientX, y: event.clientY, begun: false };
  }

  movePointer(panel, event) {
    const { fx, fy, cell } = panel.locate(event);
    const drag = this.drag;
    if (!drag) { this.hover(cell); return; }
    drag.begun = drag.begun || Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > 4;
    if (!drag.begun) return;
    if (drag.moves) {
      this.view.move(fx - drag.fx, fy - drag.fy);
      [drag.fx, drag.fy] = [fx, fy];
    } else {
      const [xs, ys] = this.view.span, part = ([low, high], share) => low + Math.min(Math.max(share, 0), 1) * (high - low);
      this.setBox(drag.cell, { i: cellAt(data.axes.y.edges, part(ys, fy)), j: cellAt(data.axes.x.edges, part(xs, fx)) });
    }
  }

  release(panel, event) {
    const drag = this.drag;
    this.drag = null;
    if (!drag || drag.begun) return;
    this.select(drag.cell);
    this.hover(panel.locate(event).cell);
  }

  hover(cell) {
    if (cell && this.hovered && cell.i === this.hovered.i && cell.j === this.hovered.j) return;
    this.hovered = cell;
    if (cell) showHover(this.records, cell);
    this.redraw(false);
  }

  select(cell) {
    this.selected = cell;
    showPoint(this.records, this.curves, cell);
    this.remember();
    this.redraw(false);
  }

  // A box between two cells; at least two cells each way, which is what a zoom needs.
  setBox(a, b) {
    const order = (first, last, count) => {
      let low = Math.min(first, last), high = Math.max(first, last);
      if (low === high && count > 1) { if (high + 1 < count) high += 1; else low -= 1; }
      return [low, high];
    };
    const [i0, i1] = order(a.i, b.i, rows), [j0, j1] = order(a.j, b.j, columns);
    this.box = { i0, i1, j0, j1 };
    showBox(this.box, this.view);
    this.redraw(false);
  }

  key(event) {
    const steps = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] };
    const cell = this.hovered || this.selected || { i: rows >> 1, j: columns >> 1 };
    if (event.key in steps) this.step(cell, steps[event.key], event.shiftKey);
    else if (event.key === "Enter" || event.key === " ") this.select(cell);
    else if (event.key === "+" || event.key === "=") this.view.zoom(0.7, ...this.share(cell));
    else if (event.key === "-") this.view.zoom(1 / 0.7, ...this.share(cell));
    else if (event.key === "0") this.view.reset();
    else if (event.key === "Escape") { this.box = this.anchor = null; showBox(null); this.redraw(false); }
    else return;
    event.preventDefault();
  }

  step(cell, [di, dj], extends_) {
    if (!extends_) this.anchor = null;
    else if (!this.anchor) this.anchor = cell;
    const next = { i: Math.min(Math.max(cell.i + di, 0), rows - 1), j: Math.min(Math.max(cell.j + dj, 0), columns - 1) };
    this.hover(next);
    if (extends_) this.setBox(this.anchor, next);
  }

  // Where a cell lies in the view, as shares of the plot.
  share({ i, j }) {
    const [xs, ys] = this.view.span;
    const part = ([low, high], at) => Math.min(Math.max((at - low) / (high - low), 0), 1);
    return [part(xs, data.axes.x.centres[j]), part(ys, data.axes.y.centres[i])];
  }

  tools() {
    const buttons = { box: document.getElementById("mode-box"), pan: document.getElementById("mode-pan") };
    for (const [mode, button] of Object.entries(buttons)) button.addEventListener("click", () => {
      this.mode = mode;
      for (const [name, other] of Object.entries(buttons)) other.setAttribute("aria-pressed", String(name === mode));
      for (const panel of this.panels) panel.over.classList.toggle("moving", mode === "pan");
    });
    document.getElementById("reset").addEventListener("click", () => this.view.reset());
    this.chooser = document.getElementById("scheme");
    for (const [name, scheme] of Object.entries(data.schemes)) this.chooser.append(new Option(scheme.title, name));
    this.chooser.addEventListener("change", () => { this.paint(this.chooser.value); this.remember(); });
  }

  paint(scheme) {
    this.chooser.value = scheme;
    for (const panel of this.panels) panel.colour(scheme);
    this.redraw(true);
  }

  // Colours and selected point stand in the address, so that a link or a reload shows the same.
  remember() {
    const state = new URLSearchParams();
    if (this.chooser.value !== data.scheme) state.set("colours", this.chooser.value);
    if (this.selected) state.set("point", this.selected.i + "," + this.selected.j);
    try {
      history.replaceState(null, "", "#" + state);
    } catch {
      // some browsers do not let a page opened from a file change its address
    }
  }

  recall() {
    const state = new URLSearchParams(location.hash.slice(1));
    const scheme = state.get("colours");
    this.paint(scheme in data.schemes ? scheme : data.scheme);
    const [i, j] = (state.get("point") || "").split(",").map(Number);
    if (Number.isInteger(i) && Number.isInteger(j) && i >= 0 && i < rows && j >= 0 && j < columns) this.select({ i, j });
  }
}

readRecords().then(records => {
  const explorer = new Explorer(records);
  explorer.panels.forEach(panel => panel.fit());
  explorer.recall();
});
