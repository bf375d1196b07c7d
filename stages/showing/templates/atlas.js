/* The page: list, card, map, photos, and what a person does there. */

let current = order()[0];  // unit
let chosen = new Set();    // further units that the next name is for
let anchor = null;

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

/* ---- The list and the map of clusters ---- */

const items = new Map();  // by unit

function showList() {
  items.clear();
  for (const unit of order()) {
    const item = make("li", "", unit < K ? "" : "part"), button = action("", (event) => pick(unit, event));
    button.append(swatch(textOf(unit)), make("span", idOf(unit)), make("span", percent(entryOf(unit).share), "share"), make("span", called(textOf(unit))));
    button.setAttribute("aria-label", `Cluster ${idOf(unit)}, ${percent(entryOf(unit).share)}: ${called(textOf(unit)) || "no name yet"}`);
    item.append(button);
    items.set(unit, item);
  }
  element("list").replaceChildren(...items.values());
  showMap();
  showChosen();
}

const SIDE = 240;

function showMap() {
  const largest = Math.max(...data.clusters.map(({ share }) => share));
  const dots = [...data.clusters].sort((a, b) => b.share - a.share).map(({ id, at, share }) => {
    const text = split.has(id) ? MIXED : given[id * S], dot = document.createElementNS(element("map").namespaceURI, "circle"), title = document.createElementNS(element("map").namespaceURI, "title");
    const radius = 3 + 11 * Math.sqrt(share / largest), rgb = inkOf(text, 5, 5);
    const shape = { cx: 14 + at[0] * (SIDE - 28), cy: 14 + at[1] * (SIDE - 28), r: radius, fill: rgb ? `rgb(${rgb.slice(0, 3)})` : "#fff" };
    for (const [name, value] of Object.entries(shape)) dot.setAttribute(name, value);
    dot.setAttribute("class", clusterOf(current) === id ? "current" : "");
    title.textContent = `Cluster ${id}: ${called(text) || "no name yet"}`;
    dot.append(title);
    dot.addEventListener("click", () => go(unitsOf(id)[0]));
    return dot;
  });
  element("map").replaceChildren(...dots);
}

function pick(unit, event) {
  if (event.ctrlKey || event.metaKey) chosen.has(unit) ? chosen.delete(unit) : chosen.add(unit);
  else if (event.shiftKey) between(current, unit);
  else return go(unit);
  showChosen();
  element("name").focus();
}

function between(one, other) {
  const units = order(), [from, to] = [units.indexOf(one), units.indexOf(other)].sort((a, b) => a - b);
  chosen = new Set(units.slice(from, to + 1));
}

function showChosen() {
  for (const [unit, item] of items) {
    item.classList.toggle("chosen", chosen.has(unit));
    item.classList.toggle("current", unit === current);
    item.firstChild.setAttribute("aria-current", unit === current);
  }
  const others = [...chosen].filter((unit) => unit !== current).length;
  element("which").textContent = `Name of cluster ${idOf(current)}` + (others ? ` and ${others} more` : "");
}

/* Scroll the list, not the page. */
function inView(item) {
  const box = element("clusters");
  if (item && box.scrollHeight > box.clientHeight) box.scrollTop = item.offsetTop - box.offsetTop - box.clientHeight / 2;
}

/* ---- Names that begin with what is typed ---- */

/* Names in use that begin so; with nothing typed all, the last one first. */
function completions(typed, own = textOf(current)) {
  const names = classes(), low = typed.toLowerCase();
  if (typed && own.toLowerCase() !== low) return names.filter((name) => name.toLowerCase().startsWith(low));
  return names.sort((a, b) => (b === last) - (a === last));
}

/* What Enter gives: the name in use that is typed, or else the first that begins so. */
function meant(typed, literal, own) {
  if (typed === MIXED || typed === IGNORED || typed === "") return typed;
  const same = spelled(typed);
  if (literal || classes().includes(same)) return same;
  return completions(typed, own)[0] ?? typed;
}

function showChips() {
  const typed = tidy(element("name").value), names = completions(typed).slice(0, 12);
  const buttons = names.map((name) => {
    const button = action("", () => name_(name));
    button.append(swatch(name), ` ${name}`);
    return button;
  });
  const begun = typed && typed !== textOf(current) && names.length && !classes().includes(spelled(typed));
  if (begun) {
    buttons[0].classList.add("first");
    buttons[0].append(make("kbd", "Enter"));
    const fresh = action(`new: ${typed} `, () => name_(typed));
    fresh.append(make("kbd", "Shift Enter"));
    buttons.push(fresh);
  }
  element("chips").replaceChildren(...buttons);
}

/* ---- The card of a cluster ---- */

function neighbourChips(ids) {
  if (!ids.length) return [make("span", "none")];
  return ids.map((id) => {
    const text = split.has(id) ? MIXED : given[id * S], button = action("", () => go(unitsOf(id)[0]));
    button.append(swatch(text), ` ${id} ${called(text)}`);
    button.title = `Go to cluster ${id}`;
    return button;
  });
}

async function showExamples(box, regions) {
  const unit = current;
  const canvases = regions.map(([number, ...region]) => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [320, 240];
    const button = action("", () => zoom(number, region, unit));
    button.setAttribute("aria-label", `Cluster ${idOf(unit)} in ${data.photos[number].name}, enlarge`);
    button.append(canvas);
    return canvas;
  });
  box.replaceChildren(...canvases.map((canvas) => canvas.parentNode));
  await Promise.all(regions.map(async ([number, ...region], i) => {
    const photo = data.photos[number], image = await imageOf(photo);
    canvases[i].style.filter = `brightness(${brightness(image)})`;
    paint(canvases[i], photo, image, surroundings(photo, region), { tint: false, inside: insideOf(photo, unit), veil: true });
  }));
}

function showCard() {
  const cluster = clusters.get(clusterOf(current)), entry = entryOf(current), field = element("name"), units = order();
  field.value = textOf(current);
  field.placeholder = last && textOf(current) === "" ? `Enter: ${last} again` : "type a name, then Enter";
  const spreads = data.clusters.map(({ spread }) => spread), below = spreads.filter((spread) => spread < cluster.spread).length;
  const facts = [
    `${units.indexOf(current) + 1} of ${units.length}`,
    `${percent(entry.share)} of the pixels, in ${entry.photos} of ${data.all} photos`,
    `spread of its scores ${cluster.spread.toFixed(2)}: more mixed than ${below} of ${spreads.length} clusters`,
  ];
  const certain = sure?.[cluster.id];
  if (certain !== undefined && isName(textOf(current))) facts.push(`carried over, ${Math.round(100 * certain)} % sure${certain < 0.6 ? ": unsure" : ""}`);
  element("facts").textContent = facts.join(" · ");
  element("split").hidden = split.has(cluster.id) || cluster.parts.length < 2;
  element("join").hidden = !split.has(cluster.id);
  element("rename").hidden = !isName(textOf(current));
  showExamples(element("sample"), entry.sample);
  const extremes = current < K;
  showExamples(element("typical"), extremes ? cluster.typical : []);
  showExamples(element("unusual"), extremes ? cluster.unusual : []);
  element("usual").hidden = !extremes || !cluster.typical.length;
  element("odd").hidden = !extremes || !cluster.unusual.length;
  element("like").replaceChildren(...neighbourChips(cluster.like));
  element("with").replaceChildren(...neighbourChips(cluster.with));
  showChips();
  showChosen();
  inView(items.get(current));
}

/* ---- Progress ---- */

/* The share of the pixels that has each text. */
function shares() {
  const found = new Map(), add = (text, share) => found.set(text, (found.get(text) ?? 0) + share);
  for (const unit of order()) add(textOf(unit), entryOf(unit).share);
  for (const photo of data.photos) {
    const marks = marksOf(photo);
    if (!marks) continue;
    const cells = cellsOf(photo), one = photo.share / cells.length;
    marks.forEach((mark, i) => {
      if (mark < 0) return;
      add(given[cells[i]], -one);
      add(corrections[mark].text, one);
    });
  }
  return found;
}

let progress = "";
function showProgress() {
  const found = shares(), parts = { named: 0, mixed: Math.max(0, found.get(MIXED) ?? 0), ignored: Math.max(0, found.get(IGNORED) ?? 0) };
  for (const [text, share] of found) if (isName(text)) parts.named += Math.max(0, share);
  for (const [name, share] of Object.entries(parts)) document.querySelector(`#bar .${name}`).style.width = `${100 * share}%`;
  element("bar").setAttribute("aria-valuenow", (100 * parts.named).toFixed(1));
  const units = order(), done = units.filter((unit) => isName(textOf(unit))).length;
  progress = `${percent(parts.named)} of the pixels have a name (${done} of ${units.length} clusters, ${colours.size} names)`;
  if (parts.mixed) progress += ` · mixed ${percent(parts.mixed)}`;
  if (parts.ignored) progress += ` · ignored ${percent(parts.ignored)}`;
  if (corrections.length) progress += ` · ${corrections.length} corrected ${corrections.length > 1 ? "regions" : "region"}`;
  const open = colours.size > 0 && revision !== saved;
  element("save").textContent = open ? "Save names.json •" : "Save names.json";
  element("save").title = open ? "There are changes that no file holds (Ctrl+S)" : "Ctrl+S";
  element("undo").disabled = !former.length;
  tell("");
}

function tell(text) {
  element("told").textContent = text ? `${progress} · ${text}` : progress;
  element("zoomtold").textContent = text;
}

function showLegend(box, names, found) {
  box.replaceChildren(...names.map((name) => {
    const item = make("li"), words = ` ${called(name)} ${percent(Math.max(0, found.get(name) ?? 0))}`;
    if (!isName(name)) { item.append(swatch(name), words); return item; }
    const button = action("", () => openRename(name));
    button.append(swatch(name), words);
    button.title = `Rename ${name}`;
    item.append(button);
    return item;
  }));
}

/* ---- Photos: only those in view are drawn ---- */

const shown = new Map();  // button of a photo in view -> its decoded image
const buttons = data.photos.map((photo, number) => {
  const button = make("button"), canvas = document.createElement("canvas");
  button.type = "button";
  canvas.style.aspectRatio = `${photo.width} / ${photo.height}`;
  [canvas.width, canvas.height] = [0, 0];
  button.addEventListener("click", (event) => zoom(number, event.detail ? at(event, canvas, photo) : null));
  button.title = photo.name;
  button.setAttribute("aria-label", `Photo ${photo.name}, enlarge`);
  button.append(canvas);
  button.photo = photo;
  return button;
});

/* The cell of a photo under the pointer, as a box. */
function at(event, canvas, photo) {
  const box = canvas.getBoundingClientRect();
  const cell = (from, size, cells) => Math.max(0, Math.min(Math.floor(((from) / size) * cells), cells - 1));
  const [x, y] = [cell(event.clientX - box.left, box.width, photo.width), cell(event.clientY - box.top, box.height, photo.height)];
  return [y, x, y + 1, x + 1];
}

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
  paint(canvas, photo, shown.get(button), whole(photo), { tint: true, inside: insideOf(photo, current) });
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
    const areas = new Map(buttons.map((button) => [button, areaOf(button.photo, current)]));
    wanted = buttons.filter((button) => areas.get(button)).sort((a, b) => areas.get(b) - areas.get(a));
  }
  const box = element("photos"), same = box.children.length === wanted.length && wanted.every((button, i) => box.children[i] === button);
  if (!same) box.replaceChildren(...wanted);
  element("count").textContent = `${wanted.length} of ${data.all}`;
}

/* ---- One photo, its regions, and corrections of them ---- */

let viewed = null;  // {number, photo, image, regions, at}, at: the region that is chosen

/* Open a photo with the region chosen that holds most of a unit in a box, or the largest one. */
async function zoom(number, box = null, unit = null) {
  const photo = data.photos[number];
  viewed = { number, photo, image: await imageOf(photo), regions: regionsOf(photo), at: 0 };
  if (box) viewed.at = regionIn(viewed, box, unit);
  if (!element("zoom").open) element("zoom").showModal();
  showZoom(Boolean(box));
}

function regionIn({ photo, regions }, [top, left, bottom, right], unit) {
  const held = regions.map(({ key, cells }) => (unit !== null && key !== unit ? 0 : cells.filter((cell) => {
    const y = Math.floor(cell / photo.width), x = cell % photo.width;
    return y >= top && y < bottom && x >= left && x < right;
  }).length));
  return Math.max(0, held.indexOf(Math.max(...held)));
}

/* Show the chosen region; `follow` makes its cluster the current one. */
function showZoom(follow) {
  const { photo, image, regions, at: chosenAt } = viewed, { key, cells } = regions[chosenAt], canvas = element("picture");
  const correction = key < 0 ? corrections[-1 - key] : null, unit = unitOf(cellsOf(photo)[cells[0]]);
  if (follow && unit !== current) show(unit);
  const grow = Math.max(1, Math.min(1060 / (photo.width * data.scale), 4));
  [canvas.width, canvas.height] = [photo.width, photo.height].map((side) => Math.round(side * data.scale * grow));
  const inside = new Uint8Array(photo.width * photo.height);
  cells.forEach((cell) => { inside[cell] = 1; });
  canvas.style.filter = `brightness(${brightness(image)})`;
  paint(canvas, photo, image, whole(photo), { tint: element("tint").checked, inside });
  const now = correction ? `corrected: ${called(correction.text) || "no name"}` : called(textOf(unit)) || "no name yet";
  element("where").textContent = photo.name;
  element("region").textContent = `Region ${chosenAt + 1} of ${regions.length}, ${percent(cells.length / inside.length)} of the photo: cluster ${idOf(unit)}, ${now}`;
  element("own").value = correction ? correction.text : "";
  element("takeback").hidden = !correction;
  const texts = textsOf(photo), found = new Map();
  texts.forEach((text) => found.set(text, (found.get(text) ?? 0) + 1 / texts.length));
  showLegend(element("zoomlegend"), [...found.keys()].filter((text) => text !== ""), found);
}

function stepRegion(by) {
  viewed.at = (viewed.at + by + viewed.regions.length) % viewed.regions.length;
  showZoom(true);
}

/* Give the chosen region a name of its own; "" takes it back. */
function correct(text) {
  const { photo, regions, at: chosenAt } = viewed, { key, cells } = regions[chosenAt];
  const runs = [];
  [...cells].sort((a, b) => a - b).forEach((cell) => {
    const end = runs.length && runs.at(-2) + runs.at(-1) === cell;
    end ? (runs[runs.length - 1] += 1) : runs.push(cell, 1);
  });
  const size = { height: photo.height, width: photo.width }, cluster = Math.floor(cellsOf(photo)[cells[0]] / S);
  const one = { photo: photo.name, sha256: photo.sha256, ...size, runs, cluster, text };
  const done = change(() => {
    if (key < 0) corrections = corrections.flatMap((other, i) => (i !== -1 - key ? [other] : text ? [{ ...other, text }] : []));
    else if (text) corrections = [...corrections, one];
    if (isName(text)) last = text;
  });
  if (!done) return;
  reopen(cells[0]);
  tell(text ? `This region alone is ${called(text)} now.` : "The region has the name of its cluster again.");
}

/* Find the regions anew and choose the one that holds a cell. */
function reopen(cell) {
  viewed.regions = regionsOf(viewed.photo);
  viewed.at = viewed.regions.findIndex(({ cells }) => cells.includes(cell));
  showZoom(false);
}

function submitRegion(event) {
  event.preventDefault();
  const typed = tidy(element("own").value), literal = event.submitter === null && literally;
  if (typed === MIXED) return tell("A region is one thing: give it a name, or - for ignored.");
  const correction = viewed.regions[viewed.at].key < 0;
  if (!typed && !correction) return tell("Type a name for this region first, or - for ignored.");
  correct(meant(typed, literal, ""));
}

/* ---- Renaming a class ---- */

let renamed = null;

function openRename(name) {
  renamed = name;
  element("renamelabel").textContent = `New name of ${name}, wherever it is given`;
  element("newname").value = name;
  element("renamer").showModal();
  element("newname").select();
}

function rename(event) {
  event.preventDefault();
  const typed = tidy(element("newname").value), to = typed.toLowerCase() === renamed.toLowerCase() ? typed : spelled(typed), from = renamed;
  if (!isName(typed)) return tell("A class needs a name.");
  const joins = to !== from && classes().includes(to);
  change(() => {
    given = given.map((text) => (text === from ? to : text));
    corrections = corrections.map((one) => (one.text === from ? { ...one, text: to } : one));
    colours = new Map([...colours].flatMap(([name, rgb]) => (name !== from ? [[name, rgb]] : joins ? [] : [[to, rgb]])));
    if (last === from) last = to;
  });
  element("renamer").close();
  if (element("zoom").open) reopen(viewed.regions[viewed.at].cells[0]);
  else go(current);
  tell(joins ? `${from} is ${to} now, one class.` : `${from} is called ${to} now.`);
}

/* ---- What a person does ---- */

function showChanged() {
  if (!order().includes(current)) current = unitsOf(clusterOf(current))[0];
  showList();
  showProgress();
  const found = shares();
  showLegend(element("legend"), [...classes(), ...[MIXED, IGNORED].filter((mark) => found.get(mark) > 0)], found);
  drawPhotos();
}

/* Make a unit the current one, leaving the focus where it is. */
function show(unit) {
  current = unit;
  chosen = new Set();
  anchor = null;
  try { localStorage.setItem(`${KEY}-at`, unit); } catch { /* nothing to do */ }
  showCard();
  showMap();
  showPhotos();
  drawPhotos();
}

function go(unit) {
  show(unit);
  element("name").focus({ preventScroll: true });
  element("name").select();
}

function step(by, from = current) {
  const units = order();
  return units[Math.max(0, Math.min(units.indexOf(from) + by, units.length - 1))];
}

/* Give the chosen units this text and go to the next one. */
function name_(text) {
  const wanted = [...new Set([current, ...chosen])], units = order();
  if (isName(text)) last = text;
  if (!give(wanted.map((unit) => [unit, text]))) return;
  const behind = units[Math.max(...wanted.map((unit) => units.indexOf(unit)))], next = step(1, behind);
  go(next);
  if (next === behind) tell("This was the last one.");
}

let literally = false;  // Shift was held with Enter

function submit(event) {
  event.preventDefault();
  const typed = tidy(element("name").value), own = textOf(current);
  if (typed === "" && own === "" && last) return name_(last);
  if (typed === "" && own === "") return tell("Type a name first, ? for mixed or - for ignored.");
  name_(meant(typed, literally, own));
}

function splitUp() {
  const id = clusterOf(current);
  change(() => split.add(id));
  go(unitsOf(id)[0]);
  tell(`Cluster ${id} has ${clusters.get(id).parts.length} parts now: name each.`);
}

function join() {
  const id = clusterOf(current), text = textOf(current);
  change(() => {
    split.delete(id);
    given.fill(text, id * S, (id + 1) * S);
  });
  go(id);
}

function extend(by) {
  anchor ??= current;
  const kept = anchor;
  go(step(by));
  between(kept, current);
  anchor = kept;
  showChosen();
}

/* Fill what has no name yet with the names that labels gave. */
function suggest() {
  const { classes: names, clusters: codes } = data.suggested;
  const pairs = order().filter((unit) => textOf(unit) === "" && codes[clusterOf(unit)] >= 0).map((unit) => [unit, spelled(tidy(names[codes[clusterOf(unit)]]))]);
  if (give(pairs)) tell(`${pairs.length} clusters got the name of their most likely class. Go through them: some will be wrong.`);
  go(current);
  tell(`${pairs.length} clusters got the name of their most likely class. Go through them: some will be wrong.`);
}

function onKey(event) {
  const { key } = event, control = event.ctrlKey || event.metaKey, field = element("name");
  if (key === "Enter") literally = event.shiftKey;
  if (element("renamer").open) return;
  if (control && key.toLowerCase() === "s") save();
  else if (element("zoom").open) {
    const by = { ArrowDown: 1, ArrowUp: -1 }[key];
    if (control && key.toLowerCase() === "z" && event.target.value === "") { undo(); reopen(viewed.regions[viewed.at].cells[0]); }
    else if (by && event.target.type !== "checkbox") stepRegion(by);
    else return;
  } else if (control && key.toLowerCase() === "z" && field.value === textOf(current)) undo();
  else if (event.altKey && /^Digit[1-9]$/.test(event.code)) document.querySelectorAll(".examples button")[event.code[5] - 1]?.click();
  else if (event.target !== field) {
    const typing = key.length === 1 && key !== " " && !control && !event.altKey;
    if (typing && !["SELECT", "TEXTAREA"].includes(event.target.tagName)) { field.focus(); field.select(); }
    return;
  } else if (key === "ArrowDown" || key === "ArrowUp") {
    const by = key === "ArrowDown" ? 1 : -1;
    event.shiftKey ? extend(by) : go(step(by));
  } else if (key === "ArrowRight" && field.value && field.selectionStart === field.value.length) {
    const [first] = completions(tidy(field.value));
    if (!first || field.value === textOf(current)) return;
    field.value = first;
    showChips();
  } else if (key === "Escape") go(current);
  else return;
  event.preventDefault();
}

/* Names to begin with: what this browser keeps, else what the project has. */
function begin() {
  let at = NaN;
  try { at = Number(localStorage.getItem(`${KEY}-at`) ?? NaN); } catch { /* forbidden */ }
  if (!sync() && data.names) {
    const { known, sure: how, told, ...content } = readFile(data.names);
    adopt({ ...content, colours: [...known].reverse(), last: "", revision: 0, saved: 0 });
    for (const text of [...given, ...corrections.map((one) => one.text)]) if (isName(text) && !colours.has(text)) colours.set(text, freeColour(text));
  }
  if (order().includes(at)) current = at;
  else current = order()[0];
}

const on = (id, what, run) => element(id).addEventListener(what, run);
begin();
element("mapbox").open = innerWidth > 640;
buttons.forEach((button) => watch.observe(button));
on("form", "submit", submit);
on("name", "input", showChips);
on("mixed", "click", () => name_(MIXED));
on("ignore", "click", () => name_(IGNORED));
on("previous", "click", () => go(step(-1)));
on("next", "click", () => go(step(1)));
on("split", "click", splitUp);
on("join", "click", join);
on("rename", "click", () => openRename(textOf(current)));
on("renameform", "submit", rename);
on("renamecancel", "click", () => element("renamer").close());
on("undo", "click", undo);
on("save", "click", save);
on("load", "change", (event) => load(event.target));
on("filter", "change", () => { showPhotos(); drawPhotos(); });
element("learnedlabel").hidden = !data.learned;
on("learned", "change", drawPhotos);
on("close", "click", () => element("zoom").close());
on("zoom", "close", () => element("name").focus());
on("regionform", "submit", submitRegion);
on("takeback", "click", () => correct(""));
on("formerregion", "click", () => stepRegion(-1));
on("nextregion", "click", () => stepRegion(1));
on("tint", "change", () => showZoom(false));
on("picture", "click", (event) => { viewed.at = regionIn(viewed, at(event, element("picture"), viewed.photo), null); showZoom(true); element("own").focus(); });
if (data.suggested) {
  element("suggest").hidden = false;
  element("suggest").textContent = `Take names from ${data.suggested.source}`;
  on("suggest", "click", suggest);
}
document.addEventListener("keydown", onKey);
window.addEventListener("storage", (event) => {
  if (event.key !== KEY || !sync()) return;
  former.length = 0;
  showChanged();
  if (element("zoom").open) reopen(viewed.regions[viewed.at].cells[0]);
  else showCard();
  tell("Taken over from another tab.");
});
showChanged();
go(current);
