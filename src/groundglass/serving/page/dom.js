// Elements from data. Text goes in as text, never as markup: names of files are whatever a client made them.

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
