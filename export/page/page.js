// The page: pictures from a file, a drop or the camera to the worker, labels back onto the screen.
"use strict";

const LARGEST_SHOWN = 1600; // pixels of the longer side on the screen; labels are of the picture's own size
const TIMED = 30; // pictures that the median is of
// (module (func (result v128) i32.const 0 i8x16.splat)): valid only for a browser with WASM SIMD
const SIMD = Uint8Array.of(
  ...[0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11],
);

const element = (id) => document.getElementById(id);
const network = JSON.parse(element("network").textContent);
const stage = element("stage"), shown = element("shown"), device = element("device");
const picture = document.createElement("canvas"); // what the labels on the screen are of

let worker, ready; // the worker, and a promise that it has loaded the network
let waiting = new Map(); // id of a question to the worker -> its promise's functions
let asked = 0, turn = 0;
let result, name; // of the picture on the screen
let file; // the last one that was opened
let camera; // a MediaStream while the camera is on
let choice = 0; // of a picture or the camera: one that still waits, to be read or allowed, gives way to a later one
let starts = 0;
let times = [];

// --- the worker

function ask(message, transfer = []) {
  const id = ++asked;
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    worker.postMessage({ id, ...message }, transfer);
  });
}

async function startOn(chosen) {
  worker?.terminate();
  for (const { reject } of waiting.values()) reject(Error("the device was changed"));
  waiting = new Map();
  times = [];
  const url = URL.createObjectURL(new Blob([element("worker").textContent], { type: "text/javascript" }));
  worker = new Worker(url);
  worker.onmessage = ({ data }) => {
    const { resolve, reject } = waiting.get(data.id);
    waiting.delete(data.id);
    if (data.error === undefined) resolve(data.answer);
    else reject(Error(data.error));
  };
  worker.onerror = (event) => {
    event.preventDefault();
    for (const { reject } of waiting.values()) reject(Error(event.message || "the worker does not start"));
  };
  device.value = chosen;
  say("Loading the network ...");
  const [runtime, wasm, graph] = ["runtime", "wasm", "graph"].map((id) => element(id).textContent);
  await ask({ network, runtime, wasm, graph, device: chosen });
  say("Ready.");
}

async function start(chosen) {
  const mine = ++starts;
  try {
    await startOn(chosen);
  } catch (error) {
    if (mine !== starts) return ready; // another device was chosen while this one loaded
    if (chosen !== "webgpu") throw error;
    complain(`WebGPU cannot run this network here (${error.message}); the CPU runs it`);
    await startOn("wasm");
  }
}

function restart(chosen) {
  ready = start(chosen);
  ready.catch(() => undefined); // reported by whoever waits for it
  return ready;
}

// --- pictures

async function show(bitmap, from) {
  const mine = ++turn;
  const next = scaled(bitmap);
  await ready;
  if (mine !== turn) return bitmap.close();
  if (!camera) say("Working ...");
  const answer = await ask({ bitmap }, [bitmap]).catch((error) => {
    if (mine === turn) throw error; // else nobody waits for this picture any more
  });
  if (mine !== turn) return;
  result = answer;
  name = from;
  picture.width = next.width;
  picture.height = next.height;
  picture.getContext("2d").drawImage(next, 0, 0);
  draw();
  report();
}

function scaled(bitmap) {
  const shrink = Math.min(1, LARGEST_SHOWN / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * shrink));
  canvas.height = Math.max(1, Math.round(bitmap.height * shrink));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas;
}

async function open(chosen) {
  if (!chosen) return;
  file = chosen;
  stopCamera();
  complain("");
  const mine = choice;
  let bitmap;
  try { // pixels as they are stored: OpenCV applies no colour profile either
    bitmap = await createImageBitmap(chosen, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    if (mine !== choice) return;
    return complain(`${chosen.name || "this file"} is no picture that this browser reads; expected a JPEG, PNG or WebP`);
  }
  if (mine !== choice) return bitmap.close();
  await show(bitmap, chosen.name || "picture");
}

// The labels as RGBA pixels: `paint` writes one pixel
function painted(width, height, paint) {
  const [rows, columns] = result.size;
  const image = new ImageData(width, height);
  for (let y = 0, o = 0; y < height; y++) {
    const row = Math.floor(((2 * y + 1) * rows) / (2 * height)) * columns;
    for (let x = 0; x < width; x++, o += 4) {
      paint(image.data, o, result.labels[row + Math.floor(((2 * x + 1) * columns) / (2 * width))]);
    }
  }
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

function draw() {
  if (!result) return;
  [shown.width, shown.height] = [picture.width, picture.height];
  const context = shown.getContext("2d");
  context.drawImage(picture, 0, 0);
  context.globalAlpha = element("alpha").value / 100;
  context.drawImage(painted(picture.width, picture.height, (data, o, label) => {
    const color = network.classes[label]?.color;
    if (color) [data[o], data[o + 1], data[o + 2], data[o + 3]] = [...color, 255];
  }), 0, 0);
  stage.classList.add("filled");
}

function report() {
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  result.shares.forEach((share, id) => {
    const row = element("classes").rows[id];
    row.querySelector(".share").textContent = percent(share);
    row.querySelector(".bar").style.width = `${100 * share}%`;
  });
  const largest = result.shares.map((share, id) => [share, network.classes[id].name]).sort((a, b) => b[0] - a[0]);
  const words = largest.slice(0, 3).map(([share, each]) => `${each} ${percent(share)}`).join(", ");
  shown.setAttribute("aria-label", `The picture with its labels: ${words}`);
  times = [...times, [result.networkMs, result.ms]].slice(-TIMED);
  const median = (column) => times.map((each) => each[column]).sort((a, b) => a - b)[times.length >> 1].toFixed(1);
  const of = times.length > 1 ? `, median of ${times.length}` : "";
  const where = device.selectedOptions[0].textContent;
  say(`Network ${median(0)} ms, whole frame ${median(1)} ms${of}; ${where}; picture ${result.size.join(" x ")}`);
  element("save").disabled = false;
}

async function save() {
  const [height, width] = result.size;
  const canvas = painted(width, height, (data, o, label) => {
    [data[o], data[o + 1], data[o + 2], data[o + 3]] = [label, label, label, 255];
  });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await new Promise((resolve) => canvas.toBlob(resolve, "image/png")));
  link.download = `${name.replace(/\.\w+$/, "")}-labels.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// --- the camera

async function useCamera() {
  complain("");
  if (!navigator.mediaDevices) {
    return complain("This browser gives this page no camera; expected https, localhost or a file in Chrome or Firefox");
  }
  const mine = ++choice;
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    return complain(`No camera (${error.name}); allow it for this page, or choose a picture`);
  }
  if (mine !== choice) return end(stream);
  camera = stream;
  element("camera").textContent = "Stop the camera";
  const video = document.createElement("video");
  video.muted = video.playsInline = true;
  video.srcObject = stream;
  stream.getVideoTracks()[0].onended = () => {
    if (camera !== stream) return;
    complain("The camera has ended; it was unplugged, or another program took it");
    stopCamera();
  };
  await video.play();
  while (camera === stream) {
    const bitmap = await createImageBitmap(video);
    if (camera !== stream) return bitmap.close();
    await show(bitmap, "camera");
    await new Promise(requestAnimationFrame);
  }
}

const end = (stream) => stream.getTracks().forEach((track) => track.stop());

function stopCamera() {
  choice++;
  if (camera) end(camera);
  camera = undefined;
  element("camera").textContent = "Use the camera";
}

// --- the screen

const say = (text) => { element("status").textContent = text; };
const complain = (text) => { element("problem").textContent = text; };

// An event's listener whose errors are one line on the page
const guarded = (action) => async (event) => {
  try {
    await action(event);
  } catch (error) {
    stopCamera();
    say("");
    complain(error.message);
  }
};

function lacking() {
  if (typeof WebAssembly !== "object" || !WebAssembly.validate(SIMD)) return "WebAssembly SIMD";
  return ["DecompressionStream", "OffscreenCanvas", "Worker", "createImageBitmap"].find((each) => !(each in self));
}

function listClasses() {
  for (const { name: each, color } of network.classes) {
    const row = element("classes").insertRow();
    const swatch = row.insertCell().appendChild(document.createElement("i"));
    swatch.style.backgroundColor = `rgb(${color})`;
    row.insertCell().textContent = each;
    const cell = row.insertCell();
    const bar = cell.appendChild(document.createElement("span"));
    bar.className = "bar";
    bar.style.backgroundColor = `rgb(${color})`;
    row.insertCell().className = "share";
  }
}

async function main() {
  listClasses();
  const missing = lacking();
  if (missing) {
    for (const control of document.querySelectorAll("input, button, select")) control.disabled = true;
    return complain(`This browser lacks ${missing}; expected Chrome 97, Firefox 114, Safari 16.4 or later`);
  }
  element("file").onchange = guarded(({ target }) => open(target.files[0]));
  element("camera").onclick = guarded(() => (camera ? stopCamera() : useCamera()));
  element("save").onclick = guarded(save);
  element("alpha").oninput = draw;
  device.onchange = guarded(async () => {
    turn++;
    stopCamera();
    complain("");
    await restart(device.value);
    await open(file); // again, to compare
  });
  document.ondragover = (event) => { event.preventDefault(); stage.classList.add("over"); };
  document.ondragleave = () => stage.classList.remove("over");
  document.ondrop = guarded((event) => {
    event.preventDefault(); // else the browser would leave the page for the picture
    stage.classList.remove("over");
    if (!event.dataTransfer.files.length) return complain("Nothing was dropped that is a file; drop a picture's file");
    return open(event.dataTransfer.files[0]);
  });
  const gpu = await navigator.gpu?.requestAdapter().catch(() => null);
  device.querySelector("[value=webgpu]").disabled = !gpu;
  await restart(gpu && !gpu.info?.isFallbackAdapter ? "webgpu" : "wasm"); // a fallback adapter is the CPU in disguise
}

guarded(main)();
