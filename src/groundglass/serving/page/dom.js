// Elements from data, and keys. Text goes in as text, never as markup: names of files are whatever a client made them.

const TYPING = "input:not([type=checkbox]):not([type=radio]):not([type=file]), select, textarea";
const PRESSING = "button, summary, a, label, input[type=checkbox], input[type=file]";

/** The element of an id. */
export const byId = (id) => document.getElementById(id);

/**
 * A new element.
 * @param {string} tag
 * @param {Object<string, unknown>} attributes `text`, handlers such as `onclick`, else attributes as they are.
 * @param {...(Node|string)} children
 */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children);
  return node;
}

/** An icon of index.html. */
export function icon(name) {
  const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  picture.append(use);
  return picture;
}

/** Presses or releases a toggle. */
export const press = (button, pressed) => button.setAttribute("aria-pressed", String(pressed));

/**
 * Shows one line that says what went wrong.
 * @param {string} text
 * @param {[string, () => void][]} ways on: buttons; each also closes the line.
 */
export function showMessage(text, ways = []) {
  const buttons = [...ways, ["Dismiss", () => {}]].map(([name, act]) =>
    element("button", { type: "button", text: name, onclick: () => { hideMessage(); act(); } }));
  byId("message").replaceChildren(element("p", { text }), ...buttons);
  byId("message").hidden = false;
}

export function hideMessage() {
  byId("message").hidden = true;
}

/**
 * Listens to keys that work anywhere on the page, except where the focused control has its own use for them, and lists the keys in a box.
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
    // Where there is no slice, and in a column that scrolls, these scroll.
    if (/^( |Arrow(Up|Down)|Page(Up|Down)|Home|End)$/.test(key) && (byId("workspace").hidden || target.matches?.("aside"))) return;
    if (target.type === "radio" && key.startsWith("Arrow")) return;
    if (key.length === 1 && (event.altKey || !letters())) return;
    const pressed = key.startsWith("Arrow") ? `${event.altKey ? "Alt+" : ""}${event.shiftKey ? "Shift+" : ""}${key}` : key.length === 1 ? key.toLowerCase() : key;
    const act = known.get(pressed);
    if (act && act() !== false) event.preventDefault();
  });
}
