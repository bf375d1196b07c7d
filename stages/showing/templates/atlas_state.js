"use strict";
/* What a person has said: names, splits, corrections; undo, this browser's memory, files.
   A text is "" = not named yet, "?" = mixed, "-" = ignored, else a name. All texts reach the page
   as text, never as markup. A unit is what gets one name: a cluster (its id), or a part of a split
   cluster (k + id of the part). Parts of cluster c have the ids c * S + part. */

const data = JSON.parse(document.getElementById("data").textContent);
const MIXED = "?", IGNORED = "-", MOST_CLASSES = 255, COARSE = 48, K = data.k, S = data.split;
const KEY = `eigenseg-names-${data.head}`;
const clusters = new Map(data.clusters.map((cluster) => [cluster.id, cluster]));
const photoOf = new Map(data.photos.map((photo) => [photo.sha256, photo]));

let given = new Array(K * S).fill("");  // by part; the parts of a cluster that is whole agree
let split = new Set();                  // clusters
let corrections = [];                   // {photo, sha256, height, width, runs, cluster, text}
let colours = new Map();                // of names in use, in the order in which they came
let last = "";                          // the name given last
let revision = 0, saved = 0;            // counts changes; the one that a file holds
let sure = null;                        // by cluster, where names were carried over: 0 to 1
const former = [];                      // for undo

/* ---- Units ---- */

const clusterOf = (unit) => (unit < K ? unit : Math.floor((unit - K) / S));
const partsOf = (unit) => (unit < K ? Array.from({ length: S }, (_, i) => unit * S + i) : [unit - K]);
const textOf = (unit) => given[partsOf(unit)[0]];
const entryOf = (unit) => (unit < K ? clusters.get(unit) : clusters.get(clusterOf(unit)).parts.find(({ part }) => part === (unit - K) % S));
const idOf = (unit) => (unit < K ? `${unit}` : `${clusterOf(unit)}${"abcd"[(unit - K) % S]}`);
const unitOf = (part) => (split.has(Math.floor(part / S)) ? K + part : Math.floor(part / S));
const unitsOf = (id) => (split.has(id) ? clusters.get(id).parts.map(({ part }) => K + id * S + part) : [id]);
const order = () => data.clusters.flatMap(({ id }) => unitsOf(id));
const isName = (text) => text !== "" && text !== MIXED && text !== IGNORED;
const classes = () => [...colours.keys()];
const byCluster = () => Array.from({ length: K }, (_, id) => (split.has(id) ? unitsOf(id).map(textOf) : given[id * S]));

function tidy(text) {
  return text.normalize("NFC").replace(/[\s\p{C}]+/gu, " ").trim();
}

/* The name in use that differs in capitals alone, else the text itself. */
function spelled(text) {
  const same = (name) => name.toLowerCase() === text.toLowerCase();
  return classes().find(same) ?? text;
}

/* ---- Changes ---- */

function snapshot() {
  return { given: [...given], split: [...split], corrections: [...corrections], colours: [...colours], last, revision, saved };
}

function adopt(kept) {
  ({ given, corrections, last, revision, saved } = kept);
  split = new Set(kept.split);
  colours = new Map(kept.colours);
}

/* Run what alters the state as one step of undo. */
function change(alter) {
  if (sync()) former.length = 0;
  const before = { ...snapshot(), at: current };
  alter();
  const used = new Set([...given, ...corrections.map(({ text }) => text)].filter(isName));
  if (used.size > MOST_CLASSES) {
    adopt(before);
    tell(`At most ${MOST_CLASSES} names: label maps have 8 bits.`);
    return false;
  }
  for (const name of classes()) if (!used.has(name)) colours.delete(name);
  for (const name of used) if (!colours.has(name)) colours.set(name, freeColour(name));
  const { revision: now, saved: file, ...content } = snapshot();
  if (JSON.stringify(content) === JSON.stringify({ ...before, at: undefined, revision: undefined, saved: undefined })) return true;
  former.push(before);
  keep();
  showChanged();
  return true;
}

/* A class of the labels keeps its colour in the report; others take the first that is free. */
function freeColour(name) {
  const known = data.suggested?.classes ?? [], index = known.indexOf(name);
  if (index >= 0) return data.palette[index];
  const taken = new Set([...colours.values(), ...known.map((_, i) => data.palette[i])].map(String));
  return data.palette.find((colour) => !taken.has(String(colour))) ?? data.palette.find((colour) => ![...colours.values()].map(String).includes(String(colour)));
}

function give(pairs) {
  return change(() => pairs.forEach(([unit, text]) => partsOf(unit).forEach((part) => { given[part] = text; })));
}

function undo() {
  if (sync()) former.length = 0;
  const step = former.pop();
  if (!step) return tell("There is nothing to undo.");
  const { revision: now, saved: file } = { revision, saved };
  adopt({ ...step, revision: now, saved: file });
  keep();
  showChanged();
  go(step.at);
  tell("Undone.");
}

/* ---- This browser's memory; it may be forbidden, the page then works without ---- */

function stored() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY));
    return kept?.given?.length === K * S ? kept : null;
  } catch { return null; }
}

function keep(changed = true) {
  if (changed) revision += 1;
  try { localStorage.setItem(KEY, JSON.stringify(snapshot())); } catch { /* nothing to do */ }
}

/* Take over what another tab has kept since; whether there was anything. */
function sync() {
  const kept = stored();
  if (!kept || kept.revision <= revision) return false;
  adopt(kept);
  return true;
}

/* ---- Files ---- */

function asFile() {
  const names = classes();
  const code = (text) => (text === "" ? -1 : text === MIXED ? -2 : text === IGNORED ? -3 : names.indexOf(text));
  return {
    format: data.format, head: data.head, predictor: data.predictor, classes: names, colours: [...colours.values()],
    clusters: Array.from({ length: K }, (_, id) => (split.has(id) ? -2 : code(given[id * S]))),
    splits: [...split].map((id) => ({ cluster: id, parts: data.rivals[id], codes: partsOf(id).map((part) => code(given[part])) })),
    corrections: corrections.map(({ text, ...one }) => ({ ...one, code: code(text) })),
    photos: data.photos.map((photo) => {
      const { width, height, cells } = coarse(photo), codes = cells.map((text) => code(text) + 3);
      return { sha256: photo.sha256, height, width, runs: btoa(packed(codes)) };
    }),
  };
}

/* The texts of a photo in few cells: what carries names over to other clusters. */
function coarse(photo) {
  const ratio = Math.min(1, COARSE / Math.max(photo.width, photo.height)), texts = textsOf(photo);
  const [width, height] = [photo.width, photo.height].map((side) => Math.max(1, Math.round(side * ratio)));
  const cells = [];
  for (let y = 0; y < height; y++) {
    const row = Math.floor(((y + 0.5) * photo.height) / height) * photo.width;
    for (let x = 0; x < width; x++) cells.push(texts[row + Math.floor(((x + 0.5) * photo.width) / width)]);
  }
  return { width, height, cells };
}

function packed(ids) {
  const bytes = [];
  for (let start = 0; start < ids.length;) {
    let end = start + 1;
    while (end < ids.length && ids[end] === ids[start] && end - start < 255) end++;
    bytes.push(ids[start] & 255, ids[start] >> 8, end - start);
    start = end;
  }
  return bytes.map((byte) => String.fromCharCode(byte)).join("");
}

function unpacked(text, size) {
  const bytes = atob(text), ids = new Uint16Array(size);
  let at = 0;
  for (let i = 0; i < bytes.length; i += 3) {
    const end = at + bytes.charCodeAt(i + 2);
    ids.fill(bytes.charCodeAt(i) | (bytes.charCodeAt(i + 1) << 8), at, end);
    at = end;
  }
  if (at !== size) throw new Error("a small map does not fill its photo");
  return ids;
}

let handle = null;  // of the file that was chosen to save to

async function save() {
  if (!colours.size) return tell("There is nothing to save yet: name a cluster first.");
  const text = JSON.stringify(asFile(), null, 1).replace(/\[[\s\d,-]*\]/g, (list) => list.replace(/\s+/g, "")) + "\n";
  const holds = revision;
  const done = (told) => { saved = holds; keep(false); showProgress(); tell(told); };
  if (window.showSaveFilePicker) {
    try {
      handle ??= await window.showSaveFilePicker({ suggestedName: "names.json", types: [{ accept: { "application/json": [".json"] } }] });
      const out = await handle.createWritable();
      await out.write(text);
      await out.close();
      return done(`Saved in the file ${handle.name}.`);
    } catch (error) {
      handle = null;
      if (error.name === "AbortError") return tell("Not saved.");
    }
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "names.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  done("Given to this browser as the download names.json. Where a file of that name is there already, the browser puts a number behind the new one: names (1).json. The newest is the right one.");
}

/* What a file says, checked: a state of this page, and what to tell. */
function readFile(file) {
  const wrong = (text) => { throw new Error(text); };
  if (typeof file !== "object" || file === null || Array.isArray(file) || ![1, data.format].includes(file.format)) wrong("it is no file of names");
  const { classes: names, clusters: codes } = file;
  if (!Array.isArray(names) || !names.every((name) => typeof name === "string" && tidy(name))) wrong("its classes must be names");
  if (names.length > MOST_CLASSES) wrong(`it has more than ${MOST_CLASSES} classes`);
  const valid = (list) => Array.isArray(list) && list.every((code) => Number.isInteger(code) && code >= -3 && code < names.length);
  if (!valid(codes)) wrong(`its clusters must be codes from -3 to ${names.length - 1}`);
  const firsts = [];
  const text = (code) => {
    if (code < 0) return { "-1": "", "-2": MIXED, "-3": IGNORED }[code];
    const name = tidy(names[code]), same = firsts.find((other) => other.toLowerCase() === name.toLowerCase());
    if (!same) firsts.push(name);
    return same ?? name;
  };
  names.forEach((_, code) => text(code));
  const known = new Map(names.map((_, code) => [text(code), file.colours?.[code]]).filter(([, rgb]) => rgb?.length === 3 && rgb.every(Number.isInteger)).reverse());
  const regions = (file.corrections ?? []).map(({ code, ...one }) => (valid([code]) ? { ...one, text: text(code) } : wrong("a correction has no valid code")));
  const result = { given: new Array(K * S).fill(""), split: new Set(), corrections: regions, known, sure: null, told: "loaded." };
  if (file.head !== data.head) return carried(file, text, valid, result, wrong);
  if (codes.length !== K) wrong(`it must name ${K} clusters, found ${codes.length}`);
  codes.forEach((code, id) => result.given.fill(text(code), id * S, (id + 1) * S));
  for (const one of file.splits ?? []) {
    if (!valid(one.codes) || !clusters.has(one.cluster)) wrong("a split has no valid codes");
    if (one.parts !== data.rivals[one.cluster]) { result.told = "loaded; a cluster that was split in another way is mixed."; continue; }
    result.split.add(one.cluster);
    one.codes.forEach((code, part) => { if (part < S) result.given[one.cluster * S + part] = text(code); });
  }
  return result;
}

/* Names of another head: each cluster takes what most of its pixels were called in photos of both. */
function carried(file, text, valid, result, wrong) {
  const shared = (file.photos ?? []).filter(({ sha256 }) => photoOf.has(sha256));
  if (!shared.length) wrong(`it belongs to another head (${file.head}; this page shows ${data.head}) and shares no photo with this page`);
  const counts = Array.from({ length: K }, () => new Map());
  for (const { sha256, height, width, runs } of shared) {
    const photo = photoOf.get(sha256), cells = cellsOf(photo), codes = unpacked(runs, height * width);
    for (let y = 0, at = 0; y < photo.height; y++) {
      const row = Math.floor(((y + 0.5) * height) / photo.height) * width;
      for (let x = 0; x < photo.width; x++, at++) {
        const code = codes[row + Math.floor(((x + 0.5) * width) / photo.width)] - 3, own = counts[Math.floor(cells[at] / S)];
        own.set(code, (own.get(code) ?? 0) + photo.share / cells.length);
      }
    }
  }
  let named = 0, agree = 0, whole = 0;
  result.sure = counts.map((own, id) => {
    const [[code, most] = [-1, 0]] = [...own].sort((a, b) => b[1] - a[1]), all = [...own.values()].reduce((a, b) => a + b, 0);
    if (!valid([code])) wrong("a photo has codes without a class");
    result.given.fill(text(code), id * S, (id + 1) * S);
    if (code >= 0) { named += 1; agree += most; whole += all; }
    return all ? most / all : 0;
  });
  result.corrections.forEach((one) => { one.cluster = null; });
  result.told = `${named} of ${order().length} clusters got names that were given to another head, by the pixels of ${shared.length} photos, which agree on ${percent(agree / (whole || 1))}; ${result.corrections.length} corrections stay. Go through those marked unsure.`;
  return result;
}

function takeOver({ known, sure: how, ...content }) {
  return change(() => {
    ({ given, split, corrections } = content);
    sure = how;
    colours = new Map([...known].reverse());
  });
}

async function load(input) {
  const [file] = input.files;
  input.value = "";
  if (!file) return;
  try {
    const found = readFile(JSON.parse(await file.text()));
    if (takeOver(found)) {
      go(unitsOf(clusterOf(current))[0]);
      tell(`${file.name}: ${found.told}`);
    }
  } catch (error) {
    tell(`${file.name} was not loaded: ${error instanceof SyntaxError ? "it is not JSON" : error.message}. Nothing has changed.`);
  }
}
