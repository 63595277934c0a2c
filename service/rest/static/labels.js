// Places the labels of boxes where they hide neither each other nor what is in the boxes.

const MOST_COVERED = 0.08; // the share of a box that a label may hide
const GAP_PX = 2;

/**
 * @typedef {{left: number, top: number, width: number, height: number}} Rectangle
 */

/**
 * Places one label per box: outside of all boxes if there is room, else where it hides little of
 * any box, else only the number of its row.
 * @param {Rectangle[]} boxes the best first
 * @param {number[]} wide the widths of the labels
 * @param {number[]} narrow the widths of the numbers
 * @param {number} height of labels and numbers
 * @param {Rectangle} bounds of the drawing
 * @returns {(Rectangle & {short: boolean} | null)[]} `short`: only the number has room; null:
 *   nothing has, or the box is outside of the bounds
 */
export function placeLabels(boxes, wide, narrow, height, bounds) {
  const visible = boxes.map((box) => clip(box, bounds));
  const obstacles = visible.filter((box) => box !== null);
  const taken = [];
  return visible.map((box, index) => {
    if (box === null) return null;
    const place =
      leastCovering(box, wide[index], MOST_COVERED, false) ??
      leastCovering(box, narrow[index], 1, true);
    if (place !== null) taken.push(place);
    return place;
  });

  /** The free place that hides the least, if it hides at most `most` of any box. */
  function leastCovering(box, width, most, short) {
    const free = candidates(box, width, height, bounds).filter(
      (place) => within(place, bounds) && !taken.some((other) => overlap(place, other) > 0),
    );
    let best = null;
    let least = Infinity;
    for (const place of free) {
      const covered = mostCovered(place, obstacles, least);
      if (covered < least) [best, least] = [place, covered];
      if (least === 0) break;
    }
    return best !== null && least <= most ? { ...best, short } : null;
  }
}

/** The largest share of a box that a label hides; stops early at `limit`. */
function mostCovered(place, boxes, limit) {
  let most = 0;
  for (const box of boxes) {
    most = Math.max(most, overlap(place, box) / Math.max(1, box.width * box.height));
    if (most >= limit) break;
  }
  return most;
}

/** Places for a label, the preferred first: above, below, at the sides, in the corners. */
function candidates({ left, top, width: w, height: h }, width, height, bounds) {
  const [right, bottom] = [left + w, top + h];
  const shift = Math.min(Math.max(left, bounds.left), bounds.left + bounds.width - width);
  const [above, below, middle] = [top - height - GAP_PX, bottom + GAP_PX, left + (w - width) / 2];
  const points = [
    [left, above], [shift, above], [right - width, above], [middle, above],
    [left, below], [shift, below], [right - width, below], [middle, below],
    [right + GAP_PX, top], [right + GAP_PX, bottom - height],
    [left - width - GAP_PX, top], [left - width - GAP_PX, bottom - height],
    [left + GAP_PX, top + GAP_PX], [right - width - GAP_PX, top + GAP_PX],
    [left + GAP_PX, bottom - height - GAP_PX], [right - width - GAP_PX, bottom - height - GAP_PX],
    [middle, top + (h - height) / 2],
  ];
  return points.map(([x, y]) => ({ left: x, top: y, width, height }));
}

function clip(box, bounds) {
  const left = Math.max(box.left, bounds.left);
  const top = Math.max(box.top, bounds.top);
  const width = Math.min(box.left + box.width, bounds.left + bounds.width) - left;
  const height = Math.min(box.top + box.height, bounds.top + bounds.height) - top;
  return width > 0 && height > 0 ? { left, top, width, height } : null;
}

function within(place, bounds) {
  return (
    place.left >= bounds.left &&
    place.top >= bounds.top &&
    place.left + place.width <= bounds.left + bounds.width &&
    place.top + place.height <= bounds.top + bounds.height
  );
}

/** The area that two rectangles share. */
export function overlap(one, other) {
  const across =
    Math.min(one.left + one.width, other.left + other.width) - Math.max(one.left, other.left);
  const down =
    Math.min(one.top + one.height, other.top + other.height) - Math.max(one.top, other.top);
  return across > 0 && down > 0 ? across * down : 0;
}
