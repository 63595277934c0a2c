// The page: sends an image to the service and shows the result.

import { mayDiffer } from "./appearance.js";
import { Boxes } from "./boxes.js";
import { savePng, saveJson } from "./downloads.js";
import { Explanation } from "./explanation.js";
import { Files } from "./files.js";
import { clean, shorten } from "./names.js";
import { listenForKey, listenForRetry, showProblem } from "./problems.js";
import { Item, Requests } from "./requests.js";
import * as results from "./results.js";
import { detect, getBlob, getModel, getSamples, render, samplesFor } from "./service.js";
import {
  checkReadable, checkSize, listSamples, listenForFiles, pressSample,
} from "./sources.js";
import { Tiling } from "./tiling.js";
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
  loading: null, // the request of a sample that is to be opened
  known: false, // whether the page shows what it needs of the model
  chosenScore: false, // whether the user has moved the slider
};
const boxes = new Boxes($("boxes"), light);
const view = new View($("viewer"), $("photo"), (seen) => {
  boxes.look(seen);
  $("zoom-out").disabled = $("zoom-reset").disabled = view.zoom <= 1;
  $("zoom-in").disabled = view.zoom >= view.mostZoom;
});
const files = new Files($("file-list"), openListed);
const requests = new Requests(send, showProgress, showWait);
const explanation = new Explanation($("explanation"));
const tiling = new Tiling(detectAgain);

/** Sends the requests of these images and opens the first one. */
function openItems(items) {
  state.loading?.abort(); // these items are chosen later
  requests.cancel();
  state.items = items;
  $("files").hidden = items.length < 2;
  files.show(items.length < 2 ? [] : items);
  for (const item of items) showProgress(item);
  requests.add(items);
  open(items[0]);
}

/** Opens an item of the list. */
function openListed(item) {
  state.loading?.abort();
  pressSample(null);
  open(item);
}

/** Shows an image, and its result as soon as there is one; until then the last one of the image. */
async function open(item) {
  state.run?.abort();
  const run = new AbortController();
  const isShown = item === state.item && !$("panel").hidden;
  if (!isShown) showNoResult();
  Object.assign(state, { item, image: item.image, name: item.name, result: null, run });
  showProblem(null);
  $("panel").inert = true; // it may show the last result
  $("filename").textContent = clean(item.name);
  $("drop").classList.remove("empty");
  for (const id of ["viewer", "tools", "under", "working"]) $(id).hidden = false;
  $("invite").hidden = true;
  tiling.show(true);
  files.open(item);
  requests.prefer(item);
  try {
    const showing = isShown ? null : showImage(item, run.signal);
    const [shown] = await Promise.allSettled([showing]);
    const result = await item.detected;
    if (shown.status === "rejected") throw shown.reason;
    if (state.run !== run) return;
    await fitTo(result.image, item, run.signal);
    if (state.run !== run) return;
    state.result = result;
    showResult();
    if (!state.known) showModel().catch(() => {}); // the service responds again
  } catch (error) {
    if (state.run !== run) return;
    showNoResult();
    if (!$("photo").complete || !$("photo").naturalWidth || $("viewer").hidden) invite();
    showProblem(error, { again: () => retry([item]) });
  } finally {
    if (state.run === run) $("working").hidden = true;
  }
}

function showNoResult() {
  boxes.show([]);
  $("panel").hidden = true;
}

/** Sends the requests of all items with the options that are chosen now. */
function detectAgain() {
  requests.cancel();
  if (state.items.length > 0) retry(state.items);
}

/** Sends the requests of these items once more. */
function retry(items) {
  for (const item of items) item.reset();
  for (const item of items) showProgress(item);
  requests.add(items);
  if (state.item) open(state.item);
}

function showWait(item, error) {
  if (item === state.item) showProblem(error, { hint: "The page retries automatically." });
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
  tiling.show(false);
  document.querySelector("main").classList.remove("shown");
}

/** Requests all detections in an image. */
async function send({ image }, signal) {
  checkSize(image, state.limits?.max_body_bytes);
  await checkReadable(image);
  return detect(image, LOWEST_THRESHOLD, tiling.query, signal);
}

/** Shows the image: as the service sees it where the browser cannot, or may show it otherwise. */
async function showImage({ image, detected }, signal) {
  try {
    const differs = await mayDiffer(image);
    signal.throwIfAborted();
    if (!differs) return await load(image, signal);
  } catch {
    signal.throwIfAborted(); // another image is opened
  }
  $("viewer").hidden = true;
  await detected; // if the service cannot read it either, it cannot convert it
  return showAsServed(image, signal);
}

async function showAsServed(image, signal) {
  signal.throwIfAborted();
  const shown = await render(image, signal);
  $("viewer").hidden = false;
  await load(shown, signal);
}

async function load(blob, signal) {
  const element = $("photo");
  URL.revokeObjectURL(state.url);
  state.url = URL.createObjectURL(blob);
  element.src = state.url;
  await element.decode();
  signal.throwIfAborted();
  view.show(element.naturalWidth, element.naturalHeight);
}

/** Makes the shown image one of the size that the boxes refer to. */
async function fitTo({ width, height }, { image }, signal) {
  const { naturalWidth, naturalHeight } = $("photo");
  if (width !== naturalWidth || height !== naturalHeight) {
    try {
      await showAsServed(image, signal);
    } catch (error) {
      if (signal.aborted) throw error; // else the boxes are shown on the image as it is
    }
  }
  if (width !== view.size.width || height !== view.size.height) view.show(width, height);
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
  Object.assign($("panel"), { hidden: false, inert: false });
  document.querySelector("main").classList.add("shown");
  const shown = visible();
  boxes.show(shown);
  $("boxes").setAttribute("aria-label", results.describe(shown));
  $("summary").textContent = results.summarise(shown);
  results.listDetections($("detections"), shown, light, canExplain() ? explain : null);
  const below = result.detections.length - shown.length;
  $("nothing").hidden = shown.length > 0;
  $("nothing").textContent = below
    ? `${below} ${below === 1 ? "detection has" : "detections have"} a lower score: move the slider left.`
    : "The model detected nothing in this image.";
  results.showTimings($("bar"), $("timings"), $("total"), result.timings_ms);
  showCurl();
}

function showCurl() {
  $("curl").textContent = results.curlLine(
    state.name, state.image.type, threshold(), tiling.query,
  );
}

async function saveDrawing() {
  try {
    const scene = { detections: visible(), labels: boxes.labels };
    await savePng(state.name, $("photo"), scene, state.result.image, view.fit);
  } catch (error) {
    showProblem(error);
  }
}

/** Whether the service explains detections; it explains only those without tiles. */
function canExplain() {
  return state.explains && tiling.query === "";
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

async function openSample(sample, button) {
  state.loading?.abort();
  const run = new AbortController();
  state.loading = run;
  pressSample(button);
  try {
    const image = await getBlob(sample.url, run.signal);
    if (run.signal.aborted) return; // something else was chosen meanwhile
    openItems([new Item(image, sample.url.split("/").pop())]);
  } catch (error) {
    if (run.signal.aborted) return;
    showProblem(error, { again: () => openSample(sample, button) });
  }
}

function openFiles(chosen) {
  if (chosen.length === 0) return;
  pressSample(null);
  openItems([...chosen].map((file) => new Item(file, file.name || "pasted.png")));
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
  if (!state.chosenScore) $("threshold").value = model.default_threshold;
  showThreshold();
  tiling.offer(model);
  listSamples(samplesFor(await getSamples(), names), openSample);
  state.known = true;
}

/** Loads what the page shows of the model, then calls `next`; Retry repeats both. */
async function start(next = () => {}) {
  try {
    await showModel();
  } catch (error) {
    showProblem(error, { again: () => start(next) });
    return;
  }
  next();
}

function retryFailed() {
  const failed = state.items.filter(({ error }) => error);
  if (failed.length > 0) retry(failed);
}

function showThreshold() {
  $("threshold-value").textContent = threshold().toFixed(2);
  if (state.result) showResult();
  for (const item of state.items) showProgress(item);
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

listenForFiles(openFiles);
listenForKey(() => start(retryFailed));
listenForRetry();
invite();
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
$("threshold").addEventListener("input", () => {
  state.chosenScore = true;
  showThreshold();
});
start().finally(() => document.body.setAttribute("data-ready", ""));
