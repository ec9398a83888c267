// The page: files in, answers out, one slice at a time; a result is found again at its address.

import { byId, hideMessage, listenToKeys, showMessage } from "./dom.js";
import { listenForFiles, Progress } from "./files.js";
import { fromMarkdown } from "./markdown.js";
import { Cards, describeSeries, describeSlice } from "./panels.js";
import { Pixels } from "./pixels.js";
import { Result, summary } from "./result.js";
import { Api, inWords } from "./service.js";
import { Viewer } from "./viewer.js";

/** Milliseconds between two looks at a result that is still growing, at least. */
const LOOK = 400;
/** Milliseconds that the address waits for the slice to stay. */
const SETTLED = 300;
// Milliseconds; browsers fire a timer that is set to more at once.
const LONGEST_TIMER = 2 ** 31 - 1;
const ADDRESS = /^#([\w-]{16,64})(?:\/(\d+))?$/;

class Page {
  #api = new Api();
  #result = null;
  #current = null;
  #files = [];
  #upload = null;
  #touched = false;
  #looking = 0;
  #forgets = 0;
  #settles = 0;
  #tried = false;

  constructor() {
    this.progress = new Progress();
    this.cards = new Cards(this.#api, (slice) => this.choose(slice));
    this.viewer = new Viewer(new Pixels(this.#api), {
      moved: (slice) => this.#moved(slice),
      failed: (error) => this.#tell(error, () => this.viewer.step(0)),
    });
    byId("host").textContent = location.host;
    listenForFiles((chosen) => this.send(chosen));
    listenToKeys(this.#keys(), byId("keys"), () => byId("letters").checked);
    this.#listen();
  }

  /** Learns whether the service answers, and opens the result that the address names. */
  async begin() {
    try {
      this.#tellTested(await this.#api.json("/v2/model"));
      await this.#follow();
    } catch (error) {
      this.#tell(error, () => this.begin());
    }
  }

  /** Sends files and shows what comes. */
  async send(chosen) {
    this.#upload?.abort();
    const upload = new AbortController();
    this.#upload = upload;
    this.#files = chosen;
    this.#empty();
    this.progress.start(chosen);
    let address = "";
    let found = 0;
    try {
      await this.#api.upload(chosen, {
        sent: (share) => this.progress.sent(share),
        begun: (at) => (address = at),
        found: (rows) => {
          found += rows.length;
          this.progress.found(found);
          this.#look(address);
        },
      }, upload.signal);
      if (this.#upload !== upload) return;
      clearTimeout(this.#looking);
      history.pushState(null, "", `#${address.split("/").pop()}`);
      await this.#show(address);
      if (!this.#touched) this.choose(this.#result.strongest());
      byId("announce").textContent = `Done. ${summary(this.#result.predictions)}`;
    } catch (error) {
      if (this.#upload !== upload) return;
      if (error.kind !== "no-such-result") {
        this.#empty();
        await this.#follow().catch(() => {}); // what the address still names
      }
      if (error.name !== "AbortError" && this.#upload === upload) this.#tell(error, () => this.send(chosen));
    } finally {
      if (this.#upload === upload) {
        clearTimeout(this.#looking);
        this.#looking = 0;
        this.#upload = null;
        this.progress.end();
      }
    }
  }

  /** Shows one slice of the result. */
  choose(slice) {
    if (!slice) return;
    this.#touched = this.#touched || Boolean(this.#current);
    this.viewer.open(this.#result.address, slice.stack, slice.place);
  }

  /** Looks at a result that is still growing, now and then: the more it takes, the less often. */
  #look(address) {
    // A link that is followed meanwhile stays followed.
    if (this.#looking || (this.#result && !address.endsWith(this.#result.kept.id))) return;
    const [started, upload] = [performance.now(), this.#upload];
    this.#looking = -1;
    this.#show(address).catch(() => {}).finally(() => {
      if (!upload || this.#upload !== upload) return;
      const pause = Math.max(LOOK, 6 * (performance.now() - started));
      this.#looking = setTimeout(() => {
        this.#looking = 0;
        if (this.#upload === upload) this.#look(address);
      }, pause);
    });
  }

  /** Shows the result of an address as far as it has come. */
  async #show(address, number = null) {
    const upload = this.#upload;
    const document = await this.#api.json(address);
    if (this.#upload !== upload) return;
    const other = this.#result?.kept.id !== document.kept.id;
    this.#result = new Result(document);
    if (other) this.#turn(true); // once: whoever wants to open other files meanwhile may
    const { predictions } = this.#result;
    const current = predictions[number ?? this.#current?.number] ?? this.#result.stacks[0]?.slices[0];
    if (!current) return;
    this.cards.show(this.#result.address, this.#result.stacks);
    this.#current = null;
    this.viewer.open(this.#result.address, current.stack, current.place);
    this.#tellHowLong(document.kept.seconds_left);
  }

  /** Shows what the address of the page names. */
  async #follow() {
    const [, id, number] = ADDRESS.exec(location.hash) ?? [];
    if (!id || this.#result?.kept.id === id) {
      this.#turn(Boolean(id));
      if (number) this.choose(this.#result.predictions[Number(number)]);
      return;
    }
    // Files that were sent are another result's; and one that is forgotten leaves the page as it is.
    this.#files = [];
    await this.#api.json(`/v2/results/${id}`);
    this.#empty();
    await this.#show(`/v2/results/${id}`, number ? Number(number) : null);
    if (!number) this.choose(this.#result.strongest());
  }

  #moved(slice) {
    if (this.#current?.stack !== slice.stack) describeSeries(slice.stack, this.#result.meaning, (each) => this.choose(each));
    if (this.#current && this.#current !== slice) this.#touched = true;
    this.#current = slice;
    this.cards.mark(slice);
    describeSlice(slice);
    for (const button of byId("carriers").children) button.setAttribute("aria-pressed", String(Number(button.dataset.number) === slice.number));
    clearTimeout(this.#settles);
    // Browsers bear few changes of the address a second.
    this.#settles = setTimeout(() => !this.#upload && history.replaceState(null, "", `#${this.#result.kept.id}/${slice.number}`), SETTLED);
  }

  /** Shows the slices, or where files go in. */
  #turn(slices) {
    byId("intake").hidden = slices;
    byId("workspace").hidden = !slices;
    byId("open-upload").hidden = !slices;
    byId("back").hidden = !this.#result;
  }

  #empty() {
    this.#result = this.#current = null;
    this.#touched = false;
    clearTimeout(this.#forgets);
    clearTimeout(this.#settles);
    clearTimeout(this.#looking);
    this.#looking = 0;
    hideMessage();
    this.viewer.clear();
    this.#turn(false);
  }

  #tellHowLong(seconds) {
    const end = new Date(Date.now() + seconds * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    byId("kept").textContent = `The service keeps it until ${end}, or until its memory is full; until then the address of this page leads back here.`;
    clearTimeout(this.#forgets);
    this.#forgets = setTimeout(() => (byId("kept").textContent = "The service has forgotten the pixels."), Math.min(seconds * 1000, LONGEST_TIMER));
  }

  /** On whom the model was tested, as its bundle has it. */
  #tellTested({ metrics, training }) {
    const { test } = metrics ?? {};
    const { value, low, high } = test?.metrics?.auc ?? {};
    // Without an interval there were slices of one label, or of one patient.
    if (typeof low !== "number") return;
    const source = training?.data?.[0] ? ` of ${training.data[0].replace(/\.csv$/, "").toUpperCase()}` : "";
    byId("tested").textContent = `Tested on ${test.slices} slices of ${test.patients} patients${source}: AUC ${value.toFixed(2)} (${low.toFixed(2)} to ${high.toFixed(2)}).`;
  }

  /** Says what went wrong, and offers the way on. */
  #tell(error, retry) {
    const { text, way } = inWords(error);
    if (way === "token") {
      this.#askForToken(retry);
      return;
    }
    const again = this.#files.length ? ["Send the files again", () => this.send(this.#files)] : ["Choose files", () => byId("choose-files").click()];
    const ways = { retry: [["Try again", retry]], again: [again], choose: [["Choose files", () => byId("choose-files").click()]], none: [] };
    showMessage(text, ways[way]);
  }

  /** Asks for the service's token; it goes to the API's object and nowhere else. */
  #askForToken(retry) {
    const [dialog, form, input, error] = ["token-dialog", "token-form", "token", "token-error"].map(byId);
    if (dialog.open) return;
    error.textContent = this.#tried ? "The service did not accept this token." : "";
    let entered = false;
    form.onsubmit = (event) => {
      event.preventDefault();
      // A header holds neither line breaks nor more than ASCII, nor does a token.
      this.#api.token = input.value.trim().replace(/[^\x20-\x7e]/g, "?");
      entered = true;
      dialog.close();
    };
    dialog.onclose = () => {
      input.value = "";
      this.#tried = entered;
      if (entered) retry();
      else showMessage("The service answers only with its token.", [["Enter the token", () => this.#askForToken(retry)]]);
    };
    dialog.showModal();
    input.focus();
  }

  async #showCard() {
    byId("card-dialog").showModal();
    if (byId("card").childElementCount) return;
    try {
      const text = await this.#api.text("/v2/model", { accept: "text/markdown" });
      byId("card").replaceChildren(...fromMarkdown(text || "The bundle has no model card."));
    } catch (error) {
      byId("card-dialog").close();
      this.#tell(error, () => this.#showCard());
    }
  }

  /** Works on something behind a button that cannot be pressed meanwhile. */
  async #busy(button, work) {
    button.disabled = true;
    try {
      await work();
    } catch (error) {
      this.#tell(error, () => this.#busy(button, work));
    } finally {
      button.disabled = false;
    }
  }

  /** Classifies the synthetic series of the package as if it had been chosen. */
  async #try() {
    this.progress.say("Drawing a synthetic series.");
    const content = await this.#api.blob("/v2/synthetic.zip").finally(() => this.progress.end());
    await this.send([{ file: content, name: "Synthetic chest CT.zip" }]);
  }

  /** Whether what is shown is still being sent; it has no address until it is complete. */
  get #growing() {
    return Boolean(this.#upload) && !location.hash.startsWith(`#${this.#result?.kept.id}`);
  }

  async #forget() {
    if (this.#growing) this.#upload.abort();
    await this.#api.request(this.#result.address, { method: "DELETE" }).catch((error) => {
      if (error.kind !== "no-such-result") throw error;
    });
    this.#empty();
    history.replaceState(null, "", "#");
  }

  #listen() {
    const clicked = (id, act) => byId(id).addEventListener("click", () => act(byId(id)));
    clicked("open-upload", () => this.#turn(false));
    clicked("back", () => this.#turn(true));
    clicked("try", (button) => this.#busy(button, () => this.#try()));
    clicked("open-card", () => this.#showCard());
    clicked("open-keys", () => byId("keys-dialog").showModal());
    clicked("cancel", () => this.#upload?.abort());
    clicked("forget", (button) => this.#busy(button, () => this.#forget()));
    byId("copy").hidden = !navigator.clipboard; // as where the page comes over http from another machine
    clicked("copy", (button) => this.#busy(button, () => navigator.clipboard.writeText(new URL(`#${this.#result.kept.id}/${this.#current.number}`, location.href).href)));
    for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
    for (const button of document.querySelectorAll("[data-export]")) {
      button.addEventListener("click", () => {
        if (this.#growing) showMessage("Wait for the last slice: a file would hold a part of the predictions.");
        else this.#busy(button, () => this.#api.save(this.#result.kept.links, button.dataset.export));
      });
    }
    window.addEventListener("popstate", () => this.#follow().catch((error) => this.#tell(error, () => this.#follow())));
  }

  /** The series, or the single pictures, before or after the present one. */
  #leap(by) {
    const { stacks } = this.#result ?? { stacks: [] };
    const stack = stacks[stacks.indexOf(this.#current?.stack) + by];
    if (stack) this.choose(stack.slices[0]);
  }

  /** The next slice that carries the answer. */
  #carrier() {
    const buttons = [...byId("carriers").children];
    const at = buttons.findIndex((button) => button.getAttribute("aria-pressed") === "true");
    buttons[(at + 1) % buttons.length]?.click();
  }

  /** Keys, a line of the list each: what they are, how they are shown, what they do. */
  #keys() {
    const { viewer } = this;
    const move = (right, down) => () => viewer.focused.pan(right, down);
    const measure = (right, down, whole) => () => viewer.moveMeasure(right, down, whole);
    const arrows = (before, shown, what, act) => ({
      shown, what, keys: { [`${before}ArrowLeft`]: act(-1, 0), [`${before}ArrowRight`]: act(1, 0), [`${before}ArrowUp`]: act(0, -1), [`${before}ArrowDown`]: act(0, 1) },
    });
    const step = (by) => () => viewer.stepFocused(by);
    return [
      arrows("", "Arrows, wheel", "slice by slice; the wheel over a plane, or arrows in it, moves that plane", (right, down) => step(right + down)),
      { shown: "Page up, Page down", what: "ten slices", keys: { PageUp: step(-10), PageDown: step(10) } },
      { shown: "Home, End", what: "first, last slice", keys: { Home: step(-Infinity), End: step(Infinity) } },
      { shown: "N B", what: "next series, the one before", keys: { n: () => this.#leap(1), b: () => this.#leap(-1) } },
      { shown: "C", what: "next slice that carries the answer", keys: { c: () => this.#carrier() } },
      { shown: "Space", what: "cine", keys: { " ": () => viewer.play() } },
      { shown: "1 2 3 4", what: "window: lung, mediastinum, bone, all", keys: Object.fromEntries([0, 1, 2, 3].map((number) => [String(number + 1), () => viewer.preset(number)])) },
      { shown: "Left drag", what: "window: right is wider, down is darker; or the tool that is chosen", keys: {} },
      { shown: "W S Z P", what: "tool: window, scroll, zoom, pan", keys: Object.fromEntries(Object.entries({ w: "window", s: "scroll", z: "zoom", p: "pan" }).map(([key, tool]) => [key, () => viewer.tool(tool)])) },
      { shown: "Right drag, + −", what: "zoom; Ctrl and wheel as well", keys: { "+": () => viewer.focused.zoom(1.25), "=": () => viewer.focused.zoom(1.25), "-": () => viewer.focused.zoom(0.8) } },
      arrows("Shift+", "Middle drag, Shift + arrows", "move the slice; Shift and drag as well", (right, down) => move(-40 * right, -40 * down)),
      { shown: "0, double click", what: "fit", keys: { 0: () => viewer.focused.fit() } },
      { shown: "L O", what: "lesions, outline of the lungs on or off", keys: { l: () => viewer.toggle("lesions"), o: () => viewer.toggle("lungs") } },
      { shown: "[ ]", what: "fill of the lesions fainter, stronger", keys: { "[": () => viewer.changeFill(-10), "]": () => viewer.changeFill(10) } },
      { shown: "M", what: "coronal and sagittal planes", keys: { m: () => viewer.togglePlanes() } },
      { shown: "R E X", what: "tool: ruler, region with mean and spread, crosshair of the planes", keys: { r: () => viewer.tool("ruler"), e: () => viewer.tool("roi"), x: () => byId("tool-cross").disabled || viewer.tool("cross") } },
      { shown: "A", what: "with ruler or region: put one in the middle", keys: { a: () => viewer.place() } },
      arrows("Alt+", "Alt + arrows", "move the end of the last measurement; with Shift all of it", (right, down) => measure(2 * right, 2 * down, false)),
      arrows("Alt+Shift+", "", "", (right, down) => measure(2 * right, 2 * down, true)),
      { shown: "Delete", what: "remove the last measurement of the slice", keys: { Delete: () => viewer.removeMeasure(), Backspace: () => viewer.removeMeasure() } },
      { shown: "One finger, two fingers", what: "scroll; zoom and move", keys: {} },
      { shown: "I", what: "model card", keys: { i: () => this.#showCard() } },
      { shown: "?", what: "this list", keys: { "?": () => byId("keys-dialog").showModal() } },
    ];
  }
}

new Page().begin();
