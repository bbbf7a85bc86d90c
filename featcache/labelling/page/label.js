"use strict";

const byId = (id) => document.getElementById(id);
const AGAIN = 2000; // milliseconds between two attempts to reach a server that is gone
const WATCH = 1000; // between two looks at the encoding
const PAUSE = 700; // without an answer, after which the curve is shown anew
const ACTIONS = [
  ["u", "Undo", () => act("/undo", {})],
  ["s", "Skip", () => act("/skip", { row: state.asked.row, note })],
  ["n", "Not sure", () => act("/skip", { row: state.asked.row, unsure: true, note })],
  ["a", "Add a label", () => openField("New label", (name) => act("/label", { name }))],
  ["m", "Note", () => openField("Note about this text", (said) => { note = said; draw(); }, note)],
  ["g", "What the head thinks", showGuess],
  ["b", "Confirm many", showLikely],
];

let state = null;
let chosen = new Set();
let note = "";
let guessShown = false;
let busy = false;
let fieldDone = null;
let watching = false;
let curveTimer = 0;

/** An element with text in it; texts are never parsed as markup. */
function made(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

/** Whether an action makes sense now: some need a text. */
const allowed = (key) => Boolean(state.asked) || ["u", "a", "b"].includes(key);
const percent = (share) => `${(100 * share).toFixed(1)} %`;

async function ask(path, body) {
  const reply = await fetch(path, body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  const found = await reply.json();
  if (!reply.ok) throw Object.assign(new Error(found.error), { hint: found.hint });
  return found;
}

/** Send an answer; the next text is shown when it is on the disk. */
async function act(path, body) {
  if (busy || !state) return;
  busy = true;
  try {
    take(await ask(path, body));
  } catch (error) {
    fail(error);
  } finally {
    busy = false;
  }
}

function take(found) {
  const another = !state || !state.asked || !found.asked || state.asked.row !== found.asked.row;
  state = found;
  if (another) {
    chosen = new Set();
    note = "";
    guessShown = false;
    byId("guess").hidden = true;
    byId("text").scrollTop = 0;
  }
  byId("problem").textContent = "";
  draw();
}

function fail(error) {
  if (error instanceof TypeError) {
    byId("problem").textContent = "The server cannot be reached. What was answered is kept; start it again to go on.";
    setTimeout(load, AGAIN);
  } else {
    byId("problem").textContent = [error.message, error.hint].filter(Boolean).join(" - ");
  }
}

async function load() {
  try {
    take(await ask("/state"));
  } catch (error) {
    fail(error);
  }
}

function choose(label) {
  if (!state.asked) return;
  if (!state.multi_label) {
    act("/answer", { row: state.asked.row, labels: [label], note, guess_shown: guessShown });
    return;
  }
  if (!chosen.delete(label)) chosen.add(label);
  draw();
}

function sendSeveral() {
  if (state.asked && chosen.size) {
    act("/answer", { row: state.asked.row, labels: [...chosen], note, guess_shown: guessShown });
  }
}

function button(key, name, run, className) {
  const element = made("button", undefined, className);
  element.type = "button";
  if (key) element.append(made("kbd", key));
  element.append(name);
  element.addEventListener("click", run);
  return element;
}

function draw() {
  const { asked, estimate, encoding } = state;
  const strategy = state.strategy ? [`strategy ${state.strategy}`] : [];
  byId("about").textContent = [state.by, state.file, ...strategy].join(" · ");
  byId("reason").textContent = asked ? asked.reason + (note ? ` · note: ${note}` : "") : "";
  byId("text").textContent = asked ? asked.text : "Every text has an answer.";
  byId("labels").replaceChildren(...state.labels.map((label, place) => {
    const element = button(place < 9 ? String(place + 1) : "", label, () => choose(label));
    if (state.multi_label) element.setAttribute("aria-pressed", String(chosen.has(label)));
    element.disabled = !asked;
    return element;
  }));
  if (state.multi_label) byId("labels").append(button("Enter", "Done", sendSeveral));
  byId("actions").replaceChildren(...ACTIONS.map(([key, name, run]) => {
    const element = button(key, name, run, "plain");
    element.disabled = !allowed(key);
    return element;
  }));
  const more = [`${state.labelled} of ${state.texts} texts have labels, ${state.mine} answered by you`];
  if (state.conflicts) more.push(`${state.conflicts} with unlike labels`);
  if (state.elsewhere) more.push(`${state.elsewhere} answers are about texts that are not in this file`);
  byId("counts").textContent = more.join("; ");
  byId("accuracy").textContent = estimate
    ? `Accuracy ${percent(estimate.accuracy)} (95 %: ${percent(estimate.low)} to ${percent(estimate.high)}), `
      + `on ${estimate.rows} texts drawn at random`
    : state.strategy ? "No accuracy yet: the head needs two labels, and texts drawn at random to be scored on." : "";
  byId("encoding").textContent = encodingText(encoding);
  if (!watching && !encoding.ready && !encoding.problem) {
    watching = true;
    setTimeout(watch, WATCH);
  }
  clearTimeout(curveTimer);
  curveTimer = setTimeout(showCurve, PAUSE);
}

/** The curve when the person pauses: it takes longer than the next text. */
async function showCurve() {
  let curve;
  try {
    curve = await ask("/curve");
  } catch {
    return; // the next answer says what is wrong
  }
  byId("more").textContent = curve.more
    ? `${curve.more.labels} more labels: about ${(100 * curve.more.gain).toFixed(1)} points more `
      + `(95 %: ${(100 * curve.more.low).toFixed(1)} to ${(100 * curve.more.high).toFixed(1)})`
    : "";
  byId("curve").hidden = curve.points.length < 2;
  byId("curve").tBodies[0].replaceChildren(...curve.points.map((point) => {
    const line = made("tr");
    const cells = [String(point.labels), percent(point.accuracy), `${percent(point.low)} to ${percent(point.high)}`];
    line.append(...cells.map((cell) => made("td", cell)));
    return line;
  }));
}

function encodingText({ ready, problem, done, total, stage }) {
  if (ready) return "";
  if (problem) return `The texts could not be encoded, so they are drawn at random: ${problem}`;
  const far = stage === "encode" ? `${done} of ${total}` : "the model is loaded";
  return `Texts are encoded (${far}); until then they are drawn at random.`;
}

/** While texts are encoded, only the line about that changes under the person's hands. */
async function watch() {
  try {
    const { encoding } = await ask("/state");
    state.encoding = encoding;
    byId("encoding").textContent = encodingText(encoding);
    watching = !encoding.ready && !encoding.problem;
    if (watching) setTimeout(watch, WATCH);
  } catch {
    setTimeout(watch, AGAIN);
  }
}

async function showGuess() {
  if (!state.asked) return;
  try {
    const { guesses } = await ask("/guess", { row: state.asked.row });
    guessShown = guessShown || guesses.length > 0;
    byId("guess").textContent = guesses.length
      ? guesses.map((one) => `${one.label} ${percent(one.probability)}`).join(" · ")
      : "No guess: this text is for the estimate, or the head knows too little.";
    byId("guess").hidden = false;
  } catch (error) {
    fail(error);
  }
}

async function showLikely() {
  try {
    const { likely } = await ask("/likely", {});
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
    if (!likely.length) byId("many-list").append(made("li", "The head is not sure enough of any text yet."));
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
  if (["INPUT", "TEXTAREA"].includes(event.target.tagName) || !byId("many").hidden) return;
  const place = Number(event.key) - 1;
  if (event.key === "Enter" && state.multi_label && event.target.tagName !== "BUTTON") {
    sendSeveral();
  } else if (/^[1-9]$/.test(event.key) && place < state.labels.length) {
    event.preventDefault();
    choose(state.labels[place]);
  } else {
    const found = ACTIONS.find(([key]) => key === event.key.toLowerCase());
    if (found && allowed(found[0])) {
      event.preventDefault();
      found[2]();
    }
  }
});
byId("many-send").addEventListener("click", confirmMany);
byId("many-close").addEventListener("click", closeMany);
load();
