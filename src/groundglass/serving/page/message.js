// One line that says what went wrong, with buttons that say what can be done.

import { byId, element } from "./dom.js";

/**
 * Shows a line.
 * @param {string} text
 * @param {[string, () => void][]} ways buttons; each also closes the line.
 */
export function showMessage(text, ways = []) {
  const box = byId("message");
  const buttons = [...ways, ["Dismiss", () => {}]].map(([name, act]) =>
    element("button", { type: "button", text: name, onclick: () => { hideMessage(); act(); } }));
  box.replaceChildren(element("p", { text }), ...buttons);
  box.hidden = false;
}

export function hideMessage() {
  byId("message").hidden = true;
}
