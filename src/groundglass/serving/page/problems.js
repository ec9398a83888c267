// What went wrong, in a line that says what to do next.

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
export function problemOf(status, text, retryAfter) {
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
  "too-many-requests": ["Too many uploads at once.", "retry"],
  "too-slow": ["The upload took too long to classify.", "choose"],
  "not-ready": ["The service is ending.", "retry"],
  "no-such-result": ["The service has forgotten this upload. What is on the page stays; pictures and exports need the files again.", "again"],
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
