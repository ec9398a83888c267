// Predictions as the page orders, filters and words them.

/**
 * @typedef {object} Prediction as the API has it, and `number`, `group` (of its series, or null).
 */

const names = new Intl.Collator(undefined, { numeric: true });
const LAST = { ok: 0, refused: 1, failed: 2 };

export const FLAGS = {
  "one-lung-found": "Lung was found in one half of the picture alone; the other lung was not seen.",
  "little-lung": "The slice shows little lung, as at the apices and bases.",
  "lung-cut-off": "A lung leaves the picture; its other part was not seen.",
  "soft-tissue-window": "Most of the lung is black: the picture's window hides lung tissue.",
  "much-opacity": "The model leans to NonCOVID, though it sees lesions in more than a fifth of the lungs.",
  "low-resolution": "The lungs cover so few pixels that they were enlarged.",
  "upside-down": "According to the file, the back of the patient points up in this picture.",
};

export const KINDS = {
  all: ["All", () => true],
  covid: ["COVID", (prediction) => prediction.label === "COVID"],
  uncertain: ["uncertain", (prediction) => prediction.label === "uncertain"],
  other: ["NonCOVID", (prediction) => prediction.label === "NonCOVID"],
  refused: ["refused", (prediction) => prediction.status === "refused"],
  failed: ["failed", (prediction) => prediction.status === "failed"],
};

/** Which of `covid`, `uncertain`, `other`, `refused`, `failed` a prediction is; names styles and filters. */
export function kindOf(prediction) {
  return Object.keys(KINDS).find((kind) => kind !== "all" && KINDS[kind][1](prediction)) ?? "failed";
}

/** What stands on a card: the label, or why there is none. */
export const labelOf = (prediction) => prediction.label ?? prediction.status;

/** Such as 0.91; never 0 or 1, which no model can say. */
export function probabilityText(probability) {
  if (probability === null) return "–";
  if (probability > 0 && probability < 0.005) return "<0.01";
  if (probability < 1 && probability > 0.995) return ">0.99";
  return probability.toFixed(2);
}

/** The file's own name, and the frame within it. */
export function shortName(prediction) {
  const name = prediction.file.split("/").pop();
  return prediction.frame === null ? name : `${name} #${prediction.frame}`;
}

/** The folder or file that holds a series, or its UID where it lies in none. */
export const seriesName = (series) => (series.place && series.place !== "." ? series.place : series.series ?? "one");

/** Where along its series a slice lies, on the axis of the series' curve. */
export function placeOf(prediction, series) {
  if (series?.curve.axis === "mm") return prediction.position;
  return series?.curve.axis === "frame" ? prediction.frame : prediction.number;
}

const ORDERS = {
  probability: (a, b) => LAST[a.status] - LAST[b.status] || (b.probability ?? 0) - (a.probability ?? 0),
  body: (a, b) => (a.group ?? Infinity) - (b.group ?? Infinity) || (a.place ?? Infinity) - (b.place ?? Infinity),
  file: (a, b) => names.compare(a.file, b.file) || (a.frame ?? 0) - (b.frame ?? 0),
};

/** Predictions of a kind and series, sorted. */
export function arranged(predictions, { sort, kind, group }) {
  const wanted = predictions.filter((each) => KINDS[kind][1](each) && (group === null || each.group === group));
  // Infinity minus itself is no number: such slices keep the order of reading.
  return wanted.sort((a, b) => ORDERS[sort](a, b) || a.number - b.number);
}

/** How many there are of each kind. */
export function counted(predictions) {
  const counts = { all: predictions.length, covid: 0, uncertain: 0, other: 0, refused: 0, failed: 0 };
  for (const prediction of predictions) counts[kindOf(prediction)] += 1;
  return counts;
}

/** Such as `3 slices: 1 COVID, 1 NonCOVID, 1 refused`. */
export function summary(predictions) {
  const counts = counted(predictions);
  const parts = Object.keys(KINDS).filter((kind) => kind !== "all" && counts[kind]);
  const listed = parts.map((kind) => `${counts[kind].toLocaleString("en")} ${KINDS[kind][0]}`).join(", ");
  return `${counts.all.toLocaleString("en")} slice${counts.all === 1 ? "" : "s"}${listed ? `: ${listed}` : ""}`;
}
