// All requests to the service. The token lives here, in memory, and goes out in a header only.

import { Problem, problemOf } from "./problems.js";

const UPLOAD = "/v2/predictions?keep=true";
const LINES = "application/x-ndjson";

export class Api {
  #token = "";

  /** The token that every request carries from now on. */
  set token(value) {
    this.#token = value;
  }

  /** Requests one address; anything but success is a Problem. */
  async request(path, { signal, method = "GET", accept = "*/*", keepalive = false } = {}) {
    let answer;
    try {
      answer = await fetch(path, { method, signal, keepalive, headers: { ...this.#headers(), Accept: accept }, credentials: "omit", cache: "no-store", referrerPolicy: "no-referrer" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("unreachable", String(error.message));
    }
    if (answer.ok) return answer;
    throw problemOf(answer.status, await answer.text().catch(() => ""), answer.headers.get("Retry-After"));
  }

  async json(path, options) {
    return (await this.request(path, options)).json();
  }

  async text(path, options) {
    return (await this.request(path, options)).text();
  }

  async blob(path, options) {
    return (await this.request(path, options)).blob();
  }

  /** Makes the service forget a result; also while the page is being closed. */
  async forget(address) {
    await this.request(address, { method: "DELETE", keepalive: true }).catch(() => {});
  }

  /**
   * Sends files. An XMLHttpRequest, as only that tells how much was sent.
   * @param {{file: File, name: string}[]} files
   * @param {{sent: (share: number) => void, begun: (address: ?string) => void, found: (rows: object[]) => void}} listeners
   * @param {AbortSignal} signal
   * @returns {Promise<void>} ends after the last prediction.
   */
  upload(files, listeners, signal) {
    const form = new FormData();
    for (const { file, name } of files) form.append("files", file, name);
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      const lines = new Lines(request, listeners);
      request.open("POST", UPLOAD);
      for (const [name, value] of Object.entries(this.#headers())) request.setRequestHeader(name, value);
      request.setRequestHeader("Accept", LINES);
      request.upload.onprogress = (event) => listeners.sent(event.total ? event.loaded / event.total : 0);
      request.onreadystatechange = request.onprogress = () => lines.take();
      request.onload = () => lines.end(resolve, reject);
      request.onerror = () => reject(lines.lost());
      request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
      signal.addEventListener("abort", () => request.abort());
      request.send(form);
    });
  }

  #headers() {
    return this.#token ? { Authorization: `Bearer ${this.#token}` } : {};
  }
}

/** The lines of an answer as they come. */
class Lines {
  constructor(request, listeners) {
    Object.assign(this, { request, listeners, taken: 0, begun: false, problem: null });
  }

  take() {
    const { request } = this;
    if (request.readyState < XMLHttpRequest.LOADING || request.status !== 200) return;
    if (!this.begun) {
      this.begun = true;
      this.listeners.begun(request.getResponseHeader("Content-Location"));
    }
    const end = request.responseText.lastIndexOf("\n") + 1;
    if (end <= this.taken) return;
    const rows = request.responseText.slice(this.taken, end).trimEnd().split("\n").map((line) => JSON.parse(line));
    this.taken = end;
    // An answer that breaks off says why in its last line.
    const broken = rows.findIndex((row) => "detail" in row && "type" in row);
    if (broken >= 0) this.problem = problemOf(rows[broken].status, JSON.stringify(rows.splice(broken)[0]), null);
    if (rows.length) this.listeners.found(rows);
  }

  end(resolve, reject) {
    const { request } = this;
    this.take();
    if (this.problem) reject(this.problem);
    else if (request.status === 200) resolve();
    else reject(problemOf(request.status, request.responseText, request.getResponseHeader("Retry-After")));
  }

  lost() {
    return this.problem ?? new Problem(this.begun ? "broken-off" : "lost-upload", "");
  }
}
