// The prediction of one slice and the summary of its series, in words.

import { element } from "./dom.js";
import { placeText } from "./curve.js";
import { FLAGS, kindOf, labelOf, probabilityText, seriesName } from "./predictions.js";

const STATUS = {
  refused: "Rejected: this is not an axial lung CT slice.",
  failed: "This file could not be read:",
};

/** Describes a prediction in a box. */
export function describePrediction(box, prediction, series) {
  const kind = kindOf(prediction);
  const head = element("p", { class: `verdict ${kind}` }, element("strong", { class: "label", text: labelOf(prediction) }));
  if (prediction.probability !== null) head.append(` ${probabilityText(prediction.probability)}`);
  const parts = [head];
  if (prediction.status !== "ok") {
    parts.push(element("p", { text: STATUS[prediction.status] }), element("p", { class: "reason", text: prediction.reason ?? "" }));
  } else {
    parts.push(scale(prediction, kind));
  }
  parts.push(...flags(prediction), facts(prediction, series), ...legend(prediction));
  box.replaceChildren(...parts);
}

function scale(prediction, kind) {
  const bar = element("div", { class: `scale ${kind}`, "aria-hidden": "true" }, element("span"));
  bar.firstChild.style.left = `${prediction.probability * 100}%`;
  const ends = element("div", { class: "ends muted", "aria-hidden": "true" }, element("span", { text: "NonCOVID" }), element("span", { text: "COVID" }));
  return element("div", {}, bar, ends);
}

function facts(prediction, series) {
  const rows = [];
  if (prediction.status === "ok") {
    rows.push(["Probability of COVID", `${probabilityText(prediction.probability)}, calibrated`]);
    if (prediction.opacity !== null) rows.push(["Lung opacity", `${prediction.opacity.toFixed(1)} % of the lungs is lesion`]);
    rows.push(["Prediction set", prediction.prediction_set.join(", ") || "empty: neither label fits"]);
  }
  rows.push(["File", prediction.file]);
  if (prediction.frame !== null) rows.push(["Frame", String(prediction.frame)]);
  if (prediction.position !== null) rows.push(["Position", placeText(prediction.position, "mm")]);
  if (series) rows.push(["Series", seriesName(series)]);
  if (prediction.image) rows.push(["Size", `${prediction.image.columns} × ${prediction.image.rows}`]);
  return list(rows);
}

function legend(prediction) {
  if (!prediction.image?.lesions) return [];
  const colour = (kind) => element("span", { class: kind, "aria-hidden": "true" });
  return [element("p", { class: "muted" }, "Lesions: ", colour("heat"), " orange, the stronger the surer.")];
}

function flags(prediction) {
  if (!prediction.flags.length) return [];
  return [element("ul", { class: "flags" }, ...prediction.flags.map((flag) => element("li", { text: FLAGS[flag] ?? flag })))];
}

/** Describes a series in a box. */
export function describeSeries(box, series, meaning) {
  if (!series) {
    box.replaceChildren(element("p", { class: "muted", text: "This slice belongs to no series." }));
    return;
  }
  const { slices_in_score: count, series_score: score } = series;
  box.replaceChildren(
    score === null
      ? element("p", { class: "score", text: "No series score: no slice of this series could be classified." })
      : element("p", { class: "score" }, "Series score ", element("strong", { text: probabilityText(score) }), ` from ${count} slice${count === 1 ? "" : "s"}. Not a diagnosis.`),
    ...(series.opacity ? [element("p", { class: "score" }, "Lung opacity ", element("strong", { text: `${series.opacity.percent.toFixed(1)} %` }), volumeText(series.opacity))] : []),
    element("p", { class: "muted", text: `${series.classified} classified: ${series.positive} COVID, ${series.negative} NonCOVID, ${series.uncertain} uncertain; ${series.refused} refused, ${series.failed} failed.` }),
    element("details", {}, element("summary", { text: "What the series score is" }), element("p", { class: "muted", text: meaning })),
  );
}

const volumeText = ({ lung_ml: lung, lesion_ml: lesion }) => (lung === null ? " of the lungs is lesion." : `, ${Math.round(lesion)} of ${Math.round(lung)} ml.`);

function list(rows) {
  return element("dl", { class: "facts" }, ...rows.flatMap(([name, value]) => [element("dt", { text: name }), element("dd", { text: value })]));
}
