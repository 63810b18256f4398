// Finding tasks.

import { get } from "../api.js";
import { button, field, id, idHead, make, mark, number, table } from "../dom.js";
import { size, time } from "../format.js";
import { doing } from "../tell.js";

export const title = "Tasks";
export const needs = "viewer";

// What was looked for stays when a task was looked at.
const wanted = { cid: "", tag: "", content: "" };
export const address = task => `#task/${encodeURIComponent(task.task_id)}`;

export async function open(view) {
  const results = make("div", { "aria-live": "polite" });
  const input = name => {
    const made = make("input", { name, autocomplete: "off", oninput: event => { wanted[name] = event.target.value; } });
    made.value = wanted[name];
    return made;
  };
  const pages = [""];
  const find = async () => {
    const query = new URLSearchParams({ limit: "50" });
    for (const [key, text] of [["cid_prefix", wanted.cid], ["tag", wanted.tag], ["content_id", wanted.content]]) {
      if (text) query.set(key, text);
    }
    if (pages.at(-1)) query.set("cursor", pages.at(-1));
    const found = await get(`/tasks?${query}`);
    const turn = (text, change) => button(text, doing(async () => { change(); await find(); }));
    results.replaceChildren(paintTasks(found.items), make("div", { class: "row" },
      pages.length > 1 && turn("Previous", () => pages.pop()), found.next && turn("Next", () => pages.push(found.next))));
  };
  await find();
  view.replaceChildren(make("form", { role: "search", onsubmit: doing(async () => { pages.splice(1); await find(); }) },
    field("Name (cid)", input("cid")), field("Tag", input("tag")), field("Content ID", input("content")),
    make("button", { class: "main" }, "Find")), results);
}

function paintTasks(tasks) {
  const rows = tasks.flatMap(task => task.candidates.map(one => [
    idHead(make("a", { href: address(task) }, task.cid ?? task.task_id)), task.tag ?? "", id(one.content_id), number(size(one.bytes)),
    mark(one.state === "available" ? "good" : "bad", one.state), number(one.holders), time(one.accepted), time(one.expires)]));
  return table("Tasks", ["Task", "Tag", "Content", "Size", "State", "Holders", "Since", "Expires"], rows, "No task fits.");
}
