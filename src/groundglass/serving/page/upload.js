// Files in: by button, by drop anywhere on the page; and how far an upload has come.

import { byId } from "./dom.js";
import { fromDrop, fromInput } from "./files.js";
import { showMessage } from "./message.js";

const ANNOUNCE = 4_000;

/**
 * Listens for files.
 * @param {(chosen: import("./files.js").Chosen[]) => void} take
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

  sent(share) {
    this.#say(share < 1 ? `Sending ${this.#count()}, ${this.#mebibytes}: ${Math.floor(share * 100)} %` : "Sent. Waiting for the first prediction.", share < 1 ? share : null);
  }

  /** How many slices of one upload there are is only known at the end: a file may hold many. */
  found(slices, summary) {
    this.#say(`Classified ${summary}`, slices < this.#files ? slices / this.#files : null);
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
