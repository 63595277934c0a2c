// The list of several images: thumbnails with the number of detections, or the error.

import { clean } from "./names.js";
import { element, summarise } from "./results.js";

const THUMBNAIL_PX = 160;

export class Files {
  /**
   * @param {HTMLElement} list
   * @param {(item: import("./requests.js").Item) => void} onOpen called with the pressed item
   */
  constructor(list, onOpen) {
    Object.assign(this, { list, onOpen, buttons: new Map() });
  }

  /** Lists items. */
  show(items) {
    this.buttons = new Map(items.map((item) => [item, this.button(item)]));
    this.list.replaceChildren(
      ...[...this.buttons.values()].map((button) => {
        const entry = element("li");
        entry.append(button);
        return entry;
      }),
    );
    this.drawThumbnails(items);
  }

  button(item) {
    const button = element("button");
    const ending = /\.([^.]{1,5})$/.exec(item.name)?.[1] ?? "";
    button.append(
      element("span", "thumbnail", ending.toUpperCase()),
      element("span", "badge", "…"),
      element("bdi", "", clean(item.name)),
    );
    Object.assign(button, { type: "button", title: clean(item.name) });
    button.addEventListener("click", () => this.onOpen(item));
    return button;
  }

  /** Marks the opened item. */
  open(item) {
    for (const [other, button] of this.buttons) {
      button.setAttribute("aria-pressed", String(other === item));
      if (other === item) this.reveal(button);
    }
  }

  /** Scrolls the list, and not the page, to a button. */
  reveal(button) {
    const [seen, place] = [this.list.getBoundingClientRect(), button.getBoundingClientRect()];
    if (place.left < seen.left) this.list.scrollLeft -= seen.left - place.left;
    if (place.right > seen.right) this.list.scrollLeft += place.right - seen.right;
  }

  /**
   * Shows the state of an item.
   * @param {import("./requests.js").Item} item
   * @param {object[]} detections that are shown
   */
  update(item, detections) {
    const button = this.buttons.get(item);
    if (!button) return;
    const { error } = item;
    const state = error ? error.title ?? "Error" : item.result ? summarise(detections) : "Waiting";
    const badge = button.querySelector(".badge");
    badge.textContent = error ? "!" : item.result ? String(detections.length) : "…";
    badge.classList.toggle("bad", Boolean(error));
    button.setAttribute("aria-label", `${clean(item.name)}: ${state}`);
    button.title = `${clean(item.name)}: ${state}`;
  }

  /** Draws one after the other: a decoded image can be large. */
  async drawThumbnails(items) {
    for (const item of items) {
      const button = this.buttons.get(item);
      if (!button) return; // other items are listed
      try {
        const small = await createImageBitmap(item.image, { resizeWidth: THUMBNAIL_PX });
        const canvas = element("canvas", "thumbnail");
        [canvas.width, canvas.height] = [small.width, Math.min(small.height, 2 * THUMBNAIL_PX)];
        canvas.getContext("2d").drawImage(small, 0, 0);
        small.close();
        button.querySelector(".thumbnail").replaceWith(canvas);
      } catch {
        // The browser does not support this format: the ending of the name stays.
      }
    }
  }
}
