// The page: files in, predictions out, one slice at a time.

import { Api } from "./api.js";
import { Curve } from "./curve.js";
import { describePrediction, describeSeries } from "./details.js";
import { byId, element } from "./dom.js";
import { download } from "./downloads.js";
import { arranged, counted, KINDS, seriesName, summary } from "./predictions.js";
import { Gallery } from "./gallery.js";
import { listenToKeys } from "./keyboard.js";
import { fromMarkdown } from "./markdown.js";
import { hideMessage, showMessage } from "./message.js";
import { inWords } from "./problems.js";
import { Result } from "./result.js";
import { SliceView } from "./slice_view.js";
import { askForToken } from "./token.js";
import { listenForFiles, Progress } from "./upload.js";

class Page {
  #api = new Api();
  #result = null;
  #current = null;
  #chosenFiles = [];
  #upload = null;
  #tried = false;
  #forgets = 0;

  constructor() {
    this.progress = new Progress();
    this.gallery = new Gallery(byId("gallery"), this.#api, (number) => this.show(number));
    this.curve = new Curve(byId("curve"), (number) => this.show(number));
    this.view = new SliceView(this.#api, (error) => this.#tell(error, () => this.show(this.#current?.number)));
    byId("host").textContent = location.host;
    listenForFiles((chosen) => this.send(chosen));
    this.#listen();
    listenToKeys(this.#keys(), byId("keys"), () => byId("letters").checked);
  }

  /** Learns whether the service answers, and whether it wants a token. */
  async begin() {
    try {
      await this.#api.json("/v2/model");
    } catch (error) {
      this.#tell(error, () => this.begin());
    }
  }

  /** Sends files and shows what comes; what was there before is forgotten. */
  async send(chosen) {
    this.#upload?.abort();
    const upload = new AbortController();
    this.#upload = upload;
    this.#chosenFiles = chosen;
    this.#empty();
    this.progress.start(chosen);
    try {
      await this.#api.upload(chosen, {
        sent: (share) => this.progress.sent(share),
        begun: (address) => this.#open(new Result(address)),
        found: (rows) => this.#found(rows),
      }, upload.signal);
      if (this.#upload === upload) await this.#complete();
    } catch (error) {
      if (this.#upload !== upload) return;
      this.#empty();
      if (error.name !== "AbortError") this.#tell(error, () => this.send(chosen));
    } finally {
      if (this.#upload === upload) this.#end();
    }
  }

  /** Shows one slice. */
  show(number, focus = false) {
    const prediction = this.#result?.predictions[number];
    if (!prediction || !this.#result.kept) return;
    const series = this.#result.seriesOf(prediction);
    const back = number === this.gallery.beside(-1);
    if (this.#current?.group !== prediction.group || !this.#current) this.#showSeries(prediction, series);
    this.#current = prediction;
    this.gallery.mark(number, focus);
    this.curve.mark(number);
    describePrediction(byId("prediction"), prediction, series);
    const following = this.#result.predictions[this.gallery.beside(back ? -1 : 1)];
    this.view.show(prediction, this.gallery.placeInWords(), following === prediction ? null : following);
  }

  #step(by) {
    const number = this.gallery.beside(by);
    if (number !== null) this.show(number);
  }

  #open(result) {
    this.#result = result;
    byId("workspace").classList.add("coming");
    this.#turn(true);
  }

  /** Shows the slices, or where files go in. */
  #turn(slices) {
    byId("intake").hidden = slices;
    byId("workspace").hidden = !slices;
    byId("open-upload").hidden = !slices;
    byId("back").hidden = !this.#result;
  }

  #found(rows) {
    this.gallery.add(this.#result.add(rows), (prediction) => this.#result.pictureOf(prediction));
    this.progress.found(this.#result.predictions.length, summary(this.#result.predictions));
  }

  async #complete() {
    const result = this.#result;
    const document = await this.#api.json(result.address);
    result.complete(document);
    byId("workspace").classList.remove("coming");
    byId("summary").textContent = summary(result.predictions);
    byId("announce").textContent = `Done. ${summary(result.predictions)}`;
    this.#offerFilters();
    this.#arrange();
    this.#tellHowLong(document.kept.seconds_left);
    this.show(this.gallery.beside(0), true);
  }

  #end() {
    this.#upload = null;
    this.progress.end();
  }

  #empty() {
    const before = this.#result?.address;
    if (before) this.#api.forget(before);
    this.#result = this.#current = null;
    clearTimeout(this.#forgets);
    hideMessage();
    this.gallery.clear();
    this.view.clear();
    this.#turn(false);
    byId("sort").value = "probability";
  }

  #showSeries(prediction, series) {
    describeSeries(byId("series"), series, this.#result.meaning);
    byId("curve").hidden = !series?.classified;
    this.curve.show(series ? this.#result.along(prediction.group) : [], series?.curve.axis ?? "order");
  }

  #offerFilters() {
    const counts = counted(this.#result.predictions);
    const kinds = Object.keys(KINDS).filter((kind) => kind === "all" || counts[kind]);
    byId("filter").replaceChildren(...kinds.map((kind) => element("option", { value: kind, text: `${KINDS[kind][0]} (${counts[kind]})` })));
    const { series } = this.#result;
    byId("series-choice").hidden = series.length < 2;
    byId("series-filter").replaceChildren(
      element("option", { value: "", text: "all" }),
      ...series.map((each, group) => element("option", { value: group, text: `${seriesName(each)} (${each.slices})` })),
    );
  }

  #arrange() {
    const group = byId("series-filter").value === "" ? null : Number(byId("series-filter").value);
    const shown = arranged(this.#result.predictions, { sort: byId("sort").value, kind: byId("filter").value, group });
    this.gallery.arrange(shown);
    byId("nothing").hidden = shown.length > 0;
    if (this.#current) this.show(shown.includes(this.#current) ? this.#current.number : this.gallery.beside(0));
  }

  #tellHowLong(seconds) {
    const end = new Date(Date.now() + seconds * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    byId("kept").textContent = `The service keeps the pixels until ${end}, or until its memory is full.`;
    this.#forgets = setTimeout(() => (byId("kept").textContent = "The service has forgotten the pixels."), seconds * 1000);
  }

  /** Says what went wrong, and offers the way on. */
  #tell(error, retry) {
    const { text, way } = inWords(error);
    if (way === "token") {
      this.#askForToken(retry);
      return;
    }
    const again = ["Send the files again", () => this.send(this.#chosenFiles)];
    const ways = { retry: [["Try again", retry]], again: [again], choose: [["Choose files", () => byId("choose-files").click()]], none: [] };
    showMessage(text, ways[way]);
  }

  async #askForToken(retry) {
    const entered = await askForToken(this.#api, this.#tried);
    this.#tried = entered;
    if (entered) retry();
    else showMessage("The service answers only with its token.", [["Enter the token", () => this.#askForToken(retry)]]);
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

  async #export(button) {
    button.disabled = true;
    try {
      await download(this.#api, this.#result.kept, button.dataset.export);
    } catch (error) {
      this.#tell(error, () => this.#export(button));
    } finally {
      button.disabled = false;
    }
  }

  #listen() {
    byId("open-upload").addEventListener("click", () => this.#turn(false));
    byId("back").addEventListener("click", () => this.#turn(true));
    byId("open-card").addEventListener("click", () => this.#showCard());
    byId("open-keys").addEventListener("click", () => byId("keys-dialog").showModal());
    byId("cancel").addEventListener("click", () => this.#upload?.abort());
    byId("previous").addEventListener("click", () => this.#step(-1));
    byId("next").addEventListener("click", () => this.#step(1));
    for (const id of ["sort", "filter", "series-filter"]) byId(id).addEventListener("change", () => this.#arrange());
    for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
    for (const button of document.querySelectorAll("[data-export]")) button.addEventListener("click", () => this.#export(button));
    window.addEventListener("pagehide", (event) => {
      if (!event.persisted && this.#result?.address) this.#api.forget(this.#result.address);
    });
  }

  /** Keys, a line of the list each. */
  #keys() {
    const { view } = this;
    const key = (keys, shown, what, act) => ({ keys, shown, what, act });
    const move = (right, down) => () => view.viewer.pan(right, down);
    return [
      [key(["ArrowRight", "ArrowDown"], "→ ↓", "next slice of the list", () => this.#step(1))],
      [key(["ArrowLeft", "ArrowUp"], "← ↑", "previous slice of the list", () => this.#step(-1))],
      [key(["PageDown"], "Page down", "ten slices on, or back", () => this.#step(10)), key(["PageUp"], "Page up", "", () => this.#step(-10))],
      [key(["Home"], "Home", "first or last slice", () => this.#step(-Infinity)), key(["End"], "End", "", () => this.#step(Infinity))],
      [key([","], ",", "one slice towards the feet, or the head", () => this.show(this.curve.beside(-1))), key(["."], ".", "", () => this.show(this.curve.beside(1)))],
      [key(["+", "="], "+", "zoom in, out", () => view.viewer.zoom(1.25)), key(["-"], "−", "", () => view.viewer.zoom(1 / 1.25))],
      [key(["0"], "0", "the whole slice", () => view.viewer.fit()), key([], "Double click", "")],
      [key(["Shift+ArrowLeft"], "Shift + arrows", "move the slice", move(40, 0)), key(["Shift+ArrowRight"], "", "", move(-40, 0)), key(["Shift+ArrowUp"], "", "", move(0, 40)), key(["Shift+ArrowDown"], "", "", move(0, -40))],
      [...["1", "2", "3", "4"].map((digit, index) => key([digit], digit, "window: lung, soft tissue, bone, everything", () => view.preset(index)))],
      [key(["w"], "W", "dragging changes the window, or pans", () => view.tool("window")), key(["p"], "P", "", () => view.tool("pan"))],
      [key(["h"], "H", "lesions on or off", () => view.toggle("lesions"))],
      [key(["["], "[", "lesions fainter, stronger", () => view.changeOpacity(-10)), key(["]"], "]", "", () => view.changeOpacity(10))],
      [key(["o"], "O", "outline on or off", () => view.toggle("outline"))],
      [key(["m"], "M", "model card", () => this.#showCard())],
      [key(["?"], "?", "this list", () => byId("keys-dialog").showModal())],
      [key([], "Wheel", "zoom about the pointer")],
      [key([], "Drag", "window (right: wider, down: darker), or pan; with Shift or another button always pan")],
    ];
  }
}

new Page().begin();
