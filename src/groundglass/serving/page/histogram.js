// How often each value occurs in the slice, and which of them the window shows.

import { drawn, redrawn } from "./dom.js";

const HEIGHT = 130;
const EDGE = { left: 8, right: 8, top: 6, bottom: 22 };
const BINS = 128;
// Below air there is only padding outside the scanner's circle, and it would dwarf all else.
const RANGES = { hounsfield: [-1100, 600], grey: [0, 256] };
const TICKS = { hounsfield: [-1000, -600, -200, 200], grey: [64, 128, 192] };

export class Histogram {
  #counts = null;
  #unit = "hounsfield";
  #window = { level: 0, width: 1 };
  #median = 0;

  /** @param {HTMLElement} box */
  constructor(box) {
    this.box = box;
    box.setAttribute("role", "img");
    redrawn(box, () => this.#draw());
  }

  /** Counts the values of a slice, or shows nothing. */
  show(layers) {
    this.#counts = null;
    if (layers) {
      this.#unit = layers.unit;
      this.#counts = counted(layers.values, RANGES[layers.unit]);
      this.#median = this.#valueAtHalf();
    }
    this.#draw();
  }

  /** Marks the window. */
  mark(window) {
    this.#window = window;
    this.#draw();
  }

  #valueAtHalf() {
    const half = this.#counts.reduce((sum, count) => sum + count, 0) / 2;
    let sum = 0;
    const bin = this.#counts.findIndex((count) => (sum += count) >= half);
    const [low, high] = RANGES[this.#unit];
    return Math.round(low + ((bin + 0.5) * (high - low)) / BINS);
  }

  #x(value) {
    const [low, high] = RANGES[this.#unit];
    const share = Math.min(Math.max((value - low) / (high - low), 0), 1);
    return EDGE.left + share * (this.box.clientWidth - EDGE.left - EDGE.right);
  }

  #draw() {
    if (!this.#counts || !this.box.clientWidth) {
      this.box.replaceChildren();
      this.box.setAttribute("aria-label", "No slice");
      return;
    }
    const width = this.box.clientWidth;
    const { level, width: span } = this.#window;
    const unit = this.#unit === "hounsfield" ? "Hounsfield units" : "grey values";
    const [from, to] = [level - span / 2, level + span / 2];
    this.box.setAttribute("aria-label", `Histogram of ${unit}: the median is ${this.#median}, the window shows ${from} to ${to}`);
    const bottom = HEIGHT - EDGE.bottom;
    this.box.replaceChildren(
      drawn("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, "aria-hidden": "true" },
        drawn("rect", { class: "window", x: this.#x(from), y: EDGE.top, width: Math.max(this.#x(to) - this.#x(from), 1), height: bottom - EDGE.top }),
        drawn("path", { class: "bars", d: this.#bars(width, bottom) }),
        drawn("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: bottom, y2: bottom }),
        ...TICKS[this.#unit].map((value) => drawn("text", { x: this.#x(value), y: HEIGHT - 6, "text-anchor": "middle", text: value }))),
    );
  }

  /** Bars on a square-root scale: lungs are few pixels beside the air around the patient. */
  #bars(width, bottom) {
    const most = Math.sqrt(Math.max(...this.#counts, 1));
    const step = (width - EDGE.left - EDGE.right) / BINS;
    const bars = Array.from(this.#counts, (count, bin) => {
      const height = (Math.sqrt(count) / most) * (bottom - EDGE.top);
      return `M${(EDGE.left + bin * step).toFixed(1)},${bottom}v${(-height).toFixed(1)}h${step.toFixed(2)}V${bottom}z`;
    });
    return bars.join("");
  }
}

function counted(values, [low, high]) {
  const counts = new Uint32Array(BINS);
  const scale = BINS / (high - low);
  for (const value of values) {
    const bin = Math.floor((value - low) * scale);
    if (bin >= 0 && bin < BINS) counts[bin] += 1;
  }
  return counts;
}
