// All requests to the service, and what goes wrong with them in words.
//
// The token lives here, in memory, and goes out in a header only.

const UPLOAD = "/v2/predictions?keep=true";
const LINES = "application/x-ndjson";
const EXPORTS = { csv: "predictions.csv", json: "predictions.json", jsonl: "predictions.jsonl", report: "report.zip" };
/** Milliseconds after which a saved file is surely read; the browser does not say when. */
const SAVED = 60_000;

/** An answer that is none (RFC 9457), or no answer at all. */
export class Problem extends Error {
  /**
   * @param {string} kind last part of the problem's type, or `unreachable`, `broken-off`.
   * @param {string} detail
   * @param {number} status of HTTP; 0 for none.
   * @param {?number} retryAfter seconds.
   */
  constructor(kind, detail, status = 0, retryAfter = null) {
    super(detail);
    Object.assign(this, { kind, detail, status, retryAfter });
  }
}

/** The problem that an answer's content tells of. */
function problemOf(status, text, retryAfter) {
  const seconds = retryAfter && /^\d+$/.test(retryAfter) ? Number(retryAfter) : null;
  try {
    const { type, detail } = JSON.parse(text);
    return new Problem(String(type).split(":").pop(), String(detail), status, seconds);
  } catch {
    return new Problem("unknown", `The service, or something before it, answered with status ${status}.`, status, seconds);
  }
}

const TOO_MUCH = "Choose fewer files, or send them in several uploads.";

// What to do: `choose` other files, `retry` the same, send files `again`, enter the `token`, or nothing.
const KNOWN = {
  "unreachable": ["The service cannot be reached. See that it runs and that you are connected.", "retry"],
  "lost-upload": ["The connection was lost while the files were sent. The service may have stopped, or takes no upload of this size.", "retry"],
  "broken-off": ["The connection was lost before the last prediction came.", "retry"],
  "unauthorized": ["The service does not accept the token.", "token"],
  "upload-too-large": ["Too large.", "choose", TOO_MUCH],
  "too-many-files": ["Too many files.", "choose", TOO_MUCH],
  "too-many-slices": ["Too many slices.", "choose", TOO_MUCH],
  "unsupported-media-type": ["No image.", "choose"],
  "invalid-request": ["The service refuses the upload.", "choose"],
  "upload-too-slow": ["The upload was too slow.", "retry"],
  "busy": ["The service is busy.", "retry"],
  "too-slow": ["The upload took too long to classify.", "choose"],
  "not-ready": ["The service is ending.", "retry"],
  "no-such-result": ["The service has forgotten this result. What is on the page stays; pictures and exports need the files again.", "again"],
  "no-such-slice": ["The service had no memory left to keep the pixels of this slice.", "none"],
};
const SAYS_IT_ALL = new Set(["unreachable", "lost-upload", "broken-off", "unauthorized", "no-such-result", "no-such-slice"]);

/**
 * A problem as people read it.
 * @param {Problem|Error} problem
 * @returns {{text: string, way: "choose"|"retry"|"again"|"token"|"none"}}
 */
export function inWords(problem) {
  if (!(problem instanceof Problem)) return { text: `The page failed: ${problem.message}`, way: "none" };
  const [title, way, advice] = KNOWN[problem.kind] ?? [problem.status >= 500 ? "The service failed." : "", "retry"];
  const parts = [title, SAYS_IT_ALL.has(problem.kind) ? "" : problem.detail, advice ?? ""];
  if (problem.retryAfter !== null) parts.push(`It asks to wait ${problem.retryAfter} s.`);
  return { text: parts.filter(Boolean).join(" "), way };
}
export class Api {
  #token = "";

  /** The token that every request carries from now on. */
  set token(value) {
    this.#token = value;
  }

  /** Requests one address; anything but success is a Problem. */
  async request(path, { signal, method = "GET", accept = "*/*" } = {}) {
    let answer;
    try {
      answer = await fetch(path, { method, signal, headers: { ...this.#headers(), Accept: accept }, credentials: "omit", cache: "no-store", referrerPolicy: "no-referrer" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("unreachable", String(error.message));
    }
    if (answer.ok) return answer;
    throw problemOf(answer.status, await answer.text().catch(() => ""), answer.headers.get("Retry-After"));
  }

  json = async (path, options) => (await this.request(path, options)).json();
  text = async (path, options) => (await this.request(path, options)).text();
  blob = async (path, options) => (await this.request(path, options)).blob();
  bytes = async (path, options) => (await this.request(path, options)).arrayBuffer();

  /** Fetches one kind of export of a result and hands it to the browser as a file. */
  async save(links, kind) {
    const url = URL.createObjectURL(await this.blob(links[kind === "json" ? "self" : kind]));
    Object.assign(document.createElement("a"), { href: url, download: EXPORTS[kind] }).click();
    setTimeout(() => URL.revokeObjectURL(url), SAVED);
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
    const request = new XMLHttpRequest();
    let [taken, begun, problem] = [0, false, null];
    const take = () => {
      if (request.readyState < XMLHttpRequest.LOADING || request.status !== 200) return;
      if (!begun) listeners.begun(request.getResponseHeader("Content-Location"));
      begun = true;
      const end = request.responseText.lastIndexOf("\n") + 1;
      if (end <= taken) return;
      const rows = request.responseText.slice(taken, end).trimEnd().split("\n").map((line) => JSON.parse(line));
      taken = end;
      // An answer that breaks off says why in its last line.
      const broken = rows.findIndex((row) => "detail" in row && "type" in row);
      if (broken >= 0) problem = problemOf(rows[broken].status, JSON.stringify(rows.splice(broken)[0]), null);
      if (rows.length) listeners.found(rows);
    };
    return new Promise((resolve, reject) => {
      request.open("POST", UPLOAD);
      for (const [name, value] of Object.entries({ ...this.#headers(), Accept: LINES })) request.setRequestHeader(name, value);
      request.upload.onprogress = (event) => listeners.sent(event.total ? event.loaded / event.total : 0);
      request.onreadystatechange = request.onprogress = take;
      request.onload = () => {
        take();
        if (problem) reject(problem);
        else if (request.status === 200) resolve();
        else reject(problemOf(request.status, request.responseText, request.getResponseHeader("Retry-After")));
      };
      request.onerror = () => reject(problem ?? new Problem(begun ? "broken-off" : "lost-upload", ""));
      request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
      signal.addEventListener("abort", () => request.abort());
      request.send(form);
    });
  }

  #headers() {
    return this.#token ? { Authorization: `Bearer ${this.#token}` } : {};
  }
}
