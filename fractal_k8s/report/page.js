"use strict";
// Draws the maps and the fit from the page's own data, and shows the record of the point under the
// pointer. Everything is in this file: nothing is fetched.

const data = JSON.parse(document.getElementById("data").textContent);
const MISSING = "#ffffff", FAILED = "#f2a900", NO_VALUE = "#efefef";
const modebar = { bgcolor: "rgba(255,255,255,0)", color: "#b4bac4", activecolor: "#00008b" };
const config = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d"] };

function axisLayout(axis) {
  const n = axis.positions.length;
  const half = n > 1 ? (axis.positions[n - 1] - axis.positions[0]) / (n - 1) / 2 : 0.5;
  const range = [axis.positions[0] - half, axis.positions[n - 1] + half];
  return { title: { text: axis.label }, range: range, zeroline: false, showgrid: false, constrain: "domain" };
}

// Cells without a verdict lie under every map: failed ones in their colour, missing ones crossed.
function backdrop() {
  const kinds = data.states.map(row => row.map(state => state === 0 ? 0 : state === 1 ? 1 : 0.5));
  return {
    type: "heatmap", z: kinds, x: data.axes.x.positions, y: data.axes.y.positions,
    zmin: 0, zmax: 1, showscale: false, hoverinfo: "skip",
    colorscale: [[0, MISSING], [0.33, MISSING], [0.33, NO_VALUE], [0.67, NO_VALUE], [0.67, FAILED], [1, FAILED]],
  };
}

function crosses() {
  const x = [], y = [];
  data.states.forEach((row, i) => row.forEach((state, j) => {
    if (state === 0) { x.push(data.axes.x.positions[j]); y.push(data.axes.y.positions[i]); }
  }));
  if (x.length > 20000) return [];
  return [{ type: "scattergl", mode: "markers", x: x, y: y, hoverinfo: "skip", showlegend: false,
            marker: { symbol: "x-thin", size: 4, line: { width: 1, color: "#9a9a9a" } } }];
}

function drawMap(id, z, options) {
  const map = Object.assign({
    type: "heatmap", z: z, x: data.axes.x.positions, y: data.axes.y.positions, hoverongaps: true,
    customdata: data.states.map((row, i) => row.map((state, j) => [i, j, data.stateNames[state]])),
    hovertemplate: "(%{customdata[0]}, %{customdata[1]}) %{customdata[2]}<extra></extra>",
  }, options);
  const layout = {
    margin: { l: 62, r: 10, t: 34, b: 52 }, dragmode: "zoom", modebar: modebar,
    xaxis: axisLayout(data.axes.x), yaxis: axisLayout(data.axes.y),
    plot_bgcolor: "rgba(0,0,0,0)", paper_bgcolor: "rgba(0,0,0,0)",
  };
  const element = document.getElementById(id);
  Plotly.newPlot(element, [backdrop(), ...crosses(), map], layout, config);
  element.on("plotly_hover", event => {
    const cell = event.points.find(point => point.customdata);
    if (cell) showPoint(cell.customdata[0], cell.customdata[1]);
  });
}

function showPoint(i, j) {
  const state = data.stateNames[data.states[i][j]];
  const rows = [
    ["point", "(" + i + ", " + j + ")"],
    [data.axes.y.name, data.axes.y.values[i]],
    [data.axes.x.name, data.axes.x.values[j]],
    ["state", state],
  ];
  if (data.states[i][j] > 1) {
    rows.push(["loss", show(data.firstLoss[i][j]) + " → " + show(data.finalLoss[i][j])],
              ["last losses / first", show(data.ratio[i][j])],
              ["steps", data.steps[i][j]], ["seconds", show(data.seconds[i][j])]);
  }
  rows.push(["log", "fractal-k8s logs " + data.id + " --point " + i + "," + j]);
  const table = document.createElement("table");
  for (const [name, value] of rows) {
    const row = table.insertRow();
    const head = document.createElement("th");
    head.textContent = name;
    row.appendChild(head);
    row.insertCell().textContent = value;
  }
  document.getElementById("point").replaceChildren(table);
}

function show(value) {
  return value === null ? "not finite" : String(value);
}

function drawFit() {
  const element = document.getElementById("fit");
  const fit = data.fit;
  if (fit.dimension === null) {
    element.textContent = "There is no edge dimension; see the table below.";
    return;
  }
  const logs = values => values.map(Math.log);
  const mean = values => values.reduce((a, b) => a + b, 0) / values.length;
  const offset = mean(logs(fit.counts)) + fit.dimension * mean(logs(fit.sizes));
  const line = fit.sizes.map(size => Math.exp(offset - fit.dimension * Math.log(size)));
  const middles = fit.sizes.slice(1).map((size, k) => Math.sqrt(size * fit.sizes[k]));
  Plotly.newPlot(element, [
    { x: fit.sizes, y: fit.counts, mode: "markers", name: "boxes", marker: { size: 9, color: "#00008b" } },
    { x: fit.sizes, y: line, mode: "lines", name: "slope " + fit.dimension.toFixed(3), line: { color: "#8b0000" } },
    { x: middles, y: fit.slopes, mode: "lines+markers", name: "local slope", yaxis: "y2",
      line: { color: "#f2a900" } },
  ], {
    margin: { l: 62, r: 10, t: 34, b: 52 }, legend: { orientation: "h", y: 1.0, x: 0.35 }, modebar: modebar,
    xaxis: { type: "log", title: { text: "box side, points" }, dtick: "D2", anchor: "y2" },
    yaxis: { type: "log", title: { text: "boxes with edge" }, domain: [0.34, 1] },
    yaxis2: { title: { text: "slope" }, domain: [0, 0.26], range: [0.8, 2.1] },
  }, config);
}

drawMap("trainability", data.trainability, {
  zmin: -1, zmax: 1, colorscale: data.scale,
  colorbar: { tickvals: [-1, 0.3, 1], ticktext: ["not trainable", "highest loss", "lowest loss"], thickness: 12 },
});
drawMap("loss", data.loss, { colorscale: "Viridis", colorbar: { thickness: 12 } });
drawMap("binary", data.binary, {
  zmin: 0, zmax: 1, colorscale: [[0, "#8b0000"], [0.5, "#8b0000"], [0.5, "#00008b"], [1, "#00008b"]],
  colorbar: { tickvals: [0.25, 0.75], ticktext: ["not trainable", "trainable"], thickness: 12 },
});
drawMap("measure", data.measure, {
  zmin: -1, zmax: 1, colorscale: [[0, "#9e0142"], [0.1, "#d53e4f"], [0.2, "#f46d43"], [0.3, "#fdae61"],
    [0.4, "#fee08b"], [0.5, "#ffffbf"], [0.6, "#e6f598"], [0.7, "#abdda4"], [0.8, "#66c2a5"],
    [0.9, "#3288bd"], [1, "#5e4fa2"]],
  colorbar: { tickvals: [-1, -0.25, 0.25, 1],
    ticktext: ["slow divergence", "fast divergence", "fast convergence", "slow convergence"], thickness: 12 },
});
drawFit();
