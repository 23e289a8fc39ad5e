// Runs the network beside the page, so that the page answers while it computes: a picture in, labels out.
//
// The arithmetic on pixels is that of enet_deploy.fit and of OpenCV's resize, so a picture gives the same frame here.
"use strict";

const WEIGHT = 2048; // OpenCV's fixed point: weights of 11 bits
const GREY = 114; // border of a letterbox, as in enet_deploy.fit

let ort, session, network;

async function unpacked(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function start(message) {
  network = message.network;
  const code = new Blob([await unpacked(message.runtime)], { type: "text/javascript" });
  ort = await import(URL.createObjectURL(code));
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = 1; // more need headers of a server, which a file has not
  ort.env.wasm.wasmBinary = await unpacked(message.wasm);
  session = await ort.InferenceSession.create(await unpacked(message.graph), { executionProviders: [message.device] });
  const [height, width] = network.size;
  await run(new Uint8Array(3 * height * width)); // compiles shaders, and fails here rather than on the first picture
}

async function run(frame) {
  const input = new ort.Tensor("uint8", frame, [1, ...network.size, 3]);
  const { labels } = await session.run({ frames: input }, ["labels"]);
  return await labels.getData();
}

async function segment({ bitmap }) {
  const begun = performance.now();
  const image = pixelsOf(bitmap);
  const [used, filled] = windows([image.height, image.width], network.size, network.fit);
  const frame = placed(resized(image, used, filled), filled);
  const fed = performance.now();
  const ids = await run(frame);
  const networkMs = performance.now() - fed;
  const labels = unfitted(ids, used, filled, [image.height, image.width]);
  return { labels, shares: shares(labels), size: [image.height, image.width], networkMs, ms: performance.now() - begun };
}

function pixelsOf(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true }); // in memory, where no GPU rounds
  if (!context) throw Error(`a picture of ${bitmap.width} x ${bitmap.height} pixels is too large for this browser`);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

// Python's round: a half goes to the even number
function round(value) {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 ? below + 1 : below;
}

// The part of the image that is used, and the part of the frame that it fills
function windows(image, frame, fit) {
  const ratios = [frame[0] / image[0], frame[1] / image[1]];
  let used = image, filled = frame;
  if (fit === "letterbox") filled = image.map((side) => round(side * Math.min(...ratios)));
  if (fit === "crop") used = frame.map((side) => round(side / Math.max(...ratios)));
  return [centred(used, image), centred(filled, frame)];
}

function centred(inner, outer) {
  const [height, width] = inner.map((side, axis) => Math.min(Math.max(1, side), outer[axis]));
  return { top: Math.floor((outer[0] - height) / 2), left: Math.floor((outer[1] - width) / 2), height, width };
}

// A window of RGBA pixels as BGR of another size, bilinear
function resized(image, used, filled) {
  const out = new Uint8Array(3 * filled.height * filled.width);
  const at = (y, x) => 4 * ((used.top + y) * image.width + used.left + x);
  if (used.height === filled.height && used.width === filled.width) return copied(image, at, filled, out);
  const halves = used.height === 2 * filled.height && used.width === 2 * filled.width; // then OpenCV takes means
  const rows = taps(used.height, filled.height, false), columns = taps(used.width, filled.width, true);
  const data = image.data;
  for (let y = 0, o = 0; y < filled.height; y++) {
    const up = at(rows.first[y], 0), down = at(rows.second[y], 0), v0 = rows.near[y], v1 = rows.far[y];
    const a0 = at(2 * y, 0), b0 = a0 + 4 * image.width;
    for (let x = 0; x < filled.width; x++, o += 3) {
      const l = 4 * columns.first[x], r = 4 * columns.second[x], h0 = columns.near[x], h1 = columns.far[x];
      for (let c = 0; c < 3; c++) {
        if (halves) {
          const a = a0 + 8 * x + c, b = b0 + 8 * x + c;
          out[o + 2 - c] = (data[a] + data[a + 4] + data[b] + data[b + 4] + 2) >> 2;
          continue;
        }
        const upper = data[up + l + c] * h0 + data[up + r + c] * h1;
        const lower = data[down + l + c] * h0 + data[down + r + c] * h1;
        out[o + 2 - c] = (((v0 * (upper >> 4)) >> 16) + ((v1 * (lower >> 4)) >> 16) + 2) >> 2;
      }
    }
  }
  return out;
}

function copied(image, at, filled, out) {
  for (let y = 0, o = 0; y < filled.height; y++) {
    for (let x = 0, i = at(y, 0); x < filled.width; x++, i += 4, o += 3) {
      for (let c = 0; c < 3; c++) out[o + 2 - c] = image.data[i + c];
    }
  }
  return out;
}

// For each of `to` pixels: the two of `from` that it lies between, and their weights. OpenCV settles the borders
// differently for columns (the weights change) and rows (the positions do)
function taps(from, to, columns) {
  const [first, second, near, far] = Array.from({ length: 4 }, () => new Int32Array(to));
  const scale = 1 / (to / from);
  for (let i = 0; i < to; i++) {
    const position = Math.fround((i + 0.5) * scale - 0.5);
    let low = Math.floor(position), part = Math.fround(position - low);
    if (columns && (low < 0 || low >= from - 1)) part = 0;
    first[i] = Math.min(Math.max(low, 0), from - 1);
    second[i] = Math.min(Math.max(low + 1, 0), from - 1);
    near[i] = round(Math.fround(Math.fround(1 - part) * WEIGHT));
    far[i] = round(Math.fround(part * WEIGHT));
  }
  return { first, second, near, far };
}

// Pixels in their window of a frame, grey beside it
function placed(pixels, filled) {
  const [height, width] = network.size;
  if (filled.height === height && filled.width === width) return pixels;
  const frame = new Uint8Array(3 * height * width).fill(GREY);
  for (let y = 0; y < filled.height; y++) {
    const row = pixels.subarray(3 * y * filled.width, 3 * (y + 1) * filled.width);
    frame.set(row, 3 * ((filled.top + y) * width + filled.left));
  }
  return frame;
}

// Labels of a frame as those of its image, nearest neighbour; void where it was cropped
function unfitted(ids, used, filled, [height, width]) {
  const out = new Uint8Array(height * width).fill(network.void);
  const rows = nearest(filled.height, used.height), columns = nearest(filled.width, used.width);
  for (let y = 0; y < used.height; y++) {
    const row = (filled.top + rows[y]) * network.size[1] + filled.left;
    const o = (used.top + y) * width + used.left;
    for (let x = 0; x < used.width; x++) out[o + x] = ids[row + columns[x]];
  }
  return out;
}

// For each of `to` pixels: the one of `from` that it lies in. OpenCV adds up steps, so the sums' rounding decides for a
// pixel that lies on a border
function nearest(from, to) {
  const step = from / to, found = new Int32Array(to);
  for (let i = 0, position = step / 2; i < to; i++, position += step) found[i] = Math.min(Math.floor(position), from - 1);
  return found;
}

// The share of each class in all labels that are a class's
function shares(labels) {
  const counts = new Float64Array(256);
  for (const label of labels) counts[label]++;
  const known = counts.subarray(0, network.classes.length);
  const total = known.reduce((sum, count) => sum + count, 0) || 1;
  return Array.from(known, (count) => count / total);
}

self.onmessage = async ({ data }) => {
  try {
    const answer = data.bitmap ? await segment(data) : await start(data);
    self.postMessage({ id: data.id, answer }, answer ? [answer.labels.buffer] : []);
  } catch (error) {
    self.postMessage({ id: data.id, error: String(error?.message ?? error).replace(/\s+/g, " ").slice(0, 400) });
  }
};
