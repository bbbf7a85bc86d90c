// The words of the page in the language that is chosen, and what every part of it needs.

let words = {};
let spoken = ""; // until it is known, the browser says what it prefers
const CHOSEN = "featcache-language";

export const byId = (id) => document.getElementById(id);

/** An element with text in it; texts are never parsed as markup. */
export function made(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  if (className) element.className = className;
  return element;
}

export function button(text, act, className = "plain") {
  const element = made("button", text, className);
  element.type = "button";
  element.addEventListener("click", act);
  return element;
}

/** An English sentence of the page in its language, with values for `{names}`. */
export function t(sentence, values = {}) {
  return (words[sentence] ?? sentence).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

export const counted = (number) => number.toLocaleString("en");

export function percent(share) {
  const shown = (100 * share).toFixed(1);
  if (share > 0 && shown === "0.0") return "< 0.1 %";
  if (share < 1 && shown === "100.0") return "> 99.9 %";
  return `${shown} %`;
}

export const rounded = (number) => String(+number.toPrecision(6));

/** A request to the server; its answer, or an error with a sentence for people. */
export async function asked(path, options = {}) {
  const language = spoken ? { "Accept-Language": spoken } : {};
  let reply;
  try {
    reply = await fetch(path, { ...options, headers: { ...options.headers, ...language } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw Object.assign(new Error(t("The server does not answer. Does it still run?")), { unreachable: true });
  }
  return answerOf(reply.status, await reply.text());
}

export function posted(path, content, options = {}) {
  const headers = { "Content-Type": "application/json" };
  return asked(path, { method: "POST", headers, body: JSON.stringify(content), ...options });
}

export function answerOf(status, text) {
  let found = null;
  try {
    found = JSON.parse(text);
  } catch {
    // said below: no answer of this server is anything else
  }
  if (status >= 200 && status < 300 && text) return found;
  const error = new Error(found?.error ?? t("The server answers with an error ({status}).", { status }));
  error.hint = found?.hint;
  throw error;
}

/** Show what is wrong beside what it is about; without an error, nothing. */
export function showProblem(place, error) {
  place.replaceChildren(...(error ? [made("span", error.message)] : []));
  if (error?.hint && !error.hint.includes("--")) place.append(made("span", error.hint, "quiet"));
}

/** Take the words of a language, by default the one chosen before, or else that of the browser. */
export async function speak(language = localStorage.getItem(CHOSEN) ?? "") {
  const found = await asked(`/words?lang=${encodeURIComponent(language)}`);
  words = found.words;
  spoken = found.language;
  document.documentElement.lang = spoken === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-word]")) {
    element.textContent = t(element.dataset.word);
  }
  const other = byId("language");
  other.textContent = spoken === "zh" ? "English" : "中文";
  other.lang = spoken === "zh" ? "en" : "zh-CN";
}

export async function speakTheOther() {
  const other = spoken === "zh" ? "en" : "zh";
  localStorage.setItem(CHOSEN, other);
  await speak(other);
}
