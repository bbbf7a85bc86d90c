// The page: a text is sent, its answer shown, and the answers of this tab kept beside it.

import { hideSnippet, showAnswer, sureness, title, watchCode } from "/answer.js";
import { changed, showTokens, watchFields } from "/field.js";
import { showFiles, watchFiles } from "/files.js";
import { asked, byId, button, made, percent, posted, rounded, showProblem, speak, speakTheOther, t } from "/words.js";

const KEPT = "featcache-history";
const MOST = 20; // answers that are kept

let info;
let shown = null; // {text, pair, found}
let examples = [];
let earlier = JSON.parse(sessionStorage.getItem(KEPT) ?? "[]");

const textsOf = ({ text, pair }) => (pair === undefined ? { text } : { text, pair });

function typed() {
  return info.pairs === true ? { text: byId("text").value, pair: byId("pair").value } : { text: byId("text").value };
}

function refuse(area, sentence) {
  area.setAttribute("aria-invalid", "true");
  area.focus();
  showProblem(byId("problem"), new Error(sentence));
}

async function ask() {
  if (byId("send").disabled) return;
  const texts = typed();
  showProblem(byId("problem"));
  if (!texts.text.trim()) return refuse(byId("text"), t("There is no text yet: write one first."));
  if (texts.pair !== undefined && !texts.pair.trim()) {
    return refuse(byId("pair"), t("This model compares two texts, and the second one is empty."));
  }
  byId("send").disabled = true;
  try {
    shown = { ...texts, found: await posted("/predict", { ...texts, explain: info.explains === true }) };
    earlier = [shown, ...earlier].slice(0, MOST);
    keep();
    hideSnippet();
    showAnswer(shown, info);
    showEarlier();
  } catch (error) {
    showProblem(byId("problem"), error);
  } finally {
    byId("send").disabled = false;
  }
}

function keep() {
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(earlier));
  } catch {
    sessionStorage.removeItem(KEPT); // too much for it: they are there until the page is left
  }
}

function write(texts) {
  byId("text").value = texts.text;
  byId("pair").value = texts.pair ?? "";
  showProblem(byId("problem"));
  changed();
}

function restore(entry) {
  write(entry);
  shown = entry;
  hideSnippet();
  showAnswer(entry, info);
}

/** A row of a list of texts: a button with what stands before the text. */
function row(before, texts, act) {
  const line = made("li");
  const whole = button("", act, "text");
  whole.append(made("b", before), made("span", [texts.text, texts.pair].filter(Boolean).join(" · ")));
  line.append(whole);
  return line;
}

function showEarlier() {
  byId("history").hidden = !earlier.length;
  byId("history").querySelector("ol").replaceChildren(
    ...earlier.map((one) => row(`${title(one.found)} ${sureness(one.found)}`.trim(), one, () => restore(one))),
  );
}

function showExamples() {
  byId("examples").hidden = !examples.length;
  byId("examples").querySelector("ul").replaceChildren(
    ...examples.map((one) => row(one.label, one, () => {
      write(one);
      ask();
    })),
  );
}

function about() {
  const numbers = info.task === "regression";
  const parts = [info.run, info.model ?? t("words alone")];
  parts.push(numbers ? t("numbers") : t("labels: {count}", { count: info.labels.length }));
  const { max_error: error, coverage } = info.abstention ?? {};
  if (error) parts.push(t("at most {share} of its answers are wrong", { share: percent(error) }));
  if (coverage) parts.push(t("at least {share} of texts are answered", { share: percent(coverage) }));
  if (info.interval) parts.push(t("intervals of {level} %", { level: rounded(100 * info.interval.level) }));
  return parts.filter(Boolean).join(" · ");
}

/** Everything that has words in it, again. */
function draw() {
  byId("about").textContent = about();
  document.title = info.run ? `${info.run} · featcache` : "featcache";
  showTokens();
  showExamples();
  showEarlier();
  showFiles(info);
  showProblem(byId("problem"));
  hideSnippet();
  if (shown) showAnswer(shown, info);
}

async function begin() {
  await speak();
  info = await asked("/info");
  watchFields(info);
  watchFiles(info);
  draw();
  examples = (await asked("/examples")).examples;
  showExamples();
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (info) ask();
});
for (const id of ["text", "pair"]) {
  byId(id).addEventListener("keydown", (event) => {
    // While an input method composes, Enter chooses a candidate.
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      byId("ask").requestSubmit();
    }
  });
}
byId("forget").addEventListener("click", () => {
  earlier = [];
  keep();
  showEarlier();
  byId("text").focus();
});
byId("language").addEventListener("click", async () => {
  await speakTheOther();
  draw();
});
watchCode(() => textsOf(shown));
begin().catch((error) => showProblem(byId("problem"), error));
