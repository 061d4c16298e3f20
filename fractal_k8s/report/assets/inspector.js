// What stands beside the maps: the record under the pointer, the selected point, the box.

function rowsTable(lines) {
  const table = document.createElement("table");
  for (const [name, value] of lines) {
    const row = table.insertRow(), head = document.createElement("th");
    head.textContent = name;
    head.scope = "row";
    row.append(head);
    row.insertCell().textContent = value;
  }
  return table;
}

function recordOf(records, i, j) {
  const p = i * columns + j, state = records.states[p];
  const lines = [
    ["point", "(" + i + ", " + j + ")"],
    [data.axes.y.name, String(data.axes.y.values[i])],
    [data.axes.x.name, String(data.axes.x.values[j])],
    ["state", data.stateNames[state]],
  ];
  if (state >= DIVERGED) lines.push(
    ["first → final loss", digits(records.firstLoss[p], 5) + " → " + digits(records.finalLoss[p], 5)],
    ["last losses / first", digits(records.ratio[p], 5)],
    ["steps", records.steps[p] + (records.lostAt[p] !== NEVER ? ", loss not finite from step " + records.lostAt[p] : "")],
    ["time", digits(records.seconds[p], 3) + " s"]);
  if (records.probeRatio && Number.isFinite(records.probeRatio[p]))
    lines.push(["probe loss after / before", digits(records.probeRatio[p], 5)]);
  if (data.errors[p]) lines.push(["error", data.errors[p]]);
  if (records.replicaShare && records.replicaShare[p] !== NO_CODE)
    lines.push(["replicas that train", Math.round(100 * records.replicaShare[p] / TOP_CODE) + " %"]);
  return lines;
}

function commandLine(id, title, text) {
  const head = document.createElement("p"), box = document.createElement("div");
  const code = document.createElement("code"), copy = document.createElement("button");
  head.className = "small";
  head.textContent = title;
  box.className = "command";
  code.id = id;
  code.textContent = text;
  copy.type = "button";
  copy.textContent = "Copy";
  copy.addEventListener("click", async () => {
    copy.textContent = (await copied(text)) ? "Copied" : "Press Ctrl-C";
    if (copy.textContent !== "Copied") getSelection().selectAllChildren(code);
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  });
  box.append(code, copy);
  return [head, box];
}

// A page opened from a file may not be allowed to use the clipboard: then the older way is tried.
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}

function showCommand(i, j) { return "fractal-k8s logs " + data.id + " --point " + i + "," + j; }

// The sweep's own file with both axes pinned to the point's exact values: the same run again.
function rerunCommand(records, i, j) {
  const axis = (name, index) => "--set 'axes." + name + "={knob=\"" + data.axes[name].name + "\",values=[" +
    data.axes[name].values[index] + "]}'";
  const seed = records.runSeed ? " --set seed=" + records.runSeed[i * columns + j] + " --set 'seed_policy=\"shared\"'" : "";
  const file = "point-" + i + "-" + j;
  return "fractal-k8s show " + data.id + " > " + file + ".toml && fractal-k8s launch " + file + ".toml --name " + file +
    " --res 1 " + axis("y", i) + " " + axis("x", j) + seed;
}

// As many points as the map has; an axis that lists its values keeps those in the box.
function zoomCommand(box) {
  const height = data.axes.y.listed ? box.i1 - box.i0 + 1 : rows;
  const width = data.axes.x.listed ? box.j1 - box.j0 + 1 : columns;
  const res = height === width ? String(height) : height + "x" + width;
  return "fractal-k8s zoom " + data.id + " --box " + box.i0 + ":" + box.i1 + "," + box.j0 + ":" + box.j1 + " --res " + res;
}

function showHover(records, cell) {
  document.getElementById("hover").replaceChildren(rowsTable(recordOf(records, cell.i, cell.j)));
}

async function showPoint(records, curves, { i, j }) {
  const p = i * columns + j, element = document.getElementById("point");
  const parts = [rowsTable(recordOf(records, i, j))];
  const curve = records.lossCount[p] ? await curves.of(p) : [];
  if (curve && curve.length) parts.push(drawCurve(curve, limitOf(records, p)));
  const note = document.createElement("p");
  note.className = "small";
  note.textContent = records.lossCount[p] ? data.curves.note : "No losses are stored for this point.";
  parts.push(note);
  if (records.states[p] !== MISSING) parts.push(...commandLine("logs-command", "Show what was logged", showCommand(i, j)));
  if (records.runSeed === undefined || records.states[p] !== MISSING)
    if (data.repeatable) parts.push(...commandLine("rerun-command", "Train exactly this point", rerunCommand(records, i, j)));
  element.replaceChildren(...parts);
}

// The loss that the verdict compares with, or null.
function limitOf(records, p) {
  const value = data.verdict.rule === "bound" ? data.verdict.bound : data.verdict.threshold * records.firstLoss[p];
  return value > 0 && Number.isFinite(value) ? Math.log10(value) : null;
}

function showBox(box, view) {
  const element = document.getElementById("box");
  if (!box) {
    const hint = document.createElement("p");
    hint.className = "empty";
    hint.textContent = "Drag a box on a map for the command that trains it.";
    element.replaceChildren(hint);
    return;
  }
  const { y, x } = data.axes;
  const part = (axis, first, last) => axis.values[first] + " to " + axis.values[last];
  const look = document.createElement("button");
  look.type = "button";
  look.textContent = "Show this part";
  look.addEventListener("click", () => view.showBox(box));
  element.replaceChildren(
    rowsTable([
      ["cells", (box.i1 - box.i0 + 1) + " × " + (box.j1 - box.j0 + 1)],
      [y.name, part(y, box.i0, box.i1)],
      [x.name, part(x, box.j0, box.j1)],
    ]),
    ...commandLine("zoom-command", "Train this box at full resolution", zoomCommand(box)), look);
}

const SVG = "http://www.w3.org/2000/svg";

function shape(kind, attributes, text) {
  const element = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// Loss against step on a log scale; a cross at the top is where it stops being finite.
function drawCurve(curve, limit) {
  const width = 340, height = 190, left = 46, right = 8, top = 10, bottom = 30;
  const logs = curve.map(point => point.log).filter(log => log !== null && !Number.isNaN(log));
  const seen = limit === null ? logs : [...logs, limit];
  let low = Math.min(...seen), high = Math.max(...seen);
  if (!seen.length) [low, high] = [0, 1];
  const pad = Math.max((high - low) * 0.07, 0.02);
  [low, high] = [low - pad, high + pad];
  const last = Math.max(curve[curve.length - 1].step, 1);
  const across = step => left + step / last * (width - left - right);
  const up = log => top + (high - log) / (high - low) * (height - top - bottom);
  const svg = shape("svg", { class: "curve", viewBox: "0 0 " + width + " " + height, role: "img", "aria-label": "Loss curve" });
  svg.append(shape("rect", { class: "frame", x: left, y: top, width: width - left - right, height: height - top - bottom }));
  for (const { at, text } of ticks({ log: true }, [low, high], 4).places) {
    svg.append(shape("line", { class: "grid", x1: left, x2: width - right, y1: up(at), y2: up(at) }),
               shape("text", { class: "end", x: left - 5, y: up(at) + 4 }, text));
  }
  for (const { at, text } of ticks({ log: false }, [0, last], 5).places)
    svg.append(shape("text", { class: "middle", x: across(at), y: height - bottom + 14 }, text));
  svg.append(shape("text", { class: "middle", x: (left + width - right) / 2, y: height - 3 }, "step"));
  if (limit !== null) svg.append(shape("line", { class: "limit", x1: left, x2: width - right, y1: up(limit), y2: up(limit) }));
  for (const run of finiteRuns(curve)) {
    if (run.length > 1) {
      const points = run.map(point => across(point.step) + "," + up(point.log)).join(" ");
      svg.append(shape("polyline", { class: "trace", points }));
    } else svg.append(shape("circle", { class: "dot", cx: across(run[0].step), cy: up(run[0].log), r: 2.5 }));
  }
  const lost = point => point !== undefined && Number.isNaN(point.log);
  for (const point of curve.filter((point, k) => lost(point) && !lost(curve[k - 1]))) {
    const x = across(point.step), y = top + 6;
    svg.append(shape("path", { class: "lost", d: "M" + (x - 4) + " " + (y - 4) + "l8 8m0 -8l-8 8" }));
  }
  return svg;
}

function finiteRuns(curve) {
  const runs = [];
  let open = false;
  for (const point of curve) {
    if (point.log === null || Number.isNaN(point.log)) { open = false; continue; }
    if (!open) runs.push([]);
    open = true;
    runs[runs.length - 1].push(point);
  }
  return runs;
}
