// The control of the options `tile` and `overlap`, where the service offers them.

const $ = (id) => document.getElementById(id);

export class Tiling {
  /** @param {() => void} onChange called when the user has chosen other valid options */
  constructor(onChange) {
    Object.assign(this, { onChange, offered: false, hasImage: false, query: "" });
    $("tile").addEventListener("change", () => this.change());
    for (const id of ["tile-width", "tile-height", "overlap"]) {
      $(id).addEventListener("change", () => this.change());
    }
    $("overlap").addEventListener("input", () => this.showOverlap());
  }

  /** Offers tiles, unless the service has turned them off. */
  offer({ input, limits }) {
    this.offered = limits.max_tiles > 0;
    if (!$("tile-width").value) $("tile-width").value = input.longest_side;
    if (!$("tile-height").value) $("tile-height").value = input.shortest_side;
    if (!this.offered) $("tile").value = "";
    this.show();
    this.query = this.chosen() ?? "";
  }

  /** Shows the control while there is an image, and as long as tiles are chosen. */
  show(hasImage = this.hasImage) {
    this.hasImage = hasImage;
    const tile = $("tile").value;
    $("tiling").hidden = !this.offered || !(hasImage || tile);
    $("tile-size").hidden = tile !== "size";
    for (const input of $("tile-size").querySelectorAll("input")) input.disabled = tile !== "size";
    $("tile-overlap").hidden = tile === "";
    this.showOverlap();
  }

  /** The options in a URL, such as "tile=640x480&overlap=0.20"; null for an invalid size. */
  chosen() {
    const tile = $("tile").value;
    if (tile === "") return "";
    if (tile === "size" && !this.sides().every((side) => side.checkValidity())) return null;
    const size = this.sides().map((side) => Number(side.value)).join("x");
    return `tile=${tile === "size" ? size : tile}&overlap=${Number($("overlap").value).toFixed(2)}`;
  }

  change() {
    this.show();
    const query = this.chosen();
    if (query === null) {
      this.sides().find((side) => !side.checkValidity()).reportValidity();
      return;
    }
    if (query === this.query) return;
    this.query = query;
    this.onChange();
  }

  sides() {
    return [$("tile-width"), $("tile-height")];
  }

  showOverlap() {
    $("overlap-value").textContent = `${Math.round(100 * $("overlap").value)} %`;
  }
}
