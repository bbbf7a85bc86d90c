// The page: a text is asked, a key answers, and the next one is shown when the answer is on the disk.

import { asked as ask, byId, button, made, percent, posted, speak, speakTheOther, t } from "/words.js";

const AGAIN = 2000; // milliseconds between two attempts to reach a server that is gone
const WATCH = 1000; // between two looks at the encoding
const PAUSE = 700; // without an answer, after which the curve is shown anew
const NUMBERED = 9; // labels that have a key

let state = null;
let chosen = new Set();
let note = "";
let guessShown = false;
let busy = false;
let fieldDone = null;
let watching = false;
let curveTimer = 0;
let againTimer = 0;

const row = () => state.asked.row;

/** Each key with its name, what it does, and whether that makes sense now: some need a text. */
function actions() {
  const open = Boolean(state.asked);
  return [
    ["u", t("Undo"), () => act("/undo", {}), state.mine > 0],
    ["s", t("Skip"), () => act("/skip", { row: row(), note }), open],
    ["n", t("Not sure"), () => act("/skip", { row: row(), unsure: true, note }), open],
    ["l", t("Label by name"), () => openField(t("The label, or how it begins"), chooseNamed), open],
    ["a", t("Add a label"), () => openField(t("New label"), (name) => act("/label", { name })), true],
    ["m", t("Note"), () => openField(t("Note about this text"), takeNote, note), open],
    ["g", t("What the head thinks"), showGuess, open],
    ["b", t("Confirm many"), showLikely, !state.multi_label],
  ].filter(([key]) => key !== "l" || state.labels.length > NUMBERED);
}

/** Send an answer; keys that are pressed meanwhile are for no text that the person has seen. */
async function act(path, body) {
  if (busy) return;
  busy = true;
  try {
    take(await posted(path, body));
  } catch (error) {
    if (!error.unreachable) await load(); // another tab may have answered
    fail(error);
  } finally {
    busy = false;
  }
}

function take(found) {
  const another = state?.asked?.row !== found.asked?.row;
  state = found;
  if (another) {
    chosen = new Set();
    note = "";
    guessShown = false;
    byId("guess").hidden = true;
  }
  say("");
  draw();
  if (another) byId("text").scrollTop = 0;
}

/** Text of an element; what is there already is not read aloud again. */
function write(id, text) {
  if (byId(id).textContent !== text) byId(id).textContent = text;
}

const say = (problem) => write("problem", problem);

function fail(error) {
  if (error.unreachable) {
    say(t("The server cannot be reached. Every answer before it is kept; start it again to go on."));
    clearTimeout(againTimer);
    againTimer = setTimeout(begin, AGAIN);
  } else {
    say([error.message, error.hint].filter(Boolean).join(" - "));
  }
}

async function load() {
  try {
    take(await ask("/state"));
  } catch (error) {
    fail(error);
  }
}

const answer = (labels) => act("/answer", { row: row(), labels, note, guess_shown: guessShown });

function choose(label) {
  if (!state.asked) return;
  if (!state.multi_label) {
    answer([label]);
  } else {
    if (!chosen.delete(label)) chosen.add(label);
    draw();
  }
}

function chooseNamed(name) {
  const exact = state.labels.filter((label) => label === name);
  const found = exact.length ? exact : state.labels.filter((label) => name && label.startsWith(name));
  if (found.length === 1) choose(found[0]);
  else say(t("{count} labels begin with {name}.", { count: found.length, name }));
}

function takeNote(said) {
  note = said;
  draw();
}

function sendSeveral() {
  if (state.asked && chosen.size) answer([...chosen]);
}

function keyed(key, name, run, className) {
  const element = button("", run, className);
  element.dataset.key = key || name;
  if (key) element.append(made("kbd", key));
  element.append(name);
  return element;
}

/** New buttons instead of the old ones; one that the keyboard was on has it again. */
function fill(place, buttons) {
  const held = place.querySelector(":focus-visible")?.dataset.key;
  place.replaceChildren(...buttons);
  buttons.find((one) => one.dataset.key === held)?.focus();
}

function draw() {
  const { asked, labels } = state;
  const why = [asked?.why, note && t("your note: {note}", { note })];
  write("why", why.filter(Boolean).join(" · "));
  write("text", asked ? asked.text : t("Every text has an answer."));
  const scrolls = byId("text").scrollHeight > byId("text").clientHeight;
  byId("text").toggleAttribute("tabindex", scrolls); // so that the keyboard can scroll it
  if (scrolls) byId("text").tabIndex = 0;
  const given = labels.map((label, place) => {
    const element = keyed(place < NUMBERED ? String(place + 1) : "", label, () => choose(label));
    if (state.multi_label) element.setAttribute("aria-pressed", String(chosen.has(label)));
    element.disabled = !asked;
    return element;
  });
  if (state.multi_label) {
    const send = keyed(t("Enter"), t("Done"), sendSeveral, "send");
    send.disabled = !chosen.size;
    given.push(send);
  }
  fill(byId("labels"), given);
  fill(byId("actions"), actions().map(([key, name, run, allowed]) => {
    const element = keyed(key, name, run);
    element.disabled = !allowed;
    return element;
  }));
  drawProgress();
  clearTimeout(curveTimer);
  curveTimer = setTimeout(showCurve, PAUSE);
}

function drawProgress() {
  for (const [id, sentence] of Object.entries(state.sentences)) write(id, sentence);
  if (!watching && !state.encoded) {
    watching = true;
    setTimeout(watch, WATCH);
  }
}

/** The curve when the person pauses: it takes longer than the next text. */
async function showCurve() {
  let curve;
  try {
    curve = await ask("/curve");
  } catch {
    return; // the next answer says what is wrong
  }
  byId("more").textContent = curve.sentence;
  byId("curve").hidden = curve.points.length < 2;
  byId("curve").tBodies[0].replaceChildren(...curve.points.map((point) => {
    const line = made("tr");
    const interval = t("{low} to {high}", { low: percent(point.low), high: percent(point.high) });
    line.append(...[String(point.labels), percent(point.accuracy), interval].map((cell) => made("td", cell)));
    return line;
  }));
}

/** While texts are encoded, only the progress changes under the person's hands. */
async function watch() {
  watching = false;
  try {
    const { sentences, encoded } = await ask("/state");
    Object.assign(state, { sentences, encoded });
    drawProgress();
    if (encoded) showCurve();
  } catch (error) {
    fail(error);
  }
}

async function showGuess() {
  try {
    const { guesses } = await posted("/guess", { row: row() });
    guessShown = guessShown || guesses.length > 0;
    byId("guess").textContent = guesses.length
      ? guesses.map((one) => `${one.label} ${percent(one.probability)}`).join(" · ")
      : t("No guess: this text is for the estimate, or the head knows too little.");
    byId("guess").hidden = false;
  } catch (error) {
    fail(error);
  }
}

async function showLikely() {
  try {
    const { likely } = await posted("/likely", {});
    byId("many").hidden = false;
    byId("many-send").disabled = !likely.length;
    byId("many-list").replaceChildren(...likely.map((one) => {
      const box = made("input");
      box.type = "checkbox";
      box.checked = true;
      box.dataset.row = one.row;
      box.dataset.label = one.label;
      const line = made("label");
      line.append(box, made("b", one.label), made("span", one.text));
      const item = made("li");
      item.append(line);
      return item;
    }));
    if (!likely.length) byId("many-list").append(made("li", t("The head is not sure enough of any text yet.")));
    byId(likely.length ? "many-send" : "many-close").focus();
  } catch (error) {
    fail(error);
  }
}

function closeMany() {
  byId("many").hidden = true;
  document.activeElement.blur();
}

function confirmMany() {
  const labels = {};
  for (const box of byId("many-list").querySelectorAll("input:checked")) labels[box.dataset.row] = box.dataset.label;
  closeMany();
  if (Object.keys(labels).length) act("/confirm", { labels });
}

function openField(name, done, value = "") {
  byId("field-name").textContent = name;
  byId("field-text").value = value;
  byId("field").hidden = false;
  byId("field-text").focus();
  fieldDone = done;
}

function closeField() {
  byId("field").hidden = true;
  byId("field-text").blur();
}

function showWords() {
  byId("asked").setAttribute("aria-label", t("Text to label"));
  byId("given").setAttribute("aria-label", t("Labels"));
  byId("others").setAttribute("aria-label", t("Other answers"));
}

async function begin() {
  try {
    await speak();
    showWords();
    await load();
  } catch (error) {
    fail(error);
  }
}

byId("field-text").addEventListener("keydown", (event) => {
  event.stopPropagation();
  // While an input method composes, Enter chooses a candidate.
  if (event.key === "Enter" && !event.isComposing) {
    closeField();
    fieldDone(byId("field-text").value.trim());
  } else if (event.key === "Escape") {
    closeField();
  }
});

document.addEventListener("keydown", (event) => {
  if (!state || event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.repeat) return;
  if (event.key === "Escape") closeMany();
  if (event.target.tagName === "INPUT" || !byId("many").hidden) return;
  const label = state.labels[/^[1-9]$/.test(event.key) ? Number(event.key) - 1 : -1];
  const found = actions().find(([key]) => key === event.key.toLowerCase());
  if (event.key === "Enter" && state.multi_label && event.target.tagName !== "BUTTON") {
    sendSeveral();
  } else if (label !== undefined) {
    event.preventDefault();
    choose(label);
  } else if (found?.[3]) {
    event.preventDefault();
    found[2]();
  }
});
byId("many-send").addEventListener("click", confirmMany);
byId("many-close").addEventListener("click", closeMany);
byId("language").addEventListener("click", async () => {
  await speakTheOther();
  showWords();
  await load();
});
begin();
