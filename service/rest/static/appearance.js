// Whether a browser may show an image otherwise than the service sees it.
//
// Browsers turn JPEG images by EXIF, as the service does. But they ignore an orientation in XMP and
// in the texts of PNG, some ignore EXIF in PNG and WebP, and they play animations, of which the
// service sees one image. An image is searched for these; see docs/api.md, "The page".

const PART_BYTES = 1 << 20; // searched at once
const OVERLAP_BYTES = 128; // of parts, for what is on both sides of an edge
const START_BYTES = 96;

const XMP_ORIENTATION = /tiff:Orientation(?:\s*=\s*["']|\s*>)\s*[2-8]/;
// By the start of a file, what the whole file may have.
const FORMATS = [
  [/^GIF8/, /^GIF8/], // may be animated
  [/^.PNG\r\n/s, /acTL|eXIf|Raw profile type (?:exif|APP1)|XML:com\.adobe\.xmp\0\x01/],
  [/^RIFF.{4}WEBP/s, /ANIM|EXIF/],
  [/^.{4}ftyp.{0,80}avis/s, /^.{4}ftyp/s], // animated AVIF
];

/**
 * Whether the pixels, or their orientation, may differ. True is no proof that they do.
 * @param {Blob} image
 */
export async function mayDiffer(image) {
  const start = await textOf(image.slice(0, START_BYTES));
  const pattern = FORMATS.find(([begins]) => begins.test(start))?.[1];
  for (let at = 0; at < image.size; at += PART_BYTES) {
    const part = await textOf(image.slice(at, at + PART_BYTES + OVERLAP_BYTES));
    if (XMP_ORIENTATION.test(part) || pattern?.test(part)) return true;
  }
  return false;
}

/** One character for each byte; those of ASCII are themselves. */
async function textOf(blob) {
  return new TextDecoder("latin1").decode(await blob.arrayBuffer());
}
