// Keys that work anywhere on the page, except where the focused control has its own use for them.

import { element } from "./dom.js";

const TYPING = "input:not([type=checkbox]):not([type=radio]):not([type=file]), select, textarea";
const CHOOSING = "input[type=radio]";

/**
 * @typedef {object} Key
 * @property {string[]} keys as `event.key` has them, or with `Shift+` before.
 * @property {string} shown how the list names them.
 * @property {string} what they do.
 * @property {() => void} act
 */

/**
 * Listens, and lists the keys in a box.
 * @param {Key[][]} groups one line of the list each.
 * @param {HTMLElement} box
 * @param {() => boolean} letters whether single characters count.
 */
export function listenToKeys(groups, box, letters) {
  box.replaceChildren(...groups.flatMap((group) => [
    element("dt", {}, ...group.filter((key) => key.shown).map((key) => element("kbd", { text: key.shown }))),
    element("dd", { text: group[0].what }),
  ]));
  const known = new Map(groups.flat().flatMap((key) => (key.keys ?? []).map((name) => [name, key])));
  document.addEventListener("keydown", (event) => {
    const key = known.get(event.shiftKey && event.key.startsWith("Arrow") ? `Shift+${event.key}` : event.key.toLowerCase()) ?? known.get(event.key);
    if (!key || event.ctrlKey || event.altKey || event.metaKey || document.querySelector("dialog[open]")) return;
    if (event.key.length === 1 && !letters()) return;
    const target = event.target;
    if (target.matches?.(TYPING) || (target.matches?.(CHOOSING) && event.key.startsWith("Arrow"))) return;
    event.preventDefault();
    key.act();
  });
}
