// Talks to the service. Every failure becomes a `Failure` with words for a person.

export class Failure extends Error {
  constructor(title, detail, { status = 0, code = "", retryAfter = 0 } = {}) {
    super(detail);
    this.title = title;
    this.detail = detail;
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter; // seconds; 0: trying again the same way makes no sense
  }
}

const KEY_PLACE = "lite-detr-api-key"; // of this tab alone: closing it forgets the key

/** Sends this API key with every request from now on. */
export function useKey(key) {
  sessionStorage.setItem(KEY_PLACE, key);
}

const TITLES = {
  invalid_image: "This photo cannot be read",
  unsupported_image: "This is not a photo that can be read",
  image_too_large: "This photo is too large",
  overloaded: "The service is busy just now",
  not_ready: "The model is still loading",
  shutting_down: "The service is shutting down",
  deadline_exceeded: "That took too long",
  inference_failed: "The model failed on this photo",
  unauthenticated: "An API key is needed",
  forbidden: "This API key does not open that",
};

/** The served model, as /v1/models tells. */
export async function getModel() {
  const models = await (await ask("v1/models")).json();
  return models.models[0];
}

/** Photos to try: [{name, url}]. */
export async function getSamples() {
  return (await (await ask("samples")).json()).samples;
}

/** A file of the service itself. */
export async function getBlob(url) {
  return (await ask(url)).blob();
}

/** Everything found in a photo from `threshold` up. */
export async function detect(photo, threshold, signal) {
  return (await post(photo, `threshold=${threshold}`, signal)).json();
}

/** The photo as a picture that any browser shows, without boxes. */
export async function render(photo, signal) {
  return (await post(photo, "format=image&threshold=1", signal)).blob();
}

function post(photo, query, signal) {
  // The service looks at the bytes and names what they are: better words than the type gets.
  const type = photo.type.startsWith("image/") ? photo.type : "application/octet-stream";
  const headers = { "Content-Type": type };
  return ask(`detect?${query}`, { method: "POST", body: photo, headers, signal });
}

async function ask(url, options = {}) {
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
    // Something between us and the service answered; its status is all there is.
  }
  const title = TITLES[problem.code] || problem.title || `Error ${response.status}`;
  const detail = sentence(problem.detail || response.statusText);
  const retryAfter = Number(response.headers.get("Retry-After")) || (response.status >= 500 ? 1 : 0);
  throw new Failure(title, detail, { status: response.status, code: problem.code, retryAfter });
}

function sentence(text) {
  if (!text) return "";
  const opened = text[0].toUpperCase() + text.slice(1);
  return /[.!?]$/.test(opened) ? opened : `${opened}.`;
}
