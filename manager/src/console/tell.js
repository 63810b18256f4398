// What the page says, and asks, beside its content.

import { button, field, make } from "./dom.js";

// A problem of the API, or none any more.
export function tell(problem) {
  const alert = document.getElementById("alert");
  alert.hidden = !problem;
  alert.textContent = problem ? problem.detail || problem.message || String(problem) : "";
}

// What was done; `there`: on the page that comes next.
let pending = "";
export function say(text, { there = false } = {}) {
  if (there) pending = text; else document.getElementById("said").textContent = text;
}

// Another page is shown: what was said on the last one is over.
export function arrive() {
  say(pending);
  pending = "";
}

// Does something for a button or a form, once at a time, and says why when it fails.
export function doing(work) {
  let busy = false;
  return async event => {
    event.preventDefault();
    if (busy) return;
    busy = true;
    tell(null);
    try { await work(event.currentTarget ?? event.target); } catch (problem) { tell(problem); } finally { busy = false; }
  };
}

// Asks before something is done. Gives what was typed, true when nothing is to be typed, or null when it shall not be
// done. The browser keeps the focus inside, closes it with Escape, and gives the focus back.
export function consent({ title, content = [], confirm, bad = false, input = null }) {
  return new Promise(resolve => {
    const typed = input && make("input", { required: true, maxlength: "500", autocomplete: "off" });
    const dialog = make("dialog", { "aria-labelledby": "dialog-title" });
    let answer = null;
    const done = event => { event.preventDefault(); answer = typed ? typed.value : true; dialog.close(); };
    dialog.append(make("form", { class: "tall", onsubmit: done }, make("h2", { id: "dialog-title" }, title), ...content,
      typed && field(input, typed),
      make("div", { class: "row" }, make("button", { class: bad ? "bad" : "main" }, confirm),
        button("Cancel", () => dialog.close()))));
    dialog.addEventListener("close", () => { dialog.remove(); resolve(answer); });
    document.body.append(dialog);
    dialog.showModal();
  });
}
