// Files in: by button, by drop anywhere on the page, each with its path; and how far an upload has come.

import { byId, showMessage } from "./dom.js";
import { counted } from "./result.js";

const names = new Intl.Collator(undefined, { numeric: true });
const HIDDEN = /(^|\/)\./;
/** Milliseconds between two readings aloud of how far an upload has come. */
const ANNOUNCE = 4_000;

/** @typedef {{file: File, name: string}} Chosen */

/**
 * Listens for files.
 * @param {(chosen: Chosen[]) => void} take
 */
export function listenForFiles(take) {
  for (const input of [byId("choose-files"), byId("choose-folder")]) {
    input.addEventListener("change", () => {
      hand([...input.files].map(named), take);
      input.value = "";
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
    dropped(event.dataTransfer).then((chosen) => hand(chosen, take), () => showMessage("What was dropped cannot be read."));
  });
}

const named = (file) => ({ file, name: file.webkitRelativePath || file.name });

/** What was dropped, folders with all that is in them. Must be called while the event is handled. */
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map(named);
  return (await Promise.all(entries.map((entry) => walk(entry, entry.name)))).flat();
}

async function walk(entry, name) {
  if (entry.isFile) return [{ file: await new Promise((resolve, reject) => entry.file(resolve, reject)), name }];
  const [found, reader] = [[], entry.createReader()];
  for (;;) { // a reader gives entries by the hundred
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return found;
    for (const child of some) found.push(...(await walk(child, `${name}/${child.name}`)));
  }
}

/** Hands files on in the order of their names, hidden files of folders left out. */
function hand(all, take) {
  const chosen = all.filter(({ name }) => !name.includes("/") || !HIDDEN.test(name)).sort((a, b) => names.compare(a.name, b.name));
  if (chosen.length) take(chosen);
  else showMessage("There is no file in it; hidden ones are left out.");
}

/** The line and bar of an upload. */
export class Progress {
  #files = 0;
  #announced = 0;
  #what = "";

  start(chosen) {
    this.#files = chosen.length;
    const bytes = chosen.reduce((sum, { file }) => sum + file.size, 0);
    this.#what = `${counted(chosen.length, "file")}, ${(bytes / 2 ** 20).toFixed(bytes < 2 ** 20 ? 2 : 0)} MiB`;
    this.sent(0);
  }

  sent(share) {
    if (share < 1) this.say(`Sending ${this.#what}: ${Math.floor(share * 100)} %`, share);
    else this.say("Sent. Waiting for the first prediction.");
  }

  /** How many slices of one upload there are is only known at the end: a file may hold many. */
  found(slices) {
    this.say(`Classified ${counted(slices)}`, slices < this.#files ? slices / this.#files : null);
  }

  end() {
    byId("progress").hidden = true;
  }

  /** Shows a text, and the share that is done where it is known. */
  say(text, share = null) {
    byId("progress").hidden = false;
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
