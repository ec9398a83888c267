// What the service said of one upload: series as stacks from head to feet, loose pictures, and their words.

const names = new Intl.Collator(undefined, { numeric: true });
const LAST = { ok: 0, refused: 1, failed: 2 };
/** Share of its slices from which on a flag is worth a warning of the series. */
const OFTEN = 0.1;
const OUTSIDE_LUNGS = "outside the lungs";
const UID = /^\d+(\.\d+){5,}$/;

const FLAGS = {
  "one-lung-found": "Lung was found in one half of the picture alone; the other lung was not seen.",
  "little-lung": "The slice shows little lung, as at the apices and bases.",
  "lung-cut-off": "A lung leaves the picture; its other part was not seen.",
  "soft-tissue-window": "Most of the lung is black: the picture's window hides lung tissue.",
  "several-slices": "The lungs are much broader than high, as where several slices lie side by side.",
  "much-opacity": "The model leans to NonCOVID, though it sees lesions in more than a fifth of the lungs.",
  "low-resolution": "The lungs cover so few pixels that they were enlarged.",
  "oblong-pixels": "According to the file, the pixels are no squares: the model sees the slice stretched.",
  "upside-down": "According to the file, the back of the patient points up in this picture.",
};

/** What a flag means. */
export const flagText = (flag) => FLAGS[flag] ?? flag;

/** Which of `covid`, `uncertain`, `other`, `refused`, `failed` a prediction, or a label, is; names styles. */
export function kindOf({ status = "ok", label }) {
  if (status !== "ok") return status;
  return { COVID: "covid", NonCOVID: "other" }[label] ?? "uncertain";
}

/** The label, or why there is none. */
export const labelOf = (prediction) => prediction.label ?? prediction.status;

/** Such as 0.91; never 0 or 1, which no model can say. */
export function probabilityText(probability) {
  if (probability === null || probability === undefined) return "–";
  if (probability > 0 && probability < 0.005) return "<0.01";
  if (probability < 1 && probability > 0.995) return ">0.99";
  return probability.toFixed(2);
}

/** Label and probability of a slice, or why there are none. */
export const answerOf = (slice) => `${labelOf(slice)}${slice.probability === null ? "" : `, probability ${probabilityText(slice.probability)}`}`;

/** The file's own name, and the frame within it. */
export function shortName(prediction) {
  const name = prediction.file.split("/").pop();
  return prediction.frame === null ? name : `${name} #${prediction.frame}`;
}

/** A position along the body such as `−120.5 mm`. */
export const positionText = (position) => `${position.toFixed(1).replace("-", "−")} mm`;

/** Such as `3 slices`. */
export const counted = (count, noun = "slice") => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

/** Such as `3 slices: 1 COVID, 1 NonCOVID, 1 refused`. */
export function summary(predictions) {
  const counts = new Map();
  for (const prediction of predictions) counts.set(labelOf(prediction), (counts.get(labelOf(prediction)) ?? 0) + 1);
  const parts = ["COVID", "uncertain", "NonCOVID", "refused", "failed"].filter((label) => counts.has(label));
  return `${counted(predictions.length)}${parts.length ? `: ${parts.map((label) => `${counts.get(label).toLocaleString("en")} ${label}`).join(", ")}` : ""}`;
}

/**
 * @typedef {object} Stack
 * @property {?object} series as the API has it; null for loose pictures.
 * @property {object[]} slices predictions in the order in which they are scrolled.
 * @property {?{predictions: number[], gap: number}} volume
 * @property {string} name
 * @property {number} index of the series.
 */

export class Result {
  /** @param {object} document as the API has it. */
  constructor(document) {
    this.kept = document.kept;
    this.meaning = document.series_score;
    this.predictions = document.predictions.map((row, number) => ({ ...row, number, stack: null, place: 0 }));
    const inSeries = new Set(document.series.flatMap((series) => series.predictions));
    this.stacks = document.series.map((series, index) => this.#stack(series, index, document.series));
    const loose = this.predictions.filter(({ number }) => !inSeries.has(number));
    if (loose.length) this.stacks.push({ series: null, slices: loose.sort(byProbability), volume: null, name: "Single pictures", index: -1 });
    for (const stack of this.stacks) stack.slices.forEach((slice, place) => Object.assign(slice, { stack, place }));
  }

  get address() {
    return this.kept.links.self;
  }

  /** The slice that is worth being seen first. */
  strongest() {
    const score = ({ series, slices }) => series?.series_score ?? slices[0].probability ?? -1;
    const [best] = this.stacks.toSorted((a, b) => score(b) - score(a));
    return best && (carriers(best)[0] ?? best.slices[0]);
  }

  #stack(series, index, all) {
    const slices = series.predictions.map((number) => this.predictions[number]);
    return { series, slices: slices.sort(alongBody(slices)), volume: series.volume, name: nameOf(series, index, all), index };
  }
}

function byProbability(a, b) {
  return LAST[a.status] - LAST[b.status] || (b.probability ?? 0) - (a.probability ?? 0) || names.compare(a.file, b.file);
}

/** From the head to the feet where positions are known, else in the order of frames or reading. */
function alongBody(slices) {
  if (slices.every(({ position }) => position !== null)) return (a, b) => b.position - a.position || a.number - b.number;
  return (a, b) => a.number - b.number;
}

/** Its description, or the folder or file that holds it; never a UID, as which archives name folders. */
function nameOf(series, index, all) {
  const parts = ({ place }) => place.split(/[/!]/).filter((part) => part && part !== "." && !UID.test(part));
  const title = (each) => each.description || parts(each).pop() || "Series";
  const name = title(series);
  const alike = all.filter((each) => title(each) === name);
  if (alike.length < 2) return name;
  const places = new Set(alike.map((each) => parts(each).join("/")));
  return places.size === alike.length && parts(series).length > 1 ? `${name}, ${parts(series).pop()}` : `${name} ${index + 1}`;
}

/** The slices that a series' answer hangs on. */
export function carriers({ series, slices }) {
  return (series?.carriers ?? []).map(({ file, frame }) => slices.find((slice) => slice.file === file && slice.frame === frame)).filter(Boolean);
}

/** Slices of a series that show another part of the body. */
export const outsideLungs = (slices) => slices.filter(({ reason }) => reason?.startsWith(OUTSIDE_LUNGS)).length;

/** What a reader has to know before the numbers of a series. */
export function warnings({ series, slices, volume }) {
  const found = [];
  const refused = series.refused - outsideLungs(slices);
  if (refused) found.push(`${counted(refused)} that may show lung ${refused === 1 ? "was" : "were"} refused.`);
  const hounsfield = slices.some(({ image }) => image?.hounsfield);
  if (!volume && hounsfield && slices.length > 8) found.push("No coronal or sagittal planes: slices are missing, unlike, unevenly spaced, of unknown place or not kept.");
  if (!hounsfield && slices.some(({ image }) => image)) found.push("No Hounsfield units: grey values only.");
  for (const flag of Object.keys(FLAGS)) {
    const count = slices.filter(({ flags }) => flags.includes(flag)).length;
    if (count > OFTEN * slices.length) found.push(`${FLAGS[flag]} (${counted(count)})`);
  }
  return found;
}

/** Blue where COVID is improbable, through grey, to orange; null where there is no probability. */
export function colourOf({ probability }) {
  if (probability === null) return null;
  const ends = probability < 0.5 ? [[47, 129, 201], [150, 156, 163]] : [[150, 156, 163], [255, 124, 31]];
  const share = (probability < 0.5 ? probability : probability - 0.5) * 2;
  return `rgb(${ends[0].map((value, channel) => Math.round(value + (ends[1][channel] - value) * share)).join()})`;
}
