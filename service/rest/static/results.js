// The panel of results: detections, timings, and the request as a curl command.

import { classColour } from "./boxes.js";
import { currentKey } from "./keys.js";
import { clean } from "./names.js";

const STAGES = {
  read: "upload",
  decode: "decode",
  queue: "wait",
  assemble: "batch",
  copy: "copy",
  forward: "network",
  postprocess: "select",
};

/**
 * Lists detections.
 * @param {HTMLElement} list
 * @param {object[]} detections
 * @param {(detection: object | null) => void} onPoint called with the one under the pointer
 * @param {((detection: object) => void) | null} onExplain null: the service does not explain
 */
export function listDetections(list, detections, onPoint, onExplain) {
  list.replaceChildren(
    ...detections.map((detection, index) => {
      const swatch = element("span", "swatch", String(index + 1));
      swatch.style.background = classColour(detection.class_id);
      const { xmin, ymin, xmax, ymax } = detection.box;
      const size = `${Math.round(xmax - xmin)} × ${Math.round(ymax - ymin)} px`;
      const place = `at ${Math.round(xmin)}, ${Math.round(ymin)}`;
      const name = element("span", "name");
      name.append(element("bdi", "", clean(detection.label)), " ");
      name.append(element("span", "where", `${size} ${place}`));
      const score = detection.score.toFixed(2);
      const button = element("button", "pick");
      Object.assign(button, { type: "button", title: clean(detection.label) });
      button.append(swatch, name, element("span", "score", score));
      button.addEventListener("click", () => onPoint(detection));
      const item = element("li");
      item.append(button);
      if (onExplain !== null) item.append(explainButton(detection, score, onExplain));
      item.addEventListener("pointerenter", () => onPoint(detection));
      item.addEventListener("pointerleave", () => onPoint(null));
      item.addEventListener("focusin", () => onPoint(detection));
      item.addEventListener("focusout", () => onPoint(null));
      return item;
    }),
  );
}

function explainButton(detection, score, onExplain) {
  const button = element("button", "button small", "Explain");
  Object.assign(button, { type: "button", title: "Show where the attention looks" });
  button.setAttribute("aria-label", `Explain ${clean(detection.label)} ${score}`);
  button.addEventListener("click", () => onExplain(detection));
  return button;
}

/** Marks the row of one detection. */
export function lightRow(list, index) {
  [...list.children].forEach((item, row) => {
    item.classList.toggle("lit", row === index);
    if (row === index && !item.matches(":hover, :focus-within")) {
      item.scrollIntoView({ block: "nearest" });
    }
  });
}

/** The number of detections, in words. */
export function summarise(detections) {
  if (detections.length === 0) return "Nothing found";
  return detections.length === 1 ? "1 object found" : `${detections.length} objects found`;
}

/** A description of the boxes for screen readers. */
export function describe(detections) {
  const counts = new Map();
  for (const { label } of detections) counts.set(label, (counts.get(label) ?? 0) + 1);
  const parts = [...counts].map(([label, count]) => `${count} ${clean(label)}`);
  return parts.length ? `The image with boxes around ${parts.join(", ")}` : "The image, no boxes";
}

/** Fills the bar and the legend of the stages. */
export function showTimings(bar, legend, total, timings) {
  total.textContent = milliseconds(timings.total);
  const stages = Object.entries(STAGES).filter(([stage]) => stage in timings);
  bar.replaceChildren(
    ...stages.map(([stage]) => {
      const part = element("span", `stage-${stage}`);
      part.style.flexGrow = String(timings[stage]);
      return part;
    }),
  );
  legend.replaceChildren(
    ...stages.map(([stage, name]) => {
      const row = element("div");
      row.append(
        element("i", `stage-${stage}`),
        element("dt", "", name),
        element("dd", "", milliseconds(timings[stage])),
      );
      return row;
    }),
  );
}

// The shell replaces it: the key itself is not shown.
const KEY_OPTION = '-H "Authorization: Bearer $LITE_DETR_API_KEY"';

/** The same request as a curl command, for a POSIX shell; a key is in its variable. */
export function curlLine(fileName, mediaType, threshold, options) {
  const query = [`threshold=${threshold.toFixed(2)}`, options].filter(Boolean).join("&");
  const url = new URL(`detect?${query}`, document.baseURI).href;
  const type = mediaType || "application/octet-stream";
  return [
    "curl --data-binary",
    quote(`@${fileName}`),
    "-H",
    quote(`Content-Type: ${type}`),
    ...(currentKey() ? [KEY_OPTION] : []),
    quote(url),
  ].join(" ");
}

function quote(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function milliseconds(value) {
  return `${value >= 100 ? Math.round(value) : value.toFixed(1)} ms`;
}

/** A new element with a class and a text. */
export function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}
