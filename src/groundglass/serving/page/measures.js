// Ruler and region of interest: where they lie on a slice, what they measure, and how they are drawn.

const COLOUR = "#7ee787";
const REACH = 10;

/**
 * @typedef {object} Measure
 * @property {"ruler"|"roi"} kind a line, or an ellipse within a box.
 * @property {number[]} from x and y in pixels of the slice.
 * @property {number[]} to
 */

export class Measures {
  #of = new Map();

  /** Measurements of a slice or plane, the last one last. */
  on(key) {
    return this.#of.get(key) ?? [];
  }

  add(key, kind, from, to) {
    const measure = { kind, from, to };
    this.#of.set(key, [...this.on(key), measure]);
    return measure;
  }

  /** Removes one of a slice, or all. */
  remove(key, measure = null) {
    this.#of.set(key, measure ? this.on(key).filter((each) => each !== measure) : []);
  }

  clear() {
    this.#of.clear();
  }

  /** The end of a measurement that lies at a place of the page: what to drag. */
  grip(key, place, onPage) {
    for (const measure of this.on(key).toReversed()) {
      for (const end of ["to", "from"]) {
        const [x, y] = onPage(measure[end]);
        if (Math.hypot(x - place[0], y - place[1]) < REACH) return { measure, end };
      }
    }
    return null;
  }
}

/** What a measurement says, line by line. */
export function measured(measure, raster) {
  const [dy, dx] = raster.spacing ?? [1, 1];
  const unit = raster.spacing ? "mm" : "px";
  const [right, down] = [(measure.to[0] - measure.from[0]) * dx, (measure.to[1] - measure.from[1]) * dy];
  if (measure.kind === "ruler") return [`${Math.hypot(right, down).toFixed(1)} ${unit}`];
  const { mean, spread, count } = inside(measure, raster);
  const area = (Math.PI / 4) * Math.abs(right * down);
  const size = raster.spacing ? `${(area / 100).toFixed(2)} cm²` : `${Math.round(area)} px²`;
  if (!count) return ["no pixel"];
  const suffix = raster.unit === "hounsfield" ? " HU" : "";
  return [`mean ${Math.round(mean)}${suffix}`, `SD ${spread.toFixed(1)}${suffix}`, size];
}

/** Mean and standard deviation of the pixels whose centres lie in the ellipse. */
function inside({ from, to }, { width, height, values }) {
  const [middleX, middleY] = [(from[0] + to[0]) / 2, (from[1] + to[1]) / 2];
  const [radiusX, radiusY] = [Math.abs(to[0] - from[0]) / 2, Math.abs(to[1] - from[1]) / 2];
  let [count, sum, squares] = [0, 0, 0];
  for (let y = Math.max(0, Math.floor(middleY - radiusY)); y <= Math.min(height - 1, middleY + radiusY); y += 1) {
    for (let x = Math.max(0, Math.floor(middleX - radiusX)); x <= Math.min(width - 1, middleX + radiusX); x += 1) {
      if (((x + 0.5 - middleX) / radiusX) ** 2 + ((y + 0.5 - middleY) / radiusY) ** 2 > 1) continue;
      const value = values[y * width + x];
      count += 1;
      sum += value;
      squares += value * value;
    }
  }
  const mean = sum / count;
  return { count, mean, spread: Math.sqrt(Math.max(0, squares / count - mean * mean)) };
}

/** Draws measurements; `onPage` gives a place of the slice in pixels of the page. */
export function drawMeasures(context, measures, raster, onPage) {
  context.save();
  Object.assign(context, { strokeStyle: COLOUR, fillStyle: COLOUR, lineWidth: 1.5, font: "12px system-ui, sans-serif", textBaseline: "top" });
  for (const measure of measures) {
    const [from, to] = [onPage(measure.from), onPage(measure.to)];
    context.beginPath();
    if (measure.kind === "ruler") {
      context.moveTo(...from);
      context.lineTo(...to);
    } else {
      context.ellipse((from[0] + to[0]) / 2, (from[1] + to[1]) / 2, Math.abs(to[0] - from[0]) / 2, Math.abs(to[1] - from[1]) / 2, 0, 0, 2 * Math.PI);
    }
    context.stroke();
    for (const [x, y] of [from, to]) context.fillRect(x - 2.5, y - 2.5, 5, 5);
    const left = Math.max(from[0], to[0]) + 8;
    measured(measure, raster).forEach((line, row) => written(context, line, left, (from[1] + to[1]) / 2 - 8 + row * 15));
  }
  context.restore();
}

/** Text that can be read on any grey. */
function written(context, text, x, y) {
  context.save();
  Object.assign(context, { strokeStyle: "rgba(0,0,0,.85)", lineWidth: 3, lineJoin: "round" });
  context.strokeText(text, x, y);
  context.restore();
  context.fillText(text, x, y);
}
