// The part of the image that is shown: zoom and pan by wheel, pointers, keys and buttons.

const STEP = 1.4; // of the buttons and keys
const PAN_PX = 60; // of the arrow keys
const LEAST_MOST_ZOOM = 8;
const PIXEL_PX = 4; // at the largest zoom a pixel of the image has at least this size

export class View {
  /**
   * @param {HTMLElement} viewer contains the image
   * @param {HTMLImageElement} image
   * @param {(view: {scale: number, x: number, y: number}) => void} onChange called with the CSS
   *   pixels per pixel of the image and the place of its top left corner
   */
  constructor(viewer, image, onChange) {
    Object.assign(this, { viewer, image, onChange, zoom: 1, x: 0, y: 0 });
    this.size = { width: 1, height: 1 }; // of the image
    this.seen = { width: 1, height: 1 }; // of the viewer
    this.pointers = new Map();
    new ResizeObserver(() => this.resize()).observe(viewer);
    viewer.addEventListener("wheel", (event) => this.turnWheel(event), { passive: false });
    viewer.addEventListener("keydown", (event) => this.pressKey(event));
    viewer.addEventListener("pointerdown", (event) => this.pressPointer(event));
    viewer.addEventListener("pointermove", (event) => this.movePointer(event));
    for (const end of ["pointerup", "pointercancel"]) {
      viewer.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    }
  }

  /** Shows an image of this size as a whole. */
  show(width, height) {
    this.size = { width, height };
    this.viewer.style.aspectRatio = `${width} / ${height}`;
    this.reset();
  }

  /** Shows the whole image. */
  reset() {
    this.zoom = 1;
    this.resize();
  }

  get fit() {
    return Math.min(this.seen.width / this.size.width, this.seen.height / this.size.height, 1);
  }

  get mostZoom() {
    return Math.max(LEAST_MOST_ZOOM, PIXEL_PX / this.fit);
  }

  /** Zooms by a factor; the point of the image at x, y of the viewer stays there. */
  zoomBy(factor, x = this.seen.width / 2, y = this.seen.height / 2) {
    const before = this.zoom;
    this.zoom = Math.max(1, Math.min(before * factor, this.mostZoom));
    const ratio = this.zoom / before;
    this.moveTo(x - (x - this.x) * ratio, y - (y - this.y) * ratio);
  }

  zoomIn() {
    this.zoomBy(STEP);
  }

  zoomOut() {
    this.zoomBy(1 / STEP);
  }

  moveTo(x, y) {
    const scale = this.fit * this.zoom;
    // The image covers the viewer, or is in its middle where it is smaller.
    const hold = (at, shown, whole) =>
      whole <= shown ? (shown - whole) / 2 : Math.max(shown - whole, Math.min(at, 0));
    this.x = hold(x, this.seen.width, this.size.width * scale);
    this.y = hold(y, this.seen.height, this.size.height * scale);
    const { style } = this.image;
    style.width = `${this.size.width * scale}px`;
    style.height = `${this.size.height * scale}px`;
    style.transform = `translate(${this.x}px, ${this.y}px)`;
    this.viewer.classList.toggle("zoomed", this.zoom > 1);
    this.onChange({ scale, x: this.x, y: this.y });
  }

  /** Fits to the viewer's size; the middle of what is shown stays. */
  resize() {
    const scale = this.fit * this.zoom;
    const middle = [
      (this.seen.width / 2 - this.x) / scale,
      (this.seen.height / 2 - this.y) / scale,
    ];
    const { clientWidth: width, clientHeight: height } = this.viewer;
    if (!width || !height) return; // hidden
    this.seen = { width, height };
    const after = this.fit * this.zoom;
    this.moveTo(width / 2 - middle[0] * after, height / 2 - middle[1] * after);
  }

  place(event) {
    const { left, top } = this.viewer.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  }

  turnWheel(event) {
    const { deltaY, deltaMode, ctrlKey } = event; // with ctrlKey also pinches of a touchpad
    // With the whole image shown, the wheel scrolls the page where it can.
    if (!ctrlKey && this.zoom === 1 && (deltaY > 0 || window.scrollY > 0)) return;
    event.preventDefault();
    const pixels = deltaY * (deltaMode === 1 ? 33 : deltaMode === 2 ? 400 : 1);
    const step = Math.max(-200, Math.min(pixels, 200)) * (ctrlKey ? 0.01 : 0.003);
    this.zoomBy(Math.exp(-step), ...this.place(event));
  }

  pressKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return; // the browser's own zoom
    const moves = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    const move = moves[event.key];
    if (event.key === "+" || event.key === "=") this.zoomIn();
    else if (event.key === "-") this.zoomOut();
    else if (event.key === "0") this.reset();
    else if (move && this.zoom > 1) this.moveTo(this.x + move[0] * PAN_PX, this.y + move[1] * PAN_PX);
    else return;
    event.preventDefault();
  }

  pressPointer(event) {
    if (event.button !== 0) return;
    this.pointers.set(event.pointerId, this.place(event));
    event.target.setPointerCapture?.(event.pointerId);
  }

  movePointer(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const after = this.place(event);
    const [other] = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
    this.pointers.set(event.pointerId, after);
    if (other) this.pinch(before, after, other);
    else if (this.zoom > 1) this.moveTo(this.x + after[0] - before[0], this.y + after[1] - before[1]);
  }

  pinch(before, after, other) {
    const distance = ([x, y]) => Math.max(1, Math.hypot(x - other[0], y - other[1]));
    const middle = ([x, y]) => [(x + other[0]) / 2, (y + other[1]) / 2];
    const [from, to] = [middle(before), middle(after)];
    this.zoomBy(distance(after) / distance(before), ...from);
    this.moveTo(this.x + to[0] - from[0], this.y + to[1] - from[1]);
  }
}
