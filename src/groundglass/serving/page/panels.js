// Left and right of the viewer: cards of series, single pictures, the answer of a series, of a slice, its carriers.

import { byId, element } from "./dom.js";
import {
  carriers, colourOf, counted, flagText, kindOf, labelOf, outsideLungs, positionText, probabilityText, shortName, warnings,
} from "./result.js";
import { hatched } from "./viewer.js";

const THUMBNAIL = 144;
const AT_ONCE = 4;
/** Opacity that fills the strip's height, in percent. */
const FULL = 50;

/** Small pictures, fetched only while they are in sight, a few at a time. */
class Thumbnails {
  #known = new Map();
  #waiting = [];
  #running = 0;

  constructor(api) {
    this.api = api;
    this.observer = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) if (isIntersecting) this.#want(target);
    }, { rootMargin: "300px" });
  }

  /** A canvas on which the slice's picture appears once it is in sight. */
  of(slice) {
    const path = slice?.image?.picture;
    if (this.#known.has(path)) return this.#known.get(path);
    const canvas = element("canvas", { class: "thumbnail", width: 1, height: 1, "aria-hidden": "true" });
    if (!path) return canvas;
    canvas.path = path;
    this.#known.set(path, canvas);
    this.observer.observe(canvas);
    return canvas;
  }

  /** Forgets all but those of this result. */
  keep(address) {
    for (const path of this.#known.keys()) if (!path.startsWith(address)) this.#known.delete(path);
    this.#waiting = this.#waiting.filter((canvas) => this.#known.has(canvas.path));
  }

  #want(canvas) {
    this.observer.unobserve(canvas);
    this.#waiting.push(canvas);
    this.#next();
  }

  #next() {
    while (this.#running < AT_ONCE && this.#waiting.length) {
      this.#running += 1;
      this.#draw(this.#waiting.shift()).catch(() => {}).finally(() => {
        this.#running -= 1;
        this.#next();
      });
    }
  }

  async #draw(canvas) {
    const whole = await createImageBitmap(await this.api.blob(canvas.path));
    const side = Math.max(whole.width, whole.height);
    Object.assign(canvas, { width: Math.round((THUMBNAIL * whole.width) / side), height: Math.round((THUMBNAIL * whole.height) / side) });
    canvas.getContext("2d").drawImage(whole, 0, 0, canvas.width, canvas.height);
    whole.close();
  }
}

/** The left of the page. */
export class Cards {
  #stacks = [];
  #current = null;

  /**
   * @param {import("./service.js").Api} api
   * @param {(slice: object) => void} choose
   */
  constructor(api, choose) {
    Object.assign(this, { choose, thumbnails: new Thumbnails(api), list: byId("series-list"), pictures: byId("pictures") });
    this.pictures.addEventListener("click", (event) => {
      const picture = event.target.closest("[role=option]");
      if (picture) choose(this.#loose()[Number(picture.dataset.place)]);
    });
    this.pictures.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      event.stopPropagation();
      event.target.closest("[role=option]")?.click();
    });
  }

  /** Shows the stacks of the result at an address. */
  show(address, stacks) {
    this.#stacks = stacks;
    this.thumbnails.keep(address);
    const series = stacks.filter((stack) => stack.series);
    byId("left-title").hidden = !series.length;
    // While a result grows the keyboard stays where it is.
    const card = [...this.list.children].findIndex((item) => item.contains(document.activeElement));
    const picture = [...this.pictures.children].indexOf(document.activeElement);
    this.list.replaceChildren(...series.map((stack) => element("li", {}, this.#card(stack))));
    this.list.children[card]?.firstChild.focus({ preventScroll: true });
    const loose = this.#loose();
    byId("pictures-title").hidden = this.pictures.hidden = !loose.length;
    this.pictures.replaceChildren(...loose.map((slice) => this.#picture(slice)));
    this.pictures.children[picture]?.focus({ preventScroll: true });
    if (this.#current) this.mark(this.#current);
  }

  /** Marks the slice that is shown, and its series. */
  mark(slice) {
    this.#current = slice;
    for (const { firstChild: card } of this.list.children) card.removeAttribute("aria-current");
    this.list.children[slice.stack.index]?.firstChild.setAttribute("aria-current", "true");
    const focused = this.pictures.contains(document.activeElement);
    for (const chosen of this.pictures.querySelectorAll("[aria-selected=true]")) chosen.setAttribute("aria-selected", "false");
    for (const stop of this.pictures.querySelectorAll("[tabindex='0']")) stop.tabIndex = -1;
    const place = slice.stack.series ? 0 : slice.place;
    const picture = this.pictures.children[place];
    if (!picture) return;
    picture.tabIndex = 0;
    if (slice.stack.series) return;
    picture.setAttribute("aria-selected", "true");
    if (focused) picture.focus({ preventScroll: true });
    picture.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  #loose() {
    return this.#stacks.find((stack) => !stack.series)?.slices ?? [];
  }

  #card(stack) {
    const [best] = carriers(stack);
    const strip = element("canvas", { class: "strip", width: 240, height: 30, role: "img", "aria-label": stripText(stack) });
    drawStrip(strip, stack);
    return element("button", { type: "button", class: "card", onclick: () => this.choose(best ?? stack.slices[0]) },
      this.thumbnails.of(best ?? stack.slices[stack.slices.length >> 1]),
      element("span", { class: "words" },
        element("span", { class: "name", text: stack.name }),
        element("span", { class: "muted", text: counted(stack.slices.length) }),
        seriesLabel(stack.series)),
      strip);
  }

  #picture(slice) {
    const said = [element("span", { class: `label ${kindOf(slice)}`, text: labelOf(slice) })];
    if (slice.probability !== null) said.push(element("span", { class: "number", text: probabilityText(slice.probability) }));
    return element("div", { class: "picture", role: "option", "aria-selected": "false", "data-place": slice.place, "data-number": slice.number, tabindex: slice.place ? -1 : 0 },
      this.thumbnails.of(slice), element("span", { class: "said" }, ...said),
      element("span", { class: "name", text: shortName(slice), title: slice.file }));
  }
}

/** The label of a series, or its score where it has none. */
function seriesLabel(series) {
  if (series.label) return element("strong", { class: `label ${kindOf(series)}`, text: series.label });
  const score = series.series_score;
  return element("strong", { class: "label", text: score === null ? "no answer" : `score ${probabilityText(score)}` });
}

function stripText({ slices }) {
  const classified = slices.filter(({ probability }) => probability !== null);
  const highest = Math.max(...classified.map(({ probability }) => probability));
  const opacity = Math.max(0, ...classified.map((slice) => slice.opacity ?? 0));
  if (!classified.length) return "No slice was classified.";
  return `From head to feet: highest probability ${probabilityText(highest)}, highest opacity ${opacity.toFixed(0)} %, ${slices.length - classified.length} refused.`;
}

/** Probability as colour above, opacity as bars below, from the head on the left to the feet. */
function drawStrip(canvas, { slices }) {
  const context = canvas.getContext("2d");
  const { width, height } = canvas;
  const share = width / slices.length;
  const middle = 12;
  const hatch = hatched(context);
  context.fillStyle = "#101418";
  context.fillRect(0, 0, width, height);
  slices.forEach((slice, index) => {
    const [left, wide] = [Math.floor(index * share), Math.ceil(share)];
    const colour = colourOf(slice);
    context.fillStyle = colour ?? hatch;
    context.fillRect(left, 0, wide, colour ? middle : height);
    if (!slice.opacity) return;
    context.fillStyle = "#ffb27d";
    const tall = Math.min(1, slice.opacity / FULL) * (height - middle - 2);
    context.fillRect(left, height - tall, wide, tall);
  });
}

/** Describes the series of a slice, and names the slices that carry its answer. */
export function describeSeries(stack, meaning, choose) {
  byId("series").replaceChildren(...(stack.series ? seriesWords(stack, meaning) : [element("p", { class: "muted", text: "Single pictures belong to no series." })]));
  const named = carriers(stack).toSorted((a, b) => a.place - b.place);
  byId("carriers-section").hidden = !named.length;
  byId("carriers").replaceChildren(...named.map((slice) =>
    element("button", { type: "button", "data-number": slice.number, onclick: () => choose(slice) },
      swatch(slice), `${slice.place + 1}`, element("span", { class: "muted", text: probabilityText(slice.probability) }))));
}

function seriesWords(stack, meaning) {
  const { series, slices, name } = stack;
  const shown = warnings(stack);
  const outside = outsideLungs(slices);
  const rows = [["Read", counted(series.slices)], ["Classified", String(series.classified)]];
  for (const [label, count] of [["COVID", series.positive], ["uncertain", series.uncertain], ["NonCOVID", series.negative]]) if (count) rows.push([`– ${label}`, String(count)]);
  if (outside) rows.push(["Outside the lungs", String(outside)]);
  rows.push(["Refused", String(series.refused - outside)]);
  return [
    element("p", { class: "series-name", text: name }),
    ...shown.map((text) => element("p", { class: "warning", text })),
    answer(series),
    ...(series.opacity ? [element("p", { class: "figure" }, element("strong", { text: `${series.opacity.percent.toFixed(1)} %` }), ` lung opacity${volumeText(series.opacity)}`)] : []),
    facts(rows),
    element("details", {}, element("summary", { text: "What this answer is" }), element("p", { class: "muted", text: meaning })),
    element("details", {}, element("summary", { text: "Identifiers" }), facts([["Series UID", series.series ?? "none"], ["Folder or file", series.place]])),
  ];
}

function answer(series) {
  const interval = series.interval ? ` (${series.interval.map(probabilityText).join(" to ")})` : "";
  const score = typeof series.series_score === "number" ? `score ${probabilityText(series.series_score)}` : "";
  if (series.label) {
    return element("p", { class: `verdict ${kindOf(series)}` }, element("strong", { class: "label", text: series.label }), element("span", { class: "muted", text: ` ${score}${interval}` }));
  }
  const why = series.classified ? "No label: no rule for series has been fitted." : "No label: no slice of this series could be classified.";
  return element("div", {}, ...(score ? [element("p", { class: "verdict" }, element("strong", { text: probabilityText(series.series_score) }), ` series score`, element("span", { class: "muted", text: interval }))] : []), element("p", { class: "muted", text: why }));
}

const volumeText = ({ lung_ml: lung, lesion_ml: lesion }) => (lung === null ? "" : `: ${Math.round(lesion).toLocaleString("en")} of ${Math.round(lung).toLocaleString("en")} ml`);

function swatch(slice) {
  const colour = element("span", { class: "swatch", "aria-hidden": "true" });
  if (slice.probability !== null) colour.style.background = colourOf(slice);
  return colour;
}

/** Describes a slice. */
export function describeSlice(slice) {
  const kind = kindOf(slice);
  const head = element("p", { class: `verdict ${kind}` }, element("strong", { class: "label", text: labelOf(slice) }));
  if (slice.probability !== null) head.append(` ${probabilityText(slice.probability)}`);
  const rows = [];
  if (slice.status === "ok") {
    rows.push(["Probability", `${probabilityText(slice.probability)} of COVID, calibrated`]);
    if (slice.opacity !== null) rows.push(["Lung opacity", `${slice.opacity.toFixed(1)} %`]);
    rows.push(["Not ruled out", slice.prediction_set.join(", ") || "neither label fits"]);
  }
  if (slice.position !== null) rows.push(["Position", positionText(slice.position)]);
  rows.push(["File", shortName(slice)]);
  if (slice.image) rows.push(["Size", `${slice.image.columns} × ${slice.image.rows}`]);
  const why = { refused: "Refused: ", failed: "This file could not be read: " }[slice.status];
  byId("slice").replaceChildren(
    ...slice.flags.map((flag) => element("p", { class: "warning", text: flagText(flag) })),
    head,
    ...(why ? [element("p", { class: "reason", text: why + (slice.reason ?? "") })] : [scale(slice)]),
    facts(rows),
  );
}

function scale(slice) {
  const bar = element("div", { class: "scale", "aria-hidden": "true" }, element("span"));
  bar.firstChild.style.left = `${slice.probability * 100}%`;
  return element("div", {}, bar, element("div", { class: "ends muted" }, element("span", { text: "NonCOVID" }), element("span", { text: "COVID" })));
}

function facts(rows) {
  return element("dl", { class: "facts" }, ...rows.flatMap(([name, value]) => [element("dt", { text: name }), element("dd", { text: value })]));
}
