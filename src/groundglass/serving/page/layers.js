// What a slice is drawn from: values, lesions, outline. The last few are kept, the next one is fetched ahead.

const MOST_BYTES = 96 * 2 ** 20;

/**
 * @typedef {object} SliceLayers
 * @property {number} rows
 * @property {number} columns
 * @property {"hounsfield"|"grey"} unit of the values.
 * @property {Int16Array} values row by row.
 * @property {?ImageBitmap} lesions of the slice's size.
 * @property {?{lungs: Path2D, crop: number[]}} outline in pixels of the slice.
 */

export class Layers {
  #kept = new Map();
  #bytes = 0;

  /** @param {import("./api.js").Api} api */
  constructor(api) {
    this.api = api;
  }

  /** Forgets everything, at once. */
  clear() {
    for (const number of [...this.#kept.keys()]) this.#drop(number);
  }

  /** Whether a prediction's layers are here or on their way. */
  has(prediction) {
    return this.#kept.has(prediction.number);
  }

  /**
   * The layers of a prediction.
   * @param {object} prediction with an `image`.
   * @returns {Promise<SliceLayers>}
   */
  load(prediction) {
    const known = this.#kept.get(prediction.number);
    if (known) {
      this.#kept.delete(prediction.number);
      this.#kept.set(prediction.number, known);
      return known.layers;
    }
    const entry = { bytes: 0, layers: fetched(this.api, prediction.image) };
    this.#kept.set(prediction.number, entry);
    entry.layers.then((layers) => this.#settle(prediction.number, entry, layers), () => this.#forgetFailed(prediction.number, entry));
    return entry.layers;
  }

  #settle(number, entry, layers) {
    if (this.#kept.get(number) !== entry) return;
    entry.bytes = layers.rows * layers.columns * (layers.lesions ? 6 : 2);
    this.#bytes += entry.bytes;
    for (const oldest of [...this.#kept.keys()]) {
      if (this.#bytes <= MOST_BYTES || oldest === number) break;
      this.#drop(oldest);
    }
  }

  #forgetFailed(number, entry) {
    if (this.#kept.get(number) === entry) this.#kept.delete(number);
  }

  #drop(number) {
    // The viewer may still show it: only the reference goes, the browser frees the pixels.
    this.#bytes -= this.#kept.get(number).bytes;
    this.#kept.delete(number);
  }
}

async function fetched(api, image) {
  const [{ unit, values }, lesions, outline] = await Promise.all([
    image.hounsfield ? hounsfield(api, image) : grey(api, image),
    image.lesions ? api.blob(image.lesions).then(createImageBitmap) : null,
    api.text(image.outline).then(outlineOf),
  ]);
  return { rows: image.rows, columns: image.columns, unit, values, lesions, outline };
}

async function hounsfield(api, image) {
  const bytes = await (await api.request(image.hounsfield)).arrayBuffer();
  const values = new Int16Array(image.rows * image.columns);
  const view = new DataView(bytes);
  for (let index = 0; index < values.length; index += 1) values[index] = view.getInt16(index * 2, true);
  return { unit: "hounsfield", values };
}

/** Grey values of a picture that has no Hounsfield units. */
async function grey(api, image) {
  const bitmap = await createImageBitmap(await api.blob(image.picture), { colorSpaceConversion: "none" });
  const context = new OffscreenCanvas(image.columns, image.rows).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, image.columns, image.rows);
  const values = new Int16Array(image.rows * image.columns);
  for (let index = 0; index < values.length; index += 1) values[index] = data[index * 4];
  return { unit: "grey", values };
}

/** The lines of the outline, which the service gives as SVG; drawn on the canvas they stay thin at any zoom. */
function outlineOf(text) {
  const lungs = /class="lungs" d="([^"]*)"/.exec(text);
  const crop = /class="crop" x="(-?\d+)" y="(-?\d+)" width="(\d+)" height="(\d+)"/.exec(text);
  if (!lungs || !crop) return null;
  return { lungs: new Path2D(lungs[1]), crop: crop.slice(1).map(Number) };
}
