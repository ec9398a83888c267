// Files in: by button, by drop anywhere on the page, each with its path; and how far an upload has come.

import { byId, showMessage } from "./dom.js";

const names = new Intl.Collator(undefined, { numeric: true });
const HIDDEN = /(^|\/)\./;
// The service refuses names that cannot be printed, such as with odd spaces, or lead elsewhere; one such name must
// not stop the rest.
const UNFIT = /[\p{C}\\:]|[^\P{Z} ]/gu;

/** @typedef {{file: File, name: string}} Chosen */

/**
 * What a file input holds.
 * @param {FileList} list
 * @returns {Chosen[]}
 */
function fromInput(list) {
  return unique([...list].map((file) => ({ file, name: file.webkitRelativePath || file.name })));
}

/**
 * What was dropped, folders with all that is in them. Must be called while the event is handled.
 * @param {DataTransfer} transfer
 * @returns {Promise<Chosen[]>}
 */
async function fromDrop(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return fromInput(transfer.files);
  const found = await Promise.all(entries.map((entry) => walk(entry, entry.name)));
  return unique(found.flat());
}

async function walk(entry, name) {
  if (entry.isFile) {
    return [{ file: await new Promise((resolve, reject) => entry.file(resolve, reject)), name }];
  }
  const found = [];
  for (const child of await children(entry.createReader())) found.push(...(await walk(child, `${name}/${child.name}`)));
  return found;
}

/** All entries of a folder: a reader gives them by the hundred. */
async function children(reader) {
  const all = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return all;
    all.push(...some);
  }
}

/** In the order of their names, as the service takes them; hidden files of folders left out, no name twice. */
function unique(chosen) {
  const taken = new Set();
  return chosen
    .sort((a, b) => names.compare(a.name, b.name))
    .filter(({ name }) => !name.includes("/") || !HIDDEN.test(name))
    .map(({ file, name }) => {
      const fit = name.replace(UNFIT, "_");
      let free = fit;
      for (let number = 2; taken.has(free); number += 1) free = `${number}/${fit}`;
      taken.add(free);
      return { file, name: free };
    });
}

const ANNOUNCE = 4_000;

/**
 * Listens for files.
 * @param {(chosen: Chosen[]) => void} take
 */
export function listenForFiles(take) {
  for (const input of [byId("choose-files"), byId("choose-folder")]) {
    input.addEventListener("change", () => {
      const chosen = fromInput(input.files);
      input.value = "";
      hand(chosen, take);
    });
  }
  const drop = byId("drop");
  const over = (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    drop.classList.toggle("over", event.type === "dragover");
  };
  for (const type of ["dragover", "dragleave"]) window.addEventListener(type, over);
  window.addEventListener("drop", (event) => {
    over(event);
    if (!event.defaultPrevented) return;
    const unreadable = () => showMessage("What was dropped cannot be read.");
    fromDrop(event.dataTransfer).then((chosen) => hand(chosen, take), unreadable);
  });
}

function hand(chosen, take) {
  if (chosen.length) take(chosen);
  else showMessage("There is no file in it; hidden ones are left out.");
}

/** The line and bar of an upload. */
export class Progress {
  #files = 0;
  #announced = 0;
  #mebibytes = "";

  start(chosen) {
    this.#files = chosen.length;
    const bytes = chosen.reduce((sum, { file }) => sum + file.size, 0);
    this.#mebibytes = `${(bytes / 2 ** 20).toFixed(bytes < 2 ** 20 ? 2 : 0)} MiB`;
    byId("progress").hidden = false;
    this.sent(0);
  }

  /** Something of unknown length goes on. */
  wait(text) {
    byId("progress").hidden = false;
    this.#say(text, null);
  }

  sent(share) {
    this.#say(share < 1 ? `Sending ${this.#count()}, ${this.#mebibytes}: ${Math.floor(share * 100)} %` : "Sent. Waiting for the first prediction.", share < 1 ? share : null);
  }

  /** How many slices of one upload there are is only known at the end: a file may hold many. */
  found(slices) {
    this.#say(`Classified ${slices.toLocaleString("en")} slice${slices === 1 ? "" : "s"}`, slices < this.#files ? slices / this.#files : null);
  }

  end() {
    byId("progress").hidden = true;
  }

  #count() {
    return this.#files === 1 ? "1 file" : `${this.#files.toLocaleString("en")} files`;
  }

  #say(text, share) {
    byId("progress-text").textContent = text;
    // Read aloud now and then only.
    if (performance.now() - this.#announced > ANNOUNCE) {
      this.#announced = performance.now();
      byId("announce").textContent = text;
    }
    const bar = byId("progress-bar");
    if (share === null) bar.removeAttribute("value");
    else bar.value = share;
  }
}
