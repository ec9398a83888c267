// The slices as small pictures in a list of which one is chosen.

import { element } from "./dom.js";
import { kindOf, labelOf, probabilityText, shortName } from "./predictions.js";
import { Thumbnails } from "./thumbnails.js";

export class Gallery {
  #cards = new Map();
  #shown = [];
  #chosen = null;

  /**
   * @param {HTMLElement} list a listbox.
   * @param {import("./api.js").Api} api
   * @param {(number: number) => void} choose called with the slice that was pressed.
   */
  constructor(list, api, choose) {
    Object.assign(this, { list, choose, thumbnails: new Thumbnails(api, list) });
    list.addEventListener("click", (event) => {
      const card = event.target.closest("[role=option]");
      if (card) choose(Number(card.dataset.number));
    });
  }

  clear() {
    this.thumbnails.clear();
    this.#cards.clear();
    this.#shown = [];
    this.#chosen = null;
    this.list.replaceChildren();
  }

  /** Puts cards at the end, in the order in which predictions come. */
  add(predictions, pictureOf) {
    for (const prediction of predictions) {
      const card = this.#card(prediction, pictureOf);
      this.#cards.set(prediction.number, card);
      this.list.append(card);
    }
  }

  /** Shows these predictions in this order, and no others. */
  arrange(predictions) {
    this.#shown = predictions.map((prediction) => prediction.number);
    this.list.replaceChildren(...this.#shown.map((number) => this.#cards.get(number)));
    for (const card of this.list.children) this.thumbnails.look(card.firstChild);
    this.#reachable();
  }

  /** Marks a slice as chosen; focus follows where it was in the list, or is asked for. */
  mark(number, focus = false) {
    const follow = focus || this.list.contains(document.activeElement);
    this.#cards.get(this.#chosen)?.setAttribute("aria-selected", "false");
    this.#chosen = number;
    const card = this.#cards.get(number);
    card?.setAttribute("aria-selected", "true");
    this.#reachable();
    if (follow) card?.focus({ preventScroll: true });
    card?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  /** The slice that many steps further on in the list; null where there is none. */
  beside(step) {
    if (!this.#shown.length) return null;
    const index = this.#shown.indexOf(this.#chosen);
    if (index < 0) return this.#shown[0];
    return this.#shown[Math.min(Math.max(index + step, 0), this.#shown.length - 1)];
  }

  /** Such as `3 of 40`. */
  placeInWords() {
    const index = this.#shown.indexOf(this.#chosen);
    return index < 0 ? "" : `${index + 1} of ${this.#shown.length}`;
  }

  /** One card can be reached by the tabulator, the others by arrows. */
  #reachable() {
    const stop = this.#shown.includes(this.#chosen) ? this.#chosen : this.#shown[0];
    for (const [number, card] of this.#cards) card.tabIndex = number === stop ? 0 : -1;
  }

  #card(prediction, pictureOf) {
    const kind = kindOf(prediction);
    const canvas = element("canvas", { width: 1, height: 1, "aria-hidden": "true" });
    const said = element("span", { class: "said" }, element("span", { class: "label", text: labelOf(prediction) }));
    if (prediction.probability !== null) said.append(element("span", { class: "number", text: probabilityText(prediction.probability) }));
    const name = element("span", { class: "name", text: shortName(prediction), title: prediction.file });
    const card = element("div", { class: `slice ${kind}`, role: "option", "aria-selected": "false", "data-number": prediction.number, tabindex: -1 }, canvas, said, name);
    if (prediction.probability !== null) {
      const bar = element("span", { class: "bar", "aria-hidden": "true" }, element("span"));
      bar.firstChild.style.width = `${prediction.probability * 100}%`;
      said.after(bar);
    }
    if (prediction.reason) card.append(element("span", { class: "reason", text: prediction.reason, title: prediction.reason }));
    this.thumbnails.watch(canvas, () => pictureOf(prediction));
    return card;
  }
}
