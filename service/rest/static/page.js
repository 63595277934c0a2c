// Brings the page together: a photo comes in, goes to the service, and its answer is shown.

import { Boxes } from "./boxes.js";
import * as results from "./results.js";
import { Failure, detect, getBlob, getModel, getSamples, render, useKey } from "./service.js";

const LOWEST_THRESHOLD = 0.05; // asked for once; the slider then selects without asking again
const MAX_RETRIES = 30; // while the model loads

const $ = (id) => document.getElementById(id);
const state = { photo: null, name: "", answer: null, lit: null, run: null, url: "", limits: null };
const boxes = new Boxes($("boxes"), light);

/** Takes a photo from wherever it came. */
async function open(photo, name) {
  state.run?.abort();
  const run = new AbortController();
  Object.assign(state, { photo, name, answer: null, run });
  showProblem(null);
  boxes.show({ width: 1, height: 1 }, []);
  $("panel").hidden = true;
  $("filename").textContent = name;
  $("drop").classList.remove("empty");
  for (const id of ["viewer", "under", "working"]) $(id).hidden = false;
  $("invite").hidden = true;
  try {
    checkSize(photo);
    const asked = ask(photo, run.signal);
    await Promise.all([asked, showPhoto(photo, asked, run.signal)]);
    state.answer = await asked;
    showAnswer();
  } catch (error) {
    if (error.name === "AbortError" || state.run !== run) return;
    if (!$("photo").complete || !$("photo").naturalWidth || $("viewer").hidden) invite();
    showProblem(error);
  } finally {
    if (state.run === run) $("working").hidden = true;
  }
}

/** Back to the start: there is no picture to show. */
function invite() {
  for (const id of ["viewer", "under", "panel"]) $(id).hidden = true;
  $("invite").hidden = false;
  $("drop").classList.add("empty");
  document.querySelector("main").classList.remove("shown");
}

/** Asks for detections, and waits for a model that still loads. */
async function ask(photo, signal) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await detect(photo, LOWEST_THRESHOLD, signal);
    } catch (error) {
      if (error.code !== "not_ready" || tries >= MAX_RETRIES) throw error;
      showProblem(error, "It is tried again by itself.");
      await new Promise((resolve) => setTimeout(resolve, 1000 * error.retryAfter));
      signal.throwIfAborted();
    }
  }
}

/** Shows the photo; one that the browser does not know is turned into a PNG by the service. */
async function showPhoto(photo, asked, signal) {
  const image = $("photo");
  const load = (blob) => {
    URL.revokeObjectURL(state.url);
    state.url = URL.createObjectURL(blob);
    image.src = state.url;
    return image.decode();
  };
  try {
    await load(photo);
  } catch {
    $("viewer").hidden = true;
    await asked; // a photo that the service cannot read either needs no second try
    const shown = await render(photo, signal);
    $("viewer").hidden = false;
    await load(shown);
  }
}

function checkSize(photo) {
  const limit = state.limits?.max_body_bytes;
  if (limit && photo.size > limit) {
    const mib = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
    throw new Failure(
      "This photo is too large",
      `It has ${mib(photo.size)}; at most ${mib(limit)} are accepted.`,
    );
  }
}

function threshold() {
  return Number($("threshold").value);
}

function visible() {
  return state.answer.detections.filter((detection) => detection.score >= threshold());
}

/** Shows what the answer holds from the slider's score up. */
function showAnswer() {
  const { answer } = state;
  showProblem(null);
  $("panel").hidden = false;
  document.querySelector("main").classList.add("shown");
  const shown = visible();
  boxes.show(answer.image, shown);
  $("boxes").setAttribute("aria-label", results.describe(shown));
  $("summary").textContent = results.summarise(shown);
  results.listDetections($("detections"), shown, light);
  const below = answer.detections.length - shown.length;
  $("nothing").hidden = shown.length > 0;
  $("nothing").textContent = below
    ? `${below} ${below === 1 ? "guess has" : "guesses have"} a lower score: move the slider left.`
    : "Nothing that the model knows is in this photo.";
  results.showTimings($("bar"), $("timings"), $("total"), answer.timings_ms);
  showCurl();
}

function showCurl() {
  $("curl").textContent = results.curlLine(state.name, state.photo.type, threshold());
}

function light(detection) {
  if (state.lit === detection) return;
  state.lit = detection;
  boxes.light(detection);
  results.lightRow($("detections"), detection ? boxes.detections.indexOf(detection) : -1);
}

function showProblem(error, hint = "") {
  $("problem").hidden = error === null;
  if (error === null) return;
  const known = error instanceof Failure;
  $("problem-title").textContent = known ? error.title : "Something went wrong on this page";
  $("problem-detail").textContent = [known ? error.detail : String(error), hint].join(" ").trim();
  $("again").hidden = !(known && error.retryAfter) || hint !== "";
  if (known && [401, 403].includes(error.status)) askForKey();
}

function askForKey() {
  $("key-form").hidden = false;
  $("key").focus();
}

/** Tries what was refused once more, with the key. */
async function takeKey(event) {
  event.preventDefault();
  useKey($("key").value.trim());
  $("key").value = "";
  $("key-form").hidden = true;
  showProblem(null);
  try {
    await showModel();
    if (state.photo) await open(state.photo, state.name);
  } catch (error) {
    showProblem(error);
  }
}

async function openSample(sample, button) {
  for (const other of $("sample-list").querySelectorAll("button")) {
    other.setAttribute("aria-pressed", String(other === button));
  }
  try {
    await open(await getBlob(sample.url), sample.url.split("/").pop());
  } catch (error) {
    showProblem(error);
  }
}

function openFiles(files) {
  const file = files[0];
  if (!file) return;
  for (const button of $("sample-list").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", "false");
  }
  open(file, file.name || "pasted.png");
}

function listenForPhotos() {
  for (const id of ["file", "file-again", "camera", "camera-again"]) {
    $(id).addEventListener("change", (event) => {
      openFiles(event.target.files);
      event.target.value = ""; // so that the same photo can be chosen again
    });
  }
  document.addEventListener("paste", (event) => openFiles(event.clipboardData.files));
  let depth = 0; // dragenter and dragleave also come from children
  const over = (change) => {
    depth = Math.max(0, depth + change);
    $("drop").classList.toggle("over", depth > 0);
  };
  document.addEventListener("dragenter", () => over(1));
  document.addEventListener("dragleave", () => over(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    over(-depth);
    openFiles(event.dataTransfer.files);
  });
}

async function copyCurl() {
  const text = $("curl").textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without TLS browsers offer no clipboard: select the line and copy it the old way.
    getSelection().selectAllChildren($("curl"));
    document.execCommand("copy");
  }
  $("copy").textContent = "Copied";
  setTimeout(() => { $("copy").textContent = "Copy"; }, 1500);
}

async function showModel() {
  const model = await getModel();
  state.limits = model.limits;
  $("model").hidden = false;
  $("model").textContent = `${model.name} · ${model.version}`;
  $("model").title = `${model.variant}, ${model.kernel || "still loading"}`;
  const names = model.classes.map(({ name }) => name);
  const finds = names.length <= 8 ? names.join(", ") : `${names.length} kinds of objects`;
  $("finds").textContent = `Finds ${finds}.`;
  $("threshold").value = model.default_threshold;
  $("threshold-value").textContent = threshold().toFixed(2);
}

async function showSamples() {
  const samples = await getSamples();
  $("samples").hidden = samples.length === 0;
  $("sample-list").replaceChildren(
    ...samples.map((sample) => {
      const image = document.createElement("img");
      Object.assign(image, { src: sample.url, alt: sample.name, loading: "lazy" });
      const button = document.createElement("button");
      Object.assign(button, { type: "button", title: sample.name });
      button.setAttribute("aria-pressed", "false");
      button.append(image);
      button.addEventListener("click", () => openSample(sample, button));
      const item = document.createElement("li");
      item.append(button);
      return item;
    }),
  );
}

listenForPhotos();
invite();
$("again").addEventListener("click", () => open(state.photo, state.name));
$("copy").addEventListener("click", copyCurl);
$("key-form").addEventListener("submit", takeKey);
$("threshold").addEventListener("input", () => {
  $("threshold-value").textContent = threshold().toFixed(2);
  if (state.answer) showAnswer();
});
Promise.all([showModel(), showSamples()])
  .catch(showProblem)
  .finally(() => document.body.setAttribute("data-ready", ""));
