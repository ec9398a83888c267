// Keys that work anywhere on the page, except where the focused control has its own use for them.

import { element } from "./dom.js";

const TYPING = "input:not([type=checkbox]):not([type=radio]):not([type=file]), select, textarea";
const PRESSING = "button, summary, a, label, input[type=checkbox], input[type=file]";

/**
 * Listens, and lists the keys in a box.
 * @param {{shown: string, what: string, keys: Object<string, () => void>}[]} lines `event.key` in small letters, or with
 *   `Alt+` and `Shift+` before an arrow.
 * @param {HTMLElement} box
 * @param {() => boolean} letters whether single characters count.
 */
export function listenToKeys(lines, box, letters) {
  box.replaceChildren(...lines.filter(({ shown }) => shown).flatMap(({ shown, what }) => [
    element("dt", {}, ...shown.split(", ").map((key) => element("kbd", { text: key }))), element("dd", { text: what }),
  ]));
  const known = new Map(lines.flatMap(({ keys }) => Object.entries(keys)));
  document.addEventListener("keydown", (event) => {
    const { key, target } = event;
    if (event.ctrlKey || event.metaKey || document.querySelector("dialog[open]") || target.matches?.(TYPING)) return;
    if (key === " " && target.matches?.(PRESSING)) return;
    if (target.type === "radio" && key.startsWith("Arrow")) return;
    if (key.length === 1 && (event.altKey || !letters())) return;
    const pressed = key.startsWith("Arrow") ? `${event.altKey ? "Alt+" : ""}${event.shiftKey ? "Shift+" : ""}${key}` : key.length === 1 ? key.toLowerCase() : key;
    const act = known.get(pressed);
    if (!act) return;
    event.preventDefault();
    act();
  });
}
