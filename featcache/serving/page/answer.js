// One answer: the label, a bar for every label, what decided, and how to ask for it from a program.

import { byId, counted, made, percent, rounded, t } from "/words.js";

const SHOWN = 5; // labels, before the others are folded
const STRONGEST = 5; // marks that are listed with their weights

const isNumber = (found) => found.number !== undefined;

export function title(found) {
  if (isNumber(found)) return rounded(found.number);
  return found.abstained ? t("No answer") : found.label || t("No label");
}

export const sureness = (found) => (isNumber(found) ? "" : percent(found.probability));

/** A row of the list of labels: name, number, and a bar on a track with a line where the label begins. */
function bar(name, share, given, least) {
  const row = made("li", undefined, given ? "given" : "");
  const track = made("span", undefined, "track");
  track.setAttribute("aria-hidden", "true");
  const filled = made("i");
  filled.style.width = `${100 * share}%`;
  track.append(filled);
  if (least !== null) {
    const line = made("b");
    line.style.left = `${100 * least}%`;
    track.append(line);
  }
  row.append(made("span", given ? `✓ ${name}` : name, "name"), made("span", percent(share), "number"), track);
  if (least !== null) row.append(made("span", t("from {share}", { share: percent(least) }), "quiet least"));
  return row;
}

function bars(found, info) {
  const least = new Map((info.thresholds ?? []).map((share, place) => [info.labels[place], share]));
  const rows = Object.entries(found.probabilities).map(([name, share], place) => {
    const given = found.labels.includes(name);
    const first = place < SHOWN || given || Object.keys(found.probabilities).length === SHOWN + 1;
    return { first, row: bar(name, share, given, least.get(name) ?? null) };
  });
  const list = made("ul", undefined, "bars");
  list.append(...rows.filter((one) => one.first).map((one) => one.row));
  const others = rows.filter((one) => !one.first).map((one) => one.row);
  if (!others.length) return [list];
  const fold = made("details");
  const rest = made("ul", undefined, "bars");
  rest.append(...others);
  fold.append(made("summary", t("and {count} more", { count: counted(others.length) })), rest);
  return [list, fold];
}

/** The text with what decided in marks; places are counted in code points. */
function explained(text, marks) {
  const letters = Array.from(text);
  const line = made("p", undefined, "marked");
  const most = Math.max(...marks.map((one) => Math.abs(one.weight)), 1e-9);
  let place = 0;
  for (const { begin, end, weight, share } of [...marks].sort((a, b) => a.begin - b.begin)) {
    if (begin < place) continue;
    line.append(letters.slice(place, begin).join(""));
    const mark = made("mark", letters.slice(begin, end).join(""), weight > 0 ? "for" : "against");
    mark.style.setProperty("--strength", `${Math.round((40 * Math.abs(weight)) / most)}%`);
    mark.title = (share === null ? "" : t("looked at {share}, ", { share: percent(share) })) + signed(weight);
    line.append(mark);
    place = end;
  }
  line.append(letters.slice(place).join(""));
  const legend = made("p", undefined, "quiet");
  legend.append(
    made("mark", t("speaks for it"), "for"), " ", made("mark", t("speaks against it"), "against"), " ",
    t("The strongest: {marks}.", { marks: strongest(letters, marks) }),
  );
  return [made("h3", t("What decided")), line, legend];
}

const signed = (weight) => `${weight > 0 ? "+" : "−"}${Math.abs(weight).toFixed(2)}`;

function strongest(letters, marks) {
  const ordered = [...marks].sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight)).slice(0, STRONGEST);
  return ordered
    .map(({ begin, end, weight }) => `${letters.slice(begin, end).join("").trim()} ${signed(weight)}`)
    .join(", ");
}

/** The sentences below the label: why there is none, its interval, when the head answers. */
function remarks(found, info) {
  const said = [];
  if (found.abstained) said.push(found.reason);
  if (isNumber(found) && found.low !== null) {
    const level = info.interval ? rounded(100 * info.interval.level) : "";
    const ends = { low: rounded(found.low), high: rounded(found.high), level };
    said.push(t("Between {low} and {high}: such intervals contain {level} % of the numbers.", ends));
  }
  if (info.abstention && !found.abstained) {
    said.push(t("It answers from {share} on.", { share: percent(info.abstention.threshold) }));
  }
  if (found.truncated) said.push(t("The text is too long, and only a part of it was read."));
  if (found.unknown_tokens >= 0.5) said.push(t("The model does not know most of this text's words."));
  return said.map((sentence) => made("p", sentence, "held"));
}

export function showAnswer({ found, text, pair }, info) {
  const head = made("p", undefined, "label");
  head.append(made("strong", title(found)));
  if (!isNumber(found) && !found.abstained) head.append(" ", made("span", sureness(found), "quiet"));
  const parts = [made("h2", t("Answer")), head, ...remarks(found, info)];
  if (!isNumber(found)) parts.push(...bars(found, info));
  if (found.marks?.length) parts.push(...explained(pair === undefined ? text : `${text}\n${pair}`, found.marks));
  byId("answer").replaceChildren(...parts);
  byId("code").hidden = false;
}

// -- the same request from a program ---------------------------------------------------------------

function snippet(kind, content) {
  const address = `${location.origin}/predict`;
  if (kind === "curl") {
    const body = JSON.stringify(content).replaceAll("'", "'\\''");
    return `curl ${address} -H 'Content-Type: application/json' -d '${body}'`;
  }
  const values = Object.entries(content).map(([name, value]) => `"${name}": ${JSON.stringify(value)}`);
  return [
    "import requests", "",
    `answer = requests.post("${address}", json={${values.join(", ")}}).json()`,
    "print(answer)",
  ].join("\n");
}

async function copy(kind, content) {
  const shown = byId("snippet");
  shown.textContent = snippet(kind, content);
  shown.hidden = false;
  shown.setAttribute("aria-label", kind);
  try {
    await navigator.clipboard.writeText(shown.textContent);
    byId("copied").textContent = t("Copied.");
  } catch {
    getSelection().selectAllChildren(shown); // the clipboard is only for pages of this machine, or over TLS
    byId("copied").textContent = t("Selected: copy it with Ctrl+C.");
  }
}

export function hideSnippet() {
  byId("snippet").hidden = true;
  byId("copied").textContent = "";
}

/** `content` says what a request for the answer that is shown contains. */
export function watchCode(content) {
  for (const kind of ["curl", "python"]) byId(kind).addEventListener("click", () => copy(kind, content()));
}

