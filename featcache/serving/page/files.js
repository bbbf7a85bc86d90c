// Files: sent, looked after while they are labelled, and fetched. What this tab has sent survives a reload.

import { answerOf, asked, button, byId, counted, made, showProblem, t } from "/words.js";

const KEPT = "featcache-files";
const EVERY = 700; // milliseconds between two looks at a file that is worked on
const SHOWN = 5; // labels whose counts are shown
const OVER = ["done", "failed", "gone"];
const jobs = []; // {name, file, sent, request, found, row}

const query = (name) => {
  const values = { name };
  for (const id of ["text-column", "pair-column"]) {
    if (byId(id).value.trim()) values[id.replace("-", "_")] = byId(id).value.trim();
  }
  return new URLSearchParams(values);
};

const remember = () =>
  sessionStorage.setItem(KEPT, JSON.stringify(jobs.filter((job) => job.found?.id).map((job) => job.found)));

function send(job) {
  job.found = { state: "sending", name: job.name };
  job.sent = 0;
  const request = new XMLHttpRequest(); // fetch does not say how much is sent
  job.request = request;
  request.open("POST", `/files?${query(job.name)}`);
  request.setRequestHeader("Content-Type", "application/octet-stream");
  request.setRequestHeader("Accept-Language", document.documentElement.lang);
  request.upload.addEventListener("progress", (event) => {
    job.sent = event.loaded / event.total;
    draw(job);
  });
  request.addEventListener("load", () => {
    try {
      job.found = answerOf(request.status, request.responseText);
      remember();
      follow(job);
    } catch (error) {
      fail(job, error);
    }
  });
  request.addEventListener("error", () => fail(job, new Error(t("The server does not take this file, or does not answer."))));
  request.send(job.file);
  draw(job);
}

function fail(job, error) {
  job.found = { ...job.found, state: "failed", error: error.message, hint: error.hint };
  draw(job);
}

async function follow(job) {
  draw(job);
  while (jobs.includes(job) && !OVER.includes(job.found.state)) {
    await new Promise((done) => setTimeout(done, EVERY));
    try {
      job.found = await asked(`/files/${job.found.id}`);
      if (job.found.hint?.includes("-column")) byId("columns").open = true;
    } catch (error) {
      fail(job, error);
    }
    draw(job);
  }
  remember();
}

async function remove(job) {
  job.request?.abort();
  jobs.splice(jobs.indexOf(job), 1);
  job.row.remove();
  remember();
  byId("choose").focus();
  if (job.found.id) await asked(`/files/${job.found.id}`, { method: "DELETE" }).catch(() => {});
}

// -- what is shown ---------------------------------------------------------------------------------

function saying({ found, sent }) {
  const { state, before, done, total, result } = found;
  if (state === "sending") return t("Sending: {share} %", { share: Math.round(100 * sent) });
  if (state === "waiting") {
    return before ? t("Waiting, files before it: {count}", { count: counted(before) }) : t("Waiting");
  }
  if (state === "reading") return t("Reading");
  if (state === "labelling") return t("Rows: {done} of {total}", { done: counted(done), total: counted(total) });
  if (state !== "done") return t("Not labelled");
  const labelled = { done: counted(result.rows - result.bad_rows), total: counted(result.rows) };
  return t("Rows labelled: {done} of {total}", labelled);
}

function link(text, href, name) {
  const element = made("a", text);
  element.href = href;
  element.download = name;
  return element;
}

function results({ id, result, notes }) {
  const parts = [];
  const ordered = Object.entries(result.counts).sort((a, b) => b[1] - a[1]).filter(([, count]) => count);
  const shown = ordered.slice(0, SHOWN).map(([name, count]) => `${name} ${counted(count)}`);
  if (ordered.length > SHOWN) shown.push(t("and {count} more", { count: counted(ordered.length - SHOWN) }));
  if (result.abstained) shown.push(t("no answer: {count}", { count: counted(result.abstained) }));
  if (shown.length) parts.push(made("p", shown.join(" · ")));
  parts.push(link(t("Download {name}", { name: result.name }), `/files/${id}/labelled`, result.name));
  const counts = [
    [result.truncated, t("Texts that are too long and were read in part: {count}")],
    [result.mostly_unknown, t("Texts whose words the model mostly does not know: {count}")],
    [result.changed_cells, t("Cells that begin like a formula and have a ' in front: {count}")],
  ];
  for (const [count, sentence] of counts) {
    if (count) parts.push(made("p", sentence.replace("{count}", counted(count)), "quiet"));
  }
  if (result.bad_rows) {
    parts.push(made("p", t("Rows without a label: {count}", { count: counted(result.bad_rows) }), "wrong"));
    const list = made("ul", undefined, "reasons");
    for (const { line, problem } of result.first_bad_rows) {
      list.append(made("li", t("line {line}: {problem}", { line: counted(line), problem })));
    }
    parts.push(list, link(t("Download the list"), `/files/${id}/bad-rows`, `${result.name}.bad.jsonl`));
  }
  return [...parts, ...notes.map((one) => made("p", one, "quiet"))];
}

function draw(job) {
  const { found } = job;
  const over = OVER.includes(found.state);
  const head = made("div", undefined, "row");
  const state = made("span", saying(job), "quiet");
  head.append(made("strong", job.name), state);
  head.append(button(over ? t("Remove") : t("Cancel"), () => remove(job)));
  const parts = [head];
  if (!over) {
    const meter = made("progress");
    meter.setAttribute("aria-label", job.name);
    const share = found.state === "sending" ? job.sent : found.total ? found.done / found.total : undefined;
    if (share !== undefined) meter.value = share;
    parts.push(meter);
  }
  if (found.state === "done") parts.push(...results(found));
  if (found.state === "failed") {
    const place = made("p", undefined, "wrong");
    showProblem(place, Object.assign(new Error(found.error), { hint: found.hint }));
    parts.push(place);
    if (found.hint?.includes("-column")) {
      parts.push(made("p", t("Name its columns above if they have other names, and try again."), "quiet"));
    }
    if (job.file) head.append(button(t("Try again"), () => send(job)));
  }
  // The row is replaced while somebody may be on its button: the focus goes to the new one.
  const focused = job.row.contains(document.activeElement);
  job.row.replaceChildren(...parts);
  if (focused) job.row.querySelector("button").focus();
}

function add(job) {
  job.row = made("li");
  jobs.unshift(job);
  byId("jobs").prepend(job.row);
  return job;
}

function take(files, limits) {
  showProblem(byId("files-problem"));
  for (const file of files) {
    if (file.size > limits.file_bytes) {
      const values = { name: file.name, size: sized(limits.file_bytes) };
      showProblem(byId("files-problem"), new Error(t("{name} is larger than {size}.", values)));
    } else {
      send(add({ name: file.name, file }));
    }
  }
}

const sized = (bytes) => (bytes >= 1 << 20 ? `${Math.floor(bytes / (1 << 20))} MiB` : `${counted(bytes)} B`);

export function showFiles(info) {
  const values = { size: sized(info.limits.file_bytes), rows: counted(info.limits.file_rows) };
  byId("files-help").textContent = [
    t("csv, tsv, json, jsonl, txt, parquet or Excel, at most {size} and {rows} rows.", values),
    t("The result has the same columns and is kept for an hour, or until it is removed."),
  ].join(" ");
  jobs.forEach(draw);
}

export function watchFiles(info) {
  if (!info.limits.file_bytes) return;
  byId("files").hidden = false;
  byId("pair-column-field").hidden = info.pairs !== true;
  const choose = byId("choose");
  choose.addEventListener("change", () => {
    take([...choose.files], info.limits);
    choose.value = "";
  });
  const drop = byId("drop");
  for (const kind of ["dragover", "drop"]) {
    // A file that misses the field would replace the page.
    window.addEventListener(kind, (event) => event.preventDefault());
  }
  drop.addEventListener("dragover", () => drop.classList.add("over"));
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    drop.classList.remove("over");
    take([...event.dataTransfer.files], info.limits);
  });
  for (const found of JSON.parse(sessionStorage.getItem(KEPT) ?? "[]").reverse()) {
    follow(add({ name: found.name, found }));
  }
}
