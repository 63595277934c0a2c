// Draws boxes over the image and reports which one is under the pointer.

import { placeLabels } from "./labels.js";
import { clean, isolate, shorten } from "./names.js";

// As in service/images/drawing.py, so that a class has one colour everywhere.
const CLASS_COLOURS = [
  "#ffb000", "#35c2ff", "#ff6e8a", "#3ddc84", "#c79bff",
  "#ffe14d", "#ff8f3f", "#7fe0d4", "#f48be0", "#b6d94c",
];
const INK = "#101418";
const FONT = '600 13px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif';
const LABEL_HEIGHT_PX = 20;
const LABEL_PAD_PX = 4;
const LABEL_MAX_PX = 220;

export function classColour(classId) {
  return CLASS_COLOURS[classId % CLASS_COLOURS.length];
}

export class Boxes {
  /**
   * @param {HTMLCanvasElement} canvas over the viewer, of its size
   * @param {(detection: object | null) => void} onHover called with the detection under the pointer
   */
  constructor(canvas, onHover) {
    this.canvas = canvas;
    this.detections = [];
    this.lit = null;
    this.labels = true;
    this.view = { scale: 1, x: 0, y: 0 };
    const find = (event) => {
      if (event.type === "pointermove" && event.buttons) return; // the image is being moved
      onHover(this.at(event.offsetX, event.offsetY));
    };
    canvas.addEventListener("pointermove", find);
    canvas.addEventListener("click", find); // also the tap of a finger
    canvas.addEventListener("pointerleave", () => onHover(null));
  }

  /** Shows detections, whose boxes are in pixels of the image. */
  show(detections) {
    this.detections = detections;
    if (!detections.includes(this.lit)) this.lit = null;
    this.draw();
  }

  /**
   * Draws for a view.
   * @param {{scale: number, x: number, y: number}} view CSS pixels per pixel of the image, and the
   *   place of its top left corner
   */
  look(view) {
    this.view = view;
    this.draw();
  }

  /** Shows or hides the labels of detections that are not pointed at. */
  showLabels(labels) {
    this.labels = labels;
    this.draw();
  }

  /** Sets one detection off from the others; null: none. */
  light(detection) {
    if (this.lit === detection) return;
    this.lit = detection;
    this.draw();
  }

  /** The smallest box at a point of the canvas, in CSS pixels. */
  at(x, y) {
    const inside = this.detections.filter((detection) => {
      const { left, top, width, height } = place(detection.box, this.view);
      return x >= left && x <= left + width && y >= top && y <= top + height;
    });
    const area = ({ box }) => (box.xmax - box.xmin) * (box.ymax - box.ymin);
    return inside.sort((one, other) => area(one) - area(other))[0] ?? null;
  }

  draw() {
    const { canvas } = this;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    if (this.lit) {
      pen.fillStyle = "rgb(10 14 20 / 45%)";
      pen.fillRect(0, 0, width, height);
      const { left, top, width: w, height: h } = place(this.lit.box, this.view);
      pen.clearRect(left, top, w, h);
    }
    drawBoxes(pen, this, { left: 0, top: 0, width, height });
  }
}

/**
 * Draws outlines and labels.
 * @param {CanvasRenderingContext2D} pen
 * @param {{detections: object[], lit: object | null, labels: boolean, view: object}} scene
 * @param {import("./labels.js").Rectangle} bounds that labels stay in
 */
export function drawBoxes(pen, { detections, lit, labels, view }, bounds) {
  // The best are drawn last, over the others; the one pointed at over all.
  const order = [...detections].reverse();
  if (lit) order.push(lit);
  for (const detection of order) {
    pen.globalAlpha = lit && detection !== lit ? 0.45 : 1;
    outline(pen, place(detection.box, view), detection, detection === lit ? 3.5 : 2.5);
  }
  pen.globalAlpha = 1;
  pen.font = FONT;
  pen.direction = "ltr";
  pen.textBaseline = "middle";
  if (lit) {
    const number = detections.indexOf(lit) + 1;
    const [label] = layOut(pen, [lit], view, bounds);
    drawLabel(pen, label ?? fallback(pen, lit, view, bounds), lit, number);
  } else if (labels) {
    layOut(pen, detections, view, bounds).forEach((label, index) => {
      if (label) drawLabel(pen, label, detections[index], index + 1);
    });
  }
}

function layOut(pen, detections, view, bounds) {
  const width = (text) => Math.ceil(pen.measureText(text).width) + 2 * LABEL_PAD_PX;
  return placeLabels(
    detections.map(({ box }) => place(box, view)),
    detections.map((detection) => width(labelText(pen, detection))),
    detections.map((_, index) => Math.max(LABEL_HEIGHT_PX, width(String(index + 1)))),
    LABEL_HEIGHT_PX,
    bounds,
  ).map((label) => (label?.short && detections.length === 1 ? null : label));
}

/** The label of the only detection shown, where no place is free: at its corner. */
function fallback(pen, detection, view, bounds) {
  const { left, top } = place(detection.box, view);
  const width = Math.ceil(pen.measureText(labelText(pen, detection)).width) + 2 * LABEL_PAD_PX;
  return {
    left: Math.max(bounds.left, Math.min(left, bounds.left + bounds.width - width)),
    top: Math.max(bounds.top, Math.min(top, bounds.top + bounds.height - LABEL_HEIGHT_PX)),
    width,
    height: LABEL_HEIGHT_PX,
    short: false,
  };
}

/** The name and the score; isolated, so that a right-to-left name leaves the score at its place. */
function labelText(pen, { label, score }) {
  const fits = (text) => pen.measureText(text).width <= LABEL_MAX_PX;
  return `${isolate(shorten(clean(label), fits))} ${score.toFixed(2)}`;
}

function drawLabel(pen, { left, top, width, height, short }, detection, number) {
  pen.fillStyle = classColour(detection.class_id);
  pen.beginPath();
  pen.roundRect(left, top, width, height, 4);
  pen.fill();
  pen.fillStyle = INK;
  pen.textAlign = "center";
  const text = short ? String(number) : labelText(pen, detection);
  pen.fillText(text, left + width / 2, top + height / 2 + 0.5);
}

function outline(pen, { left, top, width, height }, detection, line) {
  pen.lineJoin = "round";
  pen.lineWidth = line + 2;
  pen.strokeStyle = INK;
  pen.strokeRect(left, top, width, height);
  pen.lineWidth = line;
  pen.strokeStyle = classColour(detection.class_id);
  pen.strokeRect(left, top, width, height);
}

/** Where a box is in a view. */
function place({ xmin, ymin, xmax, ymax }, { scale, x, y }) {
  return {
    left: x + xmin * scale,
    top: y + ymin * scale,
    width: (xmax - xmin) * scale,
    height: (ymax - ymin) * scale,
  };
}
