// One model's answer: prediction, class probabilities, tokens, and the text that the model read.

import { element, filled, percent } from "./dom.js";
import { errorWords, t } from "./words.js";

const BANDS = [[0.9, "90–100 %"], [0.6, "60–90 %"], [0.3, "30–60 %"], [0.1, "10–30 %"], [0, "0–10 %"]];
const band = (probability) => BANDS.findIndex(([least]) => probability >= least);
const LONG = 80; // tokens beyond which the candidates stay in view
const shown = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣");

// "fine-tuned", "prompted, up to 4 demonstrations"
export function armWords(arm) {
  if (!arm) return "";
  const kind = t(`kind_${arm.kind}`);
  if (arm.kind !== "prompted") return kind;
  return `${kind}, ${arm.shots ? filled(t("demonstrations_count"), arm.shots) : t("no_demonstrations")}`;
}

// state: {arm, choices, status: "running" | "done" | "failed" | "stopped", text, tokens, prediction, error}; choices: the
// words of the classes in the order of the task, by language.
export class Result {
  constructor(state, retry) {
    this.state = state;
    this.retry = retry;
    this.card = element("article", { class: "card" });
    this.draw();
  }

  draw() {
    const { arm, status, prediction, error } = this.state;
    const notes = element("span", { class: "time" });
    if (prediction) notes.textContent = timeWords(prediction.ms);
    this.text = element("p", { class: "prediction" });
    this.tokens = null;
    const head = element("header", {}, element("h3", {}, arm.name), notes, element("p", { class: "kind" }, armWords(arm)));
    const parts = [head];
    if (status === "failed") parts.push(this.problem(error));
    else {
      parts.push(this.text);
      this.showText();
      if (status === "stopped") parts.push(element("p", { class: "note" }, t("stopped")));
      if (prediction) parts.push(...this.answer(prediction));
      else if (this.state.tokens.length) parts.push(...this.tokenPart(this.state.tokens));
      if (status === "running" && !prediction) this.card.setAttribute("aria-busy", "true");
    }
    if (status !== "running") this.card.removeAttribute("aria-busy");
    this.card.replaceChildren(...parts);
  }

  // A token has come.
  add({ text, token }) {
    this.state.text += text ?? "";
    this.showText();
    if (!token) return;
    this.state.tokens.push(token);
    if (this.tokens) this.tokens.add(token);
    else this.card.append(...this.tokenPart([token]));
  }

  showText() {
    const { status, prediction, text } = this.state;
    const found = prediction ? prediction.prediction : text.trimStart();
    this.text.classList.toggle("writing", status === "running" && !prediction);
    this.text.classList.toggle("faint", !found);
    this.text.textContent = found || (status === "running" ? t("running") : t("empty_text"));
  }

  problem(error) {
    const { text, detail } = errorWords(error);
    return element("div", { class: "notice", role: "alert" },
      element("strong", {}, t("error")), element("p", {}, text), detail ? element("p", { class: "detail" }, detail) : null,
      element("button", { type: "button", onclick: this.retry }, t("retry")));
  }

  answer(prediction) {
    const parts = [];
    if (prediction.is_truncated) parts.push(element("p", { class: "note" }, t("truncated")));
    if (prediction.finish_reason === "length") parts.push(element("p", { class: "note" }, t("length")));
    const isWritten = prediction.completion.trim() === prediction.prediction.trim();
    if (prediction.classes) {
      parts.push(bars(ordered(prediction.classes, this.state.choices)));
      if (!isWritten) parts.push(element("p", { class: "help" }, t("classes_help")));
    }
    const tokens = prediction.tokens ?? this.state.tokens;
    if (tokens.length) parts.push(...this.tokenPart(tokens));
    if (!isWritten) parts.push(folded(t("raw"), [prediction.completion]));
    if (prediction.demonstrations?.length) {
      parts.push(folded(filled(t("demonstrations"), prediction.demonstrations.length), prediction.demonstrations));
    } else if (this.state.arm.shots) parts.push(element("p", { class: "help" }, t("no_demonstrations_fit")));
    if (prediction.prompt) parts.push(folded(t("prompt"), [prediction.prompt]));
    return parts;
  }

  tokenPart(tokens) {
    this.tokens = new Tokens(tokens);
    return [this.tokens.part];
  }
}

export const timeWords = (ms) => (ms < 1000 ? filled(t("milliseconds"), Math.round(ms)) : filled(t("seconds"), (ms / 1000).toFixed(1)));

function folded(title, texts) {
  return element("details", {}, element("summary", {}, title), ...texts.map((text) => element("pre", { tabindex: "0" }, text)));
}

function row(word, probability, isBest) {
  const bar = element("span", { class: "bar", "aria-hidden": "true" }, element("span"));
  bar.firstChild.style.width = `${Math.max(0.5, 100 * probability)}%`;
  return element("li", { class: isBest ? "best" : null }, word, bar, element("span", { class: "value" }, percent(probability)));
}

// Few classes in the order of the task, so that two models compare line by line; many as they came, by probability.
function ordered(classes, choices) {
  const words = Object.keys(classes);
  const known = choices.find((list) => words.length <= 8 && words.every((word) => list.includes(word)));
  return known ? Object.fromEntries(known.filter((word) => word in classes).map((word) => [word, classes[word]])) : classes;
}

function bars(classes) {
  const best = Math.max(...Object.values(classes));
  const rows = Object.entries(classes).map(([word, probability]) => row(element("span", { class: "word" }, word), probability, probability === best));
  return element("div", { class: "part" }, element("h4", {}, t("classes")), element("ul", { class: "bars classes" }, ...rows));
}

const legend = () => element("ul", { class: "legend", "aria-label": t("legend") }, ...BANDS.map(([, name], place) => element("li", { class: `band-${place}` }, name)));

let number = 0;

// Tokens in a row, and the candidates of one of them: the one that was pointed at or had the focus last. One token can be
// reached by Tab, the others by the arrow keys.
class Tokens {
  constructor(tokens) {
    number += 1;
    this.id = `candidates-${number}`;
    this.line = element("div", { class: "tokens", role: "toolbar", "aria-label": t("tokens"), onkeydown: (event) => this.move(event) });
    this.panel = element("div", { class: "candidates", id: this.id });
    this.part = element("div", { class: "part" }, element("h4", {}, t("tokens")), this.line, legend(), this.panel);
    for (const token of tokens) this.add(token);
  }

  add(token) {
    const probability = Math.exp(token.logprob);
    const show = () => this.show(made, token);
    const made = element("span", {
      class: `token band-${band(probability)}`, role: "button", tabindex: this.line.childElementCount ? "-1" : "0", "aria-describedby": this.id,
      "aria-label": filled(t("token_label"), shown(token.text), percent(probability)), onfocus: show, onmouseenter: show, onclick: () => made.focus(),
    }, (/^[ \t]*$/.test(token.text) ? shown(token.text) : token.text.replaceAll("\n", "↵\n")) || "∅");
    this.line.append(made);
    if (this.line.childElementCount === 1) show();
    this.panel.classList.toggle("sticky", this.line.childElementCount > LONG);
  }

  move(event) {
    const all = [...this.line.children], place = all.indexOf(document.activeElement);
    const next = { ArrowRight: place + 1, ArrowLeft: place - 1, ArrowDown: place + 1, ArrowUp: place - 1, Home: 0, End: all.length - 1 }[event.key];
    if (next === undefined || !all[next]) return;
    event.preventDefault();
    all[place]?.setAttribute("tabindex", "-1");
    all[next].setAttribute("tabindex", "0");
    all[next].focus();
  }

  show(made, token) {
    for (const one of this.line.querySelectorAll(".shown")) one.classList.remove("shown");
    made.classList.add("shown");
    const known = (token.top ?? []).some((one) => one.text === token.text);
    const top = known ? token.top : [...(token.top ?? []), { text: token.text, logprob: token.logprob }];
    const rows = top.map((one) => {
      const isChosen = one.text === token.text;
      const made = row(element("code", { class: "word" }, shown(one.text)), Math.exp(one.logprob), isChosen);
      if (isChosen) made.append(element("span", { class: "unseen" }, ` ${t("chosen")}`));
      return made;
    });
    this.panel.replaceChildren(element("h5", {}, filled(t("candidates"), shown(token.text))), element("ul", { class: "bars" }, ...rows));
  }
}
