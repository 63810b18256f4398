// Elements of the page. Whatever is given as a child becomes text, never markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter(child => child !== null && child !== undefined && child !== false)
    .map(child => child instanceof Node ? child : String(child)));
  return element;
}

export const make = (tag, properties = {}, ...children) => fill(document.createElement(tag), properties, children);
export const draw = (tag, properties = {}, ...children) => fill(document.createElementNS(SVG, tag), properties, children);

// A table that scrolls by itself when it is wider than the page. The first cell of a row is its head.
export function table(name, heads, rows, none = "There is none.") {
  if (rows.length === 0) return make("p", { class: "quiet" }, none);
  const head = make("tr", {}, ...heads.map(text => make("th", { scope: "col" }, text)));
  const cell = (content, at) => {
    if (content instanceof HTMLTableCellElement) return content;
    return at === 0 ? make("th", { scope: "row" }, content ?? "–") : make("td", {}, content ?? "–");
  };
  const body = rows.map(cells => make("tr", {}, ...cells.map(cell)));
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name },
    make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
}

export const id = text => make("td", { class: "id" }, text ?? "–");
export const idHead = content => make("th", { class: "id", scope: "row" }, content);
export const number = content => make("td", { class: "number" }, content ?? "–");
export const button = (text, work, properties = {}) => make("button", { type: "button", onclick: work, ...properties }, text);
export const field = (text, input, ...more) => make("label", {}, make("span", {}, text), input, ...more);
export const mark = (kind, text) => make("span", { class: `mark ${kind}` }, text);
export const up = is => is ? mark("good", "up") : mark("bad", "down");
export const quiet = text => make("p", { class: "quiet" }, text);

// Puts new content in place of the old one without taking the focus, or the place to which a table was scrolled, away.
export function swap(container, ...content) {
  const key = container.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const scrolled = [...container.querySelectorAll(".scroll")].map(part => part.scrollLeft);
  container.replaceChildren(...content);
  [...container.querySelectorAll(".scroll")].forEach((part, at) => { part.scrollLeft = scrolled[at] ?? 0; });
  if (key) [...container.querySelectorAll("[data-key]")].find(part => part.dataset.key === key)?.focus();
}
