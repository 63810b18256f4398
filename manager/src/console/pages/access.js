// Who and what may do something: join tokens, users, and personal tokens.

import { ask, get, may, roles, session } from "../api.js";
import { button, field, id, idHead, make, quiet, table } from "../dom.js";
import { tags, time } from "../format.js";
import { consent, doing, say } from "../tell.js";

export const title = "Access";
export const needs = "viewer";

export async function open(view, _argument, again) {
  const parts = may("admin") ? [await joinTokens(again), await users(again)] : [];
  view.replaceChildren(...parts, await ownTokens(again));
}

const options = texts => texts.map(text => make("option", {}, text));
const section = (name, ...content) => make("section", { "aria-label": name }, make("h3", {}, name), ...content);
const amount = (value, most) => {
  const input = make("input", { type: "number", min: "1", max: String(most), required: true });
  input.value = String(value);
  return input;
};

// What is shown once, with a way to take it along.
function secret(before, text) {
  const shown = make("pre", { tabindex: "0" }, text);
  const copy = button("Copy", doing(async () => {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  }));
  // Only where the page came by TLS or from this machine.
  return make("div", { class: "notice", role: "status" }, make("p", {}, before), shown, navigator.clipboard && copy);
}

function asking(text, title, confirm, work) {
  return button(text, doing(async () => {
    if (await consent({ title, confirm, bad: true })) await work();
  }), { class: "bad", "aria-label": title.replace("?", "") });
}

// Tags as `key=value`, one after the other.
function readTags(text) {
  const parts = text.split(",").map(part => part.trim()).filter(Boolean);
  const wrong = parts.find(part => !part.includes("="));
  if (wrong) throw { detail: `The tag ${wrong} has no value: key=value is needed.` };
  return Object.fromEntries(parts.map(part => [part.slice(0, part.indexOf("=")), part.slice(part.indexOf("=") + 1)]));
}

async function joinTokens(again) {
  const made = make("select", {}, ...options(["node", "node, seed", "scheduler"]));
  const [uses, hours] = [amount(1, 100_000), amount(1, 8760)];
  const labels = make("input", { autocomplete: "off", placeholder: "zone=a, rack=7" });
  const shown = make("div");
  const list = make("div");
  const paint = async () => list.replaceChildren(paintJoinTokens((await get("/join-tokens?limit=100")).items, again));
  const form = make("form", { onsubmit: doing(async () => {
    const body = { roles: made.value.split(", "), uses: Number(uses.value), ttl_seconds: 3600 * Number(hours.value),
      tags: readTags(labels.value) };
    const token = (await ask("POST", "/join-tokens", body)).json.token;
    const program = body.roles.includes("scheduler") ? "dfscheduler" : "dfdaemon";
    shown.replaceChildren(secret("Shown this once. On the new host:", `${program} --join ${token}`));
    await paint();
  }) }, field("Makes a host", made), field("Hosts", uses), field("Hours", hours), field("Tags", labels),
  make("button", { class: "main" }, "Make a join token"));
  await paint();
  return section("Join tokens", form, shown, list);
}

function paintJoinTokens(tokens, again) {
  return table("Join tokens", ["Token", "Roles", "Tags", "Left", "Expires", "By", ""], tokens.map(token => [
    idHead(token.id), token.roles.join(", "), tags(token.tags) || "–", `${token.uses_left} of ${token.uses}`,
    token.withdrawn ? "withdrawn" : time(token.expires), token.created_by, token.withdrawn ? "" :
      asking("Withdraw", `Withdraw the join token ${token.id}?`, "Withdraw", async () => {
        await ask("DELETE", `/join-tokens/${encodeURIComponent(token.id)}`);
        await again();
        say("The join token is withdrawn.");
      })]));
}

async function users(again) {
  const name = make("input", { required: true, autocomplete: "off" });
  const password = make("input", { type: "password", required: true, autocomplete: "new-password" });
  const role = make("select", {}, ...options(roles));
  const form = make("form", { onsubmit: doing(async () => {
    await ask("POST", "/users", { name: name.value, password: password.value, role: role.value });
    await again();
    say(`The user ${name.value} is added.`);
  }) }, field("Name", name), field("Password", password), field("Role", role), make("button", { class: "main" }, "Add a user"));
  const known = (await get("/users?limit=200")).items;
  const change = (user, body, done) => doing(async () => {
    await ask("PATCH", `/users/${encodeURIComponent(user.name)}`, body());
    await again();
    say(done);
  });
  const row = user => {
    const chosen = make("select", { "aria-label": `Role of ${user.name}` }, ...options(roles));
    chosen.value = user.role;
    chosen.addEventListener("change", change(user, () => ({ role: chosen.value }), `The role of ${user.name} is changed.`));
    const isOn = !user.disabled;
    return [user.name, chosen, isOn ? "active" : "disabled", time(user.created), make("td", { class: "row" },
      button(isOn ? "Disable" : "Enable", change(user, () => ({ disabled: isOn }), `${user.name} is ${isOn ? "disabled" : "enabled"}.`),
        { "aria-label": `${isOn ? "Disable" : "Enable"} ${user.name}` }),
      asking("Delete", `Delete the user ${user.name}?`, "Delete", async () => {
        await ask("DELETE", `/users/${encodeURIComponent(user.name)}`);
        await again();
        say(`The user ${user.name} is deleted.`);
      }))];
  };
  return section("Users", form, table("Users", ["Name", "Role", "State", "Since", ""], known.map(row)));
}

async function ownTokens(again) {
  const label = make("input", { required: true, autocomplete: "off" });
  const allowed = roles.filter(may);
  const role = make("select", {}, ...options(allowed));
  const days = amount(90, 366);
  const shown = make("div");
  const list = make("div");
  const paint = async () => list.replaceChildren(paintOwnTokens((await get("/tokens?limit=100")).items, again));
  const form = make("form", { onsubmit: doing(async () => {
    const body = { label: label.value, role: role.value, ttl_seconds: 86_400 * Number(days.value) };
    shown.replaceChildren(secret("Shown this once:", (await ask("POST", "/tokens", body)).json.token));
    await paint();
  }) }, field("What for", label), field("At most", role), field("Days", days), make("button", { class: "main" }, "Make a token"));
  await paint();
  const whose = session.current.role === "admin" ? "Everybody's tokens; make your own here." : "Your own tokens.";
  return section("Personal access tokens", quiet(whose), form, shown, list);
}

function paintOwnTokens(tokens, again) {
  const scopes = token => token.scopes?.length > 0 ? token.scopes.join(", ") : "all of the role";
  return table("Personal access tokens", ["Label", "User", "Role", "May", "Expires", ""], tokens.map(token => [
    token.label, token.user, token.role, id(scopes(token)), time(token.expires),
    asking("Revoke", `Revoke the token ${token.label}?`, "Revoke", async () => {
      await ask("DELETE", `/tokens/${encodeURIComponent(token.id)}`);
      await again();
      say("The token is revoked.");
    })]));
}
