// The console of dfmanager: a client of /api/v1. Whatever comes from there becomes text, never markup.
"use strict";

const RANKS = ["viewer", "operator", "admin"];
const state = { session: null, events: null, overview: null };
const main = document.getElementById("main");

// ---- the page

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter(child => child !== null && child !== undefined).map(child =>
    typeof child === "object" ? child : String(child)));
  return element;
}

function table(heads, rows) {
  if (rows.length === 0) return make("p", { class: "quiet" }, "There is none.");
  const head = make("tr", {}, ...heads.map(text => make("th", { scope: "col" }, text)));
  const body = rows.map(cells => make("tr", {}, ...cells.map(cell =>
    cell?.nodeName === "TD" ? cell : make("td", {}, cell ?? "–"))));
  return make("div", { class: "scroll" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
}

const id = text => make("td", { class: "id" }, text);
const up = is => make("span", { class: is ? "up" : "down" }, is ? "up" : "down");
const field = (text, input) => make("label", {}, text, input);
const may = role => state.session && RANKS.indexOf(state.session.role) >= RANKS.indexOf(role);

function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit += 1; }
  return `${unit === 0 ? bytes : bytes.toFixed(1)} ${units[unit]}`;
}

const time = text => text ? new Date(text).toLocaleString() : "–";

function tell(problem) {
  const alert = document.getElementById("alert");
  alert.hidden = !problem;
  alert.textContent = problem ? problem.detail || problem.message || String(problem) : "";
}

function show(title, ...content) {
  main.replaceChildren(make("h2", {}, title), ...content);
}

// Does something for a button, and says why when it fails.
function doing(work) {
  return async event => {
    event.preventDefault();
    tell(null);
    try { await work(event.target); } catch (problem) { tell(problem); }
  };
}

// ---- the API

async function ask(method, path, body, headers = {}) {
  const options = { method, headers: { ...headers }, credentials: "same-origin" };
  if (body !== undefined) {
    options.body = typeof body === "string" ? body : JSON.stringify(body);
    options.headers["content-type"] = "application/json";
  }
  if (method !== "GET" && state.session?.csrf_token) options.headers["x-csrf-token"] = state.session.csrf_token;
  const answer = await fetch(`/api/v1${path}`, options);
  const text = await answer.text();
  const json = text && answer.headers.get("content-type")?.includes("json") ? JSON.parse(text) : null;
  if (answer.status === 401 && state.session) { leave(); throw { detail: "The session has ended: log in again." }; }
  if (!answer.ok) throw json || { detail: `The manager answers ${answer.status}.` };
  return { json, etag: answer.headers.get("etag") };
}

const get = async path => (await ask("GET", path)).json;

// ---- pages

const pages = {
  overview: ["Overview", async () => { watch(); paintOverview(); }],
  hosts: ["Hosts", async () => {
    const hosts = (await get("/hosts?limit=200")).items;
    const revoke = host => !may("admin") || host.revoked ? null : make("button", { class: "bad", type: "button",
      onclick: doing(async () => {
        const reason = prompt(`Why is ${host.peer_id} put out of the cluster, for good?`);
        if (!reason) return;
        await ask("POST", "/revocations", { peer_id: host.peer_id, reason });
        await route();
      }) }, "Revoke");
    show("Hosts", table(["Host", "Roles", "State", "Epoch", "Holds", "Free", "Sent", "Received", "Version", ""],
      hosts.map(host => [id(host.peer_id), host.roles.join(", "),
        host.revoked ? "revoked" : host.roles.includes("scheduler") ? "see Ring" : up(host.up),
        host.live?.epoch, host.live && `${host.live.contents} · ${size(host.live.stored_bytes)}`,
        host.live && size(host.live.free_bytes), host.live && size(host.live.sent_bytes),
        host.live && size(host.live.received_bytes), host.version, revoke(host) ?? ""])));
  }],
  ring: ["Ring", async () => {
    const schedulers = (await get("/schedulers")).items;
    show("Ring", table(["Scheduler", "State", "Weight", "Tasks", "Hosts", "Epoch", "Addresses", "Version"],
      schedulers.map(one => [id(one.peer_id), up(one.up), one.weight, one.tasks, one.hosts, one.epoch,
        one.addresses.join(" "), one.version])));
  }],
  tasks: ["Tasks", async () => {
    const results = make("div", {}, make("p", { class: "quiet" }, "Search by name or content, or list all."));
    const cid = make("input", { name: "cid", autocomplete: "off" });
    const tag = make("input", { name: "tag", autocomplete: "off" });
    const content = make("input", { name: "content", autocomplete: "off" });
    const find = async (cursor = "") => {
      const query = new URLSearchParams({ limit: "100" });
      for (const [name, input] of [["cid", cid], ["tag", tag], ["content_id", content]]) {
        if (input.value) query.set(name, input.value);
      }
      if (cursor) query.set("cursor", cursor);
      const found = await get(`/tasks?${query}`);
      const remove = task => !may("operator") ? "" : make("button", { class: "bad", type: "button",
        onclick: doing(async () => {
          if (!confirm(`Delete ${task.cid ?? task.task_id} in the whole cluster?`)) return;
          await ask("DELETE", `/tasks/${task.task_id}`);
          await find(cursor);
        }) }, "Delete");
      const rows = found.items.flatMap(task => task.candidates.map(one => [id(task.cid ?? task.task_id),
        id(one.content_id), size(one.bytes), one.state, `${one.holders}`, time(one.accepted), time(one.expires),
        remove(task)]));
      const next = found.next && make("button", { type: "button", onclick: doing(() => find(found.next)) }, "More");
      results.replaceChildren(table(["Task", "Content", "Size", "State", "Holders", "Since", "Expires", ""], rows),
        next || "");
    };
    show("Tasks", make("form", { onsubmit: doing(() => find()) }, field("Name (cid)", cid), field("Tag", tag),
      field("Content ID", content), make("button", {}, "Find")), results);
  }],
  config: ["Configuration", async () => {
    const { json, etag } = await ask("GET", "/config");
    const text = make("textarea", { "aria-label": "Settings", spellcheck: "false", readonly: !may("operator") });
    text.value = JSON.stringify(json, null, 2);
    const save = make("form", { onsubmit: doing(async () => {
      await ask("PUT", "/config", text.value, { "if-match": etag });
      await route();
    }) }, may("operator") ? make("button", {}, "Put in force") : "");
    const history = (await get("/config/history?limit=20")).items;
    const back = entry => !may("operator") || `"${entry.epoch}"` === etag ? "" : make("button", { type: "button",
      onclick: doing(async () => {
        if (!confirm(`Bring the settings of epoch ${entry.epoch} back?`)) return;
        await ask("POST", "/config/rollback", { epoch: entry.epoch });
        await route();
      }) }, "Bring back");
    show(`Configuration, epoch ${etag?.replaceAll('"', "")}`, text, save, make("h2", {}, "History"),
      table(["Epoch", "When", "Changed", ""], history.map(entry =>
        [entry.epoch, time(entry.issued), entry.damaged ?? entry.changed.join(", "), back(entry)])));
  }],
  access: ["Access", async () => {
    const parts = [];
    if (may("admin")) parts.push(...await joinTokens(), ...await users());
    parts.push(...await ownTokens());
    show("Access", ...parts);
  }],
  audit: ["Audit", async () => {
    const entries = (await get("/audit?limit=100")).items;
    const value = json => json === null ? "–" : JSON.stringify(json);
    show("Audit", table(["When", "Who", "From", "What", "To what", "Before", "After"], entries.map(entry =>
      [time(entry.at), entry.actor, entry.from_address, entry.action, id(entry.target), id(value(entry.before)),
        id(value(entry.after))])));
  }],
};

function paintOverview() {
  const seen = state.overview;
  if (!seen) return show("Overview", make("p", { class: "quiet" }, "Looking…"));
  const rate = bytes => `${size(bytes)}/s`;
  const served = seen.rates.received_bytes_per_second + seen.rates.local_bytes_per_second;
  const cards = [
    ["Hosts up", `${seen.hosts_up} of ${seen.hosts}`], ["Schedulers up", `${seen.schedulers_up} of ${seen.schedulers}`],
    ["Seeds up", seen.seeds_up], ["Tasks", seen.tasks], ["Copies", seen.contents],
    ["Stored", size(seen.stored_bytes)], ["Downloads", seen.downloads],
    ["From peers", rate(seen.rates.received_bytes_per_second)], ["From local stores", rate(seen.rates.local_bytes_per_second)],
    ["Share from peers", served ? `${Math.round(100 * seen.rates.received_bytes_per_second / served)} %` : "–"],
    ["Epoch", seen.epoch], ["Rolled out", `${seen.roll_out_percent.toFixed(0)} %`],
  ];
  show("Overview", make("dl", { class: "cards" }, ...cards.map(([name, value]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
    make("p", { class: "quiet" }, `Cluster ${seen.cluster_id}, dfmanager ${seen.version}`));
}

function watch() {
  if (state.events) return;
  state.events = new EventSource("/api/v1/events");
  state.events.addEventListener("overview", event => {
    state.overview = JSON.parse(event.data);
    if (page() === "overview") paintOverview();
  });
}

async function joinTokens() {
  const roles = make("select", {}, ...["node", "node, seed", "scheduler"].map(text => make("option", {}, text)));
  const uses = make("input", { type: "number", min: "1", value: "1", required: true });
  const hours = make("input", { type: "number", min: "1", value: "1", required: true });
  const shown = make("div", {});
  const form = make("form", { onsubmit: doing(async () => {
    const body = { roles: roles.value.split(", "), uses: Number(uses.value), ttl_seconds: 3600 * Number(hours.value) };
    const made = (await ask("POST", "/join-tokens", body)).json;
    const program = body.roles.includes("scheduler") ? "dfscheduler" : "dfdaemon";
    shown.replaceChildren(make("p", {}, "Shown this once. On the new host:"), make("pre", {}, `${program} --join ${made.token}`));
  }) }, field("Makes a host", roles), field("Hosts", uses), field("Hours", hours), make("button", {}, "Make a join token"));
  const known = (await get("/join-tokens?limit=50")).items;
  const withdraw = token => token.withdrawn ? "" : make("button", { class: "bad", type: "button",
    onclick: doing(async () => { await ask("DELETE", `/join-tokens/${token.id}`); await route(); }) }, "Withdraw");
  return [make("h2", {}, "Join tokens"), form, shown, table(["Token", "Roles", "Left", "Expires", "By", ""],
    known.map(token => [id(token.id), token.roles.join(", "), `${token.uses_left} of ${token.uses}`,
      token.withdrawn ? "withdrawn" : time(token.expires), token.created_by, withdraw(token)]))];
}

async function users() {
  const name = make("input", { required: true, autocomplete: "off" });
  const password = make("input", { type: "password", required: true, autocomplete: "new-password" });
  const role = make("select", {}, ...RANKS.map(text => make("option", {}, text)));
  const form = make("form", { onsubmit: doing(async () => {
    await ask("POST", "/users", { name: name.value, password: password.value, role: role.value });
    await route();
  }) }, field("Name", name), field("Password", password), field("Role", role), make("button", {}, "Add a user"));
  const known = (await get("/users?limit=200")).items;
  const remove = user => make("button", { class: "bad", type: "button", onclick: doing(async () => {
    if (!confirm(`Delete the user ${user.name}?`)) return;
    await ask("DELETE", `/users/${encodeURIComponent(user.name)}`);
    await route();
  }) }, "Delete");
  return [make("h2", {}, "Users"), form, table(["Name", "Role", "Since", ""],
    known.map(user => [user.name, user.disabled ? `${user.role}, disabled` : user.role, time(user.created), remove(user)]))];
}

async function ownTokens() {
  const label = make("input", { required: true, autocomplete: "off" });
  const shown = make("div", {});
  const form = make("form", { onsubmit: doing(async () => {
    const made = (await ask("POST", "/tokens", { label: label.value })).json;
    shown.replaceChildren(make("p", {}, "Shown this once:"), make("pre", {}, made.token));
  }) }, field("What for", label), make("button", {}, "Make a token"));
  const known = (await get("/tokens?limit=100")).items;
  const revoke = token => make("button", { class: "bad", type: "button", onclick: doing(async () => {
    await ask("DELETE", `/tokens/${token.id}`);
    await route();
  }) }, "Revoke");
  return [make("h2", {}, "Personal access tokens"), form, shown, table(["Label", "User", "Role", "Expires", ""],
    known.map(token => [token.label, token.user, token.role, time(token.expires), revoke(token)]))];
}

// ---- who asks

function credentials(title, button, work) {
  const name = make("input", { name: "name", required: true, autocomplete: "username" });
  const password = make("input", { name: "password", type: "password", required: true, autocomplete: "current-password" });
  show(title, make("form", { class: "tall", onsubmit: doing(() => work(name.value, password.value)) },
    field("Name", name), field("Password", password), make("button", {}, button)));
  name.focus();
}

async function enter(name, password) {
  state.session = (await ask("POST", "/session", { name, password })).json;
  if (location.pathname !== "/") history.replaceState(null, "", "/");
  await route();
}

function leave() {
  state.events?.close();
  Object.assign(state, { session: null, events: null, overview: null });
  paintHeader();
  credentials("Log in", "Log in", enter);
}

const page = () => pages[location.hash.slice(1)] ? location.hash.slice(1) : "overview";

function paintHeader() {
  const nav = document.getElementById("nav");
  nav.hidden = document.getElementById("who").hidden = !state.session;
  if (!state.session) return;
  document.getElementById("name").textContent = `${state.session.name} (${state.session.role})`;
  const visible = Object.entries(pages).filter(([key]) => key !== "audit" || may("operator"));
  nav.replaceChildren(...visible.map(([key, [title]]) =>
    make("a", { href: `#${key}`, "aria-current": key === page() ? "page" : undefined }, title)));
}

async function route() {
  tell(null);
  if (!state.session) return leave();
  paintHeader();
  try { await pages[page()][1](); } catch (problem) { tell(problem); }
}

async function begin() {
  document.getElementById("logout").addEventListener("click", doing(async () => { await ask("DELETE", "/session"); leave(); }));
  window.addEventListener("hashchange", async () => { await route(); main.focus(); });
  const secret = location.pathname === "/setup" && new URLSearchParams(location.hash.slice(1)).get("secret");
  if (secret) {
    // It must not stay in the address.
    history.replaceState(null, "", "/setup");
    return credentials("Make the first admin", "Make", async (name, password) => {
      await ask("POST", "/setup", { secret, name, password });
      await enter(name, password);
    });
  }
  try { state.session = await get("/session"); } catch { state.session = null; }
  await route();
}

begin();
