// The playground: a task, a row, one model or two on the same row.

import { hasKey, predict, read, setKey } from "./client.js";
import { byId, element, filled, forSession } from "./dom.js";
import { drawPattern, Fields, Options } from "./form.js";
import { Result } from "./result.js";
import { errorWords, t, useWords } from "./words.js";

const HISTORY = "multitask.history";
const MOST_ENTRIES = 50;

const fields = new Fields(byId("fields"));
const options = new Options(byId("options"), byId("settings-now"));
let tasks = [];
let task = null;
let example = -1;
let results = [];
let running = null;
let shownEntry = null;
let entries = readHistory();

const armOf = (name) => task.arms.find((arm) => arm.name === name);
const say = (text) => { byId("status").textContent = text; };

function choose(select, names, value) {
  select.replaceChildren(...names.map(([name, text]) => element("option", { value: name }, text)));
  select.value = names.some(([name]) => name === value) ? value : names[0][0];
}

// The task, its models, its fields; values: of a row that is shown again.
function useTask(name, { arm, against, values } = {}) {
  task = tasks.find((one) => one.name === name) ?? tasks[0];
  byId("task").value = task.name;
  drawPattern(byId("pattern"), task.pattern, task.target);
  byId("target-note").textContent = filled(t("target_note"), task.target);
  drawArms(arm ?? byId("arm").value, against ?? byId("against").value);
  example = -1;
  if (values) fields.use(task, values);
  else if (task.examples.length) nextExample();
  else fields.use(task, {});
  drawExampleButton();
  options.draw(String(task.max_new_tokens));
  remember();
}

function drawArms(arm, against) {
  const names = task.arms.map((one) => [one.name, `${one.name} (${t(`kind_${one.kind}`)})`]);
  choose(byId("arm"), names, arm);
  choose(byId("against"), [["", t("nothing")], ...names.filter(([name]) => name !== byId("arm").value)], against);
}

function nextExample() {
  example = (example + 1) % task.examples.length;
  fields.use(task, task.examples[example]);
  drawExampleButton();
}

function drawExampleButton() {
  byId("example").textContent = t(example < 0 ? "example" : "next_example");
  byId("example").hidden = !task.examples.length || (example >= 0 && task.examples.length === 1);
}

// The address names the task and the models, so that it can be shared; it never holds the texts.
function remember() {
  const parts = new URLSearchParams({ task: task.name, model: byId("arm").value });
  if (byId("against").value) parts.set("with", byId("against").value);
  history.replaceState(null, "", `#${parts}`);
}

function problem(text) {
  byId("form-problem").textContent = text;
  byId("form-problem").hidden = !text;
}

function check() {
  const empty = fields.firstEmpty(), wrong = options.firstWrong();
  problem(empty || wrong ? t("fill_in") : "");
  if (wrong) byId("settings").open = true;
  (empty ?? wrong)?.focus();
  return !empty && !wrong;
}

async function run() {
  if (running || !check()) return;
  const names = [byId("arm").value, byId("against").value].filter(Boolean);
  const asked = { task: task.name, row: fields.row(), values: structuredClone(fields.values), options: options.body(), stream: byId("stream").checked };
  running = new AbortController();
  const states = names.map((name) => ({ arm: armOf(name), choices: Object.values(task.choices ?? {}), status: "running", text: "", tokens: [], prediction: null, error: null }));
  shownEntry = null;
  show(asked, states);
  busy(true);
  say(t("running"));
  if (byId("result").getBoundingClientRect().top > innerHeight / 2) byId("result").scrollIntoView({ block: "start" });
  await Promise.all(results.map((result) => answer(result, asked, running.signal)));
  running = null;
  busy(false);
  finish(asked, states);
}

// One model's answer into its card.
async function answer(result, asked, signal) {
  const { state } = result;
  Object.assign(state, { status: "running", text: "", tokens: [], prediction: null, error: null });
  result.draw();
  const body = { rows: [asked.row], arm: state.arm.name, ...asked.options, tokens: true, stream: asked.stream };
  try {
    state.prediction = await predict(asked.task, body, signal, (event) => result.add(event));
    state.status = "done";
  } catch (error) {
    state.status = signal.aborted ? "stopped" : "failed";
    state.error = error;
    if (error.status === 401 || error.status === 403) askForKey(false);
  }
  result.draw();
}

function show(asked, states) {
  results = states.map((state) => {
    const result = new Result(state, () => again(result, asked, states));
    return result;
  });
  byId("results").replaceChildren(...results.map((result) => result.card));
  byId("result-empty").hidden = true;
  agree();
}

async function again(result, asked, states) {
  if (running) return;
  running = new AbortController();
  busy(true);
  await answer(result, asked, running.signal);
  running = null;
  busy(false);
  finish(asked, states);
}

function finish(asked, states) {
  const done = states.filter((state) => state.status === "done");
  agree();
  if (done.length) {
    fields.answered = { row: JSON.stringify(asked.row), text: done[0].prediction.prediction };
    if (shownEntry) entries = entries.filter((entry) => entry !== shownEntry);
    shownEntry = { ...asked, time: Date.now(), states: structuredClone(done) };
    entries = [shownEntry, ...entries].slice(0, MOST_ENTRIES);
    keepHistory();
    drawHistory();
  }
  const failed = states.find((state) => state.status === "failed");
  if (failed) say(`${t("error")}. ${errorWords(failed.error).text}`);
  else if (done.length) say(filled(t("done"), done.map((state) => `${state.arm.name}: ${state.prediction.prediction || t("empty_text")}`).join("; ")));
  else say(t("stopped"));
}

// Whether two models agree, and what the colours of tokens mean.
function agree() {
  byId("tokens-help").hidden = !byId("results").querySelector(".token");
  const found = results.map((result) => result.state.prediction);
  const both = found.length === 2 && found.every(Boolean);
  byId("agreement").hidden = !both;
  byId("agreement").textContent = both ? t(found[0].prediction === found[1].prediction ? "same" : "differ") : "";
}

function busy(isBusy) {
  const hadFocus = document.activeElement === byId(isBusy ? "run" : "stop");
  byId("run").hidden = isBusy;
  byId("stop").hidden = !isBusy;
  byId("run-hint").hidden = isBusy;
  byId("results").setAttribute("aria-busy", String(isBusy));
  if (hadFocus) byId(isBusy ? "stop" : "run").focus();
}

function readHistory() {
  try {
    const found = JSON.parse(forSession.get(HISTORY) ?? "[]");
    return found.filter((entry) => entry.row && entry.states.every((state) => state.arm && state.choices && state.prediction));
  } catch {
    return [];
  }
}

// Tokens of old entries are many: they are kept in the page only.
function keepHistory() {
  const small = entries.map((entry, place) => (place < 5 ? entry : {
    ...entry, states: entry.states.map((state) => ({ ...state, tokens: [], prediction: { ...state.prediction, tokens: null } })),
  }));
  forSession.set(HISTORY, JSON.stringify(small));
}

function drawHistory() {
  byId("clear-history").hidden = !entries.length;
  if (!entries.length) {
    byId("history").replaceChildren(element("li", { class: "empty" }, t("history_empty")));
    return;
  }
  byId("history").replaceChildren(...entries.map((entry) => {
    const input = inOrder(entry.row).join(" / ");
    const time = new Date(entry.time).toLocaleTimeString(document.documentElement.lang, { hour: "2-digit", minute: "2-digit" });
    const answers = entry.states.map((state) => element("span", { class: "answer" }, element("span", { class: "kind" }, `${state.arm.name} `), state.prediction.prediction || t("empty_text")));
    return element("li", {}, element("button", { type: "button", onclick: () => bring(entry) },
      element("span", { class: "kind" }, `${time} · ${entry.task}`), element("span", { class: "given" }, input.slice(0, 300)), ...answers,
      element("span", { class: "unseen" }, ` ${t("use_again")}`)));
  }));
}

// The texts of a row, of turns one after another: {user: ["A", "B"], reply: ["C"]} -> A, C, B.
function inOrder(row) {
  const values = Object.values(row), lists = values.filter(Array.isArray);
  const most = Math.max(0, ...lists.map((list) => list.length));
  const turns = Array.from({ length: most }, (_, turn) => lists.map((list) => list[turn]).filter(Boolean)).flat();
  return [...values.filter((value) => !Array.isArray(value)), ...turns];
}

// Shows an earlier prediction with what it was made from.
function bring(entry) {
  if (running) return;
  const names = entry.states.map((state) => state.arm.name);
  if (tasks.some((one) => one.name === entry.task)) {
    useTask(entry.task, { arm: names[0], against: names[1] ?? "", values: entry.values });
    options.restore(entry.options);
    byId("stream").checked = entry.stream;
  }
  problem("");
  shownEntry = entry;
  show(entry, structuredClone(entry.states));
  byId("result").focus();
}

function notice(error, retry) {
  const { text, detail } = errorWords(error);
  byId("page-notice").replaceChildren(element("div", { class: "notice", role: "alert" }, element("strong", {}, t("error")),
    element("p", {}, text), detail ? element("p", { class: "detail" }, detail) : null, element("button", { type: "button", onclick: retry }, t("retry"))));
}

function askForKey(isFirst) {
  byId("key-form").hidden = false;
  byId("key-error").hidden = isFirst;
  byId("key-error").textContent = isFirst ? "" : t("key_wrong");
  byId("key").focus();
}

async function load() {
  byId("page-notice").replaceChildren(element("p", { class: "empty" }, t("loading")));
  try {
    tasks = (await read("/v1/tasks")).tasks.filter((one) => one.arms.length);
  } catch (error) {
    if (error.status === 401 || error.status === 403) {
      byId("page-notice").replaceChildren();
      askForKey(!hasKey());
    } else notice(error, load);
    return;
  }
  byId("key-form").hidden = true;
  byId("page-notice").replaceChildren();
  if (!tasks.length) {
    byId("page-notice").replaceChildren(element("p", { class: "notice" }, t("no_tasks")));
    return;
  }
  if (task) return; // a new key; what is filled in stays
  byId("work").hidden = false;
  choose(byId("task"), tasks.map((one) => [one.name, one.name]), "");
  const asked = new URLSearchParams(location.hash.slice(1));
  useTask(asked.get("task"), { arm: asked.get("model"), against: asked.get("with") ?? "" });
}

byId("task").addEventListener("change", () => { problem(""); useTask(byId("task").value); });
byId("arm").addEventListener("change", () => { drawArms(byId("arm").value, byId("against").value); remember(); });
byId("against").addEventListener("change", remember);
byId("example").addEventListener("click", () => { problem(""); nextExample(); });
byId("clear").addEventListener("click", () => {
  example = -1;
  problem("");
  fields.use(task, {});
  drawExampleButton();
  fields.place.querySelector("textarea")?.focus();
});
byId("form").addEventListener("submit", (event) => { event.preventDefault(); run(); });
byId("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run(); }
});
byId("stop").addEventListener("click", () => running?.abort());
byId("clear-history").addEventListener("click", () => { entries = []; keepHistory(); drawHistory(); byId("history-title").scrollIntoView({ block: "nearest" }); });
byId("key-form").addEventListener("submit", (event) => { event.preventDefault(); setKey(byId("key").value); byId("key").value = ""; load(); });

useWords("title", () => {
  drawHistory();
  for (const result of results) result.draw();
  agree();
  if (!task) return;
  fields.draw();
  options.draw();
  drawArms(byId("arm").value, byId("against").value);
  drawExampleButton();
  byId("target-note").textContent = filled(t("target_note"), task.target);
});
drawHistory();
load();
