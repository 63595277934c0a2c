// Sends requests to the service. Every error becomes a `Failure` with a title and a detail.

export class Failure extends Error {
  constructor(title, detail, { status = 0, code = "", retryAfter = 0, automatic = false } = {}) {
    super(detail);
    this.title = title;
    this.detail = detail;
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter; // seconds; 0: a retry is not useful
    this.automatic = automatic; // the service has asked for a retry after this time
  }
}

const KEY_PLACE = "lite-detr-api-key"; // in sessionStorage: closing the tab deletes the key

/** Sends this API key with every request from now on. */
export function useKey(key) {
  sessionStorage.setItem(KEY_PLACE, key);
}

const TITLES = {
  invalid_image: "This image cannot be read",
  unsupported_image: "This file type is not supported",
  image_too_large: "This image is too large",
  overloaded: "The service is busy",
  not_ready: "The model is loading",
  shutting_down: "The service is shutting down",
  deadline_exceeded: "The deadline passed",
  inference_failed: "The model failed on this image",
  unauthenticated: "An API key is required",
  forbidden: "This API key is not sufficient",
};

/** The served model, from /v1/models. */
export async function getModel() {
  const models = await (await request("v1/models")).json();
  return models.models[0];
}

/** Sample photos: [{name, url, classes}]. */
export async function getSamples() {
  return (await (await request("samples")).json()).samples;
}

/** The samples that are for a model of these classes; "QR code" and "qr_code" are one class. */
export function samplesFor(samples, classes) {
  const plain = (name) => name.toLowerCase().replaceAll(/[\s_-]+/g, "");
  const known = new Set(classes.map(plain));
  return samples.filter(
    (sample) => sample.classes.length === 0 || sample.classes.some((name) => known.has(plain(name))),
  );
}

/** A file of the service. */
export async function getBlob(url) {
  return (await request(url)).blob();
}

/** All detections in an image with a score of at least `threshold`; `options` are more of them. */
export async function detect(image, threshold, options, signal) {
  const query = [`threshold=${threshold}`, options].filter(Boolean).join("&");
  return (await post(image, query, signal)).json();
}

/** The image in a format that every browser shows, without boxes. */
export async function render(image, signal) {
  return (await post(image, "format=image&threshold=1", signal)).blob();
}

/** A figure of where the attention of a detection looks; 1 is the first one. */
export async function explain(image, threshold, detection, signal) {
  const query = `format=explain&threshold=${threshold}&detection=${detection}`;
  return (await post(image, query, signal)).blob();
}

function post(image, query, signal) {
  // Without an image type the service recognizes the file by its content.
  const type = image.type.startsWith("image/") ? image.type : "application/octet-stream";
  const headers = { "Content-Type": type };
  return request(`detect?${query}`, { method: "POST", body: image, headers, signal });
}

async function request(url, options = {}) {
  const key = sessionStorage.getItem(KEY_PLACE);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(url, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The service cannot be reached", "Is it running? Is the network up?", {
      retryAfter: 1,
    });
  }
  if (response.ok) return response;
  let problem = {};
  try {
    problem = await response.json();
  } catch {
    // Not a response of the service but of a proxy: only its status is known.
  }
  const title = TITLES[problem.code] || problem.title || `Error ${response.status}`;
  const detail = sentence(problem.detail || response.statusText);
  const { status } = response;
  const asked = secondsUntil(response.headers.get("Retry-After"));
  throw new Failure(title, detail, {
    status,
    code: problem.code,
    retryAfter: asked || (status >= 500 ? 1 : 0),
    automatic: asked > 0 && [429, 503].includes(status),
  });
}

/** The seconds of a Retry-After header, which has a number or a date; 0: there is none. */
export function secondsUntil(header) {
  if (!header) return 0;
  const seconds = Number(header);
  if (Number.isFinite(seconds)) return Math.max(seconds, 0.1);
  return Math.max((Date.parse(header) - Date.now()) / 1000, 0.1) || 0;
}

function sentence(text) {
  if (!text) return "";
  const opened = text[0].toUpperCase() + text.slice(1);
  return /[.!?]$/.test(opened) ? opened : `${opened}.`;
}
