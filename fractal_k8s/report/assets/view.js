// What part of the map all panels show, in drawing coordinates (log10 of the value on a log axis).

class View {
  constructor() {
    this.whole = [data.axes.x, data.axes.y].map(axis => [axis.edges[0], axis.edges[axis.edges.length - 1]]);
    // the narrowest view is two cells of the finest part
    this.least = [data.axes.x, data.axes.y].map(axis => {
      const widths = axis.edges.slice(1).map((edge, k) => edge - axis.edges[k]);
      return Math.min(...widths) * Math.min(2, widths.length);
    });
    this.listeners = [];
    this.reset();
  }

  get isWhole() { return this.span.every((part, k) => part[0] <= this.whole[k][0] && part[1] >= this.whole[k][1]); }

  reset() { this.set(this.whole); }

  set(span) {
    this.span = span.map((part, k) => {
      const [low, high] = this.whole[k];
      const width = Math.min(Math.max(part[1] - part[0], this.least[k]), high - low);
      const middle = (part[0] + part[1]) / 2;
      const start = Math.min(Math.max(middle - width / 2, low), high - width);
      return width === high - low ? [low, high] : [start, start + width];
    });
    this.listeners.forEach(listener => listener());
  }

  // Keeps the point at share (fx, fy) of the plot in its place.
  zoom(factor, fx, fy) {
    const shares = [fx, fy];
    this.set(this.span.map(([low, high], k) => {
      const fixed = low + shares[k] * (high - low);
      return [fixed - (fixed - low) * factor, fixed + (high - fixed) * factor];
    }));
  }

  move(dx, dy) {
    const by = [dx, dy];
    this.set(this.span.map(([low, high], k) => [low - by[k] * (high - low), high - by[k] * (high - low)]));
  }

  showBox(box) {
    this.set([[data.axes.x.edges[box.j0], data.axes.x.edges[box.j1 + 1]],
              [data.axes.y.edges[box.i0], data.axes.y.edges[box.i1 + 1]]]);
  }
}

// Index of the cell that holds a position; -1 outside the map.
function cellAt(edges, position) {
  if (position < edges[0] || position > edges[edges.length - 1]) return -1;
  let low = 0, high = edges.length - 2;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (edges[middle] <= position) low = middle; else high = middle - 1;
  }
  return low;
}

// The densest of some usual sets of digits that leaves room, or every n-th decade.
function logTicks(low, high, most) {
  for (const set of [[1, 2, 3, 4, 5, 6, 8], [1, 2, 5], [1, 3]]) {
    const places = [];
    for (let power = Math.floor(low); power <= high; power++)
      for (const digit of set) places.push({ at: power + Math.log10(digit), text: digit + "e" + power });
    const inside = places.filter(({ at }) => at >= low && at <= high);
    if (inside.length <= most) return inside;
  }
  const step = Math.max(1, Math.ceil((high - low) / most));
  const places = [];
  for (let power = Math.ceil(low / step) * step; power <= high; power += step) places.push({ at: power, text: "1e" + power });
  return places;
}

// Ticks of an axis: positions and texts; `offset` is what every text leaves out, in a deep zoom.
function ticks(axis, [low, high], most) {
  if (axis.log && high - low > 0.5) return { places: logTicks(low, high, most), offset: "" };
  const [from, to] = axis.log ? [10 ** low, 10 ** high] : [low, high];
  const raw = (to - from) / most, base = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find(factor => factor * base >= raw) * base;
  const values = [];
  for (let k = Math.ceil(from / step); k * step <= to; k++) values.push(k * step);
  const size = Math.max(Math.abs(from), Math.abs(to));
  const needed = Math.ceil(Math.log10(size / step)) + 1;
  const origin = needed > 7 ? Math.floor(from / step) * step : 0;
  const places = values.map(value => ({
    at: axis.log ? Math.log10(value) : value,
    text: origin ? "+" + digits(value - origin, 2) : digits(value, Math.max(needed, 2)),
  }));
  return { places, offset: origin ? " - " + digits(origin, Math.min(17, needed + 1)) : "" };
}
