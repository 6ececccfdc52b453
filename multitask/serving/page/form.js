// The form: fields from the task's pattern, decoding settings with their explanations.

import { element, filled } from "./dom.js";
import { t } from "./words.js";

// name, least, most, step; null: no end.
const OPTIONS = [
  ["temperature", 0, 2, 0.1],
  ["top_k", 1, 100000, 1],
  ["top_p", 0.01, 1, 0.01],
  ["repetition_penalty", 0.1, 10, 0.05],
  ["max_new_tokens", 1, 4096, 1],
  ["seed", 0, 2147483647, 1],
];
const DEFAULTS = { temperature: "0", seed: "0" };

// The fields that a user fills in: all but the target, and the earlier turns' targets where turns repeat.
export class Fields {
  constructor(place) {
    this.place = place;
    this.task = null;
    this.values = {};
    this.answered = null; // {row: the last one that was answered, as JSON, text: its answer}
  }

  use(task, values) {
    this.task = task;
    const lists = this.turnFields().length > 0;
    this.values = {};
    for (const field of task.fields) {
      const given = values?.[field.name];
      if (!field.is_list) this.values[field.name] = typeof given === "string" ? given : "";
      else this.values[field.name] = Array.isArray(given) ? given.map(String) : given ? [String(given)] : [""];
    }
    if (lists) {
      const num = this.numTurns();
      const target = values?.[task.target];
      const replies = Array.isArray(target) ? target.map(String) : target ? [String(target)] : [];
      this.values[task.target] = Array.from({ length: num - 1 }, (_, place) => replies[place] ?? "");
      for (const { name } of this.turnFields()) {
        this.values[name] = Array.from({ length: num }, (_, place) => this.values[name][place] ?? "");
      }
    }
    this.draw();
  }

  turnFields() {
    return this.task.fields.filter((field) => field.is_list && field.name !== this.task.target);
  }

  numTurns() {
    return Math.max(1, ...this.turnFields().map(({ name }) => this.values[name].length));
  }

  draw() {
    const parts = [];
    const turns = this.turnFields();
    for (const field of this.task.fields) {
      if (field.is_list || field.name === this.task.target) continue;
      parts.push(this.box(field.name, field.name, field.is_optional, () => this.values[field.name], (text) => { this.values[field.name] = text; }));
    }
    if (turns.length) {
      const num = this.numTurns();
      for (let turn = 0; turn < num; turn += 1) {
        const names = [...turns.map(({ name, is_optional }) => [name, is_optional]), ...(turn < num - 1 ? [[this.task.target, false]] : [])];
        const boxes = names.map(([name, isOptional]) => this.box(`${name}-${turn}`, name, isOptional,
          () => this.values[name][turn] ?? "", (text) => { this.values[name][turn] = text; }));
        parts.push(element("fieldset", {}, element("legend", {}, filled(t("turn"), turn + 1)), ...boxes));
      }
      const remove = element("button", { type: "button", id: "remove-turn", disabled: num === 1, onclick: () => this.change(num - 1) }, t("remove_turn"));
      const add = element("button", { type: "button", id: "add-turn", onclick: () => this.change(num + 1) }, t("add_turn"));
      parts.push(element("div", { class: "small-actions" }, add, remove));
    }
    this.place.replaceChildren(...parts);
  }

  // Adds or removes the last turn, and puts the cursor where one writes next. The answer to a turn becomes part of the
  // conversation when another turn is added to it.
  change(num) {
    const known = this.answered?.row === JSON.stringify(this.row()) ? this.answered.text : "";
    const names = this.turnFields().map(({ name }) => name);
    for (const name of names) this.values[name] = Array.from({ length: num }, (_, place) => this.values[name][place] ?? "");
    this.values[this.task.target] = Array.from({ length: num - 1 }, (_, place) => this.values[this.task.target][place] ?? known);
    this.draw();
    const turns = this.place.querySelectorAll("fieldset");
    turns[turns.length - 1].querySelector("textarea").focus();
  }

  box(key, name, isOptional, get, set) {
    const id = `field-${key}`;
    const text = element("textarea", {
      id, rows: 2, "aria-describedby": `${id}-problem`, "aria-required": isOptional ? null : "true",
      oninput: () => { set(text.value); text.removeAttribute("aria-invalid"); problem.hidden = true; },
    });
    text.value = get();
    text.dataset.optional = String(isOptional);
    const problem = element("p", { id: `${id}-problem`, class: "problem", hidden: true });
    const label = element("label", { for: id }, name, isOptional ? element("span", { class: "kind" }, ` ${t("optional")}`) : null);
    return element("div", { class: "field" }, label, text, problem);
  }

  // Marks empty fields; the first of them, or null.
  firstEmpty() {
    let found = null;
    for (const text of this.place.querySelectorAll("textarea")) {
      const isEmpty = text.dataset.optional === "false" && !text.value.trim();
      const problem = text.nextElementSibling;
      problem.hidden = !isEmpty;
      problem.textContent = isEmpty ? t("required") : "";
      if (isEmpty) text.setAttribute("aria-invalid", "true");
      else text.removeAttribute("aria-invalid");
      if (isEmpty) found ??= text;
    }
    return found;
  }

  // The row that is sent: texts, and of turns lists; optional fields only if they are filled in.
  row() {
    const found = {};
    for (const [name, value] of Object.entries(this.values)) {
      if (Array.isArray(value)) { if (value.length) found[name] = [...value]; }
      else if (value.trim() && name !== this.task.target) found[name] = value;
    }
    return found;
  }
}

// The decoding settings.
export class Options {
  constructor(place, now) {
    this.place = place;
    this.now = now;
    this.values = { ...DEFAULTS };
    this.limit = "";
  }

  draw(limit = this.limit) {
    this.limit = limit;
    this.place.replaceChildren(...OPTIONS.map(([name, least, most, step]) => {
      const id = `option-${name}`;
      const input = element("input", {
        id, type: "number", min: least, max: most, step: Number.isInteger(step) ? step : "any", inputmode: "decimal", "aria-describedby": `${id}-help ${id}-problem`,
        placeholder: name === "max_new_tokens" ? limit : null,
        oninput: () => { this.values[name] = input.value; this.say(); },
      });
      input.value = this.values[name] ?? "";
      const help = element("p", { id: `${id}-help`, class: "help" }, filled(t(`${name}_help`), limit));
      const problem = element("p", { id: `${id}-problem`, class: "problem", hidden: true });
      return element("div", { class: "option" }, element("label", { for: id }, t(name)), input, help, problem);
    }));
    this.say();
  }

  say() {
    const temperature = Number(this.values.temperature);
    this.now.textContent = temperature > 0 ? filled(t("sampled"), temperature) : t("greedy");
  }

  // Marks numbers out of range; the first of them, or null.
  firstWrong() {
    let found = null;
    for (const [name, least, most] of OPTIONS) {
      const input = this.place.querySelector(`#option-${name}`), problem = this.place.querySelector(`#option-${name}-problem`);
      const isWrong = !input.checkValidity();
      problem.hidden = !isWrong;
      problem.textContent = isWrong ? filled(t("out_of_range"), least, most) : "";
      if (isWrong) input.setAttribute("aria-invalid", "true");
      else input.removeAttribute("aria-invalid");
      if (isWrong) found ??= input;
    }
    return found;
  }

  // As the server wants them; what is empty is left to it.
  body() {
    return Object.fromEntries(OPTIONS.filter(([name]) => this.values[name]?.trim()).map(([name]) => [name, Number(this.values[name])]));
  }

  restore(body) {
    for (const [name] of OPTIONS) this.values[name] = String(body[name] ?? "");
    this.draw();
  }
}

// A pattern with its fields and markers set apart.
export function drawPattern(place, pattern, target) {
  place.replaceChildren(...pattern.split(/(\{\w+\}|<\|[^|<>{}\s]+\|>)/).filter(Boolean).map((part) => {
    if (part.startsWith("<|")) return element("span", { class: "marker" }, part);
    if (/^\{\w+\}$/.test(part)) return element("span", { class: part === `{${target}}` ? "slot target" : "slot" }, part.slice(1, -1));
    return part;
  }));
}
