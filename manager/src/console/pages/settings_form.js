// A form of the settings: one input for each value, checked while it is typed, or all of them as JSON.

import { button, field, make } from "../dom.js";
import { size } from "../format.js";

// `fields` says of settings what they mean and may be; those it does not name get an input without a range.
export function settingsForm(settings, fields, readOnly) {
  let wanted = structuredClone(settings);
  let json = null;
  const element = make("div");
  const known = new Map(fields.map(one => [one.name, one]));

  const showInputs = () => {
    json = null;
    const simple = Object.entries(wanted).filter(([, value]) => typeof value !== "object");
    const inputs = simple.map(([name, value]) => inputOf(name, value, known.get(name), readOnly, changed => {
      wanted = { ...wanted, [name]: changed };
    }));
    const others = Object.keys(wanted).length - simple.length;
    element.replaceChildren(
      make("form", { class: "settings", novalidate: true, onsubmit: event => event.preventDefault() }, ...inputs),
      make("div", { class: "row" }, button(others > 0 ? `As JSON, with ${others} more` : "As JSON", showJson)));
  };
  const showJson = () => {
    json = make("textarea", { "aria-label": "Settings as JSON", spellcheck: "false", readonly: readOnly });
    json.value = JSON.stringify(wanted, null, 2);
    const says = make("p", { class: "wrong", role: "status" });
    json.addEventListener("input", () => { says.textContent = problemOf(json.value) ?? ""; });
    element.replaceChildren(json, says, make("div", { class: "row" }, button("As a form", () => {
      if (problemOf(json.value)) return json.focus();
      wanted = JSON.parse(json.value);
      showInputs();
    })));
  };
  const read = () => {
    if (json) {
      const problem = problemOf(json.value);
      if (problem) { json.focus(); throw { detail: problem }; }
      wanted = JSON.parse(json.value);
    }
    const wrong = element.querySelector("[aria-invalid=true]");
    if (wrong) {
      wrong.focus();
      throw { detail: `${wrong.name}: ${wrong.validationMessage || wrong.dataset.problem}` };
    }
    return wanted;
  };
  showInputs();
  return { element, read };
}

function problemOf(text) {
  try {
    const json = JSON.parse(text);
    return json !== null && typeof json === "object" && !Array.isArray(json) ? null : "This is no JSON object.";
  } catch (error) {
    return `This is no JSON: ${error.message}`;
  }
}

function inputOf(name, value, about, readOnly, changed) {
  const kind = typeof value;
  const unit = about?.unit ?? (name.endsWith("_ms") ? "milliseconds" : name.endsWith("bytes_per_second") ? "bytes per second" : "");
  const says = make("span", { class: "wrong", id: `${name}-says`, role: "status" });
  const input = make("input", { name, type: kind === "number" ? "number" : kind === "boolean" ? "checkbox" : "text",
    step: kind === "number" && "1", readonly: readOnly, disabled: readOnly && kind === "boolean", autocomplete: "off",
    "aria-describedby": `${name}-says ${name}-help` });
  if (kind === "boolean") input.checked = value; else input.value = String(value);
  const help = make("span", { class: "help", id: `${name}-help` });
  const range = rangeOf(about);
  const describe = () => {
    help.textContent = [about?.description, (range || unit) && `${range} ${unit}`.trim(), readable(input, unit, about)]
      .filter(Boolean).map(text => text.endsWith(".") ? text : `${text}.`).join(" ");
  };
  input.addEventListener("input", () => {
    const problem = kind === "number" ? problemOfNumber(input.value, about) : null;
    input.toggleAttribute("data-problem", Boolean(problem));
    input.dataset.problem = problem ?? "";
    input.setAttribute("aria-invalid", String(Boolean(problem)));
    says.textContent = problem ?? "";
    describe();
    if (!problem) changed(kind === "number" ? Number(input.value) : kind === "boolean" ? input.checked : input.value);
  });
  describe();
  return field(name, input, says, help);
}

// 0 may stand for something of its own, outside of the range.
function rangeOf(about) {
  if (about?.minimum === undefined || about?.maximum === undefined) return "";
  return `${about.zero ? `0 (${about.zero}), or ` : ""}${about.minimum} to ${about.maximum}`;
}

function problemOfNumber(text, about) {
  const number = Number(text);
  if (text.trim() === "" || !Number.isSafeInteger(number) || number < 0) return "A whole number is needed.";
  const outside = number < (about?.minimum ?? 0) || number > (about?.maximum ?? Number.MAX_SAFE_INTEGER);
  if (outside && !(number === 0 && about?.zero)) return `Allowed is ${rangeOf(about)}.`;
  return null;
}

// Numbers as people read them: what 0 stands for, and large ones in larger units.
function readable(input, unit, about) {
  const number = Number(input.value);
  if (number === 0 && about?.zero) return `= ${about.zero}`;
  if (!Number.isFinite(number) || number < 1000) return "";
  if (unit.startsWith("bytes")) return `= ${size(number)}${unit === "bytes per second" ? "/s" : ""}`;
  if (unit !== "milliseconds") return "";
  const [seconds, name] = [[86_400, "days"], [3_600, "hours"], [60, "minutes"], [1, "s"]]
    .find(([one]) => number >= 1000 * one);
  return `= ${Number((number / 1000 / seconds).toFixed(2))} ${name}`;
}
