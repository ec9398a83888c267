// Window and level: which values are shown from black to white.

/** @typedef {{level: number, width: number}} Window */

export const PRESETS = {
  hounsfield: [
    ["Lung", { level: -600, width: 1500 }],
    ["Soft tissue", { level: 40, width: 400 }],
    ["Bone", { level: 400, width: 1800 }],
    ["Everything", { level: 0, width: 4000 }],
  ],
  grey: [
    ["As the file has it", { level: 127.5, width: 255 }],
    ["Dark", { level: 64, width: 128 }],
    ["Bright", { level: 192, width: 128 }],
  ],
};

/** How much the window changes for one pixel of a drag. */
const PER_PIXEL = { hounsfield: 3, grey: 0.5 };
const LIMITS = { hounsfield: 6000, grey: 600 };

/** The window after a drag: to the right is wider, down is darker as the level rises. */
export function dragged(window, unit, right, down) {
  const step = PER_PIXEL[unit];
  return bounded({ level: window.level + down * step, width: window.width + right * step }, unit);
}

/** A window that can be drawn, in whole units. */
export function bounded({ level, width }, unit) {
  const limit = LIMITS[unit];
  const whole = (value) => (Number.isFinite(value) ? Math.round(value * 2) / 2 : 0);
  return { level: Math.min(Math.max(whole(level), -limit), limit), width: Math.min(Math.max(whole(width), 1), limit) };
}

/**
 * Draws values as grey.
 * @param {Int16Array} values row by row.
 * @param {Window} window
 * @param {ImageData} image of as many pixels.
 */
export function paint(values, { level, width }, image) {
  const pixels = new Uint32Array(image.data.buffer);
  const low = level - width / 2;
  const scale = 255 / width;
  for (let index = 0; index < values.length; index += 1) {
    const grey = Math.min(Math.max((values[index] - low) * scale + 0.5, 0), 255) & 255;
    pixels[index] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
  }
}
