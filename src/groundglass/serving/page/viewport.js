// One picture on a canvas: values in a window, outlines, marks and measurements upon them; zoomed, moved, pointed at.

import { drawMeasures } from "./measures.js";

const LUNGS = "rgb(255,221,87)";
const LESIONS = "rgb(255,124,31)";
const CROSS = "rgba(94,200,229,.9)";
const MOST_ZOOM = 40;
const NEAREST_FROM = 6;
/** Wheels give about 100 for a notch in pixels, and 3 in lines; touch pads give little at a time. */
const NOTCH = { pixels: 100, lines: 3 };
const STILL = 3;
/** How far a finger moves for one slice, in pixels of the page. */
const FINGER = 12;
/** Lengths of the bar that shows the scale, in mm. */
const LENGTHS = [200, 100, 50, 20, 10, 5, 2, 1];

export const PRESETS = {
  hounsfield: [["Lung", -600, 1500], ["Mediastinum", 40, 400], ["Bone", 400, 1800], ["All", 0, 4000]],
  grey: [["As it is", 127.5, 255], ["Dark", 64, 128], ["Bright", 192, 128]],
};
/** How much the window changes for one pixel of a drag, and how far it reaches. */
const STEP = { hounsfield: 3, grey: 0.5 };
const LIMIT = { hounsfield: 6000, grey: 600 };

/** What all pictures of the viewer share: window, tool, outlines. */
export class Display {
  tool = "window";
  lesions = true;
  lungs = true;
  fill = 0.25;
  unit = "hounsfield";
  #windows = { hounsfield: [-600, 1500], grey: [127.5, 255] };

  /** Level and width. */
  get window() {
    return this.#windows[this.unit];
  }

  setWindow(level, width) {
    if (!Number.isFinite(level + width)) return;
    const whole = (value) => Math.round(value * 2) / 2;
    const limit = LIMIT[this.unit];
    this.#windows[this.unit] = [Math.min(Math.max(whole(level), -limit), limit), Math.min(Math.max(whole(width), 1), limit)];
  }

  /** To the right is wider; down is darker, as the level rises. */
  dragWindow(right, down) {
    const [level, width] = this.window;
    this.setWindow(level + down * STEP[this.unit], width + right * STEP[this.unit]);
  }
}

export class Viewport {
  raster = null;
  /** Where the other planes cut this one, in its pixels; null while they are not shown. */
  cross = null;
  #grey = new OffscreenCanvas(1, 1);
  #image = null;
  #painted = "";
  #requested = false;
  #view = { zoom: 1, x: 0.5, y: 0.5 };

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {Display} display
   * @param {import("./measures.js").Measures} measures
   * @param {{scroll: (steps: number) => void, hovered: (text: string) => void, crossed: (x: number, y: number) => void,
   *   measured: (measure: object) => void, changed: () => void}} to
   */
  constructor(canvas, display, measures, to) {
    Object.assign(this, { canvas, display, measures, to, context: canvas.getContext("2d", { alpha: false }) });
    new ResizeObserver(() => {
      to.changed();
      this.draw();
    }).observe(canvas);
    new Pointers(this);
  }

  /** Shows a raster, or nothing; zoom and place stay, so that slices can be compared. */
  show(raster) {
    this.raster = raster;
    this.to.hovered("");
    this.draw();
  }

  get zoomed() {
    return this.#view.zoom;
  }

  fit() {
    this.#look({ zoom: 1, x: 0.5, y: 0.5 });
  }

  /** Zooms about a place on the canvas, or its middle. */
  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    if (!this.raster) return;
    const zoom = Math.min(Math.max(this.#view.zoom * factor, 1), MOST_ZOOM);
    const { right, down } = this.#scale();
    const kept = 1 - this.#view.zoom / zoom;
    this.#look({
      zoom,
      x: this.#view.x + ((x - this.canvas.clientWidth / 2) / (right * this.raster.width)) * kept,
      y: this.#view.y + ((y - this.canvas.clientHeight / 2) / (down * this.raster.height)) * kept,
    });
  }

  /** Moves the slice by pixels of the page. */
  pan(right, down) {
    if (!this.raster) return;
    const scale = this.#scale();
    const { zoom, x, y } = this.#view;
    this.#look({ zoom, x: x - right / (scale.right * this.raster.width), y: y - down / (scale.down * this.raster.height) });
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

  /** A place of the slice in pixels of the page. */
  onPage([x, y]) {
    const { right, down } = this.#scale();
    return [
      this.canvas.clientWidth / 2 + (x - this.#view.x * this.raster.width) * right,
      this.canvas.clientHeight / 2 + (y - this.#view.y * this.raster.height) * down,
    ];
  }

  /** A place of the page in pixels of the slice. */
  onSlice([x, y]) {
    const { right, down } = this.#scale();
    return [
      this.#view.x * this.raster.width + (x - this.canvas.clientWidth / 2) / right,
      this.#view.y * this.raster.height + (y - this.canvas.clientHeight / 2) / down,
    ];
  }

  /** The sides of the patient that the slice's left, right, top and bottom lead to; empty where not known. */
  get sides() {
    if (!this.raster?.directions) return ["", "", "", ""];
    const [right, down] = this.raster.directions;
    return [right.map((part) => -part), right, down.map((part) => -part), down].map(sideOf);
  }

  /** Length in mm and in pixels of the page of a bar that shows the scale; null where it is not known. */
  get bar() {
    if (!this.raster?.spacing) return null;
    const { mm } = this.#scale();
    const length = LENGTHS.find((each) => each * mm <= this.canvas.clientHeight / 3) ?? 1;
    return { length, pixels: length * mm };
  }

  /** What lies under the pointer. */
  valueAt(place) {
    if (!this.raster || !place) return "";
    const { width, height, values, unit } = this.raster;
    const [column, row] = this.onSlice(place).map(Math.floor);
    if (column < 0 || row < 0 || column >= width || row >= height) return "";
    return `${values[row * width + column]}${unit === "hounsfield" ? " HU" : ""}  (${column}, ${row})`;
  }

  #look({ zoom, x, y }) {
    const inside = (value) => Math.min(Math.max(value, 0), 1);
    this.#view = zoom === 1 ? { zoom, x: 0.5, y: 0.5 } : { zoom, x: inside(x), y: inside(y) };
    this.to.changed();
    this.draw();
  }

  /** Pixels of the page for one of the slice. */
  #scale() {
    const { width, height, spacing } = this.raster;
    const [dy, dx] = spacing ?? [1, 1];
    const fit = Math.min(this.canvas.clientWidth / (width * dx), this.canvas.clientHeight / (height * dy)) * this.#view.zoom;
    return { right: fit * dx || 1, down: fit * dy || 1, mm: fit };
  }

  #render() {
    const { canvas, context, raster } = this;
    const dots = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(canvas.clientWidth * dots), Math.round(canvas.clientHeight * dots)];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    context.setTransform(dots, 0, 0, dots, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, canvas.clientWidth, canvas.clientHeight);
    if (!raster || !width || !height) return;
    this.#paint();
    const { right, down } = this.#scale();
    const [left, top] = this.onPage([0, 0]);
    context.imageSmoothingEnabled = right < NEAREST_FROM;
    context.drawImage(this.#grey, left, top, raster.width * right, raster.height * down);
    this.#outlines(new DOMMatrix([right, 0, 0, down, left, top]));
    if (this.cross) this.#crosshair(this.onPage(this.cross));
    drawMeasures(context, this.measures.on(raster.key), raster, (place) => this.onPage(place));
  }

  #paint() {
    const { key, width, height, values } = this.raster;
    const [level, wide] = this.display.window;
    const state = `${key} ${values.length} ${level} ${wide}`;
    if (this.#painted === state) return;
    const context = this.#grey.getContext("2d", { alpha: false });
    if (this.#image?.width !== width || this.#image.height !== height) {
      Object.assign(this.#grey, { width, height });
      this.#image = context.createImageData(width, height);
    }
    const pixels = new Uint32Array(this.#image.data.buffer);
    const low = level - wide / 2;
    const scale = 255 / wide;
    for (let index = 0; index < values.length; index += 1) {
      const grey = Math.min(Math.max((values[index] - low) * scale + 0.5, 0), 255) & 255;
      pixels[index] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
    }
    context.putImageData(this.#image, 0, 0);
    this.#painted = state;
  }

  #outlines(matrix) {
    const { context, display, raster } = this;
    context.lineWidth = 1.4;
    const placed = (outline) => {
      const path = new Path2D();
      path.addPath(outline, matrix);
      return path;
    };
    if (display.lungs) {
      context.strokeStyle = LUNGS;
      context.stroke(placed(raster.lungs));
    }
    if (!display.lesions || !raster.hasLesions) return;
    const path = placed(raster.lesions);
    Object.assign(context, { fillStyle: LESIONS, strokeStyle: LESIONS, globalAlpha: display.fill });
    if (display.fill) context.fill(path, "evenodd");
    context.globalAlpha = 1;
    context.stroke(path);
  }

  #crosshair([x, y]) {
    const { context, canvas } = this;
    const gap = 12;
    context.strokeStyle = CROSS;
    context.lineWidth = 1;
    context.beginPath();
    for (const [fromX, fromY, toX, toY] of [[0, y, x - gap, y], [x + gap, y, canvas.clientWidth, y], [x, 0, x, y - gap], [x, y + gap, x, canvas.clientHeight]]) {
      context.moveTo(fromX, fromY);
      context.lineTo(toX, toY);
    }
    context.stroke();
  }
}

/** The side of the patient that a direction (left, back, head) leads to. */
function sideOf(direction) {
  const axis = direction.map(Math.abs).indexOf(Math.max(...direction.map(Math.abs)));
  return ["LR", "PA", "HF"][axis][direction[axis] > 0 ? 0 : 1];
}

/** Mouse, pen and fingers on a viewport. */
class Pointers {
  #down = new Map();
  #mode = "";
  #start = null;
  #held = null;
  #left = 0;

  constructor(view) {
    this.view = view;
    const { canvas } = view;
    const listen = (type, act) => canvas.addEventListener(type, act, { passive: false });
    listen("pointerdown", (event) => this.#press(event));
    listen("pointermove", (event) => this.#move(event));
    listen("pointerup", (event) => this.#release(event));
    listen("pointercancel", (event) => this.#release(event));
    listen("pointerleave", () => view.to.hovered(""));
    listen("contextmenu", (event) => event.preventDefault());
    listen("dblclick", () => view.fit());
    listen("wheel", (event) => this.#wheel(event));
  }

  #place({ clientX, clientY }) {
    const box = this.view.canvas.getBoundingClientRect();
    return [clientX - box.left, clientY - box.top];
  }

  #press(event) {
    const { view } = this;
    if (event.button === 1) event.preventDefault();
    view.canvas.setPointerCapture(event.pointerId);
    this.#down.set(event.pointerId, this.#place(event));
    const mode = this.#modeOf(event);
    if (this.#down.size > 1 || (!view.raster && mode !== "scroll")) {
      this.#mode = "pinch";
      return;
    }
    this.#start = this.#place(event);
    this.#left = 0;
    this.#mode = mode;
    if (this.#mode === "ruler" || this.#mode === "roi") this.#hold();
    if (this.#mode === "cross") view.to.crossed(...view.onSlice(this.#start));
  }

  #modeOf(event) {
    const { tool } = this.view.display;
    if (event.button === 2) return "zoom";
    if (event.button === 1 || event.shiftKey) return "pan";
    if (event.pointerType === "touch" && ["window", "zoom", "pan"].includes(tool)) return "scroll";
    return tool;
  }

  /** Takes the end of a measurement in hand, or begins a new one. */
  #hold() {
    const { measures, raster, display } = this.view;
    const place = this.view.onSlice(this.#start);
    const held = measures.grip(raster.key, this.#start, (each) => this.view.onPage(each))
      ?? { measure: measures.add(raster.key, display.tool, place, place), end: "to" };
    this.#held = { key: raster.key, ...held };
  }

  #move(event) {
    const { view } = this;
    const now = this.#place(event);
    const before = this.#down.get(event.pointerId);
    if (!before) {
      view.to.hovered(view.valueAt(now));
      return;
    }
    this.#down.set(event.pointerId, now);
    const [right, down] = [now[0] - before[0], now[1] - before[1]];
    const modes = {
      window: () => (view.display.dragWindow(right, down), view.to.changed()),
      zoom: () => view.zoom(Math.exp(-down / 150), ...this.#start),
      pan: () => view.pan(right, down),
      scroll: () => this.#scroll(down / FINGER),
      cross: () => view.to.crossed(...view.onSlice(now)),
      pinch: () => this.#pinch(event.pointerId, before, now),
    };
    // The wheel and the cine may bring another slice meanwhile.
    if (this.#held && this.#mode !== "pinch" && view.raster?.key === this.#held.key) this.#held.measure[this.#held.end] = view.onSlice(now);
    modes[this.#mode]?.();
    view.draw();
  }

  #release(event) {
    if (!this.#down.delete(event.pointerId)) return;
    const { view } = this;
    const held = this.#held;
    this.#held = null;
    if (held && view.raster?.key === held.key) {
      const { measure } = held;
      const [a, b] = [view.onPage(measure.from), view.onPage(measure.to)];
      if (Math.hypot(a[0] - b[0], a[1] - b[1]) < STILL) view.measures.remove(held.key, measure);
      else view.to.measured(measure);
      view.draw();
    }
    if (!this.#down.size) this.#mode = "";
  }

  /** Whole slices of what has come together; the rest is kept. */
  #scroll(share) {
    this.#left += share;
    const steps = Math.trunc(this.#left);
    this.#left -= steps;
    if (steps) this.view.to.scroll(steps);
  }

  #wheel(event) {
    event.preventDefault();
    const notches = event.deltaY / (event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? NOTCH.pixels : NOTCH.lines);
    if (event.ctrlKey) this.view.zoom(1.2 ** -Math.max(-3, Math.min(3, notches)), ...this.#place(event));
    else this.#scroll(notches);
  }

  /** Two fingers: their distance zooms, their middle pans. */
  #pinch(id, before, now) {
    const other = [...this.#down].find(([key]) => key !== id)?.[1];
    if (!other) return;
    const apart = (place) => Math.max(Math.hypot(place[0] - other[0], place[1] - other[1]), 1);
    this.view.pan((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
    this.view.zoom(apart(now) / apart(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
  }
}
