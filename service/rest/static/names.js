// Names of classes and files in any script, as text.

// Controls of the writing direction: a name with one would reorder the text around it.
const CONTROLS = /[\p{Cc}\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]+/gu;
const graphemes = new Intl.Segmenter(undefined, { granularity: "grapheme" });
const EASE = 300; // code units; no more of a name fits anywhere

/** A name on one line, without controls of the writing direction. */
export function clean(name) {
  return name.replaceAll(CONTROLS, " ").replaceAll(/\s+/gu, " ").trim();
}

/** The name with a writing direction of its own, for text that has no elements. */
export function isolate(name) {
  return `\u2068${name}\u2069`;
}

/** The longest start of a name that fits, with an ellipsis; characters are not split. */
export function shorten(name, fits) {
  if (name.length <= EASE && fits(name)) return name;
  const parts = [...graphemes.segment(name.slice(0, EASE))].map(({ segment }) => segment);
  let [low, high] = [0, parts.length]; // `low` parts fit, or none do
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (fits(`${parts.slice(0, middle).join("")}…`)) low = middle;
    else high = middle - 1;
  }
  return `${parts.slice(0, low).join("")}…`;
}

/** The start of a file name for something made of a file, without its ending. */
export function fileStem(name) {
  const stem = clean(name).replace(/\.[^.]{1,5}$/, "").replaceAll(/[/\\:*?"<>|]+/g, "_");
  return shorten(stem.replace(/^[.\s]+|[.\s]+$/g, ""), (text) => text.length <= 80) || "image";
}
