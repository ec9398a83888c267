// Probability along the body: every classified slice of a series as a dot that can be gone to.

import { drawn, redrawn } from "./dom.js";
import { kindOf, labelOf, probabilityText } from "./predictions.js";

const HEIGHT = 150;
const EDGE = { left: 34, right: 12, top: 8, bottom: 34 };
const AXES = { mm: "position, mm (feet to head)", frame: "frame", order: "order of reading" };

export class Curve {
  #slices = [];
  #axis = "order";
  #chosen = null;

  /**
   * @param {HTMLElement} box
   * @param {(number: number) => void} choose called with the selected slice.
   */
  constructor(box, choose) {
    Object.assign(this, { box, choose });
    box.tabIndex = 0;
    box.setAttribute("role", "slider");
    box.setAttribute("aria-label", "Slice along the body");
    box.addEventListener("pointerdown", (event) => {
      box.setPointerCapture(event.pointerId);
      this.#goTo(event);
    });
    box.addEventListener("pointermove", (event) => event.buttons && this.#goTo(event));
    box.addEventListener("keydown", (event) => this.#press(event));
    redrawn(box, () => this.#draw());
  }

  /**
   * Shows a series.
   * @param {object[]} slices its predictions along the axis.
   * @param {"mm"|"frame"|"order"} axis
   */
  show(slices, axis) {
    this.#slices = slices.filter((slice) => slice.probability !== null && slice.place !== null);
    this.#axis = axis;
    this.#draw();
  }

  /** Marks where the slice that is shown lies. */
  mark(number) {
    this.#chosen = number;
    this.#draw();
  }

  /** The slice so many steps towards the head. */
  beside(step) {
    if (!this.#slices.length) return null;
    const index = this.#slices.findIndex((slice) => slice.number === this.#chosen);
    return this.#slices[Math.min(Math.max(index + step, 0), this.#slices.length - 1)].number;
  }

  #press(event) {
    const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10, Home: -Infinity, End: Infinity };
    if (!(event.key in steps) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    const number = this.beside(steps[event.key]);
    if (number !== null) this.choose(number);
  }

  #goTo(event) {
    if (!this.#slices.length) return;
    const x = event.clientX - this.box.getBoundingClientRect().left;
    const far = (slice) => Math.abs(this.#x(slice) - x);
    const nearest = this.#slices.reduce((best, slice) => (far(slice) < far(best) ? slice : best));
    if (nearest.number !== this.#chosen) this.choose(nearest.number);
  }

  #x(slice) {
    const first = this.#slices[0].place;
    const last = this.#slices[this.#slices.length - 1].place;
    const share = last > first ? (slice.place - first) / (last - first) : 0.5;
    return EDGE.left + share * (this.box.clientWidth - EDGE.left - EDGE.right);
  }

  #y(probability) {
    return EDGE.top + (1 - probability) * (HEIGHT - EDGE.top - EDGE.bottom);
  }

  #draw() {
    this.#tell();
    if (!this.#slices.length || !this.box.clientWidth) {
      this.box.replaceChildren();
      return;
    }
    const width = this.box.clientWidth;
    const picture = drawn("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, "aria-hidden": "true" });
    picture.append(...this.#scales(width), drawn("polyline", { class: "line", points: this.#slices.map((slice) => `${this.#x(slice)},${this.#y(slice.probability)}`).join(" ") }));
    for (const slice of this.#slices) {
      picture.append(drawn("circle", { class: `dot ${kindOf(slice)}`, cx: this.#x(slice), cy: this.#y(slice.probability), r: this.#slices.length > 80 ? 2 : 3.5, "data-number": slice.number }));
    }
    const chosen = this.#slices.find((slice) => slice.number === this.#chosen);
    if (chosen) {
      const x = this.#x(chosen);
      picture.append(drawn("line", { class: "here", x1: x, x2: x, y1: EDGE.top, y2: HEIGHT - EDGE.bottom }), drawn("circle", { class: `dot chosen ${kindOf(chosen)}`, cx: x, cy: this.#y(chosen.probability), r: 6 }));
    }
    this.box.replaceChildren(picture);
  }

  #scales(width) {
    const lines = [0, 0.5, 1].flatMap((share) => [
      drawn("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: this.#y(share), y2: this.#y(share) }),
      drawn("text", { x: EDGE.left - 6, y: this.#y(share) + 4, "text-anchor": "end", text: String(share) }),
    ]);
    const ends = this.#slices.length > 1 ? [[this.#slices[0], "start"], [this.#slices[this.#slices.length - 1], "end"]] : [];
    return [
      ...lines,
      ...ends.map(([slice, anchor]) => drawn("text", { x: this.#x(slice), y: HEIGHT - 18, "text-anchor": anchor, text: placeText(slice.place, this.#axis) })),
      drawn("text", { x: (EDGE.left + width - EDGE.right) / 2, y: HEIGHT - 4, "text-anchor": "middle", text: AXES[this.#axis] }),
    ];
  }

  #tell() {
    const index = this.#slices.findIndex((slice) => slice.number === this.#chosen);
    const slice = this.#slices[index];
    const said = { valuemin: 1, valuemax: Math.max(this.#slices.length, 1), valuenow: index + 1 || 1 };
    said.valuetext = slice
      ? `slice ${index + 1} of ${this.#slices.length}, ${placeText(slice.place, this.#axis)}, ${labelOf(slice)}, probability ${probabilityText(slice.probability)}`
      : "no slice of the curve is shown";
    for (const [name, value] of Object.entries(said)) this.box.setAttribute(`aria-${name}`, String(value));
  }
}

/** Where a slice lies, with the axis's unit. */
export function placeText(place, axis) {
  return axis === "mm" ? `${place.toFixed(1).replace("-", "−")} mm` : String(place);
}
