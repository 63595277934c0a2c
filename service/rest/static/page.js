// The page: sends an image to the service and shows the result.

import { Boxes } from "./boxes.js";
import { savePng, saveJson } from "./downloads.js";
import { Explanation } from "./explanation.js";
import { Files } from "./files.js";
import { clean, shorten } from "./names.js";
import { Item, Requests } from "./requests.js";
import * as results from "./results.js";
import {
  Failure, detect, getBlob, getModel, getSamples, render, samplesFor, useKey,
} from "./service.js";
import { View } from "./view.js";

const LOWEST_THRESHOLD = 0.05; // requested once; the slider then filters without another request

const $ = (id) => document.getElementById(id);
const state = {
  items: [],
  item: null, // the opened one
  image: null,
  name: "",
  result: null,
  lit: null,
  run: null,
  url: "",
  limits: null,
  explains: false, // whether the service offers format=explain
};
const boxes = new Boxes($("boxes"), light);
const view = new View($("viewer"), $("photo"), (seen) => {
  boxes.look(seen);
  $("zoom-out").disabled = $("zoom-reset").disabled = view.zoom <= 1;
  $("zoom-in").disabled = view.zoom >= view.mostZoom;
});
const files = new Files($("file-list"), open);
const requests = new Requests(send, showProgress, showWait);
const explanation = new Explanation($("explanation"));

/** Sends the requests of these images and opens the first one. */
function openItems(items) {
  requests.cancel();
  state.items = items;
  $("files").hidden = items.length < 2;
  files.show(items.length < 2 ? [] : items);
  for (const item of items) showProgress(item);
  requests.add(items);
  open(items[0]);
}

/** Shows an image, and its result as soon as there is one. */
async function open(item) {
  state.run?.abort();
  const run = new AbortController();
  Object.assign(state, { item, image: item.image, name: item.name, result: null, run });
  showProblem(null);
  boxes.show([]);
  $("panel").hidden = true;
  $("filename").textContent = clean(item.name);
  $("drop").classList.remove("empty");
  for (const id of ["viewer", "tools", "under", "working"]) $(id).hidden = false;
  $("invite").hidden = true;
  files.open(item);
  requests.prefer(item);
  try {
    const [shown] = await Promise.allSettled([showImage(item, run.signal)]);
    const result = await item.detected;
    if (shown.status === "rejected") throw shown.reason;
    if (state.run !== run) return;
    const { width, height } = result.image;
    if (width !== view.size.width || height !== view.size.height) view.show(width, height);
    state.result = result;
    showResult();
  } catch (error) {
    if (state.run !== run) return;
    if (!$("photo").complete || !$("photo").naturalWidth || $("viewer").hidden) invite();
    showProblem(error);
  } finally {
    if (state.run === run) $("working").hidden = true;
  }
}

/** Sends the requests of these items once more. */
function retry(items) {
  for (const item of items) item.reset();
  for (const item of items) showProgress(item);
  requests.add(items);
  if (state.item) open(state.item);
}

function showWait(item, error) {
  if (item === state.item) showProblem(error, "The page retries automatically.");
}

/** Shows the state of an item in the list of images. */
function showProgress(item) {
  files.update(item, item.result ? visible(item.result) : []);
  const done = state.items.filter(({ result, error }) => result || error).length;
  const failed = state.items.filter(({ error }) => error).length;
  const errors = failed ? `, ${failed} ${failed === 1 ? "error" : "errors"}` : "";
  const total = state.items.length;
  $("files-title").textContent =
    done < total ? `${done} of ${total} images done${errors}` : `${total} images${errors}`;
}

/** Shows the start: there is no image. */
function invite() {
  for (const id of ["viewer", "tools", "under", "panel"]) $(id).hidden = true;
  $("invite").hidden = false;
  $("drop").classList.add("empty");
  document.querySelector("main").classList.remove("shown");
}

/** Requests all detections in an image. */
async function send({ image }, signal) {
  checkSize(image);
  await checkReadable(image);
  return detect(image, LOWEST_THRESHOLD, signal);
}

/** Shows the image; the service converts formats that the browser does not support. */
async function showImage({ image, detected }, signal) {
  const element = $("photo");
  const load = async (blob) => {
    URL.revokeObjectURL(state.url);
    state.url = URL.createObjectURL(blob);
    element.src = state.url;
    await element.decode();
    signal.throwIfAborted();
    view.show(element.naturalWidth, element.naturalHeight);
  };
  try {
    await load(image);
  } catch {
    signal.throwIfAborted(); // another image is opened
    $("viewer").hidden = true;
    await detected; // if the service cannot read it either, it cannot convert it
    signal.throwIfAborted();
    const shown = await render(image, signal);
    $("viewer").hidden = false;
    await load(shown);
  }
}

function checkSize(image) {
  const limit = state.limits?.max_body_bytes;
  if (limit && image.size > limit) {
    const mib = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
    throw new Failure(
      "This image is too large",
      `It has ${mib(image.size)}; at most ${mib(limit)} are accepted.`,
    );
  }
}

/** Reads one byte: browsers report an unreadable body as an error of the network. */
async function checkReadable(image) {
  try {
    await image.slice(0, 1).arrayBuffer();
  } catch {
    throw new Failure(
      "This file cannot be read",
      "It is a folder, or was changed or removed since it was chosen.",
    );
  }
}

function threshold() {
  return Number($("threshold").value);
}

function visible(result = state.result) {
  return result.detections.filter((detection) => detection.score >= threshold());
}

/** Shows the detections with at least the slider's score. */
function showResult() {
  const { result } = state;
  showProblem(null);
  $("panel").hidden = false;
  document.querySelector("main").classList.add("shown");
  const shown = visible();
  boxes.show(shown);
  $("boxes").setAttribute("aria-label", results.describe(shown));
  $("summary").textContent = results.summarise(shown);
  results.listDetections($("detections"), shown, light, state.explains ? explain : null);
  const below = result.detections.length - shown.length;
  $("nothing").hidden = shown.length > 0;
  $("nothing").textContent = below
    ? `${below} ${below === 1 ? "detection has" : "detections have"} a lower score: move the slider left.`
    : "The model detected nothing in this image.";
  results.showTimings($("bar"), $("timings"), $("total"), result.timings_ms);
  showCurl();
}

function showCurl() {
  $("curl").textContent = results.curlLine(state.name, state.image.type, threshold());
}

async function saveDrawing() {
  try {
    const scene = { detections: visible(), labels: boxes.labels };
    await savePng(state.name, $("photo"), scene, state.result.image, view.fit);
  } catch (error) {
    showProblem(error);
  }
}

function explain(detection) {
  const number = state.result.detections.indexOf(detection) + 1;
  explanation.open(state.image, LOWEST_THRESHOLD, detection, number);
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

/** Repeats the refused request with the key. */
async function takeKey(event) {
  event.preventDefault();
  useKey($("key").value.trim());
  $("key").value = "";
  $("key-form").hidden = true;
  showProblem(null);
  try {
    await showModel();
    if (state.items.length > 0) retry(state.items.filter(({ error }) => error));
  } catch (error) {
    showProblem(error);
  }
}

async function openSample(sample, button) {
  for (const other of $("sample-list").querySelectorAll("button")) {
    other.setAttribute("aria-pressed", String(other === button));
  }
  try {
    openItems([new Item(await getBlob(sample.url), sample.url.split("/").pop())]);
  } catch (error) {
    showProblem(error);
  }
}

function openFiles(chosen) {
  if (chosen.length === 0) return;
  for (const button of $("sample-list").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", "false");
  }
  openItems([...chosen].map((file) => new Item(file, file.name || "pasted.png")));
}

function listenForFiles() {
  for (const id of ["file", "file-again", "camera", "camera-again"]) {
    $(id).addEventListener("change", (event) => {
      openFiles(event.target.files);
      event.target.value = ""; // so that the same file can be chosen again
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
    // Without TLS browsers have no clipboard API: select the line and copy it.
    getSelection().selectAllChildren($("curl"));
    document.execCommand("copy");
  }
  $("copy").textContent = "Copied";
  setTimeout(() => { $("copy").textContent = "Copy"; }, 1500);
}

async function showModel() {
  const model = await getModel();
  state.limits = model.limits;
  state.explains = model.output_formats.includes("explain");
  $("model").hidden = false;
  $("model").textContent = `${model.name} · ${model.version}`;
  $("model").title = `${model.variant}, ${model.kernel || "loading"}`;
  const names = model.classes.map(({ name }) => name);
  $("finds").replaceChildren("Detects ", ...finds(names), ".");
  $("threshold").value = model.default_threshold;
  $("threshold-value").textContent = threshold().toFixed(2);
  await showSamples(names);
}

/** The names of a few classes, each with a writing direction of its own; the number of many. */
function finds(names) {
  if (names.length > 8) return [`${names.length} kinds of objects`];
  return names.flatMap((name, index) => {
    const part = document.createElement("bdi");
    part.textContent = shorten(clean(name), (text) => text.length <= 60);
    return index ? [", ", part] : [part];
  });
}

/** Shows the samples that are for a model of these classes. */
async function showSamples(classes) {
  const samples = samplesFor(await getSamples(), classes);
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

listenForFiles();
invite();
$("again").addEventListener("click", () => retry([state.item]));
$("copy").addEventListener("click", copyCurl);
$("zoom-in").addEventListener("click", () => view.zoomIn());
$("zoom-out").addEventListener("click", () => view.zoomOut());
$("zoom-reset").addEventListener("click", () => view.reset());
$("labels").addEventListener("click", () => {
  boxes.showLabels(!boxes.labels);
  $("labels").setAttribute("aria-pressed", String(boxes.labels));
});
$("save-png").addEventListener("click", saveDrawing);
$("save-json").addEventListener("click", () => saveJson(state.name, state.result, visible()));
$("key-form").addEventListener("submit", takeKey);
$("threshold").addEventListener("input", () => {
  $("threshold-value").textContent = threshold().toFixed(2);
  if (state.result) showResult();
  for (const item of state.items) showProgress(item);
});
showModel()
  .catch(showProblem)
  .finally(() => document.body.setAttribute("data-ready", ""));
