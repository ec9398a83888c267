// The centre of the page: a stack of slices, its planes, its tools, cine and the bar that scrolls it.

import { byId, element, icon, press } from "./dom.js";
import { measured, Measures } from "./measures.js";
import { answerOf, colourOf, positionText, shortName } from "./result.js";
import { Display, PRESETS, Viewport } from "./viewport.js";

/** Slices that pass faster than this, in ms, are not fetched. */
const HASTE = 40;
const TOOLS = [
  ["window", "Window", "W"], ["scroll", "Scroll", "S"], ["zoom", "Zoom (right button)", "Z"], ["pan", "Pan (middle button)", "P"],
  ["ruler", "Ruler", "R"], ["roi", "Region: mean and spread", "E"], ["cross", "Crosshair", "X"],
];

export class Viewer {
  #stack = null;
  #index = 0;
  #address = "";
  #planes = false;
  #at = { coronal: 0, sagittal: 0 };
  #cine = 0;
  #waiting = 0;
  #views = {};

  /**
   * @param {import("./pixels.js").Pixels} pixels
   * @param {{moved: (slice: object) => void, failed: (error: Error) => void}} to
   */
  constructor(pixels, to) {
    Object.assign(this, { pixels, to, display: new Display(), measures: new Measures() });
    for (const pane of document.querySelectorAll(".pane")) this.#furnish(pane, pane.dataset.plane);
    this.bar = new ScrollBar(byId("scrollbar"), (index) => this.show(index));
    this.#listen();
    this.#tell();
  }

  get slice() {
    return this.#stack?.slices[this.#index] ?? null;
  }

  /** Shows a stack from one of its slices on; what was shown stays as it is looked at. */
  open(address, stack, index) {
    if (this.#stack?.index !== stack.index || this.#address !== address) this.#begin(stack);
    this.#stack = stack;
    this.#address = address;
    byId("planes").disabled = !stack.volume;
    if (!stack.volume) this.#arrange(false);
    this.bar.show(stack.slices);
    this.show(index);
  }

  /** Another stack begins whole, with its planes through the middle. */
  #begin({ slices }) {
    this.stop();
    const { rows, columns } = slices[0].image ?? { rows: 0, columns: 0 };
    this.#at = { coronal: rows >> 1, sagittal: columns >> 1 };
    for (const plane of ["coronal", "sagittal"]) this.#views[plane].show(null);
    this.#each((view) => view.fit());
  }

  /** Shows nothing and forgets all pixels. */
  clear() {
    this.stop();
    this.#stack = null;
    this.pixels.clear();
    this.measures.clear();
    this.#each((view) => view.show(null));
  }

  /** Shows a slice of the stack. */
  show(index) {
    if (!this.#stack) return;
    const back = index < this.#index;
    this.#index = Math.min(Math.max(index, 0), this.#stack.slices.length - 1);
    const { slice } = this;
    this.bar.mark(this.#index);
    const raster = this.pixels.get(slice);
    if (raster) this.#put(raster);
    else if (slice.image) this.#fetch(slice);
    else this.#put(null, slice.reason ?? "The service had no room to keep the pixels of this slice.");
    this.#ahead(back);
    if (this.#planes) this.#cut();
    this.#tell();
    this.to.moved(slice);
  }

  step(by) {
    this.show(this.#index + by);
  }

  /** Steps through the pane that has the focus: slices, or one of the planes. */
  stepFocused(by) {
    this.#scroll(this.#plane, by);
  }

  /** The view that has the focus. */
  get focused() {
    return this.#views[this.#plane];
  }

  get #plane() {
    return document.activeElement?.closest?.(".pane")?.dataset.plane ?? "axial";
  }

  tool(name) {
    this.display.tool = name;
    byId(`tool-${name}`).checked = true;
    this.#each(({ canvas }) => (canvas.dataset.tool = name));
  }

  preset(number) {
    const preset = PRESETS[this.display.unit][number];
    if (preset) this.#window(preset[1], preset[2]);
  }

  toggle(name) {
    if (byId(name).disabled) return;
    this.display[name] = !this.display[name];
    press(byId(name), this.display[name]);
    this.#draw();
  }

  changeFill(by) {
    byId("fill").value = Number(byId("fill").value) + by;
    byId("fill").dispatchEvent(new Event("input"));
  }

  togglePlanes() {
    if (!this.#stack?.volume) return;
    this.#arrange(!this.#planes);
    if (this.#planes) this.#cut();
  }

  /** A measurement in the middle of the view, or the last one's end moved: with keys all can be measured. */
  place() {
    const { raster, canvas } = this.focused;
    const { tool } = this.display;
    if (!raster || (tool !== "ruler" && tool !== "roi")) return;
    const [x, y] = [canvas.clientWidth / 2, canvas.clientHeight / 2];
    const ends = [[x - 40, y - 30], [x + 40, y + 30]].map((place) => this.focused.onSlice(place));
    this.#announce(this.focused, this.measures.add(raster.key, tool, ...ends));
    this.#draw();
  }

  moveMeasure(right, down, whole) {
    const { raster } = this.focused;
    const last = raster && this.measures.on(raster.key).at(-1);
    if (!last) return false;
    for (const end of whole ? ["from", "to"] : ["to"]) last[end] = [last[end][0] + right, last[end][1] + down];
    this.#announce(this.focused, last);
    this.#draw();
  }

  removeMeasure(all = false) {
    const { raster } = this.focused;
    if (!raster) return;
    this.measures.remove(raster.key, all ? null : this.measures.on(raster.key).at(-1));
    this.#draw();
  }

  /** Plays or stops. */
  play() {
    if (this.#cine) {
      this.stop();
      return;
    }
    if (!this.#stack || this.#stack.slices.length < 2) return;
    press(byId("cine"), true);
    byId("cine").replaceChildren(icon("stop"));
    let last = performance.now();
    const tick = (now) => {
      this.#cine = requestAnimationFrame(tick);
      if (now - last < 1000 / Number(byId("rate").value) - 2) return;
      last = now;
      this.show((this.#index + 1) % this.#stack.slices.length);
    };
    this.#cine = requestAnimationFrame(tick);
  }

  stop() {
    cancelAnimationFrame(this.#cine);
    this.#cine = 0;
    press(byId("cine"), false);
    byId("cine").replaceChildren(icon("play"));
  }

  #furnish(pane, plane) {
    const canvas = element("canvas", { tabindex: 0, role: "img", "aria-label": "No slice" });
    const corners = ["top-left", "top-right", "bottom-left", "bottom-right"].map((place) => element("div", { class: `corner ${place}`, "aria-hidden": "true" }));
    const sides = ["left", "right", "top", "bottom"].map((side) => element("span", { class: "side", "data-side": side, "aria-hidden": "true" }));
    pane.append(canvas, ...corners, ...sides, element("span", { class: "bar", "aria-hidden": "true" }), element("p", { class: "pane-text", hidden: true }));
    this.#views[plane] = new Viewport(canvas, this.display, this.measures, {
      scroll: (steps) => this.#scroll(plane, steps),
      hovered: (text) => (corners[2].textContent = text),
      crossed: (x, y) => this.#cross(plane, x, y),
      measured: (measure) => this.#announce(this.#views[plane], measure),
      changed: () => {
        this.#tell();
        this.#draw();
      },
    });
  }

  async #fetch(slice) {
    const mine = (this.#waiting += 1);
    this.#pane("axial").classList.add("loading");
    await new Promise((resolve) => setTimeout(resolve, HASTE));
    if (mine !== this.#waiting || this.slice !== slice) return;
    try {
      const raster = await this.pixels.load(slice);
      if (this.slice === slice) this.#put(raster);
    } catch (error) {
      if (this.slice !== slice) return;
      this.#put(null, "The pixels could not be fetched.");
      this.to.failed(error);
    }
  }

  /** Fetches what comes next first, and then the rest of the stack from here on. */
  #ahead(back) {
    const { slices } = this.#stack;
    const distance = (index) => (back ? this.#index - index : index - this.#index);
    const order = slices.map((_, index) => index).sort((a, b) => cost(distance(a)) - cost(distance(b)));
    this.pixels.ahead(order.map((index) => slices[index]));
  }

  #put(raster, text = "") {
    const pane = this.#pane("axial");
    pane.classList.remove("loading");
    Object.assign(pane.querySelector(".pane-text"), { textContent: text, hidden: !text });
    if (raster) this.display.unit = raster.unit;
    for (const id of ["level", "width"]) byId(id).disabled = !raster;
    byId("fill").disabled = !raster?.hasLesions;
    for (const [id, found] of [["lesions", raster?.hasLesions], ["lungs", raster?.hasLungs]]) {
      byId(id).disabled = !found;
      press(byId(id), Boolean(found) && this.display[id]);
    }
    this.#views.axial.show(raster);
    this.#tell();
  }

  /** Fetches and shows the planes through the crosshair. */
  async #cut() {
    for (const plane of ["coronal", "sagittal"]) {
      const [stack, index] = [this.#stack, this.#at[plane]];
      this.pixels.plane(this.#address, stack, plane, index).then(
        (raster) => {
          if (!this.#planes || this.#stack !== stack || this.#at[plane] !== index) return;
          this.#views[plane].show(raster);
          this.#tell();
        },
        (error) => this.#stack === stack && this.to.failed(error),
      );
    }
    this.#views.axial.cross = [this.#at.sagittal + 0.5, this.#at.coronal + 0.5];
    this.#views.coronal.cross = [this.#at.sagittal + 0.5, this.#index + 0.5];
    this.#views.sagittal.cross = [this.#at.coronal + 0.5, this.#index + 0.5];
    this.#draw();
    this.#tell();
  }

  #scroll(plane, steps) {
    if (plane === "axial") {
      this.stop();
      this.step(steps);
      return;
    }
    this.#move({ [plane]: this.#at[plane] + steps });
  }

  #cross(plane, x, y) {
    if (!this.#planes) return;
    const [column, row] = [Math.floor(x), Math.floor(y)];
    if (plane === "axial") this.#move({ sagittal: column, coronal: row });
    else {
      this.#move({ [plane === "coronal" ? "sagittal" : "coronal"]: column });
      this.show(row);
    }
  }

  #move(to) {
    const { rows, columns } = this.#stack.slices[0].image;
    const inside = (value, end) => Math.min(Math.max(value, 0), end - 1);
    const { coronal, sagittal } = { ...this.#at, ...to };
    this.#at = { coronal: inside(coronal, rows), sagittal: inside(sagittal, columns) };
    this.#cut();
  }

  #arrange(planes) {
    if (planes === this.#planes) return;
    this.#planes = planes;
    press(byId("planes"), planes);
    byId("panes").classList.toggle("three", planes);
    for (const plane of ["coronal", "sagittal"]) this.#pane(plane).hidden = !planes;
    byId("tool-cross").disabled = !planes;
    this.#views.axial.cross = null;
    this.tool(planes ? "cross" : "window");
    this.#draw();
    this.#tell();
  }

  /** Says what a measurement says to those who do not see it. */
  #announce({ raster }, measure) {
    byId("announce").textContent = `${measure.kind === "ruler" ? "Ruler" : "Region"}: ${measured(measure, raster).join(", ")}`;
  }

  #pane(plane) {
    return document.querySelector(`.pane[data-plane=${plane}]`);
  }

  #window(level, width) {
    this.display.setWindow(level, width);
    this.#draw();
    this.#tell();
  }

  #draw() {
    this.#each((view) => view.draw());
  }

  #each(act) {
    Object.values(this.#views).forEach(act);
  }

  #listen() {
    const tools = document.querySelector(".tools");
    for (const [name, title, key] of TOOLS) {
      tools.append(
        element("input", { type: "radio", class: "unseen", name: "tool", id: `tool-${name}`, value: name, "aria-label": title, checked: name === "window", disabled: name === "cross", onchange: () => this.tool(name) }),
        element("label", { for: `tool-${name}`, class: "icon", title: `${title} (${key})` }, icon(name)),
      );
    }
    const typed = () => this.#window(byId("level").valueAsNumber, byId("width").valueAsNumber);
    for (const id of ["level", "width"]) byId(id).addEventListener("change", typed);
    for (const id of ["lesions", "lungs"]) byId(id).addEventListener("click", () => this.toggle(id));
    byId("fill").addEventListener("input", () => {
      this.display.fill = byId("fill").valueAsNumber / 100;
      this.#draw();
    });
    byId("planes").addEventListener("click", () => this.togglePlanes());
    byId("cine").addEventListener("click", () => this.play());
    byId("fit").addEventListener("click", () => this.#each((view) => view.fit()));
    byId("drop-measures").addEventListener("click", () => this.removeMeasure(true));
    this.tool("window");
  }

  /** Words at the corners, the numbers of the window and what the canvas is called follow what is shown. */
  #tell() {
    const { slice, display } = this;
    const [level, width] = display.window;
    this.#offerPresets();
    byId("level").value = level;
    byId("width").value = width;
    if (!slice) return;
    const { slices, name } = this.#stack;
    const place = [`${this.#stack.series ? "Slice" : "Picture"} ${this.#index + 1} of ${slices.length}`];
    if (slice.position !== null) place.push(positionText(slice.position));
    const [thick, apart] = [slice.image?.thickness, this.#stack.volume?.gap].map((mm) => mm && Number(mm.toFixed(2)));
    if (thick || apart) place.push(thick ? `${thick} mm thick` : `every ${apart} mm`);
    const zoom = (plane) => `${Math.round(this.#views[plane].zoomed * 100)} %`;
    const seen = `L ${level}  W ${width}\n${zoom("axial")}`;
    this.#say("axial", [name, shortName(slice)].filter((each, index, all) => all.indexOf(each) === index).join("\n"), place.join("\n"), seen);
    this.#say("coronal", "Coronal", `row ${this.#at.coronal + 1}`, zoom("coronal"));
    this.#say("sagittal", "Sagittal", `column ${this.#at.sagittal + 1}`, zoom("sagittal"));
    this.#views.axial.canvas.setAttribute("aria-label", `${place.join(", ")}, ${shortName(slice)}: ${answerOf(slice)}`);
  }

  #say(plane, topLeft, topRight, bottomRight) {
    const [first, second, , fourth] = this.#pane(plane).querySelectorAll(".corner");
    first.textContent = topLeft;
    second.textContent = topRight;
    fourth.textContent = bottomRight;
    this.#pane(plane).querySelectorAll(".side").forEach((side, index) => (side.textContent = this.#views[plane].sides[index]));
    const { bar } = this.#views[plane];
    const drawn = this.#pane(plane).querySelector(".bar");
    Object.assign(drawn, { hidden: !bar, textContent: bar ? `${bar.length} mm` : "" });
    if (bar) drawn.style.height = `${bar.pixels}px`;
    if (plane !== "axial") this.#views[plane].canvas.setAttribute("aria-label", `${topLeft} plane, ${topRight}`);
  }

  #offerPresets() {
    const presets = PRESETS[this.display.unit];
    const [level, width] = this.display.window;
    const box = byId("presets");
    if (box.dataset.unit !== this.display.unit) {
      box.dataset.unit = this.display.unit;
      box.replaceChildren(...presets.map(([name], number) => element("button", { type: "button", text: name, title: `${name} (${number + 1})`, onclick: () => this.preset(number) })));
    }
    presets.forEach(([, ...preset], number) => press(box.children[number], preset[0] === level && preset[1] === width));
  }
}

/** Ahead costs less than behind, and near less than far. */
const cost = (distance) => (distance >= 0 ? distance : -2.5 * distance);

/** The bar beside the stack: a band of colour for each slice, by its probability; hatched where it was refused. */
class ScrollBar {
  #slices = [];
  #index = 0;

  constructor(box, choose) {
    Object.assign(this, { box, choose, canvas: box.querySelector("canvas"), thumb: box.querySelector(".thumb") });
    new ResizeObserver(() => this.#draw()).observe(box);
    box.addEventListener("pointerdown", (event) => {
      box.setPointerCapture(event.pointerId);
      this.#go(event);
    });
    box.addEventListener("pointermove", (event) => event.buttons && this.#go(event));
    box.addEventListener("wheel", (event) => choose(this.#index + Math.sign(event.deltaY)), { passive: true });
  }

  show(slices) {
    this.#slices = slices;
    this.box.hidden = slices.length < 2;
    this.#draw();
  }

  mark(index) {
    this.#index = index;
    const slice = this.#slices[index];
    const share = 100 / this.#slices.length;
    this.thumb.style.top = `${share * index}%`;
    this.thumb.style.height = `max(5px, ${share}%)`;
    const count = this.#slices.length;
    const said = { valuemin: 1, valuemax: count, valuenow: index + 1, valuetext: `slice ${index + 1} of ${count}, ${answerOf(slice)}` };
    for (const [name, value] of Object.entries(said)) this.box.setAttribute(`aria-${name}`, String(value));
  }

  #go(event) {
    const box = this.box.getBoundingClientRect();
    this.choose(Math.min(Math.floor(((event.clientY - box.top) / box.height) * this.#slices.length), this.#slices.length - 1));
  }

  #draw() {
    const [width, height] = [this.box.clientWidth, this.box.clientHeight];
    if (!width || !height) return;
    Object.assign(this.canvas, { width, height });
    const context = this.canvas.getContext("2d");
    const share = height / Math.max(this.#slices.length, 1);
    const hatch = hatched(context);
    this.#slices.forEach((slice, index) => {
      context.fillStyle = colourOf(slice) ?? hatch;
      context.fillRect(0, Math.floor(index * share), width, Math.ceil(share));
    });
  }
}

/** How slices without a probability are filled. */
export function hatched(context) {
  const tile = new OffscreenCanvas(6, 6);
  const lines = tile.getContext("2d");
  Object.assign(lines, { fillStyle: "#2a3038", strokeStyle: "#7d8793", lineWidth: 1.2 });
  lines.fillRect(0, 0, 6, 6);
  lines.beginPath();
  for (const shift of [-6, 0, 6]) {
    lines.moveTo(shift, 6);
    lines.lineTo(shift + 6, 0);
  }
  lines.stroke();
  return context.createPattern(tile, "repeat");
}
