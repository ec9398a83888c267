// One slice, large: values in a window, lesions and outline upon them, zoomed and moved.

import { listenToPointers } from "./gestures.js";
import { bounded, dragged, paint, PRESETS } from "./windowing.js";

const OUTLINE = "rgb(255,221,87)";
const MOST_ZOOM = 40;
const NEAREST_FROM = 6;

/**
 * @typedef {object} View
 * @property {number} zoom 1 for the whole slice.
 * @property {number} x middle of the stage, as a share of the slice's width.
 * @property {number} y
 */

export class Viewer {
  #layers = null;
  #grey = new OffscreenCanvas(1, 1);
  #painted = false;
  #requested = false;
  #windows = { hounsfield: { ...PRESETS.hounsfield[0][1] }, grey: { ...PRESETS.grey[0][1] } };
  #view = { zoom: 1, x: 0.5, y: 0.5 };

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {{tool: () => string, changed: () => void, hovered: (text: string) => void}} listeners
   */
  constructor(canvas, listeners) {
    Object.assign(this, { canvas, listeners, context: canvas.getContext("2d"), opacity: 0.6, showLesions: true, showOutline: true });
    new ResizeObserver(() => this.draw()).observe(canvas);
    listenToPointers(canvas, {
      tool: listeners.tool,
      window: (right, down) => this.#layers && this.setWindow(dragged(this.window, this.unit, right, down)),
      pan: (right, down) => this.pan(right, down),
      zoom: (factor, x, y) => this.zoom(factor, x, y),
      hover: (x, y) => listeners.hovered(this.#valueAt(x, y)),
    });
    canvas.addEventListener("dblclick", () => this.fit());
  }

  /** Shows layers, or nothing; window and zoom stay, so that slices can be compared. */
  show(layers) {
    this.#layers = layers;
    this.#painted = false;
    this.listeners.changed();
    this.draw();
  }

  get unit() {
    return this.#layers?.unit ?? "hounsfield";
  }

  get window() {
    return this.#windows[this.unit];
  }

  get view() {
    return { ...this.#view };
  }

  setWindow(window) {
    this.#windows[this.unit] = bounded(window, this.unit);
    this.#painted = false;
    this.listeners.changed();
    this.draw();
  }

  fit() {
    this.#look({ zoom: 1, x: 0.5, y: 0.5 });
  }

  /** Zooms about a place on the stage, or its middle. */
  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const zoom = Math.min(Math.max(this.#view.zoom * factor, 1), MOST_ZOOM);
    const [width, height] = this.#size(this.#view.zoom);
    if (!width) return;
    const away = { x: (x - this.canvas.clientWidth / 2) / width, y: (y - this.canvas.clientHeight / 2) / height };
    const kept = 1 - this.#view.zoom / zoom;
    this.#look({ zoom, x: this.#view.x + away.x * kept, y: this.#view.y + away.y * kept });
  }

  /** Moves the slice by pixels of the page. */
  pan(right, down) {
    const [width, height] = this.#size(this.#view.zoom);
    if (width) this.#look({ ...this.#view, x: this.#view.x - right / width, y: this.#view.y - down / height });
  }

  /** Draws before the next frame, once. */
  draw() {
    if (this.#requested) return;
    this.#requested = true;
    requestAnimationFrame(() => {
      this.#requested = false;
      this.#render();
    });
  }

  #look({ zoom, x, y }) {
    const inside = (value) => Math.min(Math.max(value, 0), 1);
    this.#view = zoom === 1 ? { zoom, x: 0.5, y: 0.5 } : { zoom, x: inside(x), y: inside(y) };
    this.listeners.changed();
    this.draw();
  }

  /** Width and height of the slice in pixels of the page. */
  #size(zoom) {
    if (!this.#layers) return [0, 0];
    const { rows, columns } = this.#layers;
    const scale = Math.min(this.canvas.clientWidth / columns, this.canvas.clientHeight / rows) * zoom;
    return [columns * scale, rows * scale];
  }

  #corner() {
    const [width, height] = this.#size(this.#view.zoom);
    return [this.canvas.clientWidth / 2 - this.#view.x * width, this.canvas.clientHeight / 2 - this.#view.y * height];
  }

  #render() {
    const { canvas, context } = this;
    const dots = window.devicePixelRatio || 1;
    Object.assign(canvas, { width: Math.round(canvas.clientWidth * dots), height: Math.round(canvas.clientHeight * dots) });
    if (!this.#layers || !canvas.width) return;
    this.#paint();
    const { columns, lesions, outline } = this.#layers;
    const [width, height] = this.#size(this.#view.zoom);
    const scale = width / columns;
    context.setTransform(dots, 0, 0, dots, 0, 0);
    context.translate(...this.#corner());
    context.imageSmoothingEnabled = scale < NEAREST_FROM;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.#grey, 0, 0, width, height);
    if (lesions && this.showLesions) {
      context.globalAlpha = this.opacity;
      context.drawImage(lesions, 0, 0, width, height);
      context.globalAlpha = 1;
    }
    if (outline && this.showOutline) this.#trace(outline, scale);
  }

  #paint() {
    if (this.#painted) return;
    const { rows, columns, values } = this.#layers;
    Object.assign(this.#grey, { width: columns, height: rows });
    const context = this.#grey.getContext("2d");
    const image = context.createImageData(columns, rows);
    paint(values, this.window, image);
    context.putImageData(image, 0, 0);
    this.#painted = true;
  }

  #trace({ lungs, crop }, scale) {
    const { context } = this;
    context.scale(scale, scale);
    context.strokeStyle = OUTLINE;
    context.lineWidth = 1.25 / scale;
    context.stroke(lungs);
    context.setLineDash([6 / scale, 4 / scale]);
    context.strokeRect(...crop);
    context.setLineDash([]);
  }

  /** What lies under the pointer. */
  #valueAt(x, y) {
    if (!this.#layers || x === undefined) return "";
    const { rows, columns, values, unit } = this.#layers;
    const [left, top] = this.#corner();
    const scale = this.#size(this.#view.zoom)[0] / columns;
    const [column, row] = [Math.floor((x - left) / scale), Math.floor((y - top) / scale)];
    if (column < 0 || row < 0 || column >= columns || row >= rows) return "";
    return `x ${column} y ${row}: ${values[row * columns + column]}${unit === "hounsfield" ? " HU" : ""}`;
  }
}
