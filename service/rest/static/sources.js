// Where images come from: chosen, dropped and pasted files, and the samples of the service.

import { Failure } from "./service.js";

const $ = (id) => document.getElementById(id);

/** Calls `open` with the files that the user chooses, pastes or drops. */
export function listenForFiles(open) {
  for (const id of ["file", "file-again", "camera", "camera-again"]) {
    $(id).addEventListener("change", (event) => {
      open(event.target.files);
      event.target.value = ""; // so that the same file can be chosen again
    });
  }
  document.addEventListener("paste", (event) => open(event.clipboardData.files));
  let depth = 0; // dragenter and dragleave also come from children
  const over = (change) => {
    depth = Math.max(0, depth + change);
    $("drop").classList.toggle("over", depth > 0);
  };
  document.addEventListener("dragenter", () => over(1));
  document.addEventListener("dragleave", () => over(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    over(-depth);
    open(event.dataTransfer.files);
  });
}

/** Lists samples; `open` is called with the pressed one and its button. */
export function listSamples(samples, open) {
  $("samples").hidden = samples.length === 0;
  $("sample-list").replaceChildren(
    ...samples.map((sample) => {
      const image = document.createElement("img");
      Object.assign(image, { src: sample.url, alt: sample.name, loading: "lazy" });
      const button = document.createElement("button");
      Object.assign(button, { type: "button", title: sample.name });
      button.setAttribute("aria-pressed", "false");
      button.append(image);
      button.addEventListener("click", () => open(sample, button));
      const item = document.createElement("li");
      item.append(button);
      return item;
    }),
  );
}

/** Marks the button of the opened sample; null: none is open. */
export function pressSample(button) {
  for (const other of $("sample-list").querySelectorAll("button")) {
    other.setAttribute("aria-pressed", String(other === button));
  }
}

/** Refuses a file that is larger than the service accepts, before it is sent. */
export function checkSize(image, limit) {
  if (limit && image.size > limit) {
    const mib = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
    throw new Failure(
      "This image is too large",
      `It has ${mib(image.size)}; at most ${mib(limit)} are accepted.`,
    );
  }
}

/** Reads one byte: browsers report an unreadable body as an error of the network. */
export async function checkReadable(image) {
  try {
    await image.slice(0, 1).arrayBuffer();
  } catch {
    throw new Failure(
      "This file cannot be read",
      "It is a folder, or was changed or removed since it was chosen.",
    );
  }
}
