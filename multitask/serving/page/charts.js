// Line charts as SVG: axes with round numbers, a line of values that follows the pointer or the arrow keys.

import { element, filled, svg } from "./dom.js";
import { t } from "./words.js";

const HEIGHT = 220;
const LEFT = 58, RIGHT = 12, TOP = 12, BELOW = 26;
const SERIES = 8;

// 0.0012 -> "0.0012", 1530000 -> "1.53 M"
export function short(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  for (const [least, unit] of [[1e9, " G"], [1e6, " M"], [1e4, " k"]]) {
    if (size >= least) return trimmed(value / (least === 1e4 ? 1e3 : least), 3) + unit;
  }
  if (size !== 0 && size < 1e-4) return value.toExponential(2).replace(/\.?0+e/, "e");
  return size >= 1000 ? Math.round(value).toLocaleString("en") : trimmed(value, 4);
}

// The names of round values, in one unit: 5 k and 10 k rather than 5000 and 10 k.
const named = (values) => (Math.max(...values) >= 1e4 && Math.max(...values) < 1e6 ? values.map((value) => (value ? `${trimmed(value / 1e3, 3)} k` : "0")) : values.map(short));

const trimmed = (value, digits) => String(Number(value.toPrecision(digits)));

// Round values between two numbers: (0.2, 7.6) -> 0, 2, 4, 6; on a log axis 1, 2 and 5 of each power.
function ticks(low, high, most, isLog) {
  if (isLog) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      for (const digit of [1, 2, 5]) found.push(Number(`${digit}e${power}`));
    }
    const inside = found.filter((value) => value >= low && value <= high);
    const tens = inside.filter((value) => String(value.toExponential()).startsWith("1e"));
    return inside.length > most && tens.length > 1 ? tens : inside;
  }
  const rough = (high - low) / most || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((one) => one >= rough);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}

// One chart; show({title, unit, series: [{name, color, points: [[x, y], ...], hasDots}], isLog}) draws new values in place.
export class Chart {
  constructor() {
    this.caption = element("figcaption");
    this.plot = element("div", { class: "plot", tabindex: "0", role: "img", onkeydown: (event) => this.move(event) });
    this.reading = element("span", { class: "reading" });
    this.series = element("ul", { class: "series" });
    this.fold = element("details", {}, element("summary"));
    this.part = element("figure", {}, this.caption, this.plot, this.series, this.fold);
    this.at = null;
    this.isFollowing = false;
    this.plot.addEventListener("pointermove", (event) => { this.isFollowing = true; this.point(event); });
    this.plot.addEventListener("pointerleave", () => { if (this.plot !== document.activeElement) this.leave(); });
    this.plot.addEventListener("blur", () => this.leave());
    this.plot.addEventListener("focus", () => { if (this.plot.matches(":focus-visible") && this.at === null) this.go(this.places.length - 1); });
    this.fold.addEventListener("toggle", () => this.table());
    this.width = 0;
    new ResizeObserver(() => { if (Math.abs(this.plot.clientWidth - this.width) > 1) this.draw(); }).observe(this.plot);
  }

  show(data) {
    this.data = data;
    const all = new Set(data.series.flatMap((one) => one.points.map(([x]) => x)));
    this.places = [...all].sort((a, b) => a - b);
    this.caption.replaceChildren(element("span", {}, data.title, data.unit ? element("small", {}, ` (${data.unit})`) : null), this.reading);
    const last = data.series.map((one) => `${one.name} ${short(one.points.at(-1)?.[1])}`).join(", ");
    this.summary = filled(t("chart_summary"), data.title, last || t("no_values"));
    this.plot.setAttribute("aria-label", `${this.summary} ${t("chart_help")}`);
    this.fold.firstChild.textContent = t("table_of");
    if (this.at !== null && !all.has(this.at)) this.at = null;
    this.draw();
    this.table();
  }

  draw() {
    if (!this.data) return;
    this.width = Math.max(200, this.plot.clientWidth);
    const { series, isLog } = this.data;
    const values = series.flatMap((one) => one.points.map(([, y]) => y)).filter((y) => !isLog || y > 0);
    const drawn = svg("svg", { viewBox: `0 0 ${this.width} ${HEIGHT}`, "aria-hidden": "true" });
    if (!values.length) {
      drawn.append(svg("text", { x: this.width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, t("no_values")));
      this.plot.replaceChildren(drawn);
      this.x = null;
      this.values();
      return;
    }
    let low = Math.min(...values), high = Math.max(...values);
    if (isLog) [low, high] = low === high ? [low / 2, high * 2] : [low / 1.1, high * 1.1];
    else {
      const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
      [low, high] = [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
      if (this.data.startsAtZero && low > 0) low = 0;
    }
    const most = Math.max(this.data.end ?? 0, this.places.at(-1)) || 1;
    const scaled = isLog ? Math.log : (value) => value;
    this.x = (step) => LEFT + (step / most) * (this.width - LEFT - RIGHT);
    const y = (value) => HEIGHT - BELOW - ((scaled(value) - scaled(low)) / (scaled(high) - scaled(low))) * (HEIGHT - TOP - BELOW);
    this.y = y;
    const rounds = ticks(low, high, 5, isLog), names = named(rounds);
    for (const [place, value] of rounds.entries()) {
      drawn.append(svg("line", { class: "grid", x1: LEFT, x2: this.width - RIGHT, y1: y(value), y2: y(value) }),
        svg("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, names[place]));
    }
    for (const value of ticks(0, most, Math.max(2, Math.floor(this.width / 110)), false)) {
      const anchor = this.x(value) > this.width - 30 ? "end" : "middle";
      drawn.append(svg("text", { x: anchor === "end" ? this.width - RIGHT : this.x(value), y: HEIGHT - 6, "text-anchor": anchor }, short(value)));
    }
    for (const one of series) {
      const points = one.points.filter(([, value]) => !isLog || value > 0).map(([step, value]) => [this.x(step), y(value)]);
      const color = `var(--series-${one.color % SERIES})`;
      const line = svg("polyline", { points: points.map((point) => point.map((n) => n.toFixed(1)).join(",")).join(" "), fill: "none", "stroke-width": 2, "stroke-linejoin": "round" });
      line.style.stroke = color;
      drawn.append(line);
      if (one.hasDots || points.length === 1) {
        for (const [cx, cy] of points) {
          const dot = svg("circle", { cx, cy, r: 3 });
          dot.style.fill = color;
          drawn.append(dot);
        }
      }
    }
    this.cross = svg("g", {});
    drawn.append(this.cross);
    this.plot.replaceChildren(drawn);
    this.values();
  }

  // The values at the cross, or the last ones.
  values() {
    const { series } = this.data;
    const step = this.at ?? this.places.at(-1);
    if (this.cross) {
      this.cross.replaceChildren();
      if (this.at !== null && this.x) this.cross.append(svg("line", { class: "cross", x1: this.x(this.at), x2: this.x(this.at), y1: TOP, y2: HEIGHT - BELOW }));
    }
    this.series.replaceChildren(...series.map((one) => {
      const found = one.points.filter(([x]) => x <= step).at(-1) ?? one.points[0];
      const key = element("span", { class: "key", "aria-hidden": "true" });
      key.style.borderColor = `var(--series-${one.color % SERIES})`;
      return element("li", {}, key, `${one.name} `, element("b", {}, short(found?.[1])));
    }));
    this.reading.textContent = step === undefined ? "" : `${t("step")} ${Math.round(step).toLocaleString("en")}`;
  }

  go(place) {
    if (!this.places.length) return;
    this.at = this.places[Math.max(0, Math.min(place, this.places.length - 1))];
    this.values();
    this.plot.setAttribute("aria-label", `${this.data.title}. ${this.reading.textContent}: ${this.series.textContent}`);
  }

  move(event) {
    const place = this.at === null ? this.places.length - 1 : this.places.indexOf(this.at);
    const far = Math.max(1, Math.round(this.places.length / 10));
    const next = { ArrowLeft: place - 1, ArrowRight: place + 1, PageUp: place - far, PageDown: place + far, Home: 0, End: this.places.length - 1 }[event.key];
    if (event.key === "Escape") this.leave();
    if (next === undefined) return;
    event.preventDefault();
    this.go(next);
  }

  point(event) {
    if (!this.x || !this.places.length) return;
    const box = this.plot.getBoundingClientRect(), pointer = event.clientX - box.left;
    let best = 0;
    this.places.forEach((step, place) => { if (Math.abs(this.x(step) - pointer) < Math.abs(this.x(this.places[best]) - pointer)) best = place; });
    this.go(best);
  }

  leave() {
    this.at = null;
    if (!this.data) return;
    this.values();
    this.plot.setAttribute("aria-label", `${this.summary} ${t("chart_help")}`);
  }

  table() {
    if (!this.fold.open || !this.data) return;
    const { series } = this.data;
    const by = series.map((one) => new Map(one.points));
    const rows = [...this.places].reverse().slice(0, 200);
    const scroll = this.fold.querySelector(".scroll"), top = scroll?.scrollTop ?? 0;
    const table = element("table", {}, element("thead", {}, element("tr", {}, ...[t("step"), ...series.map((one) => one.name)].map((name) => element("th", { scope: "col" }, name)))),
      element("tbody", {}, ...rows.map((x) => element("tr", {}, element("th", { scope: "row" }, String(Math.round(x))), ...by.map((one) => element("td", {}, short(one.get(x))))))));
    if (scroll) scroll.replaceChildren(table);
    else this.fold.append(element("div", { class: "scroll", tabindex: "0", role: "group" }, table));
    this.fold.querySelector(".scroll").setAttribute("aria-label", `${this.data.title}: ${t("table_of")}`);
    this.fold.querySelector(".scroll").scrollTop = top;
  }
}

