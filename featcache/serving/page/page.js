"use strict";

const byId = (id) => document.getElementById(id);
const BARS = 10;
let explains = false;

/** An element with text in it; texts are never parsed as markup. */
function made(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function show(...parts) {
  byId("answer").replaceChildren(...parts);
}

const isNumber = (found) => found.number !== undefined;

function title(found) {
  if (isNumber(found)) return String(+found.number.toPrecision(6));
  return found.abstained ? "No answer" : found.label || "(no label)";
}

/** The text with what decided in marks; places are counted in code points. */
function marked(text, marks) {
  const letters = Array.from(text);
  const line = made("p", undefined, "marked");
  let place = 0;
  for (const { begin, end, weight, share } of [...marks].sort((a, b) => a.begin - b.begin)) {
    if (begin < place) continue;
    line.append(letters.slice(place, begin).join(""));
    const mark = made("mark", letters.slice(begin, end).join(""), weight > 0 ? "for" : "against");
    const looked = share === null ? "" : `looked at ${(100 * share).toFixed(1)} %, `;
    mark.title = `${looked}${weight > 0 ? "+" : ""}${weight.toFixed(2)}`;
    line.append(mark);
    place = end;
  }
  line.append(letters.slice(place).join(""));
  return line;
}

function showAnswer(found, text) {
  const bars = made("div", undefined, "bars");
  for (const [name, share] of Object.entries(found.probabilities || {})) {
    const bar = made("progress");
    bar.max = 1;
    bar.value = share;
    bar.setAttribute("aria-label", name);
    bars.append(made("span", name), made("span", share.toFixed(4), "number"), bar);
  }
  const parts = [made("p", title(found), "label")];
  if (found.abstained) parts.push(made("p", found.reason, "held"));
  if (isNumber(found) && found.low !== null) {
    parts.push(made("p", `${+found.low.toPrecision(6)} to ${+found.high.toPrecision(6)}`, "held"));
  }
  parts.push(bars);
  if (found.marks) parts.push(marked(text, found.marks));
  if (found.truncated) parts.push(made("p", "The text was longer than the longest length and was truncated.", "quiet"));
  if (found.unknown_tokens >= 0.5) parts.push(made("p", "Most of the text is unknown to the model's vocabulary.", "quiet"));
  show(...parts);
}

function remember(text, found) {
  byId("earlier-head").hidden = false;
  const line = made("li");
  line.append(made("b", title(found)), made("span", text));
  byId("earlier").prepend(line);
  while (byId("earlier").children.length > 20) byId("earlier").lastChild.remove();
}

async function ask(event) {
  event.preventDefault();
  const text = byId("text").value;
  if (!text.trim() || byId("send").disabled) return;
  const asked = { text, top_k: BARS, explain: explains };
  if (!byId("pair-field").hidden) asked.pair = byId("pair").value;
  byId("send").disabled = true;
  try {
    const reply = await fetch("/predict", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(asked),
    });
    const found = await reply.json();
    if (reply.ok) {
      showAnswer(found, text);
      remember(text, found);
    } else {
      show(made("p", found.error, "wrong"), made("p", found.hint || "", "quiet"));
    }
  } catch (error) {
    show(made("p", "The server cannot be reached.", "wrong"));
  } finally {
    byId("send").disabled = false;
  }
}

async function introduce() {
  const info = await (await fetch("/info")).json();
  const parts = [info.run, info.model, info.task === "regression" ? "numbers" : `${info.labels.length} labels`];
  if (info.interval) parts.push(`intervals contain ${+(100 * info.interval.level).toFixed(4)} % of numbers`);
  const { max_error: error, coverage } = info.abstention || {};
  if (error) parts.push(`at most ${+(100 * error).toFixed(4)} % errors among its answers`);
  if (coverage) parts.push(`at least ${+(100 * coverage).toFixed(4)} % of texts answered`);
  byId("about").textContent = parts.filter(Boolean).join(" · ");
  byId("pair-field").hidden = info.pairs !== true;
  explains = info.explains === true;
}

byId("ask").addEventListener("submit", ask);
byId("text").addEventListener("keydown", (event) => {
  // While an input method composes, Enter chooses a candidate.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("ask").requestSubmit();
  }
});
introduce().catch(() => {});
