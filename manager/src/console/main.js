// The console of dfmanager: a client of /api/v1. Who asks, and which page is shown.

import { ask, get, may, session } from "./api.js";
import { field, make, quiet } from "./dom.js";
import { live, silence, unwatch, watch } from "./live.js";
import { arrive, doing, tell } from "./tell.js";
import * as access from "./pages/access.js";
import * as audit from "./pages/audit.js";
import * as configuration from "./pages/configuration.js";
import * as hosts from "./pages/hosts.js";
import * as overview from "./pages/overview.js";
import * as ring from "./pages/ring.js";
import * as task from "./pages/task.js";
import * as tasks from "./pages/tasks.js";

// By what the address says; `task` is reached from `tasks`.
const pages = { overview, hosts, ring, tasks, task, config: configuration, access, audit };
const main = document.getElementById("main");
// The page that is shown: when the manager has looked, its `refresh` is called, one call at a time.
let shown = { refresh: null, busy: false };

function place() {
  const [key, ...rest] = location.hash.slice(1).split("/");
  const known = Object.hasOwn(pages, key) && may(pages[key].needs) ? key : "overview";
  return { key: known, argument: rest.map(decodeURIComponent) };
}

async function refresh() {
  const page = shown;
  if (!page.refresh || page.busy || document.querySelector("dialog[open]")) return;
  page.busy = true;
  // What fails now is tried again in two seconds; the page keeps what it shows.
  try { await page.refresh(); } catch { /* see above */ } finally { page.busy = false; }
}

async function route() {
  tell(null);
  if (!session.current) return logIn();
  const { key, argument } = place();
  const page = pages[key];
  const view = make("div");
  const title = make("h2", {}, page.title);
  const opened = { refresh: null, busy: false };
  shown = opened;
  document.title = `${page.title} – Damselfly`;
  main.replaceChildren(title, view);
  view.append(quiet("Looking…"));
  main.dataset.page = "";
  paintHeader(key);
  watch(refresh);
  try {
    const again = await page.open(view, argument, route);
    if (shown === opened) {
      opened.refresh = again ?? null;
      main.dataset.page = key;
    }
  } catch (problem) {
    if (shown !== opened) return;
    view.replaceChildren();
    tell(problem);
  }
}

function paintHeader(current) {
  const nav = document.getElementById("nav");
  nav.hidden = document.getElementById("who").hidden = !session.current;
  if (!session.current) return;
  document.getElementById("name").textContent = `${session.current.name} (${session.current.role})`;
  const visible = Object.entries(pages).filter(([key, page]) => key !== "task" && may(page.needs));
  const here = current === "task" ? "tasks" : current;
  nav.replaceChildren(...visible.map(([key, page]) =>
    make("a", { href: `#${key}`, "aria-current": key === here && "page" }, page.title)));
}

function credentials(title, confirm, newPassword, work) {
  const name = make("input", { name: "name", required: true, autocomplete: "username" });
  const password = make("input", { name: "password", type: "password", required: true,
    autocomplete: newPassword ? "new-password" : "current-password" });
  const form = make("form", { class: "tall", onsubmit: doing(() => work(name.value, password.value)) },
    field("Name", name), field("Password", password), make("button", { class: "main" }, confirm));
  document.title = `${title} – Damselfly`;
  main.replaceChildren(make("h2", {}, title), form);
  main.dataset.page = "login";
  name.focus();
}

async function enter(name, password) {
  session.current = (await ask("POST", "/session", { name, password })).json;
  if (location.pathname !== "/") history.replaceState(null, "", "/");
  await route();
  main.focus();
}

function logIn() {
  unwatch();
  arrive();
  session.current = null;
  shown = { refresh: null, busy: false };
  paintHeader();
  credentials("Log in", "Log in", false, enter);
}

// Figures that stand still look like those of a healthy cluster.
function watchSilence() {
  const since = session.current ? silence() : null;
  const note = document.getElementById("silent");
  if (note.hidden === (since === null)) return;
  note.hidden = since === null;
  note.textContent = since === null ? "" :
    `Nothing was heard of the manager since ${since.toLocaleTimeString()}: what is shown is out of date. The console goes on trying.`;
  refresh();
}

async function begin() {
  setInterval(watchSilence, 1000);
  session.ended = logIn;
  document.getElementById("logout").addEventListener("click", doing(async () => {
    await ask("DELETE", "/session");
    logIn();
  }));
  document.getElementById("skip").addEventListener("click", event => { event.preventDefault(); main.focus(); });
  window.addEventListener("hashchange", async () => { arrive(); await route(); main.focus(); });
  const secret = location.pathname === "/setup" && new URLSearchParams(location.hash.slice(1)).get("secret");
  if (secret) {
    // It must not stay in the address.
    history.replaceState(null, "", "/setup");
    return credentials("Make the first admin", "Make", true, async (name, password) => {
      await ask("POST", "/setup", { secret, name, password });
      await enter(name, password);
    });
  }
  try { session.current = await get("/session"); } catch { session.current = null; }
  await route();
}

begin();
