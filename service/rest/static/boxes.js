// Draws boxes over the image and reports which one is under the pointer.

// As in service/images/drawing.py, so that a class has one colour everywhere.
const CLASS_COLOURS = [
  "#ffb000", "#35c2ff", "#ff6e8a", "#3ddc84", "#c79bff",
  "#ffe14d", "#ff8f3f", "#7fe0d4", "#f48be0", "#b6d94c",
];
const INK = "#101418";
const FONT_PX = 13;
const LABEL_PAD = 4;

export function classColour(classId) {
  return CLASS_COLOURS[classId % CLASS_COLOURS.length];
}

export class Boxes {
  /**
   * @param {HTMLCanvasElement} canvas over the image, of the same size on the screen
   * @param {(detection: object | null) => void} onHover called with the detection under the pointer
   */
  constructor(canvas, onHover) {
    this.canvas = canvas;
    this.image = { width: 1, height: 1 };
    this.detections = [];
    this.lit = null;
    new ResizeObserver(() => this.draw()).observe(canvas);
    const find = (event) => onHover(this.at(event.offsetX, event.offsetY));
    canvas.addEventListener("pointermove", find);
    canvas.addEventListener("pointerdown", find);
    canvas.addEventListener("pointerleave", () => onHover(null));
  }

  /** Shows detections of an image of {width, height} pixels. */
  show(image, detections) {
    this.image = image;
    this.detections = detections;
    if (!detections.includes(this.lit)) this.lit = null;
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
      const [left, top, width, height] = this.place(detection.box);
      return x >= left && x <= left + width && y >= top && y <= top + height;
    });
    const area = ({ box }) => (box.xmax - box.xmin) * (box.ymax - box.ymin);
    return inside.sort((one, other) => area(one) - area(other))[0] ?? null;
  }

  place(box) {
    const across = this.canvas.clientWidth / this.image.width;
    const down = this.canvas.clientHeight / this.image.height;
    return [
      box.xmin * across,
      box.ymin * down,
      (box.xmax - box.xmin) * across,
      (box.ymax - box.ymin) * down,
    ];
  }

  draw() {
    const { canvas } = this;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    if (this.lit) this.dim(pen, width, height);
    // The best are drawn last, over the others; the one pointed at over all.
    const order = [...this.detections].reverse();
    if (this.lit) order.push(this.lit);
    for (const detection of order) this.outline(pen, detection);
    const taken = [];
    const labelled = this.lit ? [this.lit] : this.detections;
    for (const detection of labelled) this.label(pen, detection, taken, width, height);
  }

  dim(pen, width, height) {
    pen.fillStyle = "rgb(10 14 20 / 45%)";
    pen.fillRect(0, 0, width, height);
    pen.clearRect(...this.place(this.lit.box));
  }

  outline(pen, detection) {
    const [left, top, width, height] = this.place(detection.box);
    const line = detection === this.lit ? 3.5 : 2.5;
    pen.globalAlpha = this.lit && detection !== this.lit ? 0.45 : 1;
    pen.lineJoin = "round";
    pen.lineWidth = line + 2;
    pen.strokeStyle = INK;
    pen.strokeRect(left, top, width, height);
    pen.lineWidth = line;
    pen.strokeStyle = classColour(detection.class_id);
    pen.strokeRect(left, top, width, height);
    pen.globalAlpha = 1;
  }

  label(pen, detection, taken, width, height) {
    pen.font = `600 ${FONT_PX}px system-ui, sans-serif`;
    const text = `${detection.label} ${detection.score.toFixed(2)}`;
    const wide = pen.measureText(text).width + 2 * LABEL_PAD;
    const high = FONT_PX + 2 * LABEL_PAD;
    const [left, top, boxWidth, boxHeight] = this.place(detection.box);
    const places = [
      [left, top - high], [left, top + boxHeight], [left, top], [left + boxWidth - wide, top - high],
    ].map(([x, y]) => [
      Math.max(0, Math.min(x, width - wide)),
      Math.max(0, Math.min(y, height - high)),
    ]);
    const free = ([x, y]) =>
      !taken.some(([u, v, w, h]) => x < u + w && u < x + wide && y < v + h && v < y + high);
    const [x, y] = places.find(free) ?? places[0];
    taken.push([x, y, wide, high]);
    pen.fillStyle = classColour(detection.class_id);
    pen.beginPath();
    pen.roundRect(x, y, wide, high, 4);
    pen.fill();
    pen.fillStyle = INK;
    pen.textBaseline = "middle";
    pen.fillText(text, x + LABEL_PAD, y + high / 2 + 0.5);
  }
}
