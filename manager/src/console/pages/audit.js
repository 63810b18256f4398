// Who changed what.

import { get } from "../api.js";
import { button, field, id, make, table } from "../dom.js";
import { differences, time, value } from "../format.js";
import { doing } from "../tell.js";

export const title = "Audit";
export const needs = "operator";

export async function open(view) {
  const results = make("div", { "aria-live": "polite" });
  const actor = make("input", { name: "actor", autocomplete: "off" });
  const action = make("input", { name: "action", autocomplete: "off", placeholder: "task.delete" });
  const pages = [""];
  const find = async () => {
    const query = new URLSearchParams({ limit: "50" });
    for (const input of [actor, action]) if (input.value.trim()) query.set(input.name, input.value.trim());
    if (pages.at(-1)) query.set("cursor", pages.at(-1));
    const found = await get(`/audit?${query}`);
    const turn = (text, change) => button(text, doing(async () => { change(); await find(); }));
    results.replaceChildren(paintEntries(found.items), make("div", { class: "row" },
      pages.length > 1 && turn("Newer", () => pages.pop()), found.next && turn("Older", () => pages.push(found.next))));
  };
  await find();
  view.replaceChildren(make("form", { role: "search", onsubmit: doing(async () => { pages.splice(1); await find(); }) },
    field("Who", actor), field("What", action), make("button", { class: "main" }, "Find")), results);
}

function paintEntries(entries) {
  return table("Audit", ["When", "Who", "From", "What", "To what", "Change"], entries.map(entry =>
    [time(entry.at), entry.actor, entry.from_address, entry.action, id(entry.target), id(change(entry))]), "No entry fits.");
}

// Of two objects only what differs.
function change({ before, after }) {
  const isObject = json => json !== null && typeof json === "object" && !Array.isArray(json);
  if (before === null && after === null) return "–";
  if (!isObject(before) || !isObject(after)) {
    return [before, after].filter(json => json !== null).map(value).join(" → ");
  }
  return make("ul", { class: "plain" }, ...differences(before, after).map(one =>
    make("li", {}, `${one.name}: ${value(one.before)} → ${value(one.after)}`)));
}
