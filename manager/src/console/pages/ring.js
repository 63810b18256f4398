// The schedulers' shards.

import { ask, get, has, may } from "../api.js";
import { arc } from "../charts.js";
import { button, draw, id, idHead, make, mark, number, swap, table, up } from "../dom.js";
import { percent } from "../format.js";
import { consent, doing, say } from "../tell.js";

export const title = "Ring";
export const needs = "viewer";

// Colours that people tell apart who see fewer of them; the letters say the same.
const COLOURS = 8;
const letter = at => at < 26 ? String.fromCharCode(65 + at) : `${letter(Math.floor(at / 26) - 1)}${letter(at % 26)}`;

export async function open(view, _argument, again) {
  const picture = make("div", { class: "picture" });
  const list = make("div");
  view.replaceChildren(make("div", { class: "ring" }, picture, list));
  let painted = null;
  const look = async () => {
    const schedulers = (await get("/schedulers")).items;
    const ring = await has("/ring") ? await get("/ring") : null;
    const now = JSON.stringify(ring);
    if (now !== painted) swap(picture, ...paintRing(ring));
    painted = now;
    swap(list, paintTable(schedulers, ring, picture, again));
  };
  await look();
  return look;
}

function paintRing(ring) {
  if (!ring || ring.members.length === 0) return [make("p", { class: "quiet" }, "The ring is empty.")];
  const part = (from, to, inner, outer, member) =>
    draw("path", { d: arc(from, to, inner, outer), class: `c${member % COLOURS}`, "data-member": member });
  const outer = ring.arcs.map(one => part(one.from / ring.slots, one.to / ring.slots, 78, 98, one.member));
  const inner = [];
  let from = 0;
  ring.members.forEach((member, at) => {
    const to = from + member.share_percent / 100;
    inner.push(part(from, to, 40, 68, at));
    if (member.share_percent >= 3) {
      const angle = 2 * Math.PI * ((from + to) / 2 - 0.25);
      inner.push(draw("text", { x: (54 * Math.cos(angle)).toFixed(1), y: (54 * Math.sin(angle)).toFixed(1) }, letter(at)));
    }
    from = to;
  });
  const shares = ring.members.map((member, at) => `${letter(at)} ${percent(member.share_percent)}`).join(", ");
  return [draw("svg", { viewBox: "-100 -100 200 200", role: "img", "aria-label": `Shares of the ring: ${shares}` },
    ...outer, ...inner),
    make("p", { class: "quiet" }, `Outside: who is first to answer for each part of the ring. Inside: the shares. ` +
      `Each task has ${ring.replicas} owners.`)];
}

function paintTable(schedulers, ring, picture, again) {
  const shares = new Map((ring?.members ?? []).map((member, at) => [member.peer_id, { ...member, at }]));
  const emphasize = at => event => {
    const on = event.type === "mouseenter" || event.type === "focusin";
    picture.querySelectorAll("path").forEach(path =>
      path.classList.toggle("faint", on && path.dataset.member !== String(at)));
  };
  const row = one => {
    const share = shares.get(one.peer_id);
    const head = idHead(share ? make("span", { class: "swatch" }, make("span", { class: `dot c${share.at % COLOURS}` }),
      make("strong", {}, letter(share.at)), " ", one.peer_id) : one.peer_id);
    return [head, number(share ? percent(share.share_percent) : "–"), paintState(one),
      one.up ? (one.warm ? mark("good", "warm") : mark("warn", "not warm")) : "–", number(one.weight), number(one.tasks),
      number(one.hosts), number(one.epoch), id(one.addresses.join(" ")), one.version, drain(one, again)];
  };
  const made = table("Schedulers", ["Scheduler", "Share", "State", "Warm", "Weight", "Tasks", "Hosts", "Epoch", "Addresses",
    "Version", ""], schedulers.map(row), "There is no scheduler.");
  made.querySelectorAll("tbody tr").forEach((line, at) => {
    const share = shares.get(schedulers[at].peer_id);
    if (!share) return;
    for (const kind of ["mouseenter", "mouseleave", "focusin", "focusout"]) line.addEventListener(kind, emphasize(share.at));
  });
  return made;
}

function paintState(one) {
  if (one.state === "dead") return mark("bad", "dead");
  if (one.state === "draining") return mark("warn", one.up ? "draining" : "draining, down");
  return one.up ? mark("good", "active") : up(false);
}

// Managers that cannot drain tell no state of their schedulers.
function drain(one, again) {
  if (!may("operator") || one.state === undefined) return "";
  const back = one.state !== "active";
  return button(back ? "Put back" : "Drain", doing(async () => {
    const agreed = await consent({ title: back ? "Put this scheduler back into the ring?" : "Drain this scheduler?",
      confirm: back ? "Put back" : "Drain", content: [make("p", { class: "id" }, one.peer_id), make("p", {}, back
        ? "It takes its shard over again." : "The others take its shard over; then it can be stopped.")] });
    if (!agreed) return;
    const peer = encodeURIComponent(one.peer_id);
    await ask("PATCH", `/schedulers/${peer}`, { state: back ? "active" : "draining" });
    await again();
    say(back ? "The scheduler is in the ring again." : "The scheduler is draining.");
  }), { "data-key": one.peer_id, "aria-label": `${back ? "Put back" : "Drain"} ${one.peer_id}` });
}
