// Members, what each said last, and putting one out.

import { ask, get, may } from "../api.js";
import { button, field, id, idHead, make, mark, number, swap, table, up } from "../dom.js";
import { rate, size, tags, time } from "../format.js";
import { consent, doing, say } from "../tell.js";

export const title = "Hosts";
export const needs = "viewer";

// Beyond that many the filter on the page helps nobody; the API has them all.
const SHOWN_MAX = 1000;

export async function open(view, _argument, again) {
  const list = make("div");
  const text = make("input", { type: "search", autocomplete: "off" });
  const role = make("select", {}, ...["", "node", "seed", "scheduler"].map(one =>
    make("option", { value: one }, one || "all")));
  const state = make("select", {}, ...["all", "up", "down", "revoked"].map(one => make("option", {}, one)));
  const count = make("p", { class: "quiet", role: "status" });
  let hosts = { items: [], more: false };
  const paint = () => {
    const wanted = text.value.trim().toLowerCase();
    const words = host => [host.peer_id, host.version, ...host.roles, tags(host.tags), ...host.addresses].join(" ").toLowerCase();
    const found = hosts.items.filter(host => words(host).includes(wanted) &&
      (state.value === "all" || stateOf(host) === state.value));
    const shown = `${found.length} of ${hosts.items.length}${hosts.more ? " and more" : ""} hosts`;
    if (count.textContent !== shown) count.textContent = shown;
    swap(list, paintHosts(found, again));
  };
  const look = async () => { hosts = await members(role.value); paint(); };
  text.addEventListener("input", paint);
  state.addEventListener("change", paint);
  role.addEventListener("change", doing(look));
  await look();
  view.replaceChildren(make("form", { role: "search", onsubmit: event => event.preventDefault() },
    field("Filter by ID, tag, address or version", text), field("Role", role), field("State", state)), count, list);
  return look;
}

async function members(role) {
  const items = [];
  let cursor = null;
  do {
    const query = new URLSearchParams({ limit: "200" });
    if (role) query.set("role", role);
    if (cursor) query.set("cursor", cursor);
    const part = await get(`/hosts?${query}`);
    items.push(...part.items);
    cursor = part.next;
  } while (cursor && items.length < SHOWN_MAX);
  return { items, more: Boolean(cursor) };
}

function stateOf(host) {
  if (host.revoked) return "revoked";
  if (host.roles.includes("scheduler")) return "scheduler";
  return host.up ? "up" : "down";
}

function paintState(host) {
  const state = stateOf(host);
  if (state === "revoked") return mark("info", "revoked");
  return state === "scheduler" ? make("a", { href: "#ring" }, "see Ring") : up(state === "up");
}

function paintHosts(hosts, again) {
  const rateOf = (live, key) => live && (live[key] === undefined ? undefined : rate(live[key]));
  const row = host => {
    const live = host.live;
    const disk = live && make("span", {}, `${size(live.stored_bytes)} held, ${size(live.free_bytes)} free`);
    return [idHead(host.peer_id), host.roles.join(", "), paintState(host), tags(host.tags) || "–", number(live?.epoch), disk,
      number(live?.contents), number(rateOf(live, "sent_bytes_per_second")),
      number(rateOf(live, "received_bytes_per_second")), number(live?.failures), live?.version || host.version,
      make("td", {}, make("span", { title: `joined ${time(host.joined)}` }, time(host.expires))), revoke(host, again)];
  };
  return table("Hosts", ["Host", "Roles", "State", "Tags", "Epoch", "Disk", "Contents", "Sends", "Receives", "Failures",
    "Version", "Credential until", ""], hosts.map(row), "No host fits.");
}

function revoke(host, again) {
  if (!may("admin") || host.revoked) return "";
  return button("Revoke", doing(async () => {
    const reason = await consent({ title: "Put this host out of the cluster, for good?", confirm: "Revoke", bad: true,
      input: "Why", content: [make("p", { class: "id" }, host.peer_id),
        make("p", {}, "It loses its connections within seconds, and cannot join again with this identity.")] });
    if (reason === null) return;
    await ask("POST", "/revocations", { peer_id: host.peer_id, reason });
    await again();
    say("The host is revoked.");
  }), { class: "bad", "data-key": host.peer_id, "aria-label": `Revoke ${host.peer_id}` });
}
