// The pixels behind a result: slices and planes with their outlines, kept while there is room, fetched ahead.

const AT_ONCE = 4;
const PLANES = 24;
/** Bytes kept; telephones have little memory. */
const ROOM = matchMedia("(pointer: coarse)").matches ? 96 * 2 ** 20 : 768 * 2 ** 20;
/** Outlines follow pixels in steps; their corners are cut by this many pixels, more where slices are thick. */
const CUT = { slice: 0.75, plane: 3 };

/**
 * @typedef {object} Raster
 * @property {number} width
 * @property {number} height
 * @property {Int16Array} values row by row.
 * @property {"hounsfield"|"grey"} unit of the values.
 * @property {?number[]} spacing mm between rows, and between columns.
 * @property {?number[][]} directions of rows and of columns in the patient (left, back, head).
 * @property {Path2D} lungs
 * @property {Path2D} lesions
 * @property {boolean} hasLungs
 * @property {boolean} hasLesions
 * @property {string} key of what is shown, for measurements.
 */

export class Pixels {
  #kept = new Map();
  #planes = new Map();
  #bytes = 0;
  #waiting = [];
  #running = 0;

  /** @param {import("./service.js").Api} api */
  constructor(api) {
    this.api = api;
  }

  /** Forgets everything, at once. */
  clear() {
    this.#kept.clear();
    this.#planes.clear();
    this.#waiting = [];
    this.#bytes = 0;
  }

  /** The raster of a slice, where it has been loaded. */
  get(slice) {
    return this.#kept.get(slice.image?.picture)?.raster ?? null;
  }

  /** @returns {Promise<Raster>} of a slice that has an image. */
  load(slice) {
    const key = slice.image.picture;
    const known = this.#kept.get(key);
    if (known) {
      this.#kept.delete(key);
      this.#kept.set(key, known);
      return known.promise;
    }
    const entry = { raster: null, promise: this.#slice(slice) };
    this.#kept.set(key, entry);
    entry.promise.then((raster) => this.#settle(key, entry, raster), () => this.#kept.get(key) === entry && this.#kept.delete(key));
    return entry.promise;
  }

  /** Fetches these slices next, in this order, as far as there is room; forgets what was to be fetched before. */
  ahead(slices) {
    const wanted = slices.filter((slice) => slice.image);
    const size = wanted.length ? wanted[0].image.rows * wanted[0].image.columns * 2 : 1;
    this.#waiting = wanted.slice(0, Math.floor((ROOM * 0.9) / size)).filter((slice) => !this.#kept.has(slice.image.picture));
    this.#next();
  }

  /**
   * A plane across a stack with a volume.
   * @param {string} address of the result.
   * @param {import("./result.js").Stack} stack
   * @param {"coronal"|"sagittal"} plane
   * @param {number} index
   * @returns {Promise<Raster>}
   */
  plane(address, stack, plane, index) {
    const base = `${address}/series/${stack.index}/${plane}/${index}`;
    const key = `${base} ${stack.slices.length}`; // a stack may still grow
    if (!this.#planes.has(key)) {
      this.#planes.set(key, this.#across(base, stack, plane));
      this.#planes.get(key).catch(() => this.#planes.delete(key));
      if (this.#planes.size > PLANES) this.#planes.delete(this.#planes.keys().next().value);
    }
    return this.#planes.get(key);
  }

  #next() {
    while (this.#running < AT_ONCE && this.#waiting.length) {
      this.#running += 1;
      const done = () => {
        this.#running -= 1;
        this.#next();
      };
      this.load(this.#waiting.shift()).then(done, () => {
        this.#waiting = [];
        done();
      });
    }
  }

  #settle(key, entry, raster) {
    if (this.#kept.get(key) !== entry) return;
    entry.raster = raster;
    this.#bytes += raster.values.byteLength;
    for (const [oldest, { raster: old }] of this.#kept) {
      if (this.#bytes <= ROOM || oldest === key) break;
      if (!old) continue;
      this.#bytes -= old.values.byteLength;
      this.#kept.delete(oldest);
    }
  }

  async #slice({ image }) {
    const [values, outlines] = await Promise.all([
      image.hounsfield ? this.api.bytes(image.hounsfield).then((bytes) => new Int16Array(bytes)) : this.#grey(image),
      this.api.text(image.outline),
    ]);
    const { spacing, orientation } = image;
    return {
      width: image.columns, height: image.rows, values, unit: image.hounsfield ? "hounsfield" : "grey", spacing,
      directions: orientation && [orientation.slice(0, 3), orientation.slice(3)], key: image.picture, ...contours(outlines, CUT.slice),
    };
  }

  /** Grey values of a picture that has no Hounsfield units. */
  async #grey(image) {
    const bitmap = await createImageBitmap(await this.api.blob(image.picture), { colorSpaceConversion: "none" });
    const context = new OffscreenCanvas(image.columns, image.rows).getContext("2d");
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
    const { data } = context.getImageData(0, 0, image.columns, image.rows);
    return Int16Array.from({ length: image.rows * image.columns }, (_, index) => data[index * 4]);
  }

  async #across(base, { slices, volume }, plane) {
    const [bytes, outlines] = await Promise.all([this.api.bytes(`${base}/hounsfield.raw`), this.api.text(`${base}/outline.svg`)]);
    const { spacing, orientation, rows, columns } = slices[0].image;
    const values = new Int16Array(bytes);
    const [width, across, along] = plane === "coronal" ? [columns, spacing[1], orientation.slice(0, 3)] : [rows, spacing[0], orientation.slice(3)];
    return {
      width, height: values.length / width, values, unit: "hounsfield",
      spacing: [volume.gap, across], directions: [along, [0, 0, -1]], key: base, ...contours(outlines, CUT.plane),
    };
  }
}

/** The outlines in an answer; the service gives them as SVG, and drawn on a canvas they stay thin at any zoom. */
function contours(svg, cut) {
  const [lungs, lesions] = ["lungs", "lesions"].map((name) => new RegExp(`class="${name}" d="([^"]*)"`).exec(svg)?.[1] ?? "");
  return { lungs: smooth(lungs, cut), lesions: smooth(lesions, cut), hasLungs: lungs !== "", hasLesions: lesions !== "" };
}

function smooth(polygons, cut) {
  const path = new Path2D();
  for (const polygon of polygons.split("Z")) {
    const points = polygon.replace(/[ML]/g, "").trim().split(/\s+/).map((pair) => pair.split(",").map(Number));
    if (points.length < 3) continue;
    const towards = ([x, y], [otherX, otherY]) => {
      const share = Math.min(0.5, cut / Math.hypot(otherX - x, otherY - y));
      return [x + (otherX - x) * share, y + (otherY - y) * share];
    };
    points.forEach((point, index) => {
      const before = towards(point, points.at(index - 1));
      if (index) path.lineTo(...before);
      else path.moveTo(...before);
      path.quadraticCurveTo(...point, ...towards(point, points[(index + 1) % points.length]));
    });
    path.closePath();
  }
  return path;
}
