// Files that were chosen or dropped, each with the path it had below what was dropped.

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
export function fromInput(list) {
  return unique([...list].map((file) => ({ file, name: file.webkitRelativePath || file.name })));
}

/**
 * What was dropped, folders with all that is in them. Must be called while the event is handled.
 * @param {DataTransfer} transfer
 * @returns {Promise<Chosen[]>}
 */
export async function fromDrop(transfer) {
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
