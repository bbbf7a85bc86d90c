// The text fields: tokens are counted while somebody types, and what will be cut off is struck through.

import { byId, counted, made, posted, t } from "/words.js";

const WAIT = 250; // milliseconds after the last key
let info = {};
let timer, running, measured;

const areas = () => (info.pairs === true ? [byId("text"), byId("pair")] : [byId("text")]);

/** What lies behind a field: the same text, invisible, with lines through what is cut off. */
function paint(area, cut) {
  const letters = Array.from(area.value);
  const parts = [];
  let place = 0;
  for (const [begin, end] of cut) {
    parts.push(letters.slice(place, begin).join(""), made("s", letters.slice(begin, end).join("")));
    place = end;
  }
  const behind = area.previousElementSibling;
  behind.replaceChildren(...parts, letters.slice(place).join(""), "\n");
  behind.scrollTop = area.scrollTop;
}

function note() {
  if (!measured) return "";
  const values = {
    count: counted(measured.count), limit: counted(measured.limit), windows: counted(measured.windows),
  };
  if (measured.windows > 1) return t("Tokens: {count}, read in parts of at most {limit}: {windows}", values);
  if (!measured.truncated) return t("Tokens: {count} of at most {limit}", values);
  return measured.unread.length + measured.unread_pair.length
    ? t("Tokens: {count}, of which {limit} are read; what is struck through is cut off.", values)
    : t("Tokens: {count}, of which {limit} are read; the rest is cut off.", values);
}

export function showTokens() {
  byId("tokens").textContent = note();
  byId("tokens").classList.toggle("cut", measured?.truncated === true);
  const [text, pair] = areas();
  paint(text, measured?.unread ?? []);
  if (pair) paint(pair, measured?.unread_pair ?? []);
}

async function measure() {
  running?.abort();
  running = new AbortController();
  const [text, pair] = areas();
  const content = pair ? { text: text.value, pair: pair.value } : { text: text.value };
  try {
    measured = text.value.trim() ? await posted("/tokens", content, { signal: running.signal }) : null;
    showTokens();
  } catch {
    // counting is a courtesy: what is wrong is said when the text is sent
  }
}

/** Count again, as after a key. */
export function changed() {
  if (measured && !measured.truncated) measured = { ...measured, unread: [], unread_pair: [] };
  for (const area of areas()) area.removeAttribute("aria-invalid");
  if (info.max_length === null) return;
  clearTimeout(timer);
  timer = setTimeout(measure, WAIT);
}

export function watchFields(about) {
  info = about;
  byId("pair-field").hidden = info.pairs !== true;
  for (const area of areas()) {
    area.addEventListener("input", changed);
    area.addEventListener("scroll", () => {
      area.previousElementSibling.scrollTop = area.scrollTop;
    });
  }
  if (byId("text").value) changed();
}
