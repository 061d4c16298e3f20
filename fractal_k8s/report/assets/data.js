// The page's numbers: records of the points and loss curves, unpacked from the file itself.

const data = JSON.parse(document.getElementById("data").textContent);
const { rows, columns } = data;
const MISSING = 0, FAILED = 1, DIVERGED = 2, MARGINAL = 4, TRAINABLE = 5;
const NO_CODE = 65535, TOP_CODE = 65534, LOSS_NOT_FINITE = 65534, NEVER = 0xffffffff;
const TYPES = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array, float64: Float64Array };

async function inflated(id) {
  const text = atob(document.getElementById(id).textContent);
  const bytes = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k++) bytes[k] = text.charCodeAt(k);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// An array lies as planes: all first bytes of its numbers, then all second ones, and so on.
function unplaned(bytes, start, Type, length) {
  const size = Type.BYTES_PER_ELEMENT;
  const whole = new Uint8Array(length * size);
  for (let plane = 0; plane < size; plane++) {
    const from = start + plane * length;
    for (let k = 0; k < length; k++) whole[k * size + plane] = bytes[from + k];
  }
  return new Type(whole.buffer);
}

async function readRecords() {
  const bytes = await inflated("records");
  const arrays = {};
  let start = 0;
  for (const [name, type, length] of data.arrays) {
    arrays[name] = unplaned(bytes, start, TYPES[type], length);
    start += length * TYPES[type].BYTES_PER_ELEMENT;
  }
  return arrays;
}

// log10 of each shown loss of a point: null where it is zero or below, NaN where it is not finite.
class Curves {
  constructor(records) {
    this.lengths = records.lossCount;
    this.starts = new Float64Array(this.lengths.length + 1);
    this.lengths.forEach((n, p) => { this.starts[p + 1] = this.starts[p] + Math.min(n, data.curves.cap); });
    this.codes = null;
  }

  async of(p) {
    if (!data.curves.cap) return null;
    if (!this.codes) this.codes = inflated("curves").then(bytes => {
      const codes = unplaned(bytes, 0, Uint16Array, bytes.length / 2);
      for (let k = 1; k < codes.length; k++) codes[k] += codes[k - 1];
      return codes;
    });
    const codes = (await this.codes).subarray(this.starts[p], this.starts[p + 1]);
    const n = this.lengths[p], m = codes.length, gaps = Math.max(m - 1, 1);
    const span = (data.curves.high - data.curves.low) / (data.curves.codes - 1);
    return Array.from(codes, (code, k) => ({
      step: Math.floor((2 * k * (n - 1) + gaps) / (2 * gaps)),
      log: code === LOSS_NOT_FINITE ? NaN : code === 0 ? null : data.curves.low + (code - 1) * span,
    }));
  }
}

function digits(value, count) {
  if (Number.isNaN(value)) return "not a number";
  if (!Number.isFinite(value)) return value > 0 ? "infinite" : "-infinite";
  return String(Number(value.toPrecision(count)));
}
