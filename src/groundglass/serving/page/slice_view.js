// The large view of one slice with its controls: keeps stage, numbers, histogram and words in step.

import { byId, element } from "./dom.js";
import { labelOf, probabilityText, shortName } from "./predictions.js";
import { Histogram } from "./histogram.js";
import { Layers } from "./layers.js";
import { Viewer } from "./viewer.js";
import { PRESETS } from "./windowing.js";

// Steps through slices that come faster than this are not fetched.
const HASTE = 60;

export class SliceView {
  #prediction = null;
  #unit = null;

  /**
   * @param {import("./api.js").Api} api
   * @param {(error: Error) => void} failed
   */
  constructor(api, failed) {
    Object.assign(this, { layers: new Layers(api), failed, histogram: new Histogram(byId("histogram")) });
    this.viewer = new Viewer(byId("canvas"), {
      tool: () => document.querySelector("input[name=tool]:checked").value,
      changed: () => this.#tell(),
      hovered: (text) => (byId("corner-value").textContent = text),
    });
    this.#listen();
  }

  /** Shows nothing and forgets all pixels. */
  clear() {
    this.layers.clear();
    this.#prediction = null;
    this.viewer.show(null);
    this.histogram.show(null);
  }

  /**
   * Shows a prediction's slice.
   * @param {object} prediction
   * @param {string} place such as `3 of 40`.
   * @param {?object} following whose layers are fetched ahead.
   */
  async show(prediction, place, following) {
    this.#prediction = prediction;
    byId("corner-name").textContent = shortName(prediction);
    byId("corner-number").textContent = place;
    if (!prediction.image) {
      this.#put(null, prediction.reason ?? "The service had no room to keep the pixels of this slice.");
      return;
    }
    byId("stage").classList.add("loading");
    try {
      if (!this.layers.has(prediction)) await new Promise((resolve) => setTimeout(resolve, HASTE));
      if (this.#prediction !== prediction) return;
      const layers = await this.layers.load(prediction);
      if (this.#prediction !== prediction) return;
      this.#put(layers, "");
      if (following?.image) this.layers.load(following).catch(() => {});
    } catch (error) {
      if (this.#prediction !== prediction) return;
      this.#put(null, "The pixels could not be fetched.");
      this.failed(error);
    }
  }

  toggle(id) {
    const box = byId(id);
    if (box.disabled) return;
    box.checked = !box.checked;
    this.#apply();
  }

  tool(name) {
    byId(`tool-${name}`).checked = true;
    this.#apply();
  }

  /** Chooses a window by its number in the list. */
  preset(number) {
    const preset = PRESETS[this.viewer.unit][number];
    if (preset) this.viewer.setWindow(preset[1]);
  }

  changeOpacity(by) {
    byId("opacity").value = Number(byId("opacity").value) + by;
    this.#apply();
  }

  #put(layers, text) {
    byId("stage").classList.remove("loading");
    Object.assign(byId("stage-text"), { textContent: text, hidden: !text });
    for (const id of ["level", "width", "preset"]) byId(id).disabled = !layers;
    for (const id of ["lesions", "opacity"]) byId(id).disabled = !layers?.lesions;
    byId("outline").disabled = !layers?.outline;
    this.histogram.show(layers);
    this.viewer.show(layers);
  }

  #listen() {
    const { viewer } = this;
    for (const id of ["lesions", "outline", "opacity", "tool-window", "tool-pan"]) byId(id).addEventListener("input", () => this.#apply());
    byId("preset").addEventListener("change", () => this.preset(byId("preset").selectedIndex - 1));
    const typed = () => viewer.setWindow({ level: byId("level").valueAsNumber, width: byId("width").valueAsNumber });
    for (const id of ["level", "width"]) byId(id).addEventListener("change", typed);
    byId("zoom-in").addEventListener("click", () => viewer.zoom(1.25));
    byId("zoom-out").addEventListener("click", () => viewer.zoom(1 / 1.25));
    byId("fit").addEventListener("click", () => viewer.fit());
    this.#apply();
  }

  #apply() {
    const { viewer } = this;
    viewer.opacity = byId("opacity").valueAsNumber / 100;
    viewer.showLesions = byId("lesions").checked;
    viewer.showOutline = byId("outline").checked;
    byId("opacity-text").textContent = `${byId("opacity").value} %`;
    byId("canvas").classList.toggle("panning", byId("tool-pan").checked);
    viewer.draw();
  }

  /** Window, zoom and what the canvas is called follow the viewer. */
  #tell() {
    const { unit, window: shown, view } = this.viewer;
    this.#offer(unit);
    byId("level").value = shown.level;
    byId("width").value = shown.width;
    const presets = PRESETS[unit];
    byId("preset").selectedIndex = 1 + presets.findIndex(([, preset]) => preset.level === shown.level && preset.width === shown.width);
    const words = `L ${shown.level} W ${shown.width}  ${Math.round(view.zoom * 100)} %`;
    byId("corner-window").textContent = words;
    const prediction = this.#prediction;
    const name = prediction ? `${shortName(prediction)}, ${labelOf(prediction)}${prediction.probability === null ? "" : `, probability ${probabilityText(prediction.probability)}`}` : "No slice";
    byId("canvas").setAttribute("aria-label", name);
    this.histogram.mark(shown);
  }

  #offer(unit) {
    if (this.#unit === unit) return;
    this.#unit = unit;
    byId("preset").replaceChildren(element("option", { text: "Own window", hidden: true }), ...PRESETS[unit].map(([name]) => element("option", { text: name })));
  }
}
