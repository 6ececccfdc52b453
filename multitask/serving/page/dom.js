// Elements without markup in strings: every text becomes a text node.

// element("button", {class: "small", type: "button", onclick: run}, "Run")
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export const byId = (id) => document.getElementById(id);

// filled("{0} of {1}", 2, 5) -> "2 of 5"
export const filled = (text, ...values) => text.replace(/\{(\d)\}/g, (_, place) => values[place]);

export const percent = (probability) => {
  const value = 100 * probability;
  if (value < 0.05) return "< 0.1 %"; // the server rounds: 0 is not known to be 0
  if (value > 99.95) return "> 99.9 %";
  return `${value.toFixed(1)} %`;
};

// A store that works without one: private windows may refuse it.
export const kept = (store) => ({
  get(key) {
    try { return store().getItem(key); } catch { return null; }
  },
  set(key, value) {
    try { store().setItem(key, value); } catch { /* the page works without */ }
  },
});
export const forSession = kept(() => sessionStorage);
export const forBrowser = kept(() => localStorage);
