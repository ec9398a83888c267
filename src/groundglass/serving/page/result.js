// What the service said of one upload: predictions as they come, then series and links.

import { placeOf } from "./predictions.js";

export class Result {
  predictions = [];
  series = [];
  meaning = "";
  kept = null;

  /** @param {?string} address under which the service keeps it. */
  constructor(address) {
    this.address = address;
  }

  /** Takes rows of the answer; returns them as predictions. */
  add(rows) {
    const added = rows.map((row, index) => ({ ...row, number: this.predictions.length + index, group: null, place: null, image: undefined }));
    this.predictions.push(...added);
    return added;
  }

  /** Takes the document that the service gives when all is done. */
  complete(document) {
    this.series = document.series;
    this.meaning = document.series_score;
    this.kept = document.kept;
    document.predictions.forEach((row, number) => Object.assign(this.predictions[number], { image: row.image }));
    this.series.forEach((series, group) => {
      for (const number of series.predictions) {
        const prediction = this.predictions[number];
        Object.assign(prediction, { group, place: placeOf(prediction, series) });
      }
    });
  }

  /** Where a small picture of a prediction is found; null where there is none, or where that is not known yet. */
  pictureOf(prediction) {
    if (prediction.image !== undefined) return prediction.image?.picture ?? null;
    return this.address && prediction.status === "ok" ? `${this.address}/slices/${prediction.number}/picture.png` : null;
  }

  /** Predictions of a series along the body. */
  along(group) {
    return this.predictions.filter((each) => each.group === group && each.place !== null).sort((a, b) => a.place - b.place || a.number - b.number);
  }

  seriesOf(prediction) {
    return prediction.group === null ? null : this.series[prediction.group];
  }
}
