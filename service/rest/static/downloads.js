// The result as files: the image with its boxes, and the JSON.

import { drawBoxes } from "./boxes.js";
import { fileStem } from "./names.js";
import { Failure } from "./service.js";

/** Saves the detections as the service returns them with the page's threshold. */
export function saveJson(name, result, detections) {
  const text = `${JSON.stringify({ ...result, detections }, null, 2)}\n`;
  save(new Blob([text], { type: "application/json" }), `${fileStem(name)}.detections.json`);
}

/**
 * Saves the image with its boxes as a PNG file of the image's size.
 * @param {string} name of the image's file
 * @param {HTMLImageElement} image
 * @param {{detections: object[], labels: boolean}} scene
 * @param {{width: number, height: number}} size of the image, in pixels
 * @param {number} scale CSS pixels per pixel of the image as the page shows it
 */
export async function savePng(name, image, { detections, labels }, { width, height }, scale) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const pen = canvas.getContext("2d");
  const unit = 1 / Math.min(scale, 1); // lines and letters are as large as on the page
  let blob = null;
  if (pen) {
    pen.drawImage(image, 0, 0, width, height);
    pen.scale(unit, unit);
    const view = { scale: 1 / unit, x: 0, y: 0 };
    const bounds = { left: 0, top: 0, width: width / unit, height: height / unit };
    drawBoxes(pen, { detections, labels, view, lit: null }, bounds);
    blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }
  if (blob === null) {
    throw new Failure(
      "The image is too large for this browser",
      "It cannot draw an image of this size; a request with format=image returns it drawn.",
    );
  }
  save(blob, `${fileStem(name)}.detections.png`);
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
