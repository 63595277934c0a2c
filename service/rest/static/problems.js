// The line that shows an error, and the form for the API key that an error can require.

import { Failure, useKey } from "./service.js";

const $ = (id) => document.getElementById(id);

/** Shows an error, with a hint after its detail; null hides the last one. */
export function showProblem(error, hint = "") {
  $("problem").hidden = error === null;
  if (error === null) return;
  const known = error instanceof Failure;
  $("problem-title").textContent = known ? error.title : "Something went wrong on this page";
  $("problem-detail").textContent = [known ? error.detail : String(error), hint].join(" ").trim();
  $("again").hidden = !(known && error.retryAfter) || hint !== "";
  if (known && [401, 403].includes(error.status)) {
    $("key-form").hidden = false;
    $("key").focus();
  }
}

/** Calls `useIt` when the user has given a key. */
export function listenForKey(useIt) {
  $("key-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    useKey($("key").value.trim());
    $("key").value = "";
    $("key-form").hidden = true;
    showProblem(null);
    try {
      await useIt();
    } catch (error) {
      showProblem(error);
    }
  });
}
