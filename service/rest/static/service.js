// Sends requests to the service. Every error becomes a `Failure` with a title and a detail.

import { currentKey, faultOfKey, keepKey } from "./keys.js";

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

  /** Whether another API key may help. */
  get asksForKey() {
    return [401, 403].includes(this.status) || this.code === INVALID_KEY;
  }
}

const INVALID_KEY = "invalid_key"; // of this page: the key was not sent

/** Sends this API key with every request from now on; one that cannot be sent is a `Failure`. */
export function useKey(text) {
  const key = text.trim();
  const fault = faultOfKey(key);
  keepKey(fault ? "" : key);
  if (fault) throw new Failure("This API key cannot be used", fault, { code: INVALID_KEY });
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
  return (await request("v1/models", "json")).models[0];
}

/** Sample photos: [{name, url, classes}]. */
export async function getSamples() {
  return (await request("samples", "json")).samples;
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
export function getBlob(url, signal) {
  return request(url, "blob", { signal });
}

/** All detections in an image with a score of at least `threshold`; `options` are more of them. */
export function detect(image, threshold, options, signal) {
  const query = [`threshold=${threshold}`, options].filter(Boolean).join("&");
  return post(image, query, "json", signal);
}

/** The image as the service sees it: upright, in a format that every browser shows, no boxes. */
export function render(image, signal) {
  return post(image, "format=image&threshold=1", "blob", signal);
}

/** A figure of where the attention of a detection looks; 1 is the first one. */
export function explain(image, threshold, detection, signal) {
  const query = `format=explain&threshold=${threshold}&detection=${detection}`;
  return post(image, query, "blob", signal);
}

function post(image, query, kind, signal) {
  // Without an image type the service recognizes the file by its content.
  const type = image.type.startsWith("image/") ? image.type : "application/octet-stream";
  const headers = { "Content-Type": type };
  return request(`detect?${query}`, kind, { method: "POST", body: image, headers, signal });
}

/** The body of a response, as "json" or "blob". */
async function request(url, kind, options = {}) {
  const response = await respond(url, options);
  try {
    return await response[kind]();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const reason = "It was cut off, or something between this page and the service changed it.";
    throw new Failure("The response cannot be read", reason, { retryAfter: 1 });
  }
}

async function respond(url, options) {
  const key = currentKey();
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
