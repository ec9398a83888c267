// What the service said of one upload: findings as they come, then series and links.

import { placeOf } from "./findings.js";

export class Result {
  findings = [];
  series = [];
  meaning = "";
  kept = null;

  /** @param {?string} address under which the service keeps it. */
  constructor(address) {
    this.address = address;
  }

  /** Takes rows of the answer; returns them as findings. */
  add(rows) {
    const added = rows.map((row, index) => ({ ...row, number: this.findings.length + index, group: null, place: null, image: undefined }));
    this.findings.push(...added);
    return added;
  }

  /** Takes the document that the service gives when all is done. */
  complete(document) {
    this.series = document.series;
    this.meaning = document.study_score;
    this.kept = document.kept;
    document.findings.forEach((row, number) => Object.assign(this.findings[number], { image: row.image }));
    this.series.forEach((series, group) => {
      for (const number of series.findings) {
        const finding = this.findings[number];
        Object.assign(finding, { group, place: placeOf(finding, series) });
      }
    });
  }

  /** Where a small picture of a finding is found; null where there is none, or where that is not known yet. */
  pictureOf(finding) {
    if (finding.image !== undefined) return finding.image?.picture ?? null;
    return this.address && finding.status === "ok" ? `${this.address}/slices/${finding.number}/picture.png` : null;
  }

  /** Findings of a series along the body. */
  along(group) {
    return this.findings.filter((each) => each.group === group && each.place !== null).sort((a, b) => a.place - b.place || a.number - b.number);
  }

  seriesOf(finding) {
    return finding.group === null ? null : this.series[finding.group];
  }
}
