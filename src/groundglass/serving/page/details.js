// What is said of one slice and of its series, in words.

import { element } from "./dom.js";
import { placeText } from "./curve.js";
import { FLAGS, kindOf, labelOf, probabilityText, seriesName } from "./findings.js";

const STATUS = {
  refused: "Taken for no axial lung CT slice, so that nothing is said of it:",
  failed: "This could not be read:",
};

/** Puts what is said of a finding into a box. */
export function describeFinding(box, finding, series) {
  const kind = kindOf(finding);
  const head = element("p", { class: `verdict ${kind}` }, element("strong", { class: "label", text: labelOf(finding) }));
  if (finding.probability !== null) head.append(` ${probabilityText(finding.probability)}`);
  const parts = [head];
  if (finding.status !== "ok") {
    parts.push(element("p", { text: STATUS[finding.status] }), element("p", { class: "reason", text: finding.reason ?? "" }));
  } else {
    parts.push(scale(finding, kind));
  }
  parts.push(...flags(finding), facts(finding, series), ...legend(finding));
  box.replaceChildren(...parts);
}

function scale(finding, kind) {
  const bar = element("div", { class: `scale ${kind}`, "aria-hidden": "true" }, element("span"));
  bar.firstChild.style.left = `${finding.probability * 100}%`;
  const ends = element("div", { class: "ends muted", "aria-hidden": "true" }, element("span", { text: "NonCOVID" }), element("span", { text: "COVID" }));
  return element("div", {}, bar, ends);
}

function facts(finding, series) {
  const rows = [];
  if (finding.status === "ok") {
    rows.push(["Probability of COVID", `${probabilityText(finding.probability)}, calibrated`]);
    rows.push(["Not ruled out", finding.prediction_set.join(", ") || "neither label fits"]);
  }
  rows.push(["File", finding.file]);
  if (finding.frame !== null) rows.push(["Frame", String(finding.frame)]);
  if (finding.position !== null) rows.push(["Position", placeText(finding.position, "mm")]);
  if (series) rows.push(["Series", seriesName(series)]);
  if (finding.image) rows.push(["Size", `${finding.image.columns} × ${finding.image.rows}`]);
  return list(rows);
}

function legend(finding) {
  if (!finding.image?.heat_map) return [];
  const colour = (kind) => element("span", { class: kind, "aria-hidden": "true" });
  return [element("p", { class: "muted" }, "Heat map: ", colour("heat"), " orange speaks for COVID, ", colour("heat against"), " blue against it.")];
}

function flags(finding) {
  if (!finding.flags.length) return [];
  return [element("ul", { class: "flags" }, ...finding.flags.map((flag) => element("li", { text: FLAGS[flag] ?? flag })))];
}

/** Puts what the slices of a series say together into a box. */
export function describeSeries(box, series, meaning) {
  if (!series) {
    box.replaceChildren(element("p", { class: "muted", text: "This slice belongs to no series." }));
    return;
  }
  const { slices_in_score: count, study_score: score } = series;
  box.replaceChildren(
    score === null
      ? element("p", { class: "score", text: "No study score: no slice of this series was classified." })
      : element("p", { class: "score" }, "Study score ", element("strong", { text: probabilityText(score) }), ` from ${count} slice${count === 1 ? "" : "s"}. Never a diagnosis.`),
    element("p", { class: "muted", text: `${series.classified} classified: ${series.positive} COVID, ${series.negative} NonCOVID, ${series.uncertain} uncertain; ${series.refused} refused, ${series.failed} failed.` }),
    element("details", {}, element("summary", { text: "What the study score is" }), element("p", { class: "muted", text: meaning })),
  );
}

function list(rows) {
  return element("dl", { class: "facts" }, ...rows.flatMap(([name, value]) => [element("dt", { text: name }), element("dd", { text: value })]));
}
