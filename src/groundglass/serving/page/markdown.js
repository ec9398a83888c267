// The model card's Markdown as elements: headings, paragraphs, lists, tables, bold, code. Nothing becomes markup.

import { element } from "./dom.js";

const INLINE = /\*\*(.+?)\*\*|`([^`]+)`|\[([^\]]+)\]\(([^)]*)\)/g;
const BLOCKS = [
  [/^#{1,6} /, (lines) => [heading(lines[0])], () => false],
  [/^\|/, (lines) => [table(lines)], (line) => line.startsWith("|")],
  [/^[-*] /, (lines) => [list(lines)], (line) => /^([-*] |\s+\S)/.test(line)],
  [/./, (lines) => [element("p", {}, ...inline(lines.join(" ")))], (line) => line.trim() && !/^(#|\||[-*] )/.test(line)],
];

/** @returns {HTMLElement[]} */
export function fromMarkdown(text) {
  const lines = text.split(/\r?\n/);
  const found = [];
  while (lines.length) {
    const first = lines.shift();
    if (!first.trim()) continue;
    const [, made, goesOn] = BLOCKS.find(([start]) => start.test(first));
    const block = [first];
    while (lines.length && goesOn(lines[0])) block.push(lines.shift());
    found.push(...made(block));
  }
  return found;
}

/** One level down: the dialog's own title is the first. */
function heading(line) {
  const marks = /^#+/.exec(line)[0].length;
  return element(`h${Math.min(marks + 2, 6)}`, {}, ...inline(line.slice(marks).trim()));
}

function list(lines) {
  const items = [];
  for (const line of lines) {
    if (/^[-*] /.test(line)) items.push(line.slice(2));
    else items[items.length - 1] += ` ${line.trim()}`;
  }
  return element("ul", {}, ...items.map((item) => element("li", {}, ...inline(item))));
}

function table(lines) {
  const rows = lines.map((line) => line.replace(/^\||\|\s*$/g, "").split("|").map((cell) => cell.trim()));
  const cells = (row, tag) => row.map((cell) => element(cell ? tag : "td", tag === "th" && cell ? { scope: "col" } : {}, ...inline(cell)));
  const body = rows.slice(2).map((row) => element("tr", {}, element("th", { scope: "row" }, ...inline(row[0])), ...cells(row.slice(1), "td")));
  const head = rows[0].some(Boolean) ? [element("thead", {}, element("tr", {}, ...cells(rows[0], "th")))] : [];
  return element("table", {}, ...head, element("tbody", {}, ...body));
}

function inline(text) {
  const found = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    found.push(text.slice(end, match.index));
    const [, bold, code, link, address] = match;
    if (bold) found.push(element("strong", {}, ...inline(bold)));
    else if (code) found.push(element("code", { text: code }));
    else found.push(`${link} (${address})`);
    end = match.index + match[0].length;
  }
  return [...found, text.slice(end)].filter(Boolean);
}
