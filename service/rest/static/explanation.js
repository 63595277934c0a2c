// The dialog that shows where the attention of one detection looks (format=explain).

import { clean, isolate } from "./names.js";
import { Failure, explain } from "./service.js";

const $ = (id) => document.getElementById(id);

export class Explanation {
  /** @param {HTMLDialogElement} dialog */
  constructor(dialog) {
    this.dialog = dialog;
    this.run = null; // the request in flight
    this.repeat = () => {};
    this.url = "";
    $("explanation-close").addEventListener("click", () => dialog.close());
    $("explanation-again").addEventListener("click", () => this.repeat());
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close(); // outside of its content
    });
    dialog.addEventListener("close", () => this.clear());
  }

  /**
   * Opens the dialog and loads the figure.
   * @param {Blob} image
   * @param {number} threshold of the request whose detections are shown
   * @param {{label: string, score: number}} detection
   * @param {number} number of the detection in that request's result; 1 is the first one
   */
  open(image, threshold, detection, number) {
    const name = `${isolate(clean(detection.label))} ${detection.score.toFixed(2)}`;
    $("explanation-title").textContent = `Where the attention of ${name} looks`;
    $("explanation-figure").alt = `Sampled points and their weights for ${name}`;
    this.repeat = () => this.load(image, threshold, number);
    this.dialog.showModal();
    this.load(image, threshold, number);
  }

  async load(image, threshold, number) {
    this.clear();
    const run = new AbortController();
    this.run = run;
    $("explanation-working").hidden = false;
    try {
      const figure = await explain(image, threshold, number, run.signal);
      if (this.run === run) this.show(figure);
    } catch (error) {
      if (this.run === run) this.showProblem(error);
    }
  }

  show(figure) {
    this.clear();
    this.url = URL.createObjectURL(figure);
    $("explanation-figure").src = this.url;
    $("explanation-link").href = this.url;
    $("explanation-result").hidden = false;
  }

  showProblem(error) {
    this.clear();
    const known = error instanceof Failure;
    const title = known ? error.title : "Something went wrong on this page";
    $("explanation-problem-title").textContent = title;
    $("explanation-problem-detail").textContent = known ? error.detail : String(error);
    $("explanation-again").hidden = !(known && error.retryAfter);
    $("explanation-problem").hidden = false;
  }

  /** Cancels the request in flight and removes what is shown. */
  clear() {
    this.run?.abort();
    this.run = null;
    for (const part of ["working", "result", "problem"]) $(`explanation-${part}`).hidden = true;
    $("explanation-figure").removeAttribute("src");
    URL.revokeObjectURL(this.url);
    this.url = "";
  }
}
