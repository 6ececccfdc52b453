// The run page: curves, scores and texts of a training run, while it is under way and after.

import { download, hasKey, read, setKey } from "./client.js";
import { Chart, short } from "./charts.js";
import { byId, element, filled } from "./dom.js";
import { errorWords, t, useWords } from "./words.js";

const SOON = 3000, LATER = 6000; // milliseconds between requests: of a run that is under way, of others
const IDLE = 180; // seconds without a new line after which a run no longer counts as running

let runs = [];
let shown = null;
let name = null;
let timer = null;
let asked = 0;
let charts = {};
let failures = 0;

const chosen = () => decodeURIComponent(location.hash.slice(1));
const isRunning = (run) => !run.is_done && run.idle_s < IDLE;

function duration(seconds) {
  if (seconds < 5400) return filled(t("minutes"), Math.max(1, Math.round(seconds / 60)));
  if (seconds < 172800) return filled(t("hours"), Math.round(seconds / 3600));
  return filled(t("days"), Math.round(seconds / 86400));
}

function state(run) {
  if (run.is_done) return ["done", t("is_done")];
  const isTrained = run.max_steps && run.step >= run.max_steps;
  return isRunning(run) ? ["running", t(isTrained ? "is_scoring" : "is_running")] : ["idle", filled(t("is_idle"), duration(run.idle_s))];
}

function drawList() {
  const focused = document.activeElement?.dataset?.run;
  byId("run-list").replaceChildren(...runs.map((run) => {
    const [kind, text] = state(run);
    return element("li", {}, element("a", { href: `#${encodeURIComponent(run.name)}`, "data-run": run.name, "aria-current": run.name === name ? "true" : null },
      element("b", {}, run.name), element("span", { class: `kind state ${kind}` }, text)));
  }));
  if (focused !== undefined) [...byId("run-list").querySelectorAll("a")].find((link) => link.dataset.run === focused)?.focus();
}

// A training loss is an average since the line before it, and stands in the middle of that interval.
function middles(records) {
  let before = 0;
  return records.filter((line) => line.event === "step" && Number.isFinite(line.step)).map((line) => {
    const middle = (before + line.step) / 2;
    before = line.step;
    return [middle, line];
  });
}

function byTask(places, part, names, hasDots) {
  return names.map((task, color) => ({
    name: task, color, hasDots, points: places.filter(([, line]) => Number.isFinite(line[part]?.[task])).map(([x, line]) => [x, line[part][task]]),
  })).filter((one) => one.points.length);
}

function one(places, part, title) {
  return [{ name: title, color: 0, points: places.filter(([, line]) => Number.isFinite(line[part])).map(([x, line]) => [x, line[part]]) }];
}

function drawCharts(run) {
  const validations = run.records.filter((line) => line.event === "validation" && Number.isFinite(line.step)).map((line) => [line.step, line]);
  const steps = run.records.filter((line) => line.event === "step" && Number.isFinite(line.step)).map((line) => [line.step, line]);
  const names = [...new Set(run.records.flatMap((line) => Object.keys(line.loss ?? {})))];
  const scores = byTask(validations, "score", names, true);
  const found = {
    training: { title: t("training_loss"), unit: t("loss_unit"), isLog: true, series: byTask(middles(run.records), "loss", names, false) },
    validation: { title: t("validation_loss"), unit: t("loss_unit"), isLog: true, series: byTask(validations, "loss", names, true) },
    ...(scores.length ? { score: { title: t("validation_score"), series: scores } } : {}),
    rate: { title: t("learning_rate"), startsAtZero: true, series: one(steps, "learning_rate", t("learning_rate")) },
    speed: { title: t("tokens_per_s"), startsAtZero: true, series: one(steps, "tokens_per_s", t("tokens_per_s")) },
  };
  if (Object.keys(found).join() !== Object.keys(charts).join()) {
    charts = Object.fromEntries(Object.keys(found).map((key) => [key, new Chart()]));
    byId("charts").replaceChildren(...Object.values(charts).map((chart) => chart.part));
  }
  for (const [key, data] of Object.entries(found)) charts[key].show({ ...data, end: run.step });
}

function drawFacts(run) {
  const last = run.records.filter((line) => line.event === "step").at(-1) ?? {};
  const best = run.records.filter((line) => line.event === "validation" && line.is_best).at(-1);
  const whole = (value) => (Number.isFinite(value) ? value.toLocaleString("en") : "–");
  const facts = [
    [t("step"), run.max_steps && !run.is_done ? filled(t("step_of"), whole(run.step), whole(run.max_steps)) : whole(run.step)],
    [t("tokens_seen"), short(last.tokens)],
    [t("tokens_per_s"), short(run.results?.cost?.tokens_per_s ?? last.tokens_per_s)],
    [t("learning_rate"), short(last.learning_rate)],
    [t("best_step"), best ? filled(t("at_step"), whole(best.step)) : "–"],
  ];
  byId("facts").replaceChildren(...facts.map(([key, value]) => element("div", {}, element("dt", {}, key), element("dd", {}, value))));
  const known = run.max_steps && !run.is_done;
  byId("progress").hidden = !known;
  if (known) byId("progress").firstChild.style.width = `${Math.min(100, (100 * run.step) / run.max_steps)}%`;
}

function drawScores(run) {
  const rows = Object.entries(run.results?.tasks ?? {}).flatMap(([task, part]) => Object.entries(part?.metrics ?? {}).map(([metric, found]) => [task, metric, found]));
  byId("scores").hidden = !rows.length;
  const fixed = (value) => (!Number.isFinite(value) ? "–" : Math.abs(value) < 1000 ? value.toFixed(3) : short(value));
  const counts = {};
  for (const [task] of rows) counts[task] = (counts[task] ?? 0) + 1;
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...["task", "metric", "score", "interval"].map((word) => element("th", { scope: "col" }, t(word))))),
    element("tbody", {}, ...rows.map(([task, metric, found], place) => element("tr", {}, rows[place - 1]?.[0] === task ? null : element("th", { scope: "rowgroup", rowspan: counts[task] }, task), element("td", {}, metric),
      element("td", {}, fixed(found?.value)), element("td", {}, Number.isFinite(found?.low) ? `${fixed(found.low)} – ${fixed(found.high)}` : "–")))));
  byId("score-table").replaceChildren(element("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": t("scores") }, table));
}

// A long text, folded behind its beginning.
function folded(text) {
  if (text.length <= 240) return text;
  const start = text.slice(0, 160);
  return element("details", {}, element("summary", {}, `${start} …`), text.slice(160));
}

function drawSamples(run) {
  byId("samples").hidden = !run.samples.length;
  byId("sample-list").replaceChildren(...run.samples.map((sample) => {
    const list = element("dl");
    const entry = (title, text, kind) => list.append(element("dt", {}, title), element("dd", { class: kind }, folded(text)));
    entry(t("task"), sample.step === null ? sample.task : `${sample.task}, ${filled(t("at_step"), sample.step)}`);
    if (sample.prompt) entry(t("input"), sample.prompt);
    entry(t("prediction"), sample.text || t("empty_text"), "written");
    if (sample.references.length) entry(t("accepted"), sample.references.join("\n"));
    return element("article", { class: "sample" }, list);
  }));
}

function drawRun() {
  const run = shown;
  if (!run) return;
  const [kind, text] = state(run);
  byId("run-name").textContent = run.name;
  byId("run-state").className = `state ${kind}`;
  byId("run-state").textContent = text;
  const address = `/v1/runs/${encodeURIComponent(run.name)}/report`;
  byId("report").href = address;
  byId("report").hidden = !run.has_report || hasKey();
  byId("save-report").hidden = !run.has_report || !hasKey();
  byId("save-report").onclick = () => download(address, `${run.name.replaceAll(":", "-")}.html`).catch((error) => notice(error));
  byId("live").hidden = !isRunning(run);
  drawFacts(run);
  drawCharts(run);
}

let drawnTexts = "";

// Scores and texts change rarely: they are drawn anew only then, so that what is scrolled or selected stays.
function drawTexts() {
  if (!shown) return;
  const now = JSON.stringify([document.documentElement.lang, shown.name, shown.results?.tasks, shown.samples]);
  if (now === drawnTexts) return;
  drawnTexts = now;
  drawScores(shown);
  drawSamples(shown);
}

function notice(error) {
  const { text, detail } = errorWords(error);
  byId("page-notice").replaceChildren(element("div", { class: "notice", role: "alert" }, element("strong", {}, t("error")),
    element("p", {}, text), detail ? element("p", { class: "detail" }, detail) : null, element("button", { type: "button", onclick: refresh }, t("retry"))));
}

async function refresh() {
  clearTimeout(timer);
  asked += 1;
  const mine = asked;
  try {
    const found = (await read("/v1/runs")).runs;
    if (mine !== asked) return;
    runs = found;
    if (runs.some((run) => run.name === chosen())) name = chosen();
    else if (!runs.some((run) => run.name === name)) name = runs[0]?.name ?? null;
    const run = name === null ? null : await read(`/v1/runs/${encodeURIComponent(name)}`);
    if (mine !== asked) return;
    shown = run;
    failures = 0;
    byId("key-form").hidden = true;
    byId("page-notice").replaceChildren(...(shown ? [] : [element("p", { class: "empty" }, t("no_runs"))]));
    byId("work").hidden = !shown;
    drawList();
    drawRun();
    drawTexts();
  } catch (error) {
    if (mine !== asked) return;
    failures += 1;
    if (error.status === 401 || error.status === 403) { askForKey(!hasKey()); return; }
    notice(error);
  }
  const pause = shown && isRunning(shown) ? SOON : LATER;
  timer = setTimeout(refresh, Math.min(60000, pause * 2 ** Math.min(failures, 4)));
}

function askForKey(isFirst) {
  byId("page-notice").replaceChildren();
  byId("key-form").hidden = false;
  byId("key-error").hidden = isFirst;
  byId("key-error").textContent = isFirst ? "" : t("key_wrong");
  byId("key").focus();
}

byId("key-form").addEventListener("submit", (event) => { event.preventDefault(); setKey(byId("key").value); byId("key").value = ""; refresh(); });
addEventListener("hashchange", refresh);
document.addEventListener("visibilitychange", () => { if (document.hidden) clearTimeout(timer); else refresh(); });
useWords("runs_title", () => { drawList(); drawRun(); drawTexts(); });
refresh();
