// One task: what it is bound to, who holds how much of it, and deleting it.

import { ask, get, may } from "../api.js";
import { bar } from "../charts.js";
import { button, idHead, make, mark, quiet, swap, table } from "../dom.js";
import { size, time } from "../format.js";
import { consent, doing, say } from "../tell.js";

export const title = "Task";
export const needs = "viewer";

const called = task => task.cid ? [task.cid, task.tag && `tag ${task.tag}`].filter(text => text).join(", ") : task.task_id;

export async function open(view, [task_id = ""]) {
  const path = `/tasks/${encodeURIComponent(task_id)}`;
  const content = make("div");
  // While it is deleted and after that, nobody looks for it.
  let isGoing = false;
  let seen = null;
  const look = async () => {
    seen = await get(path);
    swap(content, ...paint(seen));
  };
  const remove = button("Delete in the whole cluster", doing(async () => {
    const agreed = await consent({ title: "Delete this task in the whole cluster?", confirm: "Delete", bad: true,
      content: [make("p", { class: "id" }, called(seen)), make("p", {}, "Every host drops it, and its bytes with its last name.")] });
    if (!agreed) return;
    isGoing = true;
    const done = (await ask("DELETE", path).catch(problem => { isGoing = false; throw problem; })).json;
    say(`Deleted: ${done.dropped} hosts dropped it, ${done.unreachable} will when they come back.`, { there: true });
    location.hash = "#tasks";
  }), { class: "bad", "data-key": "delete" });
  await look();
  const about = make("dl", { class: "facts" }, ...[["Name (cid)", seen.cid], ["Tag", seen.tag], ["Task ID", task_id]]
    .filter(([, text]) => text).map(([name, text]) => make("div", {}, make("dt", {}, name), make("dd", { class: "id" }, text))));
  view.replaceChildren(make("p", {}, make("a", { href: "#tasks" }, "All tasks")), about, content,
    may("operator") && remove || "");
  return async () => {
    if (isGoing) return;
    try {
      await look();
    } catch (problem) {
      if (problem.status !== 404) throw problem;
      swap(content, quiet("It is not there any more."));
    }
  };
}

function paint(task) {
  return task.candidates.flatMap((one, at) => [
    make("h3", {}, task.candidates.length > 1 ? `Content ${at + 1} of ${task.candidates.length}` : "Content"),
    make("dl", { class: "facts" }, ...[
      ["Content ID", make("span", { class: "id" }, one.content_id)], ["Size", size(one.bytes)],
      ["Pieces", one.pieces === undefined ? undefined : `${one.pieces} of ${size(one.piece_bytes)}`],
      ["State", mark(one.state === "available" ? "good" : "bad", one.state)], ["Generation", one.generation],
      ["Since", time(one.accepted)], ["Expires", time(one.expires)], ["Complete copies", one.holders],
    ].filter(([, value]) => value !== undefined).map(([name, value]) =>
      make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
    paintHolders(one),
  ]);
}

function paintHolders(one) {
  const complete = one.peers.map(peer => [idHead(peer), mark("good", "complete"),
    bar(`Pieces of ${peer}`, 1, 1, one.pieces === undefined ? "all" : `${one.pieces} of ${one.pieces}`)]);
  const partial = (one.partial ?? []).map(holder => [idHead(holder.peer_id), mark("warn", "partial"),
    bar(`Pieces of ${holder.peer_id}`, holder.pieces, one.pieces, `${holder.pieces} of ${one.pieces}`)]);
  const more = one.holders - one.peers.length;
  return make("div", {}, table("Holders", ["Host", "Holds", "Pieces"], [...complete, ...partial], "Nobody holds it."),
    more > 0 && quiet(`And ${more} more complete holders.`));
}
