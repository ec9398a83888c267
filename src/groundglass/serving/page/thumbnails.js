// Small pictures, fetched only while they are in sight, a few at a time, and drawn without a URL to revoke.

const SIDE = 192;
const AT_ONCE = 4;

export class Thumbnails {
  #waiting = [];
  #running = 0;
  #requested = new Map();

  /**
   * @param {import("./api.js").Api} api
   * @param {Element} root that scrolls.
   */
  constructor(api, root) {
    this.api = api;
    const seen = (entries) => entries.forEach((entry) => (entry.isIntersecting ? this.#want(entry.target) : this.#leave(entry.target)));
    this.observer = new IntersectionObserver(seen, { root, rootMargin: "300px" });
  }

  /** Looks after a canvas; its picture is found at `path()`, which may be null for none. */
  watch(canvas, path) {
    canvas.pathOf = path;
    this.observer.observe(canvas);
  }

  /** Looks again whether a canvas is in sight. */
  look(canvas) {
    this.observer.unobserve(canvas);
    this.observer.observe(canvas);
  }

  /** Forgets all canvases. */
  clear() {
    this.observer.disconnect();
    for (const controller of this.#requested.values()) controller.abort();
    this.#requested.clear();
    this.#waiting = [];
  }

  #want(canvas) {
    if (canvas.width > 1 || this.#requested.has(canvas)) return;
    this.#requested.set(canvas, new AbortController());
    this.#waiting.push(canvas);
    this.#next();
  }

  /** Out of sight: nothing is fetched for it any more, and its pixels are given back. */
  #leave(canvas) {
    this.#requested.get(canvas)?.abort();
    this.#requested.delete(canvas);
    canvas.width = canvas.height = 1;
  }

  #next() {
    while (this.#running < AT_ONCE && this.#waiting.length) {
      const canvas = this.#waiting.shift();
      const controller = this.#requested.get(canvas);
      if (!controller) continue;
      this.#running += 1;
      this.#draw(canvas, controller.signal).catch(() => {}).finally(() => {
        if (this.#requested.get(canvas) === controller) this.#requested.delete(canvas);
        this.#running -= 1;
        this.#next();
      });
    }
  }

  async #draw(canvas, signal) {
    const path = canvas.pathOf();
    if (!path) return;
    const blob = await this.api.blob(path, { signal });
    const whole = await createImageBitmap(blob);
    const scale = SIDE / Math.max(whole.width, whole.height);
    const [width, height] = [whole.width, whole.height].map((size) => Math.max(1, Math.round(size * scale)));
    if (!signal.aborted) {
      Object.assign(canvas, { width, height });
      const context = canvas.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.drawImage(whole, 0, 0, width, height);
    }
    whole.close();
  }
}
