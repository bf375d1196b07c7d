"use strict";
/* The atlas of clusters. What a cluster is called is a text: "" = not yet, "?" = mixed,
   "-" = ignored, else its name. All texts reach the page as text, never as markup. */

const data = JSON.parse(document.getElementById("data").textContent);
const MIXED = "?", IGNORED = "-", MOST_CLASSES = 255;
/* Okabe and Ito's colours, told apart without red and green; from the eighth name on with stripes. */
const COLOURS = [[0, 114, 178], [230, 159, 0], [0, 158, 115], [204, 121, 167], [86, 180, 233], [213, 94, 0], [240, 228, 66]];
const PATTERNS = [
  () => true,
  (x, y) => (x + y) % 8 < 4,
  (x, y) => y % 6 < 3,
  (x, y) => x % 6 < 3,
  (x, y) => (x % 8 < 4) === (y % 8 < 4),
];
const KEY = `eigenseg-names-${data.head}`;
const element = (id) => document.getElementById(id);
const order = data.clusters.map((cluster) => cluster.id);
const place = new Map(order.map((id, i) => [id, i]));
const clusters = new Map(data.clusters.map((cluster) => [cluster.id, cluster]));

let given = new Array(data.k).fill("");  // by cluster
let classes = [];                        // names in the order in which they came
let last = "";                           // the name given last
let current = order[0];
let chosen = new Set();                  // further clusters that the next name is for
let anchor = null;
const former = [];                       // for undo: lists of [cluster, text], and where one was

/* ---- State ---- */

const isName = (text) => text !== "" && text !== MIXED && text !== IGNORED;

function tidy(text) {
  return text.replace(/[\s\p{C}]+/gu, " ").trim();
}

function inUse() {
  const used = new Set(given.filter(isName));
  return classes.filter((name) => used.has(name));
}

function shareOf(test) {
  return data.clusters.reduce((sum, cluster) => sum + (test(given[cluster.id]) ? cluster.share : 0), 0);
}

/* Set texts of clusters, one step of undo. */
function give(changes) {
  const real = changes.filter(([id, text]) => given[id] !== text);
  if (!real.length) return true;
  const names = new Set([...given.filter((text, id) => isName(text) && !real.some(([other]) => other === id)),
    ...real.map(([, text]) => text).filter(isName)]);
  if (names.size > MOST_CLASSES) {
    tell(`At most ${MOST_CLASSES} names: label maps have 8 bits.`);
    return false;
  }
  former.push({ at: current, texts: real.map(([id]) => [id, given[id]]) });
  apply(real);
  return true;
}

function apply(changes) {
  for (const [id, text] of changes) {
    given[id] = text;
    if (isName(text) && !classes.includes(text)) classes.push(text);
  }
  keep();
  showChanged(changes.map(([id]) => id));
}

function undo() {
  const step = former.pop();
  if (!step) return;
  apply(step.texts);
  go(step.at);
  tell("Undone.");
}

/* Local storage may be forbidden; the page then works without it. */
function keep() {
  try {
    localStorage.setItem(KEY, JSON.stringify({ given, classes, last, current }));
  } catch { /* nothing to do */ }
}

function restore() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY));
    if (!kept || kept.given.length !== data.k) return;
    ({ given, classes, last } = kept);
    if (place.has(kept.current)) current = kept.current;
  } catch { /* nothing kept, or not ours */ }
}

/* ---- Files ---- */

function asFile() {
  const names = inUse();
  const codes = given.map((text) => (text === "" ? -1 : text === MIXED ? -2 : text === IGNORED ? -3 : names.indexOf(text)));
  return { format: data.format, head: data.head, predictor: data.predictor, classes: names, clusters: codes };
}

function save() {
  const text = JSON.stringify(asFile(), null, 1).replace(/\[[\s\d,-]*\]/g, (list) => list.replace(/\s+/g, "")) + "\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "names.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  tell("Saved as names.json among the downloads of this browser.");
}

function textsOf(file) {
  if (file.format !== data.format) throw new Error("it is no file of names");
  if (file.head !== data.head) throw new Error(`it belongs to another head (${file.head}; this page shows ${data.head})`);
  const fits = Array.isArray(file.clusters) && file.clusters.length === data.k && file.clusters.every(Number.isInteger) && Array.isArray(file.classes);
  if (!fits) throw new Error(`it must name ${data.k} clusters`);
  return file.clusters.map((code) => ({ "-1": "", "-2": MIXED, "-3": IGNORED })[code] ?? tidy(String(file.classes[code] ?? "")));
}

async function load(input) {
  const [file] = input.files;
  input.value = "";
  if (!file) return;
  try {
    const texts = textsOf(JSON.parse(await file.text()));
    if (give(texts.map((text, id) => [id, text]))) tell(`${file.name}: loaded.`);
    go(current);
  } catch (error) {
    tell(`${file.name} was not loaded: ${error.message}.`);
  }
}

/* Fill what has no name yet with the names that labels gave. */
function suggest() {
  const { classes: names, clusters: codes } = data.suggested;
  const changes = order.filter((id) => given[id] === "" && codes[id] >= 0).map((id) => [id, tidy(names[codes[id]])]);
  if (give(changes)) tell(`${changes.length} clusters got the name of their most likely class. Go through them: some will be wrong.`);
  go(current);
}

/* ---- Pictures ---- */

function cellsOf(photo) {
  if (photo.cells) return photo.cells;
  const bytes = atob(photo.runs);
  photo.cells = new Uint16Array(photo.height * photo.width);
  for (let i = 0, at = 0; i < bytes.length; i += 3) {
    const end = at + bytes.charCodeAt(i + 2);
    photo.cells.fill(bytes.charCodeAt(i) | (bytes.charCodeAt(i + 1) << 8), at, end);
    at = end;
  }
  return photo.cells;
}

function imageOf(photo) {
  const image = new Image();
  image.src = `data:image/jpeg;base64,${photo.jpeg}`;
  return image.decode().then(() => image);
}

/* Colour of a cluster at a pixel: [r, g, b, a]; nothing where it has no name. */
function inkOf(text, index, x, y) {
  if (text === "") return null;
  if (text === MIXED) return (x + y) % 10 < 2 ? [255, 255, 255, 235] : [60, 60, 60, 90];
  if (text === IGNORED) return [70, 75, 80, 190];
  const colour = COLOURS[index % COLOURS.length];
  const alpha = PATTERNS[Math.floor(index / COLOURS.length) % PATTERNS.length](x, y) ? 185 : 70;
  return [...colour, alpha];
}

/* The colours of a photo as a canvas of its size. */
function overlay(photo) {
  const cells = cellsOf(photo), scale = data.scale, width = photo.width * scale, height = photo.height * scale;
  const pixels = new ImageData(width, height), words = new Uint32Array(pixels.data.buffer);
  const tileOf = given.map(tile);
  for (let y = 0, at = 0; y < height; y++) {
    const row = Math.floor(y / scale) * photo.width, line = (y % TILE) * TILE;
    for (let x = 0; x < width; x++, at++) {
      const inks = tileOf[cells[row + Math.floor(x / scale)]];
      if (inks) words[at] = inks[line + (x % TILE)];
    }
  }
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/* The inks of a text, pixel by pixel, as words of an image; kept, for they do not change. */
const TILE = 120;  // px: whole periods of all patterns
const tiles = new Map();
function tile(text) {
  if (text === "" || tiles.has(text)) return tiles.get(text);
  const bytes = new Uint8ClampedArray(4 * TILE * TILE), index = classes.indexOf(text);
  for (let y = 0, at = 0; y < TILE; y++) {
    for (let x = 0; x < TILE; x++, at += 4) bytes.set(inkOf(text, index, x, y), at);
  }
  tiles.set(text, new Uint32Array(bytes.buffer));
  return tiles.get(text);
}

/* The border of a cluster as a path in cells. */
function outline(photo, id) {
  const cells = cellsOf(photo), { width, height } = photo, path = new Path2D();
  const at = (x, y) => x >= 0 && y >= 0 && x < width && y < height && cells[y * width + x] === id;
  for (let y = 0; y <= height; y++) {
    for (let x = 0; x <= width; x++) {
      if (at(x, y) !== at(x, y - 1)) { path.moveTo(x, y); path.lineTo(x + 1, y); }
      if (at(x, y) !== at(x - 1, y)) { path.moveTo(x, y); path.lineTo(x, y + 1); }
    }
  }
  return path;
}

/* Draw a part of a photo, in cells, into a canvas that has its size; strokes are in canvas pixels. */
function paint(canvas, photo, image, part, { colours, id, dim }) {
  const context = canvas.getContext("2d"), scale = data.scale;
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
  if (colours) context.drawImage(overlay(photo), 0, 0, photo.width, photo.height);
  if (dim) {
    const shade = new Path2D(), cells = cellsOf(photo);
    for (let y = 0; y < photo.height; y++) {
      for (let x = 0, start = 0; x <= photo.width; x++) {
        const inside = x === photo.width || cells[y * photo.width + x] === id;
        if (inside) { if (x > start) shade.rect(start, y, x - start, 1.02); start = x + 1; }
      }
    }
    context.fillStyle = "rgb(0 0 0 / .38)";
    context.fill(shade);
  }
  if (id !== null) {
    const path = outline(photo, id);
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
  let height = Math.min(0.75 * width, photo.height);
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
  [canvas.width, canvas.height] = [22, 16];
  const pixels = new ImageData(22, 16), index = classes.indexOf(text);
  for (let y = 0, at = 0; y < 16; y++) {
    for (let x = 0; x < 22; x++, at += 4) pixels.data.set(inkOf(text, index, x, y) ?? [255, 255, 255, 255], at);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/* ---- Parts of the page ---- */

function make(tag, text = "", name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = name;
  return made;
}

function action(text, run) {
  const button = make("button", text);
  button.type = "button";
  button.addEventListener("click", run);
  return button;
}

const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 2 : 1)} %`;
const called = (text) => (text === MIXED ? "mixed" : text === IGNORED ? "ignored" : text);
const items = new Map();

function makeList() {
  for (const cluster of data.clusters) {
    const item = make("li"), button = action("", (event) => pick(cluster.id, event));
    button.append(swatch(""), make("span", cluster.id), make("span", percent(cluster.share), "share"), make("span"));
    item.append(button);
    items.set(cluster.id, item);
  }
  element("list").append(...items.values());
}

function pick(id, event) {
  if (event.ctrlKey || event.metaKey) chosen.has(id) ? chosen.delete(id) : chosen.add(id);
  else if (event.shiftKey) between(current, id);
  else return go(id);
  showChosen();
  element("name").focus();
}

function between(one, other) {
  const [from, to] = [place.get(one), place.get(other)].sort((a, b) => a - b);
  chosen = new Set(order.slice(from, to + 1));
}

function showItem(id) {
  const button = items.get(id)?.firstChild;
  if (!button) return;
  button.firstChild.replaceWith(swatch(given[id]));
  button.lastChild.textContent = called(given[id]);
  button.title = `Cluster ${id}: ${called(given[id]) || "no name yet"}`;
}

function showChosen() {
  for (const [id, item] of items) {
    item.classList.toggle("chosen", chosen.has(id));
    item.classList.toggle("current", id === current);
    item.firstChild.setAttribute("aria-current", id === current);
  }
  const others = [...chosen].filter((id) => id !== current).length;
  element("which").textContent = `Name of cluster ${current}` + (others ? ` and ${others} more` : "");
}

function showChips() {
  const typed = element("name").value.toLowerCase();
  const names = completions(typed).slice(0, 12);
  element("chips").replaceChildren(...names.map((name) => {
    const button = action("", () => name_(name));
    button.append(swatch(name), ` ${name}`);
    return button;
  }));
}

/* Names given before that begin with what is typed; all of them, the last one first, else. */
function completions(typed) {
  const names = inUse();
  if (typed && given[current].toLowerCase() !== typed) {
    return names.filter((name) => name.toLowerCase().startsWith(typed) && name.toLowerCase() !== typed);
  }
  return [...names].sort((a, b) => (b === last) - (a === last));
}

function neighbourChips(ids) {
  if (!ids.length) return [make("span", "none")];
  return ids.map((id) => {
    const button = action("", () => go(id));
    button.append(swatch(given[id]), ` ${id} ${called(given[id])}`);
    button.title = `Go to cluster ${id}`;
    return button;
  });
}

async function showExamples(box, regions) {
  const id = current;
  const canvases = regions.map(([number], i) => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [320, 240];
    const button = action("", () => zoom(number));
    button.setAttribute("aria-label", `Cluster ${id} in ${data.photos[number].name}, enlarge`);
    button.append(canvas);
    return canvas;
  });
  box.replaceChildren(...canvases.map((canvas) => canvas.parentNode));
  await Promise.all(regions.map(async ([number, ...region], i) => {
    const photo = data.photos[number], image = await imageOf(photo);
    paint(canvases[i], photo, image, surroundings(photo, region), { colours: false, id, dim: true });
  }));
}

function showCard() {
  const cluster = clusters.get(current), field = element("name");
  field.value = given[current];
  field.placeholder = last && given[current] === "" ? `Enter: ${last} again` : "type a name, then Enter";
  field.select();
  const count = `${cluster.photos} of ${data.all} photos`;
  element("facts").textContent = `${place.get(current) + 1} of ${order.length} · ${percent(cluster.share)} of the pixels, in ${count}`;
  showExamples(element("typical"), cluster.typical);
  showExamples(element("unusual"), cluster.unusual);
  element("odd").hidden = !cluster.unusual.length;
  element("like").replaceChildren(...neighbourChips(cluster.like));
  element("with").replaceChildren(...neighbourChips(cluster.with));
  showChips();
  showChosen();
  inView(items.get(current));
}

/* Scroll the list, not the page. */
function inView(item) {
  const box = element("clusters");
  if (box.scrollHeight <= box.clientHeight) return;
  const above = item.offsetTop - box.offsetTop - box.clientHeight / 2;
  box.scrollTop = above;
}

function showProgress() {
  const parts = { named: shareOf(isName), mixed: shareOf((text) => text === MIXED), ignored: shareOf((text) => text === IGNORED) };
  for (const [name, share] of Object.entries(parts)) document.querySelector(`#bar .${name}`).style.width = `${100 * share}%`;
  element("bar").setAttribute("aria-valuenow", (100 * parts.named).toFixed(1));
  const done = order.filter((id) => isName(given[id])).length;
  progress = `${percent(parts.named)} of the pixels have a name (${done} of ${order.length} clusters, ${inUse().length} names)`;
  if (parts.mixed) progress += ` · mixed ${percent(parts.mixed)}`;
  if (parts.ignored) progress += ` · ignored ${percent(parts.ignored)}`;
  tell("");
  element("undo").disabled = !former.length;
}

let progress = "";
function tell(text) {
  element("told").textContent = text ? `${progress} · ${text}` : progress;
}

function legendItems(names) {
  return names.map((name) => {
    const item = make("li");
    item.append(swatch(name), ` ${called(name)} ${percent(shareOf((text) => text === name))}`);
    return item;
  });
}

/* ---- Photos: only those in view are drawn ---- */

const shown = new Map();  // button of a photo in view -> its decoded image
const buttons = data.photos.map((photo, number) => {
  const button = action("", () => zoom(number)), canvas = document.createElement("canvas");
  canvas.style.aspectRatio = `${photo.width} / ${photo.height}`;
  [canvas.width, canvas.height] = [0, 0];
  button.title = photo.name;
  button.setAttribute("aria-label", `Photo ${photo.name}, enlarge`);
  button.append(canvas);
  button.photo = photo;
  return button;
});
const watch = new IntersectionObserver(async (entries) => {
  for (const { target, isIntersecting } of entries) {
    target.near = isIntersecting;
    if (!isIntersecting) {
      shown.delete(target);
      target.firstChild.width = target.firstChild.height = 0;
    } else {
      const image = await imageOf(target.photo);
      if (!target.near) continue;
      shown.set(target, image);
      drawPhoto(target);
    }
  }
}, { rootMargin: "200px" });

function drawPhoto(button) {
  const { photo, firstChild: canvas } = button;
  if (!shown.has(button)) return;
  if (!canvas.width) [canvas.width, canvas.height] = [2 * photo.width * data.scale, 2 * photo.height * data.scale];
  const id = cellsOf(photo).includes(current) ? current : null;
  paint(canvas, photo, shown.get(button), whole(photo), { colours: true, id, dim: false });
}

let waiting = false;
function drawPhotos() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    for (const button of shown.keys()) drawPhoto(button);
  });
}

function showPhotos() {
  let wanted = buttons;
  if (element("filter").value === "with") {
    const areas = new Map(buttons.map((button) => [button, cellsOf(button.photo).reduce((n, id) => n + (id === current), 0)]));
    wanted = buttons.filter((button) => areas.get(button)).sort((a, b) => areas.get(b) - areas.get(a));
  }
  const same = element("photos").children.length === wanted.length && wanted.every((button, i) => element("photos").children[i] === button);
  if (!same) element("photos").replaceChildren(...wanted);
  element("count").textContent = `${wanted.length} of ${data.all}`;
}

async function zoom(number) {
  const photo = data.photos[number], canvas = document.querySelector("#zoomed canvas");
  const image = await imageOf(photo);
  const grow = Math.max(1, Math.min(1060 / (photo.width * data.scale), 4));
  [canvas.width, canvas.height] = [photo.width, photo.height].map((side) => Math.round(side * data.scale * grow));
  const cells = cellsOf(photo), id = cells.includes(current) ? current : null;
  paint(canvas, photo, image, whole(photo), { colours: false, id, dim: false });
  element("where").textContent = photo.name + (id === null ? "" : `, cluster ${current} outlined`);
  const names = new Set(Array.from(new Set(cells), (other) => given[other]).filter((text) => text !== ""));
  element("zoomlegend").replaceChildren(...legendItems([...names]));
  if (!element("zoom").open) element("zoom").showModal();
}

/* ---- What a person does ---- */

function showChanged(ids) {
  ids.forEach(showItem);
  showProgress();
  const marks = [MIXED, IGNORED].filter((mark) => given.includes(mark));
  element("legend").replaceChildren(...legendItems([...inUse(), ...marks]));
  drawPhotos();
}

function go(id) {
  current = id;
  chosen = new Set();
  anchor = null;
  keep();
  showCard();
  showPhotos();
  drawPhotos();
  element("name").focus({ preventScroll: true });
  element("name").select();
}

function step(by, from = current) {
  const at = Math.max(0, Math.min(place.get(from) + by, order.length - 1));
  return order[at];
}

/* Give the chosen clusters this text and go to the next one. */
function name_(text) {
  const wanted = new Set([current, ...chosen]);
  if (!give([...wanted].map((id) => [id, text]))) return;
  if (isName(text)) last = text;
  const behind = order[Math.max(...[...wanted].map((id) => place.get(id)))];
  const next = step(1, behind);
  go(next);
  if (next === behind) tell("This was the last one.");
}

function submit(event) {
  event.preventDefault();
  const typed = tidy(element("name").value);
  if (typed === "" && given[current] === "" && last) return name_(last);
  if (typed === "" && given[current] === "") return tell("Type a name first, ? for mixed or - for ignored.");
  name_(typed);
}

function extend(by) {
  anchor ??= current;
  const kept = anchor;
  go(step(by));
  between(kept, current);
  anchor = kept;
  showChosen();
}

function onKey(event) {
  const { key } = event, control = event.ctrlKey || event.metaKey, field = element("name");
  if (element("zoom").open) return;
  if (control && key.toLowerCase() === "s") save();
  else if (control && key.toLowerCase() === "z" && field.value === given[current]) undo();
  else if (event.altKey && /^Digit[1-8]$/.test(event.code)) document.querySelectorAll(".examples button")[event.code[5] - 1]?.click();
  else if (event.target !== field) {
    const typing = key.length === 1 && key !== " " && !control && !event.altKey;
    if (typing && !["SELECT", "TEXTAREA"].includes(event.target.tagName)) { field.focus(); field.select(); }
    return;
  } else if (key === "ArrowDown" || key === "ArrowUp") {
    const by = key === "ArrowDown" ? 1 : -1;
    event.shiftKey ? extend(by) : go(step(by));
  } else if (key === "ArrowRight" && field.value && field.selectionStart === field.value.length) {
    const [first] = completions(field.value.toLowerCase());
    if (!first || field.value === given[current]) return;
    field.value = first;
    showChips();
  } else if (key === "Escape") go(current);
  else return;
  event.preventDefault();
}

restore();
makeList();
order.forEach(showItem);
buttons.forEach((button) => watch.observe(button));
element("form").addEventListener("submit", submit);
element("name").addEventListener("input", showChips);
element("mixed").addEventListener("click", () => name_(MIXED));
element("ignore").addEventListener("click", () => name_(IGNORED));
element("previous").addEventListener("click", () => go(step(-1)));
element("next").addEventListener("click", () => go(step(1)));
element("undo").addEventListener("click", undo);
element("save").addEventListener("click", save);
element("load").addEventListener("change", (event) => load(event.target));
element("filter").addEventListener("change", () => { showPhotos(); drawPhotos(); });
element("close").addEventListener("click", () => element("zoom").close());
element("zoom").addEventListener("close", () => element("name").focus());
if (data.suggested) {
  element("suggest").hidden = false;
  element("suggest").textContent = `Take names from the labels of ${data.suggested.split}`;
  element("suggest").addEventListener("click", suggest);
}
document.addEventListener("keydown", onKey);
showChanged([]);
go(current);
