/* Pictures: photos, the colours of names over them, outlines, examples. */

const element = (id) => document.getElementById(id);

function cellsOf(photo) {
  photo.cells ??= unpacked(photo.runs, photo.height * photo.width);
  return photo.cells;
}

/* By cell, the number of the correction that holds it, less than 0 where none does. */
function marksOf(photo) {
  const own = corrections.map((one, i) => [one, i]).filter(([one]) => one.sha256 === photo.sha256);
  if (!own.length) return null;
  const marks = new Int32Array(photo.width * photo.height).fill(-1);
  for (const [one, i] of own) eachCell(one, photo, (cell) => { marks[cell] = i; });
  return marks;
}

/* The cells of a correction, whose map may have another size than the page's. */
function eachCell({ runs, height, width }, photo, visit) {
  const inside = new Uint8Array(height * width);
  for (let i = 0; i < runs.length; i += 2) inside.fill(1, runs[i], runs[i] + runs[i + 1]);
  for (let y = 0, at = 0; y < photo.height; y++) {
    const row = Math.floor(((y + 0.5) * height) / photo.height) * width;
    for (let x = 0; x < photo.width; x++, at++) if (inside[row + Math.floor(((x + 0.5) * width) / photo.width)]) visit(at);
  }
}

/* By cell, what it is called: by the names given here, or by the classes that training learned. */
function textsOf(photo) {
  if (element("learned").checked) return Array.from(unpacked(photo.learned, photo.height * photo.width), (i) => data.learned.classes[i]);
  const marks = marksOf(photo);
  return Array.from(cellsOf(photo), (part, i) => (marks && marks[i] >= 0 ? corrections[marks[i]].text : given[part]));
}

/* By cell, a number that is the same in what one name is for: a unit, or (below 0) a correction. */
function keysOf(photo) {
  const marks = marksOf(photo);
  return Int32Array.from(cellsOf(photo), (part, i) => (marks && marks[i] >= 0 ? -1 - marks[i] : unitOf(part)));
}

/* The connected parts of a photo's keys, the largest first: {key, cells}. */
function regionsOf(photo) {
  const keys = keysOf(photo), seen = new Uint8Array(keys.length), found = [], { width } = photo;
  for (let start = 0; start < keys.length; start++) {
    if (seen[start]) continue;
    const cells = [start];
    seen[start] = 1;
    for (let i = 0; i < cells.length; i++) {
      const at = cells[i], x = at % width;
      for (const next of [x ? at - 1 : -1, x < width - 1 ? at + 1 : -1, at - width, at + width]) {
        if (next < 0 || next >= keys.length || seen[next] || keys[next] !== keys[at]) continue;
        seen[next] = 1;
        cells.push(next);
      }
    }
    found.push({ key: keys[start], cells });
  }
  return found.sort((a, b) => b.cells.length - a.cells.length);
}

function imageOf(photo) {
  const image = new Image();
  image.src = `data:image/jpeg;base64,${photo.jpeg}`;
  return image.decode().then(() => image);
}

/* How much brighter a dark photo is to be shown: 1 to 2. */
function brightness(image) {
  const canvas = new OffscreenCanvas(16, 16), context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, 16, 16);
  const bytes = context.getImageData(0, 0, 16, 16).data;
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 4) sum += 0.3 * bytes[i] + 0.6 * bytes[i + 1] + 0.1 * bytes[i + 2];
  return Math.max(1, Math.min(120 / (sum / 256 + 1), 2));
}

/* Colour of a text at a pixel: [r, g, b, a]; nothing where there is no name. */
function inkOf(text, x, y) {
  if (text === "") return null;
  if (text === MIXED) return (x + y) % 10 < 2 ? [255, 255, 255, 235] : [60, 60, 60, 90];
  if (text === IGNORED) return [70, 75, 80, 190];
  const learned = data.learned?.colours[data.learned.classes.indexOf(text)];
  return [...(colours.get(text) ?? learned ?? [150, 150, 150]), 170];
}

/* The inks of a text, pixel by pixel of a tile, as words of an image. */
const TILE = 10;  // px: the period of the pattern of "mixed"
function tile(text) {
  if (text === "") return null;
  const bytes = new Uint8ClampedArray(4 * TILE * TILE);
  for (let y = 0, at = 0; y < TILE; y++) for (let x = 0; x < TILE; x++, at += 4) bytes.set(inkOf(text, x, y), at);
  return new Uint32Array(bytes.buffer);
}

/* The colours of a photo as a canvas of its size. */
function overlay(photo) {
  const texts = textsOf(photo), scale = data.scale, width = photo.width * scale, height = photo.height * scale;
  const pixels = new ImageData(width, height), words = new Uint32Array(pixels.data.buffer);
  const tiles = new Map(Array.from(new Set(texts), (text) => [text, tile(text)]));
  for (let y = 0, at = 0; y < height; y++) {
    const row = Math.floor(y / scale) * photo.width, line = (y % TILE) * TILE;
    for (let x = 0; x < width; x++, at++) {
      const inks = tiles.get(texts[row + Math.floor(x / scale)]);
      if (inks) words[at] = inks[line + (x % TILE)];
    }
  }
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/* The border of cells (those that hold 1) as a path. */
function outline({ width, height }, inside) {
  const path = new Path2D(), at = (x, y) => x >= 0 && y >= 0 && x < width && y < height && inside[y * width + x];
  for (let y = 0; y <= height; y++) {
    for (let x = 0; x <= width; x++) {
      if (at(x, y) !== at(x, y - 1)) { path.moveTo(x, y); path.lineTo(x + 1, y); }
      if (at(x, y) !== at(x - 1, y)) { path.moveTo(x, y); path.lineTo(x, y + 1); }
    }
  }
  return path;
}

/* How many cells of a photo a unit has; counted once. */
function areaOf(photo, unit) {
  if (!photo.areas) {
    photo.areas = new Map();
    for (const part of cellsOf(photo)) photo.areas.set(part, (photo.areas.get(part) ?? 0) + 1);
  }
  return partsOf(unit).reduce((sum, part) => sum + (photo.areas.get(part) ?? 0), 0);
}

/* By cell, 1 where a unit is; nothing where the photo has none of it. */
function insideOf(photo, unit) {
  if (!areaOf(photo, unit)) return null;
  const cells = cellsOf(photo), inside = new Uint8Array(cells.length), [first] = partsOf(unit), end = first + (unit < K ? S : 1);
  for (let i = 0; i < cells.length; i++) inside[i] = cells[i] >= first && cells[i] < end ? 1 : 0;
  return inside;
}

/* Draw a part of a photo, in cells, into a canvas that has its size. `inside` is outlined; what
   is around it is veiled in white, for photos may be dark. Strokes are in pixels of the canvas. */
function paint(canvas, photo, image, part, { tint, inside, veil }) {
  const context = canvas.getContext("2d");
  const zoom = Math.min(canvas.width / part.width, canvas.height / part.height);
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.translate((canvas.width - zoom * part.width) / 2, (canvas.height - zoom * part.height) / 2);
  context.beginPath();
  context.rect(0, 0, zoom * part.width, zoom * part.height);
  context.clip();
  context.scale(zoom, zoom);
  context.translate(-part.left, -part.top);
  context.drawImage(image, 0, 0, photo.width, photo.height);
  if (tint) context.drawImage(overlay(photo), 0, 0, photo.width, photo.height);
  if (inside && veil) {
    const shade = new Path2D();
    for (let y = 0; y < photo.height; y++) {
      for (let x = 0, start = 0; x <= photo.width; x++) {
        if (x < photo.width && !inside[y * photo.width + x]) continue;
        if (x > start) shade.rect(start, y, x - start, 1.02);
        start = x + 1;
      }
    }
    context.fillStyle = "rgb(255 255 255 / .25)";
    context.fill(shade);
  }
  if (inside) {
    const path = outline(photo, inside);
    context.lineCap = "square";
    for (const [colour, wide] of [["#000", 4], ["#fff", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = wide / zoom;
      context.stroke(path);
    }
  }
}

const whole = (photo) => ({ left: 0, top: 0, width: photo.width, height: photo.height });

/* What to show of a region: it and its surroundings, 4 to 3 where the photo is large enough. */
function surroundings(photo, [top, left, bottom, right]) {
  let width = Math.max(1.5 * (right - left), 2 * (bottom - top), 0.4 * photo.width);
  const height = Math.min(0.75 * width, photo.height);
  width = Math.min(width, photo.width);
  const clamp = (value, most) => Math.max(0, Math.min(value, most));
  return {
    left: clamp((left + right - width) / 2, photo.width - width),
    top: clamp((top + bottom - height) / 2, photo.height - height),
    width, height,
  };
}

function swatch(text) {
  const canvas = document.createElement("canvas");
  canvas.className = "swatch";
  canvas.setAttribute("aria-hidden", "true");
  [canvas.width, canvas.height] = [22, 16];
  const pixels = new ImageData(22, 16);
  for (let y = 0, at = 0; y < 16; y++) {
    for (let x = 0; x < 22; x++, at += 4) pixels.data.set(inkOf(text, x, y) ?? [255, 255, 255, 255], at);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}
