// Exports of a result, fetched with the token and handed to the browser as files.

const DELAY = 60_000;

export const EXPORTS = {
  csv: { address: (kept) => kept.links.csv, name: "predictions.csv" },
  json: { address: (kept) => kept.links.self, name: "predictions.json" },
  jsonl: { address: (kept) => kept.links.jsonl, name: "predictions.jsonl" },
  report: { address: (kept) => kept.links.report, name: "report.zip" },
};

/** Fetches one kind of export and saves it. */
export async function download(api, kept, kind) {
  const { address, name } = EXPORTS[kind];
  const url = URL.createObjectURL(await api.blob(address(kept)));
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  link.click();
  // The browser reads it after the click; how long that takes it does not say.
  setTimeout(() => URL.revokeObjectURL(url), DELAY);
}
