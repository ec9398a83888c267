// Exports of a result, fetched with the token and handed to the browser as files.

const DELAY = 60_000;

const NAMES = { csv: "predictions.csv", json: "predictions.json", jsonl: "predictions.jsonl", report: "report.zip" };

/** Fetches one kind of export and saves it. */
export async function download(api, kept, kind) {
  const url = URL.createObjectURL(await api.blob(kept.links[kind === "json" ? "self" : kind]));
  const link = Object.assign(document.createElement("a"), { href: url, download: NAMES[kind] });
  link.click();
  // The browser reads it after the click; how long that takes it does not say.
  setTimeout(() => URL.revokeObjectURL(url), DELAY);
}
