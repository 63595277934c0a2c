// The line that shows an error, and the form for the API key that an error can require.

import { Failure, useKey } from "./service.js";

const $ = (id) => document.getElementById(id);
let repeat = null; // of the shown error

/**
 * Shows an error; null hides the last one.
 * @param {Error | null} error
 * @param {{hint?: string, again?: (() => void) | null}} options `hint` follows the detail; `again`
 *   repeats what failed, which the button Retry offers where a retry is useful
 */
export function showProblem(error, { hint = "", again = null } = {}) {
  repeat = again;
  $("problem").hidden = error === null;
  if (error === null) return;
  const known = error instanceof Failure;
  $("problem-title").textContent = known ? error.title : "Something went wrong on this page";
  $("problem-detail").textContent = [known ? error.detail : String(error), hint].join(" ").trim();
  $("again").hidden = !(known && error.retryAfter && again);
  if (known && error.asksForKey) {
    $("key-form").hidden = false;
    $("key").focus();
  }
}

/** Makes the button Retry repeat what the shown error is of. */
export function listenForRetry() {
  $("again").addEventListener("click", () => {
    const again = repeat;
    showProblem(null);
    again?.();
  });
}

/** Calls `useIt` when the user has given a key that can be sent. */
export function listenForKey(useIt) {
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = $("key").value;
    $("key").value = "";
    $("key-form").hidden = true;
    showProblem(null);
    try {
      useKey(text);
    } catch (error) {
      showProblem(error);
      return;
    }
    useIt();
  });
}
